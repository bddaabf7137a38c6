"""Layers that give the same sooner where a CPU computes and no gradient is needed."""

import torch
import torch.nn.functional as F
from torch import nn

# torch.compile's operations: convolutions with what follows them
ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, f"_convolution_pointwise{end}") for end in ("", "_")
)


def inference_on_cpu(x):
    """Whether ``x`` needs no gradient, is on a CPU, and no graph is being captured."""
    captured = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not (torch.is_grad_enabled() or captured)


def swish(x):
    """x σ(x), in place where no gradient needs x: large new tensors cost pages."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Linear(nn.Linear):
    """``nn.Linear``, in inference on CPUs with its bias added after the product.

    torch fills the output with the bias first, and the product reads it again: 1 to 2 %
    of a pass of the encoder.
    """

    def forward(self, x):
        """[..., in] → [..., out]."""
        plain = x.dtype == self.weight.dtype == torch.float32
        plain = plain and self.bias is not None
        if plain and inference_on_cpu(x) and not torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.weight).add_(self.bias)
        return super().forward(x)


def fused_convolution(x, weight, bias, stride, padding, added=None, relu=True):
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

    Returns
    -------
    torch.Tensor
        [B, C', H', W'].
    """
    operation = (x, weight, bias, padding, stride, (1, 1), 1)
    known = ONEDNN and torch.backends.mkldnn.enabled
    if known and added is None:
        kind = "relu" if relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(*operation, kind, [], "")
    if known and relu and added.is_contiguous(memory_format=torch.channels_last):
        binary = torch.ops.mkldnn._convolution_pointwise_.binary
        return binary(added, *operation, "add", 1, "relu", [], "")
    y = F.conv2d(x, weight, bias, stride, padding)
    y = y if added is None else y.add_(added)
    return y.relu_() if relu else y
