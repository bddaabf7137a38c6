"""The arguments of a preparation, in one form whatever way they were given.

Preparing a corpus: manifests for training, validation and test, with no leak.

A speaker of a trial list is never trained on, whatever folder the recordings are in;
nor is a validation speaker (see :mod:`speechbrain_ext.data.prepare.splits`).

Everything is read and checked before anything is written: every line of every list is
looked up, every header is opened. What is then done with it is in
:mod:`speechbrain_ext.data.prepare.splits`.
"""

import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from speechbrain_ext.data.audio import read_durations, report_bad_files
from speechbrain_ext.data.concatenated_audio import join_short
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.data.prepare.convert import convert_where_needed
from speechbrain_ext.data.prepare.folders import (
    check_outside,
    find_recordings,
    scan_corpus,
)
from speechbrain_ext.data.prepare.selection import (
    choose_training,
    join,
    read_trial_lists,
)
from speechbrain_ext.data.prepare.splits import (
    TEST,
    TRAIN,
    add_counts,
    prepare_once,
    split,
)
from speechbrain_ext.scoring.enrolment import speaker_of
from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PrepareOptions:
    """Every argument that shapes the result, checked, its paths resolved.

    Lists may be given as one value, several or None. The attributes are described
    where users meet them, in the recipes.
    """

    train_folders: list
    save_folder: Path
    test_folders: list
    trial_lists: list
    train_lists: list
    exclude_speakers: list
    n_valid_speakers: int
    n_valid_trials: int
    max_valid_utterances: int
    min_seconds: float
    max_bad_files: int
    convert_folder: Path | None
    seed: int
    enrol_maps: list = ()
    join_seconds: float = 0

    @classmethod
    def for_test(cls, save_folder, test_folders, trial_lists, enrol_maps=()):
        """Options of a preparation for test alone: nothing of training counts."""
        training = dict.fromkeys(
            ("train_folders", "train_lists", "exclude_speakers"), ()
        )
        numbers = dict.fromkeys(
            ("n_valid_speakers", "min_seconds", "max_bad_files", "seed"), 0
        )
        return cls(
            **training,
            **numbers,
            n_valid_trials=2,
            max_valid_utterances=2,
            convert_folder=None,
            save_folder=save_folder,
            test_folders=test_folders,
            trial_lists=trial_lists,
            enrol_maps=enrol_maps,
        )

    def __post_init__(self):
        for name in (
            *("train_folders", "test_folders", "trial_lists", "train_lists"),
            "enrol_maps",
        ):
            setattr(self, name, [resolve(p) for p in as_list(getattr(self, name))])
        self.exclude_speakers = sorted({str(s) for s in as_list(self.exclude_speakers)})
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


def check_at_least(name, value, minimum, whole=True):
    """Refuse an argument that is no number or below ``minimum``."""
    kind = int if whole else (int, float)
    # bool is a kind of int; NaN compares false with everything.
    right = isinstance(value, kind) and not isinstance(value, bool)
    if not (right and value >= minimum):
        what = "a whole number" if whole else "a number"
        raise InputError(f"{name}={value!r}, expected {what} of at least {minimum}")


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
