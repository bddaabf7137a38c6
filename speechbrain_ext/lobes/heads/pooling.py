"""Pooling over layers and time: hidden states → one vector per utterance."""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.cpu_inference import linear, plain_on_cpu, watched
from speechbrain_ext.utils.precision import full_precision

# Channels at a time on a CPU: what is summed over time stays in its cache
PART = 256
VARIANCE_FLOOR = 1e-5
CONTEXT_FLOOR = 1e-14  # of a variance: keeps the gradient of the root finite at zero


class AttentiveStatisticsPooling(nn.Module):
    """Attention-weighted mean and standard deviation over time.

        α = softmax_t(W₂ BN(ReLU(W₁ x_t)))      one weight per channel and frame
        μ = Σ α x,   σ = √max(Σ α x² − μ², 1e−5)

    Okabe et al. 2018 (arXiv 1803.10963), channel-dependent as in ECAPA-TDNN. With
    ``context`` the attention sees [x_t, mean, std] as there. Statistics are float32,
    also under autocast; those of BatchNorm are of valid frames alone.

    Arguments
    ---------
    channels : int
        Width D of the input.
    hidden : int
        Width of the attention's bottleneck.
    context : bool
        Global context: mean and standard deviation over time enter the attention.
    activation : str
        Between the two maps: "relu" (then BatchNorm), "tanh" alone, or "relu+tanh"
        (ReLU, BatchNorm, tanh, as SpeechBrain's pooling).
    variance_floor : float
        Smallest variance of the result.
    context_eps : float
        Added to the variance of the context.
    context_correction : int
        1: that variance is unbiased. 0: it is not, as in SpeechBrain.
    context_floor : float
        Smallest variance of the context.
    centred : bool
        σ² = Σ α (x − μ)²: the difference of squares has no digits below 1e−7 of them,
        which a smaller floor would show.
    frame_dropout : float
        Share of the frames that the softmax leaves out in training.
    """

    def __init__(
        self,
        channels,
        hidden,
        context=False,
        activation="relu",
        variance_floor=VARIANCE_FLOOR,
        context_eps=0.0,
        context_correction=1,
        frame_dropout=0.0,
        context_floor=CONTEXT_FLOOR,
        centred=False,
    ):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv1d(channels * (3 if context else 1), hidden, 1),
            *([nn.ReLU(), nn.BatchNorm1d(hidden)] if "relu" in activation else []),
            *([nn.Tanh()] if "tanh" in activation else []),
            nn.Conv1d(hidden, channels, 1),
        )
        self.context = context
        self.variance_floor = variance_floor
        self.context_eps = context_eps
        self.context_correction = context_correction
        self.frame_dropout = frame_dropout
        self.context_floor = context_floor
        self.centred = centred

    def forward(self, x, padding=None):
        """x [B, T, D], padding [B, T] True in the padding → [B, 2D]."""
        last = self.attention[-1]
        by_parts = plain_on_cpu(x, last.weight) and not watched(last)
        parts = x.split(PART if by_parts else x.shape[2], dim=2)
        hidden = self._hidden(x, parts, padding)
        left_out = self._left_out(x, padding)
        if by_parts:
            maps = (tensor.split(PART) for tensor in (last.weight[..., 0], last.bias))
            scores, dim = (F.linear(hidden, *some) for some in zip(*maps)), 1
        else:
            scores, dim = [last(hidden.transpose(1, 2))], 2
            parts = [x.transpose(1, 2)]
        found = [
            self._statistics(*pair, dim, padding, left_out)
            for pair in zip(parts, scores)
        ]
        return torch.cat([torch.cat(values, dim=1) for values in zip(*found)], dim=1)

    def _statistics(self, frames, scores, dim, padding, left_out):
        """Some channels and their scores, frames along ``dim`` → μ and σ [B, d].

        [B, T, d] are sooner computed on a CPU; a graph's sums keep their digits along
        the last dimension alone.
        """
        scores = _wide(scores)
        if left_out is not None:
            scores = scores.masked_fill(left_out.unsqueeze(3 - dim), float("-inf"))
        if dim == 2:
            weights, total = scores.softmax(2), 1.0
        else:  # a softmax along any but the last dimension sums one by one
            weights = (scores - scores.amax(1, keepdim=True)).exp()
            total = weights.sum(1)
        with full_precision(frames):
            frames = _wide(frames)
            if padding is not None:
                # 0 · NaN is NaN: what lies in the padding must not get through
                frames = frames.masked_fill(padding.unsqueeze(3 - dim), 0.0)
            mean = (weights * frames).sum(dim) / total
            if self.centred:
                squares = (frames - mean.unsqueeze(dim)).square()
                variance = (weights * squares).sum(dim) / total
            else:
                squares = (weights * frames.square()).sum(dim) / total
                variance = squares - mean.square()
            return mean, variance.clamp(min=self.variance_floor).sqrt()

    def _hidden(self, x, parts, padding):
        """x [B, T, D] and ``parts``, its slices along D → [B, T, H]."""
        first, *rest = self.attention[:-1]
        if not self.context:
            return _in_turn(rest, _pointwise(first, x), padding)
        with full_precision(x):
            found = [
                moments(_wide(part).transpose(1, 2), padding, self.context_correction)
                for part in parts
            ]
            mean, variance = (torch.cat(values, dim=1) for values in zip(*found))
            variance = (variance + self.context_eps).clamp(min=self.context_floor)
            context = torch.cat([mean, variance.sqrt()], dim=1)  # [B, 2D]
        # a product for [x, mean, std] without that tensor: the context is one vector
        own, weight = x.shape[2], first.weight.squeeze(2)
        fixed = F.linear(context, weight[:, own:], first.bias)
        x = F.linear(x, weight[:, :own]) + fixed.unsqueeze(1)
        return _in_turn(rest, x, padding)

    def _left_out(self, x, padding):
        """[B, T], True where the softmax does not look; None: it looks everywhere."""
        if not (self.training and self.frame_dropout):
            return padding
        dropped = torch.rand(x.shape[:2], device=x.device) < self.frame_dropout
        out = dropped if padding is None else dropped | padding
        kept = torch.zeros_like(out) if padding is None else padding
        # a row that lost all of its frames keeps them
        return torch.where(out.all(1, keepdim=True), kept, out)


class LastLinear(nn.Linear):
    """The map to the embedding: in the type of its weights, also under autocast.

    What scores are made of would else be rounded to bf16 at its very end.
    """

    def forward(self, x):
        """[B, in] → [B, out]."""
        with full_precision(x):
            return super().forward(x.to(self.weight.dtype))


def _wide(x):
    """float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _pointwise(conv, x):
    """A convolution of one tap: [B, T, C] → [B, T, D]."""
    if plain_on_cpu(x, conv.weight) and not watched(conv):
        return linear(x, conv.weight.squeeze(2), conv.bias)
    return conv(x.transpose(1, 2)).transpose(1, 2)


def _in_turn(layers, x, padding):
    """[B, T, D] through layers one after another."""
    x = x.transpose(1, 2)
    for layer in layers:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            x = norm_of_frames(layer, x, padding)
        else:
            x = layer(x)
    return x.transpose(1, 2)


def norm_of_frames(norm, x, padding=None):
    """BatchNorm of frames [B, D, T]; in training its statistics are of valid ones.

    Zeros in the padding then.
    """
    if padding is None or not norm.training:
        return norm(x)
    valid = ~padding  # [B, T]
    rows = norm(x.transpose(1, 2)[valid])
    frames = rows.new_zeros(*valid.shape, x.shape[1])
    return frames.masked_scatter(valid.unsqueeze(-1), rows).transpose(1, 2)


def moments(x, padding=None, correction=1):
    """Mean and variance over valid frames: [B, D, T] → two [B, D].

    With ``correction`` 1 it is unbiased. Of a single frame it is 0.
    """
    if padding is None:
        count = x.new_full((1, 1), x.shape[-1])
    else:
        x = x.masked_fill(padding.unsqueeze(1), 0.0)
        count = (~padding).sum(1, keepdim=True).to(x.dtype)
    mean = x.sum(-1) / count
    centred = x - mean.unsqueeze(-1)
    if padding is not None:
        centred = centred.masked_fill(padding.unsqueeze(1), 0.0)
    return mean, centred.square().sum(-1) / (count - correction).clamp(min=1)


def weighted_sum(states, weights):
    """Σ_l softmax(w)_l h_l: L+1 states [B, T, C], w [L+1] → [B, T, C].

    State by state: no [B, T, C, L+1] is made.
    """
    return sum(weight * state for weight, state in zip(weights.softmax(0), states))
