"""The convolutions of wav2vec 2.0 and its kin: over the waveform, and for positions.

    h_i = GELU(Norm(Conv_i(h_{i−1}))),  h_0 the waveform        no padding, strides s_i
    y = GELU(Conv(x))                   grouped, as long as x, weight g v / ‖v‖ per tap

Baevski et al. 2020 (arXiv 2006.11477, section 2). The norm is a LayerNorm over the
channels after every convolution ("layer"), or one over the time of every channel after
the first alone ("group"), of whose statistics padding has no part. Parameter names are
those of transformers.

In inference on a CPU a recording is taken in pieces that stay in the cache. Time comes
before channels, so a convolution is a product of two matrices or a few: s taps at once
have as many columns as one frame of the output is away from the next.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.convolution import channelwise
from speechbrain_ext.lobes.cpu_inference import activation, inference_on_cpu
from speechbrain_ext.lobes.encoder import PrunableGroup

PIECE = 64  # frames of the last convolution: 1.3 s


def by_products(x):
    """Whether products of matrices take the place of convolutions."""
    wide = x.dtype in (torch.float32, torch.float64)
    return wide and inference_on_cpu(x) and not torch.is_autocast_enabled("cpu")


def output_frames(samples, kernels, strides):
    """What a stack of convolutions makes of so many samples, a number or a tensor."""
    for kernel, stride in zip(kernels, strides):
        samples = (samples - kernel) // stride + 1
    return samples


def input_samples(frames, kernels, strides):
    """The fewest samples of which a stack of convolutions makes so many frames."""
    for kernel, stride in reversed(list(zip(kernels, strides))):
        frames = (frames - 1) * stride + kernel
    return frames


def hops(samples, strides):
    """Hops of a stack of convolutions that are begun, of a number or a tensor."""
    hop = math.prod(strides)
    return (samples + hop - 1) // hop  # a graph divides negative numbers otherwise


def repeated(states, samples, counts, kernels, strides):
    """States [B, T', C] with a frame for each hop begun: the last one is repeated.

    ``samples`` of the waveform, of which ``counts`` [B] are valid, None: all.
    """
    places = torch.arange(hops(samples, strides), device=states[0].device)
    if counts is None:
        places = places.clamp(max=states[0].shape[1] - 1)
        return [state[:, places] for state in states]
    last = output_frames(counts, kernels, strides) - 1
    places = torch.minimum(places, last.unsqueeze(1)).unsqueeze(2)
    return [state.gather(1, places.expand(-1, -1, state.shape[2])) for state in states]


class Convolution(nn.Conv1d):
    """A strided convolution without padding: [B, T, C] → [B, T', C']."""

    def forward(self, x):
        """[B, T, C] → [B, T', C']."""
        if not by_products(x):
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        x = x.contiguous()
        y = self._patches(x) if x.shape[2] == 1 else self._taps(x)
        return y if self.bias is None else y.add_(self.bias)

    def _patches(self, x):
        """Of one channel: every frame's samples side by side."""
        patches = x.squeeze(2).unfold(1, self.kernel_size[0], self.stride[0])
        return F.linear(patches.contiguous(), self.weight.squeeze(1))

    def _taps(self, x):
        """As many taps at once as the stride has: rows of a matrix, where they lie."""
        (taps,), (step,) = self.kernel_size, self.stride
        batch, samples, width = x.shape
        y = x.new_empty(batch, output_frames(samples, [taps], [step]), len(self.weight))
        for first in range(0, taps, step):
            weight = self.weight[:, :, first : first + step]
            weight = weight.transpose(1, 2).flatten(1).t()
            for row, found in zip(x, y):
                rows = row[first:].as_strided(
                    (len(found), len(weight)), (step * width, 1)
                )
                if first:
                    torch.addmm(found, rows, weight, out=found)
                else:
                    torch.mm(rows, weight, out=found)
        return y


class ChannelNorm(nn.GroupNorm):
    """Every channel normalised over the valid frames of its recording: GroupNorm."""

    def __init__(self, channels):
        super().__init__(channels, channels)

    def forward(self, x, frames=None, statistics=None):
        """[B, T, C] → the same; ``frames`` [B] are valid, None: all.

        ``statistics`` (mean, variance), [B, 1, C], if known already.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance = statistics or self._statistics(wide, frames)
        scale = torch.rsqrt(variance + self.eps).to(wide.dtype) * self.weight
        return torch.addcmul(self.bias - mean.to(wide.dtype) * scale, wide, scale).to(
            x.dtype
        )

    def _statistics(self, x, frames):
        if frames is None:
            variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
            return mean, variance
        places = torch.arange(x.shape[1], device=x.device)
        valid = (places < frames.unsqueeze(1)).unsqueeze(2)
        count = frames.view(-1, 1, 1).to(x.dtype)
        mean = x.where(valid, 0.0).sum(1, keepdim=True) / count
        squares = (x - mean).where(valid, 0.0).square()
        return mean, squares.sum(1, keepdim=True) / count


class ConvolutionLayer(nn.Module):
    """Convolution → norm, if any → GELU: [B, T, C] → [B, T', C']."""

    def __init__(self, convolution, norm, act):
        super().__init__()
        self.conv = convolution
        self.layer_norm = norm
        self.activation = act

    def forward(self, x, frames=None, statistics=None):
        """[B, T, C] → [B, T', C']; ``frames`` [B] of the output are valid."""
        x = self.conv(x)
        if isinstance(self.layer_norm, ChannelNorm):
            x = self.layer_norm(x, frames, statistics)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return self.activation(x)

    def statistics(self, wav):
        """Mean and variance of every channel of a waveform [T] → two of [1, 1, C].

        A channel is a sum over K samples: its variance is wᵀ Cov w, and the [K, K]
        covariance of the samples is made without the channels.
        """
        (taps,), (step,) = self.conv.kernel_size, self.conv.stride
        patches = wav.double().unfold(0, taps, step)
        mean = patches.mean(0)
        centred = patches - mean
        covariance = centred.t() @ centred / len(centred)
        weight = self.conv.weight.squeeze(1).double()
        means = weight @ mean
        if self.conv.bias is not None:
            means = means + self.conv.bias
        variance = ((weight @ covariance) * weight).sum(1)
        return means[None, None], variance[None, None]


class ChannelScale(nn.Module):
    """A factor for each channel: [B, T, C] → [B, T, C]."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        """[B, T, C] → the same."""
        return x * self.weight


class FeatureExtractor(nn.Module):
    """The stack over the waveform: [B, T] → [B, T', C]."""

    def __init__(self, config):
        super().__init__()
        self.kernels, self.strides = config.conv_kernel, config.conv_stride
        widths = [1, *config.conv_dim]
        act = activation(config.feat_extract_activation, "feat_extract_activation")
        norms = {"layer": nn.LayerNorm, "group": ChannelNorm}
        norm = norms[config.feat_extract_norm]
        self.conv_layers = nn.ModuleList(
            ConvolutionLayer(
                Convolution(*widths[i : i + 2], kernel, stride, bias=config.conv_bias),
                None if norm is ChannelNorm and i else norm(widths[i + 1]),
                act,
            )
            for i, (kernel, stride) in enumerate(zip(self.kernels, self.strides))
        )
        # not a key of transformers: gates of a published encoder, which no weight
        # behind the next LayerNorm takes up
        scaled = getattr(config, "conv_scale", False)
        self.scale = ChannelScale(widths[-1]) if scaled else None

    def forward(self, x, counts=None):
        """[B, T] → [B, T', C]; ``counts`` [B] samples are valid, None: all."""
        x = self._channels(x.unsqueeze(2), counts)
        return x if self.scale is None else self.scale(x)

    def _channels(self, x, counts):
        """[B, T, 1] → [B, T', C], not scaled."""
        if by_products(x) and not self.training:
            return self._in_pieces(x, counts)
        for layer, kernel, stride in zip(self.conv_layers, self.kernels, self.strides):
            if counts is not None:
                counts = output_frames(counts, [kernel], [stride])
            x = layer(x, counts)
        return x

    def _in_pieces(self, x, counts):
        """Piece by piece of every recording; in eval mode gates are the same in all."""
        shape = self.kernels, self.strides
        frames = output_frames(x.shape[1], *shape)
        hop = input_samples(2, *shape) - input_samples(1, *shape)
        width = len(self.conv_layers[-1].conv.weight)
        y = x.new_empty(len(x), frames, width)
        first, *others = self.conv_layers
        for number, row in enumerate(x):
            statistics = None
            if isinstance(first.layer_norm, ChannelNorm):
                samples = row.shape[0] if counts is None else int(counts[number])
                statistics = first.statistics(row[:samples, 0])
            for start in range(0, frames, PIECE):
                stop = min(start + PIECE, frames)
                # the last one to the end: the same steps as of a whole recording
                length = input_samples(stop - start, *shape)
                end = start * hop + length if stop < frames else len(row)
                piece = row[None, start * hop : end]
                piece = first(piece, None, statistics)
                for layer in others:
                    piece = layer(piece)
                y[number, start:stop] = piece[0]
        return y

    def prunable_groups(self, full):
        """The channels of every convolution; ``full``: their numbers at first.

        The last group's W_out is what follows: it is the caller's to name.
        """
        groups = []
        for i, layer in enumerate(self.conv_layers):
            name = f"conv_layers.{i}"
            weights = ["conv.weight", "conv.bias"][: 1 + (layer.conv.bias is not None)]
            if layer.layer_norm is not None:
                weights += ["layer_norm.weight", "layer_norm.bias"]
            rows = [f"{name}.{weight}" for weight in weights]
            if layer is self.conv_layers[-1] and self.scale is not None:
                rows.append("scale.weight")
            plain = isinstance(layer.layer_norm, nn.LayerNorm)
            groups.append(
                PrunableGroup(
                    name=name,
                    kind="conv",
                    units=len(layer.conv.weight),
                    full=full[i],
                    input_weights=tuple(rows),
                    output_weight=f"conv_layers.{i + 1}.conv.weight",
                    norms=(f"{name}.layer_norm",) if plain else (),
                    layer=i,
                )
            )
        return groups


class NormedConvolution(nn.Module):
    """A grouped convolution as long as its input: [B, T, C] → [B, T, C].

    The weight is g v / ‖v‖, of every tap over all channels. Of an even number of taps
    one more looks back than ahead.
    """

    def __init__(self, channels, taps, groups):
        super().__init__()
        like = nn.Conv1d(channels, channels, taps, groups=groups)
        self.groups = groups
        self.weight_v = nn.Parameter(like.weight.detach())
        norm = torch.linalg.vector_norm(self.weight_v.detach(), dim=(0, 1))
        self.weight_g = nn.Parameter(norm[None, None])
        self.bias = nn.Parameter(like.bias.detach())

    def forward(self, x):
        """[B, T, C] → [B, T, C]."""
        weight = torch._weight_norm(self.weight_v, self.weight_g, 2)
        options = {"padding": weight.shape[2] // 2, "groups": self.groups}

        def convolve(x, weight, bias):
            return F.conv1d(x.transpose(1, 2), weight, bias, **options)

        if self.groups == x.shape[2]:
            y = channelwise(convolve, x, weight, self.bias)
        else:
            y = convolve(x, weight, self.bias)
        return y[:, :, : x.shape[1]].transpose(1, 2)


class PositionalConvolution(nn.Module):
    """What takes the place of positions: [B, T, C] → [B, T, C]."""

    def __init__(self, config):
        super().__init__()
        self.conv = NormedConvolution(
            config.hidden_size,
            config.num_conv_pos_embeddings,
            config.num_conv_pos_embedding_groups,
        )
        self.activation = activation(
            config.feat_extract_activation, "feat_extract_activation"
        )

    def forward(self, x):
        """[B, T, C] → [B, T, C]."""
        return self.activation(self.conv(x))
