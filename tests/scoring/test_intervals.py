"""Bootstrap over speakers: weighted metrics are those of repeated trials."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from speechbrain_ext.scoring.intervals import (
    WeightedMetrics,
    bootstrap_intervals,
    rate_intervals,
)
from speechbrain_ext.scoring.metrics import cllr, equal_error_rate, min_dcf
from speechbrain_ext.utils.errors import InputError

NAMES = ["eer", "min_dcf_0.01", "min_dcf_0.05", "cllr"]


def plain(scores, labels):
    return {
        "eer": equal_error_rate(scores, labels).eer,
        "min_dcf_0.01": min_dcf(scores, labels, p_target=0.01).dcf,
        "min_dcf_0.05": min_dcf(scores, labels, p_target=0.05).dcf,
        "cllr": cllr(scores, labels).cllr,
    }


def random_trials(size, n_speakers, seed, levels=None):
    """Scores, labels, and the speakers of both sides."""
    random = np.random.default_rng(seed)
    labels = (random.random(size) < 0.4).astype(np.int8)
    labels[:2] = [0, 1]
    enrol = random.integers(0, n_speakers, size)
    others = (enrol + random.integers(1, n_speakers, size)) % n_speakers
    test = np.where(labels, enrol, others)
    scores = random.standard_normal(size) + 2 * labels
    if levels:
        scores = np.round(scores * levels) / levels
    return scores, labels, enrol, test


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("seed", range(10))
def test_every_speaker_once_is_the_plain_metric(seed, levels):
    data = random_trials(500, 20, seed, levels)
    value = WeightedMetrics(*data)(np.ones(20, dtype=int))
    assert list(value) == NAMES
    assert value == pytest.approx(plain(*data[:2]), abs=1e-13)
    assert {type(figure) for figure in value.values()} == {float}


@pytest.mark.parametrize("levels", [None, 2, 8])
@pytest.mark.parametrize("seed", range(20))
def test_weights_are_repetitions(seed, levels):
    """A trial of weight 6 counts as six trials do."""
    scores, labels, enrol, test = random_trials(300, 8, seed, levels)
    counts = np.random.default_rng(seed).multinomial(8, [1 / 8] * 8)
    weights = np.where(labels, counts[enrol], counts[enrol] * counts[test])
    value = WeightedMetrics(scores, labels, enrol, test)(counts)
    repeated = np.repeat(scores, weights), np.repeat(labels, weights)
    assert value == pytest.approx(plain(*repeated), abs=1e-13)


def test_closed_form():
    """One target of 0 or 1 bit per speaker, free non-targets: ½ Binomial(S, p) / S."""
    size = 1000
    wrong = np.arange(size) < 300
    speaker = np.arange(size)
    scores = np.concatenate((np.where(wrong, 0.0, 1000.0), np.full(size, -1000.0)))
    labels = np.repeat([1, 0], size)
    enrol = np.concatenate((speaker, speaker))
    test = np.concatenate((speaker, (speaker + 1) % size))
    low, high = bootstrap_intervals(scores, labels, enrol, test, 4000)["cllr"]
    expected = binom.ppf([0.025, 0.975], size, 0.3) / size / 2
    # Quantiles of 4,000 draws deviate by 0.7 steps of 1 / 2S; those at 5 % are 4.6 off.
    assert (low, high) == pytest.approx(expected, abs=2.1 / (2 * size))


def test_width_is_that_of_other_speakers():
    """Scores that hang on the speakers: the deviation over fresh speakers is met.

    Resampling trials would find 0.010 in place of 0.023.
    """

    def sample(random, n=40, targets=10):
        own, easy = random.normal(0, 0.7, n), random.normal(0, 0.7, n)
        a, b = np.triu_indices(n, 1)
        same = np.repeat(np.arange(n), targets)
        scores = np.concatenate((3 + easy[same], own[a] + own[b]))
        scores += random.standard_normal(len(scores))
        labels = np.repeat([1, 0], [len(same), len(a)])
        return (
            scores,
            labels,
            np.concatenate((same, a)),
            np.concatenate((same, b)),
        )

    random = np.random.default_rng(0)
    truth = [equal_error_rate(*sample(random)[:2]).eer for _ in range(300)]
    widths = []
    for seed in range(10):
        low, high = bootstrap_intervals(*sample(random), 100, seed)["eer"]
        widths.append((high - low) / (2 * 1.96))
    assert np.mean(widths) == pytest.approx(np.std(truth), rel=0.2)


def test_the_same_speakers_again_tell_nothing_new():
    """Ten times the trials of the same speakers: the same intervals."""
    data = random_trials(400, 15, 0)
    once = bootstrap_intervals(*data, n_resamples=50)
    ten = bootstrap_intervals(*(np.tile(x, 10) for x in data), n_resamples=50)
    for name in NAMES:
        assert ten[name] == pytest.approx(once[name], abs=1e-12)


def test_neither_order_nor_numbering_matters():
    scores, labels, enrol, test = random_trials(400, 15, 1)
    once = bootstrap_intervals(scores, labels, enrol, test, n_resamples=50)
    order = np.random.default_rng(0).permutation(400)
    shuffled = [x[order] for x in (scores, labels, 1000 + 7 * enrol, 1000 + 7 * test)]
    again = bootstrap_intervals(*shuffled, n_resamples=50)
    swapped = bootstrap_intervals(scores, labels, test, enrol, n_resamples=50)
    for name in NAMES:
        assert again[name] == pytest.approx(once[name], abs=1e-12)
        assert swapped[name] == pytest.approx(once[name], abs=1e-12)


def test_intervals_surround_the_figure():
    data = random_trials(3000, 50, 2)
    narrow = bootstrap_intervals(*data, level=0.5)
    wide = bootstrap_intervals(*data)
    for name, value in plain(*data[:2]).items():
        assert wide[name][0] < value < wide[name][1]
        assert wide[name][0] < narrow[name][0] < narrow[name][1] < wide[name][1]
        assert {type(bound) for bound in wide[name]} == {float}
    assert bootstrap_intervals(*data, seed=1) != wide
    assert bootstrap_intervals(*data) == wide


def test_resamples_without_a_class_are_drawn_again():
    scores, labels = [2.0, 1.0, 0.0], [1, 0, 0]
    data = scores, labels, [4, 4, 5], [4, 5, 6]
    metrics = WeightedMetrics(*data)
    assert metrics(np.array([0, 2, 1])) is None  # no target
    assert metrics(np.array([3, 0, 0])) is None  # no non-target
    value = metrics(np.array([2, 1, 0]))
    assert value == pytest.approx(plain(scores[:2], labels[:2]))
    intervals = bootstrap_intervals(*data, n_resamples=20)
    assert intervals["eer"] == (0, 0)
    assert np.isfinite(intervals["cllr"]).all()


def test_equal_scores():
    _, labels, enrol, test = random_trials(100, 10, 0)
    intervals = bootstrap_intervals(np.zeros(100), labels, enrol, test)
    assert intervals == dict.fromkeys(NAMES, (1.0, 1.0)) | {"eer": (0.5, 0.5)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1.0, math.nan, 0.0]}, "score nan of trial 2"),
        ({"labels": [1, 1, 1]}, "3 targets and 0 non-targets"),
        ({"enrol": [1, 1]}, r"enrolment speakers of shape \[2\]"),
        ({"test": [1.0, 2.0, 3.0]}, "test speakers of .* type float64"),
        ({"test": ["a", "b", "c"]}, "type <U1, expected"),
        ({"test": [2, 2, 3]}, r"trial 1 has label 1 and speakers 1 and 2 \(1 such\)"),
        ({"test": [1, 1, 3]}, "trial 2 has label 0 and speakers 1 and 1"),
        ({"test": [1, 2, 2]}, "2 speakers, expected at least 3"),
        ({"n_resamples": 1}, "n_resamples is 1"),
        ({"level": 1.0}, "level is 1.0"),
        ({"level": math.nan}, "level is nan"),
    ],
)
def test_refused(change, message):
    given = {"scores": [2.0, 1.0, 0.0], "labels": [1, 0, 0]}
    given |= {"enrol": [1, 1, 1], "test": [1, 2, 3]} | change
    data = [given.pop(key) for key in ("scores", "labels", "enrol", "test")]
    with pytest.raises(InputError, match=message):
        bootstrap_intervals(*data, **given)


def test_intervals_of_rates_by_repeated_trials():
    """Every resample by hand, a trial as often as its speakers were drawn."""
    scores, labels, enrol, test = random_trials(300, 12, 0)
    thresholds = [0.5, 1.5]
    found = rate_intervals(scores, labels, enrol, test, thresholds, n_resamples=50)
    random, rates = np.random.default_rng(0), []
    for _ in range(50):
        counts = np.bincount(random.integers(0, 12, 12), minlength=12)
        times = np.where(labels, counts[enrol], counts[enrol] * counts[test])
        many, same = np.repeat(scores, times), np.repeat(labels, times) == 1
        rates.append(
            [
                [np.mean(many[~same] >= t) for t in thresholds],
                [np.mean(many[same] < t) for t in thresholds],
            ]
        )
    expected = np.quantile(rates, [0.025, 0.975], axis=0)  # [2, kind, P]
    for kind in range(2):
        np.testing.assert_allclose(found[kind], expected[:, kind].T, atol=1e-12)
        plain = np.mean(
            scores[labels == 0, None] >= thresholds
            if kind == 0
            else scores[labels == 1, None] < thresholds,
            axis=0,
        )
        assert (found[kind][:, 0] <= plain).all()
        assert (plain <= found[kind][:, 1]).all()


def test_rates_of_two_speakers_have_no_interval():
    with pytest.raises(InputError, match="2 speakers, expected at least 3"):
        rate_intervals([0.0, 1.0], [0, 1], [0, 1], [1, 1], [0.5])
