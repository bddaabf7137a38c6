"""Spoofing detection: figures of scores that say how genuine each recording is.

ASVspoof 5 (Wang et al., ASVspoof workshop 2024; evaluation plan, 2024, section 5): a
recording is accepted as bona fide where its score s is at or above a threshold t. With
the prior π of a spoof, and the rates of misses (bona fide, rejected) and of false
alarms (spoofs, accepted)::

    DCF(t) = (C_miss (1 - π) P_miss(t) + C_fa π P_fa(t)) / min(C_miss (1 - π), C_fa π)

    minDCF   at the best t
    actDCF   at t = -ln(C_miss (1 - π) / (C_fa π))
    Cllr     ½ mean log₂(1 + e^-s) of bona fide + ½ mean log₂(1 + e^s) of spoofs
    EER      P_miss = P_fa, on the straight line between two operating points

π = 0.05, C_miss = 1 and C_fa = 10: accepting a spoof is dear. Only minDCF and EER are
independent of the scale of the scores; the others take them as natural-log likelihood
ratios. All are those of verification (:mod:`speechbrain_ext.scoring.metrics`) with bona
fide as targets, at the prior that makes costs equal, C_miss (1 - π) / (C_miss (1 - π) +
C_fa π). The challenge's own EER is the mean of both rates at the nearest operating
point, up to half a recording away; and among equal scores, which pass a threshold
together here, it puts bona fide first.

An attack is compared with all bona fide recordings, a codec with those that went
through it, as the challenge does.
"""

from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.conditions import ERRORS_WANTED
from speechbrain_ext.scoring.detection.files import (
    BONAFIDE,
    NONE,
    SPOOF,
    Keys,
    Words,
    read_keys,
    read_protocol,
    read_scores,
    scores_of,
    words_of,
    write_keys,
    write_scores,
)
from speechbrain_ext.scoring.intervals import FEWEST_SPEAKERS, bootstrap_intervals
from speechbrain_ext.scoring.metrics import (
    actual_dcf,
    bits,
    checked_scores,
    crossing,
    error_rates,
    lowest_cost,
    min_cllr,
)
from speechbrain_ext.utils.errors import InputError

__all__ = [
    "BONAFIDE",
    "NONE",
    "SPOOF",
    "Costs",
    "Keys",
    "Words",
    "detection_figures",
    "min_dcf_of",
    "read_keys",
    "read_protocol",
    "read_scores",
    "scores_of",
    "write_keys",
    "write_scores",
]


class Costs(NamedTuple):
    """What wrong decisions cost, and how frequent spoofs are; those of ASVspoof 5."""

    c_miss: float = 1.0
    c_fa: float = 10.0
    p_spoof: float = 0.05

    @property
    def p_target(self):
        """The prior of bona fide speech that has the same normalised cost, unit costs.

        InputError: a prior or a cost out of range.
        """
        costs_fit = all(0 < cost < np.inf for cost in (self.c_miss, self.c_fa))
        if not (costs_fit and 0 < self.p_spoof < 1):
            raise InputError(
                f"{self}, expected costs above 0 and a prior between 0 and 1"
            )
        miss = self.c_miss * (1 - self.p_spoof)
        return miss / (miss + self.c_fa * self.p_spoof)


ASVSPOOF5 = Costs()


def detection_figures(
    scores,
    is_bonafide,
    attacks=None,
    codecs=None,
    speakers=None,
    costs=ASVSPOOF5,
    n_resamples=0,
    seed=0,
):
    """Every figure of the scores of N recordings, pooled, by attack and by codec.

    Arguments
    ---------
    scores : array_like
        float [N], higher = more like genuine speech; Cllr and actDCF take them as
        natural-log likelihood ratios.
    is_bonafide : array_like
        bool, or 0 and 1, [N].
    attacks, codecs, speakers : Words or list of str, optional
        [N], as :class:`~speechbrain_ext.scoring.detection.files.Keys` has them. The
        attack of bona fide recordings is not read.
    costs : Costs
    n_resamples : int
        Of the bootstrap over speakers, 200 for example; 0 leaves intervals out, and so
        do fewer than three speakers.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``costs``; ``pooled``, a dictionary of figures; ``attacks`` and ``codecs``, name
        → figures; ``attacks_by_codec``, attack → codec → figures, where both are
        given. Figures are ``bonafide`` and ``spoof`` (how many), ``min_dcf`` and its
        ``threshold``, ``actual_dcf``, ``cllr`` (bits), ``eer_percent``, ``enough``
        (whether there are 30 misses and false alarms at the EER), pooled also
        ``min_cllr``, and ``intervals_95`` with (low, high) of ``min_dcf``,
        ``actual_dcf``, ``cllr`` and ``eer`` (a fraction). None is the figure of what
        has one class alone.

    Raises
    ------
    InputError
        Scores that are not finite, labels other than 0 and 1, columns of other lengths,
        one class alone; a cost out of range.
    """
    scores, is_bonafide = checked_scores(scores, is_bonafide)
    order = np.argsort(scores)  # every part is sorted then, too
    attacks, codecs, speakers = (
        column if column is None else _words(name, column, len(scores)).select(order)
        for name, column in (
            ("attacks", attacks),
            ("codecs", codecs),
            ("speakers", speakers),
        )
    )
    scores, is_bonafide = scores[order], is_bonafide[order]
    table = _Table(scores, is_bonafide, speakers, costs.p_target, n_resamples, seed)
    everything = np.arange(len(scores))
    pooled = table.figures(everything)
    pooled["min_cllr"] = min_cllr(scores, is_bonafide).cllr
    found = {"costs": costs._asdict(), "pooled": pooled}
    if attacks is not None:
        found["attacks"] = table.by_attack(everything, attacks)
    if codecs is not None:
        rows_of = {
            word: np.flatnonzero(codecs.codes == code) for code, word in _sorted(codecs)
        }
        found["codecs"] = {word: table.figures(rows) for word, rows in rows_of.items()}
        if attacks is not None:
            cells = {
                codec: table.by_attack(rows, attacks, intervals=False)
                for codec, rows in rows_of.items()
            }
            found["attacks_by_codec"] = {
                attack: {codec: cells[codec].get(attack) for codec in cells}
                for attack in found["attacks"]
            }
    return found


def min_dcf_of(scores, is_bonafide, costs=ASVSPOOF5):
    """minDCF alone, a float, as :func:`detection_figures` has it."""
    return lowest_cost(error_rates(scores, is_bonafide), costs.p_target).dcf


class _Table:
    """Figures of parts of N ascending scores, by the numbers of their rows."""

    def __init__(self, scores, is_bonafide, speakers, p_target, n_resamples, seed):
        self.scores, self.is_bonafide, self.p_target = scores, is_bonafide, p_target
        # bits of each score by itself: a part's Cllr is a mean of them
        self.bits = bits(np.where(is_bonafide, -1, 1) * scores.astype(np.float64))
        self.speakers = speakers if n_resamples else None
        self.resampling = {"n_resamples": n_resamples, "seed": seed}

    def by_attack(self, rows, attacks, intervals=True):
        """Attack → figures of its spoofs against all bona fide of these rows."""
        bonafide, codes = self.is_bonafide[rows], attacks.codes[rows]
        found = {}
        for code, word in _sorted(attacks):
            spoofs = ~bonafide & (codes == code)
            if spoofs.any():
                found[word] = self.figures(rows[bonafide | spoofs], intervals)
        return found

    def figures(self, rows, intervals=True):
        """Dictionary of the figures of some rows; None of those of one class."""
        scores, labels = self.scores[rows], self.is_bonafide[rows]
        n_bonafide = int(np.count_nonzero(labels))
        counts = {BONAFIDE: n_bonafide, SPOOF: len(rows) - n_bonafide}
        if not all(counts.values()):
            names = ("min_dcf", "threshold", "actual_dcf", "cllr", "eer_percent")
            return {**counts, **dict.fromkeys(names), "enough": False}
        rates = error_rates(scores, labels)
        best, eer = lowest_cost(rates, self.p_target), crossing(rates).eer
        parts = self.bits[rows]
        found = {
            **counts,
            "min_dcf": best.dcf,
            "threshold": best.threshold,
            "actual_dcf": actual_dcf(scores, labels, self.p_target).dcf,
            "cllr": float(parts[labels].mean() + parts[~labels].mean()) / 2,
            "eer_percent": 100 * eer,
            "enough": bool(eer * min(counts.values()) >= ERRORS_WANTED),
        }
        if intervals and self.speakers is not None:
            codes = self.speakers.codes[rows]
            if len(np.unique(codes)) >= FEWEST_SPEAKERS:
                found["intervals_95"] = self._intervals(scores, labels, codes)
        return found

    def _intervals(self, scores, labels, speakers):
        prior = (self.p_target,)
        found = bootstrap_intervals(
            *(scores, labels, speakers),
            **{"priors": prior, "actual_priors": prior, **self.resampling},
        )
        suffix = f"_{self.p_target}"
        return {name.removesuffix(suffix): pair for name, pair in found.items()}


def _words(name, column, size):
    """Words of a column [N], whatever it is given as."""
    column = column if isinstance(column, Words) else words_of(column)
    if len(column.codes) != size:
        raise InputError(
            f"{len(column.codes)} {name}, expected one of each score: {size}"
        )
    return column


def _sorted(words):
    """(code, word) in order of the words; there may be no row of a word."""
    return sorted(enumerate(words.words), key=lambda item: item[1])
