"""ReDimNet and ReDimNet2: networks that see a spectrogram as a map and as a sequence.

    x₀ = LN(W * f)                              f [B, T, F] → maps [B, T, F, C]
    s  = Σ_j softmax_j(w)_j x_j,   j < k        every channel of D = F · C on its own
    m  = Blocks(Reduce(reshape s))              fewer bins, more channels, F · C kept
    x_k = m + Time(m),   reshape m              k = 1 … K
    y  = Σ_j softmax_j(w)_j x_j,   j ≤ K

Yakovlev et al. 2024, "Reshape Dimensions Network for Speaker Recognition" (arXiv
2407.18223). ReDimNet2 (Yakovlev and Okhotnikov 2026, arXiv 2603.11841) also pools time
inside a stage and repeats the frames behind it. Here they are never repeated: a source
of fewer frames is added to views of them, and norms over time come before.
"""

import math

import torch.nn.functional as F
from torch import nn

from speechbrain_ext.features import ReDimNetFeatures
from speechbrain_ext.lobes.cpu_inference import Linear, inference_on_cpu
from speechbrain_ext.lobes.encoder import padding_mask
from speechbrain_ext.lobes.feature_encoder import FeatureEncoder
from speechbrain_ext.lobes.redim_blocks import (
    EPS,
    TIME_LAYERS,
    ConvNeXtMap,
    MapConv,
    ResidualBlock,
    TimeContext,
    groups_of,
    normed,
    zeroed,
)
from speechbrain_ext.lobes.redim_stages import Aggregation, GroupNorm, Squeeze, Stage
from speechbrain_ext.lobes.redimnet_sizes import SIZES, SIZES2, checked_stage, of_size
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import valid_counts

MAP_BLOCKS = (
    "basic_resnet",
    "basic_resnet_fwse",
    "convnext_like",
    "convnext_like_relu",
)
# Frames of short rows that are computed together on a CPU
ROW_FRAMES = 512


class _Reshaping(FeatureEncoder):
    """What both networks have in common; subclasses make the stages and the output."""

    lora_targets = ("query", "value")
    dropout = 0.0  # of what a stage gives

    def _begin(self, bins, channels, block_1d_type, block_2d_type):
        """The stem, and what every stage needs, checked."""
        check_at_least("bins", bins, 1)
        check_at_least("channels", channels, 1)
        for name, value, choices in (
            ("block_1d_type", block_1d_type, TIME_LAYERS),
            ("block_2d_type", block_2d_type, MAP_BLOCKS),
        ):
            if value not in choices:
                raise InputError(f"{name}={value!r}, expected {' or '.join(choices)}")
        self.bins, self.width = bins, bins * channels
        self.block_1d_type, self.block_2d_type = block_1d_type, block_2d_type
        self.stem = MapConv(1, channels, (3, 3))
        self.stem_norm, self.stem_gnorm = nn.LayerNorm(channels, EPS), None
        self.stages = nn.ModuleList()
        self.time_stride = 1

    def _blocks(self, count, channels, bins, group_divisor, kernels):
        """Of a stage, over maps."""
        if self.block_2d_type.startswith("basic"):
            gated = self.block_2d_type.endswith("fwse")
            return [
                ResidualBlock(channels, bins, group_divisor, gated)
                for _ in range(count)
            ]
        activation = "relu" if self.block_2d_type.endswith("relu") else "gelu"
        return [
            ConvNeXtMap(channels, kernels, group_divisor, activation)
            for _ in range(count)
        ]

    def _context(self, reduction):
        """Of a stage, over time; None where the reduction is."""
        if reduction is None:
            return None
        return TimeContext(self.width, self.width // reduction, self.block_1d_type)

    def _finish(self, front_end):
        """The last sum, and the features of as many frames as are pooled."""
        self.aggregation = Aggregation(self.n_sources, self.width)
        given = {"n_mels": self.bins, **(front_end or {})}
        if given["n_mels"] != self.bins:
            raise InputError(
                f"front_end: n_mels={given['n_mels']}, but bins={self.bins}"
            )
        features = ReDimNetFeatures(**given, min_frames=self.time_stride)
        self.take_features(features)

    def same_front_end(self, other):
        """Whether another encoder takes the same features."""
        return isinstance(other, _Reshaping) and (
            self.features.settings == other.features.settings
        )

    def left(self, frames):
        """A multiple of the time stride."""
        return frames // self.time_stride * self.time_stride

    def encode(self, x, lens=None):
        """Features [B, T, F] and their lengths → one state [B, T', C]."""
        total, lens = self.left(x.shape[1]), self.output_lens(x, lens)
        x = x[:, :total].to(self.stem.weight.dtype)
        if inference_on_cpu(x):
            return [self._by_length(x, lens)]
        padding = padding_mask(total, lens)
        if padding is not None:
            padding = padding.to(x.device)
        return [self._encoded(zeroed(x, padding), padding)]

    def _by_length(self, x, lens):
        """Rows of one length at a time, and few: large maps do not stay in caches.

        Nothing is computed for the padding then, and nothing is masked.
        """
        batch, total = x.shape[:2]
        frames = [total] * batch if lens is None else valid_counts(lens, total).tolist()
        state = None
        for length in sorted(set(frames)):
            rows = [row for row, own in enumerate(frames) if own == length]
            together = max(1, ROW_FRAMES // length)
            for first in range(0, len(rows), together):
                some = rows[first : first + together]
                y = self._encoded(x[some, :length])
                if y.shape[:2] == (batch, total):
                    return y
                if state is None:
                    state = y.new_zeros(batch, total, y.shape[2])
                state[some, :length] = y
        return state

    def _encoded(self, x, padding=None):
        """Features [B, T, F], zero in their padding → [B, T, C]."""
        x = self.stem_norm(self.stem(x.unsqueeze(3))).flatten(2)
        if self.stem_gnorm is not None:
            x = self.stem_gnorm(x, padding)
        sources = [x]
        for stage in self.stages:
            found = self.checkpointed(stage, sources, padding)
            sources += [F.dropout(y, self.dropout, self.training) for y in found]
        return self._output(self.aggregation(sources))

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        blocks = [block for stage in self.stages for block in stage.blocks]
        kinds = {"features": ReDimNetFeatures, "sums": Aggregation}
        if blocks:
            kinds["map blocks"] = type(blocks[0])
        if any(stage.context is not None for stage in self.stages):
            kinds["time context"] = TimeContext
        return kinds


class ReDimNet(_Reshaping):
    """Waveform → one state: ReDimNet.

    Arguments
    ---------
    size : str
        "B0" to "B6": what is not given otherwise.
    bins, channels : int
        F mel bins, and C channels of the stem's map.
    stages_setup : list
        Of each stage [frequency stride, blocks, expansion of the channels inside,
        kernels, reduction of D for the time context or None]. Kernels are read by
        ReDimNet2 alone.
    block_1d_type, block_2d_type : str
        Layers over time: "conv+att", "att", "conv", "convx2" or "fc". Blocks over maps:
        "basic_resnet", "basic_resnet_fwse", "convnext_like" or "convnext_like_relu".
    group_divisor : int
        Convolutions have so many times fewer groups than channels; 0: one group.
    out_channels : int
        Width of the state; 0: D = F · C, with nothing behind the last sum.
    feat_agg_dropout : float
        In training, of what every stage gives.
    front_end : dict
        Options of :class:`~speechbrain_ext.features.ReDimNetFeatures`.
    frozen : bool
        Parameters need no gradient, and the module stays in eval mode.
    gradient_checkpointing : bool
        Recompute each stage in backward.

    Raises
    ------
    InputError
        Another size or kind of block; sizes that do not fit each other.

    Example
    -------
    >>> encoder = ReDimNet("B0").eval()
    >>> states, lens = encoder(torch.rand(2, 16000) - 0.5)
    >>> states[0].shape
    torch.Size([2, 101, 600])
    """

    def __init__(
        self,
        size: str = "B2",
        bins: int | None = None,
        channels: int | None = None,
        stages_setup: list | None = None,
        block_1d_type: str = "conv+att",
        block_2d_type: str | None = None,
        group_divisor: int | None = None,
        out_channels: int = 0,
        feat_agg_dropout: float = 0.0,
        front_end: dict | None = None,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
    ):
        super().__init__(frozen, gradient_checkpointing)
        table = of_size(SIZES, size)
        bins, channels, block_2d_type, group_divisor, stages_setup = (
            own if given is None else given
            for given, own in zip(
                (bins, channels, block_2d_type, group_divisor, stages_setup), table
            )
        )
        self._begin(bins, channels, block_1d_type, block_2d_type)
        self.dropout = feat_agg_dropout
        for number, setup in enumerate(stages_setup):
            stride, blocks, expansion, _, reduction = checked_stage(setup, number)
            if bins % stride:
                raise InputError(f"stage {number}: {bins} bins, stride {stride}")
            inner = int(stride * channels * expansion)
            resize = MapConv(channels, inner, (1, stride), strided=True)
            shape = (bins, channels)
            bins, channels = bins // stride, channels * stride
            squeeze = None
            if expansion != 1:
                groups = groups_of(channels, group_divisor, inner)
                squeeze = Squeeze(inner, channels, groups)
            self.stages.append(
                Stage(
                    Aggregation(number + 1, self.width if number else 1),
                    shape,
                    resize,
                    self._blocks(blocks, inner, bins, group_divisor, [(3, 3)]),
                    squeeze,
                    self._context(reduction),
                )
            )
        self.n_sources = len(self.stages) + 1
        self.out, self.hidden_size = None, out_channels or self.width
        if out_channels:
            self.out = Linear(self.width, out_channels)
            self.out_norm = nn.BatchNorm1d(out_channels)
        self._finish(front_end)

    def _output(self, x):
        return x if self.out is None else normed(self.out_norm, self.out(x))


class ReDimNet2(_Reshaping):
    """Waveform → one state: ReDimNet2.

    Its arguments are those of :class:`ReDimNet`, with these differences.

    Arguments
    ---------
    stages_setup : list
        Strides are [frequency, time]. Time strides multiply up from stage to stage;
        frames are cut to a multiple of the largest.
    compress_tconvs : bool
        The strided convolutions are in as many groups as channels allow.
    return_2d_output : bool
        The state is seen as a map: ``out_channels`` are those of each of its last bins,
        and come first in the state's order.
    agg_gnorm : bool or int
        GroupNorm over time of all that is summed: True takes C groups, an int so many.
    dual_agg : bool
        What a stage's time context is given is a source as well.
    front_end : dict
        None: "tf", with the waveform standardised.

    Example
    -------
    >>> encoder = ReDimNet2("B0").eval()
    >>> states, lens = encoder(torch.rand(2, 16000) - 0.5)
    >>> states[0].shape
    torch.Size([2, 96, 64])
    """

    def __init__(
        self,
        size: str = "B2",
        bins: int = 72,
        channels: int | None = None,
        stages_setup: list | None = None,
        block_1d_type: str = "conv+att",
        block_2d_type: str = "basic_resnet",
        group_divisor: int = 1,
        out_channels: int | None = None,
        compress_tconvs: bool = True,
        return_2d_output: bool = True,
        agg_gnorm: bool | int = False,
        dual_agg: bool = False,
        front_end: dict | None = None,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
    ):
        super().__init__(frozen, gradient_checkpointing)
        table = of_size(SIZES2, size)
        channels, out_channels, stages_setup = (
            own if given is None else given
            for given, own in zip((channels, out_channels, stages_setup), table)
        )
        self._begin(bins, channels, block_1d_type, block_2d_type)
        groups = channels if agg_gnorm is True else max(int(agg_gnorm), 0)
        if groups and self.width % groups:
            raise InputError(f"agg_gnorm={groups}, expected a divisor of {self.width}")
        if groups:
            self.stem_gnorm = GroupNorm(groups, self.width)
        sources, time_stride = 1, 1
        for number, setup in enumerate(stages_setup):
            stride, blocks, expansion, kernels, reduction = checked_stage(
                setup, number, 2
            )
            if bins % stride[0]:
                raise InputError(f"stage {number}: {bins} bins, stride {stride[0]}")
            time_stride *= stride[1]
            self.time_stride = max(self.time_stride, time_stride)
            inner = int(stride[0] * channels * expansion)
            resize = MapConv(
                channels,
                inner,
                (time_stride, stride[0]),
                strided=True,
                groups=math.gcd(channels, inner) if compress_tconvs else 1,
            )
            shape = (bins, channels)
            bins, channels = bins // stride[0], channels * stride[0]
            context = self._context(reduction)
            dual = dual_agg and context is not None
            kernels = [(of_time, of_bins) for of_bins, of_time in kernels]
            self.stages.append(
                Stage(
                    Aggregation(sources, self.width),
                    shape,
                    resize,
                    self._blocks(blocks, inner, bins, group_divisor, kernels),
                    Squeeze(inner, channels) if expansion != 1 else None,
                    context,
                    [GroupNorm(groups, self.width) for _ in range(1 + dual) if groups],
                    dual,
                )
            )
            sources += 1 + dual
        self.n_sources = sources
        self.last = (bins, channels) if return_2d_output else None
        own = channels if return_2d_output else self.width
        self.out = Linear(own, out_channels) if out_channels else None
        self.hidden_size = out_channels or own
        self.hidden_size *= bins if return_2d_output else 1
        self._finish(
            {"feat_type": "tf", "norm_signal": True} if front_end is None else front_end
        )

    def _output(self, x):
        if self.last is not None:
            x = x.unflatten(-1, self.last)
        if self.out is not None:
            x = self.out(x)
        return x if self.last is None else x.transpose(2, 3).flatten(2)
