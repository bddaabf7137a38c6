"""What goes into an export: the model of a recipe, its sizes, and what may be told.

Nothing here writes; :mod:`speechbrain_ext.inference.export` does.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from speechbrain_ext import __version__
from speechbrain_ext.errors import InputError, naming
from speechbrain_ext.inference.card_sections import FILES
from speechbrain_ext.inference.loading import Rules, checked_rules
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import (
    CLASSIFIER_FILE,
    HYPERPARAMS,
    INFERENCE,
    TRAINING,
    keep_classifier,
    load_hyperparams,
)
from speechbrain_ext.profiling import count_macs, count_parameters
from speechbrain_ext.pruning import structure

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
        checked_rules(Rules(*(inference[name] for name in Rules._fields)))
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
