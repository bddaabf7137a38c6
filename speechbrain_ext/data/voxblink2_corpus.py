"""VoxBlink2 on the disk: its list of videos, its folders, the headers of its files.

    FOLDER/id000000/VIDEO/00000.wav      speaker, YouTube video, crop
    spk2videos                           lines ``id000000 VIDEO VIDEO ...``, all of them

as the corpus's own scripts leave them (github.com/VoxBlink2/ScriptsForVoxBlink2).
"""

import os
import re
from typing import NamedTuple

from speechbrain_ext.data.audio import SAMPLE_RATE, read_header
from speechbrain_ext.data.scan import check_same_file, list_recordings
from speechbrain_ext.errors import InputError

EXPECTED = "FOLDER/id000000/VIDEO/00000.wav or FOLDER/audio/id000000/VIDEO/00000.wav"
_SPEAKER = re.compile(r"id\d+")
# Where speakers may lie. cropper_audio.py leaves an empty ``audio`` among the speakers.
_INSIDE = ("audio", "wav", "flac")


class Recordings(NamedTuple):
    """The recordings of one speaker, sorted by name.

    Attributes
    ----------
    names : list of str
        [N], VIDEO/FILE without extension.
    paths : list of str
        [N].
    frames : list of int
        [N], samples of each channel.
    channels : list of int
        [N].
    bad : list of (str, str)
        Path and reason of those that cannot be used; they are not among the others.
    n_unlisted : int
        How many belong to videos that were not asked for.
    """

    names: list
    paths: list
    frames: list
    channels: list
    bad: list
    n_unlisted: int = 0


class Corpus:
    """Who speaks, and what there is of one speaker.

    Arguments
    ---------
    folders : list of Path
        A speaker may be spread over several.

    Raises
    ------
    InputError
        A folder that is missing or has no speakers.
    """

    def __init__(self, folders):
        self._folders, self.holders = {}, []
        for root in folders:
            if not root.is_dir():
                raise InputError(f"{root}: no such folder, expected {EXPECTED}")
            before = len(self.holders)
            for holder in (root, *(root / name for name in _INSIDE)):
                self._add(holder)
            if len(self.holders) == before:
                raise InputError(f"{root}: no speakers, expected {EXPECTED}")

    def _add(self, holder):
        names = _speakers_in(holder) if holder.is_dir() else []
        if names and holder not in self.holders:
            self.holders.append(holder)
            for name in names:
                self._folders.setdefault(name, []).append(holder / name)

    def speakers(self):
        """Names of all speakers, sorted."""
        return sorted(self._folders)

    def read(self, speaker, videos=None):
        """List the recordings of a speaker and read their headers.

        Arguments
        ---------
        speaker : str
        videos : set of str, optional
            Only these.

        Returns
        -------
        Recordings

        Raises
        ------
        InputError
            Two files of one name; white space in a name.
        """
        paths, n_unlisted = {}, 0
        for folder in self._folders[speaker]:
            for name, path in list_recordings(folder, "", levels=1)[0]:
                if videos is not None and name.split("/")[0] not in videos:
                    n_unlisted += 1
                elif paths.setdefault(name, path) != path:
                    check_same_file(f"{speaker}/{name}", paths[name], path)
        return _read_headers(paths)._replace(n_unlisted=n_unlisted)


def read_spk2videos(path):
    """``spk2videos``: {speaker: its videos, separated by spaces}.

    One text for each speaker takes a tenth of the memory of a set.

    Raises
    ------
    InputError
        A missing file; a line without speaker, a speaker that comes twice.
    """
    videos = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                speaker, *listed = line.replace(",", " ").split()
                place = f"{path}: line {number}: {speaker!r}"
                if not _SPEAKER.fullmatch(speaker):
                    raise InputError(f"{place}, expected 'id000000 VIDEO VIDEO ...'")
                if speaker in videos:
                    raise InputError(f"{place} seen before, expected each once")
                videos[speaker] = " ".join(listed)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: expected UTF-8 text") from error
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}, expected VoxBlink2's spk2videos"
        ) from error
    return videos


def _speakers_in(folder):
    with os.scandir(folder) as entries:
        return [e.name for e in entries if _SPEAKER.fullmatch(e.name) and e.is_dir()]


def _read_headers(paths):
    good, bad = [], []
    for name, path in sorted(paths.items()):
        try:
            frames, rate, channels = read_header(path)
        except InputError as error:
            bad.append((path, str(error).removeprefix(f"{path}: ")))
            continue
        if rate != SAMPLE_RATE:
            bad.append((path, f"{rate} Hz, expected {SAMPLE_RATE} Hz"))
        elif frames < 1:
            bad.append((path, "0 samples, expected sound"))
        else:
            good.append((name, path, frames, channels))
    columns = [list(column) for column in zip(*good)] or [[], [], [], []]
    return Recordings(*columns, bad)
