"""What a user's own CSV file lists: which recordings there are, and who speaks.

    ID,duration,wav,spk_id
    anna/monday,3.2,recordings/a17.wav,anna
    anna/friday,,recordings/a18.flac,anna

Columns in any order; others are passed over, and logged. ``duration`` may be empty or
missing. A column ``session`` tells what was recorded on one occasion; without it that
is the folder in the ID, or each recording by itself.

A row is checked as far as the text goes; the recordings are not opened.

Preparing a user's own corpus: what a CSV file lists, wherever the files are.

    CSV file → recordings, opened and checked → training, validation, test

No layout of folders is asked for: the file says who speaks where
(:mod:`speechbrain_ext.data.corpora.csv_file`). A speaker of a trial list is never
trained on, nor is a validation speaker.
"""

import csv
import logging
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.data.audio import JOINT, read_durations, report_bad_files
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.data.prepare.folders import session_of
from speechbrain_ext.data.prepare.pipeline import (
    PrepareOptions,
    check_at_least,
    resolve,
)
from speechbrain_ext.data.prepare.selection import read_trial_lists
from speechbrain_ext.data.prepare.splits import TEST, add_counts, prepare_once, split
from speechbrain_ext.data.shards.members import MARK
from speechbrain_ext.scoring.trials import utterance_id
from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)

NEEDED = ("ID", "wav", "spk_id")
OPTIONAL = ("duration", "session")
SEGMENTS = ("start", "stop")  # of SpeechBrain's own recipes


class Row(NamedTuple):
    """One recording as it is listed.

    Attributes
    ----------
    place : str
        File and line, for messages.
    id : str
        Without a sound file's extension, as in trial lists.
    path : str
        Absolute, or from the current folder.
    seconds : float or None
        None where the row does not say.
    speaker, session : str
    """

    place: str
    id: str
    path: str
    seconds: float | None
    speaker: str
    session: str


def read_listing(path, data_folder=None):
    """Read such a file.

    Arguments
    ---------
    path : str or Path
        CSV, UTF-8, with a header.
    data_folder : str or Path, optional
        Where relative paths in ``wav`` begin; None: the folder of the CSV file.

    Returns
    -------
    list of Row
        In the file's order.

    Raises
    ------
    InputError
        Names file and line: missing file, a header without a column that is needed, a
        row of another length, an empty field, white space in an ID, a duration that is
        no positive number, an ID or a recording that comes twice, no rows.
    """
    path = Path(path)
    folder = path.parent if data_folder is None else Path(data_folder)
    rows, ids, files = [], {}, {}
    for place, fields in _fields(path):
        row = _row(place, fields, folder)
        for what, value, seen in (("ID", row.id, ids), ("wav", row.path, files)):
            first = seen.setdefault(value, place)
            if first is not place:
                raise InputError(
                    f"{place}: {what} {value!r} again, expected each once (also in "
                    f"{first.removeprefix(f'{path}, ')})"
                )
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no rows below the header, expected recordings")
    return rows


def _fields(path):
    """(place, {column: text}) of every row; blank lines are passed over."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            for texts in reader:
                place = f"{path}, line {reader.line_num}"
                if len(texts) == len(header):
                    yield place, dict(zip(header, map(str.strip, texts)))
                elif texts:
                    raise InputError(
                        f"{place}: {len(texts)} fields, expected {len(header)}: "
                        f"{','.join(header)}"
                    )
    except csv.Error as error:
        place = f"{path}, line {reader.line_num}"
        raise InputError(f"{place}: not valid CSV ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a CSV file") from error


def _check_header(path, header):
    missing = [name for name in NEEDED if name not in header]
    twice = [name for name in header if header.count(name) > 1]
    if missing or twice:
        wrong = f"no column {missing[0]!r}" if missing else f"{twice[0]!r} twice"
        raise InputError(
            f"{path}, line 1: {wrong} in {','.join(header)!r}, expected "
            f"'ID,duration,wav,spk_id'"
        )
    segments = [name for name in SEGMENTS if name in header]
    if segments:
        raise InputError(
            f"{path}, line 1: column {segments[0]!r}, expected whole recordings: cut "
            "them into files"
        )
    unread = [name for name in header if name not in NEEDED + OPTIONAL]
    if unread:
        logger.info("%s: columns that are not read: %s", path, ", ".join(unread))


def _row(place, fields, folder):
    for name in NEEDED:
        if not fields[name]:
            raise InputError(f"{place}: empty {name}, expected text")
    name, wav = utterance_id(fields["ID"]), fields["wav"]
    if any(letter.isspace() or not letter.isprintable() for letter in name):
        raise InputError(
            f"{place}: white space in ID {name!r}, expected none: lists separate names "
            "by spaces"
        )
    if JOINT in wav or MARK in wav or not wav.isprintable():
        raise InputError(
            f"{place}: wav {wav!r}, expected one file, without '{JOINT}', '{MARK}' and "
            "unprintable characters in its name"
        )
    return Row(
        place,
        name,
        str(folder / Path(wav).expanduser()),
        _seconds(place, fields.get("duration", "")),
        fields["spk_id"],
        fields.get("session", "") or session_of(name),
    )


def _seconds(place, text):
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InputError(
            f"{place}: duration {text!r}, expected seconds, or nothing: then the "
            "recording is asked"
        )
    return seconds


# A rounded duration is all right; one that is further off is of another recording.
TOLERANCE = 0.5  # seconds


def prepare_own_corpus(
    manifest,
    save_folder,
    data_folder=None,
    trial_lists=(),
    n_valid_speakers=40,
    n_valid_trials=4000,
    max_valid_utterances=10,
    min_seconds=0.4,
    max_bad_files=0,
    seed=1986,
    num_workers=16,
):
    """Prepare what a CSV file lists.

    A second call with the same arguments returns at once, unless the CSV file, a trial
    list or a written file has changed.

    Arguments
    ---------
    manifest : str or Path
        CSV file with the columns ``ID,duration,wav,spk_id``, see
        :mod:`speechbrain_ext.data.corpora.csv_file`. Recordings are 16 kHz mono, wav,
        flac, ogg or mp3.
    save_folder : str or Path
        Where train.csv, valid.csv, valid_trials.txt and prepare.json go.
    data_folder : str or Path, optional
        Where relative paths begin; None: the folder of the CSV file.
    trial_lists : str, Path or list of them
        Lines ``label enrol test`` or ``enrol test label`` of IDs in the CSV file. Their
        speakers are never trained on; their recordings go into test.csv.
    n_valid_speakers, n_valid_trials, max_valid_utterances : int
        Speakers held out of training, 0 for none; validation trials at most, half of
        them target; recordings of each such speaker at most.
    min_seconds : float
        Shorter recordings are not trained on.
    max_bad_files : int
        So many unusable recordings may be left out; one more is an error.
    seed : int
        Of the validation speakers, recordings and trials.
    num_workers : int
        Threads. Does not change the result, nor the fingerprint.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        Names file and line of the first thing that is wrong.
    """
    check_at_least("num_workers", num_workers, 1)
    manifest = resolve(manifest)
    options = PrepareOptions(
        train_folders=manifest.parent if data_folder is None else data_folder,
        train_lists=manifest,
        save_folder=save_folder,
        test_folders=(),
        trial_lists=trial_lists,
        exclude_speakers=(),
        n_valid_speakers=n_valid_speakers,
        n_valid_trials=n_valid_trials,
        max_valid_utterances=max_valid_utterances,
        min_seconds=min_seconds,
        max_bad_files=max_bad_files,
        convert_folder=None,
        seed=seed,
    )
    return prepare_once(options, partial(_read, options, num_workers))


def _read(options, num_workers):
    """Read and check everything. → {file name: what goes into it}, counts"""
    (path,), (folder,) = options.train_lists, options.train_folders
    rows = read_listing(path, folder)
    tested = read_trial_lists(options)
    by_id = {row.id: row for row in rows}
    tested.check_found(by_id, path)
    test_rows = [by_id[name] for name in tested.ids]
    of_test = {row.speaker for row in test_rows}
    rows = [row for row in rows if row.speaker not in of_test]
    _check_speakers(path, rows, of_test)

    usable = _usable(rows, test_rows, options, num_workers)
    counts = {"train": {}, "valid": {}, "test": tested.count()}
    kept = [row for row in rows if row.id in usable]
    counts["left_out"] = {"bad_files": len(rows) - len(kept)}
    contents = split(
        options, _manifest(kept, usable), [row.session for row in kept], counts
    )
    if test_rows:
        contents[TEST] = _manifest(test_rows, usable)
    add_counts(counts, contents)
    return contents, counts


def _check_speakers(path, rows, of_test):
    found = sorted({row.speaker for row in rows})
    if len(found) < 2:
        named = f" ({found[0]!r})" if found else ""
        others = f" beside {len(of_test)} of the trial lists" if of_test else ""
        raise InputError(
            f"{path}: {len(found)} speaker(s){named}{others}, expected at least 2 in "
            "spk_id to train on"
        )


def _usable(rows, test_rows, options, num_workers):
    """Seconds of each recording that can be used, by ID."""
    rows = [*rows, *test_rows]
    paths = [row.path for row in rows]
    durations, unreadable = read_durations(paths, num_workers)
    reasons = dict(unreadable)
    usable, bad = {}, []
    for row, seconds in zip(rows, durations.tolist()):
        reason = reasons.get(row.path) or _disagreement(row, seconds)
        if reason:
            if not os.path.exists(row.path):
                reason = "no such file"
            bad.append((f"{row.place}: {row.path}", reason))
        else:
            usable[row.id] = seconds
    needed = {f"{row.place}: {row.path}" for row in test_rows}
    report_bad_files(bad, options.save_folder, options.max_bad_files, needed)
    return usable


def _disagreement(row, seconds):
    """What is wrong with the duration that a row says, or None."""
    if row.seconds is None or abs(row.seconds - seconds) <= TOLERANCE:
        return None
    return (
        f"lasts {seconds:.2f} s, duration says {row.seconds:g}, expected them to agree "
        f"within {TOLERANCE} s, or no duration"
    )


def _manifest(rows, seconds):
    return Manifest(
        [row.id for row in rows],
        [row.path for row in rows],
        np.array([seconds[row.id] for row in rows]),
        [row.speaker for row in rows],
    )
