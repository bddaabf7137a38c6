"""Pictures: whole PNG files with curves and costs where they belong."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.special import logit, ndtri

from speechbrain_ext.scoring import plots
from speechbrain_ext.scoring.metrics import actual_dcf, error_rates, min_dcf
from speechbrain_ext.scoring.plots import (
    bayes_costs,
    plot_calibration,
    plot_det,
    plot_histogram,
    thin_curve,
)
from speechbrain_ext.utils.errors import InputError


def gaussian(size, distance, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(size) % 2
    return random.standard_normal(size) + distance * labels, labels


def ratios(size, distance):
    """Exact log-likelihood ratios of the two Gaussians."""
    scores, labels = gaussian(size, distance)
    return distance * scores - distance**2 / 2, labels


EDGE_CASES = {
    "few": gaussian(20, 1.5),
    "chance": gaussian(1000, 0),
    "perfect": ([1, 2, 3, 4], [0, 0, 1, 1]),
    "inverted": ([1, 2, 3, 4], [1, 1, 0, 0]),
    "equal": ([1, 1], [0, 1]),
}
RATIOS = {**EDGE_CASES, "few": ratios(20, 1.5), "huge": ([-1e300, 1e300, 5], [0, 1, 1])}


@pytest.fixture
def figures(monkeypatch):
    """What would have been saved."""
    kept = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def ink(path):
    """How much of the picture is coloured (neither grey, black nor white)."""
    pixels = imread(path)[..., :3]
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 300
    return np.mean(np.ptp(pixels, axis=-1) > 0.2)


@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_cases_draw(tmp_path, name):
    plot_calibration(tmp_path / "new" / "calibration.png", {name: RATIOS[name]})
    assert ink(tmp_path / "new" / "calibration.png") > 0.001
    plot_det(tmp_path / "det.png", {name: EDGE_CASES[name]})
    plot_histogram(tmp_path / "new" / "histogram.png", *EDGE_CASES[name])
    assert ink(tmp_path / "det.png") > 0.0005
    assert ink(tmp_path / "new" / "histogram.png") > 0.005
    assert sorted(os.listdir(tmp_path)) == ["det.png", "new"]


def test_all_curves_together_and_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plot_det(tmp_path / name, EDGE_CASES, p_target=0.05)
        plot_calibration(tmp_path / f"c{name}", RATIOS)
    for first, second in (("a.png", "b.png"), ("ca.png", "cb.png")):
        assert (tmp_path / first).read_bytes() == (tmp_path / second).read_bytes()


def test_full_size_is_quick_and_thinned(tmp_path):
    data = gaussian(600_000, 4)
    start = time.process_time()
    plot_det(tmp_path / "det.png", {"full size": data})
    plot_histogram(tmp_path / "histogram.png", *data)
    seconds = time.process_time() - start
    assert seconds < 10, f"{seconds:.1f} s"  # about 1 s on an idle core
    _, fnr, fpr = error_rates(*data)
    x, y = ndtri(np.clip(fpr, 1e-6, 1 - 1e-6)), ndtri(np.clip(fnr, 1e-6, 1 - 1e-6))
    keep = thin_curve(x, y)
    assert len(keep) < 2100
    assert keep[0] == 0
    assert keep[-1] == len(x) - 1
    assert np.all(np.diff(keep) > 0)
    # No dropped point lies further from the line between kept ones than a pixel
    # (about 1/100 of a deviate; 0.02 at most).
    gap = np.abs(np.interp(-x, -x[keep], y[keep]) - y)
    assert gap[(np.abs(x) < 3) & (np.abs(y) < 3)].max() < 0.02


def test_short_curves_are_kept_whole():
    x = np.linspace(0, 1, 30)
    assert thin_curve(x, x).tolist() == list(range(30))
    assert len(thin_curve(np.zeros(5000), np.zeros(5000))) == 2


def test_gaussian_curve_is_a_straight_line(tmp_path, figures):
    """Φ⁻¹(FNR) = -d' - Φ⁻¹(FPR): what the axes are made for."""
    plot_det(tmp_path / "det.png", {"a": gaussian(200_000, 3)})
    axes = figures[0].axes[0]
    x, y = axes.lines[0].get_data()
    inside = (np.abs(x) < 2.5) & (np.abs(y) < 2.5)
    assert inside.sum() > 200
    assert np.abs(x + y + 3)[inside].max() < 0.05
    # The mark of the EER stands on the diagonal at Φ⁻¹(EER) = -d'/2.
    (circle,) = [line for line in axes.lines if line.get_marker() == "o"][:1]
    assert np.ravel(circle.get_data()) == pytest.approx([-1.5, -1.5], abs=0.02)
    ticks = {
        text.get_text(): at
        for text, at in zip(axes.get_xticklabels(), axes.get_xticks())
    }
    assert ticks["10"] == pytest.approx(ndtri(0.1))
    assert {"0.1", "1", "40"} <= set(ticks)


@pytest.mark.parametrize("threshold", [None, 0.25])
def test_threshold_line(tmp_path, figures, threshold):
    # FNR = FPR = 1/2 at t = 3: one of the hand cases of the metrics.
    plot_histogram(tmp_path / "a.png", [2, 4, 1, 3], [1, 1, 0, 0], threshold)
    at = figures[0].axes[0].lines[0].get_xdata()[0]
    assert at == (3.0 if threshold is None else threshold)


# ---- costs over the prior -----------------------------------------------------------


@pytest.mark.parametrize("name", RATIOS)
def test_costs_are_those_of_the_metrics(name):
    llrs, labels = RATIOS[name]
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
    actual, least = bayes_costs(*ratios(200_000, 3), odds)
    assert np.all(actual >= least)
    assert np.max(actual - least) < 0.05
    llrs, labels = ratios(200_000, 3)
    actual, same = bayes_costs(3 * llrs, labels, odds)
    assert np.array_equal(same, least)
    assert np.max(actual - least) > 0.5


def test_what_is_drawn_of_a_calibration(tmp_path, figures):
    llrs, labels = ratios(5000, 2)
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


# ---- all of them ---------------------------------------------------------------------


def test_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match="no curves"):
        plot_det(path, {})
    with pytest.raises(InputError, match="no systems"):
        plot_calibration(path, {})
    curves = {"a": gaussian(20, 1), "b": ([1, 2], [0, 0])}
    for plot, kind in ((plot_det, "curve"), (plot_calibration, "system")):
        message = f"{kind} 'b': 0 targets and 2 non-targets"
        with pytest.raises(InputError, match=message):
            plot(path, curves)
    with pytest.raises(InputError, match="score nan"):
        plot_histogram(path, [1, float("nan")], [0, 1])
    with pytest.raises(InputError, match="threshold inf"):
        plot_histogram(path, [1, 2], [0, 1], threshold=float("inf"))
    assert os.listdir(tmp_path) == []


def test_matplotlib_is_imported_only_to_draw():
    code = (
        "import sys, speechbrain_ext.scoring.plots; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
