"""Which recordings some folders and files stand for, and how they are called.

The ID of a recording is its path below the folder that was given, without extension, as
in the recipes: ``id1/session/1`` of ``FOLDER/id1/session/1.flac``. Of a file that was
given by itself it is the file's name.
"""

import os
from pathlib import Path
from typing import NamedTuple

from speechbrain_ext.data.audio import SOUND_FILES
from speechbrain_ext.data.scan import NEEDS_CONVERSION, check_same_file
from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.trials import utterance_id

# m4a cannot be read; it is listed so that it is among the failures, not passed over
SUFFIXES = (*SOUND_FILES, NEEDS_CONVERSION)


class Listing(NamedTuple):
    """Recordings that were found.

    Attributes
    ----------
    ids, paths : list of str
        [N], in order of the IDs within each input.
    refused : list of (str, str)
        Path and reason of those whose names cannot be an ID.
    ignored : int
        Files in folders that are no recordings.
    """

    ids: list
    paths: list
    refused: list
    ignored: int


def list_inputs(inputs):
    """Find the recordings of folders, all below them, and files.

    Hidden files and folders are ignored. Links are followed.

    Arguments
    ---------
    inputs : list of str or Path

    Returns
    -------
    Listing

    Raises
    ------
    InputError
        An input that is not there, or holds no recordings; two files with one ID.
    """
    found, refused, ignored = {}, [], 0
    for given in map(Path, inputs):
        if given.is_dir():
            pairs, more = _in_folder(given)
            ignored += more
        elif given.exists():
            pairs = [(utterance_id(given.name), str(given))]
        else:
            raise InputError(
                f"{given}: no such file or folder, expected recordings or folders of "
                "them"
            )
        for name, path in sorted(pairs):
            if why := _unfit(name):
                refused.append((path, f"{why} in its name, expected none"))
            elif (known := found.setdefault(name, path)) is not path:
                check_same_file(name, known, path)
    return Listing(list(found), list(found.values()), refused, ignored)


def _unfit(name):
    """What an ID has that no trial list could hold, or None."""
    if any(letter.isspace() for letter in name):
        return "white space"
    return None if name.isprintable() else "characters that cannot be printed"


def _in_folder(root):
    """[(ID, path)] of all recordings below a folder, and how many other files."""
    pairs, ignored, seen = [], 0, set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=_stop):
        here = os.path.realpath(folder)
        if here in seen:  # a link to a folder above itself has no end
            below.clear()
            continue
        seen.add(here)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                path = os.path.join(folder, name)
                inside = Path(path).relative_to(root).as_posix()
                pairs.append((utterance_id(inside), path))
            else:
                ignored += 1
    if not pairs:
        raise InputError(
            f"{root}: no recordings in it or below, expected "
            f"{', '.join(f'*{suffix}' for suffix in SOUND_FILES)}"
        )
    return pairs, ignored


def _stop(error):
    raise error
