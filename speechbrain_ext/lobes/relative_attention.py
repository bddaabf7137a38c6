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
  in the processor's cache.
"""

import torch
import torch.nn.functional as F

# Queries attended at once: [B, H, block, T] scores bound the memory of long recordings.
FUSED_BLOCK = 512
BANDED_BLOCK = 64


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
    table = table - table[:1]  # softmax does not see what is left of the band
    keys = key.flatten(0, 1).transpose(1, 2)  # [B·H, d, T]
    values = value.flatten(0, 1)
    context = query.new_empty(batch, frames, heads, size)
    for start in range(0, frames, BANDED_BLOCK):
        queries = (query[:, :, start : start + BANDED_BLOCK] * size**-0.5).flatten(0, 1)
        scores = torch.bmm(queries, keys)  # [B·H, t, T]
        add_band(scores, torch.matmul(queries, table.t()), start, left)
        if padding is not None:
            by_recording = scores.unflatten(0, (batch, heads))
            by_recording.masked_fill_(padding[:, None, None, :], float("-inf"))
        block = torch.bmm(torch.softmax(scores, dim=-1), values)
        stop = start + block.shape[1]
        context[:, start:stop] = block.unflatten(0, (batch, heads)).transpose(1, 2)
    return context.flatten(2)


def add_band(scores, by_distance, start, left):
    """Add the position terms to a block of scores, in place.

    Arguments
    ---------
    scores : torch.Tensor
        [N, t, T], of the queries from frame ``start`` on.
    by_distance : torch.Tensor
        [N, t, left + 1 + right], 0 at the first distance.
    start, left : int
        First query; frames back that have a vector of their own.
    """
    stop, frames = start + scores.shape[1], scores.shape[2]
    right = by_distance.shape[2] - 1 - left
    first, last = max(0, start - left), min(frames, stop + right)
    band = gather_distances(by_distance, left, start, first, last)
    scores[:, :, first:last] += band
    if last < frames:
        scores[:, :, last:] += by_distance[:, :, -1:]


def gather_distances(by_distance, left, start, first, last):
    """The terms of queries from frame ``start`` on and of keys ``first`` to ``last``.

    [..., t, left + 1 + right] → [..., t, last − first].
    """
    device = by_distance.device
    mine = torch.arange(by_distance.shape[-2], device=device).unsqueeze(1) + start
    theirs = torch.arange(first, last, device=device)
    distance = (theirs - mine + left).clamp(0, by_distance.shape[-1] - 1)
    return by_distance.gather(-1, distance.expand(*by_distance.shape[:-2], -1, -1))
