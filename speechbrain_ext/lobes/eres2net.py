"""ERes2NetV2: residual blocks of short chains of convolutions, two stages fused.

    y_1 = ρ(W_1 ∗ x_1),   y_i = ρ(W_i ∗ f(y_{i−1}, x_i)),   ρ(x) = min(max(x, 0), 20)
    block(x) = ρ(W'' [y_1; …; y_s] + shortcut(x)),          [x_1; …; x_s] = ρ(W' x)
    AFF(x, y) = a x + (2 − a) y,     a = 1 + tanh(W₂ SiLU(W₁ [x; y]))
    out = AFF(stage 4, W ∗ stage 3)

every W with its BatchNorm. f is a sum in stages 1 and 2, AFF in stages 3 and 4. Chen et
al. 2024 (arXiv 2406.02167); AFF is that of ERes2Net (arXiv 2305.12838).
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.convolution import NormedConv2d, around, row_ends
from speechbrain_ext.lobes.feature_encoder import FeatureEncoder, features_of
from speechbrain_ext.utils.errors import InputError, check_at_least

STRIDES = (1, 2, 2, 2)  # of the four stages, in frequency and in time
FUSED = (False, False, True, True)
STRIDE = 8  # of them all
LIMIT = 20.0
SQUEEZE = 4


class ERes2NetV2(FeatureEncoder):
    """Waveform → (one state [B, T', C · F], lengths); T' is an eighth of the frames.

    The state has the F frequencies of a channel one after another.

    Arguments
    ---------
    blocks : list of int
        Of each of the four stages.
    channels : int
        Of the first convolution; stages have 1, 2, 4 and 8 times as many.
    base_width : int
        Width of a chunk for 64 channels.
    chunks : int
        Their number s in a block; the public code calls it scale.
    expansion : int
        A stage's output has so many times its channels.
    n_mels : int
        Mel bins, a multiple of 8.
    front_end : str
        As of :class:`~speechbrain_ext.lobes.resnet.ResNet`.
    dither : float
        Noise that the filterbank adds in training.
    frozen : bool
        No parameter needs a gradient, and the mode stays eval.
    gradient_checkpointing : bool
        Recompute each block in backward.

    Example
    -------
    >>> encoder = ERes2NetV2(blocks=[1, 1, 1, 1], channels=8).eval()
    >>> encoder(torch.rand(2, 16000) - 0.5)[0][0].shape
    torch.Size([2, 13, 1280])
    """

    title = "ERes2NetV2"

    def __init__(
        self,
        blocks: list[int] = (3, 4, 6, 3),
        channels: int = 64,
        base_width: int = 26,
        chunks: int = 2,
        expansion: int = 2,
        n_mels: int = 80,
        front_end: str = "3dspeaker",
        dither: float = 0.0,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
    ):
        super().__init__(frozen, gradient_checkpointing)
        for name in ("channels", "base_width", "chunks", "expansion"):
            check_at_least(name, self.arguments[name], 1)
        if n_mels % STRIDE or n_mels < STRIDE:
            raise InputError(f"n_mels={n_mels}, expected a multiple of {STRIDE}")
        if len(blocks) != len(STRIDES) or min(blocks) < 1:
            raise InputError(f"blocks={list(blocks)}, expected four numbers, 1 or more")
        self.take_features(features_of(front_end, n_mels, dither))
        self.first = NormedConv2d(1, channels, 3)
        self.stages, inputs = nn.ModuleList(), channels
        for number, (count, stride, fused) in enumerate(zip(blocks, STRIDES, FUSED)):
            planes = channels << number
            outputs, width = planes * expansion, planes * base_width // 64
            if width < (SQUEEZE if fused else 1):
                raise InputError(
                    f"base_width={base_width} of channels={channels}: chunks of "
                    f"{width} channels in stage {number + 1}, expected more"
                )
            stage = nn.ModuleList()
            for place in range(count):
                step = stride if place == 0 else 1
                stage.append(Block(inputs, outputs, width, chunks, step, fused))
                inputs = outputs
            self.stages.append(stage)
        self.downsampling = NormedConv2d(inputs // 2, inputs, 3, 2, normed=False)
        self.fusion = AFF(inputs)
        self.hidden_size = inputs * (n_mels // STRIDE)

    def encode(self, x, lens=None):
        """Features [B, T, M] and their lengths → one state [B, T', C], in a list."""
        x = x.to(self.first.conv.weight.dtype)
        x, ends = row_ends(x, lens)
        x = self.first(x.transpose(1, 2).unsqueeze(1))
        for number, stage in enumerate(self.stages):
            before, ends_before = x, ends
            if ends is not None:
                ends = ends.strided(STRIDES[number])
            for block in stage:
                x = self.checkpointed(block, x, ends)
        if ends is not None:
            before = ends_before.cleared(before, 1, 3)
        x = self.fusion(x, self.downsampling(before, rectified=False))
        return [x.permute(0, 3, 1, 2).flatten(2)]

    def left(self, frames):
        """An eighth of the frames."""
        return (frames - 1) // STRIDE + 1

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        return {"features": type(self.features), "blocks": Block}


class Block(nn.Module):
    """ρ(W'' [y_1; …; y_s] + shortcut(x)): [B, C, F, T] → [B, D, F', T']."""

    def __init__(self, inputs, outputs, width, chunks, stride, fused):
        super().__init__()
        self.width = width
        self.first = NormedConv2d(inputs, width * chunks, 1, stride)
        self.chain = nn.ModuleList(NormedConv2d(width, width, 3) for _ in range(chunks))
        self.fusions = nn.ModuleList(AFF(width) for _ in range(chunks - 1) if fused)
        self.last = NormedConv2d(width * chunks, outputs)
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = NormedConv2d(inputs, outputs, 1, stride)

    def forward(self, x, ends=None):
        """``ends``: :class:`RowEnds` of the result, in a padded batch."""
        first, outputs = self.first(x, highest=LIMIT), []
        for number, chunk in enumerate(first.split(self.width, 1)):
            if outputs and self.fusions:
                chunk = self.fusions[number - 1](outputs[-1], chunk)
            elif outputs:
                chunk = chunk + outputs[-1]
            chunk = chunk if ends is None else ends.cleared(chunk, 1, 3)
            outputs.append(self.chain[number](chunk, highest=LIMIT))
        y = torch.cat(outputs, dim=1)
        return self.last(y, around(self.shortcut, x), highest=LIMIT)


class AFF(nn.Module):
    """Attentional feature fusion of two maps [B, C, F, T]."""

    def __init__(self, channels):
        super().__init__()
        self.squeeze = NormedConv2d(2 * channels, channels // SQUEEZE, bias=True)
        self.excite = NormedConv2d(channels // SQUEEZE, channels, bias=True)

    def forward(self, x, y):
        """[B, C, F, T] of each → the same."""
        attention = self.squeeze(torch.cat([x, y], dim=1), rectified=False)
        attention = F.silu(attention, inplace=not torch.is_grad_enabled())
        # a x + (2 − a) y
        return torch.addcmul(
            x + y, self.excite(attention, rectified=False).tanh(), x - y
        )
