"""Softmax attention, plain or with a bias on its scores.

    y_t = Σ_j softmax_j(q_t·k_j / √d + b_tj) v_j

Vaswani et al. 2017 (arXiv 1706.03762, equation 1). The bias is a tensor, or an object
that gives it block by block, as :class:`ToeplitzBias` does, so that no [T, T] tensor of
a long recording is held. Two ways to the same result:

- :func:`fused` is torch's fused attention, a block of queries at a time where there is
  a bias. It has a gradient, runs on every device, and is the faster one of the two
  without a bias;
- :func:`blocked` is for a bias in inference on CPUs. Scores are made in blocks that
  stay in the processor's cache, the product added to the bias where it lies.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from speechbrain_ext.lobes.cpu_inference import inference_on_cpu

# Queries attended at once: [B, H, block, T] scores bound the memory of long recordings.
FUSED_BLOCK = 512
CPU_BLOCK = 256
# Made at once, of two heads or more: they stay in the cache. A product of two matrices
# or more is split between threads by matrix.
CPU_SCORES, CPU_HEADS = 2**20, 2
GPU_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
SMALL_SCORE = 60.0  # e^60 is 1e26: float32 holds sums of them, and e^-60 as well


def attend(query, key, value, padding=None, dropout=0.0, bias=None):
    """Attention of all queries [B, H, T, d] to keys [B, H, S, d] → [B, T, H·d].

    Arguments
    ---------
    query, key, value : torch.Tensor
        Not scaled: the scores are divided by √d here.
    padding : torch.Tensor, optional
        [B, S], True where to look away; None where nothing is padded.
    dropout : float
        Of the attention weights.
    bias : torch.Tensor or object, optional
        Added to the scores: a tensor that broadcasts to [B, H, T, S], or an object with
        the methods of :class:`ToeplitzBias`.
    """
    wide = query.dtype in (torch.float32, torch.float64)
    if bias is not None and wide and not dropout and inference_on_cpu(query):
        return blocked(query, key, value, padding, bias=bias)
    return fused(query, key, value, padding, dropout, bias)


def fused(query, key, value, padding=None, dropout=0.0, bias=None, block=FUSED_BLOCK):
    """With torch's fused attention: see :func:`attend`.

    ``block`` queries at once where there is a bias; None takes all, whatever their
    number (for ONNX).
    """
    bias = _as_object(bias)
    look = None if padding is None else ~padding[:, None, None, :]
    if bias is None:
        context = by_torch(query, key, value, look, dropout)
        return context.transpose(1, 2).flatten(2)
    frames, blocks = query.shape[2], []
    starts = [0] if block is None else range(0, frames, block)
    for start in starts:
        rows = slice(start, None if block is None else start + block)
        mask = bias.rows(rows).to(query.dtype)
        if look is not None:
            mask = mask.masked_fill(~look, float("-inf"))
        queries = query[:, :, rows]
        blocks.append(by_torch(queries, key, value, mask, dropout))
    context = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
    return context.transpose(1, 2).flatten(2)


def by_torch(query, key, value, bias=None, dropout=0.0):
    """torch's attention; on a GPU without cuDNN's, which plans every shape anew.

    Half a second each on some GPUs, and batches of whole recordings have a thousand.
    """
    attention = F.scaled_dot_product_attention
    if not query.is_cuda:
        return attention(query, key, value, bias, dropout)
    with sdpa_kernel(GPU_BACKENDS):
        return attention(query, key, value, bias, dropout)


def blocked(query, key, value, padding=None, *, bias):
    """Block by block in the cache: see :func:`attend`."""
    bias = _as_object(bias)
    batch, heads, frames, size = query.shape
    backwards = getattr(bias, "backwards", False)
    small = _small(query, key, padding, bias)
    seen = key.shape[2]
    rows, together = cpu_blocks(heads, frames, seen)
    scores = query.new_empty(together * rows * seen)
    context = query.new_empty(batch, frames, heads, size)
    for item, first in itertools.product(range(batch), range(0, heads, together)):
        some = slice(first, min(first + together, heads))
        queries, keys, values = query[item, some], key[item, some], value[item, some]
        hidden = None if padding is None else padding[item]
        if backwards:
            keys, values = keys.flip(1), values.flip(1)
            hidden = hidden if hidden is None else hidden.flip(0)
        queries = queries * size**-0.5
        keys, values = keys.contiguous().transpose(1, 2), values.contiguous()
        bounded = small is not None and bool(small[item, some].all())
        for start in range(0, frames, rows):
            block = slice(start, min(start + rows, frames))
            shape = (len(queries), block.stop - start, seen)
            weights = scores[: math.prod(shape)].view(shape)
            bias.write(weights, item, some, block)
            torch.baddbmm(weights, queries[:, block], keys, out=weights)
            if hidden is not None:
                weights.masked_fill_(hidden, float("-inf"))
            total = exponentials_(weights, bounded)
            found = torch.bmm(weights, values).div_(total)
            context[item, block, some] = found.transpose(0, 1)
    return context.flatten(2)


def cpu_blocks(heads, frames, seen):
    """How many queries, and how many heads, have their scores made at once."""
    rows = min(frames, CPU_BLOCK)
    return rows, min(heads, max(CPU_HEADS, CPU_SCORES // (rows * seen)))


def _as_object(bias):
    return TensorBias(bias) if isinstance(bias, torch.Tensor) else bias


def _small(query, key, padding, bias):
    """:func:`scores_are_small` with what the bias adds at most; None: not known."""
    largest = getattr(bias, "largest", None)
    if largest is None:
        return None
    return scores_are_small(query, key, padding=padding, largest=largest())


def scores_are_small(query, key, table=None, padding=None, largest=0.0):
    """Where no score can leave ±60: |q·(k/√d + e)| + |b| ≤ |q| (|k|/√d + |e|) + |b|.

    ``query``, ``key`` [B, H, T, d], ``table`` [d, distances], scaled, ``largest`` |b|,
    [B, H] → [B, H] of bool. Sums of such exponentials are exact in float32, without the
    largest score of every query taken off first, a quarter of the work beside the
    products. With two blocks of queries or fewer the bound takes as long as it spares:
    None then.
    """
    wide = query.dtype in (torch.float32, torch.float64)
    if not wide or query.shape[2] <= 2 * CPU_BLOCK:
        return None
    queries, keys = (torch.linalg.vector_norm(x, dim=-1) for x in (query, key))
    if padding is not None:
        keys = keys.masked_fill(padding.unsqueeze(1), 0.0)
    keys = keys.amax(-1) * query.shape[-1] ** -0.5
    if table is not None:
        keys = keys + torch.linalg.vector_norm(table, dim=0).max()
    return queries.amax(-1) * keys + largest <= SMALL_SCORE


def exponentials_(scores, small):
    """Softmax without its division, in place → sums [..., 1].

    Three passes of torch's vector library, or two where all scores are ``small``: a
    third of the time of torch.softmax, which has an exponential function of its own.
    """
    if not small:
        scores.sub_(scores.amax(-1, keepdim=True))
    return scores.exp_().sum(-1, keepdim=True)


class TensorBias:
    """A bias that is there already: it broadcasts to [B, H, T, S]."""

    def __init__(self, bias):
        self.bias = bias[(None,) * (4 - bias.dim())]

    def rows(self, rows):
        """Of the queries ``rows``, a slice: broadcasts to [B, H, t, S]."""
        return self.bias if self.bias.shape[2] == 1 else self.bias[:, :, rows]

    def write(self, scores, item, heads, rows):
        """Put that of one utterance and some heads into ``scores``, [N, t, S]."""
        bias = self.rows(rows)
        bias = bias[item if len(bias) > 1 else 0]
        scores.copy_(bias[heads] if len(bias) > 1 else bias)


class ToeplitzBias:
    """A bias by distance times a factor of every query: b_tj = g_t w[j − t].

    Arguments
    ---------
    by_distance : torch.Tensor
        w, [H, 2T−1]: of the distances j − t from 1−T to T−1.
    gate : torch.Tensor
        g, [B, H, T].
    """

    # w laid out from the far end: with the keys in reverse order, row t is w from t on,
    # so a view with strides 1 and 1 is the whole matrix, and w stays in the cache
    backwards = True

    def __init__(self, by_distance, gate):
        self.by_distance, self.gate = by_distance, gate
        self.reversed = None

    def rows(self, rows):
        """Of the queries ``rows``, a slice → [B, H, t, T]."""
        frames = self.gate.shape[2]
        gate = self.gate[:, :, rows].unsqueeze(-1)
        if self.by_distance.requires_grad:
            # the gradient of an index would collide T times, that of windows is a sum
            first, stop, _ = rows.indices(frames)
            windows = self.by_distance.unfold(-1, frames, 1)
            return gate * windows[:, frames - stop : frames - first].flip(1)
        place = torch.arange(frames, device=self.gate.device)
        distance = place - place[rows].unsqueeze(1) + frames - 1
        return gate * self.by_distance[:, distance]

    def write(self, scores, item, heads, rows):
        """Put that of one utterance and some heads into ``scores``, keys reversed."""
        if self.reversed is None:
            self.reversed = self.by_distance.flip(1).contiguous()
        steps = self.reversed[heads, rows.start :]
        steps = steps.as_strided(scores.shape, (steps.stride(0), 1, 1))
        torch.mul(self.gate[item, heads, rows].unsqueeze(-1), steps, out=scores)

    def largest(self):
        """The largest absolute value of every utterance and head, or more: [B, H]."""
        return self.gate.abs().amax(-1) * self.by_distance.abs().amax(-1)
