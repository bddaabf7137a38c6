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
    is_joined,
    parts_of,
    read_audio,
    read_header,
    read_mono,
)
from speechbrain_ext.pretrained import INFERENCE
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

LOWEST_RATE, HIGHEST_RATE = 4000, 768_000
HEADER_THREADS = 16
SILENT = "silent, expected speech"
NEAR_SECONDS = 2  # pieces of a recording so near are read at once
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
    ``pieces``: what is read instead, one after the other: (start, stop) of each, in
    samples at 16 kHz.
    """

    row: int
    start: int
    frames: int
    seconds: float
    pieces: tuple = ()


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
    return [
        Chunk(row, first + start, stop - start, chunking.window_seconds)
        for start, stop in windows_of(frames, chunking, rate)
    ]


def windows_of(frames, chunking, rate):
    """First sample and the one after the last of each window of ``frames`` samples."""
    if frames / rate <= chunking.window_seconds:
        return [(0, frames)]
    window = round(chunking.window_seconds * rate)
    hop = max(1, round(chunking.hop_seconds * rate))
    starts = [*range(0, frames - window, hop), frames - window]
    return [(start, start + window) for start in starts]


def inspect_files(paths, min_seconds):
    """Read the headers of N files → N times a Recording or InputError."""

    def inspect(path):
        try:
            return inspect_file(path, min_seconds)
        except InputError as error:
            return error

    if len(paths) < FEW:
        return [inspect(path) for path in paths]
    return parallel_map(inspect, paths, HEADER_THREADS, "reading headers", "file")


def inspect_file(path, min_seconds):
    """Read the header of one file, or of several that a manifest joins → Recording.

    Raises
    ------
    InputError
        Missing, empty, truncated or not sound; a rate out of range; too short.
    """
    if is_joined(path):
        recording = Recording(path, sum(frames for _, frames in parts_of(path)))
    else:
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
    if chunk.pieces:
        return _read_pieces(found, chunk.pieces), found
    if frames >= 0 and found.sample_rate != recording.sample_rate:
        ratio = Fraction(found.sample_rate, recording.sample_rate)
        start = int(start * ratio)
        frames = min(int(frames * ratio), found.frames - start)
    wav, rate = _read(path, start, frames)
    return (None if is_silent(wav) else resampled(wav, rate)), found


def _read(path, start, frames):
    """Samples of a file or of a joined path → tensor [T], and their rate."""
    if is_joined(path):
        wav, rate = read_audio(path, start, frames), SAMPLE_RATE
    else:
        wav, rate = read_mono(path, start, frames)
    return torch.from_numpy(np.ascontiguousarray(wav)), rate


def _read_pieces(recording, pieces):
    """Pieces of a recording, (start, stop) at 16 kHz, one after the other → [T].

    Those that are near each other are read at once: in some formats to seek is to
    decode what lies before.
    """
    groups = []
    for piece in pieces:
        if groups and piece[0] - groups[-1][-1][1] < NEAR_SECONDS * SAMPLE_RATE:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    rate, parts = recording.sample_rate, []
    for group in groups:
        first, last = group[0][0], group[-1][1]
        begin = first * rate // SAMPLE_RATE
        end = min(-(-last * rate // SAMPLE_RATE), recording.frames)
        wav = resampled(_read(recording.path, begin, end - begin)[0], rate)
        parts += [wav[start - first : stop - first] for start, stop in group]
    return torch.cat(parts)


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
