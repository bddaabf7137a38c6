"""The conformer layer of NVIDIA NeMo, with a width of its own in every part.

    x ← x + ½ FFN1(LN x)
    x ← x + Attention(LN x)     relative positions as in ``shifted_attention``
    x ← x + Conv(LN x)          pointwise, GLU, depthwise, BatchNorm, swish, pointwise
    y = LN(x + ½ FFN2(LN x))

Gulati et al. 2020 (arXiv 2005.08100). Parameter names are NeMo's, so that its weights
load as they are. ``settings`` is a :class:`~speechbrain_ext.lobes.nemo_config.Settings`
and ``width`` one of its ``widths``: pruning leaves every layer with its own.
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.attention import attend
from speechbrain_ext.lobes.conformer import Pointwise, depthwise
from speechbrain_ext.lobes.convolution import scale_and_shift
from speechbrain_ext.lobes.cpu_inference import (
    Linear,
    activated,
    inference_on_cpu,
    swish,
)
from speechbrain_ext.lobes.encoder import PrunableGroup
from speechbrain_ext.lobes.int8 import each
from speechbrain_ext.lobes.shifted_attention import ShiftedBias


class Subsampling(nn.Module):
    """3 × 3 convolutions that halve time and mel bins, then a linear map."""

    def __init__(self, settings):
        super().__init__()
        channels = settings.subsampling_conv_channels
        channels = settings.d_model if channels == -1 else channels
        layers, bins, width = [], settings.feat_in, 1
        for _ in range(settings.stages):
            bins, separable = (bins + 1) // 2, settings.subsampling == "dw_striding"
            if separable and width > 1:
                layers += [
                    nn.Conv2d(channels, channels, 3, 2, 1, groups=channels),
                    nn.Conv2d(channels, channels, 1),
                ]
            else:
                layers.append(nn.Conv2d(width, channels, 3, 2, 1))
            layers.append(nn.ReLU(inplace=True))
            width = channels
        self.conv = nn.Sequential(*layers)
        self.out = Linear(channels * bins, settings.d_model)

    def forward(self, x, valid=None):
        """[B, T, F], valid frames [B] or None: all → [B, T', C]."""
        x = x.unsqueeze(1)  # [B, 1, T, F]
        for layer in self.conv:
            if getattr(layer, "stride", 1) == (2, 2) and valid is not None:
                places = torch.arange(x.shape[2], device=x.device)
                padding = places >= valid.unsqueeze(1)
                x = x.masked_fill(padding[:, None, :, None], 0.0)
                valid = (valid + 1) // 2
            x = layer(x)
        return self.out(x.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear → swish → Linear: [B, T, C] → [B, T, C]."""

    def __init__(self, settings, width):
        super().__init__()
        bias = settings.use_bias
        self.linear1 = Linear(settings.d_model, width, bias=bias)
        self.linear2 = Linear(width, settings.d_model, bias=bias)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x):
        """[B, T, C] → [B, T, C]."""
        return self.linear2(self.dropout(activated(self.linear1, swish, x)))


class ShiftedAttention(nn.Module):
    """Self-attention with relative positions: the weights of ``shifted_attention``."""

    attend = staticmethod(attend)

    def __init__(self, settings, heads):
        super().__init__()
        width, bias = settings.d_model, settings.use_bias
        self.head_dim = width // settings.n_heads
        inner = heads * self.head_dim
        self.linear_q = Linear(width, inner, bias=bias)
        self.linear_k = Linear(width, inner, bias=bias)
        self.linear_v = Linear(width, inner, bias=bias)
        self.linear_out = Linear(inner, width, bias=bias)
        self.linear_pos = nn.Linear(width, inner, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, self.head_dim))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, self.head_dim))
        self.dropout = settings.dropout_att

    def forward(self, x, table, padding=None):
        """[B, T, C], sinusoids [2T, C], padding [B, T] → [B, T, C]."""
        query, key, value = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, T, d]
            for y in each((self.linear_q, self.linear_k, self.linear_v), x)
        )
        positions = self.linear_pos(table).unflatten(-1, (-1, self.head_dim))
        # under autocast the sums with float32 biases would be float32
        bias_u, bias_v = (
            bias.to(query.dtype).unsqueeze(1)
            for bias in (self.pos_bias_u, self.pos_bias_v)
        )
        bias = ShiftedBias(query + bias_v, positions.transpose(0, 1))  # [H, 2T, d]
        context = self.attend(
            query + bias_u,
            key,
            value,
            padding,
            self.dropout if self.training else 0.0,
            bias,
        )
        return self.linear_out(context)


class ConvolutionModule(nn.Module):
    """Pointwise → GLU → depthwise convolution → norm → swish → pointwise.

    Row c of the first pointwise weight is channel c's value and row ``width + c`` its
    gate. The norm's name is NeMo's, whatever its kind.
    """

    def __init__(self, settings, width):
        super().__init__()
        channels, bias = settings.d_model, settings.use_bias
        kernel, norms = settings.conv_kernel_size, settings.conv_norm_type
        self.context = settings.context
        self.pointwise_conv1 = Pointwise(channels, 2 * width, bias)
        self.depthwise_conv = nn.Conv1d(width, width, kernel, groups=width, bias=bias)
        norm = nn.BatchNorm1d if norms == "batch_norm" else nn.LayerNorm
        self.batch_norm = norm(width)
        self.pointwise_conv2 = Pointwise(width, channels, bias)

    def forward(self, x, padding=None):
        """[B, T, C] → [B, T, C]."""
        x = F.glu(self.pointwise_conv1(x))
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        weight, bias = self.depthwise_conv.weight, self.depthwise_conv.bias
        norm = self.batch_norm
        if isinstance(norm, nn.LayerNorm):
            x = norm(depthwise(x, weight, bias, *self.context))
        elif norm.training or not inference_on_cpu(x):
            x = depthwise(x, weight, bias, *self.context)
            x = norm(x.flatten(0, 1)).view_as(x)
        else:  # one pass less: a norm of fixed statistics is a factor and a bias
            factor, shift = scale_and_shift(norm)
            shift = shift if bias is None else shift + factor * bias
            x = depthwise(x, weight * factor.view(-1, 1, 1), shift, *self.context)
        return self.pointwise_conv2(swish(x))


class ConformerLayer(nn.Module):
    """One layer: [B, T, C] → [B, T, C]; a part of width 0 is not built."""

    def __init__(self, settings, width):
        super().__init__()
        channels, self.width = settings.d_model, width
        self.feed_forward1 = self.feed_forward2 = self.self_attn = self.conv = None
        if width.ffn1:
            self.norm_feed_forward1 = nn.LayerNorm(channels)
            self.feed_forward1 = FeedForward(settings, width.ffn1)
        if width.heads:
            self.norm_self_att = nn.LayerNorm(channels)
            self.self_attn = ShiftedAttention(settings, width.heads)
        if width.conv:
            self.norm_conv = nn.LayerNorm(channels)
            self.conv = ConvolutionModule(settings, width.conv)
        if width.ffn2:
            self.norm_feed_forward2 = nn.LayerNorm(channels)
            self.feed_forward2 = FeedForward(settings, width.ffn2)
        self.dropout = nn.Dropout(settings.dropout)
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, x, table, padding=None):
        """[B, T, C], sinusoids [2T, C], padding [B, T] → [B, T, C]."""
        drop = self.dropout
        if self.feed_forward1 is not None:
            normal = self.norm_feed_forward1(x)
            x = x.add(drop(self.feed_forward1(normal)), alpha=0.5)
        if self.self_attn is not None:
            x = x + drop(self.self_attn(self.norm_self_att(x), table, padding))
        if self.conv is not None:
            x = x + drop(self.conv(self.norm_conv(x), padding))
        if self.feed_forward2 is not None:
            normal = self.norm_feed_forward2(x)
            x = x.add(drop(self.feed_forward2(normal)), alpha=0.5)
        return self.norm_out(x)

    def prunable_groups(self, settings):
        """What may be removed from this layer → list of PrunableGroup."""
        own, full = self.state_dict(), settings.full_width
        norms = settings.conv_norm_type == "layer_norm"

        def group(kind, name, norm, inputs, output, **options):
            inputs = [f"{name}.{tensor}" for tensor in inputs]
            bias = f"{name}.{output}.bias"
            return PrunableGroup(
                name=name,
                kind=kind,
                units=getattr(self.width, kind),
                full=getattr(full, kind),
                input_weights=tuple(tensor for tensor in inputs if tensor in own),
                output_weight=f"{name}.{output}.weight",
                output_bias=bias if bias in own else None,
                removed_with_last=(name, norm),
                **options,
            )

        def both(*modules):
            return [f"{m}.{t}" for m in modules for t in ("weight", "bias")]

        ffn = both("linear1"), "linear2"
        maps = both("linear_q", "linear_k", "linear_v", "linear_pos")
        convolutions = both("pointwise_conv1", "depthwise_conv", "batch_norm")
        statistics = "batch_norm.running_mean", "batch_norm.running_var"
        return [
            group("ffn1", "feed_forward1", "norm_feed_forward1", *ffn),
            group(
                "heads",
                "self_attn",
                "norm_self_att",
                [*maps, "pos_bias_u", "pos_bias_v"],
                "linear_out",
                unit_size=settings.d_model // settings.n_heads,
                drawn_at="self_attn.linear_out",  # behind the attention's dropout
            ),
            group(
                "conv",
                "conv",
                "norm_conv",
                [*convolutions, *statistics],
                "pointwise_conv2",
                norms=("conv.batch_norm",) if norms else (),
            ),
            group("ffn2", "feed_forward2", "norm_feed_forward2", *ffn),
        ]
