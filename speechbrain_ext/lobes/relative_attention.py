"""Softmax attention with relative keys, without a [T, T, head_dim] tensor.

    y_i = Σ_j softmax_j(q_i·(k_j + e[clip(j − i, −left, right)]) / √d) v_j

Shaw et al. 2018 (arXiv 1803.02155); w2v-BERT 2.0 clips to 64 frames back and 8 ahead,
so the position term takes 73 different values per query. Two ways to the same result:

- :func:`fused` gathers them into a bias [t, T] for torch's fused attention. It has a
  gradient and runs on every device;
- :func:`banded` is for inference on CPUs. Where the distance is clipped, the position
  term of a query is one of two constants, and softmax does not see a constant per
  query. With the left one subtracted, only the band along the diagonal is left to be
  added, and the difference of the two right of it. Scores are made in blocks that stay
  in the processor's cache. Milliseconds for 16 heads × 64 on one thread, beside those
  of the first way: 1.8 and 2.3 at 150 frames, 15.8 and 22.9 at 500, 134 and 225 at
  1,500.
"""

import itertools
import math

import torch
import torch.nn.functional as F

# Queries attended at once: [B, H, block, T] scores bound the memory of long recordings.
FUSED_BLOCK = 512
BANDED_BLOCK = 256
# Made at once, of two heads or more: they stay in the cache. A product of two matrices
# or more is split between threads by matrix.
BANDED_SCORES, BANDED_HEADS = 2**20, 2


def attend(query, key, value, table, left, padding=None, dropout=0.0):
    """Attention of all queries.

    Arguments
    ---------
    query, key, value : torch.Tensor
        [B, H, T, d].
    table : torch.Tensor
        [left + 1 + right, d], the vector of every distance from −left to right.
    left : int
        Frames back that have a vector of their own.
    padding : torch.Tensor
        [B, T], True where to look away; None where nothing is padded.
    dropout : float
        Of the attention weights.

    Returns
    -------
    torch.Tensor
        [B, T, H·d].
    """
    plain = torch.jit.is_tracing() or torch.compiler.is_compiling()
    inference = not (torch.is_grad_enabled() or dropout or plain)
    if inference and query.device.type == "cpu":
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
        bias = gather_distances(by_distance, left, start, 0, key.shape[2])
        if padding is not None:
            bias = bias.masked_fill(padding[:, None, None, :], float("-inf"))
        blocks.append(
            F.scaled_dot_product_attention(queries, key, value, bias, dropout)
        )
    context = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
    return context.transpose(1, 2).flatten(2)


def banded(query, key, value, table, left, padding=None):
    """Block by block, with a bias on the band alone: see :func:`attend`."""
    batch, heads, frames, size = query.shape
    table = (table - table[:1]).t()  # softmax does not see what is left of the band
    rows = min(frames, BANDED_BLOCK)
    together = min(heads, max(BANDED_HEADS, BANDED_SCORES // (rows * frames)))
    stairs = torch.ones(rows, rows, dtype=query.dtype).triu_()
    scores = query.new_empty(together * rows * frames)
    context = query.new_empty(batch, frames, heads, size)
    for item, first in itertools.product(range(batch), range(0, heads, together)):
        some = slice(first, first + together)
        queries = (query[item, some] * size**-0.5).contiguous()
        keys = key[item, some].contiguous().transpose(1, 2)
        values = value[item, some].contiguous()
        by_distance = torch.matmul(queries, table)
        for start in range(0, frames, rows):
            block = slice(start, start + rows)
            shape = (len(queries), min(rows, frames - start), frames)
            weights = scores[: math.prod(shape)].view(shape)
            torch.bmm(queries[:, block], keys, out=weights)
            add_positions(weights, by_distance[:, block], start, left, stairs)
            if padding is not None:
                weights.masked_fill_(padding[item], float("-inf"))
            total = exponentials_(weights)
            found = torch.bmm(weights, values).div_(total)
            context[item, block, some] = found.transpose(0, 1)
    return context.flatten(2)


def exponentials_(scores):
    """Softmax without its division, in place → sums [..., 1].

    Three passes of torch's vector library: a third of the time of torch.softmax, which
    has an exponential function of its own.
    """
    scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return scores.sum(-1, keepdim=True)


def add_positions(scores, by_distance, start, left, stairs):
    """Add the position terms to a block of scores, in place.

    Arguments
    ---------
    scores : torch.Tensor
        [N, t, T], contiguous, of the queries from frame ``start`` on.
    by_distance : torch.Tensor
        [N, t, left + 1 + right], 0 at the first distance.
    start, left : int
        First query; frames back that have a vector of their own.
    stairs : torch.Tensor
        [t, t] or more, 1 on and above the diagonal, else 0.
    """
    rows, frames = scores.shape[1:]
    right = by_distance.shape[2] - 1 - left
    # the queries whose band lies within the recording
    low = min(max(left - start, 0), rows)
    high = min(max(frames - right - start, low), rows)
    for a, b in ((0, low), (high, rows)):
        if a < b:
            _add_at_an_end(scores[:, a:b], by_distance[:, a:b], start + a, left)
    if low < high:
        inside = scores[:, low:high], by_distance[:, low:high], start + low
        _add_inside(*inside, left, stairs)


def _add_at_an_end(scores, by_distance, start, left):
    stop, frames = start + scores.shape[1], scores.shape[2]
    last = min(frames, stop + by_distance.shape[2] - 1 - left)
    scores[:, :, :last] += gather_distances(by_distance, left, start, 0, last)
    scores[:, :, last:] += by_distance[:, :, -1:]


def _add_inside(scores, by_distance, start, left, stairs):
    count, rows, distances = by_distance.shape
    far, near, one = scores.stride()
    # one row further down, the band begins one column further right
    strides = (far, near + one, one)
    place = scores.storage_offset() + (start - left) * one
    scores.as_strided((count, rows, distances), strides, place).add_(by_distance)
    beyond = by_distance[:, :, -1:]
    first = start + distances - left  # the first column right of the first row's band
    last = first + rows - 1  # and right of all bands
    scores[:, :, first:last].addcmul_(beyond, stairs[:rows, : rows - 1])
    scores[:, :, last:] += beyond


def gather_distances(by_distance, left, start, first, last):
    """The terms of queries from frame ``start`` on and of keys ``first`` to ``last``.

    [..., t, left + 1 + right] → [..., t, last − first].
    """
    device = by_distance.device
    mine = torch.arange(by_distance.shape[-2], device=device).unsqueeze(1) + start
    theirs = torch.arange(first, last, device=device)
    distance = (theirs - mine + left).clamp(0, by_distance.shape[-1] - 1)
    return by_distance.gather(-1, distance.expand(*by_distance.shape[:-2], -1, -1))
