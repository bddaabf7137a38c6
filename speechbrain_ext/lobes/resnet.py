"""ResNets over filterbank features, as wespeaker and VoxBlink2 have them.

    h = Stage₄(Stage₃(Stage₂(Stage₁(ReLU(BN(conv₃ₓ₃(x)))))))       x [1, F, T]

He et al. 2016 (arXiv 1512.03385). A stage is a row of blocks
(:mod:`speechbrain_ext.lobes.resnet_blocks`); from one to the next channels double, and
frequencies and frames halve by the stride of a 3×3 convolution. Names of parameters are
wespeaker's.

A padded batch is what its utterances are alone: behind the end of each is zero before
each convolution that looks sideways, and SimAM's statistics are of its own frames.
"""

import torch
from torch import nn

from speechbrain_ext.lobes.convolution import row_ends
from speechbrain_ext.lobes.feature_encoder import FeatureEncoder, features_of
from speechbrain_ext.lobes.resnet_blocks import (
    BasicBlock,
    Bottleneck,
    Convolution,
    halved,
)
from speechbrain_ext.utils.errors import InputError, check_at_least

STAGES = 4
HALVINGS = STAGES - 1
# Name → blocks of each stage and whether they are bottlenecks, as wespeaker has them
SIZES = {
    "18": ([2, 2, 2, 2], False),
    "34": ([3, 4, 6, 3], False),
    "50": ([3, 4, 6, 3], True),
    "101": ([3, 4, 23, 3], True),
    "152": ([3, 8, 36, 3], True),
    "221": ([6, 16, 48, 3], True),
    "293": ([10, 20, 64, 3], True),
}
SIMAM_SIZES = {
    "34": ([3, 4, 6, 3], False),
    "100": ([6, 16, 24, 3], False),
    "293": ([10, 20, 64, 3], False),
}


class ResNet(FeatureEncoder):
    """Waveform → (one state [B, T', C·F'], lengths): frames of 80 ms.

    The state holds channel after channel, each with its frequencies, as the public
    poolings flatten them.

    Arguments
    ---------
    size : str
        18, 34, 50, 101, 152, 221 or 293; blocks and their kind. None: the next two.
    blocks : list of int, optional
        Blocks of each of the four stages.
    bottleneck : bool, optional
        Whether they are bottlenecks.
    width : int
        Channels of the first stage.
    n_mels : int
        Frequencies F of the features.
    front_end : str
        ``wespeaker``, ``3dspeaker`` (Kaldi's filterbank, Hamming and 16 bits, or Povey
        and ±1), ``voxblink2`` or ``voxblink2_std`` (mel spectrum of a waveform over its
        peak or over its deviation).
    dither : float
        Noise that Kaldi's filterbank adds in training; wespeaker's is 1.
    block_widths : list of list of int, optional
        Channels inside every block: one number, of a bottleneck two; None: all.
    frozen : bool
        Parameters need no gradient, and the module stays in eval mode.
    gradient_checkpointing : bool
        Recompute each block in backward: less memory, about a third more time.

    Raises
    ------
    InputError
        Sizes that describe no such network.

    Example
    -------
    >>> encoder = ResNet(blocks=[1, 1, 1, 1], bottleneck=False, width=4).eval()
    >>> states, lens = encoder(torch.rand(2, 16000) - 0.5)
    >>> len(states), states[0].shape
    (1, torch.Size([2, 13, 320]))
    """

    sizes = SIZES
    simam = False

    def __init__(
        self,
        size: str | None = None,
        blocks: list[int] | None = None,
        bottleneck: bool | None = None,
        width: int = 32,
        n_mels: int = 80,
        front_end: str = "wespeaker",
        dither: float = 0.0,
        block_widths: list[list[int]] | None = None,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
    ):
        super().__init__(frozen, gradient_checkpointing)
        counts, bottleneck = self._shape(size, blocks, bottleneck)
        check_at_least("width", width, 1)
        check_at_least("n_mels", n_mels, 1)
        self.take_features(features_of(front_end, n_mels, dither))
        kind = Bottleneck if bottleneck else BasicBlock
        inner = _inner_widths(block_widths, counts, kind, width)
        self.conv1 = Convolution(1, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(counts):
            planes = width * 2**stage
            layer = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                block = kind(channels, planes, next(inner), stride, self.simam)
                layer.append(block)
                channels = planes * kind.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.hidden_size = channels * halved(n_mels, HALVINGS)

    def _shape(self, size, blocks, bottleneck):
        """Blocks of each stage and whether they are bottlenecks."""
        if size is not None:
            if size not in self.sizes or blocks is not None or bottleneck is not None:
                raise InputError(
                    f"size={size!r}, blocks={blocks}, bottleneck={bottleneck}, "
                    f"expected one of {', '.join(self.sizes)}, or blocks and bottleneck"
                )
            return self.sizes[size]
        right = isinstance(blocks, list | tuple) and len(blocks) == STAGES
        if not (right and all(type(n) is int and n > 0 for n in blocks)):
            raise InputError(
                f"blocks={blocks}, expected {STAGES} numbers above 0, or a size of "
                f"{', '.join(self.sizes)}"
            )
        if self.simam and bottleneck:
            raise InputError(
                "bottleneck=True, expected False: SimAM is of basic blocks"
            )
        return list(blocks), bool(bottleneck)

    def encode(self, x, lens=None):
        """Features [B, T, F] and their lengths → one state [B, T', C·F']."""
        x, ends = row_ends(x, lens)
        x = x.to(self.conv1.weight.dtype).transpose(1, 2).unsqueeze(1)  # [B, 1, F, T]
        if not torch.compiler.is_compiling():
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv1(x, self.bn1)
        for layer in self.stages():
            for block in layer:
                x = self.checkpointed(block, x, ends)
                ends = ends and ends.strided(block.stride)
        return [x.permute(0, 3, 1, 2).flatten(2)]

    def stages(self):
        """The four sequences of blocks."""
        return [self.get_submodule(f"layer{n + 1}") for n in range(STAGES)]

    def left(self, frames):
        """An eighth of the frames."""
        return halved(frames, HALVINGS)

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        return {"features": type(self.features), "blocks": type(self.layer1[0])}

    def prunable_groups(self):
        """Channels inside every block → list of PrunableGroup, for ``pruning``."""
        groups, number = [], 0
        for stage, layer in enumerate(self.stages()):
            for place, block in enumerate(layer):
                for group in block.prunable_groups():
                    groups.append(group.within(f"layer{stage + 1}.{place}", number))
                number += 1
        return groups

    def resized(self, widths):
        """A new encoder of other widths inside its blocks, with random weights."""
        groups, inner = iter(self.prunable_groups()), []
        for layer in self.stages():
            for block in layer:
                inner.append([widths[next(groups).name] for _ in block.widths])
        return type(self)(
            **{**self.arguments, "block_widths": inner},
            frozen=self.frozen,
            gradient_checkpointing=self.gradient_checkpointing,
        )


class SimAMResNet(ResNet):
    """ResNet of basic blocks with SimAM: sizes 34, 100 and 293.

    Arguments are those of :class:`ResNet`, but for bottlenecks.

    Example
    -------
    >>> with torch.device("meta"):
    ...     encoder = SimAMResNet("34")
    >>> encoder.hidden_size
    5120
    """

    sizes = SIMAM_SIZES
    simam = True

    def __init__(
        self,
        size: str | None = None,
        blocks: list[int] | None = None,
        width: int = 64,
        n_mels: int = 80,
        front_end: str = "wespeaker",
        dither: float = 0.0,
        block_widths: list[list[int]] | None = None,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
    ):
        super().__init__(
            size,
            blocks,
            None,
            width,
            n_mels,
            front_end,
            dither,
            block_widths,
            frozen,
            gradient_checkpointing,
        )


def _inner_widths(widths, counts, kind, width):
    """Iterator over the channels inside each block."""
    each = 2 if kind is Bottleneck else 1
    full = [
        [width * 2**stage] * each for stage, n in enumerate(counts) for _ in range(n)
    ]
    if widths is None:
        return iter(full)
    right = len(widths) == len(full) and all(
        len(own) == each and all(1 <= n <= most[0] for n in own)
        for own, most in zip(widths, full)
    )
    if not right:
        raise InputError(
            f"block_widths={widths}, expected {len(full)} lists of {each} number(s), "
            "each from 1 to the block's full width"
        )
    return iter([list(own) for own in widths])
