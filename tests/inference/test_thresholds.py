"""Thresholds: hand cases, the whole curve as reference, round trips, bad files."""

import json
import logging

import numpy as np
import pytest

from speechbrain_ext.inference.thresholds import (
    Thresholds,
    load_thresholds,
    save_thresholds,
)
from speechbrain_ext.scoring.metrics import equal_error_rate, error_rates
from speechbrain_ext.utils.errors import InputError


def trials(n_target=2000, n_nontarget=30_000, seed=0):
    """Scores of a model with about 7 % EER, and labels."""
    random = np.random.default_rng(seed)
    scores = np.concatenate(
        [random.normal(3, 1, n_target), random.normal(0, 1, n_nontarget)]
    )
    return scores, np.arange(len(scores)) < n_target


def by_hand():
    """Non-targets 1 2 3 4 5, targets 4.5 6."""
    return Thresholds.from_scores([1, 2, 3, 4, 5, 4.5, 6], [0, 0, 0, 0, 0, 1, 1])


# ---- thresholds of a rate ------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "threshold", "found", "missed"),
    [
        (0.2, 4.5, 0.2, 0.0),
        (0.39, 4.5, 0.2, 0.0),  # what was not measured: the stricter one
        (0.4, 4.0, 0.4, 0.0),
        (0.99, 2.0, 0.8, 0.0),
    ],
)
def test_a_rate_by_hand(wanted, threshold, found, missed):
    point = by_hand().at_false_accept_rate(wanted)
    assert point == pytest.approx((threshold, found, missed), abs=1e-12)


def test_the_threshold_accepts_no_more_than_promised():
    scores, labels = trials()
    thresholds = Thresholds.from_scores(scores, labels)
    nontargets = scores[~labels]
    for wanted in (1 / 30_000, 1e-3, 0.0123, 0.1, 0.5, 0.97):
        point = thresholds.at_false_accept_rate(wanted)
        accepted = np.mean(nontargets >= point.threshold)
        assert accepted == pytest.approx(point.false_accept_rate, abs=1e-12)
        assert accepted <= wanted * (1 + 1e-9)
        missed = np.mean(scores[labels] < point.threshold)
        assert missed == pytest.approx(point.miss_rate, abs=1e-12)


def test_low_rates_are_as_exact_as_the_whole_curve():
    scores, labels = trials()
    thresholds = Thresholds.from_scores(scores, labels)
    whole = error_rates(scores, labels)
    for count in range(1, 101):
        row = np.flatnonzero(whole.fpr <= (count + 0.5) / 30_000)[0]
        point = thresholds.at_false_accept_rate((count + 0.5) / 30_000)
        assert point == (whole.thresholds[row], whole.fpr[row], whole.fnr[row])


def test_other_rates_come_within_three_percent():
    scores, labels = trials()
    thresholds = Thresholds.from_scores(scores, labels)
    for wanted in (0.004, 0.03, 0.2, 0.8):
        found = thresholds.at_false_accept_rate(wanted).false_accept_rate
        assert 0.97 * wanted < found <= wanted


def test_a_rate_that_was_not_measured_is_refused():
    thresholds = Thresholds.from_scores(*trials())
    with pytest.raises(
        InputError, match=r"1e-05, expected at least 3\.3e-05: .* 30000 non-target"
    ):
        thresholds.at_false_accept_rate(1e-5)


def test_few_false_accepts_are_a_warning_with_both_numbers(caplog):
    thresholds = Thresholds.from_scores(*trials())
    with caplog.at_level(logging.WARNING):
        thresholds.at_false_accept_rate(0.001)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        thresholds.at_false_accept_rate(0.0009)
    (record,) = caplog.records
    assert "27 false accepts are expected among the 30000" in record.getMessage()
    assert "fewer than 30" in record.getMessage()


def test_non_targets_that_share_the_highest_score_allow_no_low_rate():
    thresholds = Thresholds.from_scores([0, 1, 9, 9, 9, 9], [0, 0, 0, 0, 1, 1])
    assert thresholds.at_false_accept_rate(0.5) == (9.0, 0.5, 0.0)
    with pytest.raises(InputError, match=r"0\.25, expected at least 0\.5: so many"):
        thresholds.at_false_accept_rate(0.25)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan"), "0.1", True, None])
def test_a_rate_is_a_fraction(rate):
    with pytest.raises(InputError, match="false_accept_rate is"):
        by_hand().at_false_accept_rate(rate)


# ---- the default, and rates of a threshold -------------------------------------------


def test_the_default_is_that_of_equal_errors():
    scores, labels = trials()
    thresholds = Thresholds.from_scores(scores, labels)
    assert (thresholds.eer, thresholds.eer_threshold) == equal_error_rate(
        scores, labels
    )
    assert (thresholds.n_target, thresholds.n_nontarget) == (2000, 30_000)


def test_rates_of_a_threshold_by_hand():
    thresholds = by_hand()
    assert thresholds.rates_at(4.5) == pytest.approx((4.5, 0.2, 0.0))
    assert thresholds.rates_at(4.7) == pytest.approx((4.7, 0.2, 0.5))
    assert thresholds.rates_at(-7) == (-7.0, 1.0, 0.0)
    assert thresholds.rates_at(8) == (8.0, 0.0, 1.0)


def test_rates_of_a_threshold_are_never_too_good():
    scores, labels = trials()
    thresholds = Thresholds.from_scores(scores, labels)
    for threshold in np.linspace(-4, 7, 57):
        point = thresholds.rates_at(threshold)
        accepted = np.mean(scores[~labels] >= threshold)
        missed = np.mean(scores[labels] < threshold)
        assert accepted - 1e-12 <= point.false_accept_rate <= 1.1 * accepted + 1e-3
        assert missed - 1e-12 <= point.miss_rate <= 1.1 * missed + 0.02


# ---- files ---------------------------------------------------------------------------


def test_a_file_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "thresholds.json"
    kept = {"cosine": Thresholds.from_scores(*trials()), "llr": by_hand()}
    save_thresholds(path, kept)
    found = load_thresholds(path)
    assert list(found) == list(kept)
    for kind, thresholds in kept.items():
        assert found[kind].to_dict() == thresholds.to_dict()
        assert found[kind].at_false_accept_rate(0.4) == thresholds.at_false_accept_rate(
            0.4
        )


def test_the_file_stays_small(tmp_path):
    # all targets above all non-targets, and the other way round: no end is thinned
    path = tmp_path / "thresholds.json"
    labels = np.arange(200_000) % 2
    for scores in (
        np.arange(200_000) + 1e6 * labels,
        np.arange(200_000) - 1e6 * labels,
    ):
        save_thresholds(path, {"cosine": Thresholds.from_scores(scores, labels)})
        assert path.stat().st_size < 64 * 1024


def saved(tmp_path):
    path = tmp_path / "thresholds.json"
    save_thresholds(path, {"cosine": by_hand()})
    return path, json.loads(path.read_text())


def test_only_known_kinds_of_score(tmp_path):
    path, content = saved(tmp_path)
    with pytest.raises(InputError, match=r"of plda, expected some of cosine, as_norm"):
        save_thresholds(path, {"plda": by_hand()})
    with pytest.raises(InputError, match="of nothing, expected some of"):
        save_thresholds(path, {})
    for scores, culprit in (
        ({}, "thresholds of nothing"),
        ({"plda": {}}, r"scores\.plda, expected nothing but as_norm, cosine, llr"),
        (None, "scores is None"),
        ([1], r"scores is \[1\]"),
    ):
        path.write_text(json.dumps({**content, "scores": scores}))
        with pytest.raises(InputError, match=rf"thresholds\.json: {culprit}"):
            load_thresholds(path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"format": 1}']
)
def test_another_file_is_one_line(tmp_path, text):
    path = tmp_path / "thresholds.json"
    path.write_bytes(text)
    with pytest.raises(
        InputError, match=r"thresholds\.json: (cannot|format|no|all of it)"
    ) as caught:
        load_thresholds(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"No such file .*, expected speechbrain_ext"):
        load_thresholds(tmp_path / "thresholds.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"eer": None}, "eer is None, expected a number"),
        ({"eer": float("inf")}, "Infinity"),
        ({"n_target": 2.0}, r"n_target is 2\.0, expected a whole number"),
        ({"n_nontarget": 0}, "no target or no non-target trials"),
        ({"more": 1}, "more, expected nothing but eer"),
        ({"thresholds": "x"}, "thresholds is 'x', expected a list"),
        ({"thresholds": []}, "0 thresholds, 6 false accept rates"),
        ({"thresholds": [1, None]}, r"thresholds\[1\] is None, expected a number"),
        ({"thresholds": [1, float("nan")]}, "NaN"),
        ({"miss_rates": [0.5]}, "and 1 miss rates, expected as many"),
        ({"miss_rates": [0, 0, 0, 0, 0, 1.5]}, "a rate outside 0 to 1"),
        ({"miss_rates": [0, 0, 0, 1, 0, 0]}, "points out of order"),
        ({"thresholds": [1, 2, 3, 4, 4, 6]}, "points out of order"),
        ({"false_accept_rates": [0, 0, 0, 0, 0, 1]}, "points out of order"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path, change, expected):
    path, content = saved(tmp_path)
    content["scores"]["cosine"].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"thresholds\.json: .*{expected}"):
        load_thresholds(path)
