"""Weighted sum of the hidden states, then ECAPA-TDNN.

    ECAPA-TDNN(InstanceNorm(Σ_l softmax(w)_l h_l))

arXiv 2510.04213, table 2; Desplanques et al. 2020 (arXiv 2005.07143).
"""

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from torch import nn

from speechbrain_ext.lobes.encoder import Head, padding_mask
from speechbrain_ext.utils.errors import InputError

# ECAPA-TDNN reflects up to 4 frames at either end, and must have them.
ECAPA_MIN_FRAMES = 5


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
        self.layer_weights = nn.Parameter(torch.zeros(n_states))
        self.ecapa_tdnn = ECAPA_TDNN(
            input_size, channels=list(channels), lin_neurons=embedding_size
        )

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        total = self.weighted_sum(states)
        if padding_mask(total.shape[1], lens) is None:
            return self._embed(total)
        frames = torch.round(lens.double() * total.shape[1]).long()
        out = None
        for length in frames.unique().tolist():
            rows = (frames == length).nonzero().squeeze(1)
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

    def _embed(self, x):
        """[B, T, C] without padding → [B, 1, E]."""
        if x.shape[1] < ECAPA_MIN_FRAMES:
            raise InputError(
                f"WeightedSumECAPA: a row of {x.shape[1]} frames, expected "
                f"{ECAPA_MIN_FRAMES} or more (0.115 s of w2v-BERT 2.0's input)"
            )
        normalised = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        return self.ecapa_tdnn(normalised)
