"""CAM++: a small convolutional stem, then densely connected layers with masks.

    x ← [x; m ⊙ (W₃ ∗ h)],     h = ReLU(BN(W₁ ReLU(BN(x))))             one dense layer
    m_t = σ(W₅ ReLU(W₄ (mean(h) + mean of the segment of t (h)) + b₄) + b₅)

Wang et al. 2023 (arXiv 2303.00332). Segments are of 100 frames, the last one of what is
left. Behind each block of layers a linear map halves the width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.convolution import (
    Derived,
    NormedConv2d,
    around,
    in_inference,
    is_plain,
    row_ends,
    scale_and_shift,
)
from speechbrain_ext.lobes.cpu_inference import Linear, linear, relu
from speechbrain_ext.lobes.feature_encoder import FeatureEncoder, features_of
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import full_precision

SEGMENT = 100  # frames
STEM_STRIDE = 8  # mel bins that become one
TDNN_KERNEL = 5
TAPS = 3  # of a dense layer's convolution


class CAMPPlus(FeatureEncoder):
    """Waveform → (one state [B, T', C], lengths); T' is half of the frames.

    Arguments
    ---------
    layers : list of int
        Dense layers of each block.
    dilations : list of int
        Of the convolutions of each block.
    channels : int
        Width of the first block's input.
    growth : int
        Channels that a dense layer adds.
    bottleneck : int
        Width of h, even.
    stem_channels : int
        Of the two-dimensional convolutions.
    n_mels : int
        Mel bins, a multiple of 8.
    front_end : str
        As of :class:`~speechbrain_ext.lobes.resnet.ResNet`.
    dither : float
        Noise that the filterbank adds in training.
    frozen : bool
        No parameter needs a gradient, and the mode stays eval.
    gradient_checkpointing : bool
        Recompute each dense layer in backward: memory grows with the width, not with
        its square.

    Example
    -------
    >>> states, lens = CAMPPlus().eval()(torch.rand(2, 16000) - 0.5)
    >>> states[0].shape
    torch.Size([2, 49, 512])
    """

    title = "CAM++"

    def __init__(
        self,
        layers: list[int] = (12, 24, 16),
        dilations: list[int] = (1, 2, 2),
        channels: int = 128,
        growth: int = 32,
        bottleneck: int = 128,
        stem_channels: int = 32,
        n_mels: int = 80,
        front_end: str = "3dspeaker",
        dither: float = 0.0,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
    ):
        super().__init__(frozen, gradient_checkpointing)
        for name in ("channels", "growth", "bottleneck", "stem_channels"):
            check_at_least(name, self.arguments[name], 1)
        if n_mels % STEM_STRIDE or n_mels < STEM_STRIDE:
            raise InputError(f"n_mels={n_mels}, expected a multiple of {STEM_STRIDE}")
        if len(layers) != len(dilations) or min(*layers, *dilations) < 1:
            raise InputError(
                f"layers={list(layers)} and dilations={list(dilations)}, expected one "
                "number of each a block, 1 or more"
            )
        self.take_features(features_of(front_end, n_mels, dither))
        self.stem = Stem(stem_channels)
        bins = n_mels // STEM_STRIDE
        self.tdnn = NormedConv2d(
            stem_channels,
            channels,
            (bins, TDNN_KERNEL),
            (1, 2),
            (0, TDNN_KERNEL // 2),
        )
        self.blocks = nn.ModuleList()
        for count, dilation in zip(layers, dilations):
            block = DenseBlock(channels, count, bottleneck, growth, dilation)
            self.blocks.append(block)
            channels = block.outputs
        self.norm = nn.BatchNorm1d(channels)
        self.hidden_size = channels
        nn.init.kaiming_normal_(self.tdnn.conv.weight)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if name.endswith("taps"):  # a sum over all of them
                    module.weight.data /= TAPS**0.5
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def encode(self, x, lens=None):
        """Features [B, T, M] and their lengths → one state [B, T', C], in a list."""
        x = x.to(self.norm.weight.dtype)
        x, ends = row_ends(x, lens)
        x = self.stem(x.transpose(1, 2).unsqueeze(1), ends)
        if ends is not None:
            x, ends = ends.cleared(x, TDNN_KERNEL // 2, 3), ends.strided()
        x = self.tdnn(x).squeeze(2).transpose(1, 2)  # [B, T', C]
        segments = Segments(x, ends)
        for block in self.blocks:
            x = block(x, segments, ends, self.checkpointed)
        return [relu(self.norm(x.flatten(0, 1))).view(x.shape)]

    def left(self, frames):
        """Half of the frames."""
        return (frames + 1) // 2

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        return {
            "features": type(self.features),
            "stem": Stem,
            "dense layers": DenseBlock,
        }


class Stem(nn.Module):
    """[B, 1, M, T] → [B, C, M / 8, T]."""

    def __init__(self, channels):
        super().__init__()
        self.first = NormedConv2d(1, channels, 3)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, stride) for stride in (2, 1, 2, 1)
        )
        self.last = NormedConv2d(channels, channels, 3, (2, 1), 1)

    def forward(self, x, ends=None):
        """``ends``: :class:`RowEnds` of a padded batch."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x, ends)
        x = x if ends is None else ends.cleared(x, 1, 3)
        return self.last(x)


class ResidualBlock(nn.Module):
    """Two convolutions, of which the first one strides over mel bins, and x itself."""

    def __init__(self, channels, stride):
        super().__init__()
        self.first = NormedConv2d(channels, channels, 3, (stride, 1), 1)
        self.last = NormedConv2d(channels, channels, 3)
        self.shortcut = None
        if stride > 1:
            self.shortcut = NormedConv2d(channels, channels, 1, (stride, 1))

    def forward(self, x, ends=None):
        """[B, C, F, T] → [B, C, F', T]."""
        x = x if ends is None else ends.cleared(x, 1, 3)
        y = self.first(x)
        y = y if ends is None else ends.cleared(y, 1, 3)
        return self.last(y, around(self.shortcut, x))


class DenseBlock(nn.Module):
    """Dense layers, each of which sees all before it, then half of the width."""

    def __init__(self, channels, layers, bottleneck, growth, dilation):
        super().__init__()
        self.widths = [channels + growth * number for number in range(layers + 1)]
        self.layers = nn.ModuleList(
            DenseLayer(width, bottleneck, growth, dilation)
            for width in self.widths[:-1]
        )
        self.outputs = self.widths[-1] // 2
        self.transit = RectifiedLinear(self.widths[-1], self.outputs)

    def forward(self, x, segments, ends=None, run=None):
        """x [B, T, C] → [B, T, C']; ``run``: how a layer is called."""
        if torch.is_grad_enabled() or not in_inference(self):
            for layer in self.layers:
                x = torch.cat([x, run(layer, x, segments, ends)], dim=-1)
            return self.transit(x)
        # each layer writes where the next ones read: nothing is copied again
        everything = x.new_empty(*x.shape[:2], self.widths[-1])
        everything[..., : self.widths[0]] = x
        for layer, start, end in zip(self.layers, self.widths, self.widths[1:]):
            layer(everything[..., :start], segments, ends, everything[..., start:end])
        return self.transit(everything)


class RectifiedLinear(Derived):
    """W ReLU(BN(x)), or ReLU and BN of it: [B, T, C] → [B, T, D].

    In inference s max(x, −t/s) + t is ReLU(s x + t), for s > 0, and min for s < 0: one
    step, and s and t go into W.
    """

    def __init__(self, inputs, outputs, normed=False):
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.output_norm = nn.BatchNorm1d(outputs) if normed else nn.Identity()

    def forward(self, x):
        """[B, T, C] → [B, T, D]."""
        rectified = not isinstance(self.output_norm, nn.Identity)
        if in_inference(self) and is_plain(x, self.linear.weight):
            low, high, weight, bias = self.derived()
            x = torch.clamp(x, low, high)
            return linear(x, weight, bias, relu if rectified else None)
        y = self.output_norm(self.linear(relu(self.norm(x.flatten(0, 1)))))
        y = y.view(*x.shape[:2], -1)
        return relu(y) if rectified else y

    def derive(self):
        """Bounds [C], weight [D, C] and bias [D]."""
        scale, shift = scale_and_shift(self.norm)
        bound = -shift / scale
        infinite = torch.full_like(bound, float("inf"))
        low = torch.where(scale > 0, bound, -infinite)
        high = torch.where(scale < 0, bound, infinite)
        constant = ~bound.isfinite()  # s is zero: ReLU(t) whatever x is
        low, high = (torch.where(constant, 0.0, x) for x in (low, high))
        shift = torch.where(constant, shift.relu(), shift)
        weight, bias = self.linear.weight * scale, self.linear.weight @ shift
        if not isinstance(self.output_norm, nn.Identity):
            scale, shift = scale_and_shift(self.output_norm)
            weight, bias = weight * scale.unsqueeze(1), scale * bias + shift
        return low, high, weight, bias


class DenseLayer(nn.Module):
    """m ⊙ (W₃ ∗ h): [B, T, C] → [B, T, G]."""

    def __init__(self, inputs, bottleneck, growth, dilation):
        super().__init__()
        self.dilation = dilation
        self.expand = RectifiedLinear(inputs, bottleneck, normed=True)
        # W₃, one tap after another: one product for all, whose results are then shifted
        self.taps = Linear(bottleneck, TAPS * growth, bias=False)
        self.squeeze = nn.Linear(bottleneck, bottleneck // 2)
        self.excite = nn.Linear(bottleneck // 2, growth)

    def forward(self, x, segments, ends=None, out=None):
        """``out`` [B, T, G]: where the result is written in inference."""
        h = self.expand(x)
        h = h if ends is None else ends.cleared(h, self.dilation, 1)
        context = relu(self.squeeze(segments.context(h)))
        gate = segments.spread(self.excite(context).sigmoid())
        return torch.mul(self._convolved(h), gate, out=out)

    def _convolved(self, h):
        """W₃ ∗ h: [B, T, D] → [B, T, G]."""
        step, frames = self.dilation, h.shape[1]
        before, y, after = self.taps(h).chunk(TAPS, dim=-1)
        if in_inference(self):
            if frames > step:
                y[:, step:] += before[:, :-step]
                y[:, :-step] += after[:, step:]
            return y
        before = F.pad(before, (0, 0, step, 0))[:, :frames]
        return y + before + F.pad(after, (0, 0, 0, step))[:, step:]


class Segments:
    """Means over all frames and over segments of 100, of the valid ones.

    Arguments
    ---------
    x : torch.Tensor
        [B, T, C].
    ends : RowEnds, optional
        Of a padded batch.
    """

    def __init__(self, x, ends=None):
        rows, frames = x.shape[:2]
        places = torch.arange(frames, device=x.device)
        count = (frames + SEGMENT - 1) // SEGMENT
        self.numbers = places // SEGMENT
        inside = self.numbers == torch.arange(count, device=x.device).unsqueeze(1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        inside = inside.unsqueeze(0).to(dtype)  # [1, S, T]
        valid = torch.ones_like(inside[:, :1])
        if ends is not None:
            valid = (~ends.mask).unsqueeze(1).to(dtype)
        inside = inside * valid
        # a segment behind the end of its row has none
        inside = inside / inside.sum(-1, keepdim=True).clamp(min=1)
        weights = inside + valid / valid.sum(-1, keepdim=True)
        self.weights = weights.expand(rows, count, frames)

    def context(self, h):
        """[B, T, D] → sums of both means, [B, S, D]."""
        with full_precision(h):
            means = torch.bmm(self.weights, h.to(self.weights.dtype))
        return means.to(h.dtype)

    def spread(self, gate):
        """[B, S, G] → that of each frame, [B, T, G]; of a single segment [B, 1, G]."""
        single = gate.shape[1] == 1 and not torch.compiler.is_compiling()
        return gate if single else gate[:, self.numbers]
