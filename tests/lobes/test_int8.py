"""8-bit linear layers against their formula, row by row."""

import pytest
import torch
from tiny_encoder import noise
from torch import nn

from speechbrain_ext.lobes import int8
from speechbrain_ext.lobes.conformer import Pointwise
from speechbrain_ext.lobes.cpu_inference import Linear, activated, swish
from speechbrain_ext.lobes.int8 import Int8Linear, each, largest_weight
from speechbrain_ext.utils.errors import InputError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(largest_weight() is None, reason="no 8-bit products here"),
]


def formula(layer, x):
    """s_t v_c Σ_k x̂_tk Ŵ_ck + b_c, the sums in whole numbers."""
    weight = layer.weight.detach().flatten(1)
    v = weight.abs().amax(1, keepdim=True) / largest_weight()
    s = x.abs().amax(-1, keepdim=True) / 127
    sums = (x / s).round().double() @ (weight / v).round().double().t()
    bias = 0.0 if layer.bias is None else layer.bias.detach().double()
    return s * v.squeeze(1) * sums + bias


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Linear(40, 24),
        lambda: nn.Linear(7, 3, bias=False),
        lambda: Pointwise(33, 64),
        lambda: nn.Conv1d(16, 8, 1),
    ],
)
@pytest.mark.parametrize("shape", [(1,), (2, 16), (3, 11), (160,), (2, 150), (5, 1)])
def test_it_is_the_formula(layer, shape):
    torch.manual_seed(0)
    layer = layer()
    x = 3 * noise(*shape, layer.weight.shape[1])
    found = Int8Linear(layer)(x)
    assert found.dtype == torch.float32
    assert found.shape == (*shape, len(layer.weight))
    torch.testing.assert_close(found, formula(layer, x).float(), rtol=1e-5, atol=1e-5)


def test_a_row_depends_on_no_other():
    """Not on their number, nor on how loud they are."""
    layer = Int8Linear(Linear(20, 12))
    x = noise(150, 20)
    alone = torch.cat([layer(row) for row in x.split(1)])
    assert torch.equal(layer(x), alone)
    loud = torch.cat([x, 1e6 * noise(7, 20)])
    assert torch.equal(layer(loud)[:150], alone)


def test_rows_without_a_scale():
    """Of zeros: the bias; what is not finite stays so, in its row."""
    layer = Linear(20, 12)
    x = noise(4, 20)
    x[1], x[2, 3], x[3, 5] = 0.0, float("nan"), float("inf")
    found = Int8Linear(layer)(x)
    assert torch.equal(found[1], layer.bias.detach())
    assert found[:2].isfinite().all()
    assert not found[2:].isfinite().any()
    layer.weight.data[2] = 0.0
    assert torch.equal(Int8Linear(layer)(x)[:2, 2], layer.bias.detach()[2].expand(2))


def test_layers_of_one_input_share_its_scale(monkeypatch):
    layers = [Int8Linear(Linear(20, n)) for n in (12, 5, 7)]
    x = noise(2, 9, 20)
    expected = [layer(x) for layer in layers]
    calls, scaled = [], int8.Scaled
    monkeypatch.setattr(int8, "Scaled", lambda x: calls.append(x) or scaled(x))
    assert all(map(torch.equal, each(layers, x), expected))
    assert len(calls) == 1
    mixed = [layers[0], Linear(20, 5)]
    found = each(mixed, x)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], mixed[1](x))
    function = activated(layers[0], swish, x)
    assert torch.equal(function, swish(expected[0]))


def test_a_quarter_of_the_memory():
    layer = Linear(1024, 512)
    small = Int8Linear(layer)
    held = torch.ops.quantized.linear_unpack(small.packed)[0].int_repr()
    assert held.nbytes == layer.weight.numel() == layer.weight.nbytes // 4
    tensors = [*small.parameters(), *small.buffers()]
    assert sum(t.nbytes for t in tensors) == 2 * 4 * 512 + 32  # scale, bias, digest


def test_a_fingerprint_sees_every_weight():
    layer = Linear(20, 12)
    small = Int8Linear(layer)
    row = layer.weight.data[0]
    row[row.abs().argmin()] = row.abs().max() / 2
    other = Int8Linear(layer)
    assert torch.equal(other.scale, small.scale)
    assert not torch.equal(other.digest, small.digest)


def test_what_a_machine_has_not(monkeypatch):
    with pytest.raises(InputError, match=r"int8 on cuda:0: .* of a CPU, expected cpu"):
        int8.check_int8("cuda:0")
    monkeypatch.setattr(int8, "largest_weight", lambda: None)
    with pytest.raises(InputError, match=r"no 8-bit products of FBGEMM .*fp32"):
        int8.check_int8("cpu")


def test_a_processor_without_vnni(monkeypatch):
    """It adds pairs of products in 16 bits: the weights' range is found by trying."""

    def saturating(rows, weight):
        weight = torch.ops.quantized.linear_unpack(weight)[0].int_repr().float()
        pairs = ((rows + 128).round() * weight[:1]).unflatten(-1, (-1, 2)).sum(-1)
        sums = pairs.clamp(-(2**15), 2**15 - 1).sum(-1, keepdim=True)
        return sums - 128 * weight.sum(-1)

    def fails(rows, weight):
        raise RuntimeError("no kernel")

    untouched = largest_weight.__wrapped__
    assert untouched() == largest_weight()
    monkeypatch.setattr(int8, "multiplied", saturating)
    assert untouched() == 63
    monkeypatch.setattr(int8, "multiplied", fails)
    assert untouched() is None


def test_7_bits_are_nearly_as_good(monkeypatch):
    monkeypatch.setattr(int8, "largest_weight", lambda: 63)
    layer, x = Linear(256, 64), noise(40, 256)
    small = Int8Linear(layer)
    weight = torch.ops.quantized.linear_unpack(small.packed)[0].int_repr()
    assert weight.abs().max() == 63
    assert (small(x) - layer(x)).norm() < 0.02 * layer(x).norm()
