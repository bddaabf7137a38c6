"""Weighted sum of the hidden states, then ECAPA-TDNN.

    ECAPA-TDNN(N(Σ_l softmax(w)_l h_l))                N: what is normalised over time

arXiv 2510.04213, table 2; Desplanques et al. 2020 (arXiv 2005.07143). Published:

    the paper     InstanceNorm, SpeechBrain's ECAPA-TDNN (the default)
    UniSpeech     InstanceNorm, zero padding, no global context, variance floor 1e-9
    wespeaker     mean removed, zero padding, global context, variance floor 1e-7
"""

import contextlib

import torch
import torch.nn.functional as F
from speechbrain.lobes.models import ECAPA_TDNN as module_of_ecapa
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Conv1d
from torch import nn

from speechbrain_ext.lobes.encoder import Head, padding_mask, shared_copy
from speechbrain_ext.lobes.heads.pooling import (
    AttentiveStatisticsPooling,
    LastLinear,
    norm_of_frames,
    weighted_sum,
)
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import full_precision, valid_counts

# SpeechBrain's ECAPA-TDNN reflects up to 4 frames at either end, and must have them.
ECAPA_MIN_FRAMES = 5
INSTANCE_NORM_EPS = 1e-5  # torch's own
NORMALISATIONS = ("instance", "mean", "none")
PADDINGS = ("reflect", "zeros")
# Of zero padding
SCALE = 8  # chunks of Res2
BOTTLENECK = 128  # of squeeze-excitation and attention
DILATIONS = (2, 3, 4)


class WeightedSumECAPA(Head):
    """Softmax-weighted sum of the states, then ECAPA-TDNN.

    With reflected borders, as in SpeechBrain, rows of different lengths run in groups
    of equal length: ECAPA's borders and squeeze-excitation see the padding otherwise,
    and a padded batch would not equal its single utterances (SpeechBrain's own masking
    leaves the borders). A row needs five frames.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1.
    embedding_size : int
        Width E of the embedding.
    channels : list of int
        Of ECAPA-TDNN; the paper's small one by default.
    normalisation : str
        Of the sum, over time and channel by channel: ``instance`` (zero mean, unit
        variance), ``mean`` (zero mean) or ``none``.
    padding : str
        ``reflect``: SpeechBrain's ECAPA-TDNN; ``zeros``:
        :class:`ZeroPaddedECAPA`.
    global_context : bool
        The attention of the pooling sees mean and standard deviation over time.
    variance_floor : float
        Smallest variance in the pooling with zero padding; SpeechBrain's is fixed.
    embedding_norm : bool
        BatchNorm on the embedding, with zero padding.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all.

    Raises
    ------
    InputError
        Another normalisation or padding; what SpeechBrain's ECAPA-TDNN does not have.
    """

    def __init__(
        self,
        input_size,
        n_states=25,
        embedding_size=256,
        channels=(512, 512, 512, 512, 1536),
        normalisation: str = "instance",
        padding: str = "reflect",
        global_context: bool = True,
        variance_floor: float | None = None,
        embedding_norm: bool = False,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        for name, value, choices in (
            ("normalisation", normalisation, NORMALISATIONS),
            ("padding", padding, PADDINGS),
        ):
            if value not in choices:
                raise InputError(f"{name}={value!r}, expected {' or '.join(choices)}")
        self.normalisation = normalisation
        self.reflects = padding == "reflect"
        self.layer_weights = nn.Parameter(
            torch.zeros(self.read_states(n_states, layers))
        )
        if not self.reflects:
            self.ecapa_tdnn = ZeroPaddedECAPA(
                input_size,
                channels,
                embedding_size,
                global_context,
                1e-7 if variance_floor is None else variance_floor,
                embedding_norm,
            )
            return
        if variance_floor is not None or embedding_norm:
            raise InputError(
                "WeightedSumECAPA: variance_floor or embedding_norm with padding "
                "'reflect', expected padding 'zeros'"
            )
        self.ecapa_tdnn = ECAPA_TDNN(
            input_size,
            channels=list(channels),
            lin_neurons=embedding_size,
            global_context=global_context,
        )
        self.ecapa_tdnn.fc.__class__ = _LastConv1d

    @property
    def min_frames(self):
        """Frames that it needs."""
        return ECAPA_MIN_FRAMES if self.reflects else 1

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        total = self.weighted_sum(states)
        padding = padding_mask(total.shape[1], lens)
        if not self.reflects:
            return self._embed_masked(total, padding)
        if padding is None:
            return self._embed(total)
        frames, out = valid_counts(lens, total.shape[1]), None
        for length in frames.unique().tolist():
            rows = (frames == length).nonzero().squeeze(1).to(total.device)
            part = self._embed(total[rows, :length])
            out = part.new_zeros(len(frames), *part.shape[1:]) if out is None else out
            out = out.index_copy(0, rows, part)
        return out

    def weighted_sum(self, states):
        """L+1 states [B, T, C] → [B, T, C]."""
        return weighted_sum(self.chosen(states), self.layer_weights)

    def graph_form(self):
        """Rows of different lengths at once, each as if it were alone."""
        if not self.reflects:
            return self
        form = shared_copy(self)
        form.__class__ = _MaskedECAPA
        for module in form.modules():
            if type(module) is Conv1d and module.kernel_size > 1:
                module.__class__ = _RowReflectingConv1d
        return form

    def _embed(self, x):
        """[B, T, C] without padding → [B, 1, E]."""
        if x.shape[1] < ECAPA_MIN_FRAMES:
            raise InputError(
                f"WeightedSumECAPA: a row of {x.shape[1]} frames, expected "
                f"{ECAPA_MIN_FRAMES} or more (0.115 s of w2v-BERT 2.0's input)"
            )
        if self.normalisation == "instance":
            x = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.normalisation == "mean":
            x = x - x.mean(1, keepdim=True)
        return self.ecapa_tdnn(x)

    def _embed_masked(self, x, padding):
        """[B, T, C] and True in its padding [B, T] → [B, 1, E]."""
        with full_precision(x):
            # a mask for the network only where it hides something: BatchNorm by a mask
            # makes a GPU wait, 28 times
            mask = x.new_zeros(x.shape[:2]).bool() if padding is None else padding
            inside = ~mask.unsqueeze(-1)
            x = self._normalised(x.float(), inside, inside.sum(1, keepdim=True))
        return self.ecapa_tdnn(x, padding).unsqueeze(1)

    def _normalised(self, x, inside, count):
        """[B, T, C] over the ``count`` frames inside → the same, zeros outside."""
        x = torch.where(inside, x, 0.0)
        if self.normalisation == "none":
            return x
        x = torch.where(inside, x - x.sum(1, keepdim=True) / count, 0.0)
        if self.normalisation == "mean":
            return x
        variance = x.square().sum(1, keepdim=True) / count
        return x * (variance + INSTANCE_NORM_EPS).rsqrt()


class _LastConv1d(Conv1d):
    """ECAPA-TDNN's last map as :class:`LastLinear`: no autocast."""

    def forward(self, x):
        """[B, D, 1] → [B, E, 1]."""
        with full_precision(x):
            return super().forward(x.to(self.conv.weight.dtype))


# -- zero padding ----------------------------------------------------------------------


class ZeroPaddedECAPA(nn.Module):
    """Frames → embedding; a padded batch gives what its rows give alone.

    Arguments
    ---------
    input_size : int
        Width of the frames.
    channels : list of int
        Of the four convolutional layers, equal and a multiple of 8, and of the last.
    embedding_size : int
        Width E.
    global_context : bool
        The attention sees mean and standard deviation over time.
    variance_floor : float
        Smallest variance in the pooling: 1e-7 as wespeaker, 1e-9 as UniSpeech.
    embedding_norm : bool
        BatchNorm on the embedding.
    """

    def __init__(
        self,
        input_size,
        channels=(512, 512, 512, 512, 1536),
        embedding_size=192,
        global_context=True,
        variance_floor=1e-7,
        embedding_norm=False,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        width, *_, last = channels
        if list(channels[:-1]) != [width] * 4 or width % SCALE:
            raise InputError(
                f"channels={list(channels)}, expected four equal multiples of {SCALE}, "
                "then the last layer's width"
            )
        self.first = _TDNN(input_size, width, 5)
        self.blocks = nn.ModuleList(_Block(width, dilation) for dilation in DILATIONS)
        self.last = nn.Conv1d(3 * width, last, 1)
        self.pooling = AttentiveStatisticsPooling(
            last,
            BOTTLENECK,
            context=global_context,
            activation="tanh",
            variance_floor=variance_floor,
            context_eps=1e-7,
        )
        self.norm = nn.BatchNorm1d(2 * last)
        self.bottleneck = LastLinear(2 * last, embedding_size)
        self.embedding_norm = (
            nn.BatchNorm1d(embedding_size) if embedding_norm else nn.Identity()
        )

    def forward(self, x, padding=None):
        """x [B, T, D], padding [B, T] True in the padding → [B, E]."""
        x = self.first(x.transpose(1, 2), padding)
        outputs = []
        for block in self.blocks:
            x = block(x, padding)
            outputs.append(x)
        x = F.relu(self.last(torch.cat(outputs, dim=1))).transpose(1, 2)
        return self.embedding_norm(self.bottleneck(self.norm(self.pooling(x, padding))))


def _masked(x, padding):
    """[B, C, T] with zeros in the padding, as beyond the end of a row alone."""
    return x if padding is None else x.masked_fill(padding.unsqueeze(1), 0.0)


class _TDNN(nn.Module):
    """BN(ReLU(conv)): [B, C, T] → [B, D, T]."""

    def __init__(self, width, output, kernel=1, dilation=1):
        super().__init__()
        border = dilation * (kernel - 1) // 2
        self.conv = nn.Conv1d(width, output, kernel, 1, border, dilation)
        self.norm = nn.BatchNorm1d(output)

    def forward(self, x, padding=None):
        x = F.relu(self.conv(_masked(x, padding)))
        return norm_of_frames(self.norm, x, padding)


class _Block(nn.Module):
    """h + SE(TDNN(Res2(TDNN(h)))): [B, C, T] → the same."""

    def __init__(self, width, dilation):
        super().__init__()
        self.first = _TDNN(width, width)
        chunk = width // SCALE
        self.res2 = nn.ModuleList(
            _TDNN(chunk, chunk, 3, dilation) for _ in range(SCALE - 1)
        )
        self.last = _TDNN(width, width)
        self.gate = nn.Sequential(
            nn.Linear(width, BOTTLENECK),
            nn.ReLU(),
            nn.Linear(BOTTLENECK, width),
            nn.Sigmoid(),
        )

    def forward(self, x, padding=None):
        *chunks, passed = self.first(x, padding).chunk(SCALE, dim=1)
        outputs = []
        for layer, chunk in zip(self.res2, chunks):
            chunk = chunk + outputs[-1] if outputs else chunk
            outputs.append(layer(chunk, padding))
        y = self.last(torch.cat([*outputs, passed], dim=1), padding)
        if padding is None:
            mean = y.mean(-1)
        else:
            mean = _masked(y, padding).sum(-1) / (~padding).sum(1, keepdim=True)
        return x + y * self.gate(mean).unsqueeze(-1)


# -- for ONNX --------------------------------------------------------------------------


class _MaskedECAPA(WeightedSumECAPA):
    """Rows of different lengths at once, each as if it were alone."""

    def forward(self, states, lens):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        total = self.weighted_sum(states)
        frames = valid_counts(lens, total.shape[1])
        inside = torch.arange(total.shape[1], device=total.device) < frames[:, None]
        normalised = self._normalised(
            total, inside.unsqueeze(-1), frames.view(-1, 1, 1)
        )
        with _row_ends(self.ecapa_tdnn, frames):
            # half a frame less: ECAPA-TDNN compares lens · T with whole numbers
            return self.ecapa_tdnn(normalised, (frames - 0.5) / total.shape[1])


class _RowReflectingConv1d(Conv1d):
    """ECAPA-TDNN's convolution, reflecting at the end of each row, not of the batch."""

    frames = None  # [B], valid ones; set by the head for each forward

    def _manage_padding(self, x, kernel_size, dilation, stride):
        """[B, C, T] → [B, C, T + 2p]."""
        border = dilation * (kernel_size - 1) // 2
        place = torch.arange(-border, x.shape[-1] + border, device=x.device).abs()
        last = self.frames.unsqueeze(1) - 1
        place = torch.where(place > last, 2 * last - place, place).clamp(min=0)
        return x.gather(2, place.unsqueeze(1).expand(-1, x.shape[1], -1))


@contextlib.contextmanager
def _row_ends(ecapa, frames):
    """Let ECAPA-TDNN know where its rows end, in a way that holds for any batch.

    SpeechBrain's own ``length_to_mask`` would make the batch size of the example a
    constant of the graph.
    """
    convolutions = [m for m in ecapa.modules() if isinstance(m, _RowReflectingConv1d)]
    own = module_of_ecapa.length_to_mask
    module_of_ecapa.length_to_mask = _length_to_mask
    try:
        for convolution in convolutions:
            convolution.frames = frames
        yield
    finally:
        module_of_ecapa.length_to_mask = own
        for convolution in convolutions:
            convolution.frames = None


def _length_to_mask(lengths, max_len, device):
    """Lengths [B] in frames → [B, max_len], True where valid."""
    return torch.arange(max_len, device=device) < lengths.unsqueeze(1)
