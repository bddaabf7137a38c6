"""Products by oneDNN against float64, and when they are not taken."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes import cpu_inference
from speechbrain_ext.lobes.cpu_inference import (
    ONEDNN,
    Linear,
    activated,
    activation,
    by_onednn,
    gelu,
    swish,
)
from speechbrain_ext.utils.errors import InputError

# times 256 × 512: over and below the bound, and more rows than oneDNN has from MKL
LARGE, SMALL, LONG = (2, 100, 256), (2, 3, 256), (2, 200, 256)
PLAIN = {gelu: F.gelu, swish: F.silu, F.relu: F.relu}


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return Linear(256, 512)


@pytest.mark.parametrize("shape", [LARGE, SMALL, LONG])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_and_its_activation(shape, bias):
    torch.manual_seed(0)
    linear = Linear(256, 512, bias=bias)
    x = torch.randn(shape)
    weight, offset = linear.weight.double(), linear.bias
    expected = F.linear(x.double(), weight, offset.double() if bias else None)
    with torch.inference_mode():
        assert (linear(x) - expected).abs().max() < 1e-5
        for function, plain in PLAIN.items():
            found = activated(linear, function, x)
            assert (found - plain(expected)).abs().max() < 1e-5
    transposed = x.transpose(0, 1)
    with torch.inference_mode():
        assert (linear(transposed) - expected.transpose(0, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("rows", [cpu_inference.INTEL_ROWS, math.inf])
def test_where_onednn_multiplies(linear, rows, monkeypatch):
    monkeypatch.setattr(cpu_inference, "ONEDNN_ROWS", rows)
    x = torch.randn(LARGE)
    weight = linear.weight
    with torch.inference_mode():
        assert by_onednn(x, weight) == ONEDNN
        assert by_onednn(torch.randn(LONG), weight) == (ONEDNN and rows == math.inf)
        assert not by_onednn(torch.randn(SMALL), weight)
        assert not by_onednn(x.double(), weight)
        assert not by_onednn(x.to("meta"), weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not by_onednn(x, weight)
            assert linear(x).dtype == torch.bfloat16
    assert not by_onednn(x, weight)  # a gradient may be needed
    activated(linear, gelu, x).sum().backward()
    assert linear.weight.grad.abs().sum() > 0


def test_a_layer_that_is_watched_is_called(linear):
    seen, x = [], torch.randn(LARGE)
    handle = linear.register_forward_hook(lambda *parts: seen.append(parts[-1]))
    with torch.inference_mode():
        activated(linear, torch.relu, x)
        found = activated(linear, gelu, x)
        handle.remove()
        assert len(seen) == 2
        assert (found - activated(linear, gelu, x)).abs().max() < 1e-5
        wrapped = nn.Sequential(linear)
        assert (activated(wrapped, gelu, x) - found).abs().max() < 1e-5


def test_activations_by_name():
    assert activation("gelu", "key") is gelu
    assert activation("silu", "key") is activation("swish", "key") is swish
    x = torch.randn(5)
    assert torch.equal(activation("relu", "key")(x), x.relu())
    with pytest.raises(InputError, match="hidden_act 'geloo', expected 'gelu'"):
        activation("geloo", "hidden_act")
