"""The conformer layer of w2v-BERT 2.0, with a width of its own in every part.

    x ← x + ½ FFN1(LN x)
    x ← x + Attention(LN x)           softmax(q·k/√d + q·e[clip(j−i)]/√d) v
    x ← x + Conv(LN x)                pointwise, GLU, depthwise, LN, swish, pointwise
    y = LN(x + ½ FFN2(LN x))

Gulati et al. 2020 (arXiv 2005.08100); relative keys e after Shaw et al. 2018 (arXiv
1803.02155), clipped to 64 frames back and 8 ahead. Parameter names are those of
transformers' ``Wav2Vec2Bert``, so that its weights load as they are. Widths come from
:class:`LayerShape`, because pruning leaves every layer with its own; a part of width 0
is not built at all. What may be removed is declared in ``prunable_groups``.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.convolution import channelwise
from speechbrain_ext.lobes.cpu_inference import (
    Linear,
    activated,
    linear,
    swish,
)
from speechbrain_ext.lobes.encoder import PrunableGroup
from speechbrain_ext.lobes.int8 import each
from speechbrain_ext.lobes.relative_attention import attend


class LayerShape(NamedTuple):
    """Widths of one layer; 0 leaves that part out."""

    hidden: int
    head_dim: int
    heads: int
    ffn1: int
    ffn2: int
    conv: int


class FeedForward(nn.Module):
    """Linear → swish → Linear: [B, T, C] → [B, T, C]."""

    def __init__(self, hidden, width, activation_dropout=0.0, dropout=0.0):
        super().__init__()
        self.intermediate_dense = Linear(hidden, width)
        self.output_dense = Linear(width, hidden)
        self.activation_dropout = nn.Dropout(activation_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        """[B, T, C] → [B, T, C]."""
        x = activated(self.intermediate_dense, swish, x)
        return self.dropout(self.output_dense(self.activation_dropout(x)))


class RelativeKeyAttention(nn.Module):
    """Self-attention with relative keys: the weights of ``relative_attention``."""

    attend = staticmethod(attend)

    def __init__(self, shape, left=64, right=8, dropout=0.0):
        super().__init__()
        inner = shape.heads * shape.head_dim
        self.head_dim = shape.head_dim
        self.left, self.right = left, right
        self.dropout = dropout
        self.linear_q = Linear(shape.hidden, inner)
        self.linear_k = Linear(shape.hidden, inner)
        self.linear_v = Linear(shape.hidden, inner)
        self.linear_out = Linear(inner, shape.hidden)
        self.distance_embedding = nn.Embedding(left + right + 1, shape.head_dim)
        nn.init.normal_(self.distance_embedding.weight, std=0.02)

    def forward(self, x, padding=None):
        """[B, T, C] → [B, T, C]; ``padding`` [B, T] is True where to look away."""
        query, key, value = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, T, d]
            for y in each((self.linear_q, self.linear_k, self.linear_v), x)
        )
        context = self.attend(
            query,
            key,
            value,
            self.distance_embedding.weight.to(query.dtype),
            self.left,
            padding,
            self.dropout if self.training else 0.0,
        )
        return self.linear_out(context)


class Pointwise(nn.Conv1d):
    """A convolution of width 1 as the linear map that it is: no transposes."""

    def __init__(self, width_in, width_out, bias=False):
        super().__init__(width_in, width_out, 1, bias=bias)

    def forward(self, x):
        """[B, T, in] → [B, T, out]."""
        return linear(x, self.weight.squeeze(-1), self.bias)


def depthwise(x, weight, bias, left, right):
    """A convolution of every channel for itself: [B, T, C], [C, 1, K] → [B, T, C].

    Zeros before and after: ``left`` and ``right`` of them. [B, T, C] is the channels-
    last layout of an image of height 1, so a convolution of that spares two transposes:
    the same figures 3 times sooner at 500 × 1024.
    """

    def convolve(x, weight, bias):
        image = F.pad(x, (0, 0, left, right)).transpose(1, 2).unsqueeze(2)
        image = F.conv2d(image, weight.unsqueeze(1), bias, groups=len(weight))
        return image.squeeze(2).transpose(1, 2)  # of [B, C, 1, T]

    return channelwise(convolve, x, weight, bias)


class ConvolutionModule(nn.Module):
    """Pointwise → GLU → causal depthwise convolution → LN → swish → pointwise.

    Row c of the first pointwise weight is channel c's value and row ``width + c`` its
    gate: whoever removes a channel removes both.
    """

    def __init__(self, hidden, width, kernel=31, eps=1e-5, dropout=0.0):
        super().__init__()
        self.layer_norm = nn.LayerNorm(hidden, eps=eps)
        self.pointwise_conv1 = Pointwise(hidden, 2 * width)
        self.depthwise_conv = nn.Conv1d(width, width, kernel, groups=width, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(width, eps=eps)
        self.pointwise_conv2 = Pointwise(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, padding=None):
        """[B, T, C] → [B, T, C]."""
        x = self.layer_norm(x)
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        weight = self.depthwise_conv.weight
        x = F.glu(self.pointwise_conv1(x))
        x = depthwise(x, weight, None, weight.shape[-1] - 1, 0)  # causal
        x = swish(self.depthwise_layer_norm(x))
        return self.dropout(self.pointwise_conv2(x))


class ConformerLayer(nn.Module):
    """One layer: [B, T, C] → [B, T, C]. ``config`` is a ``Wav2Vec2BertConfig``."""

    def __init__(self, config, shape):
        super().__init__()
        hidden, eps = shape.hidden, config.layer_norm_eps
        drop = {
            "activation_dropout": config.activation_dropout,
            "dropout": config.hidden_dropout,
        }
        self.shape = shape
        self.ffn1 = self.ffn2 = self.self_attn = self.conv_module = None
        if shape.ffn1:
            self.ffn1_layer_norm = nn.LayerNorm(hidden, eps=eps)
            self.ffn1 = FeedForward(hidden, shape.ffn1, **drop)
        if shape.heads:
            self.self_attn_layer_norm = nn.LayerNorm(hidden, eps=eps)
            self.self_attn = RelativeKeyAttention(
                shape,
                config.left_max_position_embeddings,
                config.right_max_position_embeddings,
                config.attention_dropout,
            )
            self.self_attn_dropout = nn.Dropout(config.attention_dropout)
        if shape.conv:
            self.conv_module = ConvolutionModule(
                hidden,
                shape.conv,
                config.conv_depthwise_kernel_size,
                eps,
                config.conformer_conv_dropout,
            )
        if shape.ffn2:
            self.ffn2_layer_norm = nn.LayerNorm(hidden, eps=eps)
            self.ffn2 = FeedForward(hidden, shape.ffn2, **drop)
        self.final_layer_norm = nn.LayerNorm(hidden, eps=eps)

    def forward(self, x, padding=None):
        """[B, T, C] → [B, T, C]; ``padding`` [B, T] is True in the padding."""
        if self.ffn1 is not None:
            x = x.add(self.ffn1(self.ffn1_layer_norm(x)), alpha=0.5)
        if self.self_attn is not None:
            attended = self.self_attn(self.self_attn_layer_norm(x), padding)
            x = x + self.self_attn_dropout(attended)
        if self.conv_module is not None:
            x = x + self.conv_module(x, padding)
        if self.ffn2 is not None:
            x = x.add(self.ffn2(self.ffn2_layer_norm(x)), alpha=0.5)
        return self.final_layer_norm(x)

    def prunable_groups(self, full):
        """What may be removed from this layer; ``full``: LayerShape before any was."""
        heads = PrunableGroup(
            name="self_attn",
            kind="heads",
            units=self.shape.heads,
            full=full.heads,
            unit_size=self.shape.head_dim,
            input_weights=tuple(
                f"self_attn.linear_{map}.{tensor}"
                for map in "qkv"
                for tensor in ("weight", "bias")
            ),
            output_weight="self_attn.linear_out.weight",
            output_bias="self_attn.linear_out.bias",
            removed_with_last=("self_attn", "self_attn_layer_norm"),
            drawn_at="self_attn.linear_out",  # behind the attention's dropout
        )
        conv = PrunableGroup(
            name="conv_module",
            kind="conv",
            units=self.shape.conv,
            full=full.conv,
            input_weights=(
                "conv_module.pointwise_conv1.weight",
                "conv_module.depthwise_conv.weight",
                "conv_module.depthwise_layer_norm.weight",
                "conv_module.depthwise_layer_norm.bias",
            ),
            output_weight="conv_module.pointwise_conv2.weight",
            removed_with_last=("conv_module",),
            norms=("conv_module.depthwise_layer_norm",),
        )
        ffn1 = _feed_forward_group("ffn1", self.shape.ffn1, full.ffn1)
        ffn2 = _feed_forward_group("ffn2", self.shape.ffn2, full.ffn2)
        return [ffn1, heads, conv, ffn2]


def _feed_forward_group(name, units, full):
    return PrunableGroup(
        name=name,
        kind=name,
        units=units,
        full=full,
        input_weights=(
            f"{name}.intermediate_dense.weight",
            f"{name}.intermediate_dense.bias",
        ),
        output_weight=f"{name}.output_dense.weight",
        output_bias=f"{name}.output_dense.bias",
        removed_with_last=(name, f"{name}_layer_norm"),
    )
