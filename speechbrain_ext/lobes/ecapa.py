"""ECAPA-TDNN with zero padding, as most published checkpoints have it.

    h₀ = TDNN(x);   h_i = h_{i−1} + SE(TDNN(Res2(TDNN(h_{i−1}))))        i = 1, 2, 3
    e  = W BN(ASP(ReLU(W' [h₁; h₂; h₃] + b'))) + b,      TDNN = BN(ReLU(conv))

Desplanques et al. 2020 (arXiv 2005.07143). SpeechBrain's is another function:
it reflects at the ends, passes the first chunk of Res2 where here the last one passes,
and has further BatchNorms.
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.heads.pooling import AttentiveStatisticsPooling
from speechbrain_ext.utils.errors import InputError, check_at_least

SCALE = 8  # chunks of Res2
BOTTLENECK = 128  # of squeeze-excitation and attention
DILATIONS = (2, 3, 4)


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
            tanh=True,
            variance_floor=variance_floor,
            context_eps=1e-7,
        )
        self.norm = nn.BatchNorm1d(2 * last)
        self.bottleneck = nn.Linear(2 * last, embedding_size)
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
        return self.norm(F.relu(self.conv(_masked(x, padding))))


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
        *chunks, passed = self.first(x).chunk(SCALE, dim=1)
        outputs = []
        for layer, chunk in zip(self.res2, chunks):
            chunk = chunk + outputs[-1] if outputs else chunk
            outputs.append(layer(chunk, padding))
        y = self.last(torch.cat([*outputs, passed], dim=1))
        if padding is None:
            mean = y.mean(-1)
        else:
            mean = _masked(y, padding).sum(-1) / (~padding).sum(1, keepdim=True)
        return x + y * self.gate(mean).unsqueeze(-1)
