"""Recordings: reading them, and what their headers say, with the checks all users need.

Reading goes through soundfile (wav, flac, ogg, mp3), which can also read a part of
a long file. VoxCeleb2's own m4a needs ffmpeg: the preparation converts it.

A path of a manifest may stand for one recording inside a tar file
(:mod:`speechbrain_ext.data.shards.index`), or for several, one after the other, with
their lengths in samples::

    /data/id10001/interview-01-001.flac:34560|/data/id10001/interview-01-002.flac:51200

:func:`read_audio` reads these as one recording, and opens only those parts that the
wanted samples are in. The lengths are in the path so that a crop is found without
reading headers.

Bad recordings are collected instead of stopping at the first: a user with a thousand
of them sees all at once, and decides how many are few enough to be left out.
"""

import logging
import os
import stat
from typing import NamedTuple

import numpy as np
import soundfile

from speechbrain_ext.data.shards.members import is_member, open_member
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.parallel import parallel_map

JOINT, LENGTH = "|", ":"


def is_joined(path):
    """Whether a path of a manifest stands for several recordings."""
    return JOINT in str(path)


def joined_path(paths, frames):
    """One path for two recordings or more and their lengths in samples."""
    for path in paths:
        if is_joined(path):
            raise InputError(
                f"{path}: '{JOINT}' in its name, expected none: it stands between "
                "recordings that are joined"
            )
    return JOINT.join(f"{path}{LENGTH}{n}" for path, n in zip(paths, frames))


def parts_of(path):
    """The recordings that a path of a manifest stands for.

    Arguments
    ---------
    path : str

    Returns
    -------
    list of (str, int or None)
        Each recording and its length in samples, which a plain path does not tell.

    Raises
    ------
    InputError
        A part of a joined path that does not end in its length.
    """
    if not is_joined(path):
        return [(str(path), None)]
    parts = []
    for part in str(path).split(JOINT):
        name, _, frames = part.rpartition(LENGTH)
        if not name or not frames.isdecimal():
            raise InputError(
                f"{path}: part '{part}', expected PATH{LENGTH}SAMPLES of each of the "
                f"recordings that '{JOINT}' joins"
            )
        parts.append((name, int(frames)))
    return parts


def parts_between(path, start=0, frames=-1):
    """What to read for some samples of a joined path.

    Arguments
    ---------
    path : str
        Joined.
    start : int
        First sample.
    frames : int
        How many; -1 for all that follow.

    Returns
    -------
    list of (str, int, int)
        Recording, first sample in it and how many; none where ``start`` is beyond the
        end. Together they are fewer than ``frames`` where these reach beyond it.
    """
    wanted, begin = [], 0
    stop = float("inf") if frames < 0 else start + frames
    for name, length in parts_of(path):
        first, last = max(start, begin), min(stop, begin + length)
        if first < last:
            wanted.append((name, first - begin, last - first))
        begin += length
    return wanted


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


def read_channels(path, start=0, frames=-1):
    """Read (a part of) one recording of any rate and number of channels.

    Arguments
    ---------
    path : str, Path, or a binary file object that can seek
        The recording.
    start, frames : int
        As for :func:`read_audio`, at the recording's own rate.

    Returns
    -------
    wav : np.ndarray
        float32, [T] of one channel, [T, C] of several.
    sample_rate : int
        In Hz.

    Raises
    ------
    InputError
        Missing, corrupt, empty, truncated, NaN.
    """
    with _open(path) as file:
        return _decoded(file, path, start, frames, check=True), file.samplerate


def _read_joined(path, start, frames, check, average):
    """:func:`read_audio` of a joined path."""
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
    if hasattr(path, "read"):
        place = path.tell()
        path.seek(0)
        start = path.read(8)
        size = path.seek(0, os.SEEK_END)
        path.seek(place)
    else:
        with open_member(path) if is_member(path) else open(path, "rb") as file:
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
    if hasattr(path, "read"):
        return path
    if is_member(path):
        return open_member(path)
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


logger = logging.getLogger(__name__)

BAD_FILES = "bad_files.txt"


def read_durations(paths, num_workers=16):
    """Read the header of each recording.

    Arguments
    ---------
    paths : list of str
        N recordings.
    num_workers : int
        Threads.

    Returns
    -------
    seconds : np.ndarray
        float64 [N]; NaN where the file is bad.
    bad : list of (str, str)
        Path and reason of each file that cannot be opened, is empty, or is not
        16 kHz mono.
    """
    seconds = np.full(len(paths), np.nan)
    bad = []
    results = parallel_map(_duration, paths, num_workers, "reading headers", "file")
    for row, (duration, reason) in enumerate(results):
        if reason is None:
            seconds[row] = duration
        else:
            bad.append((paths[row], reason))
    return seconds, bad


def _duration(path):
    try:
        header = read_header(path)
    except InputError as error:
        return None, str(error).removeprefix(f"{path}: ")
    if header.sample_rate != SAMPLE_RATE or header.channels != 1:
        seen = f"{header.sample_rate} Hz with {header.channels} channel(s)"
        return None, f"{seen}, expected {SAMPLE_RATE} Hz mono"
    if header.frames < 1:
        return None, "0 samples, expected sound"
    return header.frames / SAMPLE_RATE, None


def report_bad_files(bad, save_folder, max_bad_files, indispensable=frozenset()):
    """List bad recordings in a file, and stop where there are too many of them.

    Arguments
    ---------
    bad : list of (str, str)
        Path and reason of each; the first is named in errors.
    save_folder : Path
        Where ``bad_files.txt`` goes.
    max_bad_files : int
        How many may be left out.
    indispensable : set of str
        Paths of which none may be left out, such as those of a trial list.

    Raises
    ------
    InputError
        Too many bad files, or an indispensable one; names the first and the list.
    """
    listing = save_folder / BAD_FILES
    if not bad:
        listing.unlink(missing_ok=True)
        return
    with write_atomically(listing) as file:
        file.writelines(f"{path}\t{reason}\n" for path, reason in bad)
    needed = [item for item in bad if item[0] in indispensable]
    if needed:
        path, reason = needed[0]
        raise InputError(
            f"{path}: {reason} ({len(needed)} bad files of the trial lists, expected "
            f"none; all are listed in {listing})"
        )
    if len(bad) > max_bad_files:
        path, reason = bad[0]
        raise InputError(
            f"{path}: {reason} ({len(bad)} bad files, expected at most "
            f"max_bad_files={max_bad_files}; all are listed in {listing})"
        )
    logger.warning("%d bad files are left out, listed in %s", len(bad), listing)
