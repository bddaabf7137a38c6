"""Recordings: reading them, and what their headers say, with the checks all users need.

Whatever a player plays is read (:mod:`speechbrain_ext.data.sound`), any part of it, and
from a file object as from a path. Where a header says something else than what the file
holds, there is a warning, one for each kind of file.

A path of a manifest may stand for one recording inside a tar file
(:mod:`speechbrain_ext.data.shards.index`), or for several, one after the other, with
their lengths in samples; a part of a recording has its first sample and the one
after its last, and ends in the sign that else stands between two::

    /data/id10001/interview-01-001.flac:34560|/data/id10001/interview-01-002.flac:51200
    /data/meetings/07.flac:184000-233600|

:func:`read_audio` reads these as one recording, and opens only those parts that the
wanted samples are in. The lengths are in the path so that a crop is found without
reading headers.

Bad recordings are collected instead of stopping at the first: a user with a thousand
of them sees all at once, and decides how many are few enough to be left out.
"""

import logging
import re
from typing import NamedTuple

import numpy as np
import soundfile

from speechbrain_ext.data.sound import is_path, name_of, open_sound, open_trusting
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.parallel import parallel_map

JOINT, LENGTH = "|", ":"


_PART = re.compile(r"(?s)(?P<file>.+):(?:(?P<start>\d+)-)?(?P<stop>\d+)")


class Part(NamedTuple):
    """Samples of a file, ``frames`` from ``start`` on; None: as many as there are.

    ``is_cut``: the file may hold others, before and behind.
    """

    file: str
    start: int = 0
    frames: int | None = None
    is_cut: bool = False


def is_joined(path):
    """Whether a path of a manifest stands for several recordings, or a part of one."""
    return is_path(path) and JOINT in str(path)


def joined_path(paths, frames):
    """One path for two recordings or more and their lengths in samples."""
    for path in paths:
        if is_joined(path):
            raise InputError(
                f"{path}: '{JOINT}' in its name, expected none: it stands between "
                "recordings that are joined"
            )
    return JOINT.join(f"{path}{LENGTH}{n}" for path, n in zip(paths, frames))


def segment_path(path, start, stop):
    """Path of samples ``start`` to before ``stop`` of one recording."""
    return f"{path}{LENGTH}{start}-{stop}{JOINT}"


def parts_of(path):
    """[Part] that a path of a manifest stands for.

    A plain path does not tell its length. InputError: a part of a joined path that does
    not end in its length, or in its first sample and the one after its last.
    """
    if not is_joined(path):
        return [Part(str(path))]
    parts = []
    for text in str(path).removesuffix(JOINT).split(JOINT):
        match = _PART.fullmatch(text)
        start, stop = (int(match[n] or 0) for n in ("start", "stop")) if match else "00"
        if not match or (match["start"] and start >= stop):
            raise InputError(
                f"{path}: part '{text}', expected PATH{LENGTH}SAMPLES of each of the "
                f"recordings that '{JOINT}' joins, or PATH{LENGTH}START-STOP"
            )
        parts.append(Part(match["file"], start, stop - start, bool(match["start"])))
    return parts


def parts_between(path, start=0, frames=-1):
    """[(recording, first sample in it, how many)] for some samples of a joined path.

    ``frames`` -1 takes all that follow ``start``. None are read where ``start`` is
    beyond the end; fewer than ``frames`` where these reach beyond it.
    """
    wanted, begin = [], 0
    stop = float("inf") if frames < 0 else start + frames
    for file, offset, length, _ in parts_of(path):
        first, last = max(start, begin), min(stop, begin + length)
        if first < last:
            wanted.append((file, offset + first - begin, last - first))
        begin += length
    return wanted


SAMPLE_RATE = 16000


class AudioHeader(NamedTuple):
    """What a file says of itself: frames (samples per channel), Hz, channels."""

    frames: int
    sample_rate: int
    channels: int


def read_header(source):
    """How long a recording is, warning where its header says something else.

    Arguments
    ---------
    source : str, Path or binary file
        The recording; a file object is seekable, and read from its start.

    Returns
    -------
    AudioHeader

    Raises
    ------
    InputError
        Where the file is missing, empty, truncated, or not sound.
    """
    header, doubt = inspect(source)
    if doubt is not None:
        warn_of_doubts([(name_of(source), doubt)])
    return header


def inspect(source):
    """:func:`read_header` that returns what it would warn of.

    Returns
    -------
    header : AudioHeader
    doubt : Doubt or None
        For :func:`warn_of_doubts`.
    """
    if is_joined(source):  # whose path says it
        frames = sum(part.frames for part in parts_of(source))
        return AudioHeader(frames, SAMPLE_RATE, 1), None
    with open_sound(source) as sound:
        header = AudioHeader(sound.frames, sound.samplerate, sound.channels)
        return header, sound.doubt


def warn_of_doubts(doubts):
    """One warning for each kind of file whose header and content differ.

    Arguments
    ---------
    doubts : list of (str, Doubt)
        Name and doubt of each recording.
    """
    kinds = {}
    for name, doubt in doubts:
        kinds.setdefault(doubt.kind, []).append((name, doubt.text))
    for kind, found in kinds.items():
        name, text = found[0]
        more = f" (and {len(found) - 1} more {kind} files)" if len(found) > 1 else ""
        logger.warning("%s: %s; it is taken as it decodes%s", name, text, more)


def read_audio(path, start=0, frames=-1, check=True, average=False):
    """Read (a part of) one 16 kHz recording, mono unless ``average``.

    Arguments
    ---------
    path : str, Path or binary file
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
    channels = None if average else 1
    wav, _ = _read(path, start, frames, check, (SAMPLE_RATE, channels))
    return wav if wav.ndim == 1 else wav.mean(axis=1)


def read_mono(source, start=0, frames=-1):
    """:func:`read_channels` with the channels averaged → (float32 [T], rate)."""
    wav, rate = read_channels(source, start, frames)
    return wav if wav.ndim == 1 else wav.mean(axis=1), rate


def read_channels(source, start=0, frames=-1):
    """Read (a part of) one recording of any rate and number of channels.

    Arguments
    ---------
    source : str, Path or binary file
        As for :func:`read_header`.
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
    if is_joined(source):
        return _read_joined(source, start, frames), SAMPLE_RATE
    return _read(source, start, frames)


def _read_joined(path, start, frames, check=True, average=False):
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


def _read(source, start, frames, check=True, wanted=(None, None)):
    """(float32 [T], or [T, C] where there are several channels; rate).

    ``wanted``: the only rate and number of channels; None: any.
    A part is read where the header has it. Where it is not there, and where the whole
    is wanted, the file is examined: its header may lie.
    """
    if frames >= 0 and (trusted := open_trusting(source)):
        with trusted:
            try:
                return _samples(trusted, source, start, frames, check, wanted)
            except _Short:
                pass
    with open_sound(source) as sound:
        return _samples(sound, source, start, frames, check, wanted)


class _Short(InputError):
    """Fewer samples than expected."""


def _samples(sound, source, start, frames, check, wanted):
    name, rate = name_of(source), sound.samplerate
    if rate != (wanted[0] or rate) or sound.channels != (wanted[1] or sound.channels):
        raise InputError(
            f"{name}: {rate} Hz with {sound.channels} channel(s), expected "
            f"{SAMPLE_RATE} Hz mono"
        )
    expected = sound.frames - start if frames < 0 else frames
    try:
        wav = sound.read(start, max(0, expected))
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise _Short(f"{name}: cannot be decoded ({error})") from error
    if len(wav) == 0:
        raise _Short(f"{name}: no samples from {start} on, expected sound")
    if len(wav) < expected:
        raise _Short(
            f"{name}: {len(wav)} samples decoded from {start} on, expected {expected}"
        )
    if check and not np.isfinite(wav).all():
        raise InputError(f"{name}: NaN or infinite samples, expected finite ones")
    return wav, rate


logger = logging.getLogger(__name__)

BAD_FILES = "bad_files.txt"


def read_durations(paths, num_workers=16):
    """Read the header of each of N recordings, in threads.

    → seconds float64 [N], NaN where the file is bad; [(path, reason)] of each that
    cannot be opened, is empty, or is not 16 kHz mono.
    """
    seconds = np.full(len(paths), np.nan)
    bad, doubts = [], []
    results = parallel_map(_duration, paths, num_workers, "reading headers", "file")
    for row, (duration, reason, doubt) in enumerate(results):
        if reason is None:
            seconds[row] = duration
        else:
            bad.append((paths[row], reason))
        if doubt is not None:
            doubts.append((paths[row], doubt))
    warn_of_doubts(doubts)
    return seconds, bad


def _duration(path):
    """(seconds or None, why it is bad or None, Doubt or None)."""
    try:
        header, doubt = inspect(path)
    except InputError as error:
        return None, str(error).removeprefix(f"{path}: "), None
    if header.sample_rate != SAMPLE_RATE or header.channels != 1:
        seen = f"{header.sample_rate} Hz with {header.channels} channel(s)"
        return None, f"{seen}, expected {SAMPLE_RATE} Hz mono", None
    if header.frames < 1:
        return None, "0 samples, expected sound", None
    return header.frames / SAMPLE_RATE, None, doubt


def report_bad_files(bad, save_folder, max_bad_files, indispensable=frozenset()):
    """List bad recordings in ``bad_files.txt``; stop where there are too many.

    ``bad`` are (path, reason); of the paths in ``indispensable``, such as those of a
    trial list, none may be left out. InputError names the first and the list.
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
