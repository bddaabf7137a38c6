"""Preparing a corpus: manifests for training, validation and test, with no leak.

A speaker of a trial list is never trained on, whatever folder the recordings are in;
nor is a validation speaker (see :mod:`speechbrain_ext.data.holdout`).

Everything is read and checked before anything is written: every line of every list is
looked up, every header is opened. The marker comes last, so a rerun knows whether the
files are those of the same arguments (see :mod:`speechbrain_ext.data.marker`).
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.data.convert import convert_where_needed
from speechbrain_ext.data.headers import BAD_FILES, read_durations, report_bad_files
from speechbrain_ext.data.holdout import draw_trials, hold_out
from speechbrain_ext.data.join import join_short
from speechbrain_ext.data.locate import find_recordings
from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.data.marker import Marker
from speechbrain_ext.data.options import check_at_least
from speechbrain_ext.data.scan import check_outside, scan_corpus
from speechbrain_ext.data.selection import choose_training, join, read_trial_lists
from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_atomically
from speechbrain_ext.scoring.speakers import speaker_of

logger = logging.getLogger(__name__)

TRAIN, VALID, TEST = "train.csv", "valid.csv", "test.csv"
VALID_TRIALS = "valid_trials.txt"
_MANIFESTS = (TRAIN, VALID, TEST)


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
        All was there already.
    """

    train: Path | None
    valid: Path | None
    valid_trials: Path | None
    test: Path | None
    counts: dict
    skipped: bool


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
    lists = options.trial_lists + options.train_lists + options.enrol_maps
    marker = Marker.of(options.save_folder, asdict(options), lists)
    counts = marker.load()
    skipped = counts is not None
    if not skipped:
        contents, counts = _read(options, layout, num_workers)
        _write(marker, contents, counts)
    _log_counts(counts)
    files = [marker.folder / name for name in (TRAIN, VALID, VALID_TRIALS, TEST)]
    return Prepared(*(f if f.is_file() else None for f in files), counts, skipped)


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
        contents = _split(options, layout, sessions, paths, durations, counts)
    if test_ids:
        contents[TEST] = _manifest(test_ids, paths, durations)
    for name in contents.keys() & set(_MANIFESTS):
        counts[Path(name).stem] |= count(contents[name], layout.genre_of)
    return contents, counts


def _split(options, layout, session_of, paths, durations, counts):
    """Training and validation: {file name: what goes into it}."""
    left_out = counts["left_out"]
    known = [name for name in session_of if name in durations]
    kept = [name for name in known if durations[name] >= options.min_seconds]
    left_out["bad_files"] = len(session_of) - len(known)
    left_out["too_short"] = len(known) - len(kept)
    manifest = _manifest(kept, paths, durations)
    if len(manifest.speaker_names) < 2:
        raise InputError(
            f"{len(manifest.speaker_names)} training speakers are left, expected at "
            f"least 2 (left out: {left_out})"
        )
    sessions = [session_of[name] for name in kept]
    is_training, chosen = hold_out(
        manifest.speakers.tolist(),
        sessions,
        options.n_valid_speakers,
        options.max_valid_utterances,
        options.seed,
    )
    contents = {TRAIN: manifest.select(is_training)}
    if options.join_seconds:
        # Not those of the validation, which is as the test: one recording at a time.
        counts["train"]["recordings"] = int(is_training.sum())
        contents[TRAIN] = _joined(contents[TRAIN], session_of, layout, options)
    if len(chosen):
        valid = contents[VALID] = manifest.select(chosen)
        of_valid = [sessions[row] for row in chosen]
        contents[VALID_TRIALS] = _validation_trials(options, valid, of_valid, counts)
    return contents


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
        bad + unreadable, options.save_folder, options.max_bad_files, indispensable
    )
    return {n: s for n, s in zip(paths, seconds.tolist()) if not np.isnan(s)}


def _manifest(names, paths, durations):
    return Manifest(
        names,
        [paths[name] for name in names],
        [durations[name] for name in names],
        [speaker_of(name) for name in names],
    )


def _validation_trials(options, valid, sessions, counts):
    """Lines of the validation trials."""
    pairs = draw_trials(
        valid.speakers.tolist(), sessions, options.n_valid_trials, options.seed
    )
    n_target = int(pairs.labels.sum())
    if not n_target:
        raise InputError(
            f"no validation trials between {len(valid)} recordings of "
            f"{len(valid.speaker_names)} speakers, expected some"
        )
    counts["valid"] |= {"target": n_target, "nontarget": len(pairs.labels) - n_target}
    names = valid.ids.tolist()
    columns = (pairs.labels.tolist(), pairs.enrol.tolist(), pairs.test.tolist())
    return [f"{label} {names[a]} {names[b]}\n" for label, a, b in zip(*columns)]


def _write(marker, contents, counts):
    """Write all files, drop those of an earlier run, and the marker at the end."""
    marker.remove()
    for name in (*_MANIFESTS, VALID_TRIALS):
        path, content = marker.folder / name, contents.get(name)
        if content is None:
            path.unlink(missing_ok=True)
        elif isinstance(content, Manifest):
            write_manifest(path, content)
        else:
            with write_atomically(path) as file:
                file.writelines(content)
    listed = [BAD_FILES] if (marker.folder / BAD_FILES).is_file() else []
    marker.save([*contents, *listed], counts)


def count(manifest, genre_of=None):
    """Speakers, utterances and hours of a manifest, and of each genre of it.

    Arguments
    ---------
    manifest : Manifest
    genre_of : callable or None
        ID → genre; None leaves genres out.

    Returns
    -------
    dict
        ``speakers``, ``utterances``, ``hours`` and ``genres``: genre → the same.
    """
    counts = {
        "speakers": len(manifest.speaker_names),
        "utterances": len(manifest),
        "hours": float(manifest.durations.sum() / 3600),
    }
    if genre_of is not None:
        genres = [genre_of(name) or "unknown" for name in manifest.ids.tolist()]
        names, codes = np.unique(genres, return_inverse=True)
        counts["genres"] = {
            name: count(manifest.select(codes == code))
            for code, name in enumerate(names.tolist())
        }
    return counts


def _log_counts(counts):
    for split in ("train", "valid", "test"):
        seen = counts[split]
        if "utterances" not in seen:
            logger.info("%s: none asked for, no file written", split)
            continue
        _log_sizes(split, seen)
        if "recordings" in seen:
            logger.info("%s: joined from %d recordings", split, seen["recordings"])
        for genre, of_genre in seen.get("genres", {}).items():
            _log_sizes(f"{split}, {genre}", of_genre)
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
