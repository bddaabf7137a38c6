"""Recordings as users have them: any rate, any number of channels, long, or bad.

Of several channels one is taken, or their mean
(:mod:`speechbrain_ext.inference.channels`), then the rate is converted by torchaudio's
windowed sinc filter. The ratio of the rates is taken as a fraction with a denominator
of at most 1000: exact for every rate in use, and within 0.05 %, a hundredth of a
semitone, for odd ones such as 15,999 Hz, whose exact filter would fill gigabytes.

A recording of F samples, longer than the window of W samples, is cut at 0, H, 2H, …
while a window fits, and a last window ends where the recording ends.
"""

import functools
import logging
import math
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torchaudio.transforms import Resample

from speechbrain_ext.data.audio import SAMPLE_RATE, warn_of_doubts
from speechbrain_ext.inference.channels import (
    CHOICES,
    RULES,
    ChannelFigures,
    best_channel,
    check_number,
    warn_of_channels,
)
from speechbrain_ext.inference.sources import FileSound, Source, place_of
from speechbrain_ext.pretrained import INFERENCE
from speechbrain_ext.utils.errors import InputError, NoSpeechError
from speechbrain_ext.utils.parallel import parallel_map
from speechbrain_ext.utils.precision import valid_counts

logger = logging.getLogger(__name__)

LOWEST_RATE, HIGHEST_RATE = 4000, 768_000
HEADER_THREADS = 16
SILENT = "silent, expected speech"
NEAR_SECONDS = 2  # pieces of a recording so near are read at once
LOUDEST = 100.0  # floats are within ±1, mixed ones above; integers in floats: thousands
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

    def checked(self, encoder):
        """The same, or InputError where a value is out of range for an encoder.

        Windows are not longer than what it takes.
        """
        for name, value in zip(self._fields, self):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"{name} is {value!r}, expected a number of seconds")
        shortest = encoder.min_samples / SAMPLE_RATE
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
        longest = encoder.max_samples
        if longest is None:
            return self
        window, hop = (min(value, longest / SAMPLE_RATE) for value in self[1:])
        return self._replace(window_seconds=window, hop_seconds=hop)


class Recording(NamedTuple):
    """A recording, or a part: ``frames`` samples per channel at ``sample_rate`` Hz.

    Attributes
    ----------
    path : str
        Of a file, or what it is called in messages.
    sound : FileSound, ArraySound or None
        What it is read from, once it was looked at; None: the file.
    first : int or None
        Where a part of ``sound`` begins; None: it is the whole.
    channel : int or str
        Which is taken, the first being 1; ``mean``.
    figures : ChannelFigures or None
        Of several channels, growing while it is read.
    doubt : Doubt or None
        Where header and content of the file differ.
    peak : float or None
        Largest sample that was read, where it is above :data:`LOUDEST`.
    """

    path: str
    frames: int
    sample_rate: int = SAMPLE_RATE
    channels: int = 1
    sound: object = None
    first: int | None = None
    channel: int | str = "mean"
    figures: ChannelFigures | None = None
    doubt: object = None
    peak: float | None = None

    @property
    def seconds(self):
        """Its length."""
        return self.frames / self.sample_rate

    @property
    def fits(self):
        """Whether it is taken as the model wants it, and nothing is to be said."""
        return not self.is_converted and self.figures is None and self.peak is None

    @property
    def is_converted(self):
        """Whether its rate is, or its channels are averaged without being asked to."""
        averaged = self.channels > 1 and self.channel == "mean"
        return self.sample_rate != SAMPLE_RATE or averaged

    def read(self, start=0, frames=-1):
        """(float32 [T] of one channel or [T, C] of several, rate)."""
        if self.first is not None:
            frames = self.frames - start if frames < 0 else frames
            start += self.first
        return self.sound.read(start, frames)


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


def inspect_files(sources, min_seconds, channel="mean"):
    """Read the headers of N recordings → N times a Recording or InputError.

    One warning for each kind of file whose headers lie.
    """

    def inspect(source):
        try:
            return inspect_file(source, min_seconds, channel)
        except InputError as error:
            return error

    if len(sources) < FEW:
        found = [inspect(source) for source in sources]
    else:
        found = parallel_map(
            inspect, sources, HEADER_THREADS, "reading headers", "file"
        )
    known = [recording for recording in found if isinstance(recording, Recording)]
    warn_of_doubts([(r.path, r.doubt) for r in known if r.doubt is not None])
    return found


def inspect_file(source, min_seconds, channel="mean"):
    """Read the header of one recording → Recording.

    Arguments
    ---------
    source : Source, str or Path
        A recording; a path is a file, or several that a manifest joins, never a part.
    min_seconds : float
        Shorter ones are refused.
    channel : int or str
        As :func:`~speechbrain_ext.inference.channels.checked_channel` gives it.

    Raises
    ------
    InputError
        Missing, empty, truncated or not sound; a rate out of range; too short; no such
        part or channel.
    """
    if isinstance(source, Source):
        source = source.located()
        name, sound = source.name, source.opened()
    else:
        name = str(source)
        sound = FileSound(name, name)
    header, doubt = sound.header()
    first, frames = None, header.frames
    if isinstance(source, Source) and source.is_part:
        first, frames = place_of(source, header)
    recording = Recording(name, frames, *header[1:], sound, first, doubt=doubt)
    if not LOWEST_RATE <= recording.sample_rate <= HIGHEST_RATE:
        raise InputError(
            f"{name}: {recording.sample_rate} Hz, expected {LOWEST_RATE} to "
            f"{HIGHEST_RATE} Hz"
        )
    if recording.seconds < min_seconds:
        raise InputError(
            f"{name}: {recording.frames} samples, {recording.seconds:.4g} s, expected "
            f"at least {min_seconds:g} s of speech"
        )
    check_number(channel, recording.channels, name)
    if recording.channels == 1:
        return recording
    figures = ChannelFigures() if channel in RULES else None
    if channel == "best":
        channel, figures.ratios = best_channel(recording)
    return recording._replace(channel=channel, figures=figures)


def read_chunk(recording, chunk, min_seconds):
    """Samples of a Chunk of a recording, as the model wants them.

    Arguments
    ---------
    recording : Recording
        As :func:`inspect_file` found it; or as far as a manifest knows it, 16 kHz, and
        then its header is read here.
    chunk : Chunk
        Of this recording.
    min_seconds : float
        As for :func:`inspect_file`.

    Returns
    -------
    wav : torch.Tensor or None
        float32 [T] at 16 kHz; None where there is no sound.
    recording : Recording
        As its header says, and how loud the chunk is.

    Raises
    ------
    InputError
        As :func:`inspect_file`; corrupt, shorter than expected, NaN.
    """
    start, frames, found = chunk.start, chunk.frames, recording
    if recording.sound is None:
        found = inspect_file(recording.path, min_seconds)
    if chunk.pieces:
        wav = _read_pieces(found, chunk.pieces)
        return wav, _with_peak(found, *torch.aminmax(wav))
    if frames >= 0 and found.sample_rate != recording.sample_rate:
        ratio = Fraction(found.sample_rate, recording.sample_rate)
        start = int(start * ratio)
        frames = min(int(frames * ratio), found.frames - start)
    wav, rate = _read(found, start, frames)
    low, high = torch.aminmax(wav)
    if low == high:
        return None, found
    # the ratio of an odd rate is rounded, but no encoder gets more than its window
    most = None if chunk.frames < 0 else math.ceil(chunk.seconds * SAMPLE_RATE)
    return resampled(wav, rate)[:most], _with_peak(found, low, high)


def _with_peak(recording, low, high):
    peak = float(max(-low, high))
    return recording._replace(peak=peak) if peak > LOUDEST else recording


def _read(recording, start, frames):
    """One channel of a recording → tensor [T], and its rate."""
    wav, rate = recording.read(start, frames)
    if wav.ndim == 2:
        wav = _one_channel(recording, wav, rate)
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
        wav = resampled(_read(recording, begin, end - begin)[0], rate)
        parts += [wav[start - first : stop - first] for start, stop in group]
    return torch.cat(parts)


def load_recording(sources, min_seconds, channel="mean"):
    """One recording, whole, as the model wants it → float32 [T] at 16 kHz.

    Arguments
    ---------
    sources : list of Source
        Of one.
    min_seconds, channel
        As for :func:`inspect_file`.

    Raises
    ------
    InputError
        As :func:`read_chunk`; none or several recordings; NoSpeechError, a kind of it,
        of silence.
    """
    if len(sources) != 1:
        raise InputError(f"{len(sources)} recordings to load, expected one")
    (recording,) = inspect_files(sources, min_seconds, channel)
    if isinstance(recording, InputError):
        raise recording
    whole = Chunk(0, 0, -1, recording.seconds)
    wav, _ = read_chunk(recording, whole, min_seconds)
    warn_of_conversions([] if recording.fits else [recording], 1)
    if wav is None:
        raise NoSpeechError(f"{recording.path}: {SILENT}")
    return wav


def _one_channel(recording, wav, rate):
    """[T, C] → [T]: the channel that is taken, or the mean."""
    if recording.figures is None:
        return wav[:, recording.channel - 1]
    wav = np.ascontiguousarray(wav.T)  # twice as fast from here on
    recording.figures.add(wav, rate)
    if recording.channel != "mean":
        return wav[recording.channel - 1]
    mean = wav.mean(axis=0)
    if np.ptp(mean) == 0 and np.ptp(wav, axis=1).any():
        raise InputError(
            f"{recording.path}: {SILENT}: its {recording.channels} channels cancel in "
            f"their mean; choose one by channel: {CHOICES}"
        )
    return mean


def is_silent(wav):
    """Whether a signal [T] is constant: the features remove any constant."""
    low, high = torch.aminmax(wav)
    return bool(low == high)


def check_batch(wavs, wav_lens):
    """InputError for a row [T] of a padded batch that is silent or not finite."""
    if wavs.dim() != 2 or wav_lens.shape != wavs.shape[:1]:
        return  # the features say what is wrong
    samples = valid_counts(wav_lens, wavs.shape[1]).tolist()
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
    """One warning of each kind for recordings that do not fit, of ``total``."""
    warn_of_channels(recordings, total)
    if loud := [recording for recording in recordings if recording.peak is not None]:
        logger.warning(
            "%d of %d recordings have samples far outside ±1, as of integers stored as "
            "floats; they are taken as they are, expected samples divided by 32768; "
            "first %s, peak %.5g",
            *(len(loud), total, loud[0].path, loud[0].peak),
        )
    recordings = [recording for recording in recordings if recording.is_converted]
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
