"""Scores of several systems side by side, for a calibrator to fuse.

Fusion is calibration with one input per system, ℓ = Σ w_s s_s + b: see
:class:`~speechbrain_ext.scoring.calibration.QualityCalibrator`.
"""

from typing import NamedTuple

import numpy as np

from speechbrain_ext.utils.errors import InputError


class StackedScores(NamedTuple):
    """``names`` of the S systems and ``values`` float64 [T, S], a column each."""

    names: list
    values: np.ndarray


def stack_scores(systems):
    """The scores of several systems in one order, that of the first → StackedScores.

    ``systems`` is name → (Trials, scores [T]). Each holds the same trials, in any
    order; enrolment and test do not swap. InputError names the systems and the first
    trial: no system, scores of another shape, a trial that comes twice, or that not all
    score.
    """
    if not systems:
        raise InputError("no systems to fuse, expected at least one")
    codes, first, columns = {}, None, []
    for name, (trials, scores) in systems.items():
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (len(trials),):
            raise InputError(
                f"system '{name}': scores of shape {list(scores.shape)}, expected "
                f"[{len(trials)}] as in {trials.path}"
            )
        keys = _keys(trials, codes)
        order = np.argsort(keys)
        _check_once(name, trials, keys, order)
        if first is None:
            first = name, trials, keys
        _check_contained(first, (name, keys[order]))
        _check_contained((name, trials, keys), (first[0], np.sort(first[2])))
        columns.append(scores[order[np.searchsorted(keys[order], first[2])]])
    return StackedScores(list(systems), np.stack(columns, axis=1))


def _keys(trials, codes):
    """One number per trial, the same for the same two names in every system."""
    rows = [codes.setdefault(name, len(codes)) for name in trials.names.tolist()]
    rows = np.array(rows, dtype=np.int64)
    return rows[trials.enrol] << 32 | rows[trials.test]


def _check_once(name, trials, keys, order):
    repeated = keys[order[1:]] == keys[order[:-1]]
    if repeated.any():
        row = int(order[1:][repeated].min())
        raise InputError(
            f"system '{name}': trial {_pair(trials, row)} comes twice in "
            f"{trials.path}, expected each once"
        )


def _check_contained(system, other):
    """Each trial of ``system`` is among the sorted keys of ``other``."""
    (name, trials, keys), (other_name, known) = system, other
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    absent = known[place] != keys
    if absent.any():
        raise InputError(
            f"system '{other_name}' lacks {int(absent.sum())} trials of system "
            f"'{name}', first {_pair(trials, int(np.argmax(absent)))} of "
            f"{trials.path}; expected all systems to score the same trials"
        )


def _pair(trials, row):
    return f"'{trials.names[trials.enrol[row]]} {trials.names[trials.test[row]]}'"
