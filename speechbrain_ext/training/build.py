"""A classifier of new speakers begins where their recordings are.

    w_s = mean over recordings r of speaker s of e_r / |e_r|

scaled to the length that the row had: the imprinted weights of Qi et al. 2018 (arXiv
1712.07136), section 3.2. From random rows a pretrained encoder would be pulled about
for as long as the classifier looks for its speakers: at the small learning rates of
fine-tuning, for most of the run.

The parts of a training run, as the recipes' train.py scripts put them together.

    YAML file, manifest → training set, modules → Brain, loader → ``final``

A recipe decides how its corpus is prepared, and says these steps in their order; the
loop itself is in :mod:`speechbrain_ext.brains`.
"""

import functools
import logging
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.distributed import get_rank

from speechbrain_ext.adaptation import inject_lora, merge_lora
from speechbrain_ext.data.augment.augmenter import Augmenter, Musan, RoomResponses
from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.data.labels import Classes
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.data.shards.index import from_shards
from speechbrain_ext.data.shards.order import ShardOrderSampler
from speechbrain_ext.inference.extraction import extract_embeddings
from speechbrain_ext.pretrained import load_classifier, save_pretrained
from speechbrain_ext.profiling import count_parameters
from speechbrain_ext.training.checkpoints import AtomicCheckpointer
from speechbrain_ext.training.terms import SpeakerBrain
from speechbrain_ext.utils.config import call_with
from speechbrain_ext.utils.distributed import rank_and_world

logger = logging.getLogger(__name__)

MAX_UTTERANCES = 20  # of each speaker, as in the cohort of verify.py


def imprint(modules, manifest, n_speeds, device, max_batch_seconds, max_seconds):
    """Set a classifier's rows to the mean embeddings of its speakers.

    The rows of a speaker at other speeds begin at the same place. To be called on every
    rank: they share the work.

    Arguments
    ---------
    modules : dict
        ``speaker_encoder`` and ``classifier``, an
        :class:`~speechbrain_ext.losses.ArcFace`, which is changed in place.
    manifest : Manifest
        The training recordings.
    n_speeds : int
        As for :class:`~speechbrain_ext.data.labels.Classes`.
    device : str
        Where the modules are.
    max_batch_seconds, max_seconds : float
        As for :func:`~speechbrain_ext.inference.extraction.extract_embeddings`; the
        latter is the longest crop, so that the means are of what training will see.

    Raises
    ------
    InputError
        A recording that cannot be embedded.
    """
    n_speakers = len(manifest.speaker_names)
    part = manifest.select(first_of_each(manifest.labels, MAX_UTTERANCES))
    logger.info("the classifier begins at the means of %d recordings", len(part))
    vectors = extract_embeddings(
        modules["speaker_encoder"],
        part,
        device,
        max_batch_seconds,
        max_seconds,
        progress=False,
    )
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    means = np.zeros((n_speakers, vectors.shape[1]))
    np.add.at(means, part.labels, vectors)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    classes = Classes(n_speakers, n_speeds, manifest.n_perturbed)
    rows = [speaker for speaker, _ in classes.speakers_and_speeds()]
    with torch.no_grad():
        weight = modules["classifier"].weight
        directions = torch.from_numpy(means[rows]).to(weight)
        weight.copy_(directions * weight.norm(dim=1, keepdim=True))


def first_of_each(labels, count):
    """Rows of the first ``count`` recordings of each speaker: int64 [M], ascending."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < count])


# Top-level keys of a stage's YAML file that these functions and the Brain read.
KEYS = (
    *("output_folder", "save_folder", "train_logger", "seed", "prepare"),
    *("augment_chains", "musan", "rirs", "speeds", "crop_seconds", "batch_size"),
    *("global_batch", "draws_per_epoch", "num_workers", "valid_batch_seconds"),
    *("shards", "shard_window", "noise_cache_mib", "max_bad_recordings"),
    *("speaker_encoder", "lora", "classifier", "pretrained_folder", "new_classifier"),
    *("opt_class", "epoch_counter", "lr_schedule", "margin_schedule"),
)


def read_training_manifest(hparams, path):
    """The manifest to train on; its recordings are those in ``shards``, if any.

    Raises
    ------
    InputError
        A manifest or shards that are damaged, or do not belong together.
    """
    manifest = read_manifest(path)
    return from_shards(manifest, hparams["shards"]) if hparams["shards"] else manifest


def make_sampler(hparams, manifest, n_speeds=1):
    """Manifest → the sampler of its batches.

    Reads ``batch_size``, ``crop_seconds``, ``draws_per_epoch``, ``seed`` and
    ``shard_window``.

    Raises
    ------
    InputError
        A setting out of range.
    """
    rank, world = rank_and_world()
    settings = {
        "crop_seconds": hparams["crop_seconds"],
        "seed": hparams["seed"],
        "rank": rank,
        "world_size": world,
        "n_speeds": n_speeds,
        "draws_per_epoch": hparams["draws_per_epoch"],
        "n_perturbed": manifest.n_perturbed,
    }
    labels, size, window = manifest.labels, hparams["batch_size"], "shard_window"
    if hparams[window] is None:
        return CropBatchSampler(labels, size, **settings)
    logger.info(
        "the order is that of the shards, mixed within %d utterances: other batches "
        "than with shard_window: null",
        hparams[window],
    )
    return ShardOrderSampler(manifest.paths, hparams[window], labels, size, **settings)


def make_training_set(hparams, manifest):
    """Manifest → (TrainingSet, its sampler) as the YAML says.

    Reads ``augment_chains``, ``musan``, ``rirs``, ``noise_cache_mib``, ``speeds``,
    ``max_bad_recordings``, and what :func:`make_sampler` does.

    Raises
    ------
    InputError
        A setting out of range, noises or rooms that are wanted and not there.
    """
    dataset = TrainingSet(
        manifest,
        hparams["seed"],
        make_augmenter(hparams),
        hparams["speeds"],
        hparams["max_bad_recordings"],
    )
    return dataset, make_sampler(hparams, manifest, len(hparams["speeds"]))


def make_augmenter(hparams):
    """``augment_chains``, ``musan``, ``rirs`` → Augmenter, or None without chains.

    Folders are opened only where a chain of some weight draws from them, and up to
    ``noise_cache_mib`` of what is in them is decoded into memory.
    """
    chains = hparams["augment_chains"]
    if not chains:
        return None
    used = {
        step for name, weight in chains.items() if weight for step in name.split("+")
    }
    augmenter = Augmenter(
        chains,
        musan=call_with(Musan, "musan", hparams) if "noise" in used else None,
        rirs=call_with(RoomResponses, "rirs", hparams) if "reverb" in used else None,
    )
    if hparams["noise_cache_mib"] and used - {"none"}:
        augmenter.hold(hparams["noise_cache_mib"])
    return augmenter


def make_modules(hparams, manifest):
    """The modules to train: LoRA injected, or a former stage's classifier loaded.

    Reads ``speaker_encoder``, ``classifier``, ``speeds``, ``lora``,
    ``pretrained_folder`` and, where it is there, ``new_classifier``: True where the
    speakers are others than the former stage's.
    :class:`~speechbrain_ext.data.labels.Classes` counts the classes.

    Raises
    ------
    InputError
        A LoRA setting that fits no layer; a classifier without these speakers.
    """
    speaker_encoder = hparams["speaker_encoder"]
    speakers, n_speeds = manifest.speaker_names.tolist(), len(hparams["speeds"])
    perturbed = manifest.n_perturbed
    n_classes = Classes(len(speakers), n_speeds, perturbed).count
    classifier = hparams["classifier"](n_classes=n_classes)
    if hparams["lora"]:
        lora = functools.partial(inject_lora, speaker_encoder.encoder)
        call_with(lora, "lora", hparams)
    if hparams["pretrained_folder"] and not hparams.get("new_classifier"):
        folder = hparams["pretrained_folder"]
        load_classifier(folder, classifier, speakers, n_speeds, perturbed)
    return {"speaker_encoder": speaker_encoder, "classifier": classifier}


def log_decisions(modules, manifest, validation):
    """What this run is about to do, in figures."""
    logger.info(
        "training on %d speakers, %d utterances, %.1f h",
        *(len(manifest.speaker_names), len(manifest)),
        manifest.durations.sum() / 3600,
    )
    if validation is None:
        logger.info("no validation speakers: the last epoch counts as the best")
    else:
        held_out, trials, _ = validation
        logger.info(
            "validation on %d other speakers, %d utterances, %d trials",
            *(len(held_out.speaker_names), len(held_out), len(trials)),
        )
    for name, module in modules.items():
        trained, total = count_parameters(module)
        logger.info(
            "%s: %d parameters trained, %d frozen", name, trained, total - trained
        )


def make_brain(hparams, run_opts, modules, dataset, sampler, validation):
    """Modules and data → (SpeakerBrain, loader), ready for ``brain.fit``.

    Seeds torch: from here on (dropout) every rank has random numbers of its own. A
    ``new_classifier`` begins at its speakers' mean embeddings.
    """
    torch.manual_seed(hparams["seed"] + (get_rank() or 0))
    brain = SpeakerBrain(
        sampler=sampler,
        validation=validation,
        modules=modules,
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=AtomicCheckpointer(hparams["save_folder"]),
    )
    if hparams.get("new_classifier") and not brain.checkpointer.list_checkpoints():
        n_speeds, seconds = len(hparams["speeds"]), hparams["valid_batch_seconds"]
        longest = hparams["crop_seconds"][1]
        imprint(modules, dataset.manifest, n_speeds, brain.device, seconds, longest)
    on_gpu = brain.device_type == "cuda"
    loader = make_loader(dataset, sampler, hparams["num_workers"], pin_memory=on_gpu)
    return brain, loader


def export(brain, hparams, manifest, stage=None):
    """Best checkpoint → ``<output_folder>/final``, LoRA merged.

    ``stage`` is what the model is told to be of: by its YAML file's name, as a rule.
    """
    best = brain.recover_best()
    modules = brain.raw_trained_modules()
    trained, total = count_parameters(modules["speaker_encoder"])
    merge_lora(modules["speaker_encoder"].encoder)
    folder = save_pretrained(
        Path(hparams["output_folder"]) / "final",
        modules["speaker_encoder"],
        modules["classifier"],
        {
            "speakers": manifest.speaker_names.tolist(),
            "n_speeds": len(hparams["speeds"]),
            "n_perturbed": manifest.n_perturbed,
            "stage": stage,
            "epoch": best.get("epoch"),
            "validation_eer_percent": best.get("EER"),
            "trained_parameters": trained,
            "total_parameters": total,
        },
    )
    logger.info("epoch %s is the best; model in %s", best.get("epoch"), folder)
