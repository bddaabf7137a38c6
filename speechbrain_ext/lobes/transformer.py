"""The Transformer of wav2vec 2.0 and its kin, with a width of its own in every layer.

    pre-norm:    x ← x + Attention(LN x);   x ← x + FFN(LN x)
    post-norm:   x ← LN(x + Attention(x));  x ← LN(x + FFN(x))

Vaswani et al. 2017 (arXiv 1706.03762); parameter names are those of transformers'
``Wav2Vec2Model``. A part of width 0 is not built and adds nothing. What may be removed
is declared in ``prunable_groups``.
"""

from torch import nn

from speechbrain_ext.lobes.attention import attend
from speechbrain_ext.lobes.cpu_inference import Linear, activated, activation
from speechbrain_ext.lobes.encoder import PrunableGroup
from speechbrain_ext.lobes.int8 import each
from speechbrain_ext.lobes.waveform_convolutions import PositionalConvolution


class FeatureProjection(nn.Module):
    """LayerNorm, if any → Linear: [B, T', C] → [B, T', D]."""

    def __init__(self, config):
        super().__init__()
        width = config.conv_dim[-1]
        if getattr(config, "feat_proj_layer_norm", True):
            self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        else:
            self.layer_norm = nn.Identity()
        self.projection = Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, x):
        """[B, T', C] → [B, T', D]."""
        return self.dropout(self.projection(self.layer_norm(x)))


class FeedForward(nn.Module):
    """Linear → GELU → Linear: [B, T, D] → [B, T, D]."""

    def __init__(self, config, width):
        super().__init__()
        self.intermediate_dense = Linear(config.hidden_size, width)
        self.output_dense = Linear(width, config.hidden_size)
        self.activation = activation(config.hidden_act, "hidden_act")
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x):
        """[B, T, D] → [B, T, D]."""
        x = activated(self.intermediate_dense, self.activation, x)
        return self.dropout(self.output_dense(self.activation_dropout(x)))


class Attention(nn.Module):
    """Self-attention of ``heads`` heads."""

    attend = staticmethod(attend)
    per_head = ()  # tensors with one row a head

    def __init__(self, config, heads):
        super().__init__()
        hidden = config.hidden_size
        self.head_dim = hidden // config.num_attention_heads
        self.dropout = config.attention_dropout
        inner = heads * self.head_dim
        self.q_proj = Linear(hidden, inner)
        self.k_proj = Linear(hidden, inner)
        self.v_proj = Linear(hidden, inner)
        self.out_proj = Linear(inner, hidden)

    def bias(self, x, positions):
        """What is added to the scores; here nothing."""

    def forward(self, x, padding=None, positions=None):
        """[B, T, D] → [B, T, D]; ``padding`` [B, T] is True where to look away."""
        query, key, value = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, T, d]
            for y in each((self.q_proj, self.k_proj, self.v_proj), x)
        )
        dropout = self.dropout if self.training else 0.0
        bias = self.bias(x, positions)
        return self.out_proj(self.attend(query, key, value, padding, dropout, bias))


class TransformerLayer(nn.Module):
    """One layer: [B, T, D] → [B, T, D]; a part of width 0 is not there."""

    def __init__(self, config, heads, units, attention_class):
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.pre_norm, self.heads, self.units = (
            config.do_stable_layer_norm,
            heads,
            units,
        )
        self.attention = attention_class(config, heads) if heads else None
        self.feed_forward = FeedForward(config, units) if units else None
        # before a part it goes with that part, after the sum it stays
        if heads or not self.pre_norm:
            self.layer_norm = nn.LayerNorm(hidden, eps=eps)
        if units or not self.pre_norm:
            self.final_layer_norm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x, padding=None, positions=None):
        """[B, T, D] → [B, T, D]; ``padding`` [B, T] is True in the padding."""
        if self.pre_norm:
            if self.attention is not None:
                attended = self.attention(self.layer_norm(x), padding, positions)
                x = x + self.dropout(attended)
            if self.feed_forward is not None:
                x = x + self.feed_forward(self.final_layer_norm(x))
            return x
        if self.attention is not None:
            x = x + self.dropout(self.attention(x, padding, positions))
        x = self.layer_norm(x)
        if self.feed_forward is not None:
            x = x + self.feed_forward(x)
        return self.final_layer_norm(x)

    def prunable_groups(self, config):
        """Heads and feed-forward units; ``config`` has their full numbers."""
        per_head = self.attention.per_head if self.attention is not None else ()
        heads = PrunableGroup(
            name="attention",
            kind="heads",
            units=self.heads,
            full=config.num_attention_heads,
            unit_size=config.hidden_size // config.num_attention_heads,
            input_weights=(
                *(f"attention.{m}_proj.{t}" for m in "qkv" for t in ("weight", "bias")),
                *(f"attention.{tensor}" for tensor in per_head),
            ),
            output_weight="attention.out_proj.weight",
            output_bias="attention.out_proj.bias",
            removed_with_last=("attention", "layer_norm")[: 1 + self.pre_norm],
            drawn_at="attention.out_proj",  # behind the attention's dropout
        )
        units = PrunableGroup(
            name="feed_forward",
            kind="ffn",
            units=self.units,
            full=config.intermediate_size,
            input_weights=tuple(
                f"feed_forward.intermediate_dense.{t}" for t in ("weight", "bias")
            ),
            output_weight="feed_forward.output_dense.weight",
            output_bias="feed_forward.output_dense.bias",
            removed_with_last=("feed_forward", "final_layer_norm")[: 1 + self.pre_norm],
        )
        return [heads, units]


class TransformerStack(nn.Module):
    """Positions and layers; its name in the state dict is transformers' ``encoder``."""

    def __init__(self, config, attention_class, normalised):
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        # a student may have none
        positions = bool(config.num_conv_pos_embeddings)
        self.pos_conv_embed = PositionalConvolution(config) if positions else None
        self.layer_norm = None
        if normalised or not self.pre_norm:
            self.layer_norm = nn.LayerNorm(
                config.hidden_size, eps=config.layer_norm_eps
            )
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(config, heads, units, attention_class)
            for heads, units in layer_widths(config)
        )

    def positions(self, frames):
        """What all layers share about distances; here nothing."""


def layer_widths(config):
    """(heads, feed-forward units) of every layer."""
    layers = config.num_hidden_layers
    heads = getattr(config, "num_attention_heads_group", None)
    units = getattr(config, "intermediate_size_group", None)
    return zip(
        heads or [config.num_attention_heads] * layers,
        units or [config.intermediate_size] * layers,
    )
