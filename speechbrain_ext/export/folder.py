"""The end state of a recipe as a folder to share, with all that verification needs.

    pretrained folder (train.py, distill_prune.py, convert)  ┐
    results folder (verify.py, evaluate.py)                  ┴→ the folder, its card

Written are the model, training.json and README.md; from results, calibration.json,
cohort.npz and thresholds.json; structure.png of a pruned model. Names
of training speakers are left out, of the cohort too, and so is the classifier, unless
it is asked for.
"""

import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_ext import __version__
from speechbrain_ext.export.card import (
    DETECTOR,
    FILES,
    CardFacts,
    encoder_title,
    make_card,
)
from speechbrain_ext.export.detection import LLR, read_detection_results
from speechbrain_ext.export.thresholds import (
    Measured,
    from_calibration,
    from_files,
    read_results,
)
from speechbrain_ext.inference.audio_input import ChunkingConfig
from speechbrain_ext.inference.folder import CALIBRATION_FILE, COHORT_FILE
from speechbrain_ext.inference.thresholds import THRESHOLDS_FILE, save_thresholds
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import (
    CLASSIFIER_FILE,
    HYPERPARAMS,
    INFERENCE,
    MODEL_FILE,
    TRAINING,
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
from speechbrain_ext.training.classifiers import keep_classifier
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import (
    read_json,
    write_atomically,
    write_folder_atomically,
    write_json,
)
from speechbrain_ext.utils.weights import save_weights

logger = logging.getLogger(__name__)

CARD, STRUCTURE = "README.md", "structure.png"
EXPORTED = "exported_by"  # in training.json: what tells an export from other folders
# training.json, as far as an export or its card reads it
_TRAINING = {
    "speakers?": [str],
    "stage?": str,
    "n_speakers?": int,
    "epoch?": (int, None),
    "validation_eer_percent?": (float, None),
    "validation_min_dcf?": (float, None),
    "converted_from?": {"file?": str, "licence?": str},
    "name?": str,
}
SIGNALS, SAMPLES, RATE = 8, 48000, 16000  # on which two weights are compared


class Source(NamedTuple):
    """A pretrained folder: model in eval mode, INFERENCE's values, training.json."""

    folder: Path
    model: torch.nn.Module
    inference: dict
    training: dict
    classifier: ArcFace | None


def _read_source(folder, with_classifier):
    """A pretrained folder, loaded strictly; InputError where it is an export."""
    folder = Path(folder)
    training = read_training(folder)
    if EXPORTED in training:
        raise InputError(
            f"{folder}: is an export already, expected the folder that train.py, "
            "distill_prune.py or convert wrote"
        )
    hparams = load_hyperparams(folder)
    inference = {key: hparams.get(key, value) for key, value in INFERENCE.items()}
    with naming(folder / HYPERPARAMS):
        ChunkingConfig.of(inference).checked(hparams["speaker_encoder"].encoder)
    classifier = None
    if with_classifier:
        classifier, _ = keep_classifier(folder)
        if classifier is None:
            raise InputError(f"{folder}: no {CLASSIFIER_FILE} to export")
    return Source(folder, hparams["speaker_encoder"], inference, training, classifier)


def read_training(folder):
    """``training.json`` of a folder, or an empty dict where there is none."""
    path = Path(folder) / TRAINING
    return read_json(path, _TRAINING) if path.exists() else {}


def is_export(folder):
    """Whether a folder was written by an export."""
    return EXPORTED in read_training(folder)


def _check_output(output):
    """InputError unless there is nothing, or an export with nothing of the user's."""
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


def _shared_training(source, name):
    """What training.json may tell everybody; speakers' names with their rows only."""
    speakers, folder = source.training.get("speakers"), source.folder.resolve()
    shared = {
        key: value
        for key, value in source.training.items()
        if isinstance(value, (str, int, float)) or key == "converted_from"
    }
    if source.classifier is not None:
        shared["speakers"] = speakers or []
    else:
        shared.pop("n_speeds", None)
    if speakers:
        shared["n_speakers"] = len(speakers)
    if "stage" not in shared and folder.name == "final":
        shared["stage"] = folder.parent.name  # results/STAGE/final
    if name:
        shared["name"] = name
    return {**shared, EXPORTED: f"speechbrain_ext {__version__}"}


def _sizes(model):
    """Parameters and multiply-adds, as CardFacts has them."""
    return {
        "encoder": count_parameters(model.encoder).total,
        "head": count_parameters(model.head).total,
        "macs": count_macs(model),
        "embedding": model.embedding_size,
    }


def _pruned_structure(model):
    """Units left in each layer, or None where nothing was pruned."""
    if not hasattr(model.encoder, "prunable_groups"):
        return None
    units = structure(model.encoder)
    pruned = any(group["kept"] < group["full"] for group in units["groups"])
    return units if pruned else None


def halved(model):
    """State of a model with parameters in float16; statistics keep their type."""
    parameters = dict(model.named_parameters())
    return {
        name: value.half() if name in parameters else value
        for name, value in model.state_dict().items()
    }


@torch.no_grad()
def lowest_cosine(model, other):
    """The lowest cosine of two models' embeddings of made-up signals: 1 where equal.

    Harmonics in noise: a recording is nowhere at hand.
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
    """Write a folder that ``from_hparams`` loads, with its card.

    Of a speaker encoder for ``SpeakerVerifier``, of a detector for
    ``SpoofingDetector``.

    Arguments
    ---------
    pretrained_folder : str or Path
        Written by train.py, distill_prune.py or ``convert``.
    output : str or Path
        The folder; replaced where it is an export with nothing of the user's in it.
    results : str or Path, optional
        Output folder of verify.py for this model, of a detector of evaluate.py:
        figures, cohort, calibration, thresholds.
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
    _check_output(output)
    if trials is not None and not thresholds_from:
        raise InputError(f"--trials {trials}: expected --thresholds_from with it")
    source = _read_source(pretrained_folder, with_classifier)
    detects = source.model.head.used_by == DETECTOR
    if detects and thresholds_from:
        raise InputError(
            f"--thresholds_from {thresholds_from[0]}: {pretrained_folder} is of a "
            "spoofing detector, expected --results of evaluate.py for its thresholds"
        )
    read = read_detection_results if detects else read_results
    verified = read(results) if results is not None else None
    backend = verified.backend if verified else Backend()
    if verified:
        verified.check_model(weights_file(source.folder))
    if verified and not detects:
        backend.check_width(source.model.embedding_size, source.folder)
    if backend.cohort is not None and not with_cohort:
        backend = Backend()  # a calibrator of normalised scores serves no others
    measured = _measured(verified, source, thresholds_from, trials)
    scores = [LLR] if detects else _scores(backend)
    facts = CardFacts(
        name=name or output.name,
        sizes=_sizes(source.model),
        training=_shared_training(source, name),
        licence=licence,
        languages=list(languages),
        training_data=training_data,
        lists=verified.lists if verified else [],
        scores=scores,
        thresholds=_applicable(measured.thresholds, scores),
        threshold_source=measured.source,
        cohort_size=0 if backend.cohort is None else len(backend.cohort.speakers),
        structure=_pruned_structure(source.model),
        encoder=encoder_title(source.model.encoder),
        sample_rate=getattr(source.model.encoder, "sample_rate", RATE),
        used_by=source.model.head.used_by,
        costs=verified.about.get("costs") if verified else None,
    )
    make_card(facts, card_template)  # what is wrong with it, before anything is written
    with write_folder_atomically(output) as folder, _as_if_in(output, folder):
        facts = _write(folder, facts, source, backend, half)
        with write_atomically(folder / CARD) as file:
            file.write(make_card(facts, card_template))
    if not facts.thresholds:
        logger.warning("no %s: %s", THRESHOLDS_FILE, facts.threshold_source)
    return facts


def _measured(verified, source, thresholds_from, trials):
    if thresholds_from:
        tested = verified.list_names if verified else ()
        return from_files(thresholds_from, trials, tested)
    detects = source.model.head.used_by == DETECTOR
    if verified is None:
        script = "evaluate.py" if detects else "verify.py"
        return Measured({}, f"no results of {script} were given")
    if detects:
        return verified.measured()
    return from_calibration(verified, source.training.get("speakers") or ())


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
    return {kind: curve for kind, curve in thresholds.items() if kind in scores}


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
