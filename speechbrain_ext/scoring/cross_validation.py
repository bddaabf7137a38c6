"""How much to hold a calibrator back: λ by cross-validation over speakers.

Trials of one speaker resemble each other, so thousands of trials of few speakers say
much less than their number. Speakers are dealt into folds. For each fold the calibrator
is fitted on the trials that hold none of its speakers, and tried on those that hold one
or two. The λ of the lowest Cllr over all trials so tried is taken::

    λ* = argmin over λ of  Cllr of { ℓ fitted without the fold of the trial }

(A non-target trial between two folds is tried once for each, with one speaker of the
two unknown to the calibrator: both unknown would leave six speakers hardly any.)

With the quality measures of six speakers (270 target trials, real speech) λ = 1e-6 gave
Cllr 1.21 on ten others, the λ found here 0.82, and no calibration 0.92.
"""

import numpy as np

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.metrics import cllr

GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FOLDS = 6


def choose_l2(features, labels, speakers, objective="cllr", seed=0):
    """The λ of a calibrator with the lowest cross-validated Cllr.

    Arguments
    ---------
    features : np.ndarray
        float [T, F].
    labels : np.ndarray
        0 or 1 [T], 1 = same speaker.
    speakers : np.ndarray
        [T, 2], the speakers of both sides, as numbers or names.
    objective : str
        As for :class:`~speechbrain_ext.scoring.calibration.QualityCalibrator`.
    seed : int
        Of the folds.

    Returns
    -------
    l2 : float
        One of ``GRID``.
    costs : dict
        λ → Cllr.

    Raises
    ------
    InputError
        As :func:`deal_trials` and the calibrator.
    """
    folds = deal_trials(labels, speakers, seed)
    costs = {l2: _cost(features, labels, folds, objective, l2) for l2 in GRID}
    return min(GRID, key=costs.get), costs


def deal_trials(labels, speakers, seed=0):
    """Deal speakers into folds, and say which trials each holds.

    Arguments
    ---------
    labels, speakers, seed
        As for :func:`choose_l2`.

    Returns
    -------
    list of np.ndarray
        For each fold bool [T]: the trials with one of its speakers.

    Raises
    ------
    InputError
        Fewer than three speakers, or a fold without which one label is gone.
    """
    labels = np.asarray(labels)
    known, codes = np.unique(speakers, return_inverse=True)
    if len(known) < 3:
        raise InputError(
            f"trials of {len(known)} speakers, expected at least 3 to choose l2 by "
            "cross-validation (or l2 to be given)"
        )
    n_folds = min(FOLDS, len(known))
    of_speaker = np.random.default_rng(seed).permutation(len(known)) % n_folds
    of_trial = of_speaker[codes.reshape(np.shape(speakers))]  # [T, 2]
    folds = [(of_trial == fold).any(axis=1) for fold in range(n_folds)]
    for inside in folds:
        left = labels[~inside]
        if not 0 < left.sum() < len(left):
            raise InputError(
                f"trials of {len(known)} speakers: {left.sum()} targets and "
                f"{len(left) - left.sum()} non-targets are left without a fold of "
                "them, expected some of each to choose l2 by cross-validation (or l2 "
                "to be given)"
            )
    return folds


def _cost(features, labels, folds, objective, l2):
    ratios, tried = [], []
    for inside in folds:
        calibrator = QualityCalibrator(objective=objective, l2=l2)
        calibrator.fit(features[~inside], labels[~inside])
        ratios.append(calibrator.log_likelihood_ratio(features[inside]))
        tried.append(labels[inside])
    return cllr(np.concatenate(ratios), np.concatenate(tried)).cllr
