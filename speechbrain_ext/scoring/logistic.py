"""Prior-weighted logistic regression.

An affine ℓ(x) = w·x + b of F inputs minimises, over N⁺ targets and N⁻ non-targets::

    P / N⁺ Σ⁺ ln(1 + e^-(ℓ + θ)) + (1 - P) / N⁻ Σ⁻ ln(1 + e^(ℓ + θ)) + ½ Σ λ_f w_f²

with θ = ln(P / (1 - P)), the log odds of the prior (Brümmer & du Preez,
"Application-independent evaluation of speaker detection", Computer Speech & Language
20, 2006, and Brümmer's FoCal). ℓ + θ is the posterior log odds at the prior P, so ℓ is
a natural-log likelihood ratio whatever the prior.

The cost is convex, and strictly so with all λ > 0: one solution, also for separable
trials and for inputs that depend on each other, as the qualities of a trial do (max -
min = difference). A trust-region Newton method with the exact Hessian finds it in some
ten steps to ten digits (8 on 30,000 trials of 13 inputs, where L-BFGS takes 33 to six).
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from speechbrain_ext.errors import InputError

TOLERANCE = 1e-7  # largest slope of the cost at its end, in nats per unit of a weight


def fit_logistic(inputs, labels, prior, l2):
    """Fit by Newton steps; deterministic.

    Arguments
    ---------
    inputs : np.ndarray
        float64 [T, F], each of about unit variance.
    labels : np.ndarray
        bool [T], True for targets; both classes occur.
    prior : float
        P, in (0, 1).
    l2 : float or np.ndarray
        λ above 0, one for all inputs or float64 [F].

    Returns
    -------
    weights : np.ndarray
        float64 [F].
    bias : float

    Raises
    ------
    InputError
        No convergence.
    """
    inputs = np.concatenate((inputs, np.ones((len(inputs), 1))), axis=1)  # [T, F + 1]
    share = np.where(labels, prior / labels.sum(), (1 - prior) / (~labels).sum())
    sign, offset = np.where(labels, -1.0, 1.0), logit(prior)
    penalty = np.zeros(inputs.shape[1])  # the bias is free
    penalty[:-1] = l2

    def cost_and_slope(w):
        margin = sign * (inputs @ w + offset)
        cost = share @ np.logaddexp(0, margin) + penalty @ w**2 / 2
        return cost, inputs.T @ (share * sign * expit(margin)) + penalty * w

    def curvature(w):
        posterior = expit(inputs @ w + offset)
        weighted = inputs * (share * posterior * (1 - posterior))[:, None]
        return weighted.T @ inputs + np.diag(penalty)

    result = minimize(
        cost_and_slope,
        np.zeros(inputs.shape[1]),
        jac=True,
        hess=curvature,
        method="trust-exact",
        options={"gtol": TOLERANCE / 10, "maxiter": 1000},
    )
    slope = float(np.abs(result.jac).max())
    if not slope <= TOLERANCE:
        raise InputError(
            f"logistic regression on {len(labels)} trials stopped after {result.nit} "
            f"steps at a slope of {slope:.1g}, expected {TOLERANCE:g} at most: "
            f"{result.message}"
        )
    return result.x[:-1], float(result.x[-1])
