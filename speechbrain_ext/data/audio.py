"""Reading recordings, with the checks that every user of them needs.

Reading goes through soundfile (wav, flac, ogg, mp3), which can also read a part of
a long file. VoxCeleb2's own m4a needs ffmpeg: the preparation converts it.

A path may stand for several recordings, see :mod:`speechbrain_ext.data.joined_paths`,
or for one inside a tar file, see :mod:`speechbrain_ext.data.shard_places`.
"""

import os
import stat
from typing import NamedTuple

import numpy as np
import soundfile

from speechbrain_ext.data.joined_paths import is_joined, parts_between
from speechbrain_ext.data.shard_places import is_place, open_place
from speechbrain_ext.errors import InputError

SAMPLE_RATE = 16000
SOUND_FILES = (".wav", ".flac", ".ogg", ".mp3")
UNKNOWN_SIZE = 0x7FFF0000  # what programs write into a pipe, not knowing better
UNKNOWN_FRAMES = 1 << 62  # from here on libsndfile says as much of other formats


class AudioHeader(NamedTuple):
    """What a file says of itself: frames (samples per channel), Hz, channels."""

    frames: int
    sample_rate: int
    channels: int


def read_header(path):
    """Read the header of one recording without decoding it.

    Arguments
    ---------
    path : str or Path
        The recording.

    Returns
    -------
    AudioHeader

    Raises
    ------
    InputError
        Where the file is missing, empty, truncated, without a length, or not sound.
    """
    with _open(path) as file:
        _check_whole(path)
        if file.frames >= UNKNOWN_FRAMES:
            raise InputError(
                f"{path}: its header does not say how long it is, as of a stream; "
                "expected a length: convert it once more, from file to file"
            )
        return AudioHeader(file.frames, file.samplerate, file.channels)


def read_audio(path, start=0, frames=-1, check=True, average=False):
    """Read (a part of) one 16 kHz recording, mono unless ``average``.

    Arguments
    ---------
    path : str or Path
        The recording, or several that are joined.
    start : int
        First sample.
    frames : int
        How many samples; -1 reads to the end.
    check : bool
        Also refuse samples that are not finite. Costs one pass.
    average : bool
        The mean of several channels, instead of refusing them.

    Returns
    -------
    np.ndarray
        float32 in ±1, [T].

    Raises
    ------
    InputError
        Missing, corrupt, empty, truncated, wrong rate, several channels, NaN.
    """
    if is_joined(path):
        return _read_joined(path, start, frames, check, average)
    with _open(path) as file:
        mono = file.channels == 1
        if file.samplerate != SAMPLE_RATE or not (mono or average):
            raise InputError(
                f"{path}: {file.samplerate} Hz with {file.channels} channel(s), "
                f"expected {SAMPLE_RATE} Hz mono"
            )
        wav = _decoded(file, path, start, frames, check)
        return wav if mono else wav.mean(axis=1)


def read_mono(path, start=0, frames=-1):
    """Read (a part of) one recording of any rate, its channels averaged.

    Arguments
    ---------
    path : str or Path
        The recording.
    start, frames : int
        As for :func:`read_audio`, at the recording's own rate.

    Returns
    -------
    wav : np.ndarray
        float32, [T].
    sample_rate : int
        In Hz.

    Raises
    ------
    InputError
        Missing, corrupt, empty, truncated, NaN.
    """
    with _open(path) as file:
        wav = _decoded(file, path, start, frames, check=True)
        return wav if wav.ndim == 1 else wav.mean(axis=1), file.samplerate


def _read_joined(path, start, frames, check, average):
    """The same from the parts of a joined path."""
    parts = parts_between(path, start, frames)
    if not parts:
        raise InputError(f"{path}: no samples from {start} on, expected sound")
    wav = np.concatenate([read_audio(*part, check, average) for part in parts])
    if len(wav) < frames:
        raise InputError(
            f"{path}: {len(wav)} samples decoded from {start} on, expected {frames}"
        )
    return wav


def _decoded(file, path, start, frames, check):
    """float32 [T], or [T, C] where there are several channels."""
    try:
        if start:
            file.seek(start)
        file.stays_there = frames >= 0
        wav = file.read(frames, dtype="float32", always_2d=False)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be decoded ({error})") from error
    expected = file.frames - start if frames < 0 else frames
    if len(wav) == 0:
        raise InputError(f"{path}: no samples from {start} on, expected sound")
    if len(wav) < expected:
        raise InputError(
            f"{path}: {len(wav)} samples decoded from {start} on, expected {expected}"
        )
    if check and not np.isfinite(wav).all():
        raise InputError(f"{path}: NaN or infinite samples, expected finite ones")
    return wav


def _check_whole(path):
    """A wav file of half its size is read without complaint, as half the speech."""
    with open_place(path) if is_place(path) else open(path, "rb") as file:
        start = file.read(8)
        size = file.seek(0, os.SEEK_END)
    said = int.from_bytes(start[4:], "little") + 8
    if start[:4] == b"RIFF" and said < UNKNOWN_SIZE and size < said - 1:  # a pad byte
        raise InputError(f"{path}: {size} bytes, its header says {said}: truncated")


class _Recording(soundfile.SoundFile):
    """A sound file that is read once.

    soundfile seeks three times around each read, to where the file is anyway; of a flac
    file a block is decoded each time, a tenth of the time of a crop of 3 s. It does not
    where a file says that it cannot.
    """

    stays_there = False

    def seekable(self):
        """As soundfile asks before it seeks."""
        return not self.stays_there and super().seekable()


def _open(path):
    try:
        return _Recording(_source(path))
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        reason = str(error).split(": ", 1)[-1].strip()
        raise InputError(f"{path}: cannot be opened as sound ({reason})") from error


def _source(path):
    """What soundfile opens; OSError with the reason where it is no file to be read."""
    if is_place(path):
        return open_place(path)
    # a name may be any bytes; libsndfile says "System error" of files that are missing
    # and waits for ever for somebody to write into a pipe
    name = str(path) if os.name == "nt" else os.fsencode(path)
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise OSError(error.strerror) from error
    if not stat.S_ISREG(mode):
        raise OSError("not a regular file")
    if not os.access(name, os.R_OK):
        raise OSError("permission denied")
    return name
