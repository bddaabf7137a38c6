"""Blocks of ReDimNet and ReDimNet2: maps [B, T, F, C] and sequences [B, T, D].

    reshape: x[b, t, f, c] = x[b, t, f · C + c],   D = F · C

Yakovlev et al. 2024 (arXiv 2407.18223) and 2026 (arXiv 2603.11841). With the channels
last that reshape is a view, 1×1 convolutions are products, and LayerNorms run over
memory that lies together; the published code has [B, C, F, T] and copies.

What looks sideways in time, or counts frames, takes ``padding`` [B, T], True behind a
row's end, None where nothing is padded.
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.attention import attend
from speechbrain_ext.lobes.convolution import channelwise, scale_and_shift
from speechbrain_ext.lobes.cpu_inference import (
    Linear,
    inference_on_cpu,
    linear,
)
from speechbrain_ext.utils.errors import InputError

EPS = 1e-6  # of every LayerNorm, and of the BatchNorm that ends a stage
HEADS = 4
# Numbers in the part of a map that goes through a block at a time on a CPU: what is
# made of it stays in the cache
PART = 2**19


class MapConv(nn.Conv2d):
    """A convolution over time and frequency of maps [B, T, F, C].

    Arguments
    ---------
    channels, out_channels : int
    kernel : tuple of int
        (time, frequency), odd, with zeros around the map.
    strided : bool
        The kernels lie side by side.
    """

    def __init__(self, channels, out_channels, kernel, strided=False, **options):
        options["stride"] = kernel if strided else 1
        options["padding"] = 0 if strided else tuple(size // 2 for size in kernel)
        super().__init__(channels, out_channels, kernel, **options)
        self.strided = strided

    def forward(self, x, weight=None, bias=None):
        """[B, T, F, C] → [B, T', F', C']; with other weights where they are given."""
        if weight is None:
            weight, bias = self.weight, self.bias
        pointwise = self.strided and self.kernel_size == (1, 1)
        if self.groups > 1 and pointwise and inference_on_cpu(x):
            # zeros between the groups take less time than torch's convolution
            return linear(
                x, torch.block_diag(*weight[..., 0, 0].chunk(self.groups)), bias
            )
        if self.groups == 1 and self.strided and self.kernel_size[0] == 1:
            # neighbouring bins lie together: a product
            bins = x.shape[2] // self.stride[1]
            x = x.reshape(*x.shape[:2], bins, -1)
            return linear(x, weight[:, :, 0].transpose(1, 2).flatten(1), bias)
        x = x.permute(0, 3, 1, 2)
        if self.groups == self.in_channels > 1:
            x = channelwise(self._conv_forward, x, weight, bias)
        else:
            x = self._conv_forward(x, weight, bias)
        return x.permute(0, 2, 3, 1)


def groups_of(channels, divisor, inputs=None):
    """Groups of a convolution: ⌊channels / divisor⌋; divisor 0: one.

    InputError: they do not divide the channels, or the ``inputs``.
    """
    groups = channels // divisor if divisor else 1
    if not groups or channels % groups or (inputs or channels) % groups:
        raise InputError(
            f"group_divisor={divisor}: {groups} groups of {inputs or channels} → "
            f"{channels} channels, expected a divisor of both"
        )
    return groups


def normed(norm, x):
    """A BatchNorm over all but the last dimension."""
    return norm(x.flatten(0, -2)).view(x.shape)


def zeroed(x, padding):
    """Zeros in the padding: [B, T, …] → the same."""
    if padding is None:
        return x
    return x.masked_fill(padding.view(*padding.shape, *[1] * (x.dim() - 2)), 0.0)


# -- BatchNorm inside weights ----------------------------------------------------------


def folds(x, *modules):
    """Whether BatchNorms go into the weights of these modules: inference on a CPU.

    Every pass over a map costs as much as a small convolution there. Not with layers
    that were put around the modules (LoRA), whose own forward must run.
    """
    if not inference_on_cpu(x) or torch.is_autocast_enabled("cpu"):
        return False
    kinds = (Linear, MapConv, nn.BatchNorm1d, type(None))
    return all(type(m) in kinds and not (m and m.training) for m in modules)


def scaled(layer, scale, shift):
    """Weight and bias of a layer whose output is scaled and shifted by channel."""
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    return weight, shift if layer.bias is None else layer.bias * scale + shift


def applied(layer, x, weight, bias):
    """A layer with other weights."""
    if isinstance(layer, MapConv):
        return layer(x, weight, bias)
    return linear(x, weight, bias)


def in_parts(run, x, halo, out):
    """``run`` a map [B, T, F, C], so many frames at a time, into ``out``, may be ``x``.

    ``halo`` is the number of frames that a result depends on to either side.
    """
    frames = x.shape[1]
    parts = max(1, min(x.numel() // PART, frames // (8 * halo)))
    if parts == 1:
        y = run(x)
        return y if out is x else out.copy_(y)
    before = x[:, :0]
    for part in range(parts):
        start, stop = part * frames // parts, (part + 1) * frames // parts
        y = run(torch.cat([before, x[:, start : stop + halo]], dim=1))
        done, before = before.shape[1], x[:, stop - halo : stop].clone()
        out[:, start:stop] = y[:, done : done + stop - start]
    return out


# -- blocks over maps ------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions in groups, each with a 1×1 one behind it.

        y = ReLU(x + g · BN(P₂ W₂ BN(ReLU(P₁ W₁ x))))

    ReLU comes before the first BatchNorm. g is a gate by frequency, if there is one.

    Arguments
    ---------
    channels : int
    bins : int
        F, for the gate.
    group_divisor : int
        So many times fewer groups than channels; 0: one group, no 1×1 convolutions.
    gated : bool
        g = σ(V₂ ReLU(V₁ mean_tc x)).
    """

    def __init__(self, channels, bins, group_divisor, gated=False):
        super().__init__()

        def convolution():
            groups = groups_of(channels, group_divisor)
            return MapConv(channels, channels, (3, 3), bias=False, groups=groups)

        def pointwise():
            return Linear(channels, channels) if group_divisor else None

        self.conv1, self.point1 = convolution(), pointwise()
        self.norm1 = nn.BatchNorm1d(channels)
        self.conv2, self.point2 = convolution(), pointwise()
        self.norm2 = nn.BatchNorm1d(channels)
        size = min(64, max(channels, 32))
        self.gate = FrequencyGate(bins, size) if gated else None

    def forward(self, x, padding=None):
        """[B, T, F, C] → the same."""
        parts = (self.conv1, self.point1, self.norm1, self.conv2, self.point2)
        if padding is None and folds(x, *parts, self.norm2):
            return self._folded(x)
        y = self.conv1(zeroed(x, padding))
        y = normed(self.norm1, (self.point1(y) if self.point1 else y).relu())
        y = self.conv2(zeroed(y, padding))
        y = normed(self.norm2, self.point2(y) if self.point2 else y)
        if self.gate is not None:
            y = self.gate(y, padding)
        return (y + x).relu()

    def _folded(self, x):
        """BatchNorms inside the weights: s · max(a, 0) + t = σ max(|s| a + σt, σt)."""
        scale, shift = scale_and_shift(self.norm1)
        sign = torch.where(scale < 0, -1.0, 1.0).to(scale.dtype)  # σ
        floor = sign * shift
        first = scaled(self.point1 or self.conv1, scale.abs(), floor)
        groups = self.conv2.groups
        weight = self.conv2.weight.unflatten(0, (groups, -1))
        weight = (weight * sign.view(groups, 1, -1, 1, 1)).flatten(0, 1)
        scale, shift = scale_and_shift(self.norm2)
        if self.point2:
            last = scaled(self.point2, scale, shift)
        else:
            last = weight * scale.view(-1, 1, 1, 1), shift

        def residual(x):
            y = self.conv1(x, *(() if self.point1 else first))
            y = linear(y, *first) if self.point1 else y
            y = torch.maximum(y, floor, out=y)
            if not self.point2:
                return self.conv2(y, *last)
            return linear(self.conv2(y, weight), *last)

        if self.gate is not None:
            y = in_parts(residual, x, 2, torch.empty_like(x))
            return self.gate(y).add_(x).relu_()
        return in_parts(lambda x: residual(x).add_(x).relu_(), x, 2, x)


class FrequencyGate(nn.Module):
    """Squeeze-excitation by frequency: x · σ(V₂ ReLU(V₁ mean_tc x))."""

    def __init__(self, bins, size):
        super().__init__()
        self.squeeze, self.excite = Linear(bins, size), Linear(size, bins)

    def forward(self, x, padding=None):
        """[B, T, F, C] → the same."""
        mean = zeroed(x, padding).mean((1, 3))
        if padding is not None:
            count = (~padding).sum(1, keepdim=True)
            mean = mean * (padding.shape[1] / count)
        gates = self.excite(self.squeeze(mean).relu()).sigmoid()
        return x * gates[:, None, :, None]


class ConvNeXtBlock(nn.Module):
    """y = x + P a(BN([W_k x for kernels k])): maps, or sequences [B, T, C].

    Liu et al. 2022 (arXiv 2201.03545), with BatchNorm behind the convolutions.

    Arguments
    ---------
    channels : int
    kernels : list
        (time, frequency) of each convolution.
    group_divisor : int
        So many times fewer groups than channels; 0: one group.
    activation : str
        "gelu" or "relu".
    """

    def __init__(self, channels, kernels, group_divisor=1, activation="gelu"):
        super().__init__()
        groups = groups_of(channels, group_divisor)
        self.convs = nn.ModuleList(
            MapConv(channels, channels, tuple(kernel), groups=groups)
            for kernel in kernels
        )
        self.norm = nn.BatchNorm1d(channels * len(kernels))
        self.activation = {"gelu": F.gelu, "relu": F.relu}[activation]
        self.point = Linear(channels * len(kernels), channels)

    def forward(self, x, padding=None):
        """[B, T, F, C] or [B, T, C] → the same."""
        # torch's convolutions are faster along the last axis
        if padding is None and folds(x, *self.convs, self.point, self.norm):
            return self._folded(x if x.dim() == 4 else x.unsqueeze(1)).view(x.shape)
        maps = zeroed(x, padding)
        maps = maps if x.dim() == 4 else maps.unsqueeze(1)
        y = torch.cat([conv(maps) for conv in self.convs], -1)
        y = self.point(self.activation(normed(self.norm, y)))
        return x + y.view(x.shape)

    def _folded(self, x):
        """BatchNorm inside the weights of the convolutions."""
        pieces = [piece.chunk(len(self.convs)) for piece in scale_and_shift(self.norm)]
        weights = [scaled(*piece) for piece in zip(self.convs, *pieces)]

        def block(x):
            ys = [conv(x, *given) for conv, given in zip(self.convs, weights)]
            y = ys[0] if len(ys) == 1 else torch.cat(ys, -1)
            return self.point(self.activation(y)).add_(x)

        return in_parts(block, x, max(c.padding[0] for c in self.convs) or 1, x)


class ConvNeXtMap(ConvNeXtBlock):
    """The same over maps, told apart from those over time in profiles."""


# -- blocks over time ------------------------------------------------------------------


class PositionalConv(nn.Module):
    """y = x + LN(W x), a depthwise convolution of 59 frames."""

    def __init__(self, size):
        super().__init__()
        self.conv = MapConv(size, size, (1, 59), groups=size)
        self.norm = nn.LayerNorm(size, EPS)

    def forward(self, x, padding=None):
        """[B, T, C] → the same."""
        y = self.conv(zeroed(x, padding).unsqueeze(1)).squeeze(1)
        return x + self.norm(y)


class TransformerLayer(nn.Module):
    """y = LN(x + Attention(x)),  z = LN(y + W₂ GELU(W₁ y)), GELU by tanh.

    Vaswani et al. 2017 (arXiv 1706.03762), four heads.
    """

    def __init__(self, size, hidden):
        super().__init__()
        if size % HEADS:
            raise InputError(f"reduced width {size}, expected a multiple of {HEADS}")
        self.query, self.key = Linear(size, size), Linear(size, size)
        self.value, self.out = Linear(size, size), Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, EPS)
        self.hidden, self.output = Linear(size, hidden), Linear(hidden, size)
        self.norm = nn.LayerNorm(size, EPS)

    def forward(self, x, padding=None):
        """[B, T, C] → the same."""
        heads = [
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        ]
        x = self.attention_norm(x + self.out(attend(*heads, padding)))
        y = self.output(F.gelu(self.hidden(x), approximate="tanh"))
        return self.norm(x + y)


class WideLayer(nn.Sequential):
    """W₂ GELU(LN(W₁ x)), twice as wide inside."""

    def __init__(self, size):
        super().__init__(
            Linear(size, 2 * size),
            nn.LayerNorm(2 * size, EPS),
            nn.GELU(),
            Linear(2 * size, size),
        )

    def forward(self, x, padding=None):
        """[B, T, C] → the same."""
        return super().forward(x)


def _convolutions(size, *kernels):
    """A ConvNeXt block for each list of lengths in time."""
    return [ConvNeXtBlock(size, [(1, k) for k in lengths]) for lengths in kernels]


# block_1d_type → layers of a width
TIME_LAYERS = {
    "fc": lambda size: [WideLayer(size)],
    "conv": lambda size: _convolutions(size, *[(7, 15, 31)] * 4),
    "convx2": lambda size: _convolutions(size, *[(7, 15)] * 3),
    "att": lambda size: [PositionalConv(size), TransformerLayer(size, 2 * size)],
    "conv+att": lambda size: [
        *_convolutions(size, (7,), (19,), (31,), (59,)),
        TransformerLayer(size, size),
    ],
}


class TimeContext(nn.Module):
    """y = x + W₂ L(LN(W₁ x)): layers L over time, of fewer channels.

    Arguments
    ---------
    width, size : int
        D, and the width of the layers.
    kind : str
        A key of :data:`TIME_LAYERS`.
    """

    def __init__(self, width, size, kind):
        super().__init__()
        self.reduce = Linear(width, size)
        self.norm = nn.LayerNorm(size, EPS)
        self.layers = nn.ModuleList(TIME_LAYERS[kind](size))
        self.expand = Linear(size, width)

    def forward(self, x, padding=None):
        """[B, T, D] → the same."""
        y = self.norm(self.reduce(x))
        for layer in self.layers:
            y = layer(y, padding)
        return self.expand(y) + x
