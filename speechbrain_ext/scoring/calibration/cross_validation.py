"""The penalty λ of a calibrator, by cross-validation over speakers.

Trials of one speaker resemble each other, so thousands of trials of few speakers say
much less than their number. Speakers are dealt into folds. For each fold the calibrator
is fitted on the trials that hold none of its speakers, and tried on those that hold one
or two: a cost C(λ), the Cllr over all trials so tried. Taken is the largest λ whose
cost is within one standard error of the lowest (the one standard error rule of Breiman
et al., "Classification and regression trees", 1984)::

    λ* = max { λ : C(λ) <= C(λ₀) + s },  λ₀ = argmin C,  s² = (K - 1)/K Σ_k (C₋ₖ - C̄₋)²

with s the jackknife's over the K folds at λ₀. The score has λ, its qualities 100 λ: the
score is known to tell speakers apart, the qualities have yet to show their use.

(A non-target trial between two folds is tried once for each, with one speaker of the
two unknown to the calibrator: both unknown would leave six speakers hardly any.)
"""

import numpy as np

from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.metrics import cllr
from speechbrain_ext.utils.errors import InputError

GRID = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STIFFNESS = 100  # λ of the qualities over that of the score
FOLDS = 6


def choose_l2(features, labels, speakers, objective="cllr", seed=0):
    """The λ of a calibrator by cross-validation, see above → it, {λ: Cllr}.

    Of features float [T, F], labels [T], and ``speakers`` [T, 2] of both sides, numbers
    or names; ``seed`` is of the folds. InputError as :func:`deal_trials` and the
    calibrator.
    """
    folds = deal_trials(labels, speakers, seed)
    trials = {l2: _try(features, labels, folds, objective, l2) for l2 in GRID}
    costs = {l2: _cost(parts) for l2, parts in trials.items()}
    lowest = min(GRID, key=costs.get)
    limit = costs[lowest] + _standard_error(trials[lowest])
    return max(l2 for l2 in GRID if costs[l2] <= limit), costs


def held_out_ratios(features, labels, speakers, l2, objective="cllr", seed=0):
    """Likelihood ratios of trials by calibrators that did not know their speakers.

    Arguments as for :func:`choose_l2`, and its λ. A trial is scored by the calibrator
    that was fitted without the fold of its speaker; a non-target trial between two
    folds by both, of which each knows one of its speakers: their mean is taken.

    Returns
    -------
    np.ndarray
        float64 [T], natural logarithm.

    Raises
    ------
    InputError
        As :func:`choose_l2`.
    """
    folds = deal_trials(labels, speakers, seed)
    total = np.zeros(len(labels))
    parts = _try(features, np.asarray(labels), folds, objective, l2)
    for inside, (ratios, _) in zip(folds, parts):
        total[inside] += ratios
    return total / np.sum(folds, axis=0)


def make_calibrator(l2, names=None, objective="cllr"):
    """A calibrator of a score and its qualities with this λ, not yet fitted."""
    return QualityCalibrator(names, objective, l2=l2, l2_quality=STIFFNESS * l2)


def deal_trials(labels, speakers, seed=0):
    """Deal speakers into folds → for each bool [T], the trials with its speakers.

    InputError for fewer than three speakers, or a fold without which one label is gone.
    """
    labels = np.asarray(labels)
    names, codes = np.unique(speakers, return_inverse=True)
    if len(names) < 3:
        raise InputError(
            f"trials of {len(names)} speakers, expected at least 3 to choose l2 by "
            "cross-validation (or l2 to be given)"
        )
    n_folds = min(FOLDS, len(names))
    of_speaker = np.random.default_rng(seed).permutation(len(names)) % n_folds
    of_trial = of_speaker[codes.reshape(np.shape(speakers))]  # [T, 2]
    folds = [(of_trial == fold).any(axis=1) for fold in range(n_folds)]
    for inside in folds:
        outside = labels[~inside]
        if not 0 < outside.sum() < len(outside):
            raise InputError(
                f"trials of {len(names)} speakers: {outside.sum()} targets and "
                f"{len(outside) - outside.sum()} non-targets are left without a fold "
                "of them, expected some of each to choose l2 by cross-validation (or "
                "l2 to be given)"
            )
    return folds


def _try(features, labels, folds, objective, l2):
    """For each fold (ratios, labels) of its trials, by a calibrator without them."""
    parts = []
    for inside in folds:
        calibrator = make_calibrator(l2, objective=objective)
        calibrator.fit(features[~inside], labels[~inside])
        ratios = calibrator.log_likelihood_ratio(features[inside])
        parts.append((ratios, labels[inside]))
    return parts


def _cost(parts):
    return cllr(*map(np.concatenate, zip(*parts))).cllr


def _standard_error(parts):
    """Of the cost, from the costs without each fold in turn."""
    n = len(parts)
    costs = [_cost(parts[:k] + parts[k + 1 :]) for k in range(n)]
    return float(np.sqrt((n - 1) * np.var(costs)))
