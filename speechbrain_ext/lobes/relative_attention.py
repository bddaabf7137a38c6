"""Softmax attention with relative keys, without a [T, T, head_dim] tensor.

    y_i = Σ_j softmax_j(q_i·(k_j + e[clip(j − i, −left, right)]) / √d) v_j

Shaw et al. 2018 (arXiv 1803.02155); w2v-BERT 2.0 clips to 64 frames back and 8 ahead,
so the position term takes 73 different values per query. Two ways to the same result:

- :func:`fused` gathers them into a bias [t, T] for torch's fused attention. It has a
  gradient and runs on every device;
- :func:`banded` is for inference on CPUs. Where the distance is clipped, the position
  term of a query is one of two constants, and softmax does not see a constant per
  query. With the left one subtracted, only the band along the diagonal is left to be
  added; right of it, keys shifted by one vector bring the difference of the two. Scores
  are made in blocks that stay in the processor's cache. On two threads and 16 heads ×
  64 it is three times faster than torch's compiled flex attention (docs/NOTES.md).
"""

import itertools
import math

import torch
import torch.nn.functional as F

from speechbrain_ext.lobes.attention import (
    FUSED_BLOCK,
    by_torch,
    cpu_blocks,
    exponentials_,
    scores_are_small,
)
from speechbrain_ext.lobes.cpu_inference import inference_on_cpu


def attend(query, key, value, table, left, padding=None, dropout=0.0):
    """Attention of all queries: [B, H, T, d] each → [B, T, H·d].

    ``table`` [left + 1 + right, d] has the vector of every distance from −left to
    right; ``padding`` [B, T] is True where to look away, None where nothing is padded;
    ``dropout`` is of the attention weights.
    """
    if inference_on_cpu(query) and not dropout:
        return banded(query, key, value, table, left, padding)
    return fused(query, key, value, table, left, padding, dropout)


def fused(query, key, value, table, left, padding=None, dropout=0.0, block=FUSED_BLOCK):
    """With torch's fused attention: see :func:`attend`.

    ``block`` queries at once; None takes all, whatever their number (for ONNX).
    """
    frames = query.shape[2]
    starts = [0] if block is None else range(0, frames, block)
    blocks = []
    for start in starts:
        queries = query if block is None else query[:, :, start : start + block]
        by_distance = torch.matmul(queries * query.shape[-1] ** -0.5, table.t())
        bias = gather_distances(by_distance, left, start, key.shape[2])
        if padding is not None:
            bias = bias.masked_fill(padding[:, None, None, :], float("-inf"))
        blocks.append(by_torch(queries, key, value, bias, dropout))
    context = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
    return context.transpose(1, 2).flatten(2)


def banded(query, key, value, table, left, padding=None):
    """Block by block, with a bias on the band alone: see :func:`attend`."""
    batch, heads, frames, size = query.shape
    # softmax does not see a constant per query: subtract the one left of the band
    table = (table - table[:1]).t() * size**-0.5
    beyond, right = table[:, -1], table.shape[1] - 1 - left
    small = scores_are_small(query, key, table, padding)
    rows, together = cpu_blocks(heads, frames, frames)
    scores = query.new_empty(together * rows * frames)
    shifted = query.new_empty(together, frames, size)
    band = Band(left, right, together, rows, query.dtype)
    context = query.new_empty(batch, frames, heads, size)
    for item, first in itertools.product(range(batch), range(0, heads, together)):
        some = slice(first, first + together)
        queries, values = query[item, some].contiguous(), value[item, some].contiguous()
        keys = shifted[: len(queries)]
        torch.mul(key[item, some], size**-0.5, out=keys)
        by_distance = torch.matmul(queries, table)
        bounded = small is not None and bool(small[item, some].all())
        reached = None
        for start in range(0, frames, rows):
            block = slice(start, min(start + rows, frames))
            # what is right of all bands has its position term from the keys
            last = min(frames, block.stop - 1 + right)
            if reached is None:
                keys[:, last:] += beyond
            else:
                keys[:, reached:last] -= beyond
            reached = last
            shape = (len(queries), block.stop - start, frames)
            weights = scores[: math.prod(shape)].view(shape)
            torch.bmm(queries[:, block], keys.transpose(1, 2), out=weights)
            band.add_to(weights[:, :, :last], by_distance[:, block], start)
            if padding is not None:
                weights.masked_fill_(padding[item], float("-inf"))
            total = exponentials_(weights, bounded)
            found = torch.bmm(weights, values).div_(total)
            context[item, block, some] = found.transpose(0, 1)
    return context.flatten(2)


class Band:
    """Position terms around the diagonal of a block of queries, added in place.

    They are first laid out beside the block's own frames, where they always have room:
    the band from one row to the next a column further right, 0 on its left, the last
    distance's term on its right. ``left`` frames back and ``right`` ahead have a vector
    of their own; a block has ``together`` heads and ``rows`` queries at most.
    """

    def __init__(self, left, right, together, rows, dtype):
        self.left, self.width = left, left + right
        self.terms = torch.empty(together, rows, self.width + rows, dtype=dtype)
        # 1 right of the band, which begins a column further right in every row
        self.beyond = torch.ones_like(self.terms[0]).triu_(self.width)

    def add_to(self, scores, by_distance, start):
        """Scores [N, t, last] of queries from ``start`` on += [N, t, distances]."""
        count, rows, _ = by_distance.shape
        terms = self.terms[:count, :rows]
        torch.mul(by_distance[:, :, -1:], self.beyond[:rows], out=terms)
        far, near, one = terms.stride()
        strides = (far, near + one, one)
        steps = terms.as_strided((count, rows, self.width), strides)
        steps.copy_(by_distance[:, :, :-1])
        first, last = max(0, start - self.left), scores.shape[2]
        place = self.left - start
        scores[:, :, first:last] += terms[:, :, first + place : last + place]


def gather_distances(by_distance, left, start, frames):
    """The terms of queries from frame ``start`` on and of all keys.

    [..., t, left + 1 + right] → [..., t, frames].
    """
    if torch.is_grad_enabled() and by_distance.requires_grad:
        return _Gathered.apply(by_distance, left, start, frames)
    return _gathered(by_distance, left, start, frames)


def _gathered(by_distance, left, start, frames):
    device, last = by_distance.device, by_distance.shape[-1] - 1
    mine = torch.arange(by_distance.shape[-2], device=device).unsqueeze(1) + start
    distance = torch.arange(frames, device=device) - mine + left
    distance = distance.clamp(0, last)
    return by_distance.gather(-1, distance.expand(*by_distance.shape[:-2], -1, -1))


class _Gathered(torch.autograd.Function):
    """:func:`_gathered` whose gradient is summed in a fixed order, in float32 at least.

    That of a gather adds up to T numbers, one after another, into the same place of its
    own type: on a GPU by atomics, which wait for each other, in bf16 with an error of a
    per cent. Here every number of the band has a place of its own, in a view whose rows
    begin one column further right; what is left of it is summed, and right of it is the
    rest of the row's sum.
    """

    @staticmethod
    def forward(ctx, by_distance, left, start, frames):
        """As :func:`gather_distances`."""
        ctx.left, ctx.start, ctx.distances = left, start, by_distance.shape[-1]
        return _gathered(by_distance, left, start, frames)

    @staticmethod
    def backward(ctx, gradient):
        """[..., t, frames] → [..., t, distances]."""
        band = ctx.left, ctx.start, ctx.distances - 1
        if gradient.device.type == "cpu":  # one utterance stays in the cache
            found = torch.stack([_by_distance(part, *band) for part in gradient])
        else:
            found = _by_distance(gradient, *band)
        return found, None, None, None


def _by_distance(gradient, left, start, last):
    """Sums of [..., t, frames] over keys of one distance: [..., t, last + 1]."""
    rows, frames = gradient.shape[-2:]
    total = _row_sums(gradient)
    if last == 0:  # a table of one vector
        return total.to(gradient.dtype)
    before = gradient[..., : max(0, start + rows - left)].tril(start - left)
    before = _row_sums(before)
    # columns of the first query's band to those of the last one's
    margins = left - 1 - start, start + rows + last - left - 1 - frames
    band = F.pad(gradient, margins)
    *outer, row, one = band.stride()
    shape = (*gradient.shape[:-1], last - 1)
    band = band.as_strided(shape, (*outer, row + one, one))
    after = total - before - _row_sums(band)
    return torch.cat([before.to(band.dtype), band, after.to(band.dtype)], -1)


def _row_sums(x):
    """[..., n] → [..., 1], in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.sum(-1, keepdim=True, dtype=wide)
