"""Multi-layer feature aggregation: all hidden states, pooled and projected.

    MFA            ASP([h₀; …; h_L]) → Linear
    ConformerMFA   ASP(LN([h₁; …; h_L])) → BN → Linear
    Adapter-MFA    ASP([A₀ h₀; …; A_L h_L]) → Linear
    Layer Adapter  A h = W₂ ReLU(LN(W₁ h + b₁)) + b₂,     W₁ [H, C],  W₂ [D, H]

arXiv 2510.04213, section 2.1 and table 2, with H = D = 128. Pruning may leave an
adapter fewer hidden units H; its output keeps its width D, which the pooling expects.
"""

import torch
from torch import nn

from speechbrain_ext.lobes.encoder import Head, PrunableGroup, padding_mask
from speechbrain_ext.lobes.heads.pooling import (
    AttentiveStatisticsPooling,
    LastLinear,
)
from speechbrain_ext.utils.errors import InputError, check_at_least

SPEECHBRAIN_FLOOR = 1e-12  # of the variance in its pooling


class LayerAdapter(nn.Sequential):
    """A h = W₂ ReLU(LN(W₁ h + b₁)) + b₂: [B, T, C] → [B, T, D]."""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__(
            nn.Linear(input_size, hidden_size),
            nn.LayerNorm(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, output_size),
        )

    def forward(self, x):
        """[B, T, C] → [B, T, D]."""
        for number in range(4):  # not the gate that pruning may add as a fifth
            x = self[number](x)
        return x

    def prunable_group(self, number, full):
        """Its hidden units as adapter ``number`` of a head; ``full``: H once."""
        name = f"adapter_layers.{number}"
        return PrunableGroup(
            name=name,
            kind="adapter",
            units=self[0].out_features,
            full=full,
            input_weights=(
                f"{name}.0.weight",
                f"{name}.0.bias",
                f"{name}.1.weight",
                f"{name}.1.bias",
            ),
            output_weight=f"{name}.3.weight",
            norms=(f"{name}.1",),
            layer=number,
        )


class MFA(Head):
    """All states concatenated, pooled, projected.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1.
    embedding_size : int
        Width E of the embedding.
    pooling_size : int
        Bottleneck of the attention; None takes C (the published 1024).
    normalise : bool
        BatchNorm on the pooled statistics, for training from random weights: their
        mean over utterances is then so large that all cosines begin near 1. The
        published model, which starts from a pretrained encoder, has none.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all (partial MFA of
        Whisper-PMFA, arXiv 2408.15585).
    """

    def __init__(
        self,
        input_size,
        n_states=25,
        embedding_size=256,
        pooling_size=None,
        normalise=False,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        channels = input_size * self.read_states(n_states, layers)
        self.pooling = AttentiveStatisticsPooling(channels, pooling_size or input_size)
        self.norm = nn.BatchNorm1d(2 * channels) if normalise else nn.Identity()
        self.bottleneck = LastLinear(2 * channels, embedding_size)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        x = torch.cat(list(self.chosen(states)), dim=-1)
        pooled = self.pooling(x, padding_mask(x.shape[1], lens))
        return self.bottleneck(self.norm(pooled)).unsqueeze(1)


class ConformerMFA(Head):
    """Layers' outputs concatenated, normalised, pooled, projected.

        Linear(BN(ASP(LN([h₁; …; h_L]))))

    MFA-Conformer (Zhang et al. 2022, arXiv 2203.15249), with the context in its
    pooling, as SpeechBrain's has it; on NeMo's Large encoder it makes the 130.94 M
    parameters of arXiv 2309.03019. Over some layers it is the head of Whisper-PMFA
    (arXiv 2408.15585).

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1.
    embedding_size : int
        Width E of the embedding.
    pooling_size : int
        Bottleneck of the attention.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all but the first,
        which no layer has seen.
    """

    def __init__(
        self,
        input_size,
        n_states=19,
        embedding_size=256,
        pooling_size=128,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("n_states", n_states, 2)
        check_at_least("embedding_size", embedding_size, 1)
        check_at_least("pooling_size", pooling_size, 1)
        layers = [1, n_states - 1] if layers is None else layers
        channels = input_size * self.read_states(n_states, layers)
        self.layer_norm = nn.LayerNorm(channels)
        self.pooling = AttentiveStatisticsPooling(
            channels,
            pooling_size,
            context=True,
            activation="relu+tanh",
            variance_floor=SPEECHBRAIN_FLOOR,
            context_correction=0,
        )
        self.norm = nn.BatchNorm1d(2 * channels)
        self.bottleneck = LastLinear(2 * channels, embedding_size)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        x = self.layer_norm(torch.cat(list(self.chosen(states)), dim=-1))
        pooled = self.pooling(x, padding_mask(x.shape[1], lens))
        return self.bottleneck(self.norm(pooled)).unsqueeze(1)


class AdapterMFA(Head):
    """A small adapter on each state, then as :class:`MFA`.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1.
    adapter_size : int
        Width D of each adapter, also the attention's bottleneck.
    embedding_size : int
        Width E of the embedding.
    normalise : bool
        As in :class:`MFA`.
    hidden_sizes : list of int
        Hidden units of each adapter, where pruning left fewer than D.
    layers : list of int
        As in :class:`MFA`; an adapter for each state that is read.

    Example
    -------
    >>> head = AdapterMFA(1024)
    >>> sum(p.numel() for p in head.parameters())
    6160640
    """

    def __init__(
        self,
        input_size,
        n_states=25,
        adapter_size=128,
        embedding_size=256,
        normalise=False,
        hidden_sizes=None,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("adapter_size", adapter_size, 1)
        check_at_least("embedding_size", embedding_size, 1)
        n_states = self.read_states(n_states, layers)
        hidden_sizes = hidden_sizes or [adapter_size] * n_states
        if len(hidden_sizes) != n_states:
            raise InputError(
                f"AdapterMFA: {len(hidden_sizes)} hidden_sizes, expected {n_states}"
            )
        self.adapter_layers = nn.ModuleList(
            LayerAdapter(input_size, hidden, adapter_size) for hidden in hidden_sizes
        )
        channels = adapter_size * n_states
        self.pooling = AttentiveStatisticsPooling(channels, adapter_size)
        self.norm = nn.BatchNorm1d(2 * channels) if normalise else nn.Identity()
        self.bottleneck = LastLinear(2 * channels, embedding_size)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        adapted = [
            adapter(state)
            for adapter, state in zip(self.adapter_layers, self.chosen(states))
        ]
        x = torch.cat(adapted, dim=-1)
        pooled = self.pooling(x, padding_mask(x.shape[1], lens))
        return self.bottleneck(self.norm(pooled)).unsqueeze(1)

    def prunable_groups(self):
        """Hidden units of the adapters → list of PrunableGroup, for ``pruning``."""
        full = self.arguments["adapter_size"]
        return [
            adapter.prunable_group(number, full)
            for number, adapter in enumerate(self.adapter_layers)
        ]

    def resized(self, widths):
        """A new head with other hidden sizes: group name → units."""
        return type(self)(**{**self.arguments, "hidden_sizes": list(widths.values())})
