"""AS-norm against golden figures, hand cases and a plain loop with a full sort."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from speechbrain_ext.scoring import normalization
from speechbrain_ext.scoring.embeddings import cosine_scores
from speechbrain_ext.scoring.normalization import (
    CohortStatistics,
    as_norm,
    cohort_statistics,
    s_norm,
    symmetric_norm,
)
from speechbrain_ext.utils.errors import InputError

KIB = 1 / 1024  # in MiB


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).with_name("golden_scoring.npz")) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def case():
    """60 enrolment, 50 test, 40 cohort vectors and 300 trials of 12 dimensions."""
    random = np.random.default_rng(0)
    enrol, test, cohort = (
        (random.standard_normal((size, 12)) + 0.3).astype(np.float32)
        for size in (60, 50, 40)
    )
    trials = np.stack(
        [random.integers(0, 60, 300), random.integers(0, 50, 300)], axis=1
    )
    speakers = (random.integers(-1, 40, 60), random.integers(-1, 40, 50))
    return enrol, test, cohort, trials, speakers


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b / math.sqrt((a @ a) * (b @ b))


def plain_statistics(vector, cohort, top_n, own=-1):
    """The definition: all scores of one embedding, sorted in full."""
    scores = [cosine(vector, c) for k, c in enumerate(cohort) if k != own]
    top = sorted(scores, reverse=True)[:top_n]
    mean = sum(top) / len(top)
    return mean, math.sqrt(sum((s - mean) ** 2 for s in top) / len(top))


def plain_as_norm(enrol, test, cohort, trials, top_n, enrol_own, test_own):
    def sides(vectors, own):
        return [plain_statistics(v, cohort, top_n, o) for v, o in zip(vectors, own)]

    enrol_side, test_side = sides(enrol, enrol_own), sides(test, test_own)
    scores = []
    for e, t in trials:
        both = (enrol_side[e], test_side[t])
        score = cosine(enrol[e], test[t])
        scores.append(sum((score - mean) / std for mean, std in both) / 2)
    return scores


def test_golden_centred_cosine(golden):
    centred = golden["emb"] - golden["cohort"].mean(axis=0)
    scores = cosine_scores(centred, golden["enrol"], golden["test"])
    assert np.abs(scores - golden["centred"]).max() < 1e-5


def test_golden_as_norm(golden):
    mean = golden["cohort"].mean(axis=0)
    vectors, cohort = golden["emb"] - mean, golden["cohort"] - mean
    trials = np.stack([golden["enrol"], golden["test"]], axis=1)
    scores = as_norm(vectors, vectors, cohort, trials, top_n=50)
    assert np.abs(scores - golden["asnorm_top50"]).max() < 1e-5
    copies = as_norm(vectors, vectors.copy(), cohort, trials, top_n=50)
    assert np.abs(copies - golden["asnorm_top50"]).max() < 1e-5


def test_by_hand():
    # Cosines with the cohort: 1, 0.6, 0, -1 for the first, 0, 0.8, 1, 0 for the second.
    vectors = np.array([[2, 0], [0, 3]], dtype=np.float32)
    cohort = np.array([[1, 0], [3, 4], [0, 5], [-2, 0]], dtype=np.float32)
    # Top 2: means 0.8 and 0.9, deviations 0.2 and 0.1; the trial's own cosine is 0.
    found = cohort_statistics(vectors, cohort, top_n=2)
    assert found.mean == pytest.approx([0.8, 0.9])
    assert found.std == pytest.approx([0.2, 0.1], rel=1e-5)
    scores = as_norm(vectors, vectors, cohort, [[0, 1]], top_n=2)
    assert scores == pytest.approx([(-4 - 9) / 2], rel=1e-5)
    # All 4: means 0.15 and 0.45, mean squares 0.59 and 0.41.
    stds = math.sqrt(0.59 - 0.15**2), math.sqrt(0.41 - 0.45**2)
    expected = (-0.15 / stds[0] - 0.45 / stds[1]) / 2
    scores = s_norm(vectors, vectors, cohort, [[0, 1]])
    assert scores == pytest.approx([expected], rel=1e-5)
    # Without the first's own speaker 0 its top 2 are 0.6 and 0.
    found = cohort_statistics(vectors, cohort, 2, own=[0, -1])
    assert found.mean == pytest.approx([0.3, 0.9])
    assert found.std == pytest.approx([0.3, 0.1], rel=1e-5)


@pytest.mark.parametrize("top_n", [5, 7, 39, None])
@pytest.mark.parametrize("excluded", [(), (0,), (1,), (0, 1)])
def test_fast_path_equals_plain_path(case, top_n, excluded):
    """Own speakers left out of neither side's cohort, of one side's, of both."""
    enrol, test, cohort, trials, speakers = case
    own = [s if side in excluded else None for side, s in enumerate(speakers)]
    scores = as_norm(enrol, test, cohort, trials, top_n, *own)
    plain_own = [[-1] * 60 if o is None else o for o in own]
    expected = plain_as_norm(enrol, test, cohort, trials, top_n, *plain_own)
    assert scores.dtype == np.float32
    assert scores == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_s_norm_is_as_norm_over_all(case):
    enrol, test, cohort, trials, speakers = case
    everybody = as_norm(enrol, test, cohort, trials, top_n=40)
    assert s_norm(enrol, test, cohort, trials) == pytest.approx(everybody, abs=1e-5)
    without = as_norm(enrol, test, cohort, trials, None, *speakers)
    assert np.array_equal(s_norm(enrol, test, cohort, trials, *speakers), without)
    assert np.abs(without - everybody).max() > 0.01


def test_one_array_on_both_sides(case):
    """Speakers of the two sides may differ even where the array is one."""
    vectors, _, cohort, trials, (own, _) = case
    nobody = np.full(60, -1)
    for other in (own, own.copy(), np.roll(own, 1), None):
        speakers = (own, other)
        scores = as_norm(vectors, vectors, cohort, trials, 7, *speakers)
        plain = [nobody if s is None else s for s in speakers]
        expected = plain_as_norm(vectors, vectors, cohort, trials, 7, *plain)
        assert scores == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_one_array_is_computed_once(case, monkeypatch):
    calls = []

    def spy(*args, **kwargs):
        calls.append(args)
        return cohort_statistics(*args, **kwargs)

    monkeypatch.setattr(normalization, "cohort_statistics", spy)
    vectors, _, cohort, trials, _ = case
    once = as_norm(vectors, vectors, cohort, trials, top_n=7)
    assert len(calls) == 1
    twice = as_norm(vectors, vectors.copy(), cohort, trials, top_n=7)
    assert twice == pytest.approx(once, abs=1e-5, rel=1e-5)  # float32 over deviations
    assert len(calls) == 3


def test_scale_changes_nothing(case):
    """Lengths are not part of a cosine; float64 input gives float32 accuracy."""
    enrol, test, cohort, trials, _ = case
    scores = as_norm(enrol, test, cohort, trials, top_n=7)
    scaled = as_norm(
        enrol * 1e8, test * 1e-8, cohort.astype(float) * 3, trials, top_n=7
    )
    assert scaled == pytest.approx(scores, abs=1e-4)
    swapped = as_norm(test, enrol, cohort, trials[:, ::-1], top_n=7)
    assert swapped == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("top_n", [7, None])
@pytest.mark.parametrize("memory_mib", [1e-9, 1 * KIB, 5 * KIB, 16 * KIB, 1000])
def test_memory_setting_changes_nothing(case, top_n, memory_mib):
    """One embedding at a time, several, all."""
    enrol, test, cohort, trials, speakers = case
    scores = as_norm(enrol, test, cohort, trials, top_n, *speakers)
    again = as_norm(enrol, test, cohort, trials, top_n, *speakers, memory_mib)
    assert again == pytest.approx(scores, abs=2e-5)


def test_unused_rows_may_be_silent():
    """A recording that no trial names does not stop the others."""
    vectors = np.array([[1, 0], [0, 0], [0, 2], [math.nan, 1]], dtype=np.float32)
    cohort = np.array([[1, 0], [1, 1], [0, 1], [-1, 2]], dtype=np.float32)
    for top_n in (3, None):
        scores = as_norm(vectors, vectors, cohort, [[0, 2], [2, 0]], top_n)
        assert np.isfinite(scores).all()
        assert scores[0] == pytest.approx(scores[1])


def test_no_trials(case):
    enrol, test, cohort, _, _ = case
    for top_n in (3, None):
        scores = as_norm(enrol, test, cohort, np.empty((0, 2), dtype=int), top_n)
        assert scores.shape == (0,)
        assert scores.dtype == np.float32


def test_equal_cohort_scores():
    """A cohort of one vector repeated has no spread to divide by."""
    vectors = np.array([[1, 2, 3], [0.1, 0.7, 0.3]], dtype=np.float32)
    cohort = np.tile(np.float32([0.3, 0.1, 0.9]), (50, 1))
    for top_n in (10, None):
        with pytest.raises(InputError, match="enrolment embedding in row 1: standard"):
            as_norm(vectors, vectors, cohort, [[1, 0]], top_n)


def test_statistics_at_hand():
    enrol = CohortStatistics(np.array([0.5, math.nan]), np.array([0.1, math.nan]))
    test = CohortStatistics(np.array([0.1, 0.2]), np.array([0.2, 0.0]))
    scores = symmetric_norm([0.7], [[0, 0]], enrol, test)
    assert scores == pytest.approx([(2 + 3) / 2])
    for trial, message in (
        ([1, 0], "enrolment embedding in row 1: standard deviation nan"),
        ([0, 1], "test embedding in row 1: standard deviation 0 of"),
        ([0, 2], "test row 2 in trial 1, expected 0 to 1"),
        ([-1, 0], "enrolment row -1 in trial 1"),
    ):
        with pytest.raises(InputError, match=message):
            symmetric_norm([0.7], [trial], enrol, test)
    with pytest.raises(InputError, match=r"\[1\] scores and 2 trials"):
        symmetric_norm([0.7], [[0, 0], [0, 0]], enrol, test)


def with_row(vectors, row, value):
    vectors = vectors.copy()
    vectors[row] = value
    return vectors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"trials": [[0, 50]]}, "test row 50 in trial 1, expected 0 to 49"),
        (lambda c: {"trials": [[0, 0], [60, 0]]}, "enrolment row 60 in trial 2"),
        (lambda c: {"trials": [[0, -1]]}, "test row -1 in trial 1"),
        (lambda c: {"trials": [[0.0, 1.0]]}, "trials of type float64"),
        (lambda c: {"trials": []}, r"shape \[0\], expected integers \[T, 2\]"),
        (lambda c: {"trials": [[0, 1, 2]]}, r"shape \[1, 3\], expected integers"),
        (lambda c: {"enrol": c[0][0]}, r"embeddings of .*shape \[12\]"),
        (lambda c: {"test": c[1].astype(int)}, "embeddings of type int64"),
        (lambda c: {"test": c[1][:, :9]}, "of 12 values and test embeddings of 9"),
        (lambda c: {"cohort": c[2][:, :9]}, "of 12 values and a cohort of 9"),
        (lambda c: {"cohort": c[2][0]}, r"cohort of .*shape \[12\]"),
        (lambda c: {"enrol": with_row(c[0], 3, 0)}, "enrolment embedding in row 3 has"),
        (lambda c: {"test": with_row(c[1], 4, 0)}, "test embedding in row 4 has norm"),
        (lambda c: {"enrol": with_row(c[0], 3, math.nan)}, "row 3 has norm nan"),
        (lambda c: {"test": with_row(c[1], 4, math.inf)}, "row 4 has norm inf"),
        (lambda c: {"cohort": with_row(c[2], 5, 0)}, "cohort member in row 5 has norm"),
        (lambda c: {"cohort": with_row(c[2], 5, math.nan)}, "member in row 5 has norm"),
        (lambda c: {"top_n": 41}, "cohort of 40 members, expected at least 41"),
        (lambda c: {"top_n": 1}, "top_n is 1, expected at least 2"),
        (lambda c: {"top_n": -3}, "top_n is -3"),
        (lambda c: {"top_n": None, "cohort": c[2][:1]}, "1 members, expected at least"),
        (
            lambda c: {"top_n": 40, "enrol_speakers": c[4][0]},
            "40 members, one less where a speaker is left out, expected at least 40",
        ),
        (lambda c: {"enrol_speakers": [0]}, r"shape \[1\].*integers \[60\]"),
        (lambda c: {"test_speakers": np.zeros(50)}, "own speakers of type float64"),
        (
            lambda c: {"test_speakers": with_row(c[4][1], 9, 40)},
            "own speaker 40 of the embedding in row 9, expected a cohort row, 0 to 39",
        ),
        (lambda c: {"enrol_speakers": with_row(c[4][0], 9, -2)}, "own speaker -2"),
        (lambda c: {"memory_mib": 0}, "memory_mib is 0, expected MiB above 0"),
        (lambda c: {"memory_mib": math.nan}, "memory_mib is nan"),
    ],
)
def test_refused(case, change, message):
    options = dict(zip(("enrol", "test", "cohort", "trials"), case), top_n=7)
    with pytest.raises(InputError, match=message):
        as_norm(**{**options, **change(case)})


def test_only_embeddings_of_trials_count_as_left_out(case):
    """top_n = K stands where no trial's embedding has a speaker to leave out."""
    enrol, test, cohort, trials, _ = case
    own = np.full(60, -1)
    own[7] = 3
    trials = trials[trials[:, 0] != 7]
    scores = as_norm(enrol, test, cohort, trials, 40, own)
    assert np.array_equal(scores, as_norm(enrol, test, cohort, trials, 40))


@pytest.mark.parametrize("top_n", [300, None])
def test_memory_is_bounded(top_n):
    """8,000 × 2,000 scores are 64 MB at once, 8,000 × 256 float64 values 16 MB."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal((8_000, 256), dtype=np.float32)
    cohort = random.standard_normal((2_000, 256), dtype=np.float32)
    trials = random.integers(0, 8_000, (20_000, 2))
    tracemalloc.start()
    scores = as_norm(vectors, vectors, cohort, trials, top_n, memory_mib=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isfinite(scores).all()
    copies = 2 * cohort.nbytes + (2 * cohort.nbytes if top_n is None else 0)
    assert peak < copies + 8e6, f"{(peak - copies) / 1e6:.1f} MB"
