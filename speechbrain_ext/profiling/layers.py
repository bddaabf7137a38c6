"""Where the time of a forward pass goes, and what its arithmetic alone would take.

    limit of a stage = its multiply-adds / rate of a matrix product

The rate is measured in the same run, on the model's own feed-forward matrices at as
many rows as the utterance has frames, each read once a round, as in a pass. What a
stage takes beyond its limit is memory traffic, softmax, norms, activations, and calls
of small operations.
"""

import statistics
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from speechbrain_ext.features import SAMPLE_RATE, W2VBertFeatures
from speechbrain_ext.lobes.conformer import (
    ConvolutionModule,
    FeedForward,
    RelativeKeyAttention,
)
from speechbrain_ext.profiling import counted_operations
from speechbrain_ext.scoring.plots import new_figure, save_figure

STAGES = {
    "features": W2VBertFeatures,
    "feed-forward": FeedForward,
    "attention": RelativeKeyAttention,
    "convolution": ConvolutionModule,
}
REST = "rest"  # projection, norms and sums between the stages


class Stage(NamedTuple):
    """Seconds of one stage, its multiply-adds, and their seconds at the limit."""

    name: str
    seconds: float
    macs: int
    limit: float


def stage_times(model, seconds=10.0, repeats=5):
    """Time every stage of one utterance's forward pass.

    Arguments
    ---------
    model : SpeakerEncoder
        On any device; in eval mode.
    seconds : float
        Length of the utterance.
    repeats : int
        Timed passes, after one that is not; medians count.

    Returns
    -------
    list of Stage
        Features, feed-forward, attention, convolution, head, and the rest.

    Raises
    ------
    InputError
        Where the utterance is too short for a frame.
    """
    frames = model.encoder.n_frames(seconds)
    device = next(model.parameters()).device
    wavs = 0.1 * torch.randn(1, round(SAMPLE_RATE * seconds), device=device)
    with torch.inference_mode():
        macs = _multiply_adds(model, wavs)
        passes = [_spent(model, wavs, _clock(device)) for _ in range(1 + repeats)][1:]
        rate = matrix_rate(model, frames, repeats)
    return [
        Stage(name, statistics.median(p[name] for p in passes), count, count / rate)
        for name, count in macs.items()
    ]


def matrix_rate(model, rows, repeats=5):
    """Multiply-adds per second of :func:`matrix_products`, median of ``repeats``."""
    products, macs = matrix_products(model, rows)
    clock = _clock(next(model.parameters()).device)
    elapsed = []
    for _ in range(1 + repeats):  # the first is not counted
        start = clock()
        products()
        elapsed.append(clock() - start)
    return macs / statistics.median(elapsed[1:])


def matrix_products(model, rows):
    """Products with every feed-forward matrix of a model, one after the other.

    Few matrices taken again and again would stay in a large cache, and be 5 % faster
    than they ever are in a pass.

    Arguments
    ---------
    model : torch.nn.Module
        With feed-forward modules; without any, its linear layers are taken.
    rows : int
        Of the other matrix.

    Returns
    -------
    products : callable
        Without arguments or result.
    macs : int
        Its multiply-adds.
    """
    modules = list(model.modules())
    linears = [
        linear
        for part in modules
        if isinstance(part, FeedForward)
        for linear in (part.intermediate_dense, part.output_dense)
    ] or [module for module in modules if isinstance(module, nn.Linear)]
    weights = [linear.weight for linear in linears]
    inputs = {
        w.shape[1]: torch.randn(rows, w.shape[1], device=w.device) for w in weights
    }

    def products():
        for weight in weights:
            nn.functional.linear(inputs[weight.shape[1]], weight)

    return products, rows * sum(map(torch.numel, weights))


def _multiply_adds(model, wavs):
    with counted_operations() as counter:
        spent = _spent(model, wavs, counter.get_total_flops)
    return {name: flops // 2 for name, flops in spent.items()}


def _spent(model, wavs, read):
    """How far ``read`` moves during every stage: name → difference."""
    totals = dict.fromkeys([*STAGES, "head"], 0)
    started, hooks = {}, []

    def watch(module, name):
        def before(*_):
            started[name] = read()

        def after(*_):
            totals[name] += read() - started[name]

        hooks.extend(
            [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after),
            ]
        )

    watch(model.head, "head")
    for module in model.encoder.modules():
        for name, kind in STAGES.items():
            if isinstance(module, kind):
                watch(module, name)
    try:
        start = read()
        model(wavs)
        total = read() - start
    finally:
        for hook in hooks:
            hook.remove()
    return {**totals, REST: total - sum(totals.values())}


def _clock(device):
    if device.type != "cuda":
        return time.perf_counter

    def read():
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def plot_stages(path, times):
    """Draw what a second of audio costs, by stage; dark is what arithmetic takes.

    Arguments
    ---------
    path : str or Path
        PNG to write.
    times : dict
        Length of the utterance in seconds → list of Stage.
    """
    figure, axes = new_figure(7.5, 1.6 + 0.6 * len(times))
    for row, (seconds, stages) in enumerate(times.items()):
        left = 0.0
        for number, stage in enumerate(stages):
            cost = 1000 * np.array([min(stage.limit, stage.seconds), stage.seconds])
            bar = {"left": left, "color": f"C{number}", "edgecolor": "white"}
            label = stage.name if row == 0 else None
            axes.barh(row, cost[1] / seconds, alpha=0.45, **bar)
            axes.barh(row, cost[0] / seconds, label=label, **bar)
            left += cost[1] / seconds
    axes.set_yticks(range(len(times)), [f"{seconds:g} s" for seconds in times])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds for 1 s of audio; dark: at the rate of products")
    axes.legend(ncols=6, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, path)
