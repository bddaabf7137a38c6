"""Schedules at points worked out by hand; per step; without memory."""

import math
import pickle
from itertools import pairwise

import pytest

from speechbrain_ext.schedules import (
    Constant,
    LinearRamp,
    WarmupCosine,
    WarmupExponential,
    WarmupStepDecay,
)

STAGE1 = WarmupStepDecay(peak=1e-4)
STAGE2 = WarmupCosine(peak=1e-5, final=5e-6, decay_epochs=2)
WARM_COSINE = WarmupCosine(peak=4.0, final=2.0, decay_epochs=5, warmup_epochs=1)
EXPONENTIAL = WarmupExponential(peak=1.0, final=0.01, decay_epochs=4, warmup_epochs=1)
MARGIN = LinearRamp(initial=0.0, final=0.2, begin=2, end=4)


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        (Constant(0.5), 0, 0.5),
        (Constant(0.5), 99.9, 0.5),
        # stage 1: five epochs up to 1e-4, then a tenth every five
        (STAGE1, 0, 0.0),
        (STAGE1, 0.01, 2e-7),
        (STAGE1, 2.5, 5e-5),
        (STAGE1, 5, 1e-4),
        (STAGE1, 9.999, 1e-4),
        (STAGE1, 10, 1e-5),
        (STAGE1, 14.999, 1e-5),
        (STAGE1, 15, 1e-6),
        (WarmupStepDecay(1.0, 0, 1, 0.5), 0, 1.0),
        (WarmupStepDecay(1.0, 0, 1, 0.5), 3, 0.125),
        (WarmupStepDecay(1.0, 2, 0.1, 0.5), 2.3, 0.125),  # 0.3 / 0.1 is 2.9999…
        # stages 2 and 3: half a cosine, then constant
        (STAGE2, 0, 1e-5),
        (STAGE2, 0.5, 7.5e-6 + 2.5e-6 * math.sqrt(0.5)),
        (STAGE2, 1, 7.5e-6),
        (STAGE2, 1.5, 7.5e-6 - 2.5e-6 * math.sqrt(0.5)),
        (STAGE2, 2, 5e-6),
        (STAGE2, 4, 5e-6),
        (WARM_COSINE, 0, 0.0),
        (WARM_COSINE, 0.5, 2.0),
        (WARM_COSINE, 1, 4.0),
        (WARM_COSINE, 3, 3.0),
        (WARM_COSINE, 5, 2.0),
        (WARM_COSINE, 50, 2.0),
        # a tenth every two of four epochs, under a warm-up of one
        (EXPONENTIAL, 0, 0.0),
        (EXPONENTIAL, 0.5, 0.5 * 10**-0.25),
        (EXPONENTIAL, 1, 10**-0.5),
        (EXPONENTIAL, 2, 0.1),
        (EXPONENTIAL, 4, 0.01),
        (EXPONENTIAL, 9, 0.01),
        (WarmupExponential(2.0, 2.0, 1), 0, 2.0),
        (MARGIN, 0, 0.0),
        (MARGIN, 2, 0.0),
        (MARGIN, 3, 0.1),
        (MARGIN, 3.5, 0.15),
        (MARGIN, 4, 0.2),
        (MARGIN, 9, 0.2),
        (LinearRamp(1.0, 0.0, 0, 4), 1, 0.75),  # downwards
        (LinearRamp(0.0, 1.0, 2, 2), 1.99, 0.0),  # a jump
        (LinearRamp(0.0, 1.0, 2, 2), 2.01, 1.0),
    ],
)
def test_by_hand(schedule, progress, expected):
    assert schedule(progress) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "until", "steepest"),
    [
        (STAGE1, 10, 2e-5),  # up to its first decay
        (STAGE2, 4, 5e-6 / 2 * math.pi / 2),
        (WARM_COSINE, 8, 4.0),
        (MARGIN, 8, 0.1),
    ],
)
def test_continuous(schedule, until, steepest):
    """Over a thousandth of an epoch never more than the steepest slope."""
    values = [schedule(n / 1000) for n in range(until * 1000)]
    largest = max(abs(after - before) for before, after in pairwise(values))
    assert largest <= steepest / 1000 * (1 + 1e-6)


@pytest.mark.parametrize("schedule", [STAGE1, STAGE2, WARM_COSINE, EXPONENTIAL, MARGIN])
def test_moves_with_every_step_and_not_only_with_epochs(schedule):
    start = 3 if schedule is MARGIN else 0
    values = [schedule(start + step / 100) for step in range(90)]
    assert len(set(values)) == 90


@pytest.mark.parametrize("schedule", [STAGE1, STAGE2, WARM_COSINE, EXPONENTIAL, MARGIN])
def test_remembers_nothing(schedule):
    """The same value in any order, and after a restart."""
    points = [7.3, 0.2, 3.9, 0.2, 11.0, 7.3]
    values = [schedule(point) for point in points]
    again = [pickle.loads(pickle.dumps(schedule))(point) for point in sorted(points)]
    assert sorted(zip(points, values)) == list(zip(sorted(points), again))
    assert all(type(value) is float for value in values)
