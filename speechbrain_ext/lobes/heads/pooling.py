"""Pooling over time: hidden states → one vector per utterance."""

import torch
from torch import nn

from speechbrain_ext.utils.precision import full_precision

VARIANCE_FLOOR = 1e-5


class AttentiveStatisticsPooling(nn.Module):
    """Attention-weighted mean and standard deviation over time.

        α = softmax_t(W₂ BN(ReLU(W₁ x_t)))      one weight per channel and frame
        μ = Σ α x,   σ = √max(Σ α x² − μ², 1e−5)

    Okabe et al. 2018 (arXiv 1803.10963), channel-dependent as in ECAPA-TDNN, without
    its global context. Statistics are float32, also under autocast.

    Arguments
    ---------
    channels : int
        Width D of the input.
    hidden : int
        Width of the attention's bottleneck.
    """

    def __init__(self, channels, hidden):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv1d(channels, hidden, 1),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Conv1d(hidden, channels, 1),
        )

    def forward(self, x, padding=None):
        """x [B, T, D], padding [B, T] True in the padding → [B, 2D]."""
        scores = self.attention(x.transpose(1, 2)).float()  # [B, D, T]
        if padding is not None:
            scores = scores.masked_fill(padding.unsqueeze(1), float("-inf"))
        weights = scores.softmax(-1)
        with full_precision(x):
            frames = x.float().transpose(1, 2)
            if padding is not None:
                # 0 · NaN is NaN: what lies in the padding must not get through
                frames = frames.masked_fill(padding.unsqueeze(1), 0.0)
            mean = (weights * frames).sum(-1)
            power = (weights * frames.square()).sum(-1)
            std = (power - mean.square()).clamp(min=VARIANCE_FLOOR).sqrt()
            return torch.cat([mean, std], dim=-1)
