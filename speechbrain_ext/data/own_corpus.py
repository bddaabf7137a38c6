"""Preparing a user's own corpus: what a CSV file lists, wherever the files are.

    CSV file → recordings, opened and checked → training, validation, test

No layout of folders is asked for: the file says who speaks where
(:mod:`speechbrain_ext.data.listing`). A speaker of a trial list is never trained on,
nor is a validation speaker.
"""

import os
from functools import partial

import numpy as np

from speechbrain_ext.data.headers import read_durations, report_bad_files
from speechbrain_ext.data.listing import read_listing
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.data.options import PrepareOptions, check_at_least, resolve
from speechbrain_ext.data.selection import read_trial_lists
from speechbrain_ext.data.splits import TEST, add_counts, prepare_once, split
from speechbrain_ext.errors import InputError

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
        :mod:`speechbrain_ext.data.listing`. Recordings are 16 kHz mono, wav, flac, ogg
        or mp3.
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
