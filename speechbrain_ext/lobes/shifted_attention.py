"""Softmax attention with Transformer-XL's relative positions, without [T, T, d].

    y_i = Σ_j softmax_j(((q_i + u)·k_j + (q_i + v)·p[i − j]) / √d) v_j

Dai et al. 2019 (arXiv 1901.02860, section 3.3): u and v are biases of every head, p a
linear map of sinusoids. The products of a query with all distances are one row of a
matrix, from which query i takes T values that begin one column further left than those
of query i − 1. A row one column longer is then the same place in the next row: rows of
W + 1 numbers in memory, read as rows of W, are shifted already. So the shift is a view.
Two ways to the same result:

- :func:`fused` gives the shifted products to torch's fused attention as its bias. It
  has a gradient and runs on every device;
- :func:`blocked` is for inference on CPUs: one recording at a time without its padding,
  block by block, the product of queries and keys added to the view where it is written.
"""

import math

import torch
import torch.nn.functional as F

from speechbrain_ext.lobes.cpu_inference import inference_on_cpu
from speechbrain_ext.lobes.relative_attention import SMALL_SCORE, exponentials_

# Queries attended at once: [B, H, block, T] scores bound the memory of long recordings.
FUSED_BLOCK = 512
BLOCK = 96
SCORES = 2**18  # made at once, of two heads or more: they stay in the cache


def distances(frames, width, like):
    """Sinusoids of the distances T … 1 − T: [2T, width], in ``like``'s kind.

    Row m is that of i − j = T − m: sines in even columns, cosines in odd ones. The
    first row is for the shift alone.
    """
    places = frames - torch.arange(2 * frames, device=like.device, dtype=torch.float32)
    steps = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    angles = places.unsqueeze(1) * torch.exp(steps * -(math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)


def shifted(products, frames):
    """A view in which row r begins one column further left than row r − 1.

    [..., n, T + n], columns of the distances of the last query from T on the left (the
    first column is of no use) → [..., n, T].
    """
    rows, width = products.shape[-2:]
    flat = products.flatten(-2)[..., rows : rows * width]
    return flat.unflatten(-1, (rows, width - 1))[..., :frames]


def attend(query, key, value, positions, bias_u, bias_v, padding=None, dropout=0.0):
    """Attention of all queries: [B, H, T, d] each → [B, T, H·d].

    ``positions`` [H, 2T, d] has p of :func:`distances`; ``bias_u``, ``bias_v`` [H, d];
    ``padding`` [B, T] is True where to look away, None where nothing is padded;
    ``dropout`` is of the attention weights.
    """
    inputs = (query, key, value, positions, bias_u, bias_v, padding)
    if inference_on_cpu(query) and not dropout:
        return blocked(*inputs)
    return fused(*inputs, dropout)


def fused(
    query,
    key,
    value,
    positions,
    bias_u,
    bias_v,
    padding=None,
    dropout=0.0,
    block=FUSED_BLOCK,
):
    """With torch's fused attention: see :func:`attend`.

    ``block`` queries at once; None takes all, whatever their number (for ONNX).
    """
    frames, scale = query.shape[2], query.shape[-1] ** -0.5
    content = query + bias_u.unsqueeze(1)
    place = (query + bias_v.unsqueeze(1)) * scale
    blocks = []
    for start in [0] if block is None else range(0, frames, block):
        stop = frames if block is None else min(start + block, frames)
        seen = positions[:, frames - stop : 2 * frames - start]
        products = torch.matmul(place[:, :, start:stop], seen.transpose(1, 2))
        bias = shifted(products, frames).contiguous()
        if padding is not None:
            bias = bias.masked_fill(padding[:, None, None, :], float("-inf"))
        blocks.append(
            F.scaled_dot_product_attention(
                content[:, :, start:stop], key, value, bias, dropout
            )
        )
    context = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
    return context.transpose(1, 2).flatten(2)


def blocked(query, key, value, positions, bias_u, bias_v, padding=None):
    """Block by block, in memory that stays in the cache: see :func:`attend`.

    The padding of a recording comes out as 0.
    """
    batch, heads, longest, size = query.shape
    valid = [longest] * batch if padding is None else (~padding).sum(1).tolist()
    context = query.new_zeros(batch, longest, heads, size)
    products = query.new_empty(0)
    for item, frames in enumerate(valid):
        rows = min(frames, BLOCK)
        together = min(heads, max(2, SCORES // max(1, rows * frames)))
        needed = together * rows * (2 * frames + rows)
        if products.numel() < needed:
            products = query.new_empty(needed)
        for first in range(0, heads, together):
            some = slice(first, first + together)
            queries, keys, values = (
                x[item, some, :frames] for x in (query, key, value)
            )
            found = _attended(
                queries,
                keys,
                values.contiguous(),
                positions[some, longest - frames : longest + frames],
                bias_u[some],
                bias_v[some],
                rows,
                products,
            )
            for block, part in found:
                context[item, block, some] = part.transpose(0, 1)
    return context.flatten(2)


def _attended(query, key, value, positions, bias_u, bias_v, rows, memory):
    """A few heads of one recording [N, T, d]: yields (block of T, [N, t, d])."""
    heads, frames, size = query.shape
    scale = size**-0.5
    content = (query + bias_u.unsqueeze(1)).mul_(scale)
    place = (query + bias_v.unsqueeze(1)).mul_(scale)
    keys = key.transpose(1, 2)
    small = frames > 2 * BLOCK and scores_are_small(content, key, place, positions)
    for start in range(0, frames, rows):
        stop = min(start + rows, frames)
        seen = positions[:, frames - stop : 2 * frames - start].transpose(1, 2)
        count, width = stop - start, seen.shape[2]
        end = heads * count * width
        products = memory[:end].view(heads, count, width)
        weights = memory[end : end + heads * count * frames]
        weights = weights.view(heads, count, frames)
        torch.bmm(place[:, start:stop], seen, out=products)
        view = shifted(products, frames)
        torch.baddbmm(view, content[:, start:stop], keys, out=weights)
        total = exponentials_(weights, small)
        yield slice(start, stop), torch.bmm(weights, value).div_(total)


def scores_are_small(content, key, place, positions):
    """Whether no score can leave ±60: |q + u| |k| + |q + v| |p|, scaled, [N, T, d].

    Then the largest score of a query need not be taken off (``exponentials_``).
    """
    largest = [
        torch.linalg.vector_norm(x, dim=-1).amax(-1)
        for x in (content, key, place, positions)
    ]
    if content.dtype not in (torch.float32, torch.float64):
        return False
    bound = largest[0] * largest[1] + largest[2] * largest[3]
    return bool((bound <= SMALL_SCORE).all())
