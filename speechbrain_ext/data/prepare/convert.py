"""m4a → flac through ffmpeg, many at a time, resumable.

VoxCeleb2 comes as AAC in m4a files, which soundfile cannot read. Each is converted
once to 16 kHz mono 16 bit flac: lossless, and half the size of wav. A copy appears by a
rename, so a copy that exists is whole, and a run that was stopped continues.
"""

import contextlib
import errno
import logging
import os
import shutil
import subprocess
from pathlib import Path

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

NEEDS_CONVERSION = ".m4a"


def convert_where_needed(paths, convert_folder, num_workers=16):
    """Convert the m4a files, which soundfile cannot read, by ffmpeg.

    In ``paths``, utterance ID → recording, they are replaced by
    ``convert_folder/ID.flac``. → [(recording, reason)] of those that ffmpeg could not
    convert, which are taken out of ``paths``. InputError: there are some, but no ffmpeg
    or no ``convert_folder``; OSError: the disk is full.
    """
    wanted = [
        (utterance, path)
        for utterance, path in paths.items()
        if path.lower().endswith(NEEDS_CONVERSION)
    ]
    if not wanted:
        return []
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None or convert_folder is None:
        _refuse([path for _, path in wanted], ffmpeg)

    def convert(item):
        utterance, path = item
        return _convert(ffmpeg, path, Path(convert_folder, f"{utterance}.flac"))

    bad, n_new = [], 0
    results = parallel_map(
        convert, wanted, num_workers, "converting m4a", "file", chunk=8
    )
    for (utterance, path), (copy, reason, is_new) in zip(wanted, results):
        n_new += is_new
        if reason is None:
            paths[utterance] = str(copy)
        else:
            del paths[utterance]
            bad.append((path, reason))
    logger.info(
        "%d m4a files: %d converted to %s, %d there already, %d failed",
        len(wanted),
        n_new,
        convert_folder,
        len(wanted) - n_new - len(bad),
        len(bad),
    )
    return bad


def _refuse(paths, ffmpeg):
    seen = "on PATH" if ffmpeg else "not on PATH"
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    raise InputError(
        f"{root}: {len(paths)} m4a files, which cannot be read as they are; expected "
        f"ffmpeg (now {seen}) and --convert_folder to convert them, or {SAMPLE_RATE} "
        "Hz mono wav or flac that you made of them yourself"
    )


def _convert(ffmpeg, source, copy):
    """→ (copy, None or why it failed, whether it was made now)."""
    with contextlib.suppress(FileNotFoundError):
        if copy.stat().st_size > 0:
            return copy, None, False
    copy.parent.mkdir(parents=True, exist_ok=True)
    beside = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
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
