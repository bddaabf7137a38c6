"""Logistic regression at its optimum, in closed form and by brute force."""

import math

import numpy as np
import pytest
from scipy.special import expit, logit

from speechbrain_ext.scoring import calibration as logistic
from speechbrain_ext.scoring.calibration import fit_logistic
from speechbrain_ext.utils.errors import InputError

LABELS = np.array([True, True, False, False, False])


def cost(weights, bias, inputs, labels, prior, l2):
    """The equation, trial by trial."""
    total = l2 / 2 * sum(w * w for w in weights)
    for x, same in zip(inputs, labels):
        odds = sum(w * v for w, v in zip(weights, x)) + bias + logit(prior)
        share = prior / sum(labels) if same else (1 - prior) / sum(~labels)
        total += share * math.log1p(math.exp(-odds if same else odds))
    return total


@pytest.mark.parametrize("prior", [0.01, 0.4, 0.5, 0.9])
def test_without_inputs_nothing_is_known(prior):
    """The best constant log-likelihood ratio is 0, whatever the prior."""
    weights, bias = fit_logistic(np.empty((5, 0)), LABELS, prior, 1e-6)
    assert weights.shape == (0,)
    assert bias == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("prior", [0.01, 0.4, 0.9])
def test_binary_input_in_closed_form(prior):
    """Of an input of two values, ℓ is the log of the ratio of their frequencies."""
    x = np.array([1] * 30 + [0] * 10 + [1] * 5 + [0] * 20, dtype=float)[:, None]
    labels = np.arange(65) < 40
    weights, bias = fit_logistic(x, labels, prior, 1e-12)
    assert bias == pytest.approx(math.log((10 / 40) / (20 / 25)), abs=1e-5)
    assert weights[0] + bias == pytest.approx(math.log((30 / 40) / (5 / 25)), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prior", [0.05, 0.5])
def test_no_step_improves(seed, prior):
    random = np.random.default_rng(seed)
    inputs, labels = random.standard_normal((60, 3)), random.random(60) < 0.3
    inputs[labels, 0] += 1
    weights, bias = fit_logistic(inputs, labels, prior, 1e-3)
    best = cost(weights, bias, inputs, labels, prior, 1e-3)
    for step in np.concatenate((np.eye(4), -np.eye(4))) * 1e-3:
        other = cost(weights + step[:3], bias + step[3], inputs, labels, prior, 1e-3)
        assert other > best


def test_dependent_inputs_share_the_weight():
    """Of two equal inputs each gets half: the penalty alone decides."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2 == 0
    x = random.standard_normal(200) + labels
    alone, bias = fit_logistic(x[:, None], labels, 0.5, 1e-9)
    twice, same = fit_logistic(np.stack((x, x), axis=1), labels, 0.5, 1e-9)
    assert twice == pytest.approx([alone[0] / 2] * 2, rel=1e-5)
    assert same == pytest.approx(bias, rel=1e-5)


@pytest.mark.parametrize("l2", [1e-3, 1e-6, 1e-9])
def test_separable_trials_stay_finite(l2):
    x = np.array([1.0, 1.0, -1.0, -1.0])[:, None]
    weights, bias = fit_logistic(x, x[:, 0] > 0, 0.5, l2)
    # By symmetry b = 0, and the slope vanishes: σ(-w) = λ w.
    assert bias == pytest.approx(0, abs=1e-6)
    assert expit(-weights[0]) == pytest.approx(l2 * weights[0], abs=1e-7)
    assert 3 < weights[0] < 20


def test_no_convergence_is_an_error(monkeypatch):
    monkeypatch.setattr(logistic, "TOLERANCE", 0.0)
    random = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"on 60 trials stopped after \d+ steps"):
        fit_logistic(random.random((60, 3)), random.random(60) < 0.5, 0.5, 1e-6)
