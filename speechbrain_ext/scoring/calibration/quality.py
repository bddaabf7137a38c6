"""Quality measures of a trial, as inputs of its calibration.

A score means more where both recordings are long and clear. For each measure q that
both sides of a trial have (duration, magnitude of the embedding, mean score against
the cohort), with values a and b, the calibrator sees

    min(a, b)    max(a, b)    |a - b|    ratio(a, b)

beside the score: 13 inputs for three measures (Thienpondt et al., "The IDLab VoxSRC-20
submission: large margin fine-tuning and quality-aware score calibration", ICASSP
2021, introduces such quality measure functions; the four forms are customary). They
do not change where enrolment and test change places.

The ratio is the value of smaller size over that of larger size, with its sign: min/max
where both are positive, negative where the signs differ, in [-1, 1] always. A cohort
mean of 0 or below therefore does no harm, and two zeros are equal: 1.

Units are those of the measures (seconds, norms, cosines); the calibrator standardises
its inputs, so no scale is better than another. It is linear: between trials of equal
quality the calibrated score rises with the score.
"""

from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.metrics import finite_floats
from speechbrain_ext.utils.errors import InputError

DURATION_CAP = 20.0  # seconds; more speech than that adds little
FORMS = ("min", "max", "difference", "ratio")


class QualityFeatures(NamedTuple):
    """``names`` of F inputs and ``values`` float64 [T, F], a row per trial."""

    names: list
    values: np.ndarray


def quality_features(scores, measures, duration_cap=DURATION_CAP):
    """Inputs of a quality-aware calibration.

    Each row depends on its own trial only: long lists may be done in blocks.

    Arguments
    ---------
    scores : array_like
        float [T], as a rule after AS-norm.
    measures : dict
        Name → (enrolment side [T], test side [T]). One named ``duration`` is in
        seconds, above 0.
    duration_cap : float
        Longer durations count as this many seconds.

    Returns
    -------
    QualityFeatures
        ``score``, then four per measure in the order of ``measures``: ``duration_min``,
        ``duration_max``, ``duration_difference``, ``duration_ratio``, ...

    Raises
    ------
    InputError
        Another shape, a value that is not finite, a duration of 0 or less, a cap of 0
        or less; names the measure and the trial.
    """
    if not duration_cap > 0:
        raise InputError(f"duration_cap is {duration_cap}, expected seconds above 0")
    scores = _column("score", scores, np.shape(scores)[:1])
    values = np.empty((len(scores), 1 + len(FORMS) * len(measures)))
    names, values[:, 0] = ["score"], scores
    for name, sides in measures.items():
        a, b = (_column(name, side, scores.shape) for side in sides)
        if name == "duration":
            a, b = (_capped(side, duration_cap) for side in (a, b))
        columns = np.minimum(a, b), np.maximum(a, b), np.abs(a - b), signed_ratio(a, b)
        for form, column in zip(FORMS, columns):
            values[:, len(names)] = column
            names.append(f"{name}_{form}")
    return QualityFeatures(names, values)


def signed_ratio(a, b):
    """Smaller over larger in size, with the sign of a · b; 1 for two zeros; [T]."""
    size_a, size_b = np.abs(a), np.abs(b)
    small, large = np.minimum(size_a, size_b), np.maximum(size_a, size_b)
    ratio = np.divide(small, large, out=np.ones_like(large), where=large > 0)
    return np.where(np.sign(a) * np.sign(b) < 0, -ratio, ratio)


def _column(name, values, shape):
    values = np.asarray(values)
    if values.ndim != 1 or values.shape != shape:
        raise InputError(
            f"{name} of shape {list(values.shape)}, expected {list(shape) or '[T]'}: "
            "one value per trial"
        )
    return finite_floats(name, values).astype(np.float64)


def _capped(durations, cap):
    if np.any(durations <= 0):
        bad = int(np.argmax(durations <= 0))
        raise InputError(
            f"duration {durations[bad]:g} s of trial {bad + 1}, expected above 0"
        )
    return np.minimum(durations, cap)
