"""Operating points of a verifier: miss against false-alarm rate at every threshold.

A trial is accepted where its score is at or above the threshold t. With targets s⁺
(same speaker) and non-targets s⁻::

    FNR(t) = #{s⁺ < t} / #{s⁺}        FPR(t) = #{s⁻ >= t} / #{s⁻}

Both are step functions that change only at scores, so one sort and one cumulative sum
give every operating point: O(T log T). Tied scores share a threshold and move
together; nothing depends on the order of the trials.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from speechbrain_ext.errors import InputError


class ErrorRates(NamedTuple):
    """Every operating point, from "accept all" to "reject all".

    ``thresholds`` [K + 1]: the K distinct scores, ascending, and +inf. ``fnr`` rises
    from 0 to 1, ``fpr`` falls from 1 to 0; all float64.
    """

    thresholds: np.ndarray
    fnr: np.ndarray
    fpr: np.ndarray


def error_rates(scores, labels):
    """Miss and false-alarm rate at every threshold that makes a difference.

    Arguments
    ---------
    scores : array_like
        float [T], higher = more alike.
    labels : array_like
        0 or 1 [T], 1 = same speaker.

    Returns
    -------
    ErrorRates

    Raises
    ------
    InputError
        Empty, not one-dimensional, different lengths, NaN or infinite scores, labels
        other than 0 and 1, or only one of the two classes.
    """
    return rates_of_counts(*_count_below(*checked_scores(scores, labels)))


def roc_convex_hull(scores, labels):
    """The operating points that cost least for some prior: the lower convex hull.

    Scores are pooled until the share of targets does not fall from one pool to the
    next (pool adjacent violators, which is isotonic regression of the labels).

    Arguments
    ---------
    scores, labels : array_like
        As for :func:`error_rates`.

    Returns
    -------
    ErrorRates
        A few of the points of :func:`error_rates`, among them both ends.

    Raises
    ------
    InputError
        As :func:`error_rates`.
    """
    counts = _count_below(*checked_scores(scores, labels))
    _, targets_below, nontargets_below = counts
    targets = np.diff(targets_below)
    trials = targets + np.diff(nontargets_below)
    edges = isotonic_regression(targets / trials, weights=trials).blocks
    return rates_of_counts(*(column[edges] for column in counts))


def rates_of_counts(thresholds, targets_below, nontargets_below):
    """Counts (or sums of weights) under each threshold [K + 1] → ErrorRates."""
    n_target, n_nontarget = targets_below[-1], nontargets_below[-1]
    fpr = (n_nontarget - nontargets_below) / n_nontarget
    return ErrorRates(thresholds, targets_below / n_target, fpr)


def sort_by_score(scores):
    """Order of the scores [T], and how many lie under each threshold.

    Returns
    -------
    order : np.ndarray
        int [T], ascending scores; ties in any order.
    below : np.ndarray
        int [K + 1]: trials under each of the K distinct scores, and T.
    """
    order = np.argsort(scores)
    scores = scores[order]
    first = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))
    return order, np.concatenate((first, [len(scores)]))


def _count_below(scores, labels):
    """Thresholds, and targets and non-targets under each, all [K + 1]."""
    order, below = sort_by_score(scores)
    targets_up_to = np.concatenate(([0], np.cumsum(labels[order], dtype=np.int64)))
    targets_below = targets_up_to[below]
    distinct = scores[order[below[:-1]]].astype(np.float64)
    return np.append(distinct, np.inf), targets_below, below - targets_below


def checked_scores(scores, labels):
    """Scores and labels that have error rates.

    Arguments
    ---------
    scores : array_like
        Real numbers [T].
    labels : array_like
        0 or 1 [T], 1 = same speaker.

    Returns
    -------
    scores : np.ndarray
        Floats [T], of the type given where that is a float.
    labels : np.ndarray
        bool [T].

    Raises
    ------
    InputError
        Empty, not one-dimensional, different lengths, NaN or infinite scores, labels
        other than 0 and 1, or only one of the two classes.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise InputError(
            f"scores of shape {list(scores.shape)} and labels of shape "
            f"{list(labels.shape)}, expected one score and one label per trial: [T]"
        )
    if len(scores) == 0:
        raise InputError("0 scores, expected at least one target and one non-target")
    if scores.dtype.kind not in "fiu":
        raise InputError(f"scores of type {scores.dtype}, expected real numbers")
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    finite = np.isfinite(scores)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise InputError(
            f"score {scores[bad]} of trial {bad + 1} ({int((~finite).sum())} such), "
            "expected finite numbers"
        )
    same = labels == 1
    valid = same | (labels == 0)
    if not np.all(valid):
        bad = int(np.argmin(valid))
        raise InputError(f"label {labels[bad]} of trial {bad + 1}, expected 0 or 1")
    n_target = int(same.sum())
    if n_target in (0, len(same)):
        raise InputError(
            f"{n_target} targets and {len(same) - n_target} non-targets, expected at "
            "least one of each"
        )
    return scores, same
