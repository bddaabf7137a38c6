"""Pictures of scores: DET curves, score densities, Bayes error rates.

A DET curve (Martin et al., "The DET curve in assessment of detection task
performance", Eurospeech 1997) draws miss against false-alarm rate on normal-deviate
axes, x = Φ⁻¹(FPR), y = Φ⁻¹(FNR): Gaussian scores of equal variance give a straight line
of slope -1, and both ends of the curve stay readable.

The normalised Bayes error-rate plot (Brümmer & de Villiers, "The BOSARIS toolkit:
theory, algorithms and code for surviving the new DCF", 2011) shows how far
log-likelihood ratios can be trusted. For every prior P of a target, with log odds
θ = ln(P / (1 - P)), ratios taken at their word are compared with the threshold -θ. The
cost (P FNR(-θ) + (1 - P) FPR(-θ)) / min(P, 1 - P) is drawn over θ, beside the least
cost that any threshold reaches: their distance is the loss in calibration. Above 1 it
would have been better to decide by the prior alone.

matplotlib is imported when a picture is drawn, so that scoring needs none.
"""

import io
from typing import NamedTuple

import numpy as np
from scipy.special import logit, ndtri

from speechbrain_ext.scoring.metrics import (
    DetectionCost,
    ErrorRates,
    checked_scores,
    cllr,
    crossing,
    equal_error_rate,
    error_rates,
    lowest_cost,
    min_cllr,
    roc_convex_hull,
)
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import write_atomically

TICKS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 90, 95, 98)
CURVE_POINTS = 2000
FEWEST_BINS, MOST_BINS = 11, 101
LOG_ODDS = np.linspace(-10, 10, 401)
MARKED_PRIORS = (0.01, 0.05, 0.5)
HIGHEST_COST = 1.4  # drawn


def plot_det(path, curves, p_target=0.01, cost=None):
    """Draw DET curves with their EER and minimum-cost points, a PNG.

    ``curves`` is name → (scores [T], labels [T]); ``p_target`` the prior of the cost
    whose best operating point is marked, ``cost`` what the legend says of it.
    InputError: no curve, or one without error rates (named).
    """
    if not curves:
        raise InputError(f"{path}: no curves to draw, expected at least one")
    points = {n: _points(n, *data, p_target) for n, data in curves.items()}
    figure, axes = new_figure(5.6, 5.8 + 0.2 * len(points))
    for name, curve in points.items():
        _draw_curve(axes, name, curve)
    _det_axes(axes, points.values())
    axes.plot([], [], "ko", markersize=6, label="equal error rate")
    cost = cost or f"target prior {p_target:g}"
    axes.plot([], [], "k^", markersize=7, label=f"minDCF, {cost}")
    # Below the axes: within, it would hide whichever curve passes there.
    figure.legend(loc="outside lower center", fontsize=9, frameon=False)
    save_figure(figure, path)


def plot_histogram(
    path, scores, labels, threshold=None, names=("different speaker", "same speaker")
):
    """PNG of the densities of target and non-target scores [T], and a threshold.

    None takes the threshold of the EER; ``names`` are those of the two, non-targets
    first. InputError as
    :func:`~speechbrain_ext.scoring.metrics.error_rates`; a threshold that is not
    finite.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    eer, eer_threshold = equal_error_rate(scores, labels)
    at = eer_threshold if threshold is None else float(threshold)
    if not np.isfinite(at):
        raise InputError(f"{path}: threshold {at}, expected a finite number")
    scores, same = scores.astype(np.float64), labels == 1
    figure, axes = new_figure(6.4, 4.2)
    edges = _bin_edges(scores)
    for part, name, colour in (
        (scores[~same], names[0], "tab:orange"),
        (scores[same], names[1], "tab:blue"),
    ):
        style = {"bins": edges, "density": True, "color": colour}
        part = np.clip(part, edges[0], edges[-1])  # the end bins hold what lies beyond
        axes.hist(part, alpha=0.35, label=f"{name} ({len(part):,})", **style)
        axes.hist(part, histtype="step", linewidth=1.2, **style)
    name = f"EER {_percent(eer)} at {at:.3g}" if threshold is None else f"{at:.3g}"
    axes.axvline(at, color="black", linestyle="--", label=f"threshold: {name}")
    axes.set_xlabel("score")
    axes.set_ylabel("density")
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    save_figure(figure, path)


def thin_curve(x, y, points=CURVE_POINTS):
    """Indices, ascending, that keep the look of a curve x, y [K]: about ``points``.

    The first and last point, and one wherever the distance walked (|dx| + |dy|) passes
    another ``points``-th of the whole.
    """
    if len(x) <= points:
        return np.arange(len(x))
    walked = np.concatenate(([0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))))
    cell = np.floor(walked / max(walked[-1], 1e-12) * points)
    keep = np.flatnonzero(np.diff(cell, prepend=-1) > 0)
    return np.union1d(keep, [0, len(x) - 1])


class _Curve(NamedTuple):
    """One curve: error rates [K], operating points, resolution of (fpr, fnr)."""

    rates: ErrorRates
    eer: float
    best: DetectionCost
    floors: tuple


def _points(name, scores, labels, p_target):
    with naming(f"curve '{name}'"):
        rates = error_rates(scores, labels)
        eer, best = crossing(rates).eer, lowest_cost(rates, p_target)
    n_target = int(np.count_nonzero(labels))
    floors = 0.5 / (len(labels) - n_target + 1), 0.5 / (n_target + 1)
    return _Curve(rates, eer, best, floors)


def _draw_curve(axes, name, curve):
    x = _deviate(curve.rates.fpr, curve.floors[0])
    y = _deviate(curve.rates.fnr, curve.floors[1])
    keep = thin_curve(x, y)
    label = f"{name}: EER {_percent(curve.eer)}, minDCF {curve.best.dcf:.3f}"
    (line,) = axes.plot(x[keep], y[keep], linewidth=1.6, label=label)
    style = {"color": line.get_color(), "markeredgecolor": "black", "zorder": 3}
    for fpr, fnr, marker in (
        (curve.best.fpr, curve.best.fnr, "^"),
        (curve.eer, curve.eer, "o"),
    ):
        place = _deviate(fpr, curve.floors[0]), _deviate(fnr, curve.floors[1])
        axes.plot(*place, marker, markersize=7, **style)


def _deviate(rate, floor):
    """Φ⁻¹ of a rate; 0 and 1 stand about half a trial from the edge, to be finite."""
    return ndtri(np.clip(rate, floor, 1 - floor))


def _det_axes(axes, curves):
    """Ticks in percent; limits that hold the marks and what lies around them."""
    low, high = 0.005, 0.5
    for curve in curves:
        rates = (curve.eer / 10, curve.best.fpr / 3, curve.best.fnr / 3)
        wanted = min([rate for rate in rates if rate > 0], default=0)
        low = min(low, max(wanted, min(curve.floors) / 1.5, 1e-5))
        high = 0.99 if curve.eer > 0.4 else high
    ticks = np.array([tick for tick in TICKS if 100 * low < tick < 100 * high])
    for axis, name in ((axes.xaxis, "false alarms"), (axes.yaxis, "misses")):
        axis.set_ticks(ndtri(ticks / 100), [f"{tick:g}" for tick in ticks])
        axis.set_label_text(f"{name} (%)")
    limits = ndtri(low), ndtri(high)
    axes.plot(limits, limits, color="grey", linewidth=0.8, linestyle=":", zorder=1)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.grid(True, linewidth=0.4, alpha=0.6)


def _bin_edges(scores):
    """An odd number of bins, square-root rule, over the middle 99.9 % of scores."""
    low, high = np.quantile(scores, [0.0005, 0.9995])
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    count = int(np.clip(np.sqrt(len(scores)), FEWEST_BINS, MOST_BINS)) | 1
    return np.linspace(low, high, count + 1)


def _percent(rate):
    return f"{100 * rate:.2f} %"


def new_figure(width, height):
    """A figure of ``width`` × ``height`` inches and its axes."""
    # The canvas is named, so neither a display nor pyplot's global state is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def png_bytes(figure):
    """A figure as PNG, the same bytes for the same figure."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    return drawn.getvalue()


def save_figure(figure, path):
    """Write a figure as PNG, atomically, the same bytes for the same figure."""
    drawn = png_bytes(figure)
    with write_atomically(path, "wb") as file:
        file.write(drawn)


def draw_heat_map(values, enough, rows, columns, unit):
    """A figure and its axes: ``values`` [R, C], None or NaN white, named and coloured.

    ``rows`` and ``columns`` are names, the last of which stands apart, ``enough`` bool
    [R, C]: others are in brackets; ``unit`` names the colours.
    """
    shown = np.array(values, dtype=float)  # None → NaN: left white
    height, width = shown.shape
    figure, axes = new_figure(2.6 + 0.62 * width, 1.6 + 0.36 * height)
    top = max(np.nanmax(shown, initial=0.0), 1e-3)
    image = axes.imshow(shown, cmap="YlOrRd", vmin=0, vmax=top, aspect="auto")
    digits = 1 if top > 2 else 2
    for (row, column), value in np.ndenumerate(shown):
        if np.isnan(value):
            continue
        text = f"{value:.{digits}f}"
        axes.text(
            *(column, row, text if enough[row][column] else f"({text})"),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if value > 0.6 * top else "black",
        )
    axes.set_xticks(range(width), columns, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(height), rows, fontsize=8)
    axes.axhline(height - 1.5, color="black", linewidth=0.8)
    axes.axvline(width - 1.5, color="black", linewidth=0.8)
    figure.colorbar(image, label=unit)
    return figure, axes


def plot_calibration(path, systems):
    """PNG of actual and least cost over the prior.

    ``systems`` is name → (natural-log likelihood ratios [T], labels [T]). InputError:
    no system, or one without error rates (named).
    """
    if not systems:
        raise InputError(f"{path}: no systems to draw, expected at least one")
    curves = {name: _curves(name, *data) for name, data in systems.items()}
    figure, axes = new_figure(6.6, 4.8 + 0.2 * len(curves))
    default = {"color": "black", "linestyle": ":", "zorder": 3}
    axes.axhline(1, label="decision by the prior alone", **default)
    for prior in MARKED_PRIORS:
        place = {"ha": "center", "va": "bottom", "fontsize": 8}
        axes.axvline(logit(prior), color="grey", linewidth=0.6, zorder=1)
        axes.text(logit(prior), HIGHEST_COST, f"{prior:g}", **place)
    for name, (actual, least, costs) in curves.items():
        label = f"{name}: Cllr {costs[0]:.3f}, minCllr {costs[1]:.3f}"
        (line,) = axes.plot(LOG_ODDS, actual, linewidth=1.6, label=label)
        axes.plot(LOG_ODDS, least, "--", linewidth=1.2, color=line.get_color())
    axes.plot([], [], "k--", linewidth=1.2, label="least cost of any threshold")
    axes.set(xlim=(LOG_ODDS[0], LOG_ODDS[-1]), ylim=(0, HIGHEST_COST))
    axes.set_xlabel("ln(P / (1 − P)) of the target prior P (grey lines)")
    axes.set_ylabel("normalised cost of decisions")
    axes.grid(True, axis="y", linewidth=0.4, alpha=0.6)
    # Below the axes: within, it would hide whichever curve passes there.
    figure.legend(loc="outside lower center", fontsize=9, frameon=False)
    save_figure(figure, path)


def bayes_costs(llrs, labels, log_odds):
    """Normalised cost of decisions at many priors, unit costs.

    Of ``llrs`` [T], labels [T] and the priors' ``log_odds`` [P]: actual and least cost,
    float64 [P] each, as :func:`~speechbrain_ext.scoring.metrics.actual_dcf` and
    :func:`~speechbrain_ext.scoring.metrics.min_dcf` have them.
    """
    llrs, labels = checked_scores(llrs, labels)
    log_odds = np.asarray(log_odds, dtype=np.float64)
    target, nontarget = np.sort(llrs[labels]), np.sort(llrs[~labels])
    fnr = np.searchsorted(target, -log_odds) / len(target)
    fpr = 1 - np.searchsorted(nontarget, -log_odds) / len(nontarget)
    # P / min(P, 1 - P) and (1 - P) / min(P, 1 - P), also where 1 - P rounds to 1.
    miss = np.exp(np.maximum(log_odds, 0))
    false_alarm = np.exp(np.maximum(-log_odds, 0))
    _, hull_fnr, hull_fpr = roc_convex_hull(llrs, labels)
    least = np.outer(miss, hull_fnr) + np.outer(false_alarm, hull_fpr)  # [P, corners]
    return miss * fnr + false_alarm * fpr, least.min(axis=1)


def _curves(name, llrs, labels):
    with naming(f"system '{name}'"):
        actual, least = bayes_costs(llrs, labels, LOG_ODDS)
        return actual, least, (cllr(llrs, labels).cllr, min_cllr(llrs, labels).cllr)
