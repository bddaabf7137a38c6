"""Reading the headers of many recordings, and what becomes of the bad ones.

Bad recordings are collected instead of stopping at the first: a user with a thousand
of them sees all at once, and decides how many are few enough to be left out.
"""

import logging

import numpy as np

from speechbrain_ext.data.audio import SAMPLE_RATE, read_header
from speechbrain_ext.data.parallel import parallel_map
from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_atomically

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
