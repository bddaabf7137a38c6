"""Linear layers that multiply in 8 bits on a CPU: a quarter of the memory and less.

    y_tc = s_t v_c Σ_k (x̂_tk − 128) Ŵ_ck + b_c
    s_t = max_k |x_tk| / 127,    x̂_tk = round(x_tk / s_t) + 128      uint8
    v_c = max_k |W_ck| / 127,    Ŵ_ck = round(W_ck / v_c)            int8

One scale per output channel from the weights, and one per row (a frame) from the
values that come: nothing is calibrated, and an embedding does not depend on what else
is in its batch. The products are oneDNN's, of torch's own quantisation. Which layers
of an encoder they are is said by the encoder (``int8_layers``); all else stays in
float32.
"""

import functools
import hashlib

import torch
from torch import nn

from speechbrain_ext.utils.errors import InputError

ZERO, LARGEST = 128, 127  # of x̂: what stands for 0, and how far it goes from there
# oneDNN makes code for every number of rows of every matrix: 0.6 ms, and a pruned
# encoder has 200 matrices of its own. So rows are taken by these numbers alone.
BLOCKS = (128, 32)


@functools.cache
def largest_weight():
    """The largest |Ŵ| that this machine multiplies without an error; None: not at all.

    Without VNNI x86 processors add two products in 16 bits, which whole bytes overflow,
    without a word: there it is 63.
    """
    x, scale = torch.full((BLOCKS[-1], 64), 255, dtype=torch.uint8), torch.ones(32)
    for limit in (LARGEST, 63):
        weight = torch.full((32, 64), limit, dtype=torch.int8)
        try:
            packed = torch.ops.onednn.qlinear_prepack(weight, None)
            found = _multiplied(x, packed, scale)
        except (RuntimeError, AttributeError, NotImplementedError):
            return None
        if bool((found == 64 * (255 - ZERO) * limit).all()):
            return limit
    return None


def check_int8(device):
    """InputError: a device, or a machine, without 8-bit products."""
    if torch.device(device).type != "cpu":
        raise InputError(
            f"precision int8 on {device}: its products are of a CPU, expected cpu, or "
            "another precision"
        )
    if largest_weight() is None:
        raise InputError(
            "precision int8: torch has no 8-bit products of oneDNN on this machine, "
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
        # in oneDNN's own order, which neither state_dict nor a fingerprint can read
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        digest = bytearray(hashlib.sha256(rounded.numpy()).digest())
        self.register_buffer("digest", torch.frombuffer(digest, dtype=torch.uint8))

    def forward(self, x):
        """[..., in] → [..., out], float32."""
        return self.of(Rounded(x))

    def of(self, rounded):
        """Of :class:`Rounded` values, which several layers may share."""
        parts = [_multiplied(x, self.packed, self.scale) for x in rounded.blocks]
        y = torch.cat(parts)[: len(rounded.scale)].mul_(rounded.scale)
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*rounded.shape, -1)

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Rounded:
    """Values [..., in] as rows of 8 bits: what :class:`Int8Linear` multiplies.

    Attributes
    ----------
    shape : torch.Size
        Of the values, less their last dimension.
    scale : torch.Tensor
        s, [N, 1].
    blocks : tuple of torch.Tensor
        uint8, of as many rows as :data:`BLOCKS` has; the last one is filled up.
    """

    def __init__(self, x):
        self.shape = x.shape[:-1]
        rows = x.detach().float().reshape(-1, x.shape[-1])
        large, small = BLOCKS
        filled = rows.new_empty(len(rows) + -len(rows) % small, rows.shape[1])
        filled[len(rows) :].zero_()
        used = filled[: len(rows)]
        largest = torch.abs(rows, out=used).amax(-1, keepdim=True)
        self.scale = largest.div_(LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
        torch.div(rows, self.scale, out=used)
        # rounds and converts in one pass; int_repr would copy, four times as long
        found = torch.quantize_per_tensor(filled, 1.0, ZERO, torch.quint8)
        found = torch.empty(0, dtype=torch.uint8).set_(
            found.untyped_storage(), 0, found.shape
        )
        many, few = divmod(len(found), large)
        self.blocks = found.split([large] * many + [small] * (few // small))


def _multiplied(rows, packed, scale):
    """uint8 [n, in], packed weight → float32 [n, out], times ``scale`` [out]."""
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        *(rows, 1.0, ZERO, packed, scale, zeros, None, 1.0, 0),
        *(torch.float32, "none", [], ""),
    )


def each(layers, x):
    """layer(x) of several layers of one input, which is rounded once → list."""
    if all(type(layer) is Int8Linear for layer in layers):
        rounded = Rounded(x)
        return [layer.of(rounded) for layer in layers]
    return [layer(x) for layer in layers]
