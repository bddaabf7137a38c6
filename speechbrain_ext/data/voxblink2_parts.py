"""A large corpus read in parts of some hundred speakers, each kept in a file.

A part is written as soon as it is done, and its file says what it was made from, so
that a run that was killed goes on behind its last ones.
"""

import hashlib
import json

import numpy as np

from speechbrain_ext.data.arrow_manifest import encode, read_table, write_table
from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.data.duplicates import find_duplicates
from speechbrain_ext.errors import InputError

SPEAKERS_PER_PART = 500
FOUND = ("speakers", "videos", "utterances", "of_several_channels")
LEFT_OUT = ("bad_files", "too_short", "duplicates", "unlisted")


class Parts:
    """The parts of a corpus.

    Arguments
    ---------
    folder : Path
        Where they are kept.
    corpus : Corpus
        Whose speakers they have.
    settings : dict
        ``min_seconds``, ``drop_duplicates``, and what else decides on their content.
    prefix : str
        Put before every speaker and ID.
    videos : dict of str to str, optional
        As from ``read_spk2videos``: speakers and videos that it lacks are left out.

    Attributes
    ----------
    numbers : range
        Of the parts.
    n_unlisted_speakers : int
        How many speakers ``videos`` lacks.
    """

    def __init__(self, folder, corpus, settings, prefix, videos=None):
        self.folder, self.corpus, self.settings = folder, corpus, settings
        self.prefix, self.videos = prefix, videos
        speakers = corpus.speakers()
        self.speakers = [s for s in speakers if videos is None or s in videos]
        self.n_unlisted_speakers = len(speakers) - len(self.speakers)
        self.numbers = range(-(-len(self.speakers) // SPEAKERS_PER_PART))

    def make(self, number):
        """Read and write one part; True where it was there already."""
        first = number * SPEAKERS_PER_PART
        speakers = self.speakers[first : first + SPEAKERS_PER_PART]
        key = self._key(speakers)
        if _key_of(self._path(number)) == key:
            return True
        details = {"key": key, "bad": [], "duplicates": []}
        details |= {"found": dict.fromkeys(FOUND, 0)}
        details |= {"left_out": dict.fromkeys(LEFT_OUT, 0)}
        columns = [], [], [], []
        for speaker in speakers:
            for column, more in zip(columns, self._rows_of(speaker, details)):
                column.extend(more)
        # Checked when all are joined: a part may be empty.
        write_table(self._path(number), encode(*columns), details=details, check=False)
        return False

    def collect(self):
        """(table, details) of every part."""
        found = (read_table(self._path(number)) for number in self.numbers)
        return [(table, details) for table, _, details in found]

    def _path(self, number):
        return self.folder / f"{number:05d}.arrow"

    def _key(self, speakers):
        """What the content of a part depends on, in short."""
        lines = [self.videos[name] for name in speakers] if self.videos else None
        text = json.dumps([self.settings, speakers, lines], default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _rows_of(self, speaker, details):
        """ids, paths, seconds, speakers of one speaker; counts into ``details``."""
        videos = set(self.videos[speaker].split()) if self.videos else None
        recordings = self.corpus.read(speaker, videos)
        names, paths, frames = recordings[:3]
        found, left_out = details["found"], details["left_out"]
        found["speakers"] += bool(names)
        found["videos"] += len({name.split("/")[0] for name in names})
        found["utterances"] += len(names)
        found["of_several_channels"] += sum(n > 1 for n in recordings.channels)
        least = self.settings["min_seconds"] * SAMPLE_RATE
        rows = [row for row, length in enumerate(frames) if length >= least]
        left_out["too_short"] += len(names) - len(rows)
        left_out["unlisted"] += recordings.n_unlisted
        ids = [f"{self.prefix}{speaker}/{name}" for name in names]
        bad = list(recordings.bad)
        if self.settings["drop_duplicates"]:
            rows, repeated, damaged = _without_duplicates(rows, paths, frames)
            left_out["duplicates"] += len(repeated)
            details["duplicates"] += [(ids[row], ids[of]) for row, of in repeated]
            bad += damaged
        left_out["bad_files"] += len(bad)
        details["bad"] += bad
        return (
            [ids[row] for row in rows],
            [paths[row] for row in rows],
            (np.array([frames[row] for row in rows]) / SAMPLE_RATE).tolist(),
            [self.prefix + speaker] * len(rows),
        )


def _without_duplicates(rows, paths, frames):
    """Rows to keep, (row, row that it repeats), (path, reason) of damaged files."""
    again, damaged = find_duplicates(
        [paths[row] for row in rows], [frames[row] for row in rows]
    )
    dropped = {*again, *(place for place, _ in damaged)}
    kept = [row for place, row in enumerate(rows) if place not in dropped]
    repeated = [(rows[place], rows[of]) for place, of in again.items()]
    return kept, repeated, [(paths[rows[place]], why) for place, why in damaged]


def _key_of(path):
    """The key of a part, or None where there is none, or no whole one."""
    try:
        return read_table(path)[2]["key"]
    except (InputError, TypeError, KeyError):
        return None
