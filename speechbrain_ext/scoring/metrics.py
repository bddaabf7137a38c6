"""Verification metrics from one sort: error rates, EER, minDCF, actDCF, Cllr, minCllr.

A trial is accepted where its score is at or above the threshold t. With targets s⁺
(same speaker) and non-targets s⁻::

    FNR(t) = #{s⁺ < t} / #{s⁺}        FPR(t) = #{s⁻ >= t} / #{s⁻}

Both are step functions that change only at scores, so one sort and one cumulative sum
give every operating point: O(T log T). Tied scores share a threshold and move
together; nothing depends on the order of the trials.

* EER: FNR = FPR on the straight line between the two operating points around the
  crossing (Martin et al., "The DET curve in assessment of detection task performance",
  Eurospeech 1997, reports the same point of the curve).
* DCF(t) = C_miss P FNR(t) + C_fa (1 - P) FPR(t), divided by the cost of the better
  blind decision, min(C_miss P, C_fa (1 - P)) (NIST SRE 2016 evaluation plan, section
  3): its minimum over t, and its actual value at the threshold that is best for
  log-likelihood ratios one can trust, t = ln(C_fa (1 - P) / (C_miss P)).
* Cllr: Brümmer & du Preez, "Application-independent evaluation of speaker detection",
  Computer Speech & Language 20 (2006): the mean cost in bits of log-likelihood ratios;
  and minCllr, the cost that remains after the best rising map of the scores.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import xlog1py

from speechbrain_ext.utils.errors import InputError


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
    """ErrorRates that cost least for some prior: the lower convex hull, both ends incl.

    Scores are pooled until the share of targets does not fall from one pool to the
    next (pool adjacent violators, which is isotonic regression of the labels).
    Arguments and errors are those of :func:`error_rates`.
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
    """Order of the scores int [T], ascending, and how many lie under each threshold.

    The latter int [K + 1]: trials under each of the K distinct scores, and T. What is
    sorted already, as the parts of a sorted list are, is not sorted again.
    """
    ascending = bool(np.all(scores[1:] >= scores[:-1]))
    order = np.arange(len(scores)) if ascending else np.argsort(scores)
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
    """Scores as floats [T] and labels as bool [T], or InputError.

    Integers become float64. Refused: empty, not one-dimensional, different lengths, NaN
    or infinite scores, labels other than 0 and 1, or only one of the two classes.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise InputError(
            f"scores of shape {list(scores.shape)} and labels of shape "
            f"{list(labels.shape)}, expected one score and one label per trial: [T]"
        )
    if len(scores) == 0:
        raise InputError("0 scores, expected at least one target and one non-target")
    scores = finite_floats("score", scores)
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


def finite_floats(name, values):
    """``values`` [T] as floats, or InputError with ``name`` and the first bad trial."""
    if values.dtype.kind not in "fiu":
        raise InputError(f"{name} of type {values.dtype}, expected real numbers")
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise InputError(
            f"{name} {values[bad]} of trial {bad + 1} ({int((~finite).sum())} such), "
            "expected finite numbers"
        )
    return values


class EqualErrorRate(NamedTuple):
    """``eer`` as a fraction, and the threshold where both error rates meet it."""

    eer: float
    threshold: float


class DetectionCost(NamedTuple):
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
    return crossing(error_rates(scores, labels))


def crossing(rates):
    """ErrorRates → EqualErrorRate."""
    thresholds, fnr, fpr = rates
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
    DetectionCost
        The cost is in [0, 1]; 1 where no threshold beats a blind decision.

    Raises
    ------
    InputError
        As :func:`error_rates`; also for a prior or a cost out of range.
    """
    return lowest_cost(error_rates(scores, labels), p_target, c_miss, c_fa)


def lowest_cost(rates, p_target, c_miss=1, c_fa=1):
    """ErrorRates → DetectionCost at the best threshold."""
    miss, false_alarm = _cost_weights(p_target, c_miss, c_fa)
    thresholds, fnr, fpr = rates
    costs = (miss * fnr + false_alarm * fpr) / min(miss, false_alarm)
    best = int(np.argmin(costs))
    return DetectionCost(*(float(x[best]) for x in (costs, thresholds, fnr, fpr)))


def actual_dcf(llrs, labels, p_target=0.01, c_miss=1, c_fa=1):
    """The normalised detection cost of taking log-likelihood ratios at their word.

    Arguments
    ---------
    llrs : array_like
        float [T], natural-log likelihood ratios, same against different speaker.
    labels, p_target, c_miss, c_fa
        As for :func:`min_dcf`.

    Returns
    -------
    DetectionCost
        At least that of :func:`min_dcf`; above 1 where a blind decision does better.

    Raises
    ------
    InputError
        As :func:`min_dcf`.
    """
    llrs, labels = checked_scores(llrs, labels)
    miss, false_alarm = _cost_weights(p_target, c_miss, c_fa)
    threshold = float(np.log(false_alarm) - np.log(miss))
    fnr = float(np.mean(llrs[labels] < threshold))
    fpr = float(np.mean(llrs[~labels] >= threshold))
    cost = (miss * fnr + false_alarm * fpr) / min(miss, false_alarm)
    return DetectionCost(cost, threshold, fnr, fpr)


act_dcf = actual_dcf  # as evaluation plans call it


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
    scores, labels = checked_scores(scores, labels)
    scores = scores.astype(np.float64)
    target = float(bits(-scores[labels]).mean())
    nontarget = float(bits(scores[~labels]).mean())
    return Cllr((target + nontarget) / 2, target, nontarget)


def bits(s):
    """log₂(1 + e^s), the cost of one log-likelihood ratio; no overflow beyond 709."""
    return np.logaddexp(0, s) / np.log(2)


def min_cllr(scores, labels):
    """Cllr after the best non-falling map of scores to log-likelihood ratios.

    The map is constant on each edge of the convex hull of the ROC: the ratio of the
    shares of targets and of non-targets there (pool adjacent violators; Brümmer & du
    Preez 2006, section 8). What :func:`cllr` has above it is lost in calibration.

    Arguments
    ---------
    scores, labels : array_like
        As for :func:`error_rates`; any rising map of the scores gives the same.

    Returns
    -------
    Cllr
        From 0 (separated) to 1.

    Raises
    ------
    InputError
        As :func:`error_rates`.
    """
    _, fnr, fpr = roc_convex_hull(scores, labels)
    target, nontarget = np.diff(fnr), -np.diff(fpr)  # shares per edge, [edges]
    with np.errstate(divide="ignore"):  # a pure edge costs 0 · log(1 + ∞) = 0
        parts = [
            float(xlog1py(mine, other / mine).sum() / np.log(2))
            for mine, other in ((target, nontarget), (nontarget, target))
        ]
    return Cllr(sum(parts) / 2, *parts)


def _cost_weights(p_target, c_miss, c_fa):
    """What a miss and a false alarm weigh: C_miss P and C_fa (1 - P)."""
    if not 0 < p_target < 1:
        raise InputError(f"p_target is {p_target}, expected a prior between 0 and 1")
    for name, cost in (("c_miss", c_miss), ("c_fa", c_fa)):
        if not 0 < cost < np.inf:
            raise InputError(f"{name} is {cost}, expected a finite cost above 0")
    return c_miss * p_target, c_fa * (1 - p_target)
