"""Calibration and fusion: scores and qualities → log-likelihood ratios.

An affine ℓ(x) = w·x + b of F standardised inputs minimises, over N⁺ targets and N⁻
non-targets, a prior-weighted logistic cost::

    P / N⁺ Σ⁺ ln(1 + e^-(ℓ + θ)) + (1 - P) / N⁻ Σ⁻ ln(1 + e^(ℓ + θ)) + ½ Σ λ_f w_f²

with θ = ln(P / (1 - P)), the log odds of the prior (Brümmer & du Preez,
"Application-independent evaluation of speaker detection", Computer Speech & Language
20, 2006, and Brümmer's FoCal). ℓ + θ is the posterior log odds at the prior P, so ℓ is
a natural-log likelihood ratio whatever the prior. At P = 1/2 the cost is Cllr (times
ln 2); at P = the share of targets in training it is the mean cross-entropy of the
trials.

The cost is convex, and strictly so with all λ > 0: one solution, also for separable
trials and for inputs that depend on each other, as the qualities of a trial do (max -
min = difference). A trust-region Newton method with the exact Hessian finds it in some
ten steps to ten digits (8 on 30,000 trials of 13 inputs, where L-BFGS takes 33 to six).

One input, the score, is plain affine calibration; a score and its qualities
(:mod:`~speechbrain_ext.scoring.calibration.quality`) are quality-aware calibration; one
score per system (:func:`~speechbrain_ext.scoring.calibration.fusion.stack_scores`) is
fusion.
"""

import logging

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from speechbrain_ext.scoring.metrics import checked_scores
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import read_json, write_json

logger = logging.getLogger(__name__)

OBJECTIVES = ("cllr", "cross_entropy")
L2 = 1e-6  # weights of separable trials stay finite; others shift by 1e-5 or so
FORMAT, VERSION = "speechbrain_ext calibrator", 1
ENTRIES = {
    "names": [str],
    "objective": str,
    "p_target": float,
    "l2": float,
    "l2_quality": float,
    "weights": [float],
    "bias": float,
    "n_target": int,
    "n_nontarget": int,
}
TOLERANCE = 1e-7  # largest slope of the cost at its end, in nats per unit of a weight


def fit_logistic(inputs, labels, prior, l2):
    """Weights float64 [F] and bias of least cost; deterministic.

    ``inputs`` float64 [T, F] have about unit variance, ``labels`` bool [T] are of both
    classes, ``l2`` is one λ above 0 or one per input. InputError: no convergence.
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


class QualityCalibrator:
    """Affine map from the inputs of a trial to its log-likelihood ratio.

    Arguments
    ---------
    names : sequence of str or None
        The inputs [F], in order; None numbers them when fitted (``input_1``, ...).
    objective : str
        ``cllr``, where both classes count as the prior says whatever their numbers, or
        ``cross_entropy``, where every trial counts the same.
    p_target : float
        Prior P of the ``cllr`` objective, in (0, 1); 0.5 is Cllr itself, a smaller one
        minds false alarms more.
    l2 : float
        λ above 0, of the first input, which is the score.
    l2_quality : float or None
        λ of the other inputs; None takes ``l2``, as fusion wants it.

    Attributes
    ----------
    weights : np.ndarray or None
        float64 [F], for inputs as they come; None before :meth:`fit` or :meth:`load`.
    bias : float or None
    n_target, n_nontarget : int or None
        Trials of the training.
    """

    def __init__(
        self, names=None, objective="cllr", p_target=0.5, l2=L2, l2_quality=None
    ):
        if objective not in OBJECTIVES:
            raise InputError(
                f"objective '{objective}', expected one of {', '.join(OBJECTIVES)}"
            )
        if not 0 < p_target < 1:
            raise InputError(f"p_target is {p_target}, expected between 0 and 1")
        if objective == "cross_entropy" and p_target != 0.5:
            raise InputError(
                f"p_target is {p_target} with objective 'cross_entropy', whose prior "
                "is the share of targets in training; expected objective 'cllr'"
            )
        l2_quality = l2 if l2_quality is None else l2_quality
        for name, value in (("l2", l2), ("l2_quality", l2_quality)):
            if not 0 < value < np.inf:
                raise InputError(f"{name} is {value}, expected a finite number above 0")
        self.names = None if names is None else _checked_names(names)
        self.objective, self.p_target = objective, float(p_target)
        self.l2, self.l2_quality = float(l2), float(l2_quality)
        self.weights = self.bias = self.n_target = self.n_nontarget = None

    def fit(self, features, labels):
        """Fit to labelled trials; deterministic.

        Arguments
        ---------
        features : array_like
            float [T, F]. A constant input gets weight 0.
        labels : array_like
            0 or 1 [T], 1 = same speaker.

        Returns
        -------
        QualityCalibrator
            Itself.

        Raises
        ------
        InputError
            Another shape, a value that is not finite, other labels, a single class,
            or no convergence.
        """
        names = self.names
        if names is None:
            width = np.shape(features)[1] if np.ndim(features) == 2 else 0
            names = [f"input_{i + 1}" for i in range(width)]
        features = _checked_features(features, names)
        _, labels = checked_scores(features[:, 0], labels)
        n_target = int(labels.sum())
        prior = n_target / len(labels)
        if self.objective == "cllr":
            prior = self.p_target
        mean, scale = features.mean(axis=0), features.std(axis=0)
        # Rounding gives constant columns a deviation of about 1e-16 of their size.
        varies = scale > 1e-12 * np.abs(features).max(axis=0)
        inputs = (features[:, varies] - mean[varies]) / scale[varies]
        l2 = np.full(len(names), self.l2_quality)
        l2[0] = self.l2
        weights, bias = fit_logistic(inputs, labels, prior, l2[varies])
        self.names = names
        self.weights = np.zeros(len(names))
        self.weights[varies] = weights / scale[varies]
        self.bias = float(bias - self.weights @ mean)
        self.n_target, self.n_nontarget = n_target, len(labels) - n_target
        return self

    def log_likelihood_ratio(self, features):
        """ℓ of each trial.

        Arguments
        ---------
        features : array_like
            float [T, F], inputs in the order of ``names``.

        Returns
        -------
        np.ndarray
            float64 [T], natural logarithm.

        Raises
        ------
        InputError
            Not fitted; another shape; a value that is not finite.
        """
        self._check_fitted()
        features = _checked_features(features, self.names)
        # Not a BLAS product, which may round two equal rows of a matrix differently.
        return np.einsum("tf,f->t", features, self.weights) + self.bias

    def warn_if_turned(self, source):
        """Warn where a higher score, the first input, makes a target less likely.

        Not an error: with a model that tells nothing either sign may come out.

        Arguments
        ---------
        source : str or Path
            Begins the message.

        Returns
        -------
        QualityCalibrator
            Itself.
        """
        if self.weights[0] <= 0:
            logger.warning(
                "%s: weight %.3g of %s, expected above 0: likelihood ratios decide the "
                "reverse of it, where they decide at all; either the labels are turned "
                "round or it tells nothing",
                *(source, self.weights[0], self.names[0]),
            )
        return self

    def save(self, path):
        """Write to a JSON file, atomically; the numbers come back bit for bit.

        Raises
        ------
        InputError
            Not fitted.
        """
        self._check_fitted()
        content = {key: getattr(self, key) for key in ENTRIES}
        content["weights"] = self.weights.tolist()
        write_json(path, {"format": FORMAT, "version": VERSION, **content})

    @classmethod
    def load(cls, path, names=None):
        """Read a file of :meth:`save`, checked in full, as :meth:`warn_if_turned`.

        Arguments
        ---------
        path : str or Path
            JSON.
        names : sequence of str or None
            The inputs that will be given, in order; None takes those of the file.

        Returns
        -------
        QualityCalibrator

        Raises
        ------
        InputError
            Missing, damaged or foreign file; inputs other than ``names``.
        """
        schema = {"format": FORMAT, "version": VERSION, **ENTRIES}
        content = read_json(path, schema, others=False, what=f"a {FORMAT}")
        if names is not None and list(names) != content["names"]:
            raise InputError(
                f"{path}: calibrates {', '.join(content['names'])}, expected "
                f"{', '.join(names)}"
            )
        if len(content["weights"]) != len(content["names"]):
            raise InputError(
                f"{path}: {len(content['weights'])} weights for "
                f"{len(content['names'])} inputs, expected as many"
            )
        options = ("names", "objective", "p_target", "l2", "l2_quality")
        with naming(path):
            calibrator = cls(**{key: content[key] for key in options})
        calibrator.weights = np.array(content["weights"], dtype=np.float64)
        calibrator.bias = float(content["bias"])
        calibrator.n_target = content["n_target"]
        calibrator.n_nontarget = content["n_nontarget"]
        return calibrator.warn_if_turned(path)

    def _check_fitted(self):
        if self.weights is None:
            raise InputError("the calibrator is not fitted, expected fit() or load()")


def _checked_names(names):
    names = list(names)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"inputs named {names}, expected at least one name")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"input '{twice}' comes twice, expected each name once")
    return names


def _checked_features(features, names):
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] != len(names) or not names:
        raise InputError(
            f"features of shape {list(features.shape)}, expected "
            f"[T, {len(names) or 'F'}]: {', '.join(names) or 'a column per input'}"
        )
    if features.dtype.kind not in "fiu":
        raise InputError(f"features of type {features.dtype}, expected real numbers")
    finite = np.isfinite(features)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InputError(
            f"{names[column]} is {features[row, column]} in trial {row + 1} "
            f"({int((~finite).sum())} such), expected finite numbers"
        )
    return features.astype(np.float64, order="C", copy=False)
