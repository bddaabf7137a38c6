"""Verification metrics from one sort: EER, minDCF, Cllr.

A trial is accepted where its score is at or above the threshold t. With targets s⁺
(same speaker) and non-targets s⁻::

    FNR(t) = #{s⁺ < t} / #{s⁺}        FPR(t) = #{s⁻ >= t} / #{s⁻}

Both are step functions that change only at scores, so one sort and one cumulative sum
give every operating point: O(T log T). Tied scores share a threshold and move
together; nothing depends on the order of the trials.

* EER: FNR = FPR on the straight line between the two operating points around the
  crossing (Martin et al., "The DET curve in assessment of detection task performance",
  Eurospeech 1997, reports the same point of the curve).
* minDCF: min over t of C_miss P FNR(t) + C_fa (1 - P) FPR(t), divided by the cost of
  the better blind decision, min(C_miss P, C_fa (1 - P)) (NIST SRE 2016 evaluation
  plan, section 3).
* Cllr: Brümmer & du Preez, "Application-independent evaluation of speaker detection",
  Computer Speech & Language 20 (2006): the mean cost in bits of log-likelihood ratios.
"""

from typing import NamedTuple

import numpy as np

from speechbrain_ext.errors import InputError


class ErrorRates(NamedTuple):
    """Every operating point, from "accept all" to "reject all".

    ``thresholds`` [K + 1]: the K distinct scores, ascending, and +inf. ``fnr`` rises
    from 0 to 1, ``fpr`` falls from 1 to 0; all float64.
    """

    thresholds: np.ndarray
    fnr: np.ndarray
    fpr: np.ndarray


class EqualErrorRate(NamedTuple):
    """``eer`` as a fraction, and the threshold where both error rates meet it."""

    eer: float
    threshold: float


class MinDCF(NamedTuple):
    """Normalised cost, and where it is reached; ``threshold`` inf rejects all."""

    dcf: float
    threshold: float
    fnr: float
    fpr: float


class Cllr(NamedTuple):
    """Cost in bits: the mean of its target and non-target parts."""

    cllr: float
    target: float
    nontarget: float


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
    scores, labels = _checked(scores, labels)
    order = np.argsort(scores)
    scores, labels = scores[order], labels[order]
    first = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))
    below = np.concatenate((first, [len(scores)]))  # trials under each threshold
    targets_up_to = np.concatenate(([0], np.cumsum(labels, dtype=np.int64)))
    targets_below = targets_up_to[below]
    n_target = targets_below[-1]
    n_nontarget = len(scores) - n_target
    thresholds = np.concatenate((scores[first].astype(np.float64), [np.inf]))
    fpr = (n_nontarget - (below - targets_below)) / n_nontarget
    return ErrorRates(thresholds, targets_below / n_target, fpr)


def equal_error_rate(scores, labels):
    """The error rate where misses and false alarms are equally frequent.

    Arguments
    ---------
    scores, labels : array_like
        As for :func:`error_rates`.

    Returns
    -------
    EqualErrorRate
        The rate is a fraction in [0, 1]; 0.5 where all scores are equal. Rate and
        threshold are interpolated alike; the threshold is always finite.

    Raises
    ------
    InputError
        As :func:`error_rates`.
    """
    thresholds, fnr, fpr = error_rates(scores, labels)
    # FNR - FPR never falls, is -1 at the first point and 1 at the last.
    right = int(np.searchsorted(fnr - fpr, 0.0))
    left = right - 1
    gap_left, gap_right = fpr[left] - fnr[left], fnr[right] - fpr[right]
    part = gap_left / (gap_left + gap_right)
    eer = fnr[left] + part * (fnr[right] - fnr[left])
    threshold = thresholds[left]
    if np.isfinite(thresholds[right]):
        threshold += part * (thresholds[right] - threshold)
    return EqualErrorRate(float(eer), float(threshold))


def min_dcf(scores, labels, p_target=0.01, c_miss=1, c_fa=1):
    """The normalised detection cost at the best threshold.

    Arguments
    ---------
    scores, labels : array_like
        As for :func:`error_rates`.
    p_target : float
        Prior of a target trial, in (0, 1).
    c_miss, c_fa : float
        Cost of a miss and of a false alarm, above 0.

    Returns
    -------
    MinDCF
        The cost is in [0, 1]; 1 where no threshold beats a blind decision.

    Raises
    ------
    InputError
        As :func:`error_rates`; also for a prior or a cost out of range.
    """
    if not 0 < p_target < 1:
        raise InputError(f"p_target is {p_target}, expected a prior between 0 and 1")
    for name, cost in (("c_miss", c_miss), ("c_fa", c_fa)):
        if not 0 < cost < np.inf:
            raise InputError(f"{name} is {cost}, expected a finite cost above 0")
    thresholds, fnr, fpr = error_rates(scores, labels)
    miss, false_alarm = c_miss * p_target, c_fa * (1 - p_target)
    costs = (miss * fnr + false_alarm * fpr) / min(miss, false_alarm)
    best = int(np.argmin(costs))
    return MinDCF(*(float(x[best]) for x in (costs, thresholds, fnr, fpr)))


def cllr(scores, labels):
    """How much a set of log-likelihood ratios costs, in bits per trial.

    ½ mean log₂(1 + e^-s⁺) + ½ mean log₂(1 + e^s⁻): 0 for perfect ratios, 1 for ratios
    that say nothing (all 0), above 1 for ratios that mislead.

    Arguments
    ---------
    scores : array_like
        float [T], natural-log likelihood ratios, same against different speaker.
    labels : array_like
        0 or 1 [T], 1 = same speaker.

    Returns
    -------
    Cllr

    Raises
    ------
    InputError
        As :func:`error_rates`.
    """
    scores, labels = _checked(scores, labels)
    scores = scores.astype(np.float64)
    # logaddexp: e^s overflows beyond 709, the cost itself is then simply s.
    target = float(np.logaddexp(0, -scores[labels]).mean() / np.log(2))
    nontarget = float(np.logaddexp(0, scores[~labels]).mean() / np.log(2))
    return Cllr((target + nontarget) / 2, target, nontarget)


def _checked(scores, labels):
    """Scores as real floats [T] and labels as booleans [T], or InputError."""
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
