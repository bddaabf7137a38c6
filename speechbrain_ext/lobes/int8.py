"""Linear layers that multiply in 8 bits on a CPU: a quarter of the memory and less.

    y_tc = s_t v_c Σ_k (x̂_tk − 128) Ŵ_ck + b_c
    s_t = max_k |x_tk| / 127,    x̂_tk = round(x_tk / s_t) + 128      uint8
    v_c = max_k |W_ck| / 127,    Ŵ_ck = round(W_ck / v_c)            int8

One scale per output channel from the weights, and one per row (a frame) from the
values that come: nothing is calibrated, and an embedding does not depend on what else
is in its batch. The products are FBGEMM's, of torch's own quantisation, which rounds
rows while it packs them. Which layers of an encoder they are is said by the encoder
(``int8_layers``); all else stays in float32.
"""

import functools
import hashlib

import torch
from torch import nn

from speechbrain_ext.utils.errors import InputError

ZERO, LARGEST = 128, 127  # of x̂: what stands for 0, and how far it goes from there


@functools.cache
def largest_weight():
    """The largest |Ŵ| that this machine multiplies without an error; None: not at all.

    Without VNNI x86 processors add two products in 16 bits, which whole bytes overflow,
    without a word: there it is 63.
    """
    x, scale = torch.full((1, 64), float(LARGEST)), torch.ones(8)
    for limit in (LARGEST, 63):
        weight = torch.full((8, 64), limit, dtype=torch.int8)
        try:
            found = multiplied(x, packed(weight, scale))
        except (RuntimeError, AttributeError):
            return None
        if bool((found == 64 * LARGEST * limit).all()):
            return limit
    return None


def packed(weight, scale):
    """Ŵ [out, in], int8, and v [out] as FBGEMM has them."""
    zeros = torch.zeros(len(scale), dtype=torch.long)
    weight = torch._make_per_channel_quantized_tensor(weight, scale, zeros, 0)
    return torch.ops.quantized.linear_prepack(weight, None)


def multiplied(rows, weight):
    """Rows [N, in] of at most ±127, rounded, times a packed weight → [N, out]."""
    operation = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return operation(rows, 1.0, ZERO, weight)


def check_int8(device):
    """InputError: a device, or a machine, without 8-bit products."""
    if torch.device(device).type != "cpu":
        raise InputError(
            f"precision int8 on {device}: its products are of a CPU, expected cpu, or "
            "another precision"
        )
    if largest_weight() is None:
        raise InputError(
            "precision int8: torch has no 8-bit products of FBGEMM on this machine, "
            "expected fp32"
        )


def in_int8(model):
    """Put 8-bit layers in the place of those that the model's encoder names.

    Arguments
    ---------
    model : SpeakerEncoder
        On a CPU; changed, its float32 weights are let go. Without gradients from then.

    Returns
    -------
    SpeakerEncoder
        The same.

    Raises
    ------
    InputError
        An encoder without such layers; a machine without 8-bit products.
    """
    encoder, found = model.encoder, 0
    check_int8(next(encoder.parameters()).device)
    for parent in list(encoder.modules()):
        for name, layer in list(parent.named_children()):
            if name in encoder.int8_layers and is_linear(layer):
                setattr(parent, name, Int8Linear(layer))
                found += 1
    if not found:
        raise InputError(
            f"precision int8: {type(encoder).__name__} has no layers that multiply in "
            "8 bits, expected a Transformer or Conformer, or fp32"
        )
    return model


def is_linear(layer):
    """Whether a layer is a linear map: also a convolution of one tap, of rows."""
    if isinstance(layer, nn.Conv1d):
        return layer.kernel_size == (1,) and layer.groups == 1
    return isinstance(layer, nn.Linear)


class Int8Linear(nn.Module):
    """A linear layer in 8 bits, [..., in] → [..., out], without a gradient.

    Arguments
    ---------
    layer : nn.Linear or nn.Conv1d
        float32; see :func:`is_linear`.
    """

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.detach().float().flatten(1)
        scale = weight.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny)
        scale.div_(largest_weight())
        rounded = (weight / scale.unsqueeze(1)).round_().to(torch.int8)
        bias = None if layer.bias is None else layer.bias.detach().float().clone()
        self.out_features, self.in_features = rounded.shape
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        # in FBGEMM's own order, which neither state_dict nor a fingerprint reads
        self.packed = packed(rounded, scale)
        digest = bytearray(hashlib.sha256(rounded.numpy()).digest())
        self.register_buffer("digest", torch.frombuffer(digest, dtype=torch.uint8))

    def forward(self, x):
        """[..., in] → [..., out], float32."""
        return self.of(Scaled(x))

    def of(self, scaled):
        """Of :class:`Scaled` values, which several layers may share."""
        y = multiplied(scaled.rows, self.packed).mul_(scaled.scale)
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*scaled.shape, -1)

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Scaled:
    """Values [..., in] as rows of at most ±127: what :class:`Int8Linear` multiplies.

    ``rows`` [N, in], ``scale`` s, [N, 1], ``shape`` of the values less their last
    dimension.
    """

    def __init__(self, x):
        self.shape = x.shape[:-1]
        rows = x.detach().float().reshape(-1, x.shape[-1])
        largest = rows.abs().amax(-1, keepdim=True)
        self.scale = largest.div_(LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
        self.rows = rows / self.scale


def each(layers, x):
    """layer(x) of several layers of one input, which is scaled once → list."""
    if all(type(layer) is Int8Linear for layer in layers):
        scaled = Scaled(x)
        return [layer.of(scaled) for layer in layers]
    return [layer(x) for layer in layers]
