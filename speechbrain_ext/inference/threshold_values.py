"""What stands in ``thresholds.json`` for one kind of score, checked in full.

thresholds            t_1 < t_2 < … < t_P
false_accept_rates    falling, fractions
miss_rates            rising, fractions
n_target, n_nontarget, eer, eer_threshold
"""

import math
import reprlib

import numpy as np

from speechbrain_ext.errors import InputError

CURVES = ("thresholds", "false_accept_rates", "miss_rates")
NUMBERS = {"n_target": int, "n_nontarget": int, "eer": float, "eer_threshold": float}


def checked_values(values):
    """Entries as JSON gives them → those of a Thresholds.

    Arguments
    ---------
    values : dict
        Lists [P] and numbers.

    Returns
    -------
    dict
        The same, the curves as float64 [P].

    Raises
    ------
    InputError
        Another entry, type, length, order or range.
    """
    if not isinstance(values, dict) or set(values) != {*CURVES, *NUMBERS}:
        names = ", ".join([*CURVES, *NUMBERS])
        raise InputError(f"expected the entries {names}")
    for name, kind in NUMBERS.items():
        if type(values[name]) is not kind or not math.isfinite(values[name]):
            raise InputError(
                f"{name} is {reprlib.repr(values[name])}, expected a finite "
                f"{kind.__name__}"
            )
    if min(values["n_target"], values["n_nontarget"]) < 1:
        raise InputError("no target or no non-target trials, expected some of each")
    curves = {name: _checked_curve(name, values[name]) for name in CURVES}
    _check_order(**curves)
    return values | curves


def _checked_curve(name, values):
    numbers = isinstance(values, list) and all(type(v) in (int, float) for v in values)
    curve = np.array(values if numbers else [], dtype=np.float64)
    if not len(curve) or not np.isfinite(curve).all():
        raise InputError(f"{name}: expected a list of finite numbers")
    return curve


def _check_order(thresholds, false_accept_rates, miss_rates):
    if not len(thresholds) == len(false_accept_rates) == len(miss_rates):
        raise InputError(
            f"{len(thresholds)} thresholds, {len(false_accept_rates)} false accept "
            f"rates and {len(miss_rates)} miss rates, expected as many of each"
        )
    rates = np.concatenate([false_accept_rates, miss_rates])
    if rates.min() < 0 or rates.max() > 1:
        raise InputError("a rate outside 0 to 1, expected fractions")
    if (
        (np.diff(thresholds) <= 0).any()
        or (np.diff(false_accept_rates) > 0).any()
        or (np.diff(miss_rates) < 0).any()
    ):
        raise InputError(
            "points out of order, expected rising thresholds and miss rates and "
            "falling false accept rates"
        )
