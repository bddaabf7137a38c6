"""Calibration trials: who meets whom, how often, and what happens when few exist."""

import math

import numpy as np
import pytest

from speechbrain_ext.scoring.calibration.trials import (
    KINDS,
    _unrank_pair,
    draw_calibration_trials,
    draw_pairs,
)
from speechbrain_ext.utils.errors import InputError

SHORT, LONG, TOO_SHORT = 2.0, 6.0, 1.99  # the first of each class


def corpus(size=4000, n_speakers=60, seed=0):
    """Speakers of very different sizes; a tenth of the utterances is too short."""
    random = np.random.default_rng(seed)
    share = np.arange(1, n_speakers + 1) ** 2.0
    speakers = random.choice(n_speakers, size, p=share / share.sum())
    durations = random.uniform(1, 11, size)
    return np.array([f"id{s:05d}" for s in speakers]), durations


def utterances(*groups):
    """(speaker, how many, seconds), ... → speakers and durations."""
    speakers = [name for name, count, _ in groups for _ in range(count)]
    durations = [seconds for _, count, seconds in groups for _ in range(count)]
    return speakers, durations


def check(trials, speakers, durations, boundary=6.0, shortest=2.0):
    """What holds for any draw."""
    speakers, durations = np.asarray(speakers), np.asarray(durations)
    enrol, test, labels, kind = trials
    assert len({len(column) for column in trials}) == 1
    assert np.all(enrol != test)
    assert np.array_equal(speakers[enrol] == speakers[test], labels == 1)
    pairs = {frozenset(pair) for pair in zip(enrol.tolist(), test.tolist())}
    assert len(pairs) == len(enrol)
    lengths = np.stack((durations[enrol], durations[test]))
    assert lengths.min() >= shortest
    n_long = np.sum(lengths >= boundary, axis=0)
    assert np.array_equal(n_long, kind)
    assert np.all(lengths[0][kind == 1] < boundary)  # short against long


def test_what_a_draw_is_made_of():
    speakers, durations = corpus()
    trials = draw_calibration_trials(speakers, durations, n_trials=6000)
    check(trials, speakers, durations)
    assert trials.counts() == dict.fromkeys(KINDS, (1000, 1000))
    assert trials.labels.dtype == np.int8


def test_thresholds_are_options():
    speakers, durations = corpus()
    trials = draw_calibration_trials(
        speakers, durations, n_trials=600, boundary=4.0, shortest=3.0
    )
    check(trials, speakers, durations, boundary=4.0, shortest=3.0)


@pytest.mark.parametrize("n_trials", [6, 7, 8, 9, 10, 11, 100])
def test_any_number(n_trials):
    trials = draw_calibration_trials(*corpus(), n_trials=n_trials)
    assert len(trials.enrol) == n_trials // 2 * 2
    counts = list(trials.counts().values())
    assert all(targets == nontargets for targets, nontargets in counts)
    assert max(counts)[0] - min(counts)[0] <= 1


def test_the_seed_decides():
    speakers, durations = corpus()
    a, b, c = (
        draw_calibration_trials(speakers, durations, n_trials=600, seed=seed)
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(x, y) for x, y in zip(a, b))
    assert not np.array_equal(a.enrol, c.enrol)
    # Text of any kind: the same trials.
    for names in (speakers.tolist(), speakers.astype(np.dtypes.StringDType())):
        again = draw_calibration_trials(names, durations, n_trials=600, seed=1)
        assert all(np.array_equal(x, y) for x, y in zip(a, again))


def test_big_speakers_do_not_rule():
    """Ten speakers of 1 % to 38 % of the recordings get the same share of trials."""
    random = np.random.default_rng(0)
    sizes = [100 + 40 * s**2 for s in range(10)]
    groups = [(f"s{s}", n, 0) for s, n in enumerate(sizes)]
    speakers, _ = utterances(*groups)
    durations = random.uniform(2, 10, len(speakers))
    speakers = np.array(speakers)
    trials = draw_calibration_trials(speakers, durations, n_trials=18_000)
    pairs = np.sort(np.stack((speakers[trials.enrol], speakers[trials.test])), axis=0)
    target = trials.labels == 1
    _, counts = np.unique(pairs[0][target], return_counts=True)
    assert len(counts) == 10
    # Whole rounds: 3,000 targets of each kind over ten speakers, 300 each.
    assert set(counts) == {900}
    _, counts = np.unique(pairs[:, ~target], axis=1, return_counts=True)
    assert len(counts) == 45
    # 66 or 67 of both same-length kinds, and 2 × (33 or 34) of the mixed one.
    assert counts.min() >= 3 * 66
    assert counts.max() <= 3 * 67 + 1


def test_trials_left_over_go_to_any_speaker():
    """15 short targets over ten speakers: one each, and a second one for any five."""
    speakers, durations = utterances(*[(f"s{s}", 8, SHORT) for s in range(10)])
    twice = np.zeros(10)
    for seed in range(100):
        trials = draw_calibration_trials(speakers, durations, n_trials=90, seed=seed)
        counts = np.bincount(trials.enrol[trials.labels == 1] // 8)
        assert sorted(counts) == [1] * 5 + [2] * 5
        twice += counts == 2
    assert twice == pytest.approx(np.full(10, 50), abs=20)  # four deviations


def test_speaker_pairs_are_drawn_evenly_when_there_are_more_than_trials():
    """Of 1,770 pairs of speakers, 300 are drawn: no speaker in far too many."""
    speakers, durations = corpus(size=20_000)
    trials = draw_calibration_trials(speakers, durations, n_trials=1800)
    names = np.array(speakers)
    of_kind = (trials.labels == 0) & (trials.kind == 2)
    both = np.stack((names[trials.enrol], names[trials.test]))[:, of_kind]
    assert len({frozenset(pair) for pair in both.T.tolist()}) == 300
    _, counts = np.unique(both, return_counts=True)
    # 600 places over 60 speakers: 10 each, deviation about 3.
    assert counts.max() <= 22
    assert len(counts) > 55


def test_all_that_exists():
    """a: 3 short, 2 long; b: 1 short, 1 long; c: 1 too short."""
    groups = [("a", 3, SHORT), ("a", 2, LONG), ("b", 1, SHORT), ("b", 1, LONG)]
    speakers, durations = utterances(*groups, ("c", 1, TOO_SHORT))
    trials = draw_calibration_trials(speakers, durations, n_trials=6000)
    check(trials, speakers, durations)
    assert trials.counts() == {
        # targets: 3 of a; non-targets: 3 × 1
        "short-short": (3, 3),
        # targets: 5 of a 3 × 2, b 1 × 1; non-targets: a 3 × b 1 long, b 1 × a 2 long
        "short-long": (5, 5),
        # targets: 1 of a; non-targets: 1 of 2 × 1
        "long-long": (1, 1),
    }


@pytest.mark.parametrize("seed", range(30))
def test_small_corpora_are_used_up(seed):
    """Against a plain listing of all pairs."""
    random = np.random.default_rng(seed)
    size = random.integers(2, 25)
    speakers = [f"s{s}" for s in random.integers(0, random.integers(2, 8), size)]
    durations = random.choice([TOO_SHORT, SHORT, LONG], size)
    expected = np.zeros((3, 2), dtype=int)
    for i in range(size):
        for j in range(i):
            if min(durations[i], durations[j]) > TOO_SHORT:
                kind = int(durations[i] == LONG) + int(durations[j] == LONG)
                expected[kind, int(speakers[i] != speakers[j])] += 1
    expected = expected.min(axis=1)  # as many of either label
    if expected.sum() == 0:
        with pytest.raises(InputError, match="no trials can be made"):
            draw_calibration_trials(speakers, durations)
        return
    trials = draw_calibration_trials(speakers, durations, n_trials=6000, seed=seed)
    check(trials, speakers, durations)
    assert list(trials.counts().values()) == [(n, n) for n in expected]
    some = draw_calibration_trials(speakers, durations, n_trials=24, seed=seed)
    check(some, speakers, durations)
    assert list(some.counts().values()) == [(n, n) for n in np.minimum(expected, 4)]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("a", 1, LONG), ("b", 1, LONG)], "2 of 2 utterances by 2 speakers last 2 s"),
        ([("a", 5, SHORT), ("a", 5, LONG)], "10 of 10 utterances by 1 speakers"),
        ([("a", 2, TOO_SHORT), ("b", 2, TOO_SHORT)], "0 of 4 utterances"),
        ([], "0 of 0 utterances"),
        # A target of two short ones, non-targets of a short and a long one only.
        ([("a", 2, SHORT), ("b", 1, LONG)], "3 of 3 utterances by 2 speakers"),
    ],
)
def test_nothing_to_draw(groups, message):
    with pytest.raises(InputError, match=message):
        draw_calibration_trials(*utterances(*groups))


@pytest.mark.parametrize(
    ("speakers", "durations", "options", "message"),
    [
        (["a"], [3.0, 4.0], {}, r"1 speakers and durations of shape \[2\]"),
        (["a"], [[3.0]], {}, r"shape \[1, 1\]"),
        (["a", "b"], [3.0, math.nan], {}, r"duration nan s of utterance 2 \(1 such\)"),
        (["a", "b"], [0.0, 1.0], {}, "duration 0.0 s of utterance 1"),
        (["a", "b"], [3.0, 3.0], {"n_trials": 5}, "n_trials is 5"),
        (["a", "b"], [3.0, 3.0], {"seed": -1}, "seed is -1, expected 0 or more"),
        (["a", "b"], [3.0, 3.0], {"boundary": 2.0}, "from 2 to 2 s"),
        (["a", "b"], [3.0, 3.0], {"shortest": -1.0}, "from -1 to 6 s"),
        (["a", "b"], [3.0, 3.0], {"boundary": math.nan}, "from 2 to nan s"),
    ],
)
def test_refused(speakers, durations, options, message):
    with pytest.raises(InputError, match=message):
        draw_calibration_trials(speakers, durations, **options)


def test_pairs_are_counted_without_a_gap():
    a, b = _unrank_pair(np.arange(1500 * 1499 // 2))
    assert np.array_equal(a, np.concatenate([np.arange(n) for n in range(1500)]))
    assert np.array_equal(b, np.repeat(np.arange(1500), np.arange(1500)))
    # The last and first of two rows, for a hundred million speakers.
    n = 100_000_000
    a, b = _unrank_pair(np.array([n * (n - 1) // 2 - 1, n * (n - 1) // 2]))
    assert a.tolist() == [n - 2, 0]
    assert b.tolist() == [n - 1, n]


def test_all_pairs_where_there_is_room():
    speakers = np.array(list("aabbbcd"))
    trials = draw_pairs(speakers, 1000)
    pairs = {
        frozenset(pair) for pair in zip(trials.enrol.tolist(), trials.test.tolist())
    }
    assert len(pairs) == len(trials.labels) == 21
    assert np.array_equal(
        speakers[trials.enrol] == speakers[trials.test], trials.labels
    )
    assert trials.labels.tolist() == [1] * 4 + [0] * 17


@pytest.mark.parametrize(
    ("n_trials", "targets", "nontargets"),
    [(10, 4, 6), (6, 3, 3), (18, 4, 14), (2, 1, 1)],
)
def test_as_many_pairs_as_asked_for(n_trials, targets, nontargets):
    speakers = np.array(list("aabbbcd"))
    trials = draw_pairs(speakers, n_trials, seed=3)
    assert (np.sum(trials.labels), np.sum(trials.labels == 0)) == (targets, nontargets)
    assert np.array_equal(
        speakers[trials.enrol] == speakers[trials.test], trials.labels
    )
    pairs = {
        frozenset(pair) for pair in zip(trials.enrol.tolist(), trials.test.tolist())
    }
    assert len(pairs) == n_trials
    again = draw_pairs(speakers, n_trials, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(trials, again))


def test_few_nontargets_leave_room_for_targets():
    """Five recordings of one and one of another: 10 pairs and 5."""
    trials = draw_pairs(list("aaaaab"), 14)
    assert (np.sum(trials.labels), np.sum(trials.labels == 0)) == (9, 5)


@pytest.mark.parametrize(
    ("speakers", "options", "message"),
    [
        ("abc", {}, "3 recordings of 3 speakers, expected two speakers"),
        ("aaa", {}, "3 recordings of 1 speakers"),
        ("", {}, "0 recordings"),
        ("aab", {"n_trials": 1}, "n_trials is 1"),
        ("aab", {"seed": -1}, "seed -1"),
    ],
)
def test_pairs_that_cannot_be_drawn(speakers, options, message):
    with pytest.raises(InputError, match=message):
        draw_pairs(list(speakers), **{"n_trials": 10, **options})
