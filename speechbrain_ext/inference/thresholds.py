"""Where a model says "same speaker": operating points measured on held-out trials.

A trial is accepted where its score is at or above the threshold t. A model's folder
holds, for each kind of score, points of the curve

    t    FAR(t) = #{s⁻ >= t} / #{s⁻}    miss(t) = #{s⁺ < t} / #{s⁺}

(:mod:`~speechbrain_ext.scoring.metrics`), and by how many trials it was measured: N
non-targets tell nothing of rates under 1 / N. For a rate that was not measured exactly
the next lower measured one is taken, so a threshold never promises more than was seen.

    thresholds.json    {"cosine": {...}, "as_norm": {...}, "llr": {...}}
"""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.metrics import checked_scores, crossing, error_rates
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import read_json, write_json

logger = logging.getLogger(__name__)

THRESHOLDS_FILE = "thresholds.json"
KINDS = ("cosine", "as_norm", "llr")
CURVES = ("thresholds", "false_accept_rates", "miss_rates")
NUMBERS = {"n_target": int, "n_nontarget": int, "eer": float, "eer_threshold": float}
ENTRIES = {name: [float] for name in CURVES} | NUMBERS
FORMAT, VERSION = "speechbrain_ext thresholds", 1
EXACT = 100  # false accepts or misses up to which every point is kept
STEPS = 200  # points kept above that, evenly on the logarithm of a rate
# "To be 90 % confident that the true error rate is within ±30 % of the observed one,
# there must be at least 30 errors" (Doddington et al., Speech Communication 31, 2000)
RULE_OF_30 = 30


class OperatingPoint(NamedTuple):
    """A threshold and the rates, fractions, measured there."""

    threshold: float
    false_accept_rate: float
    miss_rate: float


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Operating points of one kind of score.

    Attributes
    ----------
    thresholds : np.ndarray
        float64 [P], ascending, finite.
    false_accept_rates, miss_rates : np.ndarray
        float64 [P], fractions of the held-out trials; the first falls, the second
        rises.
    n_target, n_nontarget : int
        Held-out trials.
    eer : float
        Their equal error rate, a fraction.
    eer_threshold : float
        Where it is reached: the default.
    """

    thresholds: np.ndarray
    false_accept_rates: np.ndarray
    miss_rates: np.ndarray
    n_target: int
    n_nontarget: int
    eer: float
    eer_threshold: float

    @classmethod
    def from_scores(cls, scores, labels):
        """Measure on trials of speakers that neither training nor calibration knew.

        The best point for every number of false accepts, and of misses, up to 100 is
        kept, and a few hundred beyond: a million trials make a file of 30 KB or so.

        Arguments
        ---------
        scores : array_like
            float [T], higher = more alike.
        labels : array_like
            0 or 1 [T], 1 = same speaker.

        Returns
        -------
        Thresholds

        Raises
        ------
        InputError
            As :func:`~speechbrain_ext.scoring.metrics.error_rates`.
        """
        _, same = checked_scores(scores, labels)
        n_target, n_nontarget = int(same.sum()), int((~same).sum())
        rates = error_rates(scores, labels)
        kept = _thinned(rates, n_target, n_nontarget)
        curves = rates.thresholds[kept], rates.fpr[kept], rates.fnr[kept]
        return cls(*curves, n_target, n_nontarget, *crossing(rates))

    def at_false_accept_rate(self, false_accept_rate):
        """The lowest threshold that lets no more impostors in → OperatingPoint.

        Its measured rate is the wanted fraction of non-target trials, in (0, 1), or
        lower. InputError: out of range; lower than 1 / ``n_nontarget``; or no threshold
        is so strict, where too many non-targets share the highest score.
        """
        wanted = checked_rate(false_accept_rate)
        expected = wanted * self.n_nontarget
        if expected < 1 - 1e-9:
            raise InputError(
                f"false_accept_rate {wanted:g}, expected at least "
                f"{1 / self.n_nontarget:.2g}: the thresholds were measured on "
                f"{self.n_nontarget} non-target trials"
            )
        if expected < RULE_OF_30:
            logger.warning(
                "false accept rate %g: %.3g false accepts are expected among the %d "
                "non-target trials of the model's thresholds, fewer than %d; the true "
                "rate may be quite another",
                *(wanted, expected, self.n_nontarget, RULE_OF_30),
            )
        # 1e-9: a rate of 3 / 1000 is wanted as 0.003
        strict = np.flatnonzero(self.false_accept_rates <= wanted * (1 + 1e-9))
        if not len(strict):
            raise InputError(
                f"false_accept_rate {wanted:g}, expected at least "
                f"{self.false_accept_rates[-1]:.2g}: so many non-target trials have "
                "the highest score"
            )
        return self._point(strict[0])

    def rates_at(self, threshold):
        """What to expect of a threshold: rates not exceeded in the held-out trials.

        Arguments
        ---------
        threshold : float

        Returns
        -------
        OperatingPoint
            Exact at a kept point; between two the false-accept rate of the lower and
            the miss rate of the upper one; above all of them 1 miss rate.
        """
        after = int(np.searchsorted(self.thresholds, threshold))  # first at or above
        last = len(self.thresholds)
        if after < last and self.thresholds[after] == threshold:
            return self._point(after)
        accepted = self.false_accept_rates[after - 1] if after else 1.0
        missed = self.miss_rates[after] if after < last else 1.0
        return OperatingPoint(float(threshold), float(accepted), float(missed))

    def to_dict(self):
        """As JSON holds it: numbers come back bit for bit."""
        values = {name: getattr(self, name) for name in NUMBERS}
        return values | {name: getattr(self, name).tolist() for name in CURVES}

    def _point(self, row):
        curves = self.thresholds, self.false_accept_rates, self.miss_rates
        return OperatingPoint(*(float(curve[row]) for curve in curves))


def save_thresholds(path, thresholds):
    """Write the thresholds of a model, atomically.

    Arguments
    ---------
    path : str or Path
        A file, ``thresholds.json`` as a rule.
    thresholds : dict of str to Thresholds
        By the kind of score: ``cosine``, ``as_norm`` (S-norm too), ``llr``.

    Raises
    ------
    InputError
        No kind of score, or an unknown one.
    """
    scores = {kind: found.to_dict() for kind, found in thresholds.items()}
    if not scores or not set(scores) <= set(KINDS):
        raise InputError(
            f"{path}: thresholds of {', '.join(map(str, scores)) or 'nothing'}, "
            f"expected some of {', '.join(KINDS)}"
        )
    write_json(path, {"format": FORMAT, "version": VERSION, "scores": scores})


def load_thresholds(path):
    """Read a file of :func:`save_thresholds`, checked: kind of score → Thresholds.

    InputError: a missing, damaged or foreign file.
    """
    schema = {
        "format": FORMAT,
        "version": VERSION,
        "scores": {f"{kind}?": ENTRIES for kind in KINDS},
    }
    scores = read_json(path, schema, others=False, what=FORMAT)["scores"]
    if not scores:
        raise InputError(f"{path}: thresholds of nothing, expected {', '.join(KINDS)}")
    for kind, values in scores.items():
        values |= {name: np.array(values[name], dtype=np.float64) for name in CURVES}
        with naming(f"{path}: {kind}"):
            if min(values["n_target"], values["n_nontarget"]) < 1:
                raise InputError("no target or no non-target trials, expected both")
            _check_curves(*(values[name] for name in CURVES))
    return {kind: Thresholds(**values) for kind, values in scores.items()}


def _check_curves(thresholds, false_accept_rates, miss_rates):
    """Lengths, ranges and order, which a schema does not tell."""
    if not len(thresholds) == len(false_accept_rates) == len(miss_rates) > 0:
        raise InputError(
            f"{len(thresholds)} thresholds, {len(false_accept_rates)} false accept "
            f"rates and {len(miss_rates)} miss rates, expected as many of each"
        )
    rates = np.concatenate([false_accept_rates, miss_rates])
    if rates.min() < 0 or rates.max() > 1:
        raise InputError("a rate outside 0 to 1, expected fractions")
    if (
        (np.diff(thresholds) <= 0).any()
        or (np.diff(false_accept_rates) > 0).any()
        or (np.diff(miss_rates) < 0).any()
    ):
        raise InputError(
            "points out of order, expected rising thresholds and miss rates and "
            "falling false accept rates"
        )


def _thinned(rates, n_target, n_nontarget):
    """Rows of the points worth keeping: both ends exact, some between, no infinity."""
    falling = np.rint(rates.fpr * n_nontarget)[::-1]  # from the strictest on
    from_above = _last_within(falling)  # the lowest threshold of so few false accepts
    from_below = _last_within(np.rint(rates.fnr * n_target))  # the highest, of misses
    rows = np.unique(np.concatenate([len(falling) - 1 - from_above, from_below, [0]]))
    return rows[np.isfinite(rates.thresholds[rows])]


def _last_within(counts):
    """Of ascending counts [K]: the last row within 0, 1, ... 100, and some beyond."""
    beyond = np.geomspace(EXACT, max(counts[-1], EXACT), STEPS)
    limits = np.concatenate([np.arange(EXACT + 1), beyond])
    rows = np.searchsorted(counts, limits, side="right") - 1
    return rows[rows >= 0]


def checked_rate(rate):
    """A false-accept rate in (0, 1) as a float, or InputError."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)):
        raise InputError(f"false_accept_rate is {rate!r}, expected a number")
    if not 0 < rate < 1:
        raise InputError(f"false_accept_rate is {rate}, expected between 0 and 1")
    return float(rate)
