"""Stages of ReDimNet and ReDimNet2: sums of sources, and what a stage makes of them.

    s = Σ_j softmax_j(w)_j x_j
    m = Squeeze(Blocks(Resize(reshape s)))
    x = m + Time(m)

Yakovlev et al. 2024 (arXiv 2407.18223) and 2026 (arXiv 2603.11841).
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.cpu_inference import Linear
from speechbrain_ext.lobes.redim_blocks import (
    EPS,
    MapConv,
    applied,
    folds,
    normed,
    scale_and_shift,
    scaled,
    zeroed,
)


class Aggregation(nn.Module):
    """Σ_j softmax_j(w)_j x_j over sources [B, T / r_j, D], r_j their time stride.

    Arguments
    ---------
    sources : int
    width : int
        D, or 1: one weight for all channels.
    """

    def __init__(self, sources, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(sources, width))

    def forward(self, sources):
        """The first source has all T frames → [B, T, D]."""
        first, *others = self.weight.softmax(0)
        total = sources[0] * first
        in_place = not torch.is_grad_enabled()
        for x, weight in zip(sources[1:], others):
            frames = total.unflatten(1, (x.shape[1], -1))  # [B, T / r, r, D]
            add = frames.addcmul_ if in_place else frames.addcmul
            total = add(x.unsqueeze(2), weight).flatten(1, 2)
        return total


class GroupNorm(nn.GroupNorm):
    """GroupNorm of sequences [B, T, D], over the valid frames of each row."""

    def forward(self, x, padding=None):
        """[B, T, D] → the same."""
        batch, frames, width = x.shape
        x = zeroed(x.view(batch, frames, self.num_groups, -1), padding)
        count = frames
        if padding is not None:
            count = (~padding).sum(1).view(-1, 1, 1, 1)
        count = count * x.shape[-1]
        mean = x.sum((1, 3), keepdim=True) / count
        centred = zeroed(x - mean, padding)
        variance = centred.square().sum((1, 3), keepdim=True) / count
        scale = self.weight.view(self.num_groups, -1) * (variance + self.eps).rsqrt()
        x = centred * scale + self.bias.view(self.num_groups, -1)
        return x.view(batch, frames, width)


class Squeeze(nn.Module):
    """BN(W x), of ReDimNet P GELU(BN(W x)): back to F · C, W a convolution there."""

    def __init__(self, channels, out_channels, groups=None):
        super().__init__()
        self.conv, self.point = Linear(channels, out_channels), None
        if groups is not None:
            self.conv = MapConv(channels, out_channels, (3, 3), groups=groups)
            self.point = Linear(out_channels, out_channels)
        self.norm = nn.BatchNorm1d(out_channels, EPS)

    def forward(self, x, padding=None):
        """[B, T, F, C] → [B, T, F, C']."""
        if self.point is not None:
            x = zeroed(x, padding)
        if folds(x, self.conv, self.norm):
            x = applied(self.conv, x, *scaled(self.conv, *scale_and_shift(self.norm)))
        else:
            x = normed(self.norm, self.conv(x))
        return x if self.point is None else self.point(F.gelu(x))


class Stage(nn.Module):
    """The sources so far → one more of them; two where both forms are kept.

    Arguments
    ---------
    aggregation : Aggregation
    shape : tuple of int
        Bins F and channels C of the map that the sum is seen as.
    resize : MapConv
        Fewer bins, and frames.
    blocks : list of nn.Module
        Over maps.
    squeeze : Squeeze or None
    context : TimeContext or None
    norms : list of GroupNorm
        Of each new source; empty: none.
    dual : bool
        What ``context`` is given is a source as well.
    """

    def __init__(
        self,
        aggregation,
        shape,
        resize,
        blocks,
        squeeze,
        context,
        norms=(),
        dual=False,
    ):
        super().__init__()
        self.aggregation, self.shape = aggregation, shape
        self.resize, self.blocks = resize, nn.ModuleList(blocks)
        self.squeeze, self.context = squeeze, context
        self.norms, self.dual = nn.ModuleList(norms), dual

    def forward(self, sources, padding=None):
        """Sources [B, T / r, D], padding [B, T] → the new ones, a list."""
        x = self.aggregation(sources).unflatten(-1, self.shape)
        x = self.resize(x)
        if padding is not None:
            padding = padding[:, :: self.resize.stride[0]]
        for block in self.blocks:
            x = block(x, padding)
        if self.squeeze is not None:
            x = self.squeeze(x, padding)
        x = x.flatten(2)
        found = [x] if self.context is None or self.dual else []
        if self.context is not None:
            found.append(self.context(x, padding))
        if self.norms:
            found = [norm(y, padding) for norm, y in zip(self.norms, found)]
        return found
