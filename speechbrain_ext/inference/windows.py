"""Long recordings as windows, and what their embeddings become.

A recording of F samples, longer than the window of W samples, is cut at 0, H, 2H, …
while a window fits, and a last one ends where the recording ends. Its embedding is the
mean of those of its windows as they are::

    e = 1/K Σ_k e_k

They are not scaled to length 1 before. The magnitude of an embedding tells how sure the
model is, as a rule: a window of little speech counts less, and the mean keeps
a magnitude that the calibration knows. Enrolment averages recordings in the same way
(:func:`~speechbrain_ext.scoring.enrolment.average_enrolment`). Windows without any
sound are left out. A recording of one window or less is embedded whole: K = 1.
"""

from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """A window, or the whole, of recording number ``row``.

    ``start`` and ``frames`` are samples at the recording's own rate.
    """

    row: int
    start: int
    frames: int
    seconds: float


def pieces_of(row, recording, rules):
    """Where the windows of one recording lie.

    Arguments
    ---------
    row : int
        Its number.
    recording : Recording
        Its frames and rate.
    rules : Rules
        Window and hop in seconds.

    Returns
    -------
    list of Piece
    """
    frames, rate = recording.frames, recording.sample_rate
    if recording.seconds <= rules.window_seconds:
        return [Piece(row, 0, frames, recording.seconds)]
    window = round(rules.window_seconds * rate)
    hop = max(1, round(rules.hop_seconds * rate))
    starts = [*range(0, frames - window, hop), frames - window]
    return [Piece(row, start, window, rules.window_seconds) for start in starts]


class Means:
    """Mean embedding of each recording, gathered piece by piece in any order.

    Arguments
    ---------
    size : int
        N recordings.
    width : int
        E values in an embedding.
    """

    def __init__(self, size, width):
        self._sums = np.zeros((size, width), dtype=np.float32)
        self._counts = np.zeros(size, dtype=np.int64)

    def add(self, rows, vectors):
        """Embeddings [B, E] of pieces of some recordings [B]."""
        np.add.at(self._sums, rows, vectors)
        np.add.at(self._counts, rows, 1)

    def found(self):
        """Whether each recording has any → bool [N]."""
        return self._counts > 0

    def collect(self):
        """float32 [N, E]; NaN for a recording of which there is no piece."""
        with np.errstate(invalid="ignore"):
            return self._sums / self._counts[:, None].astype(np.float32)
