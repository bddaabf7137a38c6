"""What goes into an export: the model of a recipe, its sizes, and what may be told.

Nothing here writes; :mod:`speechbrain_ext.export.folder` does.

The end state of a recipe as a folder to share, with all that verification needs.

    pretrained folder (train.py, distill_prune.py, convert)  ┐
    results folder (verify.py)                               ┴→ the folder, its card

What is written: hyperparams.yaml, encoder_config.json, speaker_encoder.safetensors,
training.json, README.md; as there are results, calibration.json, cohort.npz and
thresholds.json; structure.png of a pruned model. Names of training speakers are left
out, of the cohort too, and so is the classifier, unless it is asked for.
"""

import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_ext import __version__
from speechbrain_ext.export.card import FILES, CardFacts, make_card
from speechbrain_ext.export.thresholds import (
    Measured,
    from_calibration,
    from_files,
    read_results,
)
from speechbrain_ext.inference.audio_input import ChunkingConfig
from speechbrain_ext.inference.engine import min_samples_of
from speechbrain_ext.inference.folder import CALIBRATION_FILE, COHORT_FILE
from speechbrain_ext.inference.thresholds import THRESHOLDS_FILE, save_thresholds
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import (
    CLASSIFIER_FILE,
    HYPERPARAMS,
    INFERENCE,
    MODEL_FILE,
    TRAINING,
    keep_classifier,
    load_hyperparams,
    load_pretrained,
    weights_file,
    write_model,
)
from speechbrain_ext.profiling import count_macs, count_parameters
from speechbrain_ext.pruning import structure
from speechbrain_ext.pruning.plots import plot_structure
from speechbrain_ext.scoring.backend import Backend
from speechbrain_ext.scoring.cohort import save_cohort
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import (
    write_atomically,
    write_folder_atomically,
    write_json,
)
from speechbrain_ext.utils.weights import save_weights

EXPORTED = "exported_by"  # in training.json: what tells an export from other folders
SIGNALS, SAMPLES, RATE = 8, 48000, 16000  # on which two weights are compared


class Source(NamedTuple):
    """A pretrained folder.

    Attributes
    ----------
    folder : Path
    model : SpeakerEncoder
        In eval mode, on the CPU.
    inference : dict
        As :data:`~speechbrain_ext.pretrained.INFERENCE`.
    training : dict
        training.json.
    classifier : ArcFace or None
        Where it is wanted.
    """

    folder: Path
    model: torch.nn.Module
    inference: dict
    training: dict
    classifier: ArcFace | None


def read_source(folder, with_classifier=False):
    """A pretrained folder, loaded strictly → Source.

    Raises
    ------
    InputError
        As :func:`~speechbrain_ext.pretrained.load_pretrained`; an export; a damaged
        training.json; windows that do not fit; no classifier where one is wanted.
    """
    folder = Path(folder)
    training = read_json(folder / TRAINING)
    if EXPORTED in training:
        raise InputError(
            f"{folder}: is an export already, expected the folder that train.py, "
            "distill_prune.py or convert wrote"
        )
    hparams = load_hyperparams(folder)
    inference = {key: hparams.get(key, value) for key, value in INFERENCE.items()}
    with naming(folder / HYPERPARAMS):
        shortest = min_samples_of(hparams["speaker_encoder"])
        ChunkingConfig.of(inference).checked(shortest)
    classifier = None
    if with_classifier:
        classifier, _ = keep_classifier(folder)
        if classifier is None:
            raise InputError(f"{folder}: no {CLASSIFIER_FILE} to export")
    return Source(folder, hparams["speaker_encoder"], inference, training, classifier)


def read_json(path):
    """A JSON file of names and values, or an empty dict where there is none.

    Raises
    ------
    InputError
        Where it cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: {type(values).__name__}, expected names and values")
    return values


def is_export(folder):
    """Whether a folder was written by an export."""
    return EXPORTED in read_json(Path(folder) / TRAINING)


def check_output(output):
    """Whether an export may take the place of what is there.

    Raises
    ------
    InputError
        A folder that is no export, or one with something of the user's in it.
    """
    if output.name in ("", ".."):
        raise InputError(f"{output}: expected the name of a folder to write")
    if not output.exists():
        return
    if not output.is_dir() or not is_export(output):
        raise InputError(f"{output}: exists and is not an exported folder")
    others = sorted({path.name for path in output.iterdir()} - set(FILES))
    if others:
        raise InputError(
            f"{output}: holds {others[0]}, which an export did not write and would "
            "remove; move it, or give another --output"
        )


def shared_training(source, name=None):
    """What training.json may tell everybody.

    Names of speakers only with the classifier, whose rows they are.

    Arguments
    ---------
    source : Source
    name : str, optional
        ``owner/name`` on the hub.

    Returns
    -------
    dict
    """
    values, folder = source.training, source.folder.resolve()
    told = {
        key: value
        for key, value in values.items()
        if isinstance(value, (str, int, float)) or key == "converted_from"
    }
    speakers = values.get("speakers") or []
    if source.classifier is not None:
        told["speakers"] = speakers
    else:
        told.pop("n_speeds", None)
    if speakers:
        told["n_speakers"] = len(speakers)
    if "stage" not in told and folder.name == "final":
        told["stage"] = folder.parent.name  # results/STAGE/final
    if name:
        told["name"] = name
    return {**told, EXPORTED: f"speechbrain_ext {__version__}"}


def sizes_of(model):
    """Parameters and multiply-adds, as CardFacts has them."""
    return {
        "encoder": count_parameters(model.encoder).total,
        "head": count_parameters(model.head).total,
        "macs": count_macs(model),
        "embedding": model.embedding_size,
    }


def pruned_structure(model):
    """Units left in each layer, or None where nothing was pruned."""
    if not hasattr(model.encoder, "prunable_groups"):
        return None
    found = structure(model.encoder)
    pruned = any(group["kept"] < group["full"] for group in found["groups"])
    return found if pruned else None


def halved(model):
    """State of a model with parameters in float16; statistics keep their type."""
    parameters = dict(model.named_parameters())
    return {
        name: value.half() if name in parameters else value
        for name, value in model.state_dict().items()
    }


@torch.no_grad()
def lowest_cosine(model, other):
    """How alike the embeddings of two models are: 1 where they are equal.

    Of made-up signals, harmonics in noise: a recording is nowhere at hand.

    Arguments
    ---------
    model, other : SpeakerEncoder

    Returns
    -------
    float
    """
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(SAMPLES) / RATE
    lowest = 1.0
    for number in range(SIGNALS):
        pitch = 80 * 1.2**number  # Hz
        harmonics = torch.arange(1, 20)[:, None]
        loudness = torch.rand(19, 1, generator=generator) / harmonics
        wav = (loudness * torch.sin(2 * torch.pi * pitch * harmonics * time)).sum(0)
        wav = 0.1 * wav + 0.01 * torch.randn(SAMPLES, generator=generator)
        pair = [net(wav[None]).flatten().double() for net in (model, other)]
        lowest = min(lowest, torch.cosine_similarity(*pair, dim=0).item())
    return lowest


logger = logging.getLogger(__name__)

CARD, STRUCTURE = "README.md", "structure.png"


def export_model(
    pretrained_folder,
    output,
    results=None,
    *,
    name=None,
    licence=None,
    languages=(),
    training_data=None,
    thresholds_from=(),
    trials=None,
    with_cohort=True,
    with_classifier=False,
    half=False,
    card_template=None,
):
    """Write a folder that ``SpeakerVerifier.from_hparams`` loads, with its card.

    Arguments
    ---------
    pretrained_folder : str or Path
        Written by train.py, distill_prune.py or ``convert``.
    output : str or Path
        The folder; replaced where it is an export with nothing of the user's in it.
    results : str or Path, optional
        Output folder of verify.py for this model: figures, cohort, calibration,
        thresholds.
    name : str, optional
        ``owner/name`` on the hub; None takes the folder's name.
    licence, languages, training_data
        As in :class:`~speechbrain_ext.export.card.CardFacts`.
    thresholds_from, trials
        As :func:`~speechbrain_ext.export.thresholds.from_files` takes them;
        none: the calibration of ``results``, where its speakers are held out.
    with_cohort : bool
        False leaves out the means of the training speakers, and with them AS-norm and
        the calibration of its scores.
    with_classifier : bool
        Also write the classifier and its speakers' names, for training on.
    half : bool
        Store the parameters as float16; they are computed with in float32.
    card_template : str or Path, optional
        Of :func:`~speechbrain_ext.export.card.make_card`.

    Returns
    -------
    CardFacts
        What was written, as the card says it.

    Raises
    ------
    InputError
        Bad input of any kind, named; ``output`` is then as it was.
    """
    output = Path(output)
    check_output(output)
    if trials is not None and not thresholds_from:
        raise InputError(f"--trials {trials}: expected --thresholds_from with it")
    source = read_source(pretrained_folder, with_classifier)
    found = read_results(results) if results is not None else None
    if found:
        found.check_model(weights_file(source.folder))
        found.backend.check_width(source.model.embedding_size, source.folder)
    backend = found.backend if found and with_cohort else _without_cohort(found)
    measured = _measured(found, source, thresholds_from, trials)
    facts = CardFacts(
        name=name or output.name,
        sizes=sizes_of(source.model),
        training=shared_training(source, name),
        licence=licence,
        languages=list(languages),
        training_data=training_data,
        lists=found.lists if found else [],
        scores=_scores(backend),
        thresholds=_applicable(measured.thresholds, _scores(backend)),
        threshold_source=measured.source,
        cohort_size=0 if backend.cohort is None else len(backend.cohort.speakers),
        structure=pruned_structure(source.model),
    )
    make_card(facts, card_template)  # what is wrong with it, before anything is written
    with write_folder_atomically(output) as folder, _as_if_in(output, folder):
        facts = _write(folder, facts, source, backend, half)
        with write_atomically(folder / CARD) as file:
            file.write(make_card(facts, card_template))
    if not facts.thresholds:
        logger.warning("no %s: %s", THRESHOLDS_FILE, facts.threshold_source)
    return facts


def _without_cohort(found):
    """The back-end that is left where the cohort stays at home, or nothing was run."""
    if found is None or found.backend.cohort is not None:
        return Backend()  # a calibrator of normalised scores serves no others
    return found.backend


def _measured(found, source, thresholds_from, trials):
    if thresholds_from:
        tested = found.list_names if found else ()
        return from_files(thresholds_from, trials, tested)
    if found is None:
        return Measured({}, "no results of verify.py were given")
    return from_calibration(found, source.training.get("speakers") or ())


def _scores(backend):
    """Kinds of score that a back-end gives."""
    return (
        ["cosine"]
        + ["as_norm"] * (backend.cohort is not None)
        + ["llr"] * (backend.calibrator is not None)
    )


def _applicable(thresholds, scores):
    """Those of the scores that the folder gives."""
    for kind in set(thresholds) - set(scores):
        logger.warning("no thresholds of %s: the folder does not give it", kind)
    return {kind: found for kind, found in thresholds.items() if kind in scores}


def _write(folder, facts, source, backend, half):
    """Everything but the card → facts, with what only the files tell."""
    inference = {**source.inference}
    if backend.cohort is not None:
        inference["as_norm_top_n"] = backend.top_n
    weights = halved(source.model) if half else source.model.state_dict()
    write_model(folder, source.model, weights, inference)
    write_json(folder / TRAINING, facts.training)
    if source.classifier is not None:
        save_weights(source.classifier.state_dict(), folder / CLASSIFIER_FILE)
    if backend.cohort is not None:
        named = source.classifier is not None
        cohort = backend.cohort if named else _unnamed(backend.cohort)
        save_cohort(folder / COHORT_FILE, cohort)
    if backend.calibrator is not None:
        backend.calibrator.save(folder / CALIBRATION_FILE)
    if facts.thresholds:
        save_thresholds(folder / THRESHOLDS_FILE, facts.thresholds)
    if facts.structure:
        plot_structure(folder / STRUCTURE, facts.structure)
    cosine = lowest_cosine(source.model, load_pretrained(folder)) if half else None
    stored = {
        "weight_type": "float16" if half else "float32",
        "bytes": (folder / MODEL_FILE).stat().st_size,
        "cosine": cosine,
    }
    written = {CARD, *(path.name for path in folder.iterdir())}
    files = [name for name in FILES if name in written]
    return replace(facts, sizes={**facts.sizes, **stored}, files=files)


def _unnamed(cohort):
    """The same with numbers in place of the speakers' names."""
    numbers = range(1, len(cohort.speakers) + 1)
    names = np.array([f"speaker_{number:06d}" for number in numbers])
    return cohort._replace(speakers=names)


@contextlib.contextmanager
def _as_if_in(output, folder):
    """Errors name the folder that the user knows, not the one beside it."""
    try:
        yield
    except InputError as error:
        message = str(error).replace(str(folder), str(output))
        raise InputError(message) from error
    except OSError as error:
        name = str(error.filename2 or error.filename or output)
        error.filename = name.replace(str(folder), str(output))
        raise
