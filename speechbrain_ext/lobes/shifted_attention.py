"""Transformer-XL's relative positions as a bias on attention, without [T, T, d].

    y_i = Σ_j softmax_j(((q_i + u)·k_j + (q_i + v)·p[i − j]) / √d) v_j

Dai et al. 2019 (arXiv 1901.02860, section 3.3): u and v are biases of every head, p a
linear map of sinusoids. The products of a query with all distances are one row of a
matrix, from which query i takes T values that begin one column further left than those
of query i − 1. A row one column longer is then the same place in the next row: rows of
W + 1 numbers in memory, read as rows of W, are shifted already. So the shift is a view.
"""

import math

import torch


def distances(frames, width, like):
    """Sinusoids of the distances T … 1 − T: [2T, width], in ``like``'s kind.

    Row m is that of i − j = T − m: sines in even columns, cosines in odd ones. The
    first row is for the shift alone.
    """
    places = frames - torch.arange(2 * frames, device=like.device, dtype=torch.float32)
    steps = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    angles = places.unsqueeze(1) * torch.exp(steps * -(math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)


class ShiftedBias:
    """(q_i + v)·p[i − j] / √d, for :func:`~speechbrain_ext.lobes.attention.attend`.

    Arguments
    ---------
    query : torch.Tensor
        q + v, [B, H, T, d].
    positions : torch.Tensor
        p of :func:`distances`, [H, 2T, d].
    """

    def __init__(self, query, positions):
        self.query = query * query.shape[-1] ** -0.5
        self.positions = positions.transpose(1, 2)  # [H, d, 2T]
        self.memory = query.new_empty(0)

    def rows(self, rows):
        """Of the queries ``rows``, a slice → [B, H, t, T]."""
        frames = self.query.shape[2]
        stop = frames if rows.stop is None else min(rows.stop, frames)
        seen = self.positions[..., frames - stop : 2 * frames - rows.start]
        products = torch.matmul(self.query[:, :, rows], seen)
        return _shifted(products, frames).contiguous()

    def write(self, scores, item, heads, rows):
        """Put that of one utterance and some heads into ``scores``, [N, t, T]."""
        frames = self.query.shape[2]
        seen = self.positions[heads, :, frames - rows.stop : 2 * frames - rows.start]
        shape = (*scores.shape[:2], seen.shape[2])
        if self.memory.numel() < math.prod(shape):
            self.memory = scores.new_empty(math.prod(shape))
        products = self.memory[: math.prod(shape)].view(shape)
        torch.bmm(self.query[item, heads, rows], seen, out=products)
        scores.copy_(_shifted(products, frames))

    def largest(self):
        """The largest absolute value of every utterance and head, or more: [B, H]."""
        positions = torch.linalg.vector_norm(self.positions, dim=1).amax(-1)
        return torch.linalg.vector_norm(self.query, dim=-1).amax(-1) * positions


def _shifted(products, frames):
    """A view in which row r begins one column further left than row r − 1.

    [..., n, T + n], columns of the distances of the last query from T on the left (the
    first column is of no use) → [..., n, T].
    """
    rows, width = products.shape[-2:]
    flat = products.flatten(-2)[..., rows : rows * width]
    return flat.unflatten(-1, (rows, width - 1))[..., :frames]
