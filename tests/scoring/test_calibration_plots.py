"""The calibration plot shows the costs that the metrics compute."""

import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.special import logit

from speechbrain_ext.scoring import plots as calibration_plots
from speechbrain_ext.scoring.metrics import actual_dcf, min_dcf
from speechbrain_ext.scoring.plots import bayes_costs, plot_calibration
from speechbrain_ext.utils.errors import InputError


def gaussian(size, distance, seed=0):
    """Exact log-likelihood ratios of two Gaussians."""
    random = np.random.default_rng(seed)
    labels = np.arange(size) % 2
    scores = random.standard_normal(size) + distance * labels
    return distance * scores - distance**2 / 2, labels


EDGE_CASES = {
    "few": gaussian(20, 1.5),
    "chance": gaussian(1000, 0),
    "perfect": ([-3.0, -2.0, 2.0, 3.0], [0, 0, 1, 1]),
    "inverted": ([1, 2, 3, 4], [1, 1, 0, 0]),
    "equal": ([1, 1], [0, 1]),
    "huge": ([-1e300, 1e300, 5], [0, 1, 1]),
}


@pytest.mark.parametrize("name", EDGE_CASES)
def test_costs_are_those_of_the_metrics(name):
    llrs, labels = EDGE_CASES[name]
    priors = np.array([1e-4, 0.01, 0.05, 0.3, 0.5, 0.9, 0.999])
    actual, least = bayes_costs(llrs, labels, logit(priors))
    for prior, *costs in zip(priors, actual, least):
        expected = (f(llrs, labels, prior).dcf for f in (actual_dcf, min_dcf))
        assert costs == pytest.approx(list(expected), abs=1e-9)


def test_costs_at_the_ends_of_the_scale():
    """Where 1 - P rounds to 1 or 0 in floating point."""
    actual, least = bayes_costs([-1.0, 1.0], [1, 0], [-50.0, 50.0])
    assert actual == pytest.approx([1, 1])  # all rejected, all accepted
    assert least == pytest.approx([1, 1])


def test_well_calibrated_ratios_cost_the_least():
    odds = np.linspace(-6, 6, 25)
    actual, least = bayes_costs(*gaussian(200_000, 3), odds)
    assert np.all(actual >= least)
    assert np.max(actual - least) < 0.05
    llrs, labels = gaussian(200_000, 3)
    actual, same = bayes_costs(3 * llrs, labels, odds)
    assert np.array_equal(same, least)
    assert np.max(actual - least) > 0.5


def ink(path):
    """How much of the picture is coloured (neither grey, black nor white)."""
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 300
    return np.mean(np.ptp(pixels, axis=-1) > 0.2)


@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_cases_draw(tmp_path, name):
    path = tmp_path / "new" / "calibration.png"
    plot_calibration(path, {name: EDGE_CASES[name]})
    assert ink(path) > 0.001
    assert os.listdir(path.parent) == ["calibration.png"]


def test_what_is_drawn(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        calibration_plots, "save_figure", lambda figure, path: figures.append(figure)
    )
    llrs, labels = gaussian(5000, 2)
    plot_calibration(tmp_path / "a.png", {"good": (llrs, labels), "b": (llrs, labels)})
    axes = figures[0].axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    (name,) = [label for label in lines if label.startswith("good: Cllr 0.")]
    x, y = lines[name].get_data()
    assert y == pytest.approx(bayes_costs(llrs, labels, x)[0])
    assert (x[0], x[-1]) == axes.get_xlim() == (-10, 10)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_color() == lines[name].get_color()
    assert dashed[0].get_ydata() == pytest.approx(bayes_costs(llrs, labels, x)[1])
    assert set(lines["decision by the prior alone"].get_ydata()) == {1}
    marked = [line.get_xdata()[0] for line in axes.lines if line.get_color() == "grey"]
    assert marked == pytest.approx(logit([0.01, 0.05, 0.5]))


def test_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plot_calibration(tmp_path / name, EDGE_CASES)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match="no systems"):
        plot_calibration(path, {})
    with pytest.raises(InputError, match="system 'b': 0 targets and 2 non-targets"):
        plot_calibration(path, {"a": gaussian(20, 1), "b": ([1, 2], [0, 0])})
    assert os.listdir(tmp_path) == []


def test_matplotlib_is_imported_only_to_draw():
    module = "speechbrain_ext.scoring.plots"
    code = f"import sys, {module}; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
