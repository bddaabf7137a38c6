"""From embeddings to scores: cosine, AS-norm, quality-aware calibration.

    cosine    s = e·t / (|e| |t|)
    as_norm   s of the centred e - m and t - m, normalised by a cohort
    llr       w·f(s, qualities) + b, a natural-log likelihood ratio

Each step needs the one before it: AS-norm a cohort, calibration a calibrator (fitted on
cosines where there is no cohort). See :mod:`~speechbrain_ext.scoring.normalization`,
:mod:`~speechbrain_ext.scoring.calibration.quality`,
:mod:`~speechbrain_ext.scoring.calibration`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.calibration.cross_validation import (
    choose_l2,
    make_calibrator,
)
from speechbrain_ext.scoring.calibration.quality import (
    QualityFeatures,
    quality_features,
)
from speechbrain_ext.scoring.cohort import Cohort
from speechbrain_ext.scoring.embeddings import (
    cosine_scores,
    euclidean_norms,
    unit_vectors,
)
from speechbrain_ext.scoring.normalization import (
    MEMORY_MIB,
    CohortStatistics,
    cohort_statistics,
    rows_in_memory,
    symmetric_norm,
)
from speechbrain_ext.utils.errors import InputError

BLOCK = 262_144  # trials per step of the calibration: 26 MiB of features


class TrialSide(NamedTuple):
    """Recordings or models on one side of trials.

    Attributes
    ----------
    vectors : np.ndarray
        float [N, E], embeddings as the model gave them.
    durations : np.ndarray or None
        [N], seconds of speech of each, an input of the calibration.
    own : np.ndarray or None
        int [N], the cohort row of each embedding's own speaker, or -1.
    """

    vectors: np.ndarray
    durations: np.ndarray | None = None
    own: np.ndarray | None = None


class Prepared(NamedTuple):
    """What one side of trials gives by itself, made once for many trials.

    Attributes
    ----------
    units : np.ndarray
        float64 [N, E], embeddings of length 1.
    centred : np.ndarray or None
        float64 [N, E], the same less the cohort's mean.
    statistics : CohortStatistics or None
        [N], of the cohort scores.
    measures : dict
        Quality → [N].
    """

    units: np.ndarray
    centred: np.ndarray | None
    statistics: CohortStatistics | None
    measures: dict


@dataclass(frozen=True, eq=False)
class Backend:
    """Scores of trials, step by step.

    Attributes
    ----------
    cohort : Cohort or None
        Without it there is no AS-norm.
    calibrator : QualityCalibrator or None
        Without it there are no likelihood ratios.
    top_n : int or None
        Cohort members that count in AS-norm; None takes all, which is S-norm.
    memory_mib : float
        Working memory of AS-norm, MiB.

    Raises
    ------
    InputError
        A setting out of range, a cohort of fewer than ``top_n`` speakers.
    """

    cohort: Cohort | None = None
    calibrator: QualityCalibrator | None = None
    top_n: int | None = 300
    memory_mib: float = MEMORY_MIB

    def __post_init__(self):
        rows_in_memory(self.memory_mib, 1)
        check_top_n(self.top_n)
        if self.cohort is not None:
            self.check_cohort_size(len(self.cohort.speakers))

    @property
    def normalisation(self):
        """What a cohort makes of the scores: ``as_norm`` or ``s_norm``."""
        return "s_norm" if self.top_n is None else "as_norm"

    def check_cohort_size(self, size, why=""):
        """InputError for a cohort of ``size`` speakers that are not enough."""
        wanted = 2 if self.top_n is None else self.top_n
        if size < wanted:
            raise InputError(
                f"cohort of {size} speakers{why}, expected at least {wanted} "
                f"(top_n: {self.top_n})"
            )

    def check_width(self, width, source):
        """InputError for embeddings [N, width] that are not of the cohort's width."""
        if self.cohort is not None and self.cohort.vectors.shape[1] != width:
            raise InputError(
                f"{source}: embeddings of {width} values and a cohort of "
                f"{self.cohort.vectors.shape[1]}, expected as many"
            )

    def describe(self):
        """What the scores depend on, for a report."""
        facts = {}
        if self.cohort is not None:
            facts = {"cohort_speakers": len(self.cohort.speakers), "top_n": self.top_n}
        if self.calibrator is not None:
            keys = ("objective", "l2", "n_target", "n_nontarget")
            facts |= {f"calibration_{k}": getattr(self.calibrator, k) for k in keys}
        return facts

    def scores(self, enrol, test, trials):
        """Scores after each step that this back-end has.

        Arguments
        ---------
        enrol, test : TrialSide
            N and M embeddings; pass the same object twice where trials share them.
        trials : np.ndarray
            int [T, 2], a row of ``enrol`` and one of ``test``.

        Returns
        -------
        dict
            ``cosine``, ``as_norm`` (or ``s_norm``), ``llr`` → float [T], in this
            order, where they exist.

        Raises
        ------
        InputError
            As :func:`~speechbrain_ext.scoring.normalization.as_norm`; a calibrator that
            was fitted on other inputs, or wants durations that are not given.
        """
        if self.calibrator is not None:
            self._check_inputs(_have_durations(enrol, test))
        scores, measures = self._normalised(enrol, test, trials)
        if self.calibrator is not None:
            last = list(scores.values())[-1]
            scores["llr"] = self._calibrated(last, measures, trials)
        return scores

    def prepare(self, side):
        """Do for a TrialSide what :meth:`scores_of_all` needs, once → Prepared."""
        self.check_width(side.vectors.shape[1], "trials")
        measures = {}
        if side.durations is not None:
            measures["duration"] = side.durations
        measures["magnitude"] = euclidean_norms(side.vectors)
        units = _units(side.vectors, measures["magnitude"])
        if self.cohort is None:
            return Prepared(units, None, None, measures)
        centred = side.vectors - self.cohort.mean
        statistics = self._statistics(centred, side.own, np.arange(len(centred)))
        measures["cohort_mean"] = statistics.mean
        centred = _units(centred, euclidean_norms(centred))
        return Prepared(units, centred, statistics, measures)

    def scores_of_all(self, enrol, test):
        """As :meth:`scores`, of every pair: a matrix product in place of trials.

        Arguments
        ---------
        enrol, test : Prepared
            N and M embeddings, of :meth:`prepare`.

        Returns
        -------
        dict
            Kind of score → float [N, M]. A pair's score is that of :meth:`scores` but
            for rounding.

        Raises
        ------
        InputError
            As :meth:`scores`.
        """
        shape = len(enrol.units), len(test.units)
        pairs = np.indices(shape).reshape(2, -1).T
        if self.calibrator is not None:
            self._check_inputs("duration" in enrol.measures.keys() & test.measures)
        scores = {"cosine": _products(enrol.units, test.units)}
        if self.cohort is not None:
            scores[self.normalisation] = symmetric_norm(
                _products(enrol.centred, test.centred),
                *(pairs, enrol.statistics, test.statistics),
            )
        if self.calibrator is not None:
            measures = {k: (v, test.measures[k]) for k, v in enrol.measures.items()}
            last = list(scores.values())[-1]
            scores["llr"] = self._calibrated(last, measures, pairs)
        return {kind: values.reshape(shape) for kind, values in scores.items()}

    def features(self, enrol, test, trials):
        """QualityFeatures to fit the calibrator on, named by :func:`input_names`."""
        scores, measures = self._normalised(enrol, test, trials)
        last = list(scores.values())[-1]
        values = quality_features(last, _of_trials(measures, trials)).values
        return QualityFeatures(self._input_names(_have_durations(enrol, test)), values)

    def _normalised(self, enrol, test, trials):
        """Scores before calibration; {measure: (enrol [N], test [M])}."""
        sides = (enrol,) if enrol is test else (enrol, test)
        for side in sides:
            self.check_width(side.vectors.shape[1], "trials")
        cosine = cosine_scores(enrol.vectors, *trials.T, test_vectors=test.vectors)
        scores = {"cosine": cosine}
        measures = {}
        if _have_durations(enrol, test):
            measures["duration"] = enrol.durations, test.durations
        measures["magnitude"] = _both(euclidean_norms(side.vectors) for side in sides)
        if self.cohort is not None:
            centred = _both(side.vectors - self.cohort.mean for side in sides)
            cosine = cosine_scores(centred[0], *trials.T, test_vectors=centred[1])
            named = (trials,) if enrol is test else trials.T
            statistics = _both(
                self._statistics(vectors, side.own, rows)
                for vectors, side, rows in zip(centred, sides, named)
            )
            scores[self.normalisation] = symmetric_norm(cosine, trials, *statistics)
            measures["cohort_mean"] = tuple(side.mean for side in statistics)
        return scores, measures

    def _statistics(self, centred, own, rows):
        members = self.cohort.vectors - self.cohort.mean
        return cohort_statistics(
            centred, members, self.top_n, own, rows, self.memory_mib
        )

    def _calibrated(self, scores, measures, trials):
        ratios = np.empty(len(scores))
        for start in range(0, len(scores), BLOCK):
            part = slice(start, start + BLOCK)
            inputs = quality_features(scores[part], _of_trials(measures, trials[part]))
            ratios[part] = self.calibrator.log_likelihood_ratio(inputs.values)
        return ratios

    def _check_inputs(self, with_durations):
        names = self._input_names(with_durations)
        if self.calibrator.names != names:
            raise InputError(
                f"the calibrator takes {', '.join(self.calibrator.names)}; here are "
                f"{', '.join(names)}, expected the same: cohort or none, top_n, "
                "durations or none"
            )

    def _input_names(self, with_durations):
        return input_names(with_durations, self.cohort is not None, self.top_n)


def input_names(with_durations, with_cohort, top_n):
    """Inputs of the calibrator of such a back-end.

    The first is ``cosine``, ``s_norm`` or ``as_norm_300``, so that a calibrator of one
    kind of score is not applied to another; then those of
    :func:`~speechbrain_ext.scoring.calibration.quality.quality_features`.
    """
    score = "cosine"
    if with_cohort:
        score = "s_norm" if top_n is None else f"as_norm_{top_n}"
    measures = ["duration"] * with_durations + ["magnitude"]
    measures += ["cohort_mean"] * with_cohort
    none = np.empty(0)
    names = quality_features(none, dict.fromkeys(measures, (none, none))).names
    return [score, *names[1:]]


def fit_calibrator(backend, side, speakers, trials, objective="cllr", l2=None):
    """Fit the calibration of a back-end to utterances of known speakers.

    An utterance's own speaker is left out of its cohort scores. The speaker of the
    other side of a non-target trial is not: one of ``top_n`` members at most, and none
    where these speakers are not in the cohort.

    Arguments
    ---------
    backend : Backend
        With or without a cohort; a calibrator that it has is not used.
    side : TrialSide
        N utterances with their durations; ``own`` is found here.
    speakers : np.ndarray
        str [N], whose each is.
    trials : CalibrationTrials
        Of these utterances, from
        :func:`~speechbrain_ext.scoring.calibration.trials.draw_calibration_trials`.
    objective : str
        As for :class:`~speechbrain_ext.scoring.calibration.QualityCalibrator`.
    l2 : float or None
        Of the score, the qualities' is 100 times as much; None chooses it by
        cross-validation over speakers.

    Returns
    -------
    Backend
        With the calibrator.

    Raises
    ------
    InputError
        As :meth:`Backend.scores` and the calibrator.
    """
    side = of_speakers(side, speakers, backend)
    rows = np.stack([trials.enrol, trials.test], axis=1)
    names, values = backend.features(side, side, rows)
    if l2 is None:
        codes = np.unique(np.asarray(speakers), return_inverse=True)[1]
        l2, _ = choose_l2(values, trials.labels, codes[rows], objective)
    calibrator = make_calibrator(l2, names, objective).fit(values, trials.labels)
    return replace(backend, calibrator=calibrator.warn_if_turned("calibration"))


def of_speakers(side, speakers, backend):
    """The side with the cohort rows of its own speakers, str [N], left out."""
    if backend.cohort is None:
        return side
    return side._replace(own=backend.cohort.rows_of_speakers(speakers))


def _have_durations(*sides):
    return all(side.durations is not None for side in sides)


def _units(vectors, norms):
    """Embeddings scaled to length 1, float64 [N, E]."""
    rows = np.arange(len(vectors))
    return unit_vectors("embedding", vectors, norms, rows).astype(np.float64)


def _products(enrol, test):
    """Cosines of every pair of unit vectors, float32 [N · M].

    A product in float64, so that equal embeddings have equal scores: BLAS may round two
    equal rows differently.
    """
    return np.clip(enrol @ test.T, -1, 1).astype(np.float32).ravel()


def _both(of_sides):
    """(enrol, test), the same object where both sides are one."""
    of_sides = list(of_sides)
    return of_sides[0], of_sides[-1]


def _of_trials(measures, trials):
    """Measures per row → per trial."""
    enrol, test = trials.T
    return {name: (a[enrol], b[test]) for name, (a, b) in measures.items()}


def check_top_n(top_n, name="top_n", everyone="none"):
    """InputError for what is no number of cohort members; None stands for all.

    The message calls the setting ``name`` and its None ``everyone``.
    """
    if top_n is not None and not (type(top_n) is int and top_n > 1):
        raise InputError(
            f"{name} is {top_n!r}, expected a whole number of at least 2, or "
            f"{everyone} for all"
        )
