"""Preparing a corpus: recordings → training, validation and test, with no leak.

    find(options, IDs of the trial lists, threads) → a Row of each recording
    prepare(options, find)                         → manifests, trials, prepare.json

A corpus is one function that finds its recordings and says of each who speaks, in which
session; :mod:`speechbrain_ext.data.prepare.folders` does it where folder names tell.
All else is the same for every corpus. A speaker of a trial list is never trained on,
whatever folder the recordings are in; nor is a validation speaker
(:mod:`speechbrain_ext.data.prepare.splits`).

Everything is read and checked before anything is written: every line of every list is
looked up, every header is opened. The marker comes last, so that a rerun knows whether
the files are those of the same arguments (:mod:`speechbrain_ext.utils.jobs`).
"""

import logging
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.data.audio import (
    BAD_FILES,
    SAMPLE_RATE,
    parts_of,
    read_durations,
    report_bad_files,
    segment_path,
)
from speechbrain_ext.data.concatenated_audio import join_short
from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.data.prepare.convert import convert_where_needed
from speechbrain_ext.data.prepare.selection import choose_training, read_trial_lists
from speechbrain_ext.data.prepare.splits import split
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.files import composed, write_atomically
from speechbrain_ext.utils.jobs import ABSENT, Marker, digest_of, states_of

logger = logging.getLogger(__name__)

TRAIN, VALID, TEST = "train.csv", "valid.csv", "test.csv"
VALID_TRIALS = "valid_trials.txt"
# A rounded duration is all right; one that is further off is of another recording.
TOLERANCE = 0.5  # seconds


class Row(NamedTuple):
    """One recording of a corpus.

    Attributes
    ----------
    id : str
        As trial lists name it, without extension.
    path : str
        The sound file.
    speaker : str
    session : str
        What was recorded on one occasion, unique over speakers. That of a recording
        that is only tested is not read.
    split : str or None
        ``train`` or ``test`` for what may be used for nothing else.
    genre : str
        Kind of speech: counted by itself, and never joined with another.
    seconds : float or None
        Where the corpus says how long it is: checked.
    place : str
        File and line where it is listed, for messages.
    start, stop : int or None
        Of a segment of the recording, the first sample at 16 kHz, and the one after the
        last; None: its end.
    """

    id: str
    path: str
    speaker: str
    session: str
    split: str | None = None
    genre: str = ""
    seconds: float | None = None
    place: str = ""
    start: int = 0
    stop: int | None = None

    @property
    def is_cut(self):
        """Whether it is a segment of the recording."""
        return self.start > 0 or self.stop is not None

    @property
    def name(self):
        """The recording in messages."""
        return f"{self.place}: {self.path}" if self.place else self.path


@dataclass(kw_only=True)
class PrepareOptions:
    """Every argument that shapes the result, checked, its paths resolved.

    Lists may be given as one value, several or None. The attributes are described
    where users meet them, in :mod:`speechbrain_ext.data.corpora`.
    """

    save_folder: Path
    train_folders: list = ()
    test_folders: list = ()
    trial_lists: list = ()
    train_lists: list = ()
    exclude_speakers: list = ()
    n_valid_speakers: int = 0
    n_valid_trials: int = 2
    max_valid_utterances: int = 2
    min_seconds: float = 0
    max_bad_files: int = 0
    convert_folder: Path | None = None
    seed: int = 0
    enrol_maps: list = ()
    join_seconds: float = 0

    def __post_init__(self):
        for name in (
            *("train_folders", "test_folders", "trial_lists", "train_lists"),
            "enrol_maps",
        ):
            setattr(self, name, [resolve(p) for p in as_list(getattr(self, name))])
        self.exclude_speakers = sorted(
            {composed(str(s)) for s in as_list(self.exclude_speakers)}
        )
        self.save_folder = resolve(self.save_folder)
        folder = self.convert_folder
        self.convert_folder = resolve(folder) if folder else None
        if not self.train_folders and not (self.test_folders and self.trial_lists):
            raise InputError(
                "train_folders is empty, expected at least one folder, or test_folders "
                "and trial_lists, to prepare for test alone"
            )
        self._check_numbers()
        if self.test_folders and not self.trial_lists:
            logger.warning("test_folders is given but no trial_lists: it is not used")
        if self.enrol_maps and not self.trial_lists:
            raise InputError(
                f"enrol_map={self.enrol_maps[0]} without trial_lists, expected the "
                "lists whose enrol side names its models"
            )
        self.test_folders = self.test_folders or self.train_folders

    def _check_numbers(self):
        check_at_least("n_valid_speakers", self.n_valid_speakers, 0)
        if self.n_valid_speakers == 1:
            raise InputError(
                "n_valid_speakers=1, expected 0 or at least 2: trials compare speakers"
            )
        check_at_least("n_valid_trials", self.n_valid_trials, 2)
        check_at_least("max_valid_utterances", self.max_valid_utterances, 2)
        check_at_least("min_seconds", self.min_seconds, 0, whole=False)
        check_at_least("join_seconds", self.join_seconds, 0, whole=False)
        check_at_least("max_bad_files", self.max_bad_files, 0)
        check_at_least("seed", self.seed, 0)


def resolve(path):
    """``~`` expanded, relative to the current folder, links followed."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"{path!r}, expected the name of a file or folder")
    return Path(path).expanduser().resolve()


def as_list(values):
    """A list from what YAML or a command line may give: nothing, one value, several."""
    if values is None:
        return []
    return [values] if isinstance(values, (str, os.PathLike)) else list(values)


class Prepared(NamedTuple):
    """What a preparation left behind; None for a file that was not asked for.

    Attributes
    ----------
    train, valid, valid_trials, test : Path or None
        The files.
    counts : dict
        Speakers, utterances and hours of each split, the trials of each list, and
        how much was left out.
    skipped : bool
        Whether all files were there already.
    """

    train: Path | None
    valid: Path | None
    valid_trials: Path | None
    test: Path | None
    counts: dict
    skipped: bool


def prepare(options, find, num_workers=16, source=None):
    """Prepare a corpus, or return at once where that was done before.

    Arguments
    ---------
    options : PrepareOptions
        What to do. All of it is in the fingerprint, and so are size and time of its
        lists. Those of the recordings are compared as long as all are there.
    find : callable
        (options, IDs of the trial lists, num_workers) → list of Row: every recording
        that may be trained on and every one of those IDs that there is, in an order
        that does not depend on the disk.
    num_workers : int
        Threads. Changes neither the result nor the fingerprint.
    source : Path, optional
        The file that lists the recordings, where ``find`` reads one; it is then the
        corpus's train list. None: the recordings are those below the folders.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        Anything wrong with a folder, a list or a recording. Files of an earlier run
        are then as they were.
    """
    check_at_least("num_workers", num_workers, 1)
    lists = [*options.trial_lists, *options.train_lists, *options.enrol_maps]
    marker = Marker.of(options.save_folder, asdict(options), lists)
    manifests = [marker.folder / name for name in (TRAIN, VALID, TEST)]
    states = partial(states_of_manifests, manifests, num_workers)
    counts = marker.load(states)
    skipped = counts is not None
    if not skipped:
        contents, counts = _read(options, find, num_workers, source)
        _write(marker, contents, counts, states)
    _log_counts(counts)
    files = [marker.folder / name for name in (TRAIN, VALID, VALID_TRIALS, TEST)]
    return Prepared(*(f if f.is_file() else None for f in files), counts, skipped)


def _read(options, find, num_workers, source):
    """Read and check everything → {file name: what goes into it}, counts."""
    tested = read_trial_lists(options)
    rows = find(options, tested.ids, num_workers)
    by_id = {row.id: row for row in rows if row.split != "train"}
    tested.check_found(
        list(by_id),
        source or f"the recordings below {_in_words(options.test_folders)}",
    )
    test_rows = [by_id[name] for name in tested.ids]
    rows = [row for row in rows if row.split != "test"]
    left_out, contents = {}, {}
    if rows:
        train_lists = options.train_lists if source is None else ()
        of_train = source or _in_words(options.train_folders)
        never = options.exclude_speakers
        rows, left_out = choose_training(rows, test_rows, train_lists, never, of_train)
    usable, test_rows = _open(options, rows, test_rows, num_workers)
    counts = {"train": {}, "valid": {}, "test": tested.count(), "left_out": left_out}
    if rows:
        left_out["bad_files"] = len(rows) - len(usable)
        train, valid, pairs = split(options, _manifest(usable), left_out)
        if options.join_seconds:
            # Not those of the validation, which is as the test: one at a time.
            counts["train"]["recordings"] = len(train)
            train = join_short(
                train, *map(train.extra.get, ("session", "genre")), options.join_seconds
            )
        contents[TRAIN] = train
        if valid is not None:
            contents |= {VALID: valid, VALID_TRIALS: _trial_lines(valid, pairs)}
            n_target = int(pairs.labels.sum())
            n_nontarget = len(pairs.labels) - n_target
            counts["valid"] = {"target": n_target, "nontarget": n_nontarget}
    if test_rows:
        contents[TEST] = _manifest(test_rows)
    for name in contents.keys() - {VALID_TRIALS}:
        counts[Path(name).stem] |= _count(contents[name], contents[name].extra["genre"])
    return contents, counts


def _open(options, rows, test_rows, num_workers):
    """Open every recording → usable rows and test rows, with paths and seconds."""
    both = [*rows, *test_rows]
    paths = {row.id: row.path for row in both}
    reasons = {}
    if not any(row.place for row in both):  # a list's m4a files are bad files
        failed = convert_where_needed(paths, options.convert_folder, num_workers)
        reasons = dict(failed)
    files = list(dict.fromkeys(paths.values()))  # one may hold many segments
    seconds, unreadable = read_durations(files, num_workers)
    seconds = dict(zip(files, seconds.tolist()))
    reasons |= dict(unreadable)
    usable, bad = [], []
    for row in both:
        path = paths.get(row.id, row.path)  # of the copy, if it was converted
        reason = reasons.get(path)
        if reason is None:
            found, reason = _checked(row._replace(path=path), seconds[path])
        if reason is None:
            usable.append(found)
            continue
        if not os.path.exists(path):
            reason = "no such file"
        bad.append((row._replace(path=path).name, reason))
    needed = {row._replace(path=paths.get(row.id, row.path)).name for row in test_rows}
    report_bad_files(bad, options.save_folder, options.max_bad_files, needed)
    n_test = len(test_rows)  # all usable
    n_train = len(usable) - n_test
    return usable[:n_train], usable[n_train:]


def _checked(row, seconds):
    """A row of a recording of so many seconds → the row with its own; what is wrong.

    A segment may end a little behind the recording, as far as Kaldi allows it: there
    it is cut. Its duration may be stated as that of the recording.
    """
    lengths = [seconds]
    if row.is_cut:
        frames = round(seconds * SAMPLE_RATE)
        stop = frames if row.stop is None else row.stop
        if row.start >= frames or stop > frames + TOLERANCE * SAMPLE_RATE:
            return row, (
                f"lasts {frames} samples, expected more for the segment of "
                f"{row.start} to {stop}"
            )
        stop = min(stop, frames)
        lengths.append((stop - row.start) / SAMPLE_RATE)
        if (row.start, stop) != (0, frames):
            row = row._replace(path=segment_path(row.path, row.start, stop))
    if row.seconds is not None and all(
        abs(row.seconds - length) > TOLERANCE for length in lengths
    ):
        return row, (
            f"lasts {lengths[-1]:.2f} s, duration says {row.seconds:g}, expected them "
            f"to agree within {TOLERANCE} s, or no duration"
        )
    return row._replace(seconds=lengths[-1]), None


def _manifest(rows):
    columns = list(zip(*rows))
    extra = {"session": columns[3], "genre": columns[5]}
    return Manifest(columns[0], columns[1], columns[6], columns[2], extra=extra)


def _trial_lines(valid, pairs):
    names = valid.ids.tolist()
    columns = (column.tolist() for column in pairs)
    return [f"{label} {names[a]} {names[b]}\n" for label, a, b in zip(*columns)]


def _in_words(folders):
    return ", ".join(map(str, folders))


def states_of_manifests(paths, num_workers):
    """Of all recordings in prepared manifests, a text; None where one is not there.

    They may be packed into shards, and gone. A manifest may be missing.
    """
    files = {}
    for path in paths:
        for row in read_manifest(path).paths.tolist() if path.is_file() else ():
            files |= dict.fromkeys(part.file for part in parts_of(row))
    states = states_of([[file] for file in sorted(files)], num_workers)
    return None if (states == ABSENT).any() else digest_of(states.tolist())


def _write(marker, contents, counts, states):
    """Write all files, drop those of an earlier run, and the marker at the end."""
    marker.remove()
    for name in (TRAIN, VALID, TEST, VALID_TRIALS):
        path, content = marker.folder / name, contents.get(name)
        if content is None:
            path.unlink(missing_ok=True)
        elif isinstance(content, Manifest):
            write_manifest(path, replace(content, extra={}))
        else:
            with write_atomically(path) as file:
                file.writelines(content)
    listed = [BAD_FILES] if (marker.folder / BAD_FILES).is_file() else []
    marker.save([*contents, *listed], counts, states())


def _count(manifest, genres):
    """Speakers, utterances and hours, and the same of each genre where there are."""
    counts = {
        "speakers": len(manifest.speaker_names),
        "utterances": len(manifest),
        "hours": float(manifest.durations.sum() / 3600),
    }
    names, codes = np.unique(genres, return_inverse=True)
    if names.tolist() != [""]:
        counts["genres"] = {
            name: _count(manifest.select(codes == code), "")
            for code, name in enumerate(names.tolist())
        }
    return counts


def _log_counts(counts):
    for name in ("train", "valid", "test"):
        seen = counts[name]
        if "utterances" not in seen:
            logger.info("%s: none asked for, no file written", name)
            continue
        _log_sizes(name, seen)
        if "recordings" in seen:
            logger.info("%s: joined from %d recordings", name, seen["recordings"])
        for genre, of_genre in seen.get("genres", {}).items():
            _log_sizes(f"{name}, {genre}", of_genre)
    lists = dict(counts["test"]["lists"])
    if "target" in counts["valid"]:
        lists["validation trials"] = counts["valid"]
    for name, seen in lists.items():
        n_target, n_nontarget = seen["target"], seen["nontarget"]
        logger.info("%s: %d target, %d non-target", name, n_target, n_nontarget)
    if "models" in counts["test"]:
        logger.info("enrol side: %d models", counts["test"]["models"])
    if counts["left_out"]:
        logger.info("left out: %s", counts["left_out"])


def _log_sizes(name, seen):
    sizes = (seen[key] for key in ("speakers", "utterances", "hours"))
    logger.info("%s: %d speakers, %d utterances, %.2f hours", name, *sizes)
