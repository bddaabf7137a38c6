#!/usr/bin/env python3
"""Train a speaker encoder: one stage of arXiv 2510.04213 per YAML file.

    python train.py hparams/stage1_lora_adapter_mfa.yaml \
        --train_folders=/data/VoxCeleb2 --test_folders=/data/VoxCeleb1 \
        --musan_folder=/data/musan --rirs_folder=/data/RIRS_NOISES

Several GPUs: ``torchrun --nproc_per_node=8 train.py hparams/….yaml …``. Stop it at any
time; the same command continues where it stopped. The end state is in
``<output_folder>/final``, from which the next stage and ``verify.py`` start.
"""

import functools
import logging
import sys
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import get_rank, if_main_process
from voxceleb_prepare import prepare_voxceleb

from speechbrain_ext.adaptation import inject_lora, merge_lora
from speechbrain_ext.brains.speaker import SpeakerBrain
from speechbrain_ext.brains.validated import read_validation
from speechbrain_ext.checkpoints import AtomicCheckpointer
from speechbrain_ext.data.augment import Augmenter, Musan, RoomResponses
from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.distributed import main_process_first
from speechbrain_ext.errors import command_line
from speechbrain_ext.hyper import call_with, load_run
from speechbrain_ext.pretrained import load_classifier, save_pretrained
from speechbrain_ext.profiling import count_parameters

logger = logging.getLogger(__name__)

# Top-level keys of the YAML files that this script and its Brain read.
KEYS = (
    *("output_folder", "save_folder", "train_logger", "seed", "prepare"),
    *("augment_chains", "musan", "rirs", "speeds", "crop_seconds", "batch_size"),
    *("draws_per_epoch", "num_workers", "valid_batch_seconds"),
    *("speaker_encoder", "lora", "classifier", "pretrained_folder"),
    *("opt_class", "epoch_counter", "lr_schedule", "margin_schedule"),
)


def make_training_set(hparams, manifest):
    """Manifest → (TrainingSet, its sampler) as the YAML says."""
    chains, augmenter = hparams["augment_chains"], None
    if chains:
        used = {
            step
            for name, weight in chains.items()
            if weight
            for step in name.split("+")
        }
        augmenter = Augmenter(
            chains,
            musan=call_with(Musan, "musan", hparams) if "noise" in used else None,
            rirs=call_with(RoomResponses, "rirs", hparams)
            if "reverb" in used
            else None,
        )
    world = torch.distributed.get_world_size() if get_rank() is not None else 1
    sampler = CropBatchSampler(
        manifest.labels,
        hparams["batch_size"],
        hparams["crop_seconds"],
        seed=hparams["seed"],
        rank=get_rank() or 0,
        world_size=world,
        n_speeds=len(hparams["speeds"]),
        draws_per_epoch=hparams["draws_per_epoch"],
    )
    dataset = TrainingSet(manifest, hparams["seed"], augmenter, hparams["speeds"])
    return dataset, sampler


def make_modules(hparams, manifest):
    """The modules to train: LoRA injected, or a former stage's classifier loaded."""
    speaker_encoder = hparams["speaker_encoder"]
    speakers, n_speeds = manifest.speaker_names.tolist(), len(hparams["speeds"])
    classifier = hparams["classifier"](n_classes=len(speakers) * n_speeds)
    if hparams["lora"]:
        lora = functools.partial(inject_lora, speaker_encoder.encoder)
        call_with(lora, "lora", hparams)
    if hparams["pretrained_folder"]:
        load_classifier(hparams["pretrained_folder"], classifier, speakers, n_speeds)
    return {"speaker_encoder": speaker_encoder, "classifier": classifier}


def log_decisions(modules, manifest, sampler, validation):
    """What this run is about to do, in figures."""
    logger.info(
        "training on %d speakers, %d utterances, %.1f h; %d steps per epoch",
        *(len(manifest.speaker_names), len(manifest)),
        *(manifest.durations.sum() / 3600, len(sampler)),
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


def export(brain, hparams, manifest):
    """Best checkpoint → ``<output_folder>/final``, LoRA merged."""
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
            "epoch": best.get("epoch"),
            "validation_eer_percent": best.get("EER"),
            "trained_parameters": trained,
            "total_parameters": total,
        },
    )
    logger.info("epoch %s is the best; model in %s", best.get("epoch"), folder)


@command_line
def main():
    """Prepare, train, export."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], KEYS)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    prepared = main_process_first(call_with, prepare_voxceleb, "prepare", hparams)

    manifest = read_manifest(prepared.train)
    dataset, sampler = make_training_set(hparams, manifest)
    validation = read_validation(prepared)
    modules = make_modules(hparams, manifest)
    log_decisions(modules, manifest, sampler, validation)
    # from here on (dropout) every rank has random numbers of its own
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
    on_gpu = brain.device_type == "cuda"
    loader = make_loader(dataset, sampler, hparams["num_workers"], pin_memory=on_gpu)
    brain.fit(hparams["epoch_counter"], loader)
    if if_main_process():
        export(brain, hparams, manifest)


if __name__ == "__main__":
    main()
