"""Trials to calibrate on, drawn from training utterances by duration.

A calibrator that is to learn what a short recording does to a score must see short
and long ones. Utterances are short (``shortest`` to ``boundary`` seconds) or long
(``boundary`` or more); a third of the trials is short-short, a third short-long, a
third long-long, each half target and half non-target. Where a kind has too few pairs of
one label it gets as few of the other: else the calibrator would take its durations for
a sign of the label (with 1 target and 5,000 non-targets of two long ones, it did).

Target trials are spread evenly over speakers, non-target trials over pairs of
speakers, so that those with many recordings do not rule: round after round each gets
one trial, until enough are drawn or none has a pair of utterances left. No pair comes
twice, in either order, and none is an utterance with itself. Nothing is listed that is
not drawn: the cost grows with utterances and trials, not with possible pairs.

Scores of every step on these trials are written to ``calibration_scores_SYSTEM.npz``
(:mod:`~speechbrain_ext.scoring.score_files`), with each utterance's own speaker left
out of its cohort. As a rule no other trials are of speakers that neither training nor
test has, so a model's thresholds are measured on them. The likelihood ratios, unlike
the other scores, are those of the very trials that their few weights were fitted to.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.backend import TrialSide, of_speakers
from speechbrain_ext.scoring.score_files import write_score_table
from speechbrain_ext.scoring.trials import Trials
from speechbrain_ext.utils.errors import InputError

KINDS = ("short-short", "short-long", "long-long")
SHORT, LONG = 0, 1
SIDES = ((SHORT, SHORT), (SHORT, LONG), (LONG, LONG))


class CalibrationTrials(NamedTuple):
    """T trials: rows ``enrol`` and ``test`` int64, ``labels`` int8, ``kind`` int8.

    ``kind`` counts in ``KINDS``; of a short-long trial the enrolment side is short.
    """

    enrol: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    kind: np.ndarray

    def counts(self):
        """Kind → (targets, non-targets)."""
        return {
            name: tuple(
                int(np.sum((self.kind == kind) & (self.labels == label)))
                for label in (1, 0)
            )
            for kind, name in enumerate(KINDS)
        }


class _Class(NamedTuple):
    """Utterances of one duration class, speaker by speaker.

    ``rows`` of the utterances sorted by speaker; ``speakers`` [S] that have any,
    ascending; where theirs ``start`` in ``rows``, and their ``size``.
    """

    rows: np.ndarray
    speakers: np.ndarray
    start: np.ndarray
    size: np.ndarray


def draw_calibration_trials(
    speakers, durations, n_trials=30_000, boundary=6.0, shortest=2.0, seed=0
):
    """Draw labelled trials from training utterances.

    Arguments
    ---------
    speakers : sequence of str
        Speaker of each utterance [N].
    durations : array_like
        float [N], seconds.
    n_trials : int
        How many to draw, rounded down to an even number; fewer where a kind has not
        enough pairs (see :meth:`CalibrationTrials.counts`).
    boundary : float
        Seconds from which an utterance is long.
    shortest : float
        Utterances below this many seconds are left out.
    seed : int
        The same input and seed give the same trials.

    Returns
    -------
    CalibrationTrials
        Kind after kind, targets before non-targets.

    Raises
    ------
    InputError
        Different lengths, a duration that is not finite and above 0, an impossible
        option, or no kind with both a target and a non-target trial.
    """
    durations = _checked(speakers, durations, n_trials, boundary, shortest, seed)
    # Speakers are numbered as they appear: sorting a million names takes seconds.
    numbers = {}
    codes = [numbers.setdefault(name, len(numbers)) for name in list(speakers)]
    codes = np.array(codes, dtype=np.int64)
    short = (durations >= shortest) & (durations < boundary)
    classes = [_by_speaker(codes, chosen) for chosen in (short, durations >= boundary)]
    random = np.random.default_rng(seed)
    parts = []
    for kind, sides in enumerate(SIDES):
        both = [classes[side] for side in sides]
        wanted = (n_trials // 2 + 2 - kind) // 3  # a third of each label
        wanted = len(_draw_nontargets(*both, wanted, random)[0])  # how many exist
        targets = _draw_targets(*both, wanted, random)
        nontargets = _draw_nontargets(*both, len(targets[0]), random)
        for label, (enrol, test) in ((1, targets), (0, nontargets)):
            marks = np.full((2, len(enrol)), [[label], [kind]], dtype=np.int8)
            parts.append((enrol, test, *marks))
    trials = CalibrationTrials(*(np.concatenate(column) for column in zip(*parts)))
    if len(trials.labels) == 0:
        usable = len(np.flatnonzero(durations >= shortest))
        raise InputError(
            f"no trials can be made: {usable} of {len(codes)} utterances by "
            f"{len(numbers)} speakers last {shortest:g} s or more, expected two "
            f"speakers and two utterances of one of them ({', '.join(KINDS)})"
        )
    return trials


def draw_pairs(speakers, n_trials, seed=0):
    """All pairs of utterances, or so many of them, whatever their durations.

    Where there are more, at most half of the drawn are target trials, spread evenly
    over speakers, and the rest non-target trials, spread over pairs of speakers.

    Arguments
    ---------
    speakers : sequence of str
        Speaker of each utterance [N].
    n_trials : int
        At most, 2 or more.
    seed : int
        The same input and seed give the same trials.

    Returns
    -------
    CalibrationTrials
        Targets before non-targets; ``kind`` is -1.

    Raises
    ------
    InputError
        An option out of range; no target or no non-target trial.
    """
    if n_trials < 2 or seed < 0:
        raise InputError(
            f"n_trials is {n_trials} and seed {seed}, expected at least 2 and 0"
        )
    codes = np.unique(np.asarray(speakers), return_inverse=True)[1]
    all_of_them = _by_speaker(codes, np.ones(len(codes), dtype=bool))
    both, random = (all_of_them, all_of_them), np.random.default_rng(seed)
    size = all_of_them.size
    n_target = int((size * (size - 1) // 2).sum())
    n_nontarget = len(codes) * (len(codes) - 1) // 2 - n_target
    if not n_target or not n_nontarget:
        raise InputError(
            f"{len(codes)} recordings of {len(size)} speakers, expected two speakers "
            "and two recordings of one of them"
        )
    few = max(n_trials // 2, n_trials - n_nontarget)  # as many as there is room for
    targets = _draw_targets(*both, min(n_target, few), random)
    room = n_trials - len(targets[0])
    nontargets = _draw_nontargets(*both, min(n_nontarget, room), random)
    parts = [
        (enrol, test, np.full(len(enrol), label, np.int8), np.full(len(enrol), -1))
        for label, (enrol, test) in ((1, targets), (0, nontargets))
    ]
    enrol, test, labels, kind = (np.concatenate(column) for column in zip(*parts))
    return CalibrationTrials(enrol, test, labels, kind.astype(np.int8))


def _draw_targets(first, second, wanted, random):
    """Pairs of utterances of one speaker, one from each class."""
    if first is second:
        owners = np.arange(len(first.speakers))
        sides, pairs = (owners, owners), first.size * (first.size - 1) // 2
    else:
        sides = np.intersect1d(
            first.speakers, second.speakers, assume_unique=True, return_indices=True
        )[1:]
        pairs = first.size[sides[0]] * second.size[sides[1]]
    groups = _choose(np.flatnonzero(pairs > 0), wanted, random)
    group, pair = _spread(pairs[groups], wanted, random)
    a, b = (side[groups[group]] for side in sides)
    if first is second:
        pick_a, pick_b = _unrank_pair(pair)
    else:
        pick_a, pick_b = np.divmod(pair, second.size[b])
    return first.rows[first.start[a] + pick_a], second.rows[second.start[b] + pick_b]


def _draw_nontargets(first, second, wanted, random):
    """Pairs of utterances of two speakers, one from each class."""
    n_first, n_second = len(first.speakers), len(second.speakers)
    if first is second:
        drawn = _choose(n_first * (n_first - 1) // 2, wanted, random)
        a, b = _unrank_pair(drawn)
    else:
        # One cell per pair; at most so many hold the same speaker twice.
        drawn = _choose(n_first * n_second, wanted + min(n_first, n_second), random)
        a, b = np.divmod(drawn, max(n_second, 1))
        different = first.speakers[a] != second.speakers[b]
        a, b = a[different], b[different]
    group, pair = _spread(first.size[a] * second.size[b], wanted, random)
    a, b = a[group], b[group]
    pick_a, pick_b = np.divmod(pair, second.size[b])
    return first.rows[first.start[a] + pick_a], second.rows[second.start[b] + pick_b]


def _choose(population, wanted, random):
    """Up to ``wanted`` different members of an array or of range(n), shuffled."""
    n = population if isinstance(population, int) else len(population)
    return random.choice(population, min(n, wanted), replace=False)


def _spread(pairs, wanted, random):
    """Spread ``wanted`` draws evenly over groups of so many ``pairs`` [G].

    Returns group and pair int [wanted], in the order of groups; no pair of a group
    comes twice. Fewer than ``wanted`` where there are fewer pairs.
    """
    # The most rounds that can be completed, by bisection; what is left goes to the
    # first groups that have more (the caller has shuffled them).
    rounds, limit = 0, int(pairs.max(initial=0))
    while rounds < limit:
        trial = (rounds + limit + 1) // 2
        if np.minimum(pairs, trial).sum() <= wanted:
            rounds = trial
        else:
            limit = trial - 1
    draws = np.minimum(pairs, rounds)
    draws[np.flatnonzero(pairs > rounds)[: wanted - draws.sum()]] += 1
    group = np.repeat(np.arange(len(pairs)), draws)
    drawn = [random.choice(n, k, replace=False) for n, k in zip(pairs, draws)]
    return group, np.concatenate(drawn or [np.empty(0, dtype=np.int64)])


def _unrank_pair(rank):
    """0, 1, 2, 3, ... → (0, 1), (0, 2), (1, 2), (0, 3), ...: two arrays, a < b."""
    b = ((1 + np.sqrt(8.0 * rank + 1)) / 2).astype(np.int64)
    return rank - b * (b - 1) // 2, b


def _by_speaker(codes, chosen):
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(codes[rows], kind="stable")]
    speakers, start, size = np.unique(
        codes[rows], return_index=True, return_counts=True
    )
    return _Class(rows, speakers, start, size)


def _checked(speakers, durations, n_trials, boundary, shortest, seed):
    durations = np.asarray(durations, dtype=np.float64)
    if durations.ndim != 1 or len(speakers) != len(durations):
        raise InputError(
            f"{len(speakers)} speakers and durations of shape {list(durations.shape)}, "
            "expected one of each per utterance: [N]"
        )
    bad = np.flatnonzero(~((durations > 0) & np.isfinite(durations)))
    if len(bad):
        raise InputError(
            f"duration {durations[bad[0]]} s of utterance {bad[0] + 1} ({len(bad)} "
            "such), expected finite seconds above 0"
        )
    if n_trials < 6:
        raise InputError(f"n_trials is {n_trials}, expected at least 6, one of a kind")
    if seed < 0:
        raise InputError(f"seed is {seed}, expected 0 or more")
    if not 0 <= shortest < boundary:
        raise InputError(
            f"short utterances from {shortest:g} to {boundary:g} s, expected the "
            "boundary above the shortest, and that at least 0"
        )
    return durations


def calibration_scores_path(folder, system):
    """``cosine``, ``as_norm``, ``llr`` → the file of its scores in a folder."""
    return Path(folder) / f"calibration_scores_{system}.npz"


def write_calibration_scores(folder, backend, manifest, vectors, trials):
    """Score the calibration trials by every step, and write a file for each.

    Of ``manifest``, N recordings, and their embeddings ``vectors`` float [N, E];
    ``trials`` are CalibrationTrials of these, ``backend`` has its calibrator.
    """
    side = of_speakers(
        TrialSide(vectors, manifest.durations), manifest.speakers, backend
    )
    rows = np.stack([trials.enrol, trials.test], axis=1)
    ids = np.array(manifest.ids.tolist())
    for system, scores in backend.scores(side, side, rows).items():
        path = calibration_scores_path(folder, system)
        table = Trials(path, ids, trials.enrol, trials.test, trials.labels)
        write_score_table(path, table, scores)
