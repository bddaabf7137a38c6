"""Recordings as callers bring them: files, parts of files, and what is in memory.

    "a.wav"   "a.wav:12.5-17"   Segment("a.wav", 12.5, 17)     a file, a part of one
    wav   (wav, 44100)                                         an array or tensor
    content   open("a.wav", "rb")   io.BytesIO(content)        a file in memory

An array alone is taken at 16 kHz, which is the model's rate. Integers are scaled to ±1
by their type: int16 by 2^15, int32 by 2^31, uint8 by 2^7 around 128. Of two dimensions
the smaller one is the channels. A file object is read from its beginning where it can
seek, and put back where it was; else from where it stands, to its end.

What is wrong with one recording is said when it is looked at, not when it is listed: of
a thousand, one may be bad.
"""

import io
import math
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_ext.data.audio import (
    SAMPLE_RATE,
    AudioHeader,
    inspect,
    is_joined,
    read_channels,
)
from speechbrain_ext.data.sound.headers import Doubt
from speechbrain_ext.utils.errors import InputError

EXPECTED = (
    "expected a path, an array or tensor (at 16 kHz), a tuple (array, rate), a "
    "Segment, or the bytes or file object of a sound file"
)
MOST_CHANNELS = 64
ROUNDED = 0.01  # seconds: an end that was rounded up is the end
# What ends a path as a segment does, and the part of it that is right.
SEGMENT = re.compile(r"(?P<path>.+):(?P<part>[-+.\deE]*\d[-+.\deE]*)", re.DOTALL)
PART = re.compile(r"(?P<start>\d+\.?\d*|\.\d+)-(?P<stop>\d+\.?\d*|\.\d+)?")
SCALES = {"int8": 2**7, "int16": 2**15, "int32": 2**31, "uint8": 2**7}
LOUD = 100  # times full scale: integers that were made floats and not scaled


@dataclass(frozen=True)
class Segment:
    """A part of a recording, in seconds.

    Arguments
    ---------
    source : str, Path, or any other recording
        Of which it is a part.
    start : float
        Where it begins.
    stop : float or None
        Where it ends; None: with the recording.
    """

    source: object
    start: float = 0.0
    stop: float | None = None


class Source(NamedTuple):
    """One recording: what it is called in messages, what it is, which part is meant.

    ``value`` is a path as text, or anything else that a caller brought.
    """

    name: str
    value: object
    start: float = 0.0
    stop: float | None = None

    @property
    def key(self):
        """Equal for two of one recording: one path, or one object in memory."""
        value = self.value
        if isinstance(value, tuple):
            value = tuple(item if _is_number(item) else id(item) for item in value)
        elif not isinstance(value, str):
            value = id(value)
        return value, str(self.start), str(self.stop)

    @property
    def is_part(self):
        """Whether it is not the whole recording."""
        return (self.start, self.stop) != (0.0, None)

    def located(self):
        """The same, a path that ends as a segment does being taken apart."""
        if self.is_part or not isinstance(self.value, str):
            return self
        path, start, stop = split_segment(self.value)
        return self._replace(value=path, start=start, stop=stop)

    def kept(self):
        """The same for several readers: a file object is read here, once."""
        if not _is_file(self.value):
            return self
        return self._replace(value=_content(self.name, self.value))

    def opened(self):
        """What to read from → FileSound or ArraySound; InputError: it is none."""
        value = self.value
        if isinstance(value, str):
            return FileSound(self.name, value)
        if _is_array(value):
            return ArraySound(self.name, value, SAMPLE_RATE)
        if _is_timed(value):
            first, second = value
            if not _is_array(first):  # as scipy and Gradio have it
                first, second = second, first
            return ArraySound(self.name, first, second)
        if _is_bytes(value):
            return FileSound(self.name, bytes(value), object())
        if _is_file(value):
            return FileSound(self.name, _content(self.name, value), object())
        raise InputError(f"{self.name}: {EXPECTED}")


def sources_of(recordings, side=""):
    """One recording or several, of any kind → list of Source.

    Arguments
    ---------
    recordings : any recording, or an iterable of them
        As the module says.
    side : str
        Comes before the number of those that have no name: ``test``.

    Raises
    ------
    InputError
        Neither a recording nor several.
    """
    if _is_one(recordings):
        recordings = [recordings]
    try:
        items = list(recordings)
    except TypeError as error:
        raise InputError(
            f"{side or 'recordings'}: {recordings!r:.80}, {EXPECTED}, or a list of them"
        ) from error
    number = f"{side} recording".lstrip()
    return [_source(item, f"{number} {n}") for n, item in enumerate(items, 1)]


def split_segment(text):
    """``a.wav:12.5-17`` → ("a.wav", 12.5, 17.0); a path alone → (path, 0.0, None).

    A file of that very name is a path alone.

    Raises
    ------
    InputError
        It ends as a segment does, but is none.
    """
    match = SEGMENT.fullmatch(text)
    if not match or "-" not in match["part"] or is_joined(text) or os.path.exists(text):
        return text, 0.0, None
    part = PART.fullmatch(match["part"])
    if not part:
        raise InputError(
            f"{text}: segment '{match['part']}', expected START-STOP or START- in "
            "seconds from the beginning, such as 12.5-17.0"
        )
    stop = part["stop"]
    return match["path"], float(part["start"]), None if stop is None else float(stop)


def _source(value, number):
    """One recording → Source, called by its path or by its number and kind."""
    if isinstance(value, Source):
        return value
    if isinstance(value, Segment):
        whole = _source(value.source, number)
        stop = "" if value.stop is None else value.stop
        name = f"{whole.name}:{value.start}-{stop}"
        return Source(name, whole.value, value.start, value.stop)
    if isinstance(value, (str, os.PathLike)):
        path = os.fsdecode(value)
        return Source(path, path)
    return Source(f"{number} ({_kind(value)})", value)


def _is_one(value):
    """Whether this is one recording and not several."""
    if isinstance(value, np.ndarray):
        return not _is_list_of_paths(value)
    single = (str, os.PathLike, Segment, Source)
    return (
        isinstance(value, single)
        or _is_bytes(value)
        or _is_array(value)
        or _is_file(value)
        or _is_timed(value)
    )


def _is_list_of_paths(array):
    if array.dtype.kind == "O" and array.ndim == 1:
        return all(isinstance(item, (str, os.PathLike)) for item in array)
    return array.dtype.kind == "U"


def _is_timed(value):
    """Whether this is an array with its rate, in either order, right or wrong."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    others = [item for item in value if not _is_array(item)]
    return len(others) == 1 and (isinstance(others[0], str) or not _is_one(others[0]))


def _is_array(value):
    return isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim > 0


def _is_bytes(value):
    return isinstance(value, (bytes, bytearray, memoryview))


def _is_file(value):
    return callable(getattr(value, "read", None))


def _is_number(value):
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _kind(value):
    """What to call a recording without a name."""
    if isinstance(value, tuple):
        return "array" if _is_timed(value) else "tuple"
    if isinstance(value, np.ndarray):
        return "array"
    if isinstance(value, torch.Tensor):
        return "tensor"
    if _is_bytes(value):
        return "bytes"
    if _is_file(value):
        name = getattr(value, "name", None)
        return f"file {name}" if isinstance(name, str) else "file object"
    return type(value).__name__


def _content(name, file):
    """All bytes of a file object."""
    try:
        place = None
        if getattr(file, "seekable", bool)():
            place = file.tell()
            file.seek(0)
        content = file.read()
        if place is not None:
            file.seek(place)
    except (OSError, ValueError) as error:  # closed, or open for writing
        raise InputError(f"{name}: cannot be read ({error})") from error
    if not isinstance(content, bytes):
        raise InputError(
            f"{name}: read() gives {type(content).__name__}, expected bytes: open it "
            "in binary mode"
        )
    return content


class _Named(io.BytesIO):
    """A file in memory that messages can name, and that is decoded once."""

    def __init__(self, name, content, identity):
        super().__init__(content)
        self.name, self.identity = name, identity


class FileSound(NamedTuple):
    """A sound file on the disk, by its path, or in memory, by its bytes.

    A path of a manifest may stand for several files that are joined. ``identity`` is
    that of the bytes: an object of their own.
    """

    name: str
    content: object
    identity: object = None

    def header(self):
        """What is in it → (AudioHeader, Doubt or None)."""
        return self._by(inspect)

    def read(self, start=0, frames=-1):
        """(float32 [T] of one channel or [T, C] of several, rate)."""
        return self._by(read_channels, start, frames)

    def _by(self, read, *place):
        if not isinstance(self.content, str):
            if not self.content:
                raise InputError(f"{self.name}: 0 bytes, expected a sound file")
            return read(_Named(*self), *place)
        try:
            return read(self.content, *place)
        except InputError as error:
            if self.name == self.content:
                raise
            reason = str(error).removeprefix(f"{self.content}: ")
            raise InputError(f"{self.name}: {reason}") from error


class ArraySound:
    """Samples [T] or [T, C] of an array or tensor, at ``rate`` Hz.

    Raises
    ------
    InputError
        A shape, a type or a rate that no recording has.
    """

    def __init__(self, name, array, rate):
        self.name, self.rate = name, _checked_rate(name, rate)
        if isinstance(array, torch.Tensor):
            array = array.detach().cpu()
            if array.dtype == torch.bfloat16:
                array = array.float()
        array = np.asarray(array)
        _check_type(name, array.dtype.name)
        self.samples = _time_first(name, array)

    def header(self):
        """What is in it → (AudioHeader, Doubt or None)."""
        channels, doubt = 1 if self.samples.ndim == 1 else self.samples.shape[1], None
        if self.samples.dtype.kind == "f":
            peak = max(self.samples.max(), -self.samples.min())
            if LOUD < peak < np.inf:
                text = (
                    f"floats up to {peak:.4g}, expected ±1: divide them, or bring "
                    "integers, which are scaled"
                )
                doubt = Doubt("array", text)
        return AudioHeader(len(self.samples), self.rate, channels), doubt

    def read(self, start=0, frames=-1):
        """(float32 [T] of one channel or [T, C] of several, rate)."""
        wav = self.samples[start : None if frames < 0 else start + frames]
        with np.errstate(over="ignore"):  # is infinite, and refused
            wav = _scaled(wav.astype(np.float32), wav.dtype.name)
        if not np.isfinite(wav).all():
            raise InputError(
                f"{self.name}: NaN or infinite samples, expected finite ones"
            )
        return wav, self.rate


def batch_of(wavs):
    """Waveforms [T] or [B, T], an array or tensor → float32 tensor [B, T] in ±1.

    InputError where it is neither, or of another type than recordings have.
    """
    if not _is_array(wavs):
        raise InputError(
            f"wavs: {type(wavs).__name__}, expected a tensor or array [batch, samples]"
        )
    kind = str(wavs.dtype).removeprefix("torch.")
    if isinstance(wavs, np.ndarray):
        kind = wavs.dtype.name
        _check_type("wavs", kind)
        wavs = torch.from_numpy(np.ascontiguousarray(wavs, np.float32))
    _check_type("wavs", kind)
    wavs = _scaled(wavs.float(), kind)
    return wavs.unsqueeze(0) if wavs.dim() == 1 else wavs


def _check_type(name, kind):
    if not kind.startswith(("float", "bfloat")) and kind not in SCALES:
        raise InputError(
            f"{name}: {kind}, expected floats in ±1, or {', '.join(SCALES)}, which "
            "are scaled"
        )


def _scaled(wav, kind):
    """Floats that were of a type → ±1."""
    if kind not in SCALES:
        return wav
    return (wav - 128 if kind == "uint8" else wav) / SCALES[kind]


def _checked_rate(name, rate):
    if isinstance(rate, (np.ndarray, torch.Tensor)):
        rate = rate.item()  # it has no dimension
    if (
        not _is_number(rate)
        or not math.isfinite(rate)
        or rate <= 0
        or rate != int(rate)
    ):
        raise InputError(
            f"{name}: rate {rate!r}, expected a whole number of Hz as in (array, "
            "16000); several recordings are a list"
        )
    return int(rate)


def _time_first(name, array):
    """[T], [T, C] or [C, T] → [T] or [T, C], C at least 2."""
    shape = tuple(array.shape)
    if not array.size:
        raise InputError(f"{name}: empty, of shape {shape}, expected samples")
    if array.ndim == 2:
        few, many = sorted(shape)
        if few == 1:
            return array.reshape(-1)
        if few < many and few <= MOST_CHANNELS:
            return array if shape[1] == few else array.T
    if array.ndim != 1:
        raise InputError(
            f"{name}: shape {shape}, expected [T], [channels, T] or [T, channels] of "
            f"at most {MOST_CHANNELS} channels, fewer than samples"
        )
    return array


def place_of(source, header):
    """First frame of a source's part, and how many → (int, int).

    Raises
    ------
    InputError
        A part that is not in the recording.
    """
    start, stop = source.start, source.stop
    seconds = header.frames / header.sample_rate
    for name, value in (("start", start), ("stop", stop)):
        if not (_is_number(value) and math.isfinite(value)) and (
            name == "start" or value is not None
        ):
            raise InputError(
                f"{source.name}: {name} {value!r}, expected a number of seconds"
            )
    last = seconds if stop is None else min(stop, seconds)
    if not 0 <= start < last or (stop or 0) > seconds + ROUNDED:
        wanted = f"to {stop:g} s" if stop is not None else "s on"
        raise InputError(
            f"{source.name}: from {start:g} {wanted}, expected a part of "
            f"{seconds:.4g} s that begins before it ends"
        )
    first = round(start * header.sample_rate)
    return first, min(round(last * header.sample_rate), header.frames) - first
