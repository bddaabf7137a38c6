"""Recordings as users have them: any rate, any number of channels, long, or bad.

Channels are averaged, then the rate is converted by torchaudio's windowed sinc filter.
The ratio of the rates is taken as a fraction with a denominator of at most 1000: exact
for every rate in use, and within 0.05 %, a hundredth of a semitone, for odd ones such
as 15,999 Hz, whose exact filter would fill gigabytes.

A recording of F samples, longer than the window of W samples, is cut at 0, H, 2H, …
while a window fits, and a last window ends where the recording ends.
"""

import functools
import logging
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torchaudio.transforms import Resample

from speechbrain_ext.data.audio import (
    SAMPLE_RATE,
    inspect,
    is_joined,
    parts_of,
    read_audio,
    read_mono,
    warn_of_doubts,
)
from speechbrain_ext.pretrained import INFERENCE
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

LOWEST_RATE, HIGHEST_RATE = 4000, 768_000
HEADER_THREADS = 16
SILENT = "silent, expected speech"
FEW = 64  # files whose headers are read without threads and progress bar


class ChunkingConfig(NamedTuple):
    """How recordings are treated; all in seconds.

    Attributes
    ----------
    min_seconds : float
        Shorter ones are refused.
    window_seconds, hop_seconds : float
        Longer ones than a window are embedded in windows that begin every hop.
    """

    min_seconds: float = INFERENCE["min_seconds"]
    window_seconds: float = INFERENCE["window_seconds"]
    hop_seconds: float = INFERENCE["hop_seconds"]

    @classmethod
    def of(cls, hparams):
        """From keys of a model's ``hyperparams.yaml``; absent ones have defaults."""
        return cls(**{name: hparams.get(name, INFERENCE[name]) for name in cls._fields})

    def changed(self, window_seconds=None, hop_seconds=None):
        """The same with other windows; a new window alone is its own hop."""
        if window_seconds is not None and hop_seconds is None:
            hop_seconds = window_seconds
        changes = {"window_seconds": window_seconds, "hop_seconds": hop_seconds}
        return self._replace(**{k: v for k, v in changes.items() if v is not None})

    def checked(self, min_samples):
        """The same, or InputError where a value is out of range.

        ``min_samples``: the fewest samples that the encoder takes.
        """
        for name, value in zip(self._fields, self):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"{name} is {value!r}, expected a number of seconds")
        shortest = min_samples / SAMPLE_RATE
        if not shortest <= self.min_seconds < float("inf"):
            raise InputError(
                f"min_seconds is {self.min_seconds}, expected at least {shortest}"
            )
        if not self.window_seconds >= self.min_seconds:
            raise InputError(
                f"window_seconds is {self.window_seconds}, expected at least "
                f"min_seconds, {self.min_seconds}"
            )
        if not 0 < self.hop_seconds <= self.window_seconds:
            raise InputError(
                f"hop_seconds is {self.hop_seconds}, expected above 0 and at most "
                f"window_seconds, {self.window_seconds}"
            )
        return self


class Recording(NamedTuple):
    """A file: ``frames`` samples per channel at ``sample_rate`` Hz."""

    path: str
    frames: int
    sample_rate: int = SAMPLE_RATE
    channels: int = 1

    @property
    def seconds(self):
        """Its length."""
        return self.frames / self.sample_rate

    @property
    def fits(self):
        """Whether it is as the model wants it."""
        return self.sample_rate == SAMPLE_RATE and self.channels == 1


class Chunk(NamedTuple):
    """A window, or the whole, of recording number ``row``.

    ``start`` and ``frames`` are samples at the recording's rate; -1 frames: all.
    """

    row: int
    start: int
    frames: int
    seconds: float


def chunks_of(row, recording, chunking, max_seconds=None):
    """The windows of recording number ``row`` → list of Chunk.

    A recording longer than ``max_seconds`` is first cut to this much from its middle.
    """
    first, frames, rate = 0, recording.frames, recording.sample_rate
    longest = frames if max_seconds is None else round(max_seconds * rate)
    if frames > longest:
        first, frames = (frames - longest) // 2, longest
    if frames / rate <= chunking.window_seconds:
        whole = frames == recording.frames
        return [Chunk(row, first, -1 if whole else frames, frames / rate)]
    window = round(chunking.window_seconds * rate)
    hop = max(1, round(chunking.hop_seconds * rate))
    starts = [*range(0, frames - window, hop), frames - window]
    return [Chunk(row, first + s, window, chunking.window_seconds) for s in starts]


def inspect_files(paths, min_seconds):
    """Read the headers of N files → N times a Recording or InputError.

    One warning for each kind of file whose headers lie.
    """
    doubts = []

    def inspect_one(path):
        try:
            return inspect_file(path, min_seconds, doubts)
        except InputError as error:
            return error

    if len(paths) < FEW:
        found = [inspect_one(path) for path in paths]
    else:
        found = parallel_map(
            inspect_one, paths, HEADER_THREADS, "reading headers", "file"
        )
    warn_of_doubts(doubts)
    return found


def inspect_file(path, min_seconds, doubts=None):
    """Read the header of one file, or of several that a manifest joins → Recording.

    ``doubts``, a list, gets (name, Doubt) where header and content differ, for
    :func:`~speechbrain_ext.data.audio.warn_of_doubts`.

    Raises
    ------
    InputError
        Missing, empty, truncated or not sound; a rate out of range; too short.
    """
    if is_joined(path):
        recording = Recording(path, sum(frames for _, frames in parts_of(path)))
    else:
        header, doubt = inspect(path)
        recording = Recording(str(path), *header)
        if doubt is not None and doubts is not None:
            doubts.append((str(path), doubt))
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


def read_chunk(recording, chunk, min_seconds):
    """Samples of a recording as the model wants them.

    Arguments
    ---------
    recording : Recording
        As far as a manifest knows it: 16 kHz. Its header is read here.
    chunk : Chunk
        Of this recording.
    min_seconds : float
        As for :func:`inspect_file`.

    Returns
    -------
    wav : torch.Tensor or None
        float32 [T] at 16 kHz; None where there is no sound.
    recording : Recording
        As its header says.

    Raises
    ------
    InputError
        As :func:`inspect_file`; corrupt, shorter than expected, NaN.
    """
    path, start, frames = recording.path, chunk.start, chunk.frames
    found = inspect_file(path, min_seconds)
    if frames >= 0 and found.sample_rate != recording.sample_rate:
        ratio = Fraction(found.sample_rate, recording.sample_rate)
        start = int(start * ratio)
        frames = min(int(frames * ratio), found.frames - start)
    if is_joined(path):
        wav, rate = read_audio(path, start, frames), SAMPLE_RATE
    else:
        wav, rate = read_mono(path, start, frames)
    wav = torch.from_numpy(np.ascontiguousarray(wav))
    return (None if is_silent(wav) else resampled(wav, rate)), found


def is_silent(wav):
    """Whether a signal [T] is constant: the features remove any constant."""
    low, high = torch.aminmax(wav)
    return bool(low == high)


def check_batch(wavs, wav_lens):
    """InputError for a row [T] of a padded batch that is silent or not finite."""
    if wavs.dim() != 2 or wav_lens.shape != wavs.shape[:1]:
        return  # the features say what is wrong
    samples = torch.round(wav_lens.double() * wavs.shape[1]).long().tolist()
    for row, (wav, length) in enumerate(zip(wavs, samples)):
        valid = wav[:length]
        if not len(valid):
            return
        if not torch.isfinite(valid).all():
            raise InputError(
                f"row {row}: NaN or infinite samples, expected finite ones"
            )
        if is_silent(valid):
            raise InputError(f"row {row}: {SILENT}")


def warn_of_conversions(recordings, total):
    """One warning for the recordings that were converted, of ``total``."""
    if not recordings:
        return
    kinds = Counter((r.sample_rate, r.channels) for r in recordings)
    found = ", ".join(
        f"{count} of {rate} Hz with {channels} channel(s)"
        for (rate, channels), count in kinds.most_common()
    )
    logger.warning(
        "%d of %d recordings are converted to %d Hz with 1 channel: %s; first %s",
        *(len(recordings), total, SAMPLE_RATE, found, recordings[0].path),
    )


def resampled(wav, rate):
    """float32 [T] at ``rate`` Hz → [ceil(T · 16000 / rate)] at 16 kHz."""
    return wav if rate == SAMPLE_RATE else _resampler(rate)(wav)


@functools.lru_cache(8)
def _resampler(rate):
    ratio = Fraction(rate, SAMPLE_RATE).limit_denominator(1000)
    return Resample(ratio.numerator, ratio.denominator)
