"""Where the time of a forward pass goes, and what its arithmetic alone would take.

    limit of a kind of layer = its multiply-adds / rate of a matrix product

The kinds are those that the encoder declares (``layer_kinds``), then its head. The rate
is measured in the same run, on the model's own feed-forward matrices at as many rows as
the utterance has frames, each read once a round, as in a pass. What a kind takes beyond
its limit is memory traffic, softmax, norms, activations, and calls of small operations.
"""

import statistics
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from speechbrain_ext.lobes.encoder import Encoder
from speechbrain_ext.pruning.costs import counted_operations, on_meta
from speechbrain_ext.scoring.plots import new_figure, save_figure
from speechbrain_ext.utils.errors import InputError

FEED_FORWARD = "feed-forward"  # the kind whose matrices give the rate
HEAD = "head"
REST = "rest"  # projection, norms and sums between the layers


class LayerTime(NamedTuple):
    """Seconds of one kind of layer, its multiply-adds, and those at the limit."""

    name: str
    seconds: float
    macs: int
    limit: float


def layer_times(model, seconds=10.0, repeats=5):
    """Time every kind of layer in one utterance's forward pass.

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
    list of LayerTime
        The encoder's ``layer_kinds``, the head, and the rest.

    Raises
    ------
    InputError
        Where the utterance is too short, or the encoder declares no kinds.
    """
    encoder = model.encoder
    if not encoder.layer_kinds():
        raise InputError(
            f"{type(encoder).__name__} declares no kinds of layers, expected an "
            "encoder with layer_kinds()"
        )
    encoder.example(seconds)  # too short for it: an error
    device = next(model.parameters()).device
    wavs = 0.1 * torch.randn(1, round(encoder.sample_rate * seconds), device=device)
    macs, frames = _multiply_adds(model, wavs)
    with torch.inference_mode():
        passes = [
            _spent(model, lambda: model(wavs), _clock(device))
            for _ in range(1 + repeats)
        ][1:]
        rate = matrix_rate(model, frames, repeats)
    return [
        LayerTime(name, statistics.median(p[name] for p in passes), count, count / rate)
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
    than they ever are in a pass. Without layers named ``feed-forward`` all linear
    layers and convolutions are taken; the other matrix has ``rows``. → callable, its
    multiply-adds.
    """
    kinds = {}
    for encoder in (model, getattr(model, "encoder", None)):
        if isinstance(encoder, Encoder):
            kinds = encoder.layer_kinds()
            break
    kind = kinds.get(FEED_FORWARD, ())
    weights = [
        weight
        for module in model.modules()
        if isinstance(module, kind)
        for weight in _matrices(module)
    ] or _matrices(model)
    inputs = {
        w.shape[1]: torch.randn(rows, w.shape[1], device=w.device) for w in weights
    }

    def products():
        for weight in weights:
            nn.functional.linear(inputs[weight.shape[1]], weight)

    return products, rows * sum(map(torch.numel, weights))


def _matrices(module):
    """Weights of linear layers and convolutions [out, in], less those of LoRA."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return [
        part.weight.flatten(1)
        for name, part in module.named_modules()
        if isinstance(part, kinds) and "lora_" not in name
    ]


def _multiply_adds(model, wavs):
    """Of every kind of layer, by name, and the frames that there are."""
    bare, states = on_meta(model).eval(), []
    with counted_operations() as counter, torch.no_grad():
        features = _spent(
            model, lambda: model.encoder.front_end(wavs), counter.get_total_flops
        )
        x, _ = bare.encoder.example(wavs.shape[1] / bare.encoder.sample_rate)

        def run():
            states.extend(bare.encoder.encode(x))
            bare.head(states, None)

        spent = _spent(bare, run, counter.get_total_flops)
    macs = {name: (flops + features[name]) // 2 for name, flops in spent.items()}
    return macs, states[-1].shape[1]


def _spent(model, run, read):
    """How far ``read`` moves in each kind of layer while the model runs, by name."""
    kinds = model.encoder.layer_kinds()
    totals = dict.fromkeys([*kinds, HEAD], 0)
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

    watch(model.head, HEAD)
    for module in model.encoder.modules():
        for name, kind in kinds.items():
            if isinstance(module, kind):
                watch(module, name)
    try:
        start = read()
        run()
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


def plot_layers(path, times):
    """PNG of what a second of audio costs, by kind of layer; dark: its arithmetic.

    ``times`` is length of the utterance in seconds → list of LayerTime.
    """
    figure, axes = new_figure(7.5, 1.6 + 0.6 * len(times))
    for row, (seconds, layers) in enumerate(times.items()):
        left = 0.0
        for number, layer in enumerate(layers):
            cost = 1000 * np.array([min(layer.limit, layer.seconds), layer.seconds])
            bar = {"left": left, "color": f"C{number}", "edgecolor": "white"}
            label = layer.name if row == 0 else None
            axes.barh(row, cost[1] / seconds, alpha=0.45, **bar)
            axes.barh(row, cost[0] / seconds, label=label, **bar)
            left += cost[1] / seconds
    axes.set_yticks(range(len(times)), [f"{seconds:g} s" for seconds in times])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds for 1 s of audio; dark: at the rate of products")
    axes.legend(ncols=6, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, path)
