"""Figures of spoofing detection against the plain definition and closed forms."""

import numpy as np
import pytest
from scipy.stats import norm

from speechbrain_ext.scoring.detection import (
    Costs,
    detection_figures,
    min_dcf_of,
    words_of,
)
from speechbrain_ext.utils.errors import InputError

FIGURES = ("min_dcf", "actual_dcf", "cllr", "eer")


def plain(scores, is_bonafide, c_miss=1.0, c_fa=10.0, p_spoof=0.05):
    """The evaluation plan, word by word: a threshold at and above every score."""
    bonafide, spoof = scores[is_bonafide], scores[~is_bonafide]
    miss, false_alarm = c_miss * (1 - p_spoof), c_fa * p_spoof

    def rates(threshold):
        return np.mean(bonafide < threshold), np.mean(spoof >= threshold)

    def dcf(threshold):
        p_miss, p_fa = rates(threshold)
        return (miss * p_miss + false_alarm * p_fa) / min(miss, false_alarm)

    thresholds = [*np.unique(scores), np.inf]
    points = [rates(t) for t in thresholds]
    nearest = min(points, key=lambda point: abs(point[0] - point[1]))
    costs = np.mean(np.log2(1 + np.exp(-bonafide)))
    costs += np.mean(np.log2(1 + np.exp(spoof)))
    return {
        "min_dcf": min(map(dcf, thresholds)),
        "actual_dcf": dcf(-np.log(miss / false_alarm)),
        "cllr": costs / 2,
        "eer": sum(nearest) / 2,
    }


def random_scores(size, seed, share=0.2, levels=None):
    random = np.random.default_rng(seed)
    is_bonafide = random.random(size) < share
    is_bonafide[:2] = [True, False]
    scores = random.normal(np.where(is_bonafide, 2, -1.5), 2)
    if levels:
        scores = np.round(scores * levels) / levels
    return scores, is_bonafide


def check(figures, expected, size):
    for name in FIGURES[:3]:
        assert figures[name] == pytest.approx(expected[name], abs=1e-12)
    # between two points the straight line; the plan takes the nearer point's mean
    assert figures["eer_percent"] / 100 == pytest.approx(expected["eer"], abs=size)


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("seed", range(8))
def test_pooled_figures_are_the_plain_definition(seed, levels):
    scores, is_bonafide = random_scores(300, seed, levels=levels)
    found = detection_figures(scores, is_bonafide)["pooled"]
    check(found, plain(scores, is_bonafide), 0.02 if levels is None else 0.1)
    assert found["bonafide"] == is_bonafide.sum()
    assert found["spoof"] == (~is_bonafide).sum()
    assert found["min_cllr"] <= found["cllr"]


def test_other_costs():
    scores, is_bonafide = random_scores(400, 1)
    costs = {"c_miss": 3.0, "c_fa": 2.0, "p_spoof": 0.3}
    found = detection_figures(scores, is_bonafide, costs=Costs(**costs))
    check(found["pooled"], plain(scores, is_bonafide, **costs), 0.02)
    assert found["costs"] == costs


def test_eer_is_within_a_ten_thousandth_of_the_nearest_point():
    scores, is_bonafide = random_scores(10_000, 3)
    order = np.argsort(scores)
    bonafide = is_bonafide[order]
    p_miss = np.cumsum(bonafide) / bonafide.sum()
    p_fa = 1 - np.cumsum(~bonafide) / (~bonafide).sum()
    nearest = np.argmin(np.abs(p_miss - p_fa))
    found = detection_figures(scores, is_bonafide)["pooled"]["eer_percent"] / 100
    assert found == pytest.approx((p_miss + p_fa)[nearest] / 2, abs=1e-4)


def test_closed_form_of_two_gaussians():
    """d' apart, ratios exact: EER Φ(-d'/2), cost at τ, and no loss of calibration."""
    size, distance = 200_001, 2.5
    grid = norm.ppf((np.arange(size) + 0.5) / size)
    # log-likelihood ratios of N(d, 1) against N(0, 1) at x: d x - d² / 2
    llrs = np.concatenate([distance * (grid + d) for d in (distance, 0)])
    llrs -= distance**2 / 2
    is_bonafide = np.repeat([True, False], size)
    found = detection_figures(llrs, is_bonafide)["pooled"]
    threshold = -np.log(1.9)
    at = (threshold + distance**2 / 2) / distance
    cost = 1.9 * norm.cdf(at - distance) + norm.sf(at)
    assert found["eer_percent"] == pytest.approx(
        100 * norm.cdf(-distance / 2), abs=1e-3
    )
    assert found["min_dcf"] == pytest.approx(cost, abs=1e-4)
    assert found["actual_dcf"] == pytest.approx(cost, abs=1e-4)
    assert found["threshold"] == pytest.approx(threshold, abs=0.02)


@pytest.mark.parametrize(
    ("bonafide", "spoof", "expected"),
    [
        ([10, 11], [-10, -9], (0, 0, 0)),  # separated
        ([-9, -10], [9, 10], (1, 2.9, 1)),  # the wrong way round: reject all
        ([0, 0], [0, 0], (1, 1, 0.5)),  # says nothing; accepted, as 0 > -ln 1.9
        ([1, -1], [-2, 0.5], (0.5, 1.9 / 2 + 0.5, 0.5)),  # t = -1: half the spoofs
    ],
)
def test_cases_by_hand(bonafide, spoof, expected):
    scores = np.array([*bonafide, *spoof], dtype=float)
    found = detection_figures(scores, [1, 1, 0, 0])["pooled"]
    seen = [found["min_dcf"], found["actual_dcf"], found["eer_percent"] / 100]
    assert seen == pytest.approx(expected)
    assert min_dcf_of(scores, [1, 1, 0, 0]) == found["min_dcf"]


def test_no_overflow_of_large_ratios():
    found = detection_figures([1e5, -1e5, -1e5, 1e5], [1, 1, 0, 0])["pooled"]
    assert found["cllr"] == pytest.approx(1e5 / np.log(2) / 2)


@pytest.fixture(scope="module")
def conditions():
    """A list with attacks, codecs and speakers; A03 is only heard through C1."""
    scores, is_bonafide = random_scores(3000, 7)
    random = np.random.default_rng(8)
    attacks = random.choice(["A01", "A02"], 3000)
    codecs = random.choice(["-", "C1", "C2"], 3000)
    attacks[(codecs == "C1") & (random.random(3000) < 0.3)] = "A03"
    attacks[is_bonafide] = "-"
    codecs[~is_bonafide & (random.random(3000) < 0.1)] = "C3"  # of no bona fide
    speakers = random.choice([f"E_{n}" for n in range(12)], 3000)
    return scores, is_bonafide, attacks, codecs, speakers


def test_figures_by_attack_and_codec(conditions):
    scores, is_bonafide, attacks, codecs, _ = conditions
    found = detection_figures(scores, is_bonafide, attacks, codecs)
    assert list(found["attacks"]) == ["A01", "A02", "A03"]
    assert list(found["codecs"]) == ["-", "C1", "C2", "C3"]
    for attack, figures in found["attacks"].items():
        part = is_bonafide | (attacks == attack)
        check(figures, plain(scores[part], is_bonafide[part]), 0.02)
        assert figures["bonafide"] == is_bonafide.sum()
    for codec in ("-", "C1", "C2"):
        part = codecs == codec
        check(found["codecs"][codec], plain(scores[part], is_bonafide[part]), 0.02)
        for attack in ("A01", "A02"):
            cell = part & (is_bonafide | (attacks == attack))
            figures = found["attacks_by_codec"][attack][codec]
            check(figures, plain(scores[cell], is_bonafide[cell]), 0.02)
    assert found["attacks_by_codec"]["A03"]["C2"] is None
    lonely = found["codecs"]["C3"]
    assert lonely["bonafide"] == 0
    assert lonely["min_dcf"] is None
    assert not lonely["enough"]
    assert found["attacks_by_codec"]["A01"]["C3"]["eer_percent"] is None


def test_the_order_of_recordings_does_not_matter(conditions):
    scores, *columns, speakers = conditions
    mixed = np.random.default_rng(0).permutation(len(scores))
    once = detection_figures(scores, *columns, speakers, n_resamples=20)
    again = detection_figures(
        *(column[mixed] for column in (scores, *columns, speakers)), n_resamples=20
    )
    assert again["attacks"]["A01"]["min_dcf"] == once["attacks"]["A01"]["min_dcf"]
    assert again["pooled"]["cllr"] == pytest.approx(once["pooled"]["cllr"], abs=1e-12)


def test_intervals_are_those_of_repeated_speakers(conditions):
    """Every resample by hand: the recordings of each speaker, as often as drawn."""
    scores, is_bonafide, *_, speakers = conditions
    found = detection_figures(
        scores, is_bonafide, speakers=speakers, n_resamples=10, seed=4
    )["pooled"]["intervals_95"]
    names, codes = np.unique(speakers, return_inverse=True)
    # speakers are numbered by their first appearance
    random, values = np.random.default_rng(4), []
    by_name = {name: n for n, name in enumerate(words_of(speakers).words)}
    number = np.array([by_name[name] for name in names])[codes]
    for _ in range(10):
        drawn = np.bincount(random.integers(0, len(names), len(names)), minlength=12)
        times = drawn[number]
        values.append(plain(np.repeat(scores, times), np.repeat(is_bonafide, times)))
    for name, digits in (("min_dcf", 1e-9), ("actual_dcf", 1e-9), ("cllr", 1e-9)):
        expected = np.quantile([value[name] for value in values], [0.025, 0.975])
        assert found[name] == pytest.approx(tuple(expected), abs=digits)
    assert found["eer"][0] < found["eer"][1]


def test_intervals_of_conditions_want_three_speakers(conditions):
    scores, is_bonafide, attacks, codecs, speakers = conditions
    few = np.where(codecs == "C1", np.where(is_bonafide, "E_0", "E_1"), speakers)
    found = detection_figures(scores, is_bonafide, attacks, codecs, few, n_resamples=9)
    assert "intervals_95" not in found["codecs"]["C1"]
    low, high = found["codecs"]["C2"]["intervals_95"]["min_dcf"]
    assert low < high
    assert "intervals_95" in found["attacks"]["A01"]
    assert "intervals_95" not in found["attacks_by_codec"]["A01"]["C2"]
    plain = detection_figures(scores, is_bonafide, attacks, codecs, few)
    assert "intervals_95" not in plain["pooled"]


def test_float32_scores():
    scores, is_bonafide = random_scores(500, 2)
    narrow = scores.astype(np.float32)
    found = detection_figures(narrow, is_bonafide)["pooled"]
    check(found, plain(narrow.astype(np.float64), is_bonafide), 0.02)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"scores": [1, np.nan, 0, 2]},
            r"score nan of trial 2 \(1 such\), expected fin",
        ),
        ({"is_bonafide": [1, 1, 1, 1]}, r"4 targets and 0 non-targets, expected at le"),
        ({"is_bonafide": [1, 0, 2, 1]}, r"label 2 of trial 3, expected 0 or 1"),
        ({"attacks": ["A01"]}, r"1 attacks, expected one of each score: 4"),
        ({"costs": Costs(p_spoof=0)}, r"Costs\(.*p_spoof=0\), expected costs above 0"),
        ({"costs": Costs(c_fa=-1)}, r"Costs\(.*c_fa=-1.*\), expected costs above 0"),
    ],
)
def test_bad_input(change, expected):
    given = {"scores": [1.0, 2.0, -1.0, 0.0], "is_bonafide": [1, 1, 0, 0], **change}
    with pytest.raises(InputError, match=expected):
        detection_figures(**given)
