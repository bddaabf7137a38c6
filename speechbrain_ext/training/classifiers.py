"""The classifier of a former stage, for the next one: rows by speakers' names."""

from pathlib import Path

from torch import nn

from speechbrain_ext.data.labels import Classes
from speechbrain_ext.pretrained import CLASSIFIER_FILE, TRAINING
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import read_json
from speechbrain_ext.utils.weights import load_strictly, read_weights


def load_classifier(folder, classifier, speakers, n_speeds, n_perturbed=None):
    """Load a former stage's classifier into that of the next one, by speakers' names.

    Stage 3 keeps the rows of its speakers at their true speed, whatever else stage 2
    had. Which class a speaker at some speed is: :mod:`speechbrain_ext.data.labels`.

    Arguments
    ---------
    folder : str or Path
        Written by :func:`~speechbrain_ext.pretrained.save_pretrained`.
    classifier : ArcFace
        With as many classes as these speakers have. What another loss learned beside
        its rows is left out; what that of the former stage lacks stays as it is.
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
    wanted = Classes(len(speakers), n_speeds, n_perturbed)
    rows = _class_rows(folder, former, speakers, wanted)
    path = folder / CLASSIFIER_FILE
    weights = _read_rows(path, former)
    own = classifier.state_dict()
    kept = {name: value for name, value in weights.items() if name in own}
    beside = [name for name in own if name != "weight"]
    load_strictly(
        classifier,
        kept | {"weight": weights["weight"][rows]},
        str(path),
        allow_missing=beside,
    )


def _class_rows(folder, former, speakers, wanted):
    """Row of a former classifier for each of the ``wanted`` classes → list of int."""
    known = _classes(former)
    row = {name: number for number, name in enumerate(former["speakers"])}
    unknown = [name for name in speakers if name not in row]
    if unknown:
        raise InputError(
            f"{folder}: classifier of {len(row)} speakers has no classes for "
            f"{len(unknown)} of the {len(speakers)} training speakers, first "
            f"{unknown[0]!r}"
        )
    if wanted.n_speeds > known.n_speeds:
        raise InputError(
            f"{folder}: classifier of {known.n_speeds} speed(s) has no classes for "
            f"{wanted.n_speeds}, expected as many at most: see speeds"
        )
    rows = []
    for number, speed in wanted.speakers_and_speeds():
        if speed and row[speakers[number]] >= known.perturbed:
            raise InputError(
                f"{folder}: classifier knows {speakers[number]!r} at true speed only, "
                f"expected a perturbed speaker for {wanted.n_speeds} speeds"
            )
        rows.append(known.class_of(row[speakers[number]], speed))
    return rows


def keep_classifier(folder):
    """A former stage's classifier, for one that trains none and hands it on.

    Returns
    -------
    classifier : torch.nn.Module
        Its tensors by their names; or None.
    training : dict
        ``speakers``, ``n_speeds`` and, where not all are speed-perturbed,
        ``n_perturbed``, which its rows stand for; else empty.
    """
    if not (path := Path(folder) / CLASSIFIER_FILE).is_file():
        return None, {}
    former = read_training(folder)
    names = ("speakers", "n_speeds", "n_perturbed")
    kept = {name: former[name] for name in names if former.get(name) is not None}
    return nn.ParameterDict(_read_rows(path, kept)), kept


def _read_rows(path, training):
    """The tensors of a classifier, with as many rows as its training had classes."""
    weights = read_weights(path)
    shape = getattr(weights.get("weight"), "shape", ())
    found, expected = (shape or (0,))[0], _classes(training).count
    if found != expected:
        raise InputError(
            f"{path}: {found} classes, expected {expected} as in {TRAINING}"
        )
    return weights


def read_training(folder):
    """``training.json`` of a pretrained folder, as ``train.py`` writes it."""
    path = Path(folder) / TRAINING
    schema = {"speakers": [str], "n_speeds": int, "n_perturbed?": (int, None)}
    values = read_json(path, schema, what="the speakers of a training")
    with naming(path):
        _ = _classes(values).count  # checks n_perturbed
    return values


def _classes(training):
    speakers, speeds = training["speakers"], training["n_speeds"]
    return Classes(len(speakers), speeds, training.get("n_perturbed"))
