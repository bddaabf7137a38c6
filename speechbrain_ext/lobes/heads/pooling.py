"""Pooling over time: hidden states → one vector per utterance."""

import torch
import torch.nn.functional as F
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


class ContextPooling(nn.Module):
    """Attentive statistics whose attention sees the whole utterance's.

        c = [mean_t x; std_t x],   α = softmax_t(W₂ tanh(BN(ReLU(W₁ [x_t; c]))))

    Desplanques et al. 2020 (arXiv 2005.07143, section 3.1), in the function of
    SpeechBrain's pooling; the product with c is made once, not in every frame. Its std
    is √max(Σ α (x − μ)², 1e−12).

    Arguments
    ---------
    channels : int
        Width D of the input.
    hidden : int
        Width of the attention's bottleneck.
    """

    def __init__(self, channels, hidden=128):
        super().__init__()
        self.narrow = nn.Linear(3 * channels, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.wide = nn.Linear(hidden, channels)

    def forward(self, x, padding=None):
        """x [B, T, D], padding [B, T] True in the padding → [B, 2D]."""
        weights = torch.ones_like(x[..., :1])
        if padding is not None:
            weights = (~padding).to(x.dtype).unsqueeze(-1)
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        context = _statistics(x, weights / weights.sum(1, keepdim=True))
        channels = x.shape[2]
        own, shared = self.narrow.weight.split([channels, 2 * channels], dim=1)
        hidden = F.linear(x, own, self.narrow.bias)
        hidden = (hidden + F.linear(context.to(x.dtype), shared).unsqueeze(1)).relu()
        hidden = self.norm(hidden.transpose(1, 2)).transpose(1, 2).tanh()
        scores = self.wide(hidden).float()  # [B, T, D]
        if padding is not None:
            scores = scores.masked_fill(padding.unsqueeze(-1), float("-inf"))
        return _statistics(x, scores.softmax(1))


def _statistics(x, weights):
    """Weighted mean and std over time, float32: [B, T, D], [B, T, D or 1] → [B, 2D]."""
    with full_precision(x):
        x, weights = x.float(), weights.float()
        mean = (weights * x).sum(1)
        variance = (weights * (x - mean.unsqueeze(1)).square()).sum(1)
        return torch.cat([mean, variance.clamp(min=1e-12).sqrt()], dim=-1)
