"""Both ways of attention with relative keys against the formula, pair by pair."""

import pytest
import torch
from tiny_encoder import noise

from speechbrain_ext.lobes import attention, relative_attention
from speechbrain_ext.lobes.attention import (
    CPU_BLOCK,
    FUSED_BLOCK,
    SMALL_SCORE,
    scores_are_small,
)
from speechbrain_ext.lobes.relative_attention import (
    attend,
    banded,
    fused,
    gather_distances,
)

LEFT, RIGHT = 5, 2
BLOCK = 32


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of queries; whole heads, in twos or one by one."""
    monkeypatch.setattr(attention, "CPU_BLOCK", BLOCK)
    monkeypatch.setattr(attention, "CPU_SCORES", 2 * BLOCK * 2 * BLOCK)


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Three blocks for 6 frames."""
    monkeypatch.setattr(attention, "CPU_BLOCK", 2)


def inputs(frames, batch=2, heads=3, size=4, left=LEFT, right=RIGHT):
    """query, key, value [B, H, T, d] and table, in float64."""
    vectors = noise(3, batch, heads, frames, size).double()
    return *vectors, noise(left + 1 + right, size).double()


def by_formula(query, key, value, table, left, padding=None):
    """One softmax over keys plus the vector of every pair's distance."""
    frames, size = query.shape[2:]
    place = torch.arange(frames)
    distance = (place[None] - place[:, None]).clamp(-left, len(table) - 1 - left)
    keys = key.unsqueeze(2) + table[distance + left]  # [B, H, T, T, d]
    scores = (query.unsqueeze(3) * keys).sum(-1) / size**0.5
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    return torch.matmul(scores.softmax(-1), value).transpose(1, 2).flatten(2)


def last_frames(frames, *numbers):
    """[B, T], True in the last ``numbers`` frames of every recording."""
    return torch.arange(frames) >= frames - torch.tensor(numbers).unsqueeze(1)


LENGTHS = [1, 2, 7, 8, 9, *(BLOCK * n + d for n in (1, 2, 3) for d in (-2, 0, 1, 9))]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", [fused, banded])
@pytest.mark.parametrize(("left", "right"), [(5, 2), (0, 0), (0, 3), (80, 1), (1, 200)])
@pytest.mark.parametrize("frames", LENGTHS)
def test_equals_the_formula(frames, left, right, way):
    tensors = inputs(frames, left=left, right=right)
    expected = by_formula(*tensors, left)
    torch.testing.assert_close(way(*tensors, left), expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", [fused, banded])
@pytest.mark.parametrize("frames", LENGTHS[1:])
def test_equals_the_formula_with_padding(frames, way):
    """Padding within the last block, of whole blocks, and all but one frame."""
    tensors = inputs(frames, batch=3)
    padding = last_frames(frames, 0, 1, frames - 1)
    expected = by_formula(*tensors, LEFT, padding)
    found = way(*tensors, LEFT, padding)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("small_blocks")
def test_padding_is_never_seen():
    query, key, value, table = inputs(100)
    padding = last_frames(100, 0, 30)
    with torch.no_grad():
        before = attend(query, key, value, table, LEFT, padding)
        key[1, :, 70:], value[1, :, 70:] = 1e6, 1e6
        after = attend(query, key, value, table, LEFT, padding)
    assert torch.equal(before[1, :70], after[1, :70])


def test_large_scores_do_not_overflow():
    """Position terms of 1e4, of which softmax sees differences alone."""
    query, key, value, table = (t.float() for t in inputs(150))
    table = table + 1e4
    with torch.no_grad():
        found = banded(query, key, value, table, LEFT)
    expected = by_formula(*inputs(150)[:3], table.double(), LEFT)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=0)


def aligned(length):
    """Vectors of one direction: keys to both sides, positions along; d = 4, √d = 2."""
    query = torch.tensor([length, 0.0, 0.0, 0.0]).expand(1, 1, 6, 4).contiguous()
    key = query * torch.tensor([1, -1, 1, -1, 1, -1]).unsqueeze(1)
    table = torch.zeros(LEFT + 1 + RIGHT, 4)
    table[-1, 0] = 2.0
    return query, key, noise(1, 1, 6, 4), table


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("length", [5.0, 10.0, 10.05, 30.0])
def test_scores_at_the_limit_of_what_is_small(length):
    """The largest possible score, |q| (|k| + |e|) / √d = length² / 2 + length."""
    query, key, value, table = aligned(length)
    small = scores_are_small(query, key, table.t() / 2)
    assert small.tolist() == [[length**2 / 2 + length <= SMALL_SCORE]]
    doubles = (tensor.double() for tensor in (query, key, value, table))
    found = banded(query, key, value, table, LEFT).double()
    torch.testing.assert_close(found, by_formula(*doubles, LEFT), atol=2e-6, rtol=0)


@pytest.mark.usefixtures("tiny_blocks")
def test_only_float32_and_wider_add_up_exponentials_as_they_are():
    query, key, _, table = aligned(0.1)
    for dtype in (torch.float16, torch.bfloat16):
        tensors = (tensor.to(dtype) for tensor in (query, key, table.t()))
        assert scores_are_small(*tensors) is None
    not_a_number = torch.full_like(key, float("nan"))
    assert not scores_are_small(query, not_a_number, table.t())


@pytest.mark.usefixtures("small_blocks")
def test_small_and_large_scores_in_one_batch():
    """Heads whose scores are small beside some whose are not, several blocks."""
    query, key, value, table = inputs(3 * BLOCK + 9)
    query[0, 1] *= 100
    small = scores_are_small(query, key, (table - table[:1]).t() / 2)
    assert small.tolist() == [[True, False, True], [True, True, True]]
    found = banded(query, key, value, table, LEFT)
    expected = by_formula(query, key, value, table, LEFT)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("way", [fused, banded])
@pytest.mark.parametrize("block", [FUSED_BLOCK, CPU_BLOCK])
@pytest.mark.parametrize("more", [-1, 0, 1, 200])
def test_blocks_of_its_own_size(block, more, way):
    frames = block + more
    tensors = inputs(frames, batch=1)
    expected = by_formula(*tensors, LEFT)
    torch.testing.assert_close(way(*tensors, LEFT), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("block", [16, None])
def test_blocks_change_neither_result_nor_gradients(block):
    tensors = [tensor.requires_grad_(True) for tensor in inputs(100)]
    whole = by_formula(*tensors, LEFT)
    parts = fused(*tensors, LEFT, block=block)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)
    wanted = torch.autograd.grad(whole.square().sum(), tensors)
    found = torch.autograd.grad(parts.square().sum(), tensors)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def gathered_gradient(by_distance, gradient, left, start):
    """What autograd makes of a gather, in float64."""
    rows, frames = gradient.shape[-2:]
    places = torch.arange(frames) - torch.arange(rows).unsqueeze(1) - start + left
    places = places.clamp(0, by_distance.shape[-1] - 1).expand(gradient.shape)
    zeros = torch.zeros(by_distance.shape, dtype=torch.float64)
    return zeros.scatter_add_(-1, places, gradient.double())


@pytest.mark.parametrize(("left", "right"), [(64, 8), (5, 2), (0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("heads", [1, 3, 16])
@pytest.mark.parametrize("frames", [1, 2, 29, 65, 73, 99, 149, 299])
def test_the_gradient_by_distance_is_that_of_the_gather(frames, heads, left, right):
    by_distance = noise(heads, frames, left + 1 + right).requires_grad_(True)
    weights = noise(heads, frames, frames)
    found = gather_distances(by_distance, left, 0, frames)
    (found,) = torch.autograd.grad(found, by_distance, weights)
    expected = gathered_gradient(by_distance, weights, left, 0)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("start", "rows"), [(0, 7), (3, 4), (20, 9), (28, 1)])
@pytest.mark.parametrize(("left", "right"), [(5, 2), (0, 1), (40, 40)])
def test_the_gradient_by_distance_of_some_queries(left, right, start, rows):
    by_distance = noise(2, rows, left + 1 + right).double().requires_grad_(True)

    def gathered(x):
        return gather_distances(x, left, start, 29)

    assert torch.autograd.gradcheck(gathered, by_distance, fast_mode=True)


def test_the_gradient_by_distance_is_summed_in_float32():
    """A sum that runs in bf16 would round every one of its 299 steps."""
    by_distance = torch.zeros(1, 299, 9, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.full((1, 299, 299), 0.01, dtype=torch.bfloat16)
    found = gather_distances(by_distance, 4, 0, 299)
    (found,) = torch.autograd.grad(found, by_distance, weights)
    expected = gathered_gradient(by_distance, weights, 4, 0)
    torch.testing.assert_close(found.double(), expected, atol=0, rtol=2**-8)


def test_which_way_is_taken(monkeypatch):
    """Without gradients on a CPU the band; else, and with dropout, the fused way."""
    taken = []
    for name in ("fused", "banded"):
        monkeypatch.setattr(
            relative_attention, name, lambda *_, name=name: taken.append(name)
        )
    tensors = inputs(10)
    attend(*tensors, LEFT)
    with torch.no_grad():
        attend(*tensors, LEFT)
        attend(*tensors, LEFT, dropout=0.1)
        attend(*(tensor.to("meta") for tensor in tensors), LEFT)
    assert taken == ["fused", "banded", "fused", "fused"]
