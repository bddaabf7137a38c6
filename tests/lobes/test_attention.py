"""Both ways of plain and biased attention against the formula, score by score."""

import pytest
import torch
from tiny_encoder import LargestTensor, noise

from speechbrain_ext.lobes import attention
from speechbrain_ext.lobes.attention import (
    CPU_BLOCK,
    FUSED_BLOCK,
    SMALL_SCORE,
    ToeplitzBias,
    attend,
    blocked,
    fused,
)

BLOCK = 32


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of queries; whole heads, in twos or one by one."""
    monkeypatch.setattr(attention, "CPU_BLOCK", BLOCK)
    monkeypatch.setattr(attention, "CPU_SCORES", 2 * BLOCK * 2 * BLOCK)


def inputs(frames, seen=None, batch=2, heads=3, size=4):
    """query, key, value [B, H, T, d], in float64."""
    query = noise(batch, heads, frames, size).double()
    keys = noise(2, batch, heads, seen or frames, size, seed=1).double()
    return query, *keys


def toeplitz(frames, batch=2, heads=3):
    """A bias by distance with a gate, and the same as a tensor [B, H, T, T]."""
    by_distance = noise(heads, 2 * frames - 1, seed=2).double()
    gate = noise(batch, heads, frames, seed=3).double()
    dense = torch.stack(
        [by_distance[:, frames - 1 - t : 2 * frames - 1 - t] for t in range(frames)], 1
    )
    return ToeplitzBias(by_distance, gate), gate.unsqueeze(-1) * dense


def by_formula(query, key, value, padding=None, bias=0.0):
    """One softmax over all keys."""
    scores = torch.matmul(query, key.transpose(2, 3)) / query.shape[-1] ** 0.5 + bias
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    return torch.matmul(scores.softmax(-1), value).transpose(1, 2).flatten(2)


def last_frames(frames, *numbers):
    """[B, T], True in the last ``numbers`` frames of every recording."""
    return torch.arange(frames) >= frames - torch.tensor(numbers).unsqueeze(1)


LENGTHS = [1, 2, 9, *(BLOCK * n + d for n in (1, 3) for d in (-2, 0, 1, 9))]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", [fused, blocked])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("frames", LENGTHS)
def test_equals_the_formula(frames, padded, way):
    tensors = inputs(frames)
    padding = last_frames(frames, 0, frames // 2) if padded else None
    found, expected = attend(*tensors, padding), by_formula(*tensors, padding)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    bias, dense = toeplitz(frames)
    expected = by_formula(*tensors, padding, dense)
    for given in (bias, dense):
        found = way(*tensors, padding, bias=given)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", [fused, blocked])
@pytest.mark.parametrize("shape", [(70, 40), (1, 3, 1, 40), (2, 1, 70, 40)])
def test_keys_of_another_length_and_a_bias_that_broadcasts(shape, way):
    tensors, bias = inputs(70, 40), noise(*shape, seed=4).double()
    padding = last_frames(40, 0, 7)
    expected = by_formula(*tensors, padding, bias)
    found = way(*tensors, padding, bias=bias)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_large_scores_do_not_overflow(scale):
    """Of the keys, and of the bias alone."""
    query, key, value = inputs(100)
    bias, dense = toeplitz(100)
    bias.by_distance = bias.by_distance * scale
    for keys in (key, key * scale):
        expected = by_formula(query, keys, value, bias=dense * scale)
        found = blocked(*(t.float() for t in (query, keys, value)), bias=dense * scale)
        torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=0)
        found = blocked(query, keys, value, bias=bias)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    large = bias.largest()
    assert (large >= (dense * scale).abs().amax((-2, -1))).all()
    assert bool((large > SMALL_SCORE).all()) == (scale > 1)


def test_gradients_of_both_parts_of_a_bias():
    query, key, value = (t.requires_grad_() for t in inputs(7))
    by_distance = noise(3, 13).double().requires_grad_()
    gate = noise(2, 3, 7).double().requires_grad_()

    def attended(*tensors):
        return attend(*tensors[:3], bias=ToeplitzBias(*tensors[3:]))

    assert torch.autograd.gradcheck(attended, (query, key, value, by_distance, gate))


@pytest.mark.parametrize("way", [fused, blocked])
def test_no_tensor_of_all_pairs_is_made(way):
    frames = 3 * FUSED_BLOCK
    query = noise(1, 4, frames, 4)
    bias = ToeplitzBias(noise(4, 2 * frames - 1), noise(1, 4, frames))
    with torch.no_grad(), LargestTensor() as largest:
        way(query, query, query, bias=bias)
    block = FUSED_BLOCK if way is fused else CPU_BLOCK
    assert largest.elements <= 4 * block * frames


def test_dropout_is_of_the_weights():
    query, key, value = inputs(50)
    torch.manual_seed(0)
    dropped = attend(query, key, torch.ones_like(value), dropout=0.5)
    assert 0.5 < float(dropped.std()) + float(dropped.mean()) < 2
    assert float(dropped.std()) > 0.01
