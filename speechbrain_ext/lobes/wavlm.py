"""WavLM: waveform → all hidden states, with a gated bias by distance in its attention.

    score_tj = q_t·k_j / √d + g_t b[bucket(j − t)]
    g_t = α (β c − 1) + 2,   α, β = σ(Σ of 4 each of Linear(x_t))

Chen et al. 2022 (arXiv 2110.13900, section III.B). The table b of all heads is one for
all layers, and lies beside them: a layer that has lost its heads needs none of it, the
others do. In layer and head, x is the head's part of the attention's input, c a
constant and the Linear d → 8 shared by the heads. The rest is wav2vec 2.0's.
"""

import math

import torch
from torch import nn
from transformers import WavLMConfig

from speechbrain_ext.lobes.attention import ToeplitzBias
from speechbrain_ext.lobes.cpu_inference import Linear
from speechbrain_ext.lobes.transformer import Attention, TransformerStack
from speechbrain_ext.lobes.wav2vec2 import WaveformEncoder

TABLE = "encoder.rel_attn_embed.weight"
GATES = 8  # two sums of four


class GatedAttention(Attention):
    """Self-attention with a bias by distance, gated by its input.

    ``heads`` are the numbers of those that are left: they choose parts of the input and
    rows of the bias.
    """

    per_head = ("gru_rel_pos_const", "heads")

    def __init__(self, config, heads):
        super().__init__(config, heads)
        self.full_heads = config.num_attention_heads
        self.gru_rel_pos_const = nn.Parameter(torch.ones(heads))
        self.gru_rel_pos_linear = Linear(self.head_dim, GATES)
        self.register_buffer("heads", torch.arange(heads))

    def bias(self, x, positions):
        """Of all queries: ToeplitzBias; ``positions`` [H, 2T−1] is of all heads."""
        parts = x.unflatten(-1, (self.full_heads, self.head_dim))
        if len(self.heads) < self.full_heads:
            parts = parts.index_select(2, self.heads)
            positions = positions.index_select(0, self.heads)
        sums = self.gru_rel_pos_linear(parts).unflatten(-1, (2, 4)).sum(-1)
        a, b = torch.sigmoid(sums).unbind(-1)  # [B, T, H]
        gate = a * (b * self.gru_rel_pos_const - 1.0) + 2.0
        return ToeplitzBias(positions, gate.transpose(1, 2))


class WavLMStack(TransformerStack):
    """Positions, layers, and the table that the layers share."""

    def __init__(self, config, attention_class, normalised):
        super().__init__(config, attention_class, normalised)
        self.max_distance = config.max_bucket_distance
        self.rel_attn_embed = nn.Embedding(
            config.num_buckets, config.num_attention_heads
        )

    def positions(self, frames):
        """The bias of every head and distance 1−T … T−1: [H, 2T−1]."""
        table = self.rel_attn_embed.weight
        distance = torch.arange(1 - frames, frames, device=table.device)
        return table[buckets(distance, len(table), self.max_distance)].t()


def buckets(distance, count, max_distance):
    """Row of the table of every distance: half for what is behind, half ahead.

    Half of each are for one distance alone, the others grow logarithmically.
    """
    count = count // 2
    exact = count // 2
    ahead, far = (distance > 0).long() * count, distance.abs()
    # in this order of operations: another one rounds into other buckets
    logs = torch.log(far.clamp(min=1).float() / exact)
    logs = logs / math.log(max_distance / exact) * (count - exact)
    large = (exact + logs).long().clamp(max=count - 1)
    return ahead + torch.where(far < exact, far, large)


class WavLMEncoder(WaveformEncoder):
    """WavLM: see :class:`~speechbrain_ext.lobes.wav2vec2.WaveformEncoder`.

    Example
    -------
    >>> config = WavLMConfig(
    ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    ...     intermediate_size=64, conv_dim=[8] * 7,
    ... )
    >>> states, lens = WavLMEncoder(config)(torch.rand(2, 16000) - 0.5)
    >>> len(states), states[-1].shape
    (3, torch.Size([2, 49, 32]))
    """

    title = "WavLM"
    config_class = WavLMConfig
    prefix = "wavlm."
    attention_class = GatedAttention
    stack_class = WavLMStack

    def own_names(self, weights):
        """The table beside the layers, a constant per head, the heads' numbers."""
        weights = super().own_names(weights)
        first = "encoder.layers.0.attention.rel_attn_embed.weight"
        if first in weights:
            weights[TABLE] = weights.pop(first)
        for name in [n for n in weights if n.endswith("gru_rel_pos_const")]:
            weights[name] = weights[name].flatten()
            numbers = name.replace("gru_rel_pos_const", "heads")
            weights.setdefault(numbers, torch.arange(len(weights[name])))
        return weights
