"""How far log-likelihood ratios can be trusted: the normalised Bayes error-rate plot.

For every prior P of a target, with log odds θ = ln(P / (1 - P)), ratios taken at their
word are compared with the threshold -θ. What that costs,

    (P FNR(-θ) + (1 - P) FPR(-θ)) / min(P, 1 - P)

is drawn over θ, beside the least cost that any threshold reaches: their distance is the
loss in calibration. Above 1 it would have been better to decide by the prior alone.
(Brümmer & de Villiers, "The BOSARIS toolkit: theory, algorithms and code for surviving
the new DCF", 2011.)
"""

import numpy as np
from scipy.special import logit

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.metrics import cllr, min_cllr
from speechbrain_ext.scoring.operating_points import checked_scores, roc_convex_hull
from speechbrain_ext.scoring.plots import new_figure, save_figure

LOG_ODDS = np.linspace(-10, 10, 401)
MARKED_PRIORS = (0.01, 0.05, 0.5)
HIGHEST = 1.4


def plot_calibration(path, systems):
    """Draw actual and least cost over the prior.

    Arguments
    ---------
    path : str or Path
        PNG to write.
    systems : dict
        Name → (natural-log likelihood ratios [T], labels [T]).

    Raises
    ------
    InputError
        No system, or ratios and labels that have no error rates; names the system.
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
        axes.text(logit(prior), HIGHEST, f"{prior:g}", **place)
    for name, (actual, least, costs) in curves.items():
        label = f"{name}: Cllr {costs[0]:.3f}, minCllr {costs[1]:.3f}"
        (line,) = axes.plot(LOG_ODDS, actual, linewidth=1.6, label=label)
        axes.plot(LOG_ODDS, least, "--", linewidth=1.2, color=line.get_color())
    axes.plot([], [], "k--", linewidth=1.2, label="least cost of any threshold")
    axes.set(xlim=(LOG_ODDS[0], LOG_ODDS[-1]), ylim=(0, HIGHEST))
    axes.set_xlabel("ln(P / (1 − P)) of the target prior P (grey lines)")
    axes.set_ylabel("normalised cost of decisions")
    axes.grid(True, axis="y", linewidth=0.4, alpha=0.6)
    # Below the axes: within, it would hide whichever curve passes there.
    figure.legend(loc="outside lower center", fontsize=9, frameon=False)
    save_figure(figure, path)


def bayes_costs(llrs, labels, log_odds):
    """Normalised cost of decisions at many priors, unit costs.

    Arguments
    ---------
    llrs : array_like
        float [T], natural-log likelihood ratios.
    labels : array_like
        0 or 1 [T], 1 = same speaker.
    log_odds : array_like
        float [P], ln(prior / (1 - prior)).

    Returns
    -------
    actual : np.ndarray
        float64 [P], as :func:`~speechbrain_ext.scoring.metrics.actual_dcf`.
    least : np.ndarray
        float64 [P], as :func:`~speechbrain_ext.scoring.metrics.min_dcf`.

    Raises
    ------
    InputError
        As :func:`~speechbrain_ext.scoring.operating_points.error_rates`.
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
    try:
        actual, least = bayes_costs(llrs, labels, LOG_ODDS)
        return actual, least, (cllr(llrs, labels).cllr, min_cllr(llrs, labels).cllr)
    except InputError as error:
        raise InputError(f"system '{name}': {error}") from error
