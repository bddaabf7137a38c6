"""Metrics against hand cases, closed forms, golden figures and a plain O(n²) count."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from speechbrain_ext.scoring.metrics import (
    act_dcf,
    actual_dcf,
    cllr,
    equal_error_rate,
    error_rates,
    min_cllr,
    min_dcf,
    roc_convex_hull,
    sort_by_score,
)
from speechbrain_ext.utils.errors import InputError

METRICS = [error_rates, equal_error_rate, min_dcf, actual_dcf, cllr, min_cllr]


def plain_error_rates(scores, labels):
    """The definition, one threshold at a time."""
    targets = [s for s, same in zip(scores, labels) if same]
    others = [s for s, same in zip(scores, labels) if not same]
    thresholds = sorted(set(scores)) + [math.inf]
    fnr = [sum(s < t for s in targets) / len(targets) for t in thresholds]
    fpr = [sum(s >= t for s in others) / len(others) for t in thresholds]
    return thresholds, fnr, fpr


def plain_eer(fnr, fpr):
    """Walk the curve to the segment on which the two rates cross."""
    for i in range(1, len(fnr)):
        if fnr[i] >= fpr[i]:
            before, after = fpr[i - 1] - fnr[i - 1], fnr[i] - fpr[i]
            return (fnr[i - 1] * after + fnr[i] * before) / (before + after)
    raise AssertionError("the last point rejects all")


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


# One row per case: scores of targets, scores of non-targets, EER, threshold.
HAND = [
    # Separated: at t = 3 nothing is missed and nothing falsely accepted.
    ([3, 4], [1, 2], 0.0, 3.0),
    # Inverted: at t = 3 both targets are missed, both others accepted.
    ([1, 2], [3, 4], 1.0, 3.0),
    # t = 2: FNR 0, FPR 1/2; t = 3: 1/2, 1/2 — the crossing is a point.
    ([2, 4], [1, 3], 0.5, 3.0),
    # t = 2: FNR 0, FPR 1/2; t = 3: 1/3, 1/2; t = 4: 1/3, 0. From the second to the
    # third FNR stays at 1/3 and FPR falls through it after a third of the way.
    ([2, 4, 5], [1, 3], 1 / 3, 3 + 1 / 3),
    # The tie at 2 moves a target and a non-target at once: t = 2: FNR 0, FPR 1/2;
    # t = 3: 1/2, 0. The line between them meets FNR = FPR at 1/4, half-way.
    ([2, 3], [1, 2], 0.25, 2.5),
    # All equal: from (0, 1) straight to (1, 0); the threshold stays finite.
    ([7, 7, 7], [7, 7], 0.5, 7.0),
    ([0.5], [0.5], 0.5, 0.5),
    ([1], [0], 0.0, 1.0),
]


@pytest.mark.parametrize(("targets", "others", "eer", "threshold"), HAND)
def test_eer_by_hand(targets, others, eer, threshold):
    result = equal_error_rate(targets + others, [1] * len(targets) + [0] * len(others))
    assert result == pytest.approx((eer, threshold), abs=1e-12)
    assert result[0] == result.eer


@pytest.mark.parametrize(
    ("targets", "others", "options", "expected"),
    [
        # P = 1/2: cost = FNR + FPR after normalisation.
        # t = 2: 0 + 1/2; t = 3: 1/3 + 1/2; t = 4: 1/3 + 0 <- best.
        ([2, 4, 5], [1, 3], {"p_target": 0.5}, (1 / 3, 4.0, 1 / 3, 0.0)),
        # P = 0.01: cost = FNR + 99 FPR: again t = 4.
        ([2, 4, 5], [1, 3], {}, (1 / 3, 4.0, 1 / 3, 0.0)),
        # P = 0.99: cost = 99 FNR + FPR: t = 2 gives 0 + 1/2.
        ([2, 4, 5], [1, 3], {"p_target": 0.99}, (0.5, 2.0, 0.0, 0.5)),
        # P = 1/2, C_fa = 1/10: cost = (FNR + FPR / 10) / (1/10): t = 2 gives 1/2.
        ([2, 4, 5], [1, 3], {"p_target": 0.5, "c_fa": 0.1}, (0.5, 2.0, 0.0, 0.5)),
        # P = 1/2, C_miss = 1/10: cost = (FNR / 10 + FPR) / (1/10): t = 4: 1/3.
        ([2, 4, 5], [1, 3], {"p_target": 0.5, "c_miss": 0.1}, (1 / 3, 4.0, 1 / 3, 0)),
        ([3, 4], [1, 2], {}, (0.0, 3.0, 0.0, 0.0)),  # separated
        ([1, 2], [3, 4], {}, (1.0, math.inf, 1.0, 0.0)),  # inverted: reject all
        ([1, 2], [3, 4], {"p_target": 0.99}, (1.0, 1.0, 0.0, 1.0)),  # accept all
        ([7, 7], [7], {}, (1.0, math.inf, 1.0, 0.0)),  # all equal
    ],
)
def test_min_dcf_by_hand(targets, others, options, expected):
    labels = [1] * len(targets) + [0] * len(others)
    result = min_dcf(targets + others, labels, **options)
    assert result == pytest.approx(expected, abs=1e-12)
    assert result[0] == result.dcf


def test_cllr_by_hand():
    # No information costs one bit.
    assert cllr([0, 0, 0], [1, 0, 0]) == pytest.approx((1, 1, 1))
    # A ratio of 3 (odds 3:1): log2(1 + 1/3) for the target, log2(1 + 3) = 2 for the
    # non-target it misleads on.
    expected = (math.log2(4 / 3) + 2) / 2
    assert cllr([math.log(3)] * 2, [1, 0])[0] == pytest.approx(expected)
    # Perfect ratios cost nothing, perfectly wrong ones cost their own size in bits;
    # e^1000 would overflow.
    assert cllr([1000, -1000], [1, 0]).cllr == 0
    assert cllr([-1000, 1000], [1, 0]).cllr == pytest.approx(1000 / math.log(2))


def test_actual_dcf_by_hand():
    # P = 0.01, unit costs: accept from ln 99 = 4.595 on.
    llrs, labels = [5.0, 4.6, 4.5, 4.6, -1.0], [1, 1, 1, 0, 0]
    # One target of three is missed, one non-target of two accepted: 1/3 + 99/2.
    expected = (1 / 3 + 99 / 2, math.log(99), 1 / 3, 0.5)
    assert actual_dcf(llrs, labels) == act_dcf(llrs, labels) == pytest.approx(expected)
    # Even prior, a miss ten times as dear: accept from -ln 10 = -2.3 on, all of them.
    # Cost FPR / 2, the blind decision "accept all" costs the same.
    assert actual_dcf(llrs, labels, 0.5, c_miss=10).dcf == pytest.approx(1)
    # A ratio at the threshold is accepted.
    assert actual_dcf([0.0, -0.1], [1, 0], p_target=0.5).dcf == 0
    assert actual_dcf([0.1, 0.0], [1, 0], p_target=0.5).dcf == 1


@pytest.mark.parametrize(
    ("targets", "others", "expected"),
    [
        ([3, 4], [1, 2], (0, 0, 0)),  # separated: nothing is left to lose
        ([7, 7, 7], [7], (1, 1, 1)),  # all equal: no information, whatever the counts
        ([1, 2], [3, 4], (1, 1, 1)),  # inverted: the best rising map is constant
        # 1 | 2 3 4 | 5: the middle pool holds half of the targets and two thirds of the
        # non-targets: ratio 3/4, log2(1 + 4/3) and log2(1 + 3/4); the others are pure.
        (
            [2, 5],
            [1, 3, 4],
            (
                math.log2(7 / 3) / 4 + math.log2(7 / 4) / 3,
                math.log2(7 / 3) / 2,
                math.log2(7 / 4) * 2 / 3,
            ),
        ),
        # Tie at 2: pool of a target (share 1/2) and a non-target (share 1/2): ratio 1.
        # Targets: half of them at no cost, half at 1 bit; so too the non-targets.
        ([2, 3], [1, 2], (0.5, 0.5, 0.5)),
    ],
)
def test_min_cllr_by_hand(targets, others, expected):
    labels = [1] * len(targets) + [0] * len(others)
    assert min_cllr(targets + others, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_min_cllr_is_the_least(seed):
    """No rising map has a lower Cllr; a plain pooling of neighbours has the same."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, 15, 80) / 4
    labels = random.random(80) < expit(scores - 2)
    least = min_cllr(scores, labels).cllr
    for scale in (0.3, 1, 3):
        for shift in (-1, 0, 1):
            assert least <= cllr(scale * (scores - 2) + shift, labels).cllr + 1e-12
    pooled = plain_pools(scores, labels)
    clipped = np.clip([pooled[score] for score in scores], -60, 60)
    assert least == pytest.approx(cllr(clipped, labels).cllr, abs=1e-9)


def plain_pools(scores, labels):
    """Score → log-likelihood ratio, pooling neighbours until the ratios rise."""
    pools = [
        [[s], sum(labels[scores == s]), sum(~labels[scores == s])]
        for s in sorted(set(scores))
    ]
    place = 0
    while place + 1 < len(pools):
        (a, t, n), (b, u, m) = pools[place : place + 2]
        if t * m >= u * n:  # the ratio of the first is not below that of the second
            pools[place : place + 2] = [[a + b, t + u, n + m]]
            place = max(place - 1, 0)
        else:
            place += 1
    with np.errstate(divide="ignore"):
        ratio = {
            s: np.log(t / sum(labels)) - np.log(n / sum(~labels))
            for pool, t, n in pools
            for s in pool
        }
    return ratio


@pytest.mark.parametrize("seed", range(150))
def test_fast_path_equals_plain_path(seed):
    random = np.random.default_rng(seed)
    size, levels = random.integers(2, 60), random.integers(1, 40)
    scores = random.integers(0, levels, size).astype(random.choice(["f4", "f8", "i8"]))
    scores = scores / 7 if seed % 2 else scores  # many ties, in every number type
    labels = random.integers(0, 2, size)
    labels[:2] = [0, 1]
    thresholds, fnr, fpr = plain_error_rates(scores.tolist(), labels.tolist())
    rates = error_rates(scores, labels)
    assert rates.thresholds.tolist() == thresholds
    assert rates.fnr == pytest.approx(fnr, abs=1e-12)
    assert rates.fpr == pytest.approx(fpr, abs=1e-12)
    assert equal_error_rate(scores, labels).eer == pytest.approx(plain_eer(fnr, fpr))
    for p in (0.01, 0.05, 0.5, 0.9):
        cost = min(p * m + (1 - p) * f for m, f in zip(fnr, fpr)) / min(p, 1 - p)
        best = min_dcf(scores, labels, p_target=p)
        assert best.dcf == pytest.approx(cost)
        again = scores[labels == 1] < best.threshold
        assert again.mean() == pytest.approx(best.fnr)


@pytest.mark.parametrize("seed", range(20))
def test_order_and_monotone_maps_change_nothing(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(-20, 20, 300) / 4  # exact in every map below
    labels = random.integers(0, 2, 300)
    eer, dcf = equal_error_rate(scores, labels).eer, min_dcf(scores, labels).dcf
    least = min_cllr(scores, labels)
    order = random.permutation(300)
    maps = [lambda s: 8 * s - 3, np.exp, np.arctan, lambda s: s**3]
    for again in [scores[order]] + [f(scores)[order] for f in maps]:
        assert equal_error_rate(again, labels[order]).eer == eer
        assert min_dcf(again, labels[order]).dcf == dcf
        assert min_cllr(again, labels[order]) == least
    # Swapped roles: a miss becomes a false alarm.
    assert equal_error_rate(-scores, 1 - labels).eer == pytest.approx(eer, abs=1e-12)


@pytest.mark.parametrize("distance", [0.5, 2.0, 4.0])
def test_gaussian_closed_form(distance):
    """Unit-variance Gaussians a distance d' apart: EER = Φ(-d'/2)."""
    random = np.random.default_rng(7)
    size = 400_000
    labels = np.arange(2 * size) % 2
    scores = random.standard_normal(2 * size) + distance * labels
    eer, threshold = equal_error_rate(scores, labels)
    expected = norm.cdf(-distance / 2)
    # FNR and FPR each scatter by sqrt(p (1 - p) / size); the EER by less.
    assert eer == pytest.approx(expected, abs=4 * math.sqrt(expected / size))
    assert threshold == pytest.approx(distance / 2, abs=0.02)
    # min over t of Φ(t - d') + 99 Φ(-t) on a grid.
    grid = np.linspace(-2, 10, 20_001)
    best = np.min(norm.cdf(grid - distance) + 99 * norm.sf(grid))
    assert min_dcf(scores, labels).dcf == pytest.approx(best, abs=0.01)
    # The exact log-likelihood ratio d' s - d'²/2 costs less than any scaled one.
    llr = distance * scores - distance**2 / 2
    exact = cllr(llr, labels).cllr
    assert exact < min(cllr(0.7 * llr, labels).cllr, cllr(1.4 * llr, labels).cllr)
    assert exact < 1
    # Nothing is lost in its calibration: minCllr and minDCF are just below (pooling
    # and choosing the threshold on the same trials gain a little).
    assert exact - 2e-3 < min_cllr(scores, labels).cllr < exact
    least = min_dcf(llr, labels, p_target=0.05).dcf
    actual = actual_dcf(llr, labels, p_target=0.05).dcf
    assert least <= actual < least + 0.01
    # Twice the ratio is as good at telling apart, and misleads.
    assert min_cllr(2 * llr, labels) == min_cllr(llr, labels)
    assert actual_dcf(2 * llr, labels, p_target=0.05).dcf > actual + 0.01


def test_golden_figures():
    with np.load(Path(__file__).with_name("golden_scoring.npz")) as golden:
        _compare(golden["raw"], golden["labels"], golden["raw_eer_dcf01_dcf05"])


@pytest.mark.parametrize(
    ("scores", "figures"),
    [("raw", "raw"), ("centred", "centred"), ("asnorm_top50", "asnorm")],
)
def test_all_golden_figures(shared, scores, figures):
    with np.load(shared / "golden" / "scoring" / "scores.npz") as golden:
        expected = golden[f"{figures}_eer_dcf01_dcf05"]
        _compare(golden[scores], golden["labels"], expected)


def _compare(scores, labels, expected):
    values = (
        equal_error_rate(scores, labels).eer,
        min_dcf(scores, labels, p_target=0.01).dcf,
        min_dcf(scores, labels, p_target=0.05).dcf,
    )
    assert values == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "0 scores"),
        ([1, 2, 3], [0, 1], r"shape \[3\] and labels of shape \[2\]"),
        ([[1, 2]], [[0, 1]], r"shape \[1, 2\]"),
        (0.5, 1, r"shape \[\]"),
        ([1, 2], [1, 1], "2 targets and 0 non-targets"),
        ([1, 2], [0, 0], "0 targets and 2 non-targets"),
        ([1, math.nan, math.nan], [0, 1, 1], r"score nan of trial 2 \(2 such\)"),
        ([1, -math.inf], [0, 1], "score -inf of trial 2"),
        ([1, 2, 3], [0, 1, 2], "label 2 of trial 3, expected 0 or 1"),
        ([1, 2], [-1, 1], "label -1 of trial 1"),
        ([1, 2, 3], [0, 1, 0.5], "label 0.5 of trial 3"),
        ([1, 2], [0, math.nan], "label nan of trial 2"),
        ([1, 2], ["0", "1"], "label 0 of trial 1"),
        (["a", "b"], [0, 1], "type <U1, expected real numbers"),
        ([1j, 2j], [0, 1], "type complex128"),
    ],
)
def test_bad_input(metric, scores, labels, message):
    with pytest.raises(InputError, match=message):
        metric(scores, labels)


@pytest.mark.parametrize(
    "options",
    [{"p_target": 0}, {"p_target": 1}, {"p_target": math.nan}, {"c_miss": 0}]
    + [{"c_fa": -1}, {"c_fa": math.inf}],
)
@pytest.mark.parametrize("metric", [min_dcf, actual_dcf])
def test_bad_prior_or_cost(metric, options):
    with pytest.raises(InputError, match=next(iter(options))):
        metric([1, 2], [0, 1], **options)


def test_results_are_plain_floats():
    """They are stored in checkpoints, which accept plain Python numbers only."""
    for metric in METRICS[1:]:
        assert {type(value) for value in metric([0.1, 0.2, 0.3], [0, 1, 0])} == {float}


def test_inputs_are_left_alone():
    scores, labels = np.array([3.0, 1.0, 2.0]), np.array([1, 0, 1])
    for metric in METRICS:
        metric(scores, labels)
    assert scores.tolist() == [3, 1, 2]
    assert labels.tolist() == [1, 0, 1]


def test_full_size():
    random = np.random.default_rng(0)
    labels = (np.arange(579_818) % 2).astype(np.int8)
    scores = (random.standard_normal(len(labels)) + 3 * labels).astype(np.float32)
    start = time.process_time()
    eer = equal_error_rate(scores, labels).eer
    seconds = time.process_time() - start
    assert eer == pytest.approx(norm.cdf(-1.5), abs=0.001)
    assert seconds < 2, f"{seconds:.2f} s"  # about 0.1 s on an idle core
