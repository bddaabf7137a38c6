"""Layers that give the same sooner where a CPU computes and no gradient is needed."""

import torch
import torch.nn.functional as F
from torch import nn


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
