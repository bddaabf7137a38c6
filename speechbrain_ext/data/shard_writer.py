"""Making a folder of shards: in parallel, resumable at any moment.

The plan is a function of the manifests and two settings alone: the utterances of each
manifest are shuffled by a seed and cut into shards of a fixed number. Hence shard k of
a run that was killed is shard k of the next one, and what it finished is kept. See
:mod:`speechbrain_ext.data.shard_index` for what is in the folder.

Shuffled, so that a reader of one shard after the other meets all speakers.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.data.headers import report_bad_files
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.data.processes import in_processes
from speechbrain_ext.data.shard_file import Job, finished, member_key, write_shard
from speechbrain_ext.data.shard_index import FORMAT_VERSION, INDEX, SHARDS, keys_of
from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_atomically, write_json

logger = logging.getLogger(__name__)

PLAN, LOCK = "plan.json", ".lock"
_ROWS_AT_ONCE = 100_000


class ShardCounts(NamedTuple):
    """What a folder of shards holds."""

    shards: int
    utterances: int
    bytes: int
    bad: int


def make_shards(
    manifests,
    folder,
    utterances_per_shard=2000,
    seed=0,
    max_bad_files=0,
    num_workers=None,
):
    """Write the recordings of manifests into tar shards.

    Arguments
    ---------
    manifests : list of str or Path
        CSV or Arrow; no ID may be in two of them. Each gets shards of its own.
    folder : str or Path
        Where they go. A run that was stopped goes on in it.
    utterances_per_shard : int
        2,000 of VoxCeleb2's are about 300 MB of flac.
    seed : int
        Of the order.
    max_bad_files : int
        So many utterances may be left out because they cannot be read; all are listed
        in ``bad_files.txt``.
    num_workers : int, optional
        Processes; None: one for each core.

    Returns
    -------
    ShardCounts

    Raises
    ------
    InputError
        Bad manifests; more bad utterances than stated, the first is named; a folder of
        other shards, or one that another process is writing; no webdataset.
    OSError
        The disk is full: ``filename`` is the shard. Finished shards stay, and the next
        run goes on from them.
    """
    _check_settings(utterances_per_shard, seed, max_bad_files, num_workers)
    folder = Path(folder).resolve()
    manifests = [read_manifest(path) for path in manifests]
    plan = _plan(manifests, utterances_per_shard, seed)
    with _locked(folder):
        _begin(folder, plan)
        try:
            jobs = _jobs(folder, plan, manifests)
            records = _make_all(jobs, sum(plan["utterances"]), num_workers)
            return _finish(folder, records, max_bad_files)
        finally:
            _remove_unfinished(folder)


# -- the plan --------------------------------------------------------------------------


def _check_settings(utterances_per_shard, seed, max_bad_files, num_workers):
    if importlib.util.find_spec("webdataset") is None:
        raise InputError(
            "webdataset is not installed, expected it for shards: "
            "pip install 'speechbrain_ext[shards]'"
        )
    for name, value, least in (
        ("utterances_per_shard", utterances_per_shard, 1),
        ("seed", seed, 0),
        ("max_bad_files", max_bad_files, 0),
        ("num_workers", num_workers, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"{name}: {value}, expected at least {least}")


def _plan(manifests, utterances_per_shard, seed):
    """All that decides on what the shards hold, as JSON has it."""
    digest, keys = hashlib.sha256(), []
    for manifest in manifests:
        for start in range(0, len(manifest), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            ids = manifest.ids[part].tolist()
            for name in ids:
                member_key(name)
            keys.append(keys_of(ids))
            columns = ids, manifest.paths[part].tolist(), manifest.speakers[part]
            for column in (*columns[:2], columns[2].tolist()):
                digest.update("\0".join(column).encode())
            digest.update(np.asarray(manifest.durations[part]).tobytes())
    _check_unique(manifests, np.concatenate(keys))
    return {
        "format_version": FORMAT_VERSION,
        "utterances_per_shard": utterances_per_shard,
        "seed": seed,
        "utterances": [len(manifest) for manifest in manifests],
        "manifests": digest.hexdigest(),
    }


def _check_unique(manifests, keys):
    """Refuse an ID that comes twice; names it."""
    order = np.argsort(keys, kind="stable")
    again = order[1:][keys[order[1:]] == keys[order[:-1]]]
    if not len(again):
        return
    row = int(again.min())
    for manifest in manifests:
        if row < len(manifest):
            name = manifest.ids[row]
            break
        row -= len(manifest)
    raise InputError(f"ID '{name}' is in two manifests, expected each ID once")


def _jobs(folder, plan, manifests):
    """The shards to make, in order."""
    fingerprint = _fingerprint(plan)
    size, number = plan["utterances_per_shard"], 0
    for place, manifest in enumerate(manifests):
        order = np.random.default_rng([plan["seed"], place]).permutation(len(manifest))
        for start in range(0, len(manifest), size):
            rows = order[start : start + size]
            columns = manifest.ids, manifest.paths, manifest.speakers
            frames = np.round(manifest.durations[rows] * SAMPLE_RATE).astype(int)
            texts = (column[rows].tolist() for column in columns)
            yield Job(
                *(folder, f"{number:06d}.tar", fingerprint, *texts, frames.tolist())
            )
            number += 1


def _fingerprint(plan):
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


# -- the folder ------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(folder):
    """Refuse a folder in which another process is at work."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{folder}: another process is making shards in it, expected one"
            ) from error
        yield


def _begin(folder, plan):
    """Note the plan; refuse a folder of another one."""
    path = folder / PLAN
    if not path.exists():
        if any(folder.glob("*.tar")):
            raise InputError(f"{folder}: holds other tar files, expected a new folder")
    else:
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name in plan if earlier[name] != plan[name]]
        except (ValueError, KeyError, TypeError):
            changed = [f"an unreadable {PLAN}"]
        if changed:
            raise InputError(
                f"{folder}: shards that were begun with other {', '.join(changed)}, "
                "expected the same, or a new folder"
            )
    _remove_unfinished(folder)
    write_json(path, plan)


def _remove_unfinished(folder):
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


# -- the work --------------------------------------------------------------------------


def _make_all(jobs, total, num_workers):
    """Records of all shards, in order, as they are finished."""
    import webdataset  # noqa: F401  once, and not in each process that is forked

    with tqdm(total=total, desc="shards", unit="utterance", disable=None) as bar:
        for record in in_processes(_make, jobs, num_workers):
            bar.update(len(record["samples"]) + len(record["bad"]))
            yield record


def _make(job):
    return finished(job) or write_shard(job)


def _finish(folder, records, max_bad_files):
    """Gather the records into the index; the marker goes last."""
    shards, columns, bad = [], [np.empty((5, 0), np.int64)], []
    with contextlib.closing(records):  # where a break leaves jobs
        for number, record in enumerate(records):
            samples = record["samples"]
            said = {name: record[name] for name in ("name", "bytes", "sha256")}
            shards.append({**said, "utterances": len(samples)})
            columns.append(_columns(number, samples))
            bad += record["bad"]
            if len(bad) > max_bad_files:
                break
    report_bad_files(sorted(map(tuple, bad)), folder, max_bad_files)
    parts = np.concatenate(columns, axis=1)
    if not parts.size:
        raise InputError(f"{folder}: all recordings are bad, expected some good ones")
    parts = parts[:, np.argsort(parts[0], kind="stable")]
    with write_atomically(folder / INDEX, "wb") as file:
        np.save(file, parts)
    marker = {
        "format_version": FORMAT_VERSION,
        "recordings": parts.shape[1],
        "shards": shards,
        "bad": bad,
    }
    write_json(folder / SHARDS, marker)
    counts = (sum(shard[name] for shard in shards) for name in ("utterances", "bytes"))
    return ShardCounts(len(shards), *counts, len(bad))


def _columns(number, samples):
    """Samples of one shard → [5, P] of the index."""
    if not samples:
        return np.empty((5, 0), np.int64)
    keys = keys_of([name for name, _ in samples])
    counts = [len(parts) for _, parts in samples]
    places = np.array([part[:3] for _, parts in samples for part in parts]).T
    shard = np.full(places.shape[1], number)
    return np.stack([np.repeat(keys, counts), shard, *places]).astype(np.int64)
