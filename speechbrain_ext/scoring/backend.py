"""From embeddings to scores: cosine, AS-norm, quality-aware calibration.

    cosine    s = e·t / (|e| |t|)
    as_norm   s of the centred e - m and t - m, normalised by a cohort
    llr       w·f(s, qualities) + b, a natural-log likelihood ratio

Each step needs the one before it: AS-norm a cohort, calibration a calibrator (fitted on
cosines where there is no cohort). See :mod:`~speechbrain_ext.scoring.normalization`,
:mod:`~speechbrain_ext.scoring.quality`, :mod:`~speechbrain_ext.scoring.calibration`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.calibration_trials import draw_calibration_trials
from speechbrain_ext.scoring.cohort import Cohort
from speechbrain_ext.scoring.cross_validation import choose_l2
from speechbrain_ext.scoring.embeddings import cosine_scores, euclidean_norms
from speechbrain_ext.scoring.normalization import (
    MEMORY_MIB,
    cohort_statistics,
    symmetric_norm,
)
from speechbrain_ext.scoring.quality import quality_features

BLOCK = 262_144  # trials per step of the calibration: 26 MiB of features


class Side(NamedTuple):
    """What stands on one side of trials, row by row.

    Attributes
    ----------
    vectors : np.ndarray
        float [N, E], embeddings as the model gave them.
    durations : np.ndarray or None
        [N], seconds of speech behind each; calibration wants them.
    own : np.ndarray or None
        int [N], the cohort row of each embedding's own speaker, or -1.
    """

    vectors: np.ndarray
    durations: np.ndarray | None = None
    own: np.ndarray | None = None


@dataclass(frozen=True)
class Backend:
    """Scores of trials, step by step.

    Attributes
    ----------
    cohort : Cohort or None
        Without it there is no AS-norm.
    calibrator : QualityCalibrator or None
        Without it there are no likelihood ratios.
    top_n : int
        Cohort members that count in AS-norm.
    memory_mib : float
        Working memory of AS-norm, MiB.
    """

    cohort: Cohort | None = None
    calibrator: QualityCalibrator | None = None
    top_n: int = 300
    memory_mib: float = MEMORY_MIB

    def with_cohort(self, cohort):
        """The same with a cohort."""
        return replace(self, cohort=cohort)

    def scores(self, enrol, test, trials):
        """Scores after each step that this back-end has.

        Arguments
        ---------
        enrol, test : Side
            N and M embeddings; pass the same object twice where trials share them.
        trials : np.ndarray
            int [T, 2], a row of ``enrol`` and one of ``test``.

        Returns
        -------
        dict
            ``cosine``, ``as_norm``, ``llr`` → float [T], in this order, where they
            exist.

        Raises
        ------
        InputError
            As :func:`~speechbrain_ext.scoring.normalization.as_norm`; a calibrator that
            was fitted on other inputs, or wants durations that are not given.
        """
        found, measures = self._normalised(enrol, test, trials)
        if self.calibrator is not None:
            found["llr"] = self._calibrated(list(found.values())[-1], measures, trials)
        return found

    def features(self, enrol, test, trials):
        """What the calibrator is fitted on → QualityFeatures of the trials."""
        found, measures = self._normalised(enrol, test, trials)
        return quality_features(list(found.values())[-1], _of_trials(measures, trials))

    def _normalised(self, enrol, test, trials):
        """Scores before calibration; {measure: (enrol [N], test [M])}."""
        found = {
            "cosine": cosine_scores(enrol.vectors, *trials.T, test_vectors=test.vectors)
        }
        sides = (enrol,) if enrol is test else (enrol, test)
        measures = {
            "magnitude": _both([euclidean_norms(side.vectors) for side in sides])
        }
        if all(side.durations is not None for side in sides):
            durations = _both([side.durations for side in sides])
            measures = {"duration": durations, **measures}
        if self.cohort is not None:
            centred = _both([side.vectors - self.cohort.mean for side in sides])
            statistics = _both(
                [
                    self._statistics(vectors, side.own, rows)
                    for vectors, side, rows in zip(centred, sides, _rows(trials, sides))
                ]
            )
            cosine = cosine_scores(centred[0], *trials.T, test_vectors=centred[1])
            found["as_norm"] = symmetric_norm(cosine, trials, *statistics)
            measures["cohort_mean"] = tuple(side.mean for side in statistics)
        return found, measures

    def _statistics(self, centred, own, rows):
        members = self.cohort.vectors - self.cohort.mean
        return cohort_statistics(
            centred, members, self.top_n, own, rows, self.memory_mib
        )

    def _calibrated(self, scores, measures, trials):
        ratios = np.empty(len(scores))
        for start in range(0, len(scores), BLOCK):
            part = slice(start, start + BLOCK)
            names, values = quality_features(
                scores[part], _of_trials(measures, trials[part])
            )
            _check_names(self.calibrator.names, names)
            ratios[part] = self.calibrator.log_likelihood_ratio(values)
        return ratios


def fit_calibrator(backend, side, speakers, objective="cllr", l2=None, **drawing):
    """Fit the calibration of a back-end to utterances of known speakers.

    Arguments
    ---------
    backend : Backend
        With or without a cohort; a calibrator that it has is not used.
    side : Side
        N utterances with their durations; each one's own speaker is left out of the
        cohort, so ``own`` is found here.
    speakers : np.ndarray
        str [N], whose each is.
    objective : str
        As for :class:`~speechbrain_ext.scoring.calibration.QualityCalibrator`.
    l2 : float or None
        Likewise; None chooses it by cross-validation over speakers.
    **drawing
        As for
        :func:`~speechbrain_ext.scoring.calibration_trials.draw_calibration_trials`.

    Returns
    -------
    backend : Backend
        With the calibrator.
    trials : CalibrationTrials
        What it was fitted on.

    Raises
    ------
    InputError
        As the parts.
    """
    trials = draw_calibration_trials(speakers, side.durations, **drawing)
    if backend.cohort is not None:
        side = side._replace(own=backend.cohort.rows_of_speakers(speakers))
    rows = np.stack([trials.enrol, trials.test], axis=1)
    names, values = backend.features(side, side, rows)
    if l2 is None:
        codes = np.unique(np.asarray(speakers), return_inverse=True)[1]
        l2, _ = choose_l2(values, trials.labels, codes[rows], objective)
    calibrator = QualityCalibrator(names, objective, l2=l2)
    calibrator.fit(values, trials.labels)
    return replace(backend, calibrator=calibrator), trials


def _both(of_sides):
    """(enrol, test), the same object where both sides are one."""
    return (of_sides[0], of_sides[-1])


def _rows(trials, sides):
    """Embeddings that some trial names, for each side."""
    if len(sides) == 1:
        return [np.unique(trials)]
    return [np.unique(column) for column in trials.T]


def _of_trials(measures, trials):
    """Measures per row → per trial."""
    enrol, test = trials.T
    return {name: (a[enrol], b[test]) for name, (a, b) in measures.items()}


def _check_names(expected, names):
    if expected != names:
        raise InputError(
            f"the calibrator takes {', '.join(expected)}; here are {', '.join(names)}, "
            "expected the same: with a cohort or without, with durations or without"
        )
