"""One shard: a tar file in WebDataset's form, and what is known of it.

Each recording is a member ``KEY.flac`` (or whatever its file is), its bytes unchanged,
beside ``KEY.json`` with ID, speaker and duration, so that ``webdataset.WebDataset`` and
``tar`` can read a shard without anything of ours. An utterance joined of several
recordings has ``KEY.0.flac``, ``KEY.1.flac``, …  The key is the ID; a dot in its last
part, at which WebDataset would cut it, is written ``%2E``.

The same recordings make the same bytes: owners and times are not kept.

Making a folder of shards: in parallel, resumable at any moment.

The plan is a function of the manifests and two settings alone: the utterances of each
manifest are shuffled by a seed and cut into shards of a fixed number. Hence shard k of
a run that was killed is shard k of the next one, and what it finished is kept. See
:mod:`speechbrain_ext.data.shards.index` for what is in the folder.

Shuffled, so that a reader of one shard after the other meets all speakers.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from speechbrain_ext.data.audio import (
    SAMPLE_RATE,
    parts_of,
    read_audio,
    read_header,
    report_bad_files,
)
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.data.shards.index import FORMAT_VERSION, INDEX, SHARDS, keys_of
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically, write_json
from speechbrain_ext.utils.parallel import in_processes

_BLOCK = tarfile.BLOCKSIZE


class Job(NamedTuple):
    """What goes into one shard.

    Attributes
    ----------
    folder : Path
    name : str
        Of the tar file.
    fingerprint : str
        Of the whole plan: names what a finished shard was made for.
    ids, paths, speakers : list of str
        [N] each, as in the manifest.
    frames : list of int
        [N], the lengths that the manifest says, in samples.
    """

    folder: Path
    name: str
    fingerprint: str
    ids: list
    paths: list
    speakers: list
    frames: list

    @property
    def tar(self):
        """Path of the tar file."""
        return self.folder / self.name

    @property
    def record(self):
        """Path of what is known of it."""
        return self.tar.with_suffix(".json")


def finished(job):
    """What is known of a shard that an earlier run has made, or None.

    A shard is made again where its tar is gone or of another size, and where one of
    the recordings that it lacks can be read now.
    """
    try:
        record = json.loads(job.record.read_text(encoding="utf-8"))
        same = record["fingerprint"] == job.fingerprint
        whole = job.tar.stat().st_size == record["bytes"]
        lacks = [name for name, _ in record["bad"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not same or not whole:
        return None
    rows = {name: row for row, name in enumerate(job.ids)} if lacks else {}
    for name in lacks:
        row = rows[name]
        with contextlib.suppress(InputError):
            read_parts(job.paths[row], job.frames[row])
            return None
    return record


def write_shard(job):
    """Write one shard, whole or not at all.

    Arguments
    ---------
    job : Job

    Returns
    -------
    dict
        ``fingerprint``, ``name``, ``bytes``, ``sha256``, ``samples``: [ID, [[offset,
        size, samples, CRC-32], …]] of each utterance, ``bad``: [ID, reason] of each
        that was left out. It is also in the JSON file beside the tar.

    Raises
    ------
    OSError
        The disk is full; its ``filename`` is the shard.
    """
    samples, bad = [], []
    job.record.unlink(missing_ok=True)
    with write_atomically(job.tar, "wb") as file:
        hashing = _Hashing(file)
        with _Members(hashing) as members:
            for row, name in enumerate(job.ids):
                try:
                    parts = read_parts(job.paths[row], job.frames[row])
                except InputError as error:
                    bad.append([name, str(error)])
                    continue
                said = {"id": name, "spk_id": job.speakers[row]}
                samples.append([name, members.add(name, said, parts)])
    record = {
        "fingerprint": job.fingerprint,
        "name": job.name,
        "bytes": job.tar.stat().st_size,
        "sha256": hashing.digest.hexdigest(),
        "samples": samples,
        "bad": bad,
    }
    with write_atomically(job.record) as file:
        json.dump(record, file)
    return record


def read_parts(path, frames):
    """The bytes of the recordings behind a row of a manifest, once they were decoded.

    Arguments
    ---------
    path : str
        One recording, or several that are joined.
    frames : int
        How many samples the manifest says.

    Returns
    -------
    list of (str, bytes, int)
        Suffix, content and samples of each.

    Raises
    ------
    InputError
        Missing, corrupt, truncated, shorter than the manifest says.
    """
    parts = []
    for name, length in parts_of(path):
        found = len(_decoded(name))
        wanted = frames if length is None else length
        if found < wanted:
            raise InputError(f"{name}: {found} samples, the manifest says {wanted}")
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise InputError(f"{name}: {error.strerror}") from error
        parts.append((Path(name).suffix[1:].lower(), content, length or found))
    return parts


def member_key(name):
    """ID → key of a sample in WebDataset's sense.

    Raises
    ------
    InputError
        An ID that no file name may be.
    """
    folder, slash, base = name.rpartition("/")
    words = name.split("/")
    if "|" in name or ".." in words or "" in words or not name.isprintable():
        raise InputError(
            f"ID {name!r}: expected one that can be a file name, without '|', '..', "
            "empty folders and unprintable characters"
        )
    return folder + slash + base.replace("%", "%25").replace(".", "%2E")


def _decoded(path):
    read_header(path)  # also tells a wav file that ends early
    return read_audio(path, average=True)


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data):
        self.digest.update(data)
        return self.file.write(data)


class _Members:
    """Members of a tar file, with the places where their contents lie."""

    def __init__(self, file):
        import webdataset

        # PAX: names of any length, while USTAR refuses some of more than 100 bytes
        options = {"encoder": False, "mtime": 0, "format": "PAX_FORMAT"}
        self.writer = webdataset.TarWriter(
            file, user="", group="", compress=False, **options
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        # closing pads the tar, which fails again where the disk is full
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.writer.close()

    def add(self, name, said, parts):
        """Add one utterance → [[offset, size, samples, CRC-32], …]."""
        key, places = member_key(name), []
        said["samples"] = sum(frames for *_, frames in parts)
        self._add(key, "json", json.dumps(said).encode())
        for number, (suffix, content, frames) in enumerate(parts):
            field = suffix if len(parts) == 1 else f"{number}.{suffix}"
            offset = self._add(key, field, content)
            places.append([offset, len(content), frames, zlib.crc32(content)])
        return places

    def _add(self, key, field, content):
        self.writer.write({"__key__": key, field: content})
        blocks = -(-len(content) // _BLOCK)
        return self.writer.tarstream.offset - blocks * _BLOCK


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
