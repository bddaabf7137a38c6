"""A user's own corpus: what one file lists, wherever the recordings are.

    ID,duration,wav,spk_id
    anna/monday,3.2,recordings/a17.wav,anna
    anna/friday,,recordings/a18.flac,anna

Columns in any order; others are passed over, and logged. ``duration`` may be empty or
missing. A column ``session`` tells what was recorded on one occasion; without it that
is the folder in the ID, or each recording by itself. Columns ``start`` and ``stop``, in
samples, make a row a segment of its recording, as in SpeechBrain's recipes; segments of
one recording are of one occasion.

Besides CSV, the listings of other programs are read
(:mod:`speechbrain_ext.data.corpora.listings`). What is listed becomes rows, checked in
one place.

A speaker of a trial list is never trained on, nor is a validation speaker.
"""

import logging
from pathlib import Path

from speechbrain_ext.data.audio import JOINT, SAMPLE_RATE
from speechbrain_ext.data.corpora.listings import (
    LONGEST,
    Entry,
    kaldi_files,
    read_kaldi,
    read_nemo,
    read_rttm,
)
from speechbrain_ext.data.manifest import read_csv
from speechbrain_ext.data.prepare.folders import session_of
from speechbrain_ext.data.prepare.pipeline import PrepareOptions, Row, prepare, resolve
from speechbrain_ext.data.shards.members import MARK
from speechbrain_ext.scoring.trials import utterance_id
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import as_on_disk, composed

logger = logging.getLogger(__name__)

NEEDED = ("ID", "wav", "spk_id")
OPTIONAL = ("duration", "session", "start", "stop")


def read_listing(path, data_folder=None):
    """Rows of a listing, in its order.

    Arguments
    ---------
    path : str or Path
        CSV, lines of JSON as NeMo's, RTTM, or a data folder of Kaldi's: the suffix
        tells, or the first line.
    data_folder : str or Path, optional
        Where relative paths begin; None: the folder of the listing.

    Returns
    -------
    list of Row

    Raises
    ------
    InputError
        Names file and line: missing file, a header without a column that is needed, a
        row of another length, an empty field, white space in an ID, a duration that is
        no positive number, a segment that ends before it begins, an ID, a recording or
        a segment that comes twice, no rows.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    folder = folder if data_folder is None else Path(data_folder)
    rows, ids, parts = [], {}, {}
    for entry in _reader_of(path)(path, folder):
        row = _row(entry, folder)
        if row.is_cut:
            what, part = "segment", f"{row.path} {row.start}-{row.stop or ''}"
        else:
            what, part = "wav", row.path
        for kind, value, seen in (("ID", row.id, ids), (what, part, parts)):
            first = seen.setdefault(value, row.place)
            if first is not row.place:
                raise InputError(
                    f"{row.place}: {kind} {value!r} again, expected each once (also "
                    f"in {first.removeprefix(f'{path}, ')})"
                )
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no rows, expected recordings")
    return rows


def _reader_of(path):
    """The function that reads a listing: by its suffix, else by its first line."""
    by_suffix = {".rttm": read_rttm, ".json": read_nemo, ".jsonl": read_nemo}
    suffix = path.suffix.lower()
    if path.is_dir():
        return read_kaldi
    if suffix in (*by_suffix, ".csv") or not path.is_file():
        return by_suffix.get(suffix, _read_csv)
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    if first.lstrip().startswith("{"):
        return read_nemo
    return read_rttm if first.split()[:1] == ["SPEAKER"] else _read_csv


def _read_csv(path, _data_folder):
    """Entries of a CSV file."""
    rows = read_csv(path)
    header = [name.strip() for name in next(rows)[1]]
    _check_header(path, header)
    for line, texts in rows:
        fields, place = dict(zip(header, map(str.strip, texts))), f"{path}, line {line}"
        for name in NEEDED:
            if not fields[name]:
                raise InputError(f"{place}: empty {name}, expected text")
        yield Entry(
            *(place, fields["ID"], fields["spk_id"], fields["wav"]),
            fields.get("session", ""),
            *(_sample(place, name, fields.get(name, "")) for name in ("start", "stop")),
            _seconds(place, fields.get("duration", "")),
        )


def _check_header(path, header):
    missing = [name for name in NEEDED if name not in header]
    twice = [name for name in header if header.count(name) > 1]
    if missing or twice:
        wrong = f"no column {missing[0]!r}" if missing else f"{twice[0]!r} twice"
        raise InputError(
            f"{path}, line 1: {wrong} in {','.join(header)!r}, expected "
            f"'ID,duration,wav,spk_id'"
        )
    unread = [name for name in header if name not in NEEDED + OPTIONAL]
    if unread:
        logger.info("%s: columns that are not read: %s", path, ", ".join(unread))


def _row(entry, folder):
    place, name, wav = entry.place, utterance_id(entry.id), entry.wav
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
    start, stop = entry.start or 0, entry.stop
    if stop is not None and stop <= start:
        raise InputError(
            f"{place}: stop {stop} is not after start {start}, expected a later sample"
        )
    path, speaker = folder / Path(wav).expanduser(), composed(entry.speaker)
    if not str(path).isascii():
        path = as_on_disk(path.anchor, str(path.relative_to(path.anchor)))
    session = entry.session or session_of(name)
    if (start or stop) and session == name:
        session = f"{speaker}/{wav}"
    row = Row(name, str(path), speaker, session, seconds=entry.seconds, place=place)
    return row._replace(start=start, stop=stop)


def _sample(place, what, text):
    """A number of samples, or None of an empty field."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= LONGEST * SAMPLE_RATE or number % 1:
        raise InputError(
            f"{place}: {what} {text!r}, expected a number of samples, or nothing"
        )
    return int(number)


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
    """Prepare what a listing names.

    What is not described here is as in
    :func:`~speechbrain_ext.data.corpora.voxceleb.prepare_voxceleb`.

    Arguments
    ---------
    manifest : str or Path
        CSV file with the columns ``ID,duration,wav,spk_id``, and ``start,stop`` of
        segments; or another listing, see :func:`read_listing`. Recordings are 16 kHz
        mono.
    data_folder : str or Path, optional
        Where relative paths begin, and where the recordings of an RTTM file are; None:
        the folder of the listing.
    trial_lists : str, Path or list of them
        Of IDs in the listing, whose recordings go into test.csv.
    """
    path = resolve(manifest)
    own_folder = path if path.is_dir() else path.parent
    folder = own_folder if data_folder is None else resolve(data_folder)
    options = PrepareOptions(
        train_folders=folder,
        train_lists=kaldi_files(path) if path.is_dir() else path,
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
