"""Weighted sum of the hidden states, then ECAPA-TDNN.

    ECAPA-TDNN(InstanceNorm(Σ_l softmax(w)_l h_l))

arXiv 2510.04213, table 2; Desplanques et al. 2020 (arXiv 2005.07143).
"""

import contextlib

import torch
import torch.nn.functional as F
from speechbrain.lobes.models import ECAPA_TDNN as module_of_ecapa
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Conv1d
from torch import nn

from speechbrain_ext.lobes.encoder import Head, padding_mask, shared_copy
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import valid_counts

# ECAPA-TDNN reflects up to 4 frames at either end, and must have them.
ECAPA_MIN_FRAMES = 5
INSTANCE_NORM_EPS = 1e-5  # torch's own


class WeightedSumECAPA(Head):
    """Softmax-weighted sum of the states, then SpeechBrain's ECAPA-TDNN.

    The sum is normalised to zero mean and unit variance over time, channel by channel,
    before it enters ECAPA-TDNN.

    Rows of different lengths run in groups of equal length: ECAPA's reflected borders
    and squeeze-excitation see the padding otherwise, and a padded batch would not
    equal its single utterances (SpeechBrain's own masking leaves the borders). A row
    needs five frames.

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
    """

    min_frames = ECAPA_MIN_FRAMES

    def __init__(
        self,
        input_size,
        n_states=25,
        embedding_size=256,
        channels=(512, 512, 512, 512, 1536),
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        self.layer_weights = nn.Parameter(torch.zeros(n_states))
        self.ecapa_tdnn = ECAPA_TDNN(
            input_size, channels=list(channels), lin_neurons=embedding_size
        )

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        total = self.weighted_sum(states)
        if padding_mask(total.shape[1], lens) is None:
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
        weights = self.layer_weights.softmax(0)
        return sum(
            weight * state for weight, state in zip(weights, states, strict=True)
        )

    def graph_form(self):
        """Rows of different lengths at once, each as if it were alone."""
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
        normalised = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        return self.ecapa_tdnn(normalised)


# -- for ONNX --------------------------------------------------------------------------


class _MaskedECAPA(WeightedSumECAPA):
    """Rows of different lengths at once, each as if it were alone."""

    def forward(self, states, lens):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        total = self.weighted_sum(states)
        frames = valid_counts(lens, total.shape[1])
        inside = torch.arange(total.shape[1], device=total.device) < frames[:, None]
        normalised = _instance_norm(total, inside.unsqueeze(-1), frames.view(-1, 1, 1))
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


def _instance_norm(x, inside, count):
    """Zero mean, unit variance over the frames inside: [B, T, C] → the same."""
    mean = torch.where(inside, x, 0.0).sum(1, keepdim=True) / count
    centred = torch.where(inside, x - mean, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * (variance + INSTANCE_NORM_EPS).rsqrt()


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
