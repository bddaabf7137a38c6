"""A user's own corpus: what a CSV file lists, wherever the recordings are.

    ID,duration,wav,spk_id
    anna/monday,3.2,recordings/a17.wav,anna
    anna/friday,,recordings/a18.flac,anna

Columns in any order; others are passed over, and logged. ``duration`` may be empty or
missing. A column ``session`` tells what was recorded on one occasion; without it that
is the folder in the ID, or each recording by itself.

A speaker of a trial list is never trained on, nor is a validation speaker.
"""

import logging
from pathlib import Path

from speechbrain_ext.data.audio import JOINT
from speechbrain_ext.data.manifest import read_csv
from speechbrain_ext.data.prepare.folders import session_of
from speechbrain_ext.data.prepare.pipeline import PrepareOptions, Row, prepare, resolve
from speechbrain_ext.data.shards.members import MARK
from speechbrain_ext.scoring.trials import utterance_id
from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)

NEEDED = ("ID", "wav", "spk_id")
OPTIONAL = ("duration", "session")
SEGMENTS = ("start", "stop")  # of SpeechBrain's own recipes


def read_listing(path, data_folder=None):
    """Rows of such a file, in its order.

    Relative paths begin at ``data_folder``; None: the folder of the CSV file.
    InputError names file and line: missing file, a header without a column that is
    needed, a row of another length, an empty field, white space in an ID, a duration
    that is no positive number, an ID or a recording that comes twice, no rows.
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
    """(place, {column: text}) of every row."""
    rows = read_csv(path)
    header = [name.strip() for name in next(rows)[1]]
    _check_header(path, header)
    for line, texts in rows:
        yield f"{path}, line {line}", dict(zip(header, map(str.strip, texts)))


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
        name,
        str(folder / Path(wav).expanduser()),
        fields["spk_id"],
        fields.get("session", "") or session_of(name),
        seconds=_seconds(place, fields.get("duration", "")),
        place=place,
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

    What is not described here is as in
    :func:`~speechbrain_ext.data.corpora.voxceleb.prepare_voxceleb`.

    Arguments
    ---------
    manifest : str or Path
        CSV file with the columns ``ID,duration,wav,spk_id``, see
        :mod:`speechbrain_ext.data.corpora.csv_file`. Recordings are 16 kHz mono, wav,
        flac, ogg or mp3.
    data_folder : str or Path, optional
        Where relative paths begin; None: the folder of the CSV file.
    trial_lists : str, Path or list of them
        Of IDs in the CSV file, whose recordings go into test.csv.
    """
    path = resolve(manifest)
    folder = path.parent if data_folder is None else resolve(data_folder)
    options = PrepareOptions(
        train_folders=folder,
        train_lists=path,
        save_folder=save_folder,
        trial_lists=trial_lists,
        n_valid_speakers=n_valid_speakers,
        n_valid_trials=n_valid_trials,
        max_valid_utterances=max_valid_utterances,
        min_seconds=min_seconds,
        max_bad_files=max_bad_files,
        seed=seed,
    )

    def find(options, test_ids, num_workers):
        return read_listing(path, folder)

    return prepare(options, find, num_workers, path)
