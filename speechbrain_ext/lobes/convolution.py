"""Convolutions of networks of features: with their BatchNorm, and at the ends of rows.

    BN(W ∗ x + b) = (s W) ∗ x + β + s (b − μ),      s = γ / √(σ² + ε)

Where nothing is trained the right side is computed: one step in place of two. What it
needs is kept until a tensor that it was made of changes.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.cpu_inference import fused_convolution, relu
from speechbrain_ext.utils.precision import full_precision, valid_counts


def in_inference(module):
    """Whether neither training nor a graph needs the steps of a layer one by one."""
    captured = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not (module.training or torch.is_grad_enabled() or captured)


class Derived(nn.Module):
    """Keeps what inference makes of the parameters and buffers of a layer."""

    _kept = None

    def derived(self):
        """What :meth:`derive` gives, made anew where a tensor of this module changed.

        A change through ``.data`` is seen after ``train()``, ``to()`` and the like.
        """
        if self._kept is None or not all(
            place[name] is tensor and tensor._version == version
            for place, name, tensor, version in self._kept[0]
        ):
            with torch.no_grad():
                derived = self.derive()
            tensors = [
                (place, name, tensor)
                for module in self.modules()
                for place in (module._parameters, module._buffers)
                for name, tensor in place.items()
                if tensor is not None
            ]
            if any(tensor.is_inference() for *_, tensor in tensors):
                return derived  # these do not count their changes
            sources = [(*source, source[-1]._version) for source in tensors]
            self.__dict__["_kept"] = (sources, derived)
        return self._kept[1]

    def derive(self):
        """What is to be kept."""
        raise NotImplementedError(f"{type(self).__name__}.derive")

    def train(self, mode=True):
        """As of every module."""
        self.__dict__.pop("_kept", None)
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self.__dict__.pop("_kept", None)
        return super()._apply(fn, recurse)

    def __getstate__(self):
        """Copies and files hold weights once."""
        return {k: v for k, v in self.__dict__.items() if k != "_kept"}


def channelwise(convolve, x, weight, bias):
    """``convolve(x, weight, bias)``, each channel for itself.

    On a CPU at least in float32: oneDNN's convolution of up to 16 channels in bf16 or
    fp16 (torch 2.11) does not return from wide kernels.
    """
    narrows = torch.is_autocast_enabled("cpu") and x.dtype == torch.float32
    half = x.dtype.itemsize < 4 or narrows
    if not (half and x.device.type == "cpu"):
        return convolve(x, weight, bias)
    with full_precision(x):
        wide = [None if t is None else t.float() for t in (x, weight, bias)]
        return convolve(*wide).to(x.dtype)


def is_plain(x, weight):
    """Whether x and a weight multiply as they are: in one type, without autocast.

    And in one of 32 bits or more: steps are put together in another order here.
    """
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)
    casts = available and torch.is_autocast_enabled(kind)
    return x.dtype == weight.dtype and x.dtype.itemsize >= 4 and not casts


def scale_and_shift(norm):
    """s and t of a BatchNorm that is s x + t in inference, each [C]."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is None:
        return scale, -norm.running_mean * scale
    scale = scale * norm.weight
    return scale, norm.bias - norm.running_mean * scale


class NormedConv2d(Derived):
    """BN(W ∗ x): [B, C, F, T] → [B, D, F', T'], with zeros around what is convolved.

    Arguments
    ---------
    inputs, outputs : int
        C and D.
    kernel, stride, padding : int or (int, int)
        Of frequency and time; padding None: half the kernel.
    bias : bool
        Of the convolution.
    normed : bool
        False: there is no BN.
    """

    def __init__(
        self, inputs, outputs, kernel=1, stride=1, padding=None, bias=False, normed=True
    ):
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
        self.norm = nn.BatchNorm2d(outputs) if normed else nn.Identity()

    def forward(self, x, added=None, rectified=True, highest=None):
        """[B, C, F, T] → [B, D, F', T'].

        Arguments
        ---------
        x : torch.Tensor
            [B, C, F, T].
        added : torch.Tensor, optional
            What is added, as large as the result, in which it may be overwritten.
        rectified : bool
            Whether ReLU comes last.
        highest : float, optional
            What that clips at.
        """
        if in_inference(self) and is_plain(x, self.conv.weight):
            weight, bias = self.derived()
            places = self.conv.stride, self.conv.padding
            if x.device.type == "cpu" and x.dtype == torch.float32:
                return fused_convolution(
                    x, weight, bias, *places, added, rectified, highest
                )
            y = F.conv2d(x, weight, bias, *places)
        else:
            y = self.norm(self.conv(x))
        y = y if added is None else y + added
        if not rectified:
            return y
        return relu(y) if highest is None else F.hardtanh(y, 0.0, highest)

    def derive(self):
        """Weight and bias of the one convolution.

        Channels are innermost, so that they are in what comes out: no layer reorders
        what it gets.
        """
        weight, bias = self.conv.weight, self.conv.bias
        if not isinstance(self.norm, nn.Identity):
            scale, shift = scale_and_shift(self.norm)
            weight = weight * scale.view(-1, 1, 1, 1)
            bias = shift if bias is None else shift + scale * bias
        last = torch.empty_like(weight, memory_format=torch.channels_last)
        return last.copy_(weight), bias  # contiguous() would not, of one channel


def around(shortcut, x):
    """What a residual block adds: x, or what its shortcut makes of it."""
    return x if shortcut is None else shortcut(x, rectified=False)


class RowEnds:
    """Where the rows of a padded batch end, for convolutions over time.

    A convolution must find zeros behind the end of a row, as behind the end of a batch.
    Valid frames see no further than it reaches: in inference only so many are cleared.

    Arguments
    ---------
    valid : torch.Tensor
        [B] frames.
    frames : int
        T, those of the longest row.
    """

    def __init__(self, valid, frames):
        self.valid = valid
        self.frames = frames

    @functools.cached_property
    def mask(self):
        """[B, T], True in the padding."""
        places = torch.arange(self.frames, device=self.valid.device)
        return places >= self.valid.unsqueeze(1)

    def strided(self, stride=2):
        """Those behind a convolution of this stride, with a border as wide as it."""
        return RowEnds((self.valid - 1) // stride + 1, (self.frames - 1) // stride + 1)

    def cleared(self, x, reach, time):
        """x with zeros in ``reach`` frames behind each row; ``time`` is dimension T.

        In place, where no gradient needs x.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            shape = [1] * x.dim()
            shape[0], shape[time] = self.mask.shape
            return x.masked_fill(self.mask.view(shape), 0.0)
        x.movedim(time, 1)[self._behind(reach)] = 0.0
        return x

    def _behind(self, reach):
        """(row, frame) of so many frames behind each end."""
        return self._places.setdefault(reach, _behind(self.valid, self.frames, reach))

    @functools.cached_property
    def _places(self):
        return {}


def _behind(valid, frames, reach):
    places = valid.unsqueeze(1) + torch.arange(reach, device=valid.device)
    rows, steps = (places < frames).nonzero(as_tuple=True)
    return rows, places[rows, steps]


def row_ends(x, lens):
    """Features [B, T, M], relative lengths [B] → (features, RowEnds).

    Zero in the padding; None in the place of the ends where nothing is padded. A graph
    that is compiled or exported cannot depend on the lengths: it always masks.
    """
    if lens is None:
        return x, None
    valid = valid_counts(lens, x.shape[1])
    if not torch.compiler.is_compiling() and bool((valid >= x.shape[1]).all()):
        return x, None
    ends = RowEnds(valid.to(x.device), x.shape[1])
    return x.masked_fill(ends.mask.unsqueeze(-1), 0.0), ends
