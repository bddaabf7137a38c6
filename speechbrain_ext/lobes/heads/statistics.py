"""Statistics over time and one linear map: the heads of networks of features.

    TSTP:  e = W [mean_t x; √(var_t x + ε)] + b           N−1, per channel and frequency
    ASP:   e = W [μ; σ] + b                               attention-weighted

Wang et al. 2021 (arXiv 2107.05246), Okabe et al. 2018 (arXiv 1803.10963), as wespeaker
and VoxBlink2 have them: no BatchNorm between or after. CAM++ has TSTP with one after,
and no b.
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.encoder import Head, padding_mask
from speechbrain_ext.lobes.heads.pooling import (
    CONTEXT_FLOOR,
    VARIANCE_FLOOR,
    AttentiveStatisticsPooling,
    LastLinear,
    moments,
    weighted_sum,
)
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import full_precision


class TSTP(Head):
    """Mean and standard deviation over time, one linear map.

    Of the states that it reads, side by side; networks of features have one.

    Arguments
    ---------
    input_size : int
        Width D of a state.
    n_states : int
        States of the encoder.
    embedding_size : int
        Width E of the embedding.
    channels : int, optional
        With it, one mean and deviation for all neighbours of one of so many channels
        together: over its frequencies too.
    variance_eps : float
        ε, added to the variance: wespeaker's; 3D-Speaker has 1e-8, of CAM++ 0.
    second_layer : bool
        ReLU, BatchNorm without affine and one more linear map follow.
    bias : bool
        The first linear map has b.
    embedding_norm : bool
        BatchNorm without affine on the embedding.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all.

    Example
    -------
    >>> sum(p.numel() for p in TSTP(10240).parameters())
    5243136
    """

    def __init__(
        self,
        input_size: int,
        n_states: int = 1,
        embedding_size: int = 256,
        channels: int | None = None,
        variance_eps: float = 1e-7,
        second_layer: bool = False,
        bias: bool = True,
        embedding_norm: bool = False,
        layers: list[int] | None = None,
    ):
        super().__init__()
        input_size *= self.read_states(n_states, layers)
        check_at_least("embedding_size", embedding_size, 1)
        if channels is not None and (channels < 1 or input_size % channels):
            raise InputError(f"channels={channels}, expected a divisor of {input_size}")
        self.channels, self.variance_eps = channels, variance_eps
        width = 2 * (channels or input_size)
        self.bottleneck = LastLinear(width, embedding_size, bias=bias)
        if second_layer:
            self.norm = nn.BatchNorm1d(embedding_size, affine=False)
            self.last = LastLinear(embedding_size, embedding_size)
        if embedding_norm:
            self.embedding_norm = nn.BatchNorm1d(embedding_size, affine=False)

    def forward(self, states, lens=None):
        """States [B, T, D], lens [B] relative → [B, 1, E]."""
        x = side_by_side(self.chosen(states))
        padding = padding_mask(x.shape[1], lens)
        with full_precision(x):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.channels is None:
                x = x.transpose(1, 2)
            else:
                x = x.unflatten(2, (self.channels, -1))
                if padding is not None:
                    padding = padding.repeat_interleave(x.shape[3], 1)
                x = x.transpose(1, 2).flatten(2)
            mean, variance = moments(x, padding)
            deviation = (variance + self.variance_eps).clamp(min=CONTEXT_FLOOR).sqrt()
            pooled = torch.cat([mean, deviation], dim=1)
        e = self.bottleneck(pooled)
        if hasattr(self, "last"):
            e = self.last(self.norm(F.relu(e)))
        if hasattr(self, "embedding_norm"):
            e = self.embedding_norm(e)
        return e.unsqueeze(1)


class WeightedSumLinear(Head):
    """Softmax-weighted sum of the states, mean over time, one linear map.

        e = W mean_t(Σ_l softmax(w)_l h_l) + b

    The plain back end of SV-Mixer's paper (arXiv 2509.14136, its table of back ends).

    Arguments
    ---------
    input_size : int
        Width D of a state.
    n_states : int
        States of the encoder.
    embedding_size : int
        Width E of the embedding.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all.

    Example
    -------
    >>> sum(p.numel() for p in WeightedSumLinear(1024, 13, 192).parameters())
    196813
    """

    def __init__(
        self,
        input_size: int,
        n_states: int = 1,
        embedding_size: int = 256,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        read = self.read_states(n_states, layers)
        self.layer_weights = nn.Parameter(torch.zeros(read))
        self.linear = LastLinear(input_size, embedding_size)

    def forward(self, states, lens=None):
        """States [B, T, D], lens [B] relative → [B, 1, E]."""
        x = weighted_sum(self.chosen(states), self.layer_weights)
        padding = padding_mask(x.shape[1], lens)
        with full_precision(x):
            wide = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(1, 2)
            mean, _ = moments(wide, padding)
        return self.linear(mean).unsqueeze(1)


class ASP(Head):
    """Attentive statistics over time, one linear map.

    Of the states that it reads, side by side; networks of features have one.

    Arguments
    ---------
    input_size : int
        Width D of a state.
    n_states : int
        States of the encoder.
    embedding_size : int
        Width E of the embedding.
    hidden : int
        Width of the attention's bottleneck.
    context, activation, variance_floor, context_eps
        Of :class:`~speechbrain_ext.lobes.heads.pooling.AttentiveStatisticsPooling`.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all.

    Example
    -------
    >>> sum(p.numel() for p in ASP(5120).parameters())
    3937920
    """

    def __init__(
        self,
        input_size: int,
        n_states: int = 1,
        embedding_size: int = 256,
        hidden: int = 128,
        context: bool = False,
        activation: str = "relu",
        variance_floor: float = VARIANCE_FLOOR,
        context_eps: float = 0.0,
        layers: list[int] | None = None,
    ):
        super().__init__()
        input_size *= self.read_states(n_states, layers)
        check_at_least("embedding_size", embedding_size, 1)
        check_at_least("hidden", hidden, 1)
        self.pooling = AttentiveStatisticsPooling(
            input_size,
            hidden,
            context=context,
            activation=activation,
            variance_floor=variance_floor,
            context_eps=context_eps,
        )
        self.bottleneck = LastLinear(2 * input_size, embedding_size)

    def forward(self, states, lens=None):
        """States [B, T, D], lens [B] relative → [B, 1, E]."""
        x = side_by_side(self.chosen(states))
        pooled = self.pooling(x, padding_mask(x.shape[1], lens))
        return self.bottleneck(pooled).unsqueeze(1)


def side_by_side(states):
    """States [B, T, D] → [B, T, n D]."""
    return states[0] if len(states) == 1 else torch.cat(states, dim=2)
