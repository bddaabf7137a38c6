"""Calibration: closed forms, files, and what it must leave alone."""

import json
import math
import os

import numpy as np
import pytest
from scipy.special import logit

from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.calibration.quality import quality_features
from speechbrain_ext.scoring.metrics import (
    actual_dcf,
    cllr,
    equal_error_rate,
    min_cllr,
    min_dcf,
)
from speechbrain_ext.utils.errors import InputError

OBJECTIVES = ["cllr", "cross_entropy"]


def gaussian(size, distance=3.0, target_share=0.5, seed=0):
    """Scores [size, 1] and labels whose exact ratio is d' s - d'²/2."""
    random = np.random.default_rng(seed)
    labels = random.random(size) < target_share
    return (random.standard_normal(size) + distance * labels)[:, None], labels


@pytest.mark.parametrize("target_share", [0.5, 0.05])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gaussian_closed_form(objective, target_share):
    """Slope d', offset -d'²/2: no prior is left in it, whatever the mixture."""
    scores, labels = gaussian(100_000, 3.0, target_share)
    # A scale and a shift of the input must come out again.
    calibrator = QualityCalibrator(["score"], objective).fit(scores / 50 + 7, labels)
    slope = calibrator.weights[0] / 50
    offset = calibrator.bias + 7 * calibrator.weights[0]
    # Standard errors over 20 draws at a share of 0.05: 0.054 and 0.10; at 0.5 far less.
    assert slope == pytest.approx(3.0, abs=0.15)
    assert offset == pytest.approx(-4.5, abs=0.25)
    held_out, truth = gaussian(100_000, 3.0, target_share, seed=1)
    llrs = calibrator.log_likelihood_ratio(held_out / 50 + 7)
    value, least = cllr(llrs, truth).cllr, min_cllr(llrs, truth).cllr
    assert least < value < least + 0.005
    assert value < cllr(held_out[:, 0], truth).cllr - 0.1
    actual, best = actual_dcf(llrs, truth).dcf, min_dcf(llrs, truth).dcf
    assert best <= actual < best + 0.05
    assert calibrator.n_target + calibrator.n_nontarget == 100_000
    assert calibrator.n_target == labels.sum()


def test_objectives_agree_on_balanced_trials():
    scores, labels = gaussian(2000)
    labels[:] = np.arange(2000) % 2
    scores[:, 0] += labels
    a, b = (QualityCalibrator(objective=o).fit(scores, labels) for o in OBJECTIVES)
    assert a.weights == pytest.approx(b.weights)
    assert a.bias == pytest.approx(b.bias)


def test_each_objective_is_best_at_its_own_cost():
    """On scores that no affine map calibrates, each prior gets its own map."""
    scores, labels = gaussian(20_000, 2.0, 0.1)
    scores = np.where(scores > 0, scores, 4 * scores)
    fitted = {
        key: QualityCalibrator(**options).fit(scores, labels)
        for key, options in {
            "cllr": {},
            "entropy": {"objective": "cross_entropy"},
            "0.01": {"p_target": 0.01},
        }.items()
    }
    for own, prior in (("cllr", 0.5), ("entropy", labels.mean()), ("0.01", 0.01)):
        costs = {
            key: _weighted_cost(c.log_likelihood_ratio(scores), labels, prior)
            for key, c in fitted.items()
        }
        assert min(costs, key=costs.get) == own, costs


def _weighted_cost(llrs, labels, prior):
    odds = llrs + logit(prior)
    target, nontarget = np.logaddexp(0, -odds)[labels], np.logaddexp(0, odds)[~labels]
    return prior * target.mean() + (1 - prior) * nontarget.mean()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_score_keeps_its_order(objective):
    scores, labels = gaussian(5000)
    scores = np.round(scores, 1).astype(np.float32)  # ties must stay ties
    calibrator = QualityCalibrator(["score"], objective).fit(scores, labels)
    llrs = calibrator.log_likelihood_ratio(scores)
    order = np.argsort(scores[:, 0], kind="stable")
    assert np.all(np.diff(llrs[order]) >= 0)
    assert len(np.unique(llrs)) == len(np.unique(scores))
    before = equal_error_rate(scores[:, 0], labels).eer
    assert equal_error_rate(llrs, labels).eer == before
    assert min_dcf(llrs, labels).dcf == min_dcf(scores[:, 0], labels).dcf


def test_quality_helps_where_it_matters():
    """Scores that shrink with the duration: knowing it lowers EER and Cllr."""

    def trials(seed, size=20_000):
        random = np.random.default_rng(seed)
        labels = np.arange(size) % 2
        durations = random.uniform(2, 30, (2, size))
        worth = np.minimum(durations.min(axis=0), 20) / 5
        scores = random.standard_normal(size) + worth * labels
        measures = {
            "duration": durations,
            "magnitude": random.uniform(8, 12, (2, size)),
            "cohort_mean": random.normal(0, 0.1, (2, size)),
        }
        return quality_features(scores, measures), labels

    (names, values), labels = trials(0)
    (_, held_out), truth = trials(1)
    calibrator = QualityCalibrator(names).fit(values, labels)
    llrs = calibrator.log_likelihood_ratio(held_out)
    score_only = QualityCalibrator(["score"]).fit(values[:, :1], labels)
    plain = score_only.log_likelihood_ratio(held_out[:, :1])
    assert cllr(llrs, truth).cllr < cllr(plain, truth).cllr - 0.02
    before, after = (equal_error_rate(x, truth).eer for x in (plain, llrs))
    assert after < before - 0.005
    assert cllr(llrs, truth).cllr < min_cllr(llrs, truth).cllr + 0.02


def test_fusion_of_independent_systems():
    """Two systems of independent errors: the sum of their exact ratios."""
    random = np.random.default_rng(0)
    labels = np.arange(60_000) % 2
    scores = random.standard_normal((60_000, 2)) + np.outer(labels, [1.0, 2.0])
    calibrator = QualityCalibrator(["a", "b"]).fit(scores, labels)
    assert calibrator.weights == pytest.approx([1, 2], abs=0.08)
    assert calibrator.bias == pytest.approx(-(1 + 4) / 2, abs=0.1)


def test_constant_inputs_count_for_nothing():
    scores, labels = gaussian(1000)
    alone = QualityCalibrator().fit(scores, labels)
    ones = np.full_like(scores, 0.1)  # whose mean is not exactly 0.1
    both = QualityCalibrator().fit(np.hstack((ones, scores)), labels)
    # the means of one and of two columns are summed in other orders, and both fits
    # end at a slope of 1e-7 at most: the weights agree to some 1e-7, not to the bit
    assert both.weights[0] == 0
    assert both.weights[1] == pytest.approx(alone.weights[0], rel=1e-6)
    assert both.bias == pytest.approx(alone.bias, rel=1e-6)
    nothing = QualityCalibrator().fit(ones, labels)
    assert nothing.log_likelihood_ratio(ones) == pytest.approx(0, abs=1e-6)


def test_separable_and_tiny():
    scores = np.array([[0.1], [0.2], [0.8], [0.9]])
    llrs = QualityCalibrator().fit(scores, [0, 0, 1, 1]).log_likelihood_ratio(scores)
    assert np.all(np.isfinite(llrs))
    assert cllr(llrs, [0, 0, 1, 1]).cllr < 1e-3
    two = QualityCalibrator().fit([[0.0], [1.0]], [0, 1])
    assert two.log_likelihood_ratio([[0.5]])[0] == pytest.approx(0, abs=1e-6)


def test_rows_do_not_depend_on_their_neighbours():
    """To the bit, on any CPU: the sum is taken element by element."""
    random = np.random.default_rng(0)
    features, labels = random.standard_normal((999, 13)), np.arange(999) % 2
    calibrator = QualityCalibrator().fit(features, labels)
    whole = calibrator.log_likelihood_ratio(features)
    order = random.permutation(999)
    assert np.array_equal(
        calibrator.log_likelihood_ratio(features[order]), whole[order]
    )
    columns = np.asfortranarray(features)
    assert np.array_equal(calibrator.log_likelihood_ratio(columns), whole)
    alone = [calibrator.log_likelihood_ratio(row[None])[0] for row in features[:20]]
    assert alone == whole[:20].tolist()


def test_deterministic_and_input_left_alone():
    scores, labels = gaussian(500)
    before = scores.copy(), labels.copy()
    a, b = (QualityCalibrator().fit(scores, labels) for _ in range(2))
    assert np.array_equal(scores, before[0])
    assert np.array_equal(labels, before[1])
    assert (a.weights[0], a.bias) == (b.weights[0], b.bias)
    assert a.names == ["input_1"]


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        ([[1.0], [2.0]], [1, 1], "2 targets and 0 non-targets"),
        ([[1.0], [2.0]], [0, 2], "label 2 of trial 2"),
        ([[1.0], [2.0]], [0, 1, 1], r"labels of shape \[3\]"),
        ([[1.0], [math.nan]], [0, 1], r"score is nan in trial 2 \(1 such\)"),
        ([[math.inf], [1.0]], [0, 1], "score is inf in trial 1"),
        ([[1.0, 2.0]], [1], r"shape \[1, 2\], expected \[T, 1\]: score"),
        ([1.0, 2.0], [0, 1], r"shape \[2\]"),
        ([["a"], ["b"]], [0, 1], "type <U1"),
        (np.empty((0, 1)), [], "0 scores"),
    ],
)
def test_fit_refuses(features, labels, message):
    with pytest.raises(InputError, match=message):
        QualityCalibrator(["score"]).fit(features, labels)


def test_unnamed_inputs_need_columns():
    for features in ([1.0, 2.0], np.empty((2, 0)), 3.0):
        with pytest.raises(InputError, match="a column per input"):
            QualityCalibrator().fit(features, [0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "hinge"}, "objective 'hinge', expected one of cllr"),
        ({"p_target": 0}, "p_target is 0"),
        ({"p_target": math.nan}, "p_target is nan"),
        ({"p_target": 0.1, "objective": "cross_entropy"}, "expected objective 'cllr'"),
        ({"l2": 0}, "l2 is 0"),
        ({"l2": math.inf}, "l2 is inf"),
        ({"l2_quality": 0}, "l2_quality is 0"),
        ({"names": []}, "at least one name"),
        ({"names": ["a", ""]}, "at least one name"),
        ({"names": ["a", "b", "a"]}, "input 'a' comes twice"),
    ],
)
def test_options_refused(options, message):
    with pytest.raises(InputError, match=message):
        QualityCalibrator(**options)


def fitted(**options):
    random = np.random.default_rng(0)
    features, labels = random.standard_normal((50, 2)), np.arange(50) % 2
    return QualityCalibrator(["score", "länge"], **options).fit(features, labels)


@pytest.mark.parametrize(
    "options",
    [{"p_target": 0.05, "l2": 1e-4, "l2_quality": 0.1}, {"objective": "cross_entropy"}],
)
def test_round_trip(tmp_path, options):
    calibrator = fitted(**options)
    path = tmp_path / "new" / "calibrator.json"
    calibrator.save(path)
    assert os.listdir(path.parent) == ["calibrator.json"]
    for names in (None, ("score", "länge")):
        again = QualityCalibrator.load(path, names)
        features = np.random.default_rng(1).standard_normal((9, 2))
        assert np.array_equal(
            again.log_likelihood_ratio(features),
            calibrator.log_likelihood_ratio(features),
        )
        assert again.weights.dtype == np.float64
        same = vars(again) | {"weights": again.weights.tolist()}
        assert same == vars(calibrator) | {"weights": calibrator.weights.tolist()}
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_scores_that_are_turned_round_are_warned_of(tmp_path, caplog):
    """When fitted for decisions, and by whoever loads them."""
    scores, labels = gaussian(200)
    right = QualityCalibrator(["llr"]).fit(scores, labels)
    turned = QualityCalibrator(["llr"]).fit(scores, ~labels)
    idle = QualityCalibrator(["llr"]).fit(np.ones((200, 1)), labels)
    for name, calibrator in (("r", right), ("t", turned), ("i", idle)):
        calibrator.save(tmp_path / name)
    assert not caplog.messages
    assert right.warn_if_turned("dev") is right
    QualityCalibrator.load(tmp_path / "r")
    assert not caplog.messages
    turned.warn_if_turned("dev")
    assert caplog.messages.pop() == (
        f"dev: weight {turned.weights[0]:.3g} of llr, expected above 0: likelihood "
        "ratios decide the reverse of it, where they decide at all; either the labels "
        "are turned round or it tells nothing"
    )
    for name in "ti":
        loaded = QualityCalibrator.load(tmp_path / name)
        assert loaded.weights[0] <= 0
        assert caplog.messages[-1].startswith(f"{tmp_path / name}: weight ")


def test_wrong_inputs(tmp_path):
    path = tmp_path / "calibrator.json"
    fitted().save(path)
    for names in (["score"], ["länge", "score"], ["score", "length"]):
        with pytest.raises(InputError, match="calibrates score, länge, expected"):
            QualityCalibrator.load(path, names)
    with pytest.raises(InputError, match=r"shape \[1, 3\], expected \[T, 2\]"):
        QualityCalibrator.load(path).log_likelihood_ratio(np.ones((1, 3)))
    with pytest.raises(InputError, match="länge is nan in trial 2"):
        fitted().log_likelihood_ratio([[1, 1], [1, math.nan]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other', expected"),
        ({"version": 2}, "version is 2, expected"),
        ({"extra": 1}, "extra, expected nothing but"),
        ({"weights": [1.0]}, "1 weights for 2 inputs"),
        ({"weights": [1.0, "2"]}, r"weights\[1\] is '2', expected a number"),
        ({"weights": [1.0, math.nan]}, "NaN is not a finite number"),
        ({"bias": math.inf}, "Infinity is not a finite number"),
        ({"bias": None}, "bias is None, expected a number"),
        ({"names": ["a", "a"]}, "input 'a' comes twice"),
        ({"names": [1, 2]}, r"names\[0\] is 1, expected text"),
        ({"objective": "hinge"}, "objective 'hinge'"),
        ({"p_target": 1.5}, "p_target is 1.5"),
        ({"l2": -1.0}, "l2 is -1"),
        ({"n_target": 2.5}, "n_target is 2.5, expected a whole number"),
        ({"n_nontarget": True}, "n_nontarget is True, expected a whole number"),
    ],
)
def test_changed_files_refused(tmp_path, change, message):
    path = tmp_path / "calibrator.json"
    fitted().save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        QualityCalibrator.load(path)
    assert str(error.value).startswith(str(path))


def test_damaged_files_refused(tmp_path):
    path = tmp_path / "calibrator.json"
    with pytest.raises(InputError, match="No such file"):
        QualityCalibrator.load(path)
    fitted().save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-5], b"\xff" + whole):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read as a speechbrain_ext"):
            QualityCalibrator.load(path)
    for foreign in (b"[1]", b"3", b"{}"):
        path.write_bytes(foreign)
        with pytest.raises(InputError, match=r"expected names and|no format,"):
            QualityCalibrator.load(path)


def test_unfitted(tmp_path):
    for call in (
        lambda c: c.log_likelihood_ratio([[1.0]]),
        lambda c: c.save(tmp_path / "calibrator.json"),
    ):
        with pytest.raises(InputError, match="not fitted"):
            call(QualityCalibrator(["score"]))
    assert os.listdir(tmp_path) == []
