"""ECAPA-TDNN as a network of features: SpeechBrain's layers, or with zero padding.

    h₀ = TDNN(x);   h_i = h_{i−1} + SE(TDNN(Res2(TDNN(h_{i−1}))))        i = 1, 2, 3
    s  = TDNN([h₁; h₂; h₃]),     TDNN = BN(ReLU(conv))

Desplanques et al. 2020 (arXiv 2005.07143). s is the encoder's state; the pooling and
the embedding are :class:`~speechbrain_ext.lobes.heads.ecapa.ECAPAPooling`. Public
programs differ:

                  ends of a row   BN of s   h_i sees
    SpeechBrain   reflected       yes       h_{i−1}
    wespeaker     zeros           no        h_{i−1}
    VoxBlink2     zeros           no        h₀ + … + h_{i−1}

and Res2 passes the first of its chunks in SpeechBrain, the last one in the others: a
permutation of channels, which a conversion makes.
"""

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.ECAPA_TDNN import (
    ECAPA_TDNN,
    Res2NetBlock,
    SEBlock,
    SERes2NetBlock,
    TDNNBlock,
)
from torch import nn

from speechbrain_ext.features import KaldiFbank, SpeechBrainFbank
from speechbrain_ext.features.frames import HOP, sample_counts
from speechbrain_ext.lobes.convolution import scale_and_shift
from speechbrain_ext.lobes.cpu_inference import (
    inference_on_cpu,
    linear,
    plain_on_cpu,
    relu,
    watched,
)
from speechbrain_ext.lobes.encoder import PrunableGroup, padding_mask
from speechbrain_ext.lobes.feature_encoder import FeatureEncoder, features_of
from speechbrain_ext.lobes.heads.pooling import norm_of_frames
from speechbrain_ext.utils.errors import InputError, check_at_least

SCALE = 8  # chunks of Res2
BOTTLENECK = 128  # of squeeze-excitation
PADDINGS = ("reflect", "zeros")
SHORT = 100  # frames of rows that a CPU computes sooner together than one by one


class ECAPA(FeatureEncoder):
    """Waveform → (one hidden state, lengths): all of ECAPA-TDNN before its pooling.

    The layers are SpeechBrain's, with its names; rows of other lengths than the batch
    run at once, each with its own end.

    Arguments
    ---------
    channels : list of int
        Of the first layer, of each block, and of the last layer, which is the width of
        the state.
    kernel_sizes, dilations : list of int
        Of the same layers; kernels are odd.
    res2net_scale : int
        Chunks of Res2.
    se_channels : int
        Bottleneck of squeeze-excitation.
    padding : str
        What is beyond the ends of a row: ``reflect``, as SpeechBrain, with a BatchNorm
        behind the last layer; or ``zeros``, without one, as wespeaker.
    block_sums : bool
        A block sees the sum of all that is before it, as in VoxBlink2.
    n_mels : int
        Frequencies F of the features.
    front_end : str
        ``speechbrain``, or one of ResNet's: ``wespeaker``, ``3dspeaker``,
        ``voxblink2``, ``voxblink2_std``.
    dither : float
        Noise that Kaldi's filterbank adds in training; wespeaker's is 1.
    fbank : dict
        Further options of :class:`~speechbrain_ext.features.SpeechBrainFbank`.
    res2net_widths, se_widths : list of int
        Of each block, channels of a chunk and of the bottleneck that pruning left.
    frozen, gradient_checkpointing : bool
        As in every encoder; recomputed are the blocks.

    Raises
    ------
    InputError
        Sizes that do not fit together, an unknown padding or kind of features.

    Example
    -------
    >>> encoder = ECAPA([16, 16, 16, 16, 24], se_channels=4).eval()
    >>> states, lens = encoder(torch.rand(2, 16000) - 0.5)
    >>> len(states), states[0].shape
    (1, torch.Size([2, 101, 24]))
    """

    title = "ECAPA-TDNN"
    feature_arguments = (*FeatureEncoder.feature_arguments, "fbank")

    def __init__(
        self,
        channels: list[int] = (1024, 1024, 1024, 1024, 1536),
        kernel_sizes: list[int] = (5, 3, 3, 3, 1),
        dilations: list[int] = (1, 2, 3, 4, 1),
        res2net_scale: int = SCALE,
        se_channels: int = BOTTLENECK,
        padding: str = "reflect",
        block_sums: bool = False,
        n_mels: int = 80,
        front_end: str = "speechbrain",
        dither: float = 0.0,
        fbank: dict | None = None,
        res2net_widths: list[int] | None = None,
        se_widths: list[int] | None = None,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
    ):
        super().__init__(frozen, gradient_checkpointing)
        blocks = len(channels) - 2
        res2net_widths = res2net_widths or [c // res2net_scale for c in channels[1:-1]]
        se_widths = se_widths or [se_channels] * blocks
        _check_sizes(channels, kernel_sizes, dilations, res2net_scale, block_sums)
        for name, widths in (
            ("se_widths", se_widths),
            ("res2net_widths", res2net_widths),
        ):
            if len(widths) != blocks or min(widths) < 1:
                raise InputError(f"{name}={widths}, expected {blocks} of 1 or more")
        if padding not in PADDINGS:
            raise InputError(f"padding={padding!r}, expected {' or '.join(PADDINGS)}")
        check_at_least("n_mels", n_mels, 1)
        self.take_features(_features(front_end, n_mels, dither, fbank))
        self.block_sums, self.hidden_size = block_sums, channels[-1]
        parts = ECAPA_TDNN(
            n_mels,
            channels=list(channels),
            kernel_sizes=list(kernel_sizes),
            dilations=list(dilations),
            res2net_scale=res2net_scale,
            se_channels=1,
            attention_channels=1,
            lin_neurons=1,
        )
        self.blocks, self.mfa = parts.blocks, parts.mfa
        for number, (width, narrow) in enumerate(zip(res2net_widths, se_widths), 1):
            _resize(self.blocks[number], channels[number], width, narrow)
        if padding == "zeros":
            self.mfa.norm.norm = nn.Identity()
        borders = [d * (k // 2) for d, k in zip(dilations, kernel_sizes)]
        for module in self.modules():
            module.__class__ = _OURS.get(type(module), type(module))
            if isinstance(module, TDNNBlock):
                module.reflects = padding == "reflect"
        # as many frames as are reflected, and the one that they are reflected at
        frames = 1 + max(borders) if padding == "reflect" else 1
        self.min_samples = _samples(self.features, frames)

    def front_end(self, wavs, wav_lens=None):
        """[B, T] → features [B, T', M], relative lengths [B]."""
        # frames to be reflected; features of a graph check nothing
        own = getattr(self.features, "min_samples", self.min_samples)
        more = self.min_samples > own
        if more and not torch.compiler.is_compiling():
            sample_counts(wavs, wav_lens, self.min_samples)
        return super().front_end(wavs, wav_lens)

    def encode(self, x, lens=None):
        """Features [B, T, M] and their lengths → one state [B, T, C]."""
        padding = padding_mask(x.shape[1], lens)
        if padding is None:
            return [self._frames(x)]
        padding = padding.to(x.device)
        if self.training or not inference_on_cpu(x) or x.shape[1] < SHORT:
            return [self._frames(x, padding)]
        # one row stays in the cache, and has no padding to be computed
        rows = [
            self._frames(row[:count].unsqueeze(0)).squeeze(0)
            for row, count in zip(x, (~padding).sum(1).tolist())
        ]
        rows[0] = F.pad(rows[0], (0, 0, 0, x.shape[1] - len(rows[0])))
        return [nn.utils.rnn.pad_sequence(rows, batch_first=True)]

    def _frames(self, x, padding=None):
        """Features [B, T, F] → the state [B, T, C]."""
        first, *blocks = self.blocks
        x = first(x.to(first.conv.conv.weight.dtype), padding)
        outputs = []
        for block in blocks:
            y = self.checkpointed(block, x, padding)
            outputs.append(y)
            x = x + y if self.block_sums else y
        return self.mfa(torch.cat(outputs, dim=-1), padding)

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        return {
            "features": type(self.features),
            "res2net": Res2NetBlock,
            "squeeze-excitation": SEBlock,
            "tdnn": TDNNBlock,
        }

    def prunable_groups(self):
        """Channels of Res2, the same ones of all its chunks, and of the bottlenecks."""
        groups = []
        for number, block in enumerate(self.blocks[1:], 1):
            res2, se = block.res2net_block, block.se_block
            inside = [f"res2net_block.blocks.{n}" for n in range(len(res2.blocks))]
            full = self.arguments["channels"][number] // res2.scale
            of_res2 = PrunableGroup(
                name="res2net_block",
                kind="res2",
                units=res2.blocks[0].conv.conv.out_channels,
                full=full,
                input_weights=tuple(
                    f"{layer}.{tensor}"
                    for layer in ("tdnn1", *inside)
                    for tensor in _TENSORS
                ),
                output_weight="tdnn2.conv.conv.weight",
                inner_weights=tuple(f"{layer}.conv.conv.weight" for layer in inside),
                unit_dim=1,
            )
            of_se = PrunableGroup(
                name="se_block",
                kind="se",
                units=se.conv1.conv.out_channels,
                full=self.arguments["se_channels"],
                input_weights=(
                    "se_block.conv1.conv.weight",
                    "se_block.conv1.conv.bias",
                ),
                output_weight="se_block.conv2.conv.weight",
                unit_dim=1,
            )
            place = f"blocks.{number}"
            groups += [g.within(place, number - 1) for g in (of_res2, of_se)]
        return groups

    def resized(self, widths):
        """A new encoder of other widths, with random weights: group name → units."""
        numbers = range(1, len(self.blocks))
        return type(self)(
            **{
                **self.arguments,
                "res2net_widths": [
                    widths[f"blocks.{number}.res2net_block"] for number in numbers
                ],
                "se_widths": [
                    widths[f"blocks.{number}.se_block"] for number in numbers
                ],
            },
            frozen=self.frozen,
            gradient_checkpointing=self.gradient_checkpointing,
        )


def _check_sizes(channels, kernels, dilations, scale, block_sums):
    """InputError: layers that do not fit together."""
    sizes = (*channels, *kernels, *dilations)
    if not len(channels) == len(kernels) == len(dilations) >= 3 or min(sizes) < 1:
        raise InputError(
            f"channels={list(channels)}, kernel_sizes={list(kernels)}, "
            f"dilations={list(dilations)}, expected one of each for the first layer, "
            "for every block and for the last layer, 1 or more"
        )
    if even := [kernel for kernel in kernels if kernel % 2 == 0]:
        raise InputError(f"kernel_sizes: {even[0]}, expected odd numbers")
    check_at_least("res2net_scale", scale, 2)
    if len(set(channels[0 if block_sums else 1 : -1])) > 1 or channels[1] % scale:
        which = "all but the last" if block_sums else "those of the blocks"
        raise InputError(
            f"channels={list(channels)}, expected {which} equal, a multiple of {scale}"
        )


def _features(front_end, n_mels, dither, fbank):
    """The features of that name."""
    if front_end != "speechbrain":
        features = features_of(front_end, n_mels, dither, others=["speechbrain"])
        if fbank is not None:
            raise InputError(
                f"fbank={fbank} with front_end {front_end!r}, expected 'speechbrain'"
            )
        return features
    if dither:
        raise InputError(f"dither={dither}, expected 0: speechbrain has none")
    try:
        return SpeechBrainFbank(n_mels, **(fbank or {}))
    except TypeError as error:  # an option that there is not, which Python names
        raise InputError(f"fbank: {error}") from error


def _samples(features, frames):
    """Samples of the shortest waveform that has so many frames."""
    if isinstance(features, KaldiFbank):
        return features.min_samples + (frames - 1) * features.settings.hop
    hop = getattr(features, "hop", HOP)
    return max(features.min_samples, (frames - 1) * hop)


def _resize(block, channels, width, narrow):
    """Give a SERes2NetBlock, in place, ``width`` channels a chunk, ``narrow`` of SE."""
    scale = block.res2net_block.scale
    inside = block.res2net_block.blocks[0].conv
    if width * scale != channels:
        block.tdnn1 = TDNNBlock(block.tdnn1.conv.in_channels, scale * width, 1, 1)
        block.res2net_block = Res2NetBlock(
            *(scale * width, scale * width, scale, inside.kernel_size, inside.dilation)
        )
        block.tdnn2 = TDNNBlock(scale * width, channels, 1, 1)
    block.se_block = SEBlock(channels, narrow, channels)


class _TDNN(TDNNBlock):
    """BN(ReLU(conv)): [B, T, C] → [B, T, D]."""

    reflects = True

    def forward(self, x, padding=None):
        # of the wrapper only the convolution: it pads each row at its own end
        conv, norm = self.conv.conv, self.norm.norm
        border = conv.dilation[0] * (conv.kernel_size[0] // 2)
        x = _bordered(x, border, self.reflects, padding)
        if norm.training or watched(conv) or not plain_on_cpu(x, conv.weight):
            x = F.relu(conv(x.transpose(1, 2)), inplace=True)
            return norm_of_frames(norm, x, padding).transpose(1, 2)
        # products of frames take four fifths of 1×1 convolutions' time, wide ones half
        if conv.kernel_size[0] > 1:
            weight, step = conv.weight.unsqueeze(2), (1, conv.dilation[0])
            x = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, T], channels_last
            x = F.conv2d(x, weight, conv.bias, dilation=step).relu_()
            x = x.squeeze(2).transpose(1, 2)
        else:
            x = linear(x, conv.weight.squeeze(2), conv.bias, relu)
        if isinstance(norm, nn.Identity):
            return x
        scale, shift = scale_and_shift(norm)
        return torch.addcmul(shift, x, scale, out=x)


class _Res2(Res2NetBlock):
    """y₀ = x₀,  y_i = TDNN(x_i + y_{i−1})  (y₁ = TDNN(x₁)) of chunks x_i."""

    def forward(self, x, padding=None):
        passed, chunk, *rest = x.chunk(self.scale, dim=-1)
        outputs = [passed, self.blocks[0](chunk, padding)]
        for layer, chunk in zip(self.blocks[1:], rest):
            outputs.append(layer(chunk + outputs[-1], padding))
        return torch.cat(outputs, dim=-1)


class _SE(SEBlock):
    """The factors of the channels: [B, T, C] → [B, 1, C]."""

    def forward(self, x, padding=None):
        if padding is None:
            mean = x.mean(1)
        else:
            count = (~padding).sum(1, keepdim=True)
            mean = x.masked_fill(padding.unsqueeze(-1), 0.0).sum(1) / count
        narrow = F.relu(self.conv1.conv(mean.unsqueeze(-1)))
        return self.conv2.conv(narrow).sigmoid().transpose(1, 2)


class _SERes2(SERes2NetBlock):
    """h + SE(TDNN(Res2(TDNN(h)))): [B, T, C] → [B, T, D]."""

    def forward(self, x, padding=None):
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut(x.transpose(1, 2)).transpose(1, 2)
        x = self.res2net_block(self.tdnn1(x, padding), padding)
        x = self.tdnn2(x, padding)
        return torch.addcmul(shortcut, x, self.se_block(x, padding))


_OURS = {
    TDNNBlock: _TDNN,
    Res2NetBlock: _Res2,
    SEBlock: _SE,
    SERes2NetBlock: _SERes2,
}
# of a TDNN, those with a row for each channel
_TENSORS = (
    *("conv.conv.weight", "conv.conv.bias", "norm.norm.weight", "norm.norm.bias"),
    *("norm.norm.running_mean", "norm.norm.running_var"),
)


def _bordered(x, border, reflects, padding=None):
    """[B, T, C] → [B, T + 2 border, C], with what a row alone has beyond its end."""
    if not border:
        return x
    if not reflects:
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        return F.pad(x, (0, 0, border, border))
    if padding is not None:
        end = (~padding).sum(1, keepdim=True)
    if torch.compiler.is_compiling():
        # the batch size would be a constant of the writing below
        place = torch.arange(-border, x.shape[1] + border, device=x.device).abs()
        place = torch.where(place < end, place, 2 * (end - 1) - place).clamp(min=0)
        return x.gather(1, place.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    before, after = x[:, 1 : border + 1].flip(1), x[:, -border - 1 : -1].flip(1)
    x = torch.cat([before, x, after], dim=1)
    if padding is not None:
        # only the frames next to the end of a row: no others reach into it
        rows = torch.arange(len(x), device=x.device).unsqueeze(1)
        place = border + end + torch.arange(border, device=x.device)
        x[rows, place] = x[rows, 2 * (border + end - 1) - place]
    return x
