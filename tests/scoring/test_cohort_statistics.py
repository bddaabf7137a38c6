"""Cohort statistics against a full sort in float64, and what they refuse."""

import numpy as np
import pytest

from speechbrain_ext.scoring.normalization import cohort_statistics, rows_in_memory
from speechbrain_ext.utils.errors import InputError


@pytest.fixture(scope="module")
def case():
    """200 vectors of 16 dimensions, 90 members of a cohort, own speakers or -1."""
    random = np.random.default_rng(1)
    vectors = (random.standard_normal((200, 16)) + 0.2).astype(np.float32)
    cohort = (random.standard_normal((90, 16)) + 0.2).astype(np.float32)
    return vectors, cohort, random.integers(-1, 90, 200)


def plain_statistics(vectors, cohort, top_n, own):
    """Row by row, without the own speaker, sorted in full."""
    units, members = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (vectors.astype(np.float64), cohort.astype(np.float64))
    )
    for unit, left_out in zip(units, own):
        kept = np.arange(len(members)) != left_out
        top = np.sort(members[kept] @ unit)[::-1][:top_n]
        yield top.mean(), top.std()


@pytest.mark.parametrize("top_n", [2, 30, 89, None])
@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("memory_mib", [0.01, 100])
def test_fast_path_equals_plain_path(case, top_n, leave_out, memory_mib):
    vectors, cohort, own = case
    own = own if leave_out else None
    found = cohort_statistics(vectors, cohort, top_n, own, memory_mib=memory_mib)
    plain_own = np.full(200, -1) if own is None else own
    expected = np.array([*plain_statistics(vectors, cohort, top_n, plain_own)])
    assert found.mean.dtype == found.std.dtype == np.float64
    assert np.abs(np.transpose(found) - expected).max() < 1e-6


def test_selection_in_long_rows():
    """A partition sorts what is left once it is short: few rows show a slip by one."""
    random = np.random.default_rng(2)
    vectors = random.standard_normal((1000, 8)).astype(np.float32)
    cohort = random.standard_normal((2000, 8)).astype(np.float32)
    for top_n in (300, 1700):
        expected = [*plain_statistics(vectors, cohort, top_n, np.full(1000, -1))]
        found = cohort_statistics(vectors, cohort, top_n)
        assert np.abs(np.transpose(found) - expected).max() < 1e-6


def test_own_speaker_at_the_top():
    """The own speaker's score, the highest of all, does not count."""
    cohort = np.eye(4, dtype=np.float32) + 0.1
    with_it = cohort_statistics(cohort, cohort, 3)
    without = cohort_statistics(cohort, cohort, 3, own=np.arange(4))
    assert (with_it.mean > 0.4).all()
    assert (without.mean < 0.3).all()


def test_equal_scores():
    """A cohort of one vector repeated: the mean is defined, the spread is nothing."""
    vectors = np.array([[3, 4], [0, 2]], dtype=np.float32)
    cohort = np.tile(np.float32([0.1, 0]), (50, 1))
    for top_n in (10, None):
        mean, std = cohort_statistics(vectors, cohort, top_n)
        assert mean == pytest.approx([0.6, 0], abs=1e-6)
        assert std == pytest.approx([0, 0], abs=1e-6)
    # Where rounding takes the variance below 0, the deviation is still a number.
    vectors = np.random.default_rng(0).standard_normal((100, 2))
    cohort += np.float32([0.2, 0.1])
    assert (cohort_statistics(vectors, cohort, None).std < 1e-6).all()


@pytest.mark.parametrize("top_n", [7, None])
def test_chosen_rows(case, top_n):
    vectors, cohort, own = case
    everything = cohort_statistics(vectors, cohort, top_n, own)
    some = cohort_statistics(vectors, cohort, top_n, own, rows=[[5, 0], [5, 199]])
    for mine, theirs in zip(some, everything):
        assert np.flatnonzero(np.isfinite(mine)).tolist() == [0, 5, 199]
        assert mine[[0, 5, 199]] == pytest.approx(theirs[[0, 5, 199]], abs=1e-6)


def test_other_rows_are_not_looked_at(case):
    vectors, cohort, _ = case
    broken = vectors.copy()
    broken[7] = np.nan
    mean, _ = cohort_statistics(broken, cohort, 7, rows=np.arange(7))
    assert np.isfinite(mean[:7]).all()
    with pytest.raises(InputError, match="embedding in row 7 has norm nan"):
        cohort_statistics(broken, cohort, 7)


def test_refused(case):
    vectors, cohort, _ = case
    for rows, seen in (([9, -1], "rows -1 to 9"), ([0, 200], "rows 0 to 200")):
        with pytest.raises(InputError, match=f"{seen} asked for, expected 0 to 199"):
            cohort_statistics(vectors, cohort, 7, rows=rows)
    with pytest.raises(InputError, match="cohort of 90 members, expected at least 91"):
        cohort_statistics(vectors, cohort, 91)


def test_rows_in_memory():
    assert rows_in_memory(2, 1024) == 2048
    assert rows_in_memory(1e-9, 1024) == 1
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InputError, match=r"memory_mib is .*, expected MiB above 0"):
            rows_in_memory(wrong, 1024)
