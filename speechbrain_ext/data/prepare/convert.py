"""m4a → flac through ffmpeg or PyAV, many at a time, resumable.

VoxCeleb2 comes as AAC in m4a files, which cannot be read from their middle. Each is
converted once to 16 kHz mono 16 bit flac: lossless, half the size of wav, and a crop of
it costs no more than its own length. A copy appears by a rename, so a copy that exists
is whole, and a run that was stopped continues.
"""

import contextlib
import errno
import logging
import os
import shutil
import subprocess
from pathlib import Path

import soundfile

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.data.sound import media
from speechbrain_ext.scoring.trials import MEDIA_FILES
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)


def convert_where_needed(paths, convert_folder, num_workers=16):
    """Convert those recordings that crops cannot be read from.

    Arguments
    ---------
    paths : dict of str to str
        Utterance ID → recording; those of
        ``MEDIA_FILES`` (m4a, mp4, …) are replaced by their copies in place.
    convert_folder : Path or None
        Where the copies go, ``convert_folder/ID.flac``.
    num_workers : int
        How many files are converted at a time.

    Returns
    -------
    list of (str, str)
        Recording and reason of each that could not be converted; these are taken
        out of ``paths``.

    Raises
    ------
    InputError
        There are such files, but neither ffmpeg nor PyAV, or no ``convert_folder``.
    OSError
        The disk is full.
    """
    wanted = [
        (utterance, path)
        for utterance, path in paths.items()
        if path.lower().endswith(MEDIA_FILES)
    ]
    if not wanted:
        return []
    kinds = _kinds([path for _, path in wanted])
    if not media.is_available() or convert_folder is None:
        _refuse([path for _, path in wanted], kinds)
    ffmpeg = shutil.which("ffmpeg")

    def convert(item):
        utterance, path = item
        return _convert(ffmpeg, path, Path(convert_folder, f"{utterance}.flac"))

    bad, n_new = [], 0
    results = parallel_map(
        convert, wanted, num_workers, f"converting {kinds}", "file", chunk=8
    )
    for (utterance, path), (copy, reason, is_new) in zip(wanted, results):
        n_new += is_new
        if reason is None:
            paths[utterance] = str(copy)
        else:
            del paths[utterance]
            bad.append((path, reason))
    logger.info(
        "%d %s files: %d converted to %s, %d there already, %d failed",
        len(wanted),
        kinds,
        n_new,
        convert_folder,
        len(wanted) - n_new - len(bad),
        len(bad),
    )
    return bad


def _kinds(paths):
    return ", ".join(sorted({Path(path).suffix[1:].lower() for path in paths}))


def _refuse(paths, kinds):
    seen = "one is there" if media.is_available() else "neither is there"
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    raise InputError(
        f"{root}: {len(paths)} {kinds} files, of which no crops can be read; expected "
        f"ffmpeg on PATH or PyAV, pip install av (now {seen}), and --convert_folder to "
        f"convert them, or {SAMPLE_RATE} Hz mono wav or flac that you made of them "
        "yourself"
    )


def _convert(ffmpeg, source, copy):
    """→ (copy, None or why it failed, whether it was made now)."""
    with contextlib.suppress(FileNotFoundError):
        if copy.stat().st_size > 0:
            return copy, None, False
    copy.parent.mkdir(parents=True, exist_ok=True)
    beside = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    if ffmpeg is None:
        return _convert_with_pyav(source, copy, beside)
    # Without -xerror a damaged file becomes a shorter one, and ffmpeg is content.
    command = [ffmpeg, "-nostdin", "-v", "error", "-xerror", "-y", "-threads", "1"]
    command += ["-i", f"file:{source}", "-map", "0:a:0", "-map_metadata", "-1"]
    command += ["-ac", "1", "-ar", str(SAMPLE_RATE), "-sample_fmt", "s16"]
    # To a file, not a pipe: flac's header is completed at the end.
    command += ["-f", "flac", f"file:{beside}"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0:
            os.replace(beside, copy)
            return copy, None, True
    finally:
        beside.unlink(missing_ok=True)
    message = done.stderr.decode(errors="replace").strip()
    if os.strerror(errno.ENOSPC) in message:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy))
    last = message.splitlines()[-1] if message else f"exit code {done.returncode}"
    return copy, f"ffmpeg cannot convert it ({last})", False


def _convert_with_pyav(source, copy, beside):
    """As :func:`_convert`."""
    try:
        with (
            open(source, "rb") as file,
            soundfile.SoundFile(
                *(beside, "w", SAMPLE_RATE, 1, "PCM_16"), format="FLAC"
            ) as target,
        ):
            for wav in media.mono_blocks(file, SAMPLE_RATE):
                target.write(wav)
        os.replace(beside, copy)
        return copy, None, True
    except InputError as error:
        return copy, f"PyAV cannot convert it ({error})", False
    finally:
        beside.unlink(missing_ok=True)
