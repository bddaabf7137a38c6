"""A layer over a fixed number W of frames, for recordings of any number c.

The rule (``windows``): as few windows of W frames as cover the recording, spaced evenly
from its first frame to its last::

    n = ⌈c / W⌉,   s_i = ⌊i (c − W) / (n − 1)⌋,   i = 0 … n − 1

Where two windows overlap, and never more do, they are faded into each other: each
counts by the distance to its nearer end, min(p + 1, W − p) at its frame p. Of c = W
frames that is the layer itself. A recording shorter than W is repeated up to W frames,
as SV-Mixer's authors do with short files. Cost grows with c in steps, linear in it.

The other rule (``resampled``) squeezes the recording to W frames, linearly, and
stretches what comes out: one window whatever c is. Its W frames are no longer 20 ms.

What else asks how long a row is, halving and doubling of the rate, is here too.
"""

import functools

import torch

from speechbrain_ext.utils.errors import InputError

RULES = ("windows", "resampled")


class FramePlan:
    """Where the frames of a batch are, computed once for all layers.

    Arguments
    ---------
    counts : torch.Tensor
        [B], valid frames of every row, int64.
    total : int
        T', frames of the batch.
    window : int
        W.
    rule : str
        One of :data:`RULES`.
    padding : torch.Tensor, optional
        [B, T'], True in the padding; None where nothing is padded.
    """

    def __init__(self, counts, total, window, rule="windows", padding=None):
        if rule not in RULES:
            raise InputError(f"any_length: {rule!r}, expected one of {RULES}")
        self.counts, self.total, self.window = counts, total, window
        self.rule, self.padding = rule, padding
        captured = torch.compiler.is_compiling()
        self.exact = not captured and padding is None and total == window

    def cleared(self, x):
        """[B, T', C] with zeros behind the end of each row."""
        if self.padding is None:
            return x
        return x.masked_fill(self.padding.unsqueeze(-1), 0.0)

    # -- a layer over W frames -----------------------------------------------------

    def applied(self, layer, x):
        """``layer`` of [N, W, C] → the same, on recordings [B, T', C]."""
        if self.exact:
            return layer(x)
        if self.rule == "resampled":
            return interpolated(layer(interpolated(x, *self._squeeze)), *self._stretch)
        rows, frames = self._windows
        return self._joined(layer(x[rows, frames]))

    @functools.cached_property
    def _number(self):
        """Windows of every row: [B]."""
        return (self.counts + self.window - 1) // self.window

    def _start(self, number):
        """Where windows [B, …] begin."""
        shape = [-1] + [1] * (number.dim() - 1)
        room = (self.counts - self.window).clamp(min=0).view(shape)
        return number * room // (self._number - 1).clamp(min=1).view(shape)

    @functools.cached_property
    def _grid(self):
        """Row and number of all windows [N], and that of each row's first [B]."""
        batch, device = self.counts.shape[0], self.counts.device
        most = (self.total + self.window - 1) // self.window
        rows = torch.arange(batch, device=device).unsqueeze(1).expand(batch, most)
        numbers = torch.arange(most, device=device).expand(batch, most)
        # of rows of one length there are none too many; a graph leaves them unused
        if self.padding is None or torch.compiler.is_compiling():
            first = torch.arange(batch, device=device) * most
            return rows.flatten(), numbers.flatten(), first
        there = numbers < self._number.unsqueeze(1)
        return rows[there], numbers[there], self._number.cumsum(0) - self._number

    @functools.cached_property
    def _windows(self):
        """Row and frame of every frame of the windows: [N, 1] and [N, W]."""
        rows, numbers, _ = self._grid
        counts = self.counts[rows].unsqueeze(1)
        room = (self.counts - self.window).clamp(min=0)[rows]
        starts = numbers * room // (self._number[rows] - 1).clamp(min=1)
        places = torch.arange(self.window, device=rows.device)
        return rows.unsqueeze(1), (starts.unsqueeze(1) + places) % counts

    @functools.cached_property
    def _joints(self):
        """Window and frame in it of the two that a frame is in, and the later's share.

        [B, T'] each, the share [B, T', 1].
        """
        frames = torch.arange(self.total, device=self.counts.device)
        frames = frames.expand(self.counts.shape[0], self.total)
        room = (self.counts - self.window).clamp(min=1).unsqueeze(1)
        last = (self._number - 1).unsqueeze(1)
        # the last window that begins at t or before: s_i ≤ t ⇔ i < (t + 1)(n − 1) / D
        later = (((frames + 1) * last + room - 1) // room - 1).clamp(min=0)
        later = torch.minimum(later, last)
        earlier = (later - 1).clamp(min=0)
        ahead = (frames - self._start(later)).clamp(max=self.window - 1)
        behind = frames - self._start(earlier)
        covers = behind < self.window
        behind = behind.clamp(max=self.window - 1)
        shares = [torch.minimum(p + 1, self.window - p) for p in (ahead, behind)]
        rest = torch.where(covers & (earlier < later), shares[1], 0)
        share = (shares[0] / (shares[0] + rest)).unsqueeze(-1)
        first = self._grid[2].unsqueeze(1)
        return first + later, ahead, first + earlier, behind, share

    def _joined(self, y):
        """Windows [N, W, C] → [B, T', C]."""
        later, ahead, earlier, behind, share = self._joints
        return torch.lerp(y[earlier, behind], y[later, ahead], share.to(y.dtype))

    @functools.cached_property
    def _squeeze(self):
        counts = torch.full_like(self.counts, self.window)
        return neighbours(self.counts, counts, self.window)

    @functools.cached_property
    def _stretch(self):
        counts = torch.full_like(self.counts, self.window)
        return neighbours(counts, self.counts, self.total)

    # -- half the rate -------------------------------------------------------------

    def halved(self, x):
        """Means of neighbours: [B, T', C] → [B, T' // 2, C]; an odd last one is none's.

        What lies behind the end of a row means nothing.
        """
        if torch.compiler.is_compiling():  # a length that a graph can follow
            first = 2 * torch.arange(self.total // 2, device=x.device)
            return (x[:, first] + x[:, first + 1]) / 2
        return x[:, : self.total // 2 * 2].unflatten(1, (-1, 2)).mean(2)

    def doubled(self, x):
        """[B, T' // 2, C] → [B, T', C], linearly between the centres of the pairs."""
        return interpolated(x, *self._doubling)

    @functools.cached_property
    def _doubling(self):
        return neighbours(self.counts // 2, self.counts, self.total)


def neighbours(counts_in, counts_out, total):
    """For linear interpolation of rows from some frames to others, corners apart.

    Of frame t of m from n it is at (t + ½) n / m − ½, no less than 0, as in torch with
    ``align_corners=False``. ``counts_in``, ``counts_out`` [B]; ``total`` frames come
    out. → frame before and behind [B, total], share of the latter [B, total, 1].
    """
    frames = torch.arange(total, device=counts_in.device, dtype=torch.float32)
    ratio = (counts_in.float() / counts_out.float()).unsqueeze(1)
    places = ((frames + 0.5) * ratio - 0.5).clamp(min=0.0)
    last = (counts_in - 1).clamp(min=0).unsqueeze(1)
    before = torch.minimum(places.long(), last)
    behind = torch.minimum(before + 1, last)
    return before, behind, (places - before).clamp(max=1.0).unsqueeze(-1)


def interpolated(x, before, behind, share):
    """Rows [B, T, C] at places of :func:`neighbours` → [B, T', C]."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return torch.lerp(x[rows, before], x[rows, behind], share.to(x.dtype))
