"""Files of scores: text for people and other toolkits, a table of arrays for the rest.

Text has one line ``enrol test score`` per trial. A table (npz or safetensors, see
:mod:`speechbrain_ext.scoring.embeddings`) holds what :class:`Trials` holds, and the
scores: ``names`` [U]; ``enrol`` and ``test`` int32 [T], rows of them; ``scores`` [T],
float32 or float64; ``labels`` int8 [T], or [0] where the list has none.
"""

from pathlib import Path

import numpy as np

from speechbrain_ext.scoring.embeddings import check_ids, read_arrays, write_arrays
from speechbrain_ext.scoring.trials import Trials, number_names, read_columns
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically

_LINES_AT_ONCE = 4096  # bounds the memory


def write_scores(path, trials, scores):
    """Write ``enrol test score`` lines in the order of the list, atomically.

    With as many digits as bring back the same float. InputError: scores, float [T], of
    another shape, or not finite.
    """
    scores = np.asarray(scores)
    _check_scores(path, scores, len(trials), trials.path)
    line = f"%s %s %.{9 if scores.dtype == np.float32 else 17}g\n"
    names = trials.names.tolist()
    with write_atomically(path) as file:
        for start in range(0, len(scores), _LINES_AT_ONCE):
            part = slice(start, start + _LINES_AT_ONCE)
            enrol, test = (
                map(names.__getitem__, side[part].tolist())
                for side in (trials.enrol, trials.test)
            )
            rows = zip(enrol, test, scores[part].tolist())
            file.writelines(map(line.__mod__, rows))


def read_scores(path):
    """Read a score file written by :func:`write_scores` → Trials, scores float64 [T].

    The trials have no labels. InputError names file and line: missing or empty file,
    wrong number of columns, a score that is no finite number.
    """
    enrol, test, scores = read_columns(path, "'enrol test score'", 3, number=2)
    return Trials(Path(path), *number_names(enrol, test)), scores


def write_score_table(path, trials, scores):
    """Write trials and scores as arrays, atomically; the suffix chooses the format.

    ``.npz`` or ``.safetensors``; scores are float32 or float64 [T], labels are kept.
    InputError as :func:`read_score_table`, before anything is written.
    """
    scores = np.asarray(scores)
    _check_scores(path, scores, len(trials), trials.path)
    labels = np.empty(0, np.int8) if trials.labels is None else trials.labels
    columns = [trials.enrol, trials.test, scores, labels]
    _check_table(path, trials.names, *columns)
    names = ("enrol", "test", "scores", "labels")
    types = (np.int32, np.int32, scores.dtype, np.int8)
    arrays = {n: c.astype(t, copy=False) for n, c, t in zip(names, columns, types)}
    write_arrays(path, names=trials.names, **arrays)


def read_score_table(path):
    """Read a table written by :func:`write_score_table` → Trials, scores [T].

    With labels where the list had them, scores of the type written. InputError:
    missing, damaged or foreign file, pickled content, arrays of another type or length,
    a name twice, a row that is no name, a score that is not finite.
    """
    arrays = ("names", "enrol", "test", "scores", "labels")
    names, enrol, test, scores, labels = read_arrays(path, "scores", *arrays)
    _check_table(path, names, enrol, test, scores, labels)
    labels = labels if len(labels) else None
    return Trials(Path(path), names, enrol, test, labels), scores


def _check_scores(path, scores, size, source):
    if scores.shape != (size,):
        raise InputError(
            f"{path}: scores of shape {list(scores.shape)}, expected [{size}] as in "
            f"{source}"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise InputError(
            f"{path}: score {scores[bad[0]]} of trial {bad[0] + 1}, expected finite"
        )


def _check_table(path, names, enrol, test, scores, labels):
    """All that could make wrong trials of these arrays."""
    shapes = [list(a.shape) for a in (names, enrol, test, scores, labels)]
    size = len(scores) if scores.ndim == 1 else 0
    right = [len(names) if names.ndim == 1 else 0], [size], [size], [size]
    if size == 0 or shapes[:4] != list(right) or shapes[4] not in ([size], [0]):
        raise InputError(
            f"{path}: names, enrol, test, scores and labels of shapes {shapes}, "
            "expected [U], [T], [T], [T] and [T] or [0], with at least one trial"
        )
    kinds = [array.dtype for array in (names, enrol, test, scores, labels)]
    if "".join(k.kind for k in kinds) != "Uiifi" or kinds[3].itemsize not in (4, 8):
        raise InputError(
            f"{path}: names, enrol, test, scores and labels of types "
            f"{', '.join(map(str, kinds))}, expected text, two of integers, float32 or "
            "float64, integers"
        )
    check_ids(path, names.tolist())
    for side, rows in (("enrol", enrol), ("test", test)):
        bad = np.flatnonzero((rows < 0) | (rows >= len(names)))
        if len(bad):
            raise InputError(
                f"{path}: {side} row {rows[bad[0]]} in trial {bad[0] + 1}, expected 0 "
                f"to {len(names) - 1}: there are {len(names)} names"
            )
    _check_scores(path, scores, size, path)
    bad = np.flatnonzero((labels != 0) & (labels != 1))
    if len(bad):
        raise InputError(
            f"{path}: label {labels[bad[0]]} of trial {bad[0] + 1}, expected 0 or 1"
        )
