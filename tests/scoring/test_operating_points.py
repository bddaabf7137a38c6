"""Error rates and the convex hull against hand cases and their definitions."""

import math

import numpy as np
import pytest

from speechbrain_ext.scoring.metrics import (
    error_rates,
    roc_convex_hull,
    sort_by_score,
)


def test_error_rates_by_hand():
    thresholds, fnr, fpr = error_rates([2, 3, 1, 2], [1, 1, 0, 0])
    assert thresholds.tolist() == [1, 2, 3, math.inf]
    assert fnr.tolist() == [0, 0, 0.5, 1]
    assert fpr.tolist() == [1, 0.5, 0, 0]


def test_order_and_steps_by_hand():
    order, below = sort_by_score(np.array([5.0, 1.0, 5.0, 2.0]))
    assert order[:2].tolist() == [1, 3]
    assert sorted(order[2:].tolist()) == [0, 2]
    assert below.tolist() == [0, 1, 2, 4]


def test_hull_by_hand():
    # Ascending: n n t n t t. The pair "t n" falls and is pooled.
    hull = roc_convex_hull([1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 1, 1])
    # All are accepted, from 3 on, from 5 on, none: both sides of the pool.
    points = list(zip(*hull))
    assert (1.0, 0.0, 1.0) in points
    for corner in [(3.0, 0.0, 1 / 3), (5.0, 1 / 3, 0.0), (math.inf, 1.0, 0.0)]:
        assert any(corner == pytest.approx(point) for point in points)
    assert 4.0 not in hull.thresholds


@pytest.mark.parametrize("seed", range(40))
def test_hull_is_the_lower_convex_hull(seed):
    """Convex, made of operating points, and below all others at every prior."""
    random = np.random.default_rng(seed)
    size, levels = random.integers(2, 80), random.integers(1, 60)
    scores, labels = random.integers(0, levels, size), random.integers(0, 2, size)
    labels[:2] = [0, 1]
    rates, hull = error_rates(scores, labels), roc_convex_hull(scores, labels)
    assert set(zip(*hull)) <= set(zip(*rates))
    assert (hull.fnr[0], hull.fpr[0]) == (0, 1)
    assert (hull.fnr[-1], hull.fpr[-1]) == (1, 0)
    across, down = np.diff(hull.fnr), -np.diff(hull.fpr)
    turn = down[:-1] * across[1:] - down[1:] * across[:-1]
    assert turn.min(initial=0) >= -1e-12
    for weight in np.linspace(0, 1, 21):
        cost = [weight * r.fnr + (1 - weight) * r.fpr for r in (rates, hull)]
        assert cost[1].min() == pytest.approx(cost[0].min(), abs=1e-12)
