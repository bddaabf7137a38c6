"""The conformer layer against its plain definition, with any width in every part."""

import itertools

import pytest
import torch
from tiny_encoder import LargestTensor, noise, randomise, stock_model, tiny_config

from speechbrain_ext.lobes.attention import CPU_BLOCK, FUSED_BLOCK
from speechbrain_ext.lobes.conformer import (
    ConformerLayer,
    ConvolutionModule,
    LayerShape,
    Linear,
    RelativeKeyAttention,
    depthwise,
)

FULL = LayerShape(hidden=24, head_dim=6, heads=4, ffn1=40, ffn2=32, conv=24)
PREFIXES = {
    "heads": "self_attn",
    "ffn1": "ffn1",
    "ffn2": "ffn2",
    "conv": "conv_module",
}


def plain_attention(module, x, padding=None):
    """Frame by frame and head by head, in float64, as the formula stands."""
    batch, frames, _ = x.shape
    size = module.head_dim
    query, key, value = (
        linear(x).view(batch, frames, -1, size)
        for linear in (module.linear_q, module.linear_k, module.linear_v)
    )
    table = module.distance_embedding.weight
    distance = torch.arange(frames)[None] - torch.arange(frames)[:, None]
    positions = table[distance.clamp(-module.left, module.right) + module.left]
    scores = torch.einsum("bihd,bjhd->bhij", query, key)
    scores = scores + torch.einsum("bihd,ijd->bhij", query, positions)
    scores = scores / size**0.5
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    context = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), value)
    return module.linear_out(context.flatten(2))


@pytest.mark.parametrize(
    ("heads", "size", "left", "right"),
    [(4, 6, 64, 8), (3, 5, 7, 2), (1, 8, 0, 0), (2, 4, 1, 90), (5, 1, 90, 1)],
)
@pytest.mark.parametrize("frames", [1, 2, 9, 80])
def test_attention_equals_its_formula(frames, heads, size, left, right):
    shape = FULL._replace(heads=heads, head_dim=size)
    module = randomise(RelativeKeyAttention(shape, left, right)).double()
    x = noise(2, frames, 24).double()
    expected = plain_attention(module, x)
    torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=0)
    with torch.no_grad():  # on a CPU another way to the same
        torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=0)
    if frames > 2:
        padding = torch.arange(frames) >= torch.tensor([[frames], [frames - 2]])
        valid = ~padding
        expected = plain_attention(module, x, padding)[valid]
        torch.testing.assert_close(module(x, padding)[valid], expected)


def test_positions_matter_to_either_side():
    """A check on the checks: the far ends of the table are in use."""
    module = randomise(RelativeKeyAttention(FULL, left=3, right=2)).double()
    x = noise(1, 12, 24).double()
    before = module(x)
    for row in range(6):
        with torch.no_grad():
            module.distance_embedding.weight[row] += 1
        assert (module(x) - before).abs().max() > 1e-3
        before = module(x)


def test_no_tensor_of_frames_by_frames_by_head_size():
    """700 frames: 716,800 elements at most, where transformers makes 15,680,000."""
    frames, shape = 700, FULL._replace(heads=2, head_dim=32)
    module = RelativeKeyAttention(shape, dropout=0.1)
    x = noise(1, frames, 24)
    for training in (False, True):
        module.train(training)
        with LargestTensor() as largest:
            module(x)
        assert largest.elements <= shape.heads * FUSED_BLOCK * frames
        assert largest.elements < frames * frames * shape.head_dim / 10
    with LargestTensor() as largest, torch.inference_mode():
        module.eval()(x)
    assert largest.elements <= shape.heads * CPU_BLOCK * frames


def test_the_measure_sees_such_a_tensor_in_transformers():
    model, frames = stock_model(), 200
    with LargestTensor() as largest, torch.no_grad():
        model(noise(1, frames, 160))
    assert largest.elements == frames * frames * 12


def test_attention_dropout_in_training_only():
    module = randomise(RelativeKeyAttention(FULL, dropout=0.5))
    x = noise(1, 20, 24)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_convolution_equals_its_formula():
    """Value rows first, gate rows after; causal; one LayerNorm after the kernel."""
    width, kernel = 10, 5
    module = randomise(ConvolutionModule(24, width, kernel)).double().eval()
    x = noise(2, 7, 24).double()
    normal = torch.nn.functional.layer_norm
    weights = {name: value.detach() for name, value in module.named_parameters()}
    both = weights["pointwise_conv1.weight"][:, :, 0]
    h = normal(x, (24,), weights["layer_norm.weight"], weights["layer_norm.bias"])
    h = (h @ both[:width].t()) * torch.sigmoid(h @ both[width:].t())
    taps = weights["depthwise_conv.weight"][:, 0]  # [width, kernel]
    slid = torch.zeros_like(h)
    for now, tap in itertools.product(range(7), range(kernel)):
        past = now - (kernel - 1) + tap
        if past >= 0:
            slid[:, now] += taps[:, tap] * h[:, past]
    h = normal(
        slid,
        (width,),
        weights["depthwise_layer_norm.weight"],
        weights["depthwise_layer_norm.bias"],
    )
    h = h * torch.sigmoid(h)
    expected = h @ weights["pointwise_conv2.weight"][:, :, 0].t()
    torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=0)


def test_convolution_looks_back_only():
    module = randomise(ConvolutionModule(24, 10, 31)).eval()
    x = noise(1, 50, 24)
    changed = x.clone()
    changed[:, 30:] = 9.0
    assert torch.equal(module(x)[:, :30], module(changed)[:, :30])


@pytest.mark.parametrize(
    "changes",
    [
        *({part: 0} for part in PREFIXES),
        {"heads": 0, "ffn1": 0},
        {"ffn1": 0, "ffn2": 0, "heads": 0, "conv": 0},
        {"heads": 3, "ffn1": 1, "ffn2": 77, "conv": 5},
        {"heads": 1, "conv": 40},
    ],
)
def test_any_width(changes):
    """What is left out has no parameters, and the rest works and learns."""
    shape = FULL._replace(**changes)
    layer = randomise(ConformerLayer(tiny_config(), shape))
    names = [name for name, _ in layer.named_parameters()]
    for part, prefix in PREFIXES.items():
        found = any(name.startswith(prefix) for name in names)
        assert found == (getattr(shape, part) > 0)
    x = noise(2, 40, 24).requires_grad_(True)
    padding = torch.arange(40) >= torch.tensor([[40], [21]])
    out = layer(x, padding)
    assert out.shape == x.shape
    out[~padding].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_layer_without_anything_is_its_last_norm():
    empty = LayerShape(hidden=24, head_dim=6, heads=0, ffn1=0, ffn2=0, conv=0)
    layer = ConformerLayer(tiny_config(), empty)
    x = noise(2, 5, 24)
    torch.testing.assert_close(layer(x), torch.nn.functional.layer_norm(x, (24,)))
    assert sum(p.numel() for p in layer.parameters()) == 48


def test_parameters_of_a_layer_by_hand():
    hidden, dim, heads, ffn1, ffn2, conv = FULL
    inner = heads * dim
    attention = 3 * (hidden * inner + inner) + inner * hidden + hidden + 73 * dim
    feeds = sum(2 * hidden * width + width + hidden for width in (ffn1, ffn2))
    convolution = 2 * hidden + 2 * conv * hidden + 31 * conv + 2 * conv + conv * hidden
    norms = 4 * 2 * hidden
    layer = ConformerLayer(tiny_config(), FULL)
    total = sum(p.numel() for p in layer.parameters())
    assert total == attention + feeds + convolution + norms


def test_a_bias_after_the_product_is_the_same_map():
    """The quicker way in inference, torch's own where there is a gradient or bf16."""
    linear, x = Linear(7, 5), noise(2, 3, 7)
    expected = torch.nn.functional.linear(x, linear.weight, linear.bias)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), expected)
        half = linear.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    linear.float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
    linear(x).sum().backward()
    assert linear.bias.grad.tolist() == [6.0] * 5


@pytest.mark.parametrize("channels", [1, 2, 14, 17, 40])
def test_few_channels_in_bf16_are_those_in_float32(channels):
    """What pruning leaves; oneDNN's bf16 kernel never returned from 2 to 16."""
    x, weight = noise(3, 50, channels), noise(channels, 1, 31).requires_grad_()
    expected = depthwise(x, weight, None, 30, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise(x.bfloat16(), weight, None, 30, 0)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(
        found.float(), expected, atol=0.03 * float(expected.abs().max())
    )
    found.float().sum().backward()
    assert weight.grad.isfinite().all()
