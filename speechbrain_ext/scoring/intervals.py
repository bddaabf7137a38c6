"""Bootstrap intervals of the metrics, over speakers.

Trials share speakers, so they are not independent: resampling trials would give
intervals that are far too narrow. Speakers are resampled instead, S out of S with
replacement. Speaker s is drawn c_s times, and a trial counts as often as its speakers::

    target trial of s: c_s          non-target trial of s and r: c_s c_r

(for resampling the units that errors cluster in, Bisani & Ney, "Bootstrap estimates for
confidence intervals in ASR performance evaluation", ICASSP 2004; for products of
weights in data crossed two ways, Owen, "The pigeonhole bootstrap", Annals of Applied
Statistics 1, 2007, which shows them to be slightly too wide rather than too narrow).
Every metric is then computed from weighted counts, and the middle 95 % of its values
over the resamples is its interval (percentile method). Scores are sorted only once.

The intervals say what other speakers would have changed, not other recordings of the
same speakers or another training run. That of minDCF leans to lower costs on short
lists, since every resample chooses its own best threshold.
"""

import numpy as np
from scipy.special import logit

from speechbrain_ext.scoring.metrics import (
    bits,
    checked_scores,
    crossing,
    lowest_cost,
    rates_of_counts,
    sort_by_score,
)
from speechbrain_ext.utils.errors import InputError

PRIORS = (0.01, 0.05)
FEWEST_SPEAKERS = 3  # of two, every resample that has both classes is the sample itself


def bootstrap_intervals(
    scores,
    labels,
    enrol_speakers,
    test_speakers=None,
    n_resamples=200,
    seed=0,
    level=0.95,
    priors=PRIORS,
    actual_priors=(),
):
    """Intervals of EER, minDCF, Cllr and, where it is asked for, actDCF.

    A resample without any target or non-target trial has no error rate and is drawn
    again; that matters only for a handful of speakers, whose intervals are too narrow
    in any case (a rule of thumb wants twenty).

    Arguments
    ---------
    scores : array_like
        float [T]; Cllr and actDCF take them as natural-log likelihood ratios.
    labels : array_like
        0 or 1 [T], 1 = same speaker.
    enrol_speakers, test_speakers : array_like
        int [T], any number per speaker, equal on both sides where the label is 1.
        Without the latter a score is of one recording, not of a pair, and counts as
        often as its speaker is drawn, whatever the label.
    n_resamples : int
        How many times speakers are drawn.
    seed : int
        The same input and seed give the same intervals.
    level : float
        Share of the resamples within an interval, in (0, 1).
    priors, actual_priors : tuple of float
        Of a target, at unit costs: those of minDCF, and those of actDCF.

    Returns
    -------
    dict
        ``eer``, ``cllr``, ``min_dcf_0.01`` and ``actual_dcf_0.01`` (of each prior) →
        (low, high), floats.

    Raises
    ------
    InputError
        As :func:`~speechbrain_ext.scoring.metrics.error_rates`; speakers of
        another shape or type, or that contradict the labels; fewer than three
        speakers; an option out of range.
    """
    if n_resamples < 2:
        raise InputError(f"n_resamples is {n_resamples}, expected at least 2")
    if not 0 < level < 1:
        raise InputError(f"level is {level}, expected between 0 and 1")
    metrics = WeightedMetrics(
        scores, labels, enrol_speakers, test_speakers, priors, actual_priors
    )
    if metrics.n_speakers < FEWEST_SPEAKERS:
        raise InputError(
            f"{metrics.n_speakers} speakers, expected at least {FEWEST_SPEAKERS} to "
            "resample"
        )
    random = np.random.default_rng(seed)
    values = []
    while len(values) < n_resamples:
        drawn = random.integers(0, metrics.n_speakers, metrics.n_speakers)
        counts = np.bincount(drawn, minlength=metrics.n_speakers)
        value = metrics(counts)
        if value is not None:
            values.append(value)
    tails = (1 - level) / 2, (1 + level) / 2
    return {
        name: tuple(np.quantile([value[name] for value in values], tails).tolist())
        for name in values[0]
    }


def rate_intervals(
    scores,
    labels,
    enrol_speakers,
    test_speakers,
    thresholds,
    n_resamples=200,
    seed=0,
    level=0.95,
):
    """Intervals of false-accept and miss rates at fixed thresholds.

    Of no error at all the interval is 0 to 0, which is no proof: of T independent
    trials without any, the rate may well be 3 / T.

    Arguments
    ---------
    thresholds : array_like
        float [P]; a trial is accepted at or above.
    others
        As for :func:`bootstrap_intervals`.

    Returns
    -------
    false_accept, miss : np.ndarray
        float64 [P, 2], low and high.

    Raises
    ------
    InputError
        As :func:`bootstrap_intervals`.
    """
    scores, labels = checked_scores(scores, labels)
    enrol, test = _speakers(labels, enrol_speakers, test_speakers)
    names, both = np.unique(np.concatenate((enrol, test)), return_inverse=True)
    if len(names) < FEWEST_SPEAKERS:
        raise InputError(
            f"{len(names)} speakers, expected at least {FEWEST_SPEAKERS} to resample"
        )
    enrol, test = both[: len(scores)], both[len(scores) :]
    accepted = scores[:, None] >= np.asarray(thresholds, dtype=np.float64)  # [T, P]
    wrong = [(enrol[~labels], test[~labels], accepted[~labels])]
    wrong.append((enrol[labels], None, ~accepted[labels]))
    random, values = np.random.default_rng(seed), []
    while len(values) < n_resamples:
        drawn = random.integers(0, len(names), len(names))
        counts = np.bincount(drawn, minlength=len(names))
        weights = [
            counts[first] * (1 if second is None else counts[second])
            for first, second, _ in wrong
        ]
        if all(w.any() for w in weights):
            values.append([w @ e / w.sum() for w, (*_, e) in zip(weights, wrong)])
    tails = (1 - level) / 2, (1 + level) / 2
    false_accept, miss = np.quantile(values, tails, axis=0).transpose(1, 2, 0)
    return false_accept, miss


class WeightedMetrics:
    """The metrics of a trial list whose speakers count several times or not at all."""

    def __init__(
        self,
        scores,
        labels,
        enrol_speakers,
        test_speakers=None,
        priors=PRIORS,
        actual_priors=(),
    ):
        scores, labels = checked_scores(scores, labels)
        self.priors = priors
        sides = _speakers(labels, enrol_speakers, test_speakers)
        known, codes = np.unique(np.concatenate(sides), return_inverse=True)
        self.n_speakers = len(known)
        sides = codes.reshape(len(sides), len(scores))
        order, below = sort_by_score(scores)
        targets = order[labels[order]]  # rows of the target trials, ascending scores
        others = order[~labels[order]]
        targets_below = _running_sum(labels[order])[below]  # [K + 1]
        others_below = below - targets_below
        corners = _corners(targets_below, others_below)
        self._targets_below = targets_below[corners]
        self._others_below = others_below[corners]
        self._thresholds = np.append(scores[order[below[:-1]]], np.inf)[corners]
        self._target_speaker = sides[0, targets]
        self._other_speakers = sides[:, others]
        # prior → how many targets and how many others lie below its threshold
        self._decided = {
            prior: [int(np.sum(scores[r] < -logit(prior))) for r in (targets, others)]
            for prior in actual_priors
        }
        scores = scores.astype(np.float64)
        self._target_bits, self._other_bits = (
            bits(-scores[targets]),
            bits(scores[others]),
        )

    def __call__(self, counts):
        """How often each speaker counts, int [S] → dict of metrics.

        None where that leaves no target or no non-target trial.
        """
        of_target = counts[self._target_speaker]
        of_other = np.prod(counts[self._other_speakers], axis=0)
        targets, others = _running_sum(of_target), _running_sum(of_other)
        n_target, n_nontarget = int(targets[-1]), int(others[-1])
        if not n_target or not n_nontarget:
            return None
        rates = rates_of_counts(
            self._thresholds, targets[self._targets_below], others[self._others_below]
        )
        found = {"eer": crossing(rates).eer}
        for prior in self.priors:
            found[f"min_dcf_{prior}"] = lowest_cost(rates, prior).dcf
        target = of_target @ self._target_bits / n_target
        nontarget = of_other @ self._other_bits / n_nontarget
        found["cllr"] = float(target + nontarget) / 2
        for prior, (n_missed, n_rejected) in self._decided.items():
            fnr = targets[n_missed] / n_target
            fpr = 1 - others[n_rejected] / n_nontarget
            cost = (prior * fnr + (1 - prior) * fpr) / min(prior, 1 - prior)
            found[f"actual_dcf_{prior}"] = float(cost)
        return found


def _running_sum(weights):
    """0, w_1, w_1 + w_2, ...: exact, in whole numbers."""
    return np.concatenate(([0], np.cumsum(weights)))


def _corners(targets_below, others_below):
    """Operating points between which the curve of FNR over FPR is straight.

    A run of thresholds that pass only targets, or only non-targets, is one straight
    piece whatever the weights: neither EER nor minDCF needs the points within. Of 3.4 M
    points of a list with 0.5 % targets, 21,000 are left, and a resample takes a third
    of the time.
    """
    kind = 2 * (np.diff(targets_below) > 0) + (np.diff(others_below) > 0)
    turns = (kind[1:] != kind[:-1]) | (kind[1:] == 3)
    return np.flatnonzero(np.concatenate(([True], turns, [True])))


def _speakers(labels, enrol, test=None):
    """Speakers of both sides, or of the only one, as arrays."""
    sides = tuple(np.asarray(side) for side in (enrol, test) if side is not None)
    for side, name in zip(sides, ("enrolment", "test")):
        if side.shape != labels.shape or side.dtype.kind not in "iu":
            raise InputError(
                f"{name} speakers of shape {list(side.shape)} and type {side.dtype}, "
                f"expected [{len(labels)}] integers"
            )
    if len(sides) == 1:
        return sides
    enrol, test = sides
    wrong = np.flatnonzero((enrol == test) != labels)
    if len(wrong):
        row = wrong[0]
        raise InputError(
            f"trial {row + 1} has label {int(labels[row])} and speakers {enrol[row]} "
            f"and {test[row]} ({len(wrong)} such), expected equal speakers where the "
            "label is 1 and only there"
        )
    return sides
