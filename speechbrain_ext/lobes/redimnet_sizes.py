"""Published sizes of ReDimNet and ReDimNet2, and the check of what a stage is given.

A published file holds its own. Those of ReDimNet are wespeaker's copies of the models
(github.com/wenet-e2e/wespeaker, ``models/redimnet.py``), of which B2 to B5 have 0.1 to
0.2 M parameters more than the paper says, B5 1.5 M fewer. Those of ReDimNet2 agree with
the published parameters and multiply-adds: B3 is that of the published recipe, and all
have a map at the end, where wespeaker's B0 to B3 (``redimnet2.py``) are smaller.
"""

from speechbrain_ext.utils.errors import InputError


def _setups(*stages):
    """(stride, blocks, expansion, reduction) → as published, with 3×3 kernels."""
    return [[s, n, expansion, [[3, 3]], r] for s, n, expansion, r in stages]


# F, C, blocks over maps, group_divisor, stages
_B1 = (1, 2, 1, None), (2, 3, 1, None), (3, 4, 1, 12), (2, 5, 1, 12), (2, 3, 1, 8)
_B2 = (1, 2, 1, 12), (2, 2, 1, 12), (1, 3, 1, 12), (2, 4, 1, 8), (1, 4, 1, 8)
_B3 = (1, 6, 4, 32), (2, 6, 2, 32), (1, 8, 2, 32), (2, 10, 2, 16), (1, 10, 1, 16)
_B4 = (1, 4, 2, 48), (2, 4, 2, 48), (1, 6, 2, 48), (2, 6, 1, 32), (1, 8, 1, 24)
_B6 = (1, 4, 4, 32), (2, 6, 2, 32), (1, 6, 2, 24), (3, 8, 1, 24), (1, 8, 1, 16)
_B0 = (1, 2, 1, 30), (2, 3, 2, 30), (1, 3, 3, 30), (2, 4, 2, 10), (1, 3, 1, 10)
SIZES = {
    "B0": (60, 10, "basic_resnet", 1, _setups(*_B0)),
    "B1": (72, 12, "convnext_like", 8, _setups(*_B1)),
    "B2": (72, 16, "convnext_like", 4, _setups(*_B2, (2, 4, 1, 4))),
    "B3": (72, 16, "basic_resnet_fwse", 1, _setups(*_B3, (2, 8, 1, 16))),
    "B4": (72, 32, "basic_resnet_fwse", 1, _setups(*_B4, (2, 4, 1, 16))),
    "B5": (72, 32, "basic_resnet_fwse", 16, _setups(*_B4, (2, 4, 1, 16))),
    "B6": (72, 32, "basic_resnet", 32, _setups(*_B6, (2, 8, 1, 16))),
}


def _setups2(blocks, expansions, reductions, strides=(1, 2, 1, 2, 1, 2)):
    """Stages whose bins and frames are halved in turn."""
    times = (1, 1, 2, 1, 2, 1)
    return [
        [[s, t], n, expansion, [[3, 3]], reduction]
        for s, t, n, expansion, reduction in zip(
            strides, times, blocks, expansions, reductions
        )
    ]


# C, channels behind the last sum, stages
_N = (2, 3, 4, 5, 4, 3)
_E, _WIDE = (2, 1, 1, 1, 1, 1), (4, 3, 2, 1, 1, 1)
_B2 = (40, 30, 30, 20, 20, 10)
_B6 = (3, 4, 5, 5, 4, 3), (3, 2, 2, 1, 0.75, 0.5), (64, 64, 48, 48, 32, 24)
SIZES2 = {
    "B0": (12, 64, _setups2(_N, _E, (36, 36, 36, 36, 18, 18))),
    "B1": (16, 0, _setups2(_N, _E, (32, 32, 32, 32, 16, 16))),
    "B2": (20, 0, _setups2(_N, _E, _B2, (1, 2, 1, 3, 1, 2))),
    "B3": (24, 0, _setups2(_N, _WIDE, [24] * 6)),
    "B4": (32, 0, _setups2(_N, _WIDE, [24] * 6)),
    "B5": (48, 256, _setups2(_N, _WIDE, (48, 48, 48, 48, 32, 32))),
    "B6": (64, 224, _setups2(*_B6)),
}


def of_size(table, size):
    """What a size says. InputError: there is none of that name."""
    if size not in table:
        raise InputError(f"size={size!r}, expected one of {', '.join(table)}")
    return table[size]


def checked_stage(setup, number, strides=None):
    """A stage's five values, or one line that says what they should be."""
    wanted = "[stride, blocks, expansion, [[3, 3]], reduction]"
    if strides:
        wanted = f"[[bins, frames], {wanted[len('[stride, ') :]}"
    try:
        stride, blocks, expansion, kernels, reduction = setup
        strided = stride if strides else (stride,)
        whole = [*strided, blocks + 1, *(size for pair in kernels for size in pair)]
        right = len(strided) == (strides or 1) and expansion > 0
        right = right and all(type(n) is int and n >= 1 for n in whole)
        right = right and all(len(k) == 2 and k[0] % 2 and k[1] % 2 for k in kernels)
        right = right and (reduction is None or reduction >= 1)
    except (TypeError, ValueError):
        right = False
    if not right:
        raise InputError(
            f"stages_setup: stage {number} is {setup!r}, expected {wanted}"
        )
    return stride, blocks, expansion, kernels, reduction
