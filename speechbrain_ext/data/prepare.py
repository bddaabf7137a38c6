"""Preparing a corpus: manifests for training, validation and test, with no leak.

A speaker of a trial list is never trained on, whatever folder the recordings are in;
nor is a validation speaker (see :mod:`speechbrain_ext.data.holdout`).

Everything is read and checked before anything is written: every line of every list is
looked up, every header is opened. What is then done with it is in
:mod:`speechbrain_ext.data.splits`.
"""

from functools import partial

import numpy as np

from speechbrain_ext.data.convert import convert_where_needed
from speechbrain_ext.data.headers import read_durations, report_bad_files
from speechbrain_ext.data.join import join_short
from speechbrain_ext.data.locate import find_recordings
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.data.options import check_at_least
from speechbrain_ext.data.scan import check_outside, scan_corpus
from speechbrain_ext.data.selection import choose_training, join, read_trial_lists
from speechbrain_ext.data.splits import TEST, TRAIN, add_counts, prepare_once, split
from speechbrain_ext.scoring.speakers import speaker_of


def prepare_corpus(options, layout, num_workers=16):
    """Prepare a corpus, or return at once where that was done before.

    Arguments
    ---------
    options : PrepareOptions
        What to do.
    layout : Layout
        How the corpus lies on the disk.
    num_workers : int
        Threads. Changes neither the result nor the fingerprint.

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
    return prepare_once(options, partial(_read, options, layout, num_workers))


def _read(options, layout, num_workers):
    """Read and check everything. → {file name: what goes into it}, counts"""
    tested = read_trial_lists(options)
    test_ids = tested.ids
    train_paths, test_paths = _scan(options, layout, test_ids, num_workers)
    tested.check_found(test_paths, f"the recordings below {join(options.test_folders)}")
    train_ids, left_out = [], {}
    if options.train_folders:
        train_ids, left_out = choose_training(options, train_paths, test_ids)
    sessions = {name: layout.session_of(name) for name in train_ids}  # checks the names
    paths = {name: train_paths[name] for name in train_ids}
    paths |= {name: test_paths[name] for name in test_ids}
    durations = _durations(options, paths, test_ids, num_workers)

    counts = {"train": {}, "valid": {}, "test": tested.count(), "left_out": left_out}
    contents = {}
    if train_ids:
        known = [name for name in train_ids if name in durations]
        left_out["bad_files"] = len(train_ids) - len(known)
        manifest = _manifest(known, paths, durations)
        contents = split(options, manifest, [sessions[n] for n in known], counts)
        if options.join_seconds:
            # Not those of the validation, which is as the test: one at a time.
            counts["train"]["recordings"] = len(contents[TRAIN])
            contents[TRAIN] = _joined(contents[TRAIN], sessions, layout, options)
    if test_ids:
        contents[TEST] = _manifest(test_ids, paths, durations)
    add_counts(counts, contents, layout.genre_of)
    return contents, counts


def _joined(manifest, session_of, layout, options):
    names = manifest.ids.tolist()
    genres = [layout.genre_of(name) if layout.genre_of else "" for name in names]
    sessions = [session_of[name] for name in names]
    return join_short(manifest, sessions, genres, options.join_seconds)


def _scan(options, layout, test_ids, num_workers):
    """Training recordings and those of ``test_ids``: two dictionaries ID → path."""
    leave_out = [options.convert_folder] if options.convert_folder else []
    train, folders = {}, []
    if options.train_folders:
        found = scan_corpus(options.train_folders, layout, num_workers, leave_out)
        train, folders = found.paths, found.speaker_folders
    known = train if options.test_folders == options.train_folders else {}
    test = {name: known[name] for name in test_ids if name in known}
    wanted = [name for name in test_ids if name not in test]
    if wanted:
        found = find_recordings(
            wanted, options.test_folders, layout, num_workers, leave_out
        )
        test |= found.paths
        folders = folders + found.speaker_folders
    for name in ("save_folder", "convert_folder"):
        if getattr(options, name):
            check_outside(getattr(options, name), folders, name)
    return train, test


def _durations(options, paths, test_ids, num_workers):
    """Seconds of each usable recording by ID; converts, and updates ``paths``."""
    indispensable = {paths[name] for name in test_ids}
    bad = convert_where_needed(paths, options.convert_folder, num_workers)
    indispensable |= {paths[name] for name in test_ids if name in paths}
    seconds, unreadable = read_durations(list(paths.values()), num_workers)
    report_bad_files(
        sorted(bad + unreadable),
        options.save_folder,
        options.max_bad_files,
        indispensable,
    )
    return {n: s for n, s in zip(paths, seconds.tolist()) if not np.isnan(s)}


def _manifest(names, paths, durations):
    return Manifest(
        names,
        [paths[name] for name in names],
        [durations[name] for name in names],
        [speaker_of(name) for name in names],
    )
