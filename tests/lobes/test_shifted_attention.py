"""Attention with Transformer-XL's positions, both ways against the formula."""

import numpy as np
import pytest
import torch
from tiny_encoder import LargestTensor, noise

from speechbrain_ext.lobes import attention
from speechbrain_ext.lobes.attention import blocked, fused
from speechbrain_ext.lobes.shifted_attention import ShiftedBias, distances


def inputs(frames, batch=2, heads=3, size=4):
    """query, key, value [B, H, T, d], positions [H, 2T, d], biases, in float64."""
    vectors = noise(3, batch, heads, frames, size).double()
    positions = noise(heads, 2 * frames, size, seed=1).double()
    return *vectors, positions, *noise(2, heads, size, seed=2).double()


def by_formula(query, key, value, positions, bias_u, bias_v, padding=None):
    """Every pair of frames for itself."""
    frames, size = query.shape[2:]
    place = torch.arange(frames)
    scores = torch.einsum("bhid,bhjd->bhij", query + bias_u[:, None], key)
    vectors = positions[:, frames - (place[:, None] - place)]  # [H, T, T, d]
    scores += torch.einsum("bhid,hijd->bhij", query + bias_v[:, None], vectors)
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    return ((scores / size**0.5).softmax(-1) @ value).transpose(1, 2).flatten(2)


def attended(way, query, key, value, positions, bias_u, bias_v, *padding, **options):
    """One way of ``attention`` with a ShiftedBias."""
    bias = ShiftedBias(query + bias_v[:, None], positions)
    return way(query + bias_u[:, None], key, value, *padding, bias=bias, **options)


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 33])
def test_both_ways_equal_the_formula(frames, monkeypatch):
    monkeypatch.setattr(attention, "CPU_BLOCK", 8)
    monkeypatch.setattr(attention, "CPU_SCORES", 2 * 8 * 9)
    given = inputs(frames)
    padding = torch.arange(frames) >= torch.tensor([[frames], [max(1, frames - 3)]])
    for mask in (None, padding):
        expected = by_formula(*given, mask)
        ways = [attended(blocked, *given, mask)]
        ways += [attended(fused, *given, mask, block=block) for block in (5, 512, None)]
        inside = slice(None) if mask is None else ~mask
        for found in ways:
            torch.testing.assert_close(found[inside], expected[inside])


def test_large_scores_are_not_added_up_as_they_are():
    given = [50 * x.float() for x in inputs(600, batch=1, heads=2)]
    found = attended(blocked, *given)
    assert found.isfinite().all()
    torch.testing.assert_close(found, attended(fused, *given), atol=1e-3, rtol=1e-3)


def test_the_table_is_that_of_transformer_xl():
    table = distances(5, 6, torch.zeros(1))
    for row, distance in enumerate(range(5, -5, -1)):
        for column in range(0, 6, 2):
            angle = distance / 10000 ** (column / 6)
            expected = [np.sin(angle), np.cos(angle)]
            found = table[row, column : column + 2].tolist()
            assert found == pytest.approx(expected, abs=1e-6)


def test_memory_of_long_recordings_is_bounded():
    given = [x.float() for x in inputs(3000, batch=1, heads=2, size=8)]
    with LargestTensor() as largest, torch.no_grad():
        attended(blocked, *given)
    assert largest.elements < 3000 * 3000 / 2
    with LargestTensor() as largest:
        attended(fused, *given)
    assert largest.elements < 3000 * 3000 * 2
