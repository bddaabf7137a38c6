"""x-vector head on hidden states, as transformers' ``…ForXVector`` models have it.

    x = W (Σ_l softmax(w)_l h_l) + b,   x ← ReLU(TDNN_i(x)),   e = V [mean_t x, std_t x]

Snyder et al. 2018 (ICASSP); Yang et al. 2021 (SUPERB, arXiv 2105.01051, section 2.2).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.encoder import Head
from speechbrain_ext.lobes.heads.pooling import LastLinear
from speechbrain_ext.lobes.heads.pooling import weighted_sum as sum_of_states
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import full_precision, valid_counts

VARIANCE_FLOOR = 1e-12


class XVector(Head):
    """Weighted sum of the states, TDNN, mean and standard deviation, projection.

    The TDNN has no padding, so it gives fewer frames than it gets, and no valid one of
    them sees the padding of a batch. The standard deviation divides by n − 1, and so
    needs two frames. Names of the tensors are transformers'.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1.
    embedding_size : int
        Width E of the embedding.
    channels, kernels, dilations : list of int
        Of the TDNN layers; the projection before them is as wide as the first one.
    weighted_sum : bool
        False: the last state alone.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all.
    """

    def __init__(
        self,
        input_size,
        n_states=13,
        embedding_size=512,
        channels=(512, 512, 512, 512, 1500),
        kernels=(5, 3, 3, 1, 1),
        dilations=(1, 2, 3, 1, 1),
        weighted_sum: bool = True,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        if not channels or not len(channels) == len(kernels) == len(dilations):
            raise InputError(
                f"XVector: {len(channels)} channels, {len(kernels)} kernels, "
                f"{len(dilations)} dilations, expected as many of each, 1 or more"
            )
        for name, values in (
            ("channels", channels),
            ("kernels", kernels),
            ("dilations", dilations),
        ):
            for value in values:
                check_at_least(f"XVector: {name}", value, 1)
        n_states = self.read_states(n_states, layers)
        if weighted_sum:
            self.layer_weights = nn.Parameter(torch.full((n_states,), 1 / n_states))
        self.projector = nn.Linear(input_size, channels[0])
        inputs = itertools.chain([channels[0]], channels)
        layers = zip(inputs, channels, kernels, dilations)
        self.tdnn = nn.ModuleList(TDNN(*layer) for layer in layers)
        self.feature_extractor = LastLinear(2 * channels[-1], embedding_size)

    @property
    def min_frames(self):
        """Frames of the shortest input, of which the TDNN gives two."""
        return 2 + sum(layer.lost_frames for layer in self.tdnn)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        states = self.chosen(states)
        frames = states[-1].shape[1]
        if lens is None:
            valid = torch.full((len(states[-1]),), frames)
        else:
            valid = valid_counts(lens, frames)
        valid = valid - (self.min_frames - 2)
        if not torch.compiler.is_compiling() and int(valid.min()) < 2:
            least = int(valid.min()) + self.min_frames - 2
            raise InputError(
                f"XVector: a row of {least} frames, expected {self.min_frames} or more"
            )
        x = states[-1]
        if self.arguments["weighted_sum"]:
            x = sum_of_states(states, self.layer_weights)
        x = self.projector(x)
        for layer in self.tdnn:
            x = layer(x)
        inside = torch.arange(x.shape[1]) < valid.unsqueeze(1)
        pooled = _statistics(x, inside.unsqueeze(-1).to(x.device))
        return self.feature_extractor(pooled).unsqueeze(1)


class TDNN(nn.Module):
    """ReLU of a dilated convolution without padding, its weight stored as a matrix.

    Column k·C_in + c of the matrix is tap k of channel c.
    """

    def __init__(self, inputs, outputs, kernel, dilation):
        super().__init__()
        self.kernel = nn.Linear(inputs * kernel, outputs)
        self.taps, self.dilation = kernel, dilation

    @property
    def lost_frames(self):
        """By which the output is shorter than the input."""
        return (self.taps - 1) * self.dilation

    def forward(self, x):
        """[B, T, C_in] → [B, T − lost, C_out]."""
        outputs = self.kernel.out_features
        weight = self.kernel.weight.view(outputs, self.taps, -1).transpose(1, 2)
        x = F.conv1d(x.transpose(1, 2), weight, self.kernel.bias, 1, 0, self.dilation)
        return x.transpose(1, 2).relu()


def _statistics(x, inside):
    """Mean and unbiased standard deviation over the frames inside → [B, 2C]."""
    with full_precision(x):
        x = x.float()
        count = inside.sum(1)
        mean = torch.where(inside, x, 0.0).sum(1) / count
        centred = torch.where(inside, x - mean.unsqueeze(1), 0.0)
        variance = centred.square().sum(1) / (count - 1)
        # a channel that ReLU keeps at zero: the root's slope is infinite there
        deviation = variance.clamp(min=VARIANCE_FLOOR).sqrt()
        return torch.cat([mean, deviation], dim=-1)
