"""Validation speakers held out of training, and trials made from them.

The best checkpoint is chosen by the equal error rate on trials between speakers whom
training never heard. Choosing it on the test lists would fit the test, and choosing it
on training speakers would measure memory.

Of each speaker a few recordings are taken, spread over sessions. Half of the trials
are target trials, across sessions as far as there are such pairs: two cuts of one
recording session share microphone and room, and are too easy.

Recordings that are known and checked → training, validation, test on the disk.

Whatever a corpus looks like, its preparation ends so: speakers are held out of training
(:mod:`speechbrain_ext.data.prepare.splits`), trials are drawn among them, manifests are
written, and the marker comes last, so that a rerun knows whether the files are those of
the same arguments (:mod:`speechbrain_ext.utils.jobs`).
"""

import logging
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.data.audio import BAD_FILES
from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.jobs import Marker


class Pairs(NamedTuple):
    """Trials as row numbers: labels, enrol and test, int [T] each."""

    labels: np.ndarray
    enrol: np.ndarray
    test: np.ndarray


def hold_out(speakers, sessions, n_speakers, max_utterances, seed):
    """Draw validation speakers and some recordings of each.

    Arguments
    ---------
    speakers : sequence of str
        [N], speaker of each recording, in an order that does not depend on the disk.
    sessions : sequence of str
        [N], session of each recording, unique over speakers.
    n_speakers : int
        How many to draw, from those with two recordings or more; those with two
        sessions or more come first, all others only where these are too few.
    max_utterances : int
        Recordings of each, taken from its sessions in turn.
    seed : int
        Same seed, same draw.

    Returns
    -------
    is_training : np.ndarray
        bool [N], recordings of all other speakers.
    chosen : np.ndarray
        int64 [V], ascending rows of the recordings drawn.

    Raises
    ------
    InputError
        Too few speakers to hold out that many, or to train on the rest.
    """
    speakers = np.asarray(speakers, dtype=object)
    if n_speakers == 0:
        return np.ones(len(speakers), dtype=bool), np.zeros(0, dtype=np.int64)
    rows = _rows_by_session(speakers, sessions)
    held_out = _draw_speakers(rows, n_speakers, np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    chosen = [_spread(rows[name], max_utterances, rng) for name in held_out]
    is_training = np.ones(len(speakers), dtype=bool)
    for name in held_out:
        for session in rows[name].values():
            is_training[session] = False
    return is_training, np.sort(np.concatenate(chosen))


def draw_trials(speakers, sessions, n_trials, seed):
    """Draw trials, half of them target, no pair twice and none mirrored.

    Arguments
    ---------
    speakers, sessions : sequence of str
        [V], of each recording.
    n_trials : int
        At most so many; fewer where there are not enough pairs of either kind.
    seed : int
        Same seed, same trials.

    Returns
    -------
    Pairs
        Rows of the recordings, enrol < test, ascending.
    """
    rng = np.random.default_rng([seed, 2])
    speakers = np.unique(speakers, return_inverse=True)[1]
    sessions = np.unique(sessions, return_inverse=True)[1]
    enrol, test = _target_pairs(speakers)
    total = len(speakers) * (len(speakers) - 1) // 2
    n_each = min(n_trials // 2, len(enrol), total - len(enrol))
    # Pairs within a session come last, whatever their draw.
    order = np.lexsort((rng.random(len(enrol)), sessions[enrol] == sessions[test]))
    kept = order[:n_each]
    targets = enrol[kept] * len(speakers) + test[kept]
    keys = np.concatenate([targets, _non_target_keys(speakers, n_each, rng)])
    keys.sort()
    enrol, test = np.divmod(keys, max(len(speakers), 1))
    return Pairs((speakers[enrol] == speakers[test]).astype(np.int64), enrol, test)


def _rows_by_session(speakers, sessions):
    """Speaker → session → rows."""
    rows = {}
    for row, (speaker, session) in enumerate(zip(speakers, sessions)):
        rows.setdefault(speaker, {}).setdefault(session, []).append(row)
    return rows


def _draw_speakers(rows, n_speakers, rng):
    eligible = [s for s in sorted(rows) if sum(map(len, rows[s].values())) >= 2]
    if n_speakers >= len(eligible):
        raise InputError(
            f"n_valid_speakers={n_speakers}, expected fewer than the {len(eligible)} "
            "training speakers with two recordings or more"
        )
    if len(rows) - n_speakers < 2:
        raise InputError(
            f"n_valid_speakers={n_speakers} leaves {len(rows) - n_speakers} of "
            f"{len(rows)} speakers for training, expected at least 2"
        )
    several = [s for s in eligible if len(rows[s]) >= 2]
    single = [s for s in eligible if len(rows[s]) < 2]
    order = [several[i] for i in rng.permutation(len(several))]
    order += [single[i] for i in rng.permutation(len(single))]
    return sorted(order[:n_speakers])


def _spread(by_session, max_utterances, rng):
    """One recording of each session in turn, in drawn order."""
    sessions = [rng.permutation(by_session[name]) for name in sorted(by_session)]
    sessions = [sessions[i] for i in rng.permutation(len(sessions))]
    rounds = zip_longest(*sessions)
    in_turn = [row for one_round in rounds for row in one_round if row is not None]
    return np.array(in_turn[:max_utterances], dtype=np.int64)


def _target_pairs(speakers):
    """All pairs of one speaker, lower row first: two int64 [P]."""
    pairs = [np.zeros((2, 0), dtype=np.int64)]
    for number in range(speakers.max(initial=-1) + 1):
        rows = np.flatnonzero(speakers == number)
        pairs.append(rows[np.stack(np.triu_indices(len(rows), 1))])
    return np.concatenate(pairs, axis=1)


def _non_target_keys(speakers, count, rng):
    """``count`` different pairs of two speakers, as low × V + high.

    Drawn and drawn again rather than listed: a thousand speakers have 50 million.
    """
    n_rows, keys = len(speakers), np.zeros(0, dtype=np.int64)
    while len(keys) < count:
        pairs = np.sort(rng.integers(n_rows, size=(2 * count, 2)), axis=1)
        differ = speakers[pairs[:, 0]] != speakers[pairs[:, 1]]
        drawn = pairs[differ, 0] * n_rows + pairs[differ, 1]
        keys = np.unique(np.concatenate([keys, drawn]))
    return rng.choice(keys, count, replace=False)


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


def prepare_once(options, read):
    """Prepare, or return at once where that was done before.

    Arguments
    ---------
    options : PrepareOptions
        What to do; all of it is in the fingerprint, and so are size and time of its
        lists.
    read : callable
        Without arguments → {file name: what goes into it}, counts. Everything is read
        and checked in it, before anything is written.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        As ``read``. Files of an earlier run are then as they were.
    """
    lists = options.trial_lists + options.train_lists + options.enrol_maps
    marker = Marker.of(options.save_folder, asdict(options), lists)
    counts = marker.load()
    skipped = counts is not None
    if not skipped:
        contents, counts = read()
        _write(marker, contents, counts)
    _log_counts(counts)
    files = [marker.folder / name for name in (TRAIN, VALID, VALID_TRIALS, TEST)]
    return Prepared(*(f if f.is_file() else None for f in files), counts, skipped)


def split(options, manifest, sessions, counts):
    """Training and validation, without a speaker in both.

    Arguments
    ---------
    options : PrepareOptions
        Reads ``min_seconds``, ``n_valid_speakers``, ``n_valid_trials``,
        ``max_valid_utterances`` and ``seed``.
    manifest : Manifest
        N recordings, all usable.
    sessions : sequence of str
        [N], of each.
    counts : dict
        ``left_out`` and ``valid`` are added to.

    Returns
    -------
    dict
        File name → Manifest, or the lines of the trials.

    Raises
    ------
    InputError
        Too few speakers to hold out that many, or to train on the rest.
    """
    long_enough = manifest.durations >= options.min_seconds
    counts["left_out"]["too_short"] = int(np.sum(~long_enough))
    manifest = manifest.select(long_enough)
    sessions = [session for session, kept in zip(sessions, long_enough) if kept]
    if len(manifest.speaker_names) < 2:
        raise InputError(
            f"{len(manifest.speaker_names)} training speakers are left, expected at "
            f"least 2 (left out: {counts['left_out']})"
        )
    is_training, chosen = hold_out(
        manifest.speakers.tolist(),
        sessions,
        options.n_valid_speakers,
        options.max_valid_utterances,
        options.seed,
    )
    contents = {TRAIN: manifest.select(is_training)}
    if len(chosen):
        valid = contents[VALID] = manifest.select(chosen)
        of_valid = [sessions[row] for row in chosen]
        contents[VALID_TRIALS] = _validation_trials(options, valid, of_valid, counts)
    return contents


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


def add_counts(counts, contents, genre_of=None):
    """Add speakers, utterances and hours of each manifest, and of each genre of it.

    Arguments
    ---------
    counts : dict
        ``train``, ``valid`` and ``test`` are added to: ``speakers``, ``utterances``,
        ``hours`` and ``genres``: genre → the same.
    contents : dict
        File name → what goes into it.
    genre_of : callable or None
        ID → genre; None leaves genres out.
    """
    for name in contents.keys() & set(_MANIFESTS):
        counts[Path(name).stem] |= _count(contents[name], genre_of)


def _count(manifest, genre_of):
    counts = {
        "speakers": len(manifest.speaker_names),
        "utterances": len(manifest),
        "hours": float(manifest.durations.sum() / 3600),
    }
    if genre_of is not None:
        genres = [genre_of(name) or "unknown" for name in manifest.ids.tolist()]
        names, codes = np.unique(genres, return_inverse=True)
        counts["genres"] = {
            name: _count(manifest.select(codes == code), None)
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
