"""The classifier in a model's folder: kept, handed on, and its rows chosen by name.

    classifier.safetensors    one row per training class
    training.json             speakers in row order, speeds, which are perturbed

Which class a speaker at some speed is: :mod:`speechbrain_ext.data.classes`.
"""

import json
from pathlib import Path

from speechbrain_ext.data.classes import Classes
from speechbrain_ext.errors import InputError
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.weights import load_strictly, read_weights

CLASSIFIER_FILE = "classifier.safetensors"
TRAINING = "training.json"


def load_classifier(folder, classifier, speakers, n_speeds, n_perturbed=None):
    """Load a former stage's classifier into that of the next one.

    Rows go by the speakers' names: stage 3 keeps the rows of its speakers at their
    true speed, whatever else stage 2 had.

    Arguments
    ---------
    folder : str or Path
        Written by :func:`~speechbrain_ext.pretrained.save_pretrained`.
    classifier : ArcFace
        With as many classes as these speakers have.
    speakers : list of str
        Names of the training speakers, in label order.
    n_speeds : int
        Blocks of classes: 3 with speed copies, 1 without.
    n_perturbed : int, optional
        So many of the speakers, the first, have speed copies; None: all.

    Raises
    ------
    InputError
        Where anything does not fit: the embedding's width, a speaker the former stage
        did not know, more speeds than it had.
    """
    folder = Path(folder)
    former = read_training(folder)
    rows = class_rows(
        former["speakers"],
        former["n_speeds"],
        speakers,
        n_speeds,
        folder,
        former.get("n_perturbed"),
        n_perturbed,
    )
    path = folder / CLASSIFIER_FILE
    weights = read_weights(path)
    expected = _classes(former).count
    if len(weights.get("weight", ())) != expected:
        raise InputError(
            f"{path}: {len(weights.get('weight', ()))} classes, expected {expected} as "
            f"in {TRAINING}"
        )
    load_strictly(classifier, {"weight": weights["weight"][rows]}, str(path))


def keep_classifier(folder):
    """A former stage's classifier, for one that trains none and hands it on.

    Returns
    -------
    classifier : ArcFace
        Or None.
    training : dict
        ``speakers``, ``n_speeds`` and, where not all are speed-perturbed,
        ``n_perturbed``, which its rows stand for; else empty.
    """
    if not (path := Path(folder) / CLASSIFIER_FILE).is_file():
        return None, {}
    former = read_training(folder)
    names = ("speakers", "n_speeds", "n_perturbed")
    kept = {name: former[name] for name in names if former.get(name) is not None}
    weights = read_weights(path)
    size = max((weight.shape[-1] for weight in weights.values()), default=0)
    classifier = ArcFace(size, _classes(kept).count)
    load_strictly(classifier, weights, str(path))
    return classifier, kept


def read_training(folder):
    """``training.json`` of a pretrained folder."""
    path = Path(folder) / TRAINING
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        speakers, n_speeds = values["speakers"], values["n_speeds"]
        perturbed = values.get("n_perturbed", 0)
        if not (isinstance(speakers, list) and isinstance(n_speeds, int)):
            raise TypeError
        if not (perturbed is None or 0 <= perturbed <= len(speakers)):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected JSON with a list 'speakers' and a number 'n_speeds', as "
            "train.py writes"
        ) from error
    return values


def _classes(training):
    return Classes(
        len(training["speakers"]), training["n_speeds"], training.get("n_perturbed")
    )


def class_rows(
    former,
    former_speeds,
    speakers,
    n_speeds,
    source,
    former_perturbed=None,
    n_perturbed=None,
):
    """Rows of a former classifier that are the classes of the new one.

    Returns
    -------
    list of int
        One row number for each class.
    """
    row = {name: number for number, name in enumerate(former)}
    unknown = [name for name in speakers if name not in row]
    if unknown:
        raise InputError(
            f"{source}: classifier of {len(former)} speakers has no classes for "
            f"{len(unknown)} of the {len(speakers)} training speakers, first "
            f"{unknown[0]!r}"
        )
    if n_speeds > former_speeds:
        raise InputError(
            f"{source}: classifier of {former_speeds} speed(s) has no classes for "
            f"{n_speeds}, expected as many at most: see speeds"
        )
    known = Classes(len(former), former_speeds, former_perturbed)
    wanted = Classes(len(speakers), n_speeds, n_perturbed)
    plain = [
        speakers[number]
        for number, speed in wanted.speakers_and_speeds()
        if speed and row[speakers[number]] >= known.perturbed
    ]
    if plain:
        raise InputError(
            f"{source}: classifier knows {plain[0]!r} at true speed only, expected "
            f"a speaker that was perturbed, as {n_speeds} speeds are asked for"
        )
    return [
        known.class_of(row[speakers[number]], speed)
        for number, speed in wanted.speakers_and_speeds()
    ]
