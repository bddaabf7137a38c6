"""Validation speakers and trials: disjoint, balanced, spread, repeatable."""

import time

import numpy as np
import pytest

from speechbrain_ext.data.prepare.splits import draw_trials, hold_out
from speechbrain_ext.utils.errors import InputError


def corpus(*sessions_of_speaker):
    """``corpus([3, 2], [4])`` → speaker and session of 5 + 4 recordings."""
    speakers, sessions = [], []
    for number, sizes in enumerate(sessions_of_speaker):
        for session, size in enumerate(sizes):
            speakers += [f"id{number}"] * size
            sessions += [f"id{number}/{session}"] * size
    return speakers, sessions


def test_held_out_speakers_are_gone_from_training_with_all_recordings():
    speakers, sessions = corpus(*[[4, 4, 4]] * 12)
    is_training, chosen = hold_out(speakers, sessions, 3, 5, seed=1)
    speakers = np.array(speakers)
    held_out = set(speakers[chosen])
    assert len(held_out) == 3
    assert held_out.isdisjoint(speakers[is_training])
    assert len(set(speakers[is_training])) == 9
    assert is_training.sum() == 9 * 12
    assert [np.sum(speakers[chosen] == name) for name in held_out] == [5, 5, 5]


def test_recordings_are_taken_from_sessions_in_turn():
    speakers, sessions = corpus(*[[100, 1, 1, 2]] * 4)
    for seed in range(4):
        _, chosen = hold_out(speakers, sessions, 2, 5, seed)
        taken = [sessions[row] for row in chosen]
        # Four sessions of each: once each, then again one of the two that have more.
        assert len(taken) == 10
        assert len(set(taken)) == 8


def test_speakers_with_two_sessions_are_preferred():
    speakers, sessions = corpus(*[[9]] * 20, *[[1, 1]] * 5, *[[1]] * 5)
    with_two = {f"id{n}" for n in range(20, 25)}
    for seed in range(5):
        _, chosen = hold_out(speakers, sessions, 4, 10, seed)
        assert {speakers[row] for row in chosen} <= with_two
        _, chosen = hold_out(speakers, sessions, 7, 10, seed)
        held_out = {speakers[row] for row in chosen}
        assert with_two < held_out
        assert held_out.isdisjoint({f"id{n}" for n in range(25, 30)})


def test_zero_holds_out_nobody():
    is_training, chosen = hold_out(*corpus([1], [1]), 0, 10, seed=1)
    assert is_training.all()
    assert len(chosen) == 0


@pytest.mark.parametrize(
    ("sizes", "n_speakers", "message"),
    [
        ([[2]] * 5 + [[1]] * 9, 5, "n_valid_speakers=5, expected fewer than the 5"),
        ([[2]] * 5, 4, "n_valid_speakers=4 leaves 1 of 5 speakers"),
    ],
)
def test_too_few_speakers(sizes, n_speakers, message):
    with pytest.raises(InputError, match=message):
        hold_out(*corpus(*sizes), n_speakers, 10, seed=1)


def test_same_seed_same_draw_other_seed_other_draw():
    data = corpus(*[[3, 3]] * 30)
    first, again, other = (hold_out(*data, 10, 4, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def check_pairs(pairs, speakers):
    speakers = np.array(speakers)
    assert (pairs.enrol < pairs.test).all()  # neither itself nor a mirror
    drawn = set(zip(pairs.enrol.tolist(), pairs.test.tolist()))
    assert len(drawn) == len(pairs.labels)
    same = speakers[pairs.enrol] == speakers[pairs.test]
    assert np.array_equal(pairs.labels, same)
    assert pairs.labels.sum() * 2 == len(pairs.labels)


def test_all_pairs_of_a_tiny_corpus_are_found():
    # Two speakers of 4 recordings: 2 · 6 target and 16 non-target pairs.
    speakers, sessions = corpus([2, 2], [2, 2])
    pairs = draw_trials(speakers, sessions, 1000, seed=1)
    check_pairs(pairs, speakers)
    assert len(pairs.labels) == 24


def test_non_target_pairs_may_be_the_fewer():
    # One speaker of 5 recordings and one of 1: 10 target, 5 non-target pairs.
    speakers, sessions = corpus([5], [1])
    pairs = draw_trials(speakers, sessions, 1000, seed=1)
    check_pairs(pairs, speakers)
    assert len(pairs.labels) == 10


def test_target_pairs_cross_sessions_first():
    # Across sessions: 3 · 3 pairs per speaker, 27 in all; within: 2 · 3, 18 in all.
    speakers, sessions = corpus([3, 3], [3, 3], [3, 3])
    for n_trials, n_within in ((20, 0), (54, 0), (60, 3), (90, 18)):
        pairs = draw_trials(speakers, sessions, n_trials, seed=3)
        check_pairs(pairs, speakers)
        target = pairs.labels == 1
        assert target.sum() == n_trials // 2
        inside = np.array(sessions)[pairs.enrol] == np.array(sessions)[pairs.test]
        assert (inside & target).sum() == n_within


def test_trials_repeat_with_the_seed():
    speakers, sessions = corpus(*[[3, 3]] * 10)
    first, again, other = (draw_trials(speakers, sessions, 100, s) for s in (1, 1, 2))
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first.test, other.test)


def test_full_size():
    """5,994 speakers, 1.09 million recordings: a few seconds."""
    speakers, sessions = corpus(*[[7] * 26] * 5994)
    start = time.perf_counter()
    is_training, chosen = hold_out(speakers, sessions, 40, 10, seed=1986)
    of_chosen = ([s[row] for row in chosen] for s in (speakers, sessions))
    pairs = draw_trials(*of_chosen, 4000, seed=1986)
    assert time.perf_counter() - start < 20
    assert len(speakers) == 1_090_908
    assert is_training.sum() == 5954 * 182
    assert len(chosen) == 400
    # 40 speakers · 45 pairs each are fewer than the 2,000 asked for.
    assert pairs.labels.sum() == 1800
    assert len(pairs.labels) == 3600
