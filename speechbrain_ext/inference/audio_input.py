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

Recordings as users have them: any rate, any number of channels, some of them bad.

Channels are averaged, then the rate is converted by torchaudio's windowed sinc filter.
The ratio of the rates is taken as a fraction with a denominator of at most 1000: exact
for every rate in use, and within 0.05 %, a hundredth of a semitone, for odd ones such
as 15,999 Hz, whose exact filter would fill gigabytes.
"""

import functools
import logging
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torchaudio.transforms import Resample

from speechbrain_ext.data.audio import SAMPLE_RATE, read_header, read_mono
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map


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


logger = logging.getLogger(__name__)

LOWEST_RATE, HIGHEST_RATE = 4000, 768_000
HEADER_THREADS = 16
FEW = 64  # files whose headers are read without threads and progress bar


class Recording(NamedTuple):
    """A file that looks sound: ``frames`` samples per channel at ``sample_rate`` Hz."""

    path: str
    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self):
        """Its length."""
        return self.frames / self.sample_rate

    @property
    def fits(self):
        """Whether it is as the model wants it."""
        return self.sample_rate == SAMPLE_RATE and self.channels == 1


def inspect_files(paths, min_seconds):
    """Read the headers of many files.

    Arguments
    ---------
    paths : list of str
        N files.
    min_seconds : float
        Shorter recordings are bad.

    Returns
    -------
    list
        N times a Recording, or the InputError that says what is wrong.
    """

    def look(path):
        try:
            return inspect_file(path, min_seconds)
        except InputError as error:
            return error

    if len(paths) < FEW:
        return [look(path) for path in paths]
    return parallel_map(look, paths, HEADER_THREADS, "reading headers", "file")


def inspect_file(path, min_seconds):
    """Read the header of one file.

    Raises
    ------
    InputError
        Missing, empty, truncated or not sound; a rate out of range; too short.
    """
    recording = Recording(str(path), *read_header(path))
    if not LOWEST_RATE <= recording.sample_rate <= HIGHEST_RATE:
        raise InputError(
            f"{path}: {recording.sample_rate} Hz, expected {LOWEST_RATE} to "
            f"{HIGHEST_RATE} Hz"
        )
    if recording.seconds < min_seconds:
        raise InputError(
            f"{path}: {recording.frames} samples, {recording.seconds:.4g} s, expected "
            f"at least {min_seconds:g} s of speech"
        )
    return recording


def warn_of_conversions(recordings):
    """One warning for all recordings that are converted: the rates found and used."""
    kinds = Counter((r.sample_rate, r.channels) for r in recordings if not r.fits)
    if not kinds:
        return
    first = next(r.path for r in recordings if not r.fits)
    found = ", ".join(
        f"{count} of {rate} Hz with {channels} channel(s)"
        for (rate, channels), count in kinds.most_common()
    )
    logger.warning(
        "%d of %d recordings are converted to %d Hz with 1 channel: %s; first %s",
        *(sum(kinds.values()), len(recordings), SAMPLE_RATE, found, first),
    )


def read_piece(recording, start=0, frames=-1):
    """Samples of a recording as the model wants them.

    Arguments
    ---------
    recording : Recording
    start, frames : int
        Samples at the recording's own rate; -1 reads to the end.

    Returns
    -------
    torch.Tensor or None
        float32 [T] at 16 kHz; None where there is no sound. A constant signal is
        silent too: the features remove it.

    Raises
    ------
    InputError
        As :func:`~speechbrain_ext.data.audio.read_mono`.
    """
    wav, rate = read_mono(recording.path, start, frames)
    if wav.max() == wav.min():
        return None
    return resampled(torch.from_numpy(np.ascontiguousarray(wav)), rate)


def resampled(wav, rate):
    """float32 [T] at ``rate`` Hz → [ceil(T · 16000 / rate)] at 16 kHz."""
    return wav if rate == SAMPLE_RATE else _resampler(rate)(wav)


@functools.lru_cache(8)
def _resampler(rate):
    ratio = Fraction(rate, SAMPLE_RATE).limit_denominator(1000)
    return Resample(ratio.numerator, ratio.denominator)
