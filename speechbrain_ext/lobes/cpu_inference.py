"""Layers that give the same sooner where a CPU computes and no gradient is needed."""

import math
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from speechbrain_ext.utils.errors import InputError

# torch.compile's operations: products and convolutions with what follows them
ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name)
    for name in (
        *("_linear_pointwise", "_convolution_pointwise", "_convolution_pointwise_"),
    )
)
# Multiply-adds from which oneDNN's product is faster than that of torch's BLAS.
ONEDNN_FROM = 2**24
# On Intel's processors MKL is the faster one of many rows: the most rows of oneDNN.
INTEL_ROWS = 256


def _most_rows():
    """Rows up to which oneDNN's product is the faster one on this processor."""
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        processor = platform.processor()
    by_mkl = torch.backends.mkl.is_available() and "GenuineIntel" in processor
    return INTEL_ROWS if by_mkl else math.inf


ONEDNN_ROWS = _most_rows()


def inference_on_cpu(x):
    """Whether ``x`` needs no gradient, is on a CPU, and no graph is being captured."""
    captured = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not (torch.is_grad_enabled() or captured)


def gelu(x):
    """Exact GELU, in place where no gradient needs x: large new tensors cost pages."""
    return torch.ops.aten.gelu_(x) if inference_on_cpu(x) else F.gelu(x)


def swish(x):
    """x σ(x), in place where no gradient needs x: large new tensors cost pages."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def relu(x):
    """max(x, 0), in place where no gradient needs x."""
    return F.relu(x, inplace=not torch.is_grad_enabled())


def activation(name, key):
    """The function of that name; InputError: a configuration's ``key`` is unknown."""
    own = {"gelu": gelu, "swish": swish, "silu": swish}
    if name not in {*own, *ACT2FN}:
        raise InputError(f"encoder configuration: {key} {name!r}, expected 'gelu'")
    return own.get(name) or ACT2FN[name]


# What oneDNN applies while its output is in the cache, by the function that it is.
ACTIVATIONS = {gelu: ("gelu", "none"), swish: ("swish", ""), relu: ("relu", "")}


def plain_on_cpu(x, weight):
    """Whether x meets a weight in float32, in inference on a CPU without autocast."""
    if not inference_on_cpu(x):
        return False
    same = x.dtype == weight.dtype == torch.float32
    return same and not torch.is_autocast_enabled("cpu")


def by_onednn(x, weight):
    """Whether x [..., in] times weight [out, in] is oneDNN's."""
    if not plain_on_cpu(x, weight):  # first: a graph must not depend on a size
        return False
    large = x.numel() * weight.shape[0] >= ONEDNN_FROM
    few = x.numel() <= ONEDNN_ROWS * x.shape[-1]
    return large and few and ONEDNN and torch.backends.mkldnn.enabled


def linear(x, weight, bias=None, function=None):
    """x [..., in] → [..., out], then ``function``, by whichever library is faster.

    In inference on CPUs that is oneDNN, function included: on processors of AMD 1.1 to
    1.3 times as fast as the MKL that torch calls. On Intel's, of more than 256 rows,
    MKL is 1.05 times as fast as oneDNN, and 1.3 times of 301, 451 or 901 rows. What
    they round otherwise is a last bit.
    """
    if (function is None or function in ACTIVATIONS) and by_onednn(x, weight):
        name, algorithm = ("none", "") if function is None else ACTIVATIONS[function]
        operation = torch.ops.mkldnn._linear_pointwise
        return operation(x, weight, bias, name, [], algorithm)
    y = F.linear(x, weight, bias)
    return y if function is None else function(y)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, x):
        """[..., in] → [..., out]."""
        return linear(x, self.weight, self.bias)


def watched(layer):
    """Whether a layer has to be called, as one with gates or of a profile."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def activated(layer, function, x):
    """function(layer(x)), in one step where both allow it."""
    if not isinstance(layer, Linear) or watched(layer):
        return function(layer(x))
    return linear(x, layer.weight, layer.bias, function)


def fused_convolution(
    x, weight, bias, stride, padding, added=None, relu=True, highest=None
):
    """ReLU(conv(x) + bias + added) as one operation of oneDNN, where torch has it.

    What it writes is not read again: of a 1×1 convolution that is a third of the time.

    Arguments
    ---------
    x : torch.Tensor
        [B, C, H, W], float32 on a CPU, in the layout ``channels_last``.
    weight, bias : torch.Tensor
        [C', C, h, w] and [C'].
    stride, padding : sequence of int
        Of the convolution.
    added : torch.Tensor, optional
        [B, C', H', W']; may be overwritten.
    relu : bool
        Whether ReLU comes last.
    highest : float, optional
        What ReLU clips at.

    Returns
    -------
    torch.Tensor
        [B, C', H', W'].
    """
    operation = (x, weight, bias, padding, stride, (1, 1), 1)
    known = ONEDNN and torch.backends.mkldnn.enabled
    if known and added is None:
        kind, values = "relu" if relu else "none", []
        if relu and highest is not None:
            kind, values = "hardtanh", [0.0, highest]
        return torch.ops.mkldnn._convolution_pointwise(*operation, kind, values, "")
    if known and relu and added.is_contiguous(memory_format=torch.channels_last):
        binary = torch.ops.mkldnn._convolution_pointwise_.binary
        y = binary(added, *operation, "add", 1, "relu", [], "")
        return y if highest is None else y.clamp_(max=highest)
    y = F.conv2d(x, weight, bias, stride, padding)
    y = y if added is None else y.add_(added)
    return y.clamp_(0.0, highest) if relu else y
