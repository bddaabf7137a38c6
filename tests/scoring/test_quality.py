"""Quality features by hand; symmetric, finite and named."""

import math

import numpy as np
import pytest

from speechbrain_ext.scoring.calibration.quality import quality_features, signed_ratio
from speechbrain_ext.utils.errors import InputError


def random_measures(size, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal(size), {
        "duration": (random.uniform(1, 40, size), random.uniform(1, 40, size)),
        "magnitude": (random.uniform(5, 20, size), random.uniform(5, 20, size)),
        "cohort_mean": (random.normal(0, 0.1, size), random.normal(0, 0.1, size)),
    }


def test_by_hand():
    measures = {
        "duration": ([4.0, 30.0], [8.0, 25.0]),
        "cohort_mean": ([-0.1, 0.2], [0.4, 0.0]),
    }
    names, values = quality_features([0.5, -2], measures)
    assert names == ["score"] + [
        f"{measure}_{form}"
        for measure in ("duration", "cohort_mean")
        for form in ("min", "max", "difference", "ratio")
    ]
    assert values.dtype == np.float64
    assert values[0] == pytest.approx([0.5, 4, 8, 4, 0.5, -0.1, 0.4, 0.5, -0.25])
    # Both longer than the cap: equal.
    assert values[1] == pytest.approx([-2, 20, 20, 0, 1, 0, 0.2, 0.2, 0])


def test_thirteen_inputs_of_the_method():
    scores, measures = random_measures(7)
    names, values = quality_features(scores, measures)
    assert len(names) == len(set(names)) == 13
    assert values.shape == (7, 13)
    assert values[:, 0].tolist() == scores.tolist()


def test_cap_is_for_durations_only():
    sides = [50.0], [100.0]
    _, values = quality_features([0], {"duration": sides, "magnitude": sides}, 60.0)
    assert values[0].tolist() == [0, 50, 60, 10, 50 / 60, 50, 100, 50, 0.5]


def test_swapping_enrolment_and_test_changes_nothing():
    scores, measures = random_measures(1000)
    swapped = {name: sides[::-1] for name, sides in measures.items()}
    names, values = quality_features(scores, measures)
    again, same = quality_features(scores, swapped)
    assert again == names
    assert np.array_equal(same, values)


def test_ratio():
    values = [0.0, -0.0, 3.0, -3.0, 6.0, -1.5, 1e-320, 1e300]
    a, b = (side.ravel() for side in np.meshgrid(values, values))
    ratio = signed_ratio(a, b)
    assert np.array_equal(ratio, signed_ratio(b, a))
    assert np.all(np.abs(ratio) <= 1)
    assert np.all(ratio[a == b] == 1)
    known = dict(zip(zip(a, b), ratio))
    assert known[3.0, 6.0] == 0.5
    assert known[-3.0, -1.5] == 0.5
    assert known[-3.0, 6.0] == -0.5
    assert known[3.0, -3.0] == -1
    assert known[0.0, 3.0] == 0
    # Positive sides: min / max. Any scale: the same.
    random = np.random.default_rng(0)
    a, b = random.uniform(0.1, 9, (2, 100))
    assert signed_ratio(a, b) == pytest.approx(np.minimum(a, b) / np.maximum(a, b))
    assert signed_ratio(7 * a, 7 * b) == pytest.approx(signed_ratio(a, b))


def test_rows_depend_on_their_trial_only():
    scores, measures = random_measures(50)
    whole = quality_features(scores, measures).values
    for start in range(0, 50, 20):
        part = slice(start, start + 20)
        some = {name: (a[part], b[part]) for name, (a, b) in measures.items()}
        assert np.array_equal(quality_features(scores[part], some).values, whole[part])


def test_no_measures_no_trials():
    assert quality_features([1, 2], {}).values.tolist() == [[1], [2]]
    assert quality_features([], {"magnitude": ([], [])}).values.shape == (0, 5)


@pytest.mark.parametrize(
    ("scores", "measures", "message"),
    [
        ([[1.0]], {}, r"score of shape \[1, 1\], expected \[1\]"),
        (0.5, {}, r"score of shape \[\]"),
        (["a"], {}, "score of type <U1"),
        ([1, math.nan], {}, r"score nan of trial 2 \(1 such\)"),
        ([1, 2], {"magnitude": ([1, 2], [1])}, r"magnitude of shape \[1\], expected"),
        ([1, 2], {"magnitude": ([1, 2], [1, math.inf])}, "magnitude inf of trial 2"),
        ([1, 2], {"duration": ([3, 0], [4, 4])}, "duration 0 s of trial 2"),
        ([1, 2], {"duration": ([3, 3], [-4, 4])}, "duration -4 s of trial 1"),
    ],
)
def test_refused(scores, measures, message):
    with pytest.raises(InputError, match=message):
        quality_features(scores, measures)


@pytest.mark.parametrize("cap", [0, -1, math.nan])
def test_cap_refused(cap):
    with pytest.raises(InputError, match="duration_cap"):
        quality_features([1], {}, duration_cap=cap)
