"""Pictures: whole PNG files, the curve where it belongs, from 20 trials to 600,000."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.special import ndtri

from speechbrain_ext.scoring import plots
from speechbrain_ext.scoring.metrics import error_rates
from speechbrain_ext.scoring.plots import plot_det, plot_histogram, thin_curve
from speechbrain_ext.utils.errors import InputError


def gaussian(size, distance, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(size) % 2
    return random.standard_normal(size) + distance * labels, labels


EDGE_CASES = {
    "few": gaussian(20, 1.5),
    "chance": gaussian(1000, 0),
    "perfect": ([1, 2, 3, 4], [0, 0, 1, 1]),
    "inverted": ([1, 2, 3, 4], [1, 1, 0, 0]),
    "equal": ([1, 1], [0, 1]),
}


def ink(path):
    """How much of the picture is coloured (neither grey, black nor white)."""
    pixels = imread(path)[..., :3]
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 300
    return np.mean(np.ptp(pixels, axis=-1) > 0.2)


@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_cases_draw(tmp_path, name):
    plot_det(tmp_path / "det.png", {name: EDGE_CASES[name]})
    plot_histogram(tmp_path / "new" / "histogram.png", *EDGE_CASES[name])
    assert ink(tmp_path / "det.png") > 0.0005
    assert ink(tmp_path / "new" / "histogram.png") > 0.005
    assert sorted(os.listdir(tmp_path)) == ["det.png", "new"]


def test_all_curves_together_and_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plot_det(tmp_path / name, EDGE_CASES, p_target=0.05)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


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


def test_gaussian_curve_is_a_straight_line(tmp_path, monkeypatch):
    """Φ⁻¹(FNR) = -d' - Φ⁻¹(FPR): what the axes are made for."""
    figures = []
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, path: figures.append(figure)
    )
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
def test_threshold_line(tmp_path, monkeypatch, threshold):
    figures = []
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, path: figures.append(figure)
    )
    # FNR = FPR = 1/2 at t = 3: one of the hand cases of the metrics.
    plot_histogram(tmp_path / "a.png", [2, 4, 1, 3], [1, 1, 0, 0], threshold)
    at = figures[0].axes[0].lines[0].get_xdata()[0]
    assert at == (3.0 if threshold is None else threshold)


def test_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match="no curves"):
        plot_det(path, {})
    with pytest.raises(InputError, match="curve 'b': 0 targets and 2 non-targets"):
        plot_det(path, {"a": gaussian(20, 1), "b": ([1, 2], [0, 0])})
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
