"""Layer attentive pooling, then attentive statistics over time.

    y_l = W BN(h_l) + b                           BN over all states jointly, H heads
    s   = σ(m(mean_d y) + m(max_d y))             per frame and head: [L+1] → [L+1]
    z   = BN(W' max_l(s_l y_l) + b')              [T, D']
    e   = BN(W'' BN(ASTP(z)) + b'')               ASTP with context

m is a small network L+1 → (L+1)/2 → L+1 of each head. LAP + ASTP (arXiv 2512.22148,
Interspeech 2025; github.com/sadPororo/LAP). The published code stacks all states to
[B, C, T, L+1] and keeps several such tensors for backward. Here the states of a few
frames are projected at a time, and forgotten: what backward needs of them is two
numbers for each place of [B, T, C], which state won, and with what value.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from speechbrain_ext.lobes.encoder import Head, padding_mask
from speechbrain_ext.lobes.heads.pooling import (
    AttentiveStatisticsPooling,
    LastLinear,
    norm_of_frames,
)
from speechbrain_ext.utils.distributed import sum_over_processes
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import full_precision

ASTP_FLOOR = 1e-4
# Frames of all rows that are projected at once: on a CPU 13 MB of 25 states of width
# 1024 stay in its caches, on a GPU so few would be too many kernels.
BLOCK, GPU_BLOCK = 128, 2048


class LAP(Head):
    """LAP + ASTP.

    In training BatchNorm's statistics count valid frames only, of all processes.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1; 2 or more.
    embedding_size : int
        Width E of the embedding.
    heads : int
        H, a divisor of C; with a single one there is no W, as published.
    channels : int
        Width D' of the frames that ASTP pools.
    dropout : float
        Of scores and, in the pooling, of frames.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all.

    Example
    -------
    >>> sum(p.numel() for p in LAP(1024).parameters())
    2312464
    """

    def __init__(
        self,
        input_size,
        n_states=25,
        embedding_size=192,
        heads=16,
        channels=512,
        dropout=0.1,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        check_at_least("heads", heads, 1)
        check_at_least("channels", channels, 2)
        n_states = self.read_states(n_states, layers)
        check_at_least("LAP: states that are read", n_states, 2)
        if input_size % heads:
            raise InputError(f"heads={heads}, expected a divisor of {input_size}")
        self.aggregation = LayerAttentivePooling(input_size, n_states, heads, dropout)
        self.projection = nn.Linear(input_size, channels)
        self.frame_norm = nn.BatchNorm1d(channels)
        self.pooling = AttentiveStatisticsPooling(
            channels,
            channels // 2,
            context=True,
            variance_floor=ASTP_FLOOR,
            frame_dropout=dropout,
        )
        self.norm = nn.BatchNorm1d(2 * channels)
        self.bottleneck = LastLinear(2 * channels, embedding_size)
        self.embedding_norm = nn.BatchNorm1d(embedding_size)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        states = self.chosen(states)
        padding = padding_mask(states[0].shape[1], lens)
        frames = self.projection(self.aggregation(states, padding))
        frames = norm_of_frames(self.frame_norm, frames.transpose(1, 2), padding)
        frames = frames.transpose(1, 2)
        pooled = self.norm(self.pooling(frames, padding))
        return self.embedding_norm(self.bottleneck(pooled)).unsqueeze(1)


class LayerAttentivePooling(nn.Module):
    """max_l(s_l y_l) of states [B, T, C], without a tensor of all of them."""

    def __init__(self, size, n_states, heads, dropout):
        super().__init__()
        hidden = n_states // 2
        self.norm = nn.BatchNorm1d(size)  # parameters and statistics; see _moments
        self.projection = nn.Linear(size, size) if heads > 1 else None
        self.squeeze_weight = nn.Parameter(torch.empty(heads, n_states, hidden))
        self.squeeze_bias = nn.Parameter(torch.zeros(heads, 1, hidden))
        self.expand_weight = nn.Parameter(torch.empty(heads, hidden, n_states))
        self.expand_bias = nn.Parameter(torch.zeros(heads, 1, n_states))
        self.dropout = dropout

    def forward(self, states, padding=None):
        """L+1 states [B, T, C] → [B, T, C], zeros in the padding of a training."""
        with full_precision(states[0]), torch.no_grad():
            normed = self._statistics(states, padding)
        # W (γ x̂ + β) + b, its product in autocast's type
        if self.projection is None:
            weight, bias = torch.eye(len(self.norm.bias)).to(self.norm.bias), None
        else:
            weight, bias = self.projection.weight, self.projection.bias
        with full_precision(weight):
            bias = F.linear(self.norm.bias, weight, bias)
            weight = weight * self.norm.weight
        network = (
            self.squeeze_weight,
            self.squeeze_bias,
            self.expand_weight,
            self.expand_bias,
        )
        dropped = self._dropped(states)
        with full_precision(weight):
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return _aggregate(normed, weight, bias, network, dropped, states)[0]
            return _Aggregation.apply(normed, weight, bias, dropped, *network, *states)

    def _dropped(self, states):
        """Factors of the scores in training, [B, T, H, L+1]; else None."""
        if not (self.training and self.dropout):
            return None
        shape = (*states[0].shape[:2], self.squeeze_bias.shape[0], len(states))
        ones = torch.ones(shape, device=states[0].device)
        return F.dropout(ones, self.dropout)

    def _statistics(self, states, padding):
        """Mean and scale of BatchNorm → _Normed; in training from these states."""
        norm, device = self.norm, states[0].device.type
        dtype = torch.float32
        # there is none on the meta device
        available = torch.amp.is_autocast_available(device)
        if available and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        mean, variance, count = norm.running_mean, norm.running_var, 0
        if self.training:
            mean, variance, count = _moments(states, padding)
            norm.num_batches_tracked += 1
            unbiased = variance * count / max(count - 1, 1)
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(unbiased, norm.momentum)
        scale = (variance + norm.eps).rsqrt()
        return _Normed(mean, scale, padding, count, dtype)


class _Normed(NamedTuple):
    """x̂ = (x − mean) scale; ``count`` frames made the statistics, 0: fixed ones."""

    mean: torch.Tensor
    scale: torch.Tensor
    padding: torch.Tensor | None
    count: float
    dtype: torch.dtype

    def of(self, state):
        """[B, T, C] → the same, zeros in the padding."""
        x = (state.float() - self.mean) * self.scale
        # what lies in the padding may be NaN
        return x if self.padding is None else self.masked(x)

    def part(self, some):
        """Of a slice of the frames."""
        if self.padding is None:
            return self
        return self._replace(padding=self.padding[:, some])

    def masked(self, x):
        """Zeros in the padding."""
        if self.padding is None:
            return x
        return x.masked_fill(self.padding.unsqueeze(-1), 0.0)


def _moments(states, padding):
    """Mean, biased variance [C] over all states and valid frames, and their count.

    Those of all processes.
    """
    mask = None if padding is None else padding.unsqueeze(-1)

    def counted(x):
        return x if mask is None else x.masked_fill(mask, 0.0)

    frames = states[0][..., 0].numel() if mask is None else int((~padding).sum())
    count = states[0].new_tensor(frames * len(states), dtype=torch.float32)
    count = sum_over_processes(count).item()
    total = sum(counted(state.float()).sum((0, 1)) for state in states)
    mean = sum_over_processes(total) / count
    squares = (counted(state.float() - mean).square_().sum((0, 1)) for state in states)
    return mean, sum_over_processes(sum(squares)) / count, count


def _scores(means, peaks, dropped, squeeze, squeeze_bias, expand, expand_bias):
    """mean and max of every head and state [B, T, H, L+1] → s, the same."""

    def network(x):  # [B, T, H, 1, L+1]
        return F.relu(x @ squeeze + squeeze_bias) @ expand + expand_bias

    both = network(means.unsqueeze(-2)) + network(peaks.unsqueeze(-2))
    scores = both.squeeze(-2).sigmoid()
    return scores if dropped is None else scores * dropped


def _aggregate(normed, weight, bias, network, dropped, states):
    """max_l(s_l y_l) [B, T, C], and what backward needs.

    means, peaks [B, T, H, L+1] of the heads, ``places`` of the peaks in them; ``won``
    [B, T, H, D], the state that has the maximum, and its ``value`` y.
    """
    weight, bias = weight.to(normed.dtype), bias.to(normed.dtype)
    rest = weight, bias, network
    if torch.compiler.is_compiling():  # a graph of any length has no such loop
        best, *kept = _aggregate_block(normed, *rest, dropped, states)
        return best.flatten(2), kept
    block = BLOCK if states[0].device.type == "cpu" else GPU_BLOCK
    step = max(1, block // len(states[0]))
    blocks = []
    for first in range(0, states[0].shape[1], step):
        some = slice(first, first + step)
        part = None if dropped is None else dropped[:, some]
        frames = [state[:, some] for state in states]
        blocks.append(_aggregate_block(normed.part(some), *rest, part, frames))
    best, *kept = (torch.cat(parts, dim=1) for parts in zip(*blocks))
    return best.flatten(2), kept


def _aggregate_block(normed, weight, bias, network, dropped, states):
    """The same of a few frames, whose projected states are all there at once."""
    heads = (len(network[0]), -1)
    projected = [
        F.linear(normed.of(state).to(weight.dtype), weight, bias)
        .float()
        .unflatten(-1, heads)
        for state in states
    ]
    found = [(y.mean(-1), *y.max(-1)) for y in projected]
    means, peaks, places = (torch.stack(part, -1) for part in zip(*found))
    scores = _scores(means, peaks, dropped, *network)
    value = projected[0]
    best, won = value * scores[..., 0, None], torch.zeros_like(value, dtype=torch.uint8)
    for number, y in enumerate(projected[1:], 1):
        scored = y * scores[..., number, None]
        larger = scored > best
        best = torch.where(larger, scored, best)
        value = torch.where(larger, y, value)
        won = won.masked_fill(larger, number)
    return best, means, peaks, places, value, won


class _Aggregation(torch.autograd.Function):
    """:func:`_aggregate` with a backward that goes state by state, too."""

    @staticmethod
    def forward(ctx, normed, weight, bias, dropped, *rest):
        network, states = rest[:4], rest[4:]
        best, kept = _aggregate(normed, weight, bias, network, dropped, states)
        ctx.normed = normed
        ctx.save_for_backward(weight, dropped, *network, *kept, *states)
        return best

    @staticmethod
    @once_differentiable
    def backward(ctx, by_best):
        weight, dropped, *rest = ctx.saved_tensors
        network, (means, peaks, places, value, won) = rest[:4], rest[4:9]
        states, normed = rest[9:], ctx.normed
        inputs = [x.detach().requires_grad_() for x in (means, peaks, *network)]
        with torch.enable_grad():
            means, peaks, *own = inputs
            scores = _scores(means, peaks, dropped, *own)
        by_best = normed.masked(by_best.float()).unflatten(-1, value.shape[-2:])
        by_value = by_best * value
        by_scores = torch.stack(
            [(by_value * (won == n)).sum(-1) for n in range(len(states))], -1
        )
        by_means, by_peaks, *by_network = torch.autograd.grad(scores, inputs, by_scores)
        scores = scores.detach()
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(weight[0])
        by_states, low = [], weight.to(normed.dtype)
        for n, state in enumerate(states):
            by_y = by_best * scores[..., n, None] * (won == n)
            by_y += by_means[..., n, None] / by_y.shape[-1]
            by_y.scatter_add_(-1, places[..., n, None], by_peaks[..., n, None])
            by_y = normed.masked(by_y.flatten(2))
            by_bias += by_y.sum((0, 1))
            by_y = by_y.to(normed.dtype).flatten(0, 1)
            by_weight += by_y.t() @ normed.of(state).to(normed.dtype).flatten(0, 1)
            needed = ctx.needs_input_grad[8 + n]
            by_states.append((by_y @ low).view(state.shape) if needed else None)
        moving = normed.count and any(x is not None for x in by_states)
        if moving:  # the statistics depend on the states, of every process
            sums = torch.stack([by_bias @ weight, (by_weight * weight).sum(0)])
            shift, slope = sum_over_processes(sums) / normed.count
        for n, state in enumerate(states):
            if by_states[n] is None:
                continue
            by_x = by_states[n].float()
            if moving:
                by_x = by_x.sub_(shift).sub_(normed.of(state).mul_(slope))
            by_x = normed.masked(by_x.mul_(normed.scale))
            by_states[n] = by_x.to(state.dtype)
        return None, by_weight, by_bias, None, *by_network, *by_states
