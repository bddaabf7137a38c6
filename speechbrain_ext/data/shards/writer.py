"""Recordings of manifests → tar files: in parallel, and continued where it was stopped.

Each recording is a member ``KEY.flac`` (or whatever its file is), its bytes unchanged
(of a segment of a recording, its samples, in a flac or wav file of their own),
beside ``KEY.json`` with ID, speaker, samples and SHA-256, as ``webdataset.WebDataset``
and ``tar`` read it. The same recordings make the same bytes: owners and times are not
kept. See :mod:`speechbrain_ext.data.shards.index` for keys and for the index.

The utterances of each manifest are shuffled by a seed, so that a reader of one shard
after the other meets all speakers, and cut into shards of a fixed number. Shard k is a
function of manifests and settings, which its first member ``__shard__`` states (names
of this form are metadata to webdataset). A tar gets its name when it is whole, so a run
that was killed continues with the next one.
"""

import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import logging
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import soundfile
from tqdm import tqdm

from speechbrain_ext.data.audio import (
    SAMPLE_RATE,
    parts_of,
    read_audio,
    read_header,
    report_bad_files,
)
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.data.shards.index import (
    COMMENT,
    ShardIndex,
    comment_in,
    keys_of,
    member_key,
    read_shard,
    recordings_of,
    shards_in,
    slices,
)
from speechbrain_ext.data.shards.members import TarMember, open_member
from speechbrain_ext.utils.errors import InputError, how_to_install
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.parallel import in_processes

logger = logging.getLogger(__name__)

_LOCK = ".lock"


class ShardCounts(NamedTuple):
    """What a folder of shards holds; ``bad``: utterances left out or damaged."""

    shards: int
    utterances: int
    bytes: int
    bad: int


class _Shard(NamedTuple):
    """What goes into one tar file: columns of the manifest, N utterances."""

    path: Path
    comment: str
    ids: list
    paths: list
    speakers: list
    frames: list


def make_shards(
    manifests,
    folder,
    utterances_per_shard=2000,
    seed=0,
    max_bad_files=0,
    num_workers=None,
):
    """Write the recordings of manifests into tar shards, and their index.

    Arguments
    ---------
    manifests : list of str or Path
        CSV or Arrow; no ID may be in two of them. Each gets shards of its own.
    folder : str or Path
        For the shards. A run that was stopped continues in it.
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
        other tars, or one that another process is writing; no webdataset.
    OSError
        The disk is full: ``filename`` is the shard. Finished shards stay.
    """
    if importlib.util.find_spec("webdataset") is None:
        raise InputError(
            "webdataset is not installed, expected it for shards: "
            f"{how_to_install('shards')}"
        )
    for name, value, least in (
        ("utterances_per_shard", utterances_per_shard, 1),
        ("seed", seed, 0),
        ("max_bad_files", max_bad_files, 0),
        ("num_workers", num_workers, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"{name}: {value}, expected at least {least}")
    folder = Path(folder).resolve()
    manifests = [read_manifest(path) for path in manifests]
    n_shards = sum(-(-len(m) // utterances_per_shard) for m in manifests)
    comment = (
        f"{n_shards} shards, utterances_per_shard={utterances_per_shard} seed={seed} "
        f"manifests={_digest(manifests)}"
    )
    shards = _shards(folder, comment, manifests, utterances_per_shard, seed)
    with _locked(folder):
        _check_existing(folder, comment)
        bad = _write_all(shards, n_shards, folder, max_bad_files, num_workers)
        index = ShardIndex(folder, num_workers)
    n_bytes = sum(path.stat().st_size for path in index.shards)
    n_good = sum(map(len, manifests)) - len(bad)
    return ShardCounts(n_shards, n_good, n_bytes, len(bad))


def _digest(manifests):
    """Hash of all rows; refuses IDs that no file can have or that come twice."""
    digest, keys = hashlib.sha256(), []
    for manifest in manifests:
        for part in slices(len(manifest)):
            ids = manifest.ids[part].tolist()
            for name in ids:
                member_key(name)
            keys.append(keys_of(ids))
            columns = ids, manifest.paths[part].tolist(), manifest.speakers[part]
            for column in (*columns[:2], columns[2].tolist()):
                digest.update("\0".join(column).encode())
            digest.update(np.asarray(manifest.durations[part]).tobytes())
    keys = np.concatenate(keys)
    _, firsts = np.unique(keys, return_index=True)
    for row in np.setdiff1d(np.arange(len(keys)), firsts):
        name = [name for m in manifests for name in m.ids.tolist()][row]
        raise InputError(f"ID '{name}' is in two manifests, expected each ID once")
    return digest.hexdigest()[:32]


def _shards(folder, comment, manifests, utterances_per_shard, seed):
    """What goes into each shard, in order."""
    numbers = itertools.count()
    for place, manifest in enumerate(manifests):
        order = np.random.default_rng([seed, place]).permutation(len(manifest))
        for start in range(0, len(manifest), utterances_per_shard):
            rows = order[start : start + utterances_per_shard]
            columns = manifest.ids, manifest.paths, manifest.speakers
            columns = (column[rows].tolist() for column in columns)
            frames = np.round(manifest.durations[rows] * SAMPLE_RATE).astype(int)
            path = folder / f"{next(numbers):06d}.tar"
            yield _Shard(path, comment, *columns, frames.tolist())


def _check_existing(folder, comment):
    """Refuse a folder with tars of another origin; damaged ones are made again."""
    for path in sorted(folder.glob("*.tar")):
        with contextlib.suppress(tarfile.TarError), tarfile.open(path, "r:") as tar:
            found = comment_in(tar, tar.next()) or "recordings of another program"
            if found != comment:
                raise InputError(
                    f"{path}: holds {found}; expected {comment}, or a new folder"
                )


@contextlib.contextmanager
def _locked(folder):
    """Refuse a folder in which another process is at work; leave no temporary file."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"{folder}: another process is making shards in it, expected one"
        ) from error
    try:
        _remove_unfinished(folder)  # of a run that was killed
        yield
    finally:
        _remove_unfinished(folder)
        lock.release()


def _remove_unfinished(folder):
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


# -- the work --------------------------------------------------------------------------


def _write_all(shards, n_shards, folder, max_bad_files, num_workers):
    """Write the shards that are not there → (ID, reason) of what was left out."""
    import webdataset  # noqa: F401  once, and not in each process that is forked

    bad, incomplete = [], []
    with (
        tqdm(total=n_shards, desc="shards", unit="shard", disable=None) as bar,
        # where too many are bad, some shards are not begun
        contextlib.closing(in_processes(_make, shards, num_workers)) as made,
    ):
        for path, left_out, is_new in made:
            bar.update(1)
            bad += left_out
            incomplete += [path] if left_out and is_new else []
            if len(bad) > max_bad_files:
                break
    try:
        report_bad_files(sorted(bad), folder, max_bad_files)
    except InputError:
        for path in incomplete:  # the user did not accept that they lack something
            path.unlink()
        raise
    return bad


def _make(shard):
    """One shard → (path, [(ID, reason)] of what was left out, whether it was written).

    An existing one is written again where it is damaged, and where one of the
    recordings that it lacks can be read now.
    """
    try:
        utterances, _ = read_shard(shard.path)
        return shard.path, _still_bad(shard, utterances), False
    except InputError:
        return shard.path, _write(shard), True


def _still_bad(shard, utterances):
    """(ID, reason) of what a shard lacks; InputError where one of it can be read."""
    bad = []
    for row, name in enumerate(shard.ids):
        if name not in utterances:
            try:
                _read_parts(shard.paths[row], shard.frames[row])
            except InputError as error:
                bad.append((name, str(error)))
            else:
                raise InputError(f"{shard.path}!{name}: missing")
    return bad


def _write(shard):
    """Write a shard, whole or not at all → (ID, reason) of what was left out."""
    import webdataset

    # PAX: names of any length, while USTAR refuses some of more than 100 bytes
    options = {"encoder": False, "mtime": 0, "format": "PAX_FORMAT"}
    owner = {"user": "", "group": "", "compress": False}
    bad = []
    comment = tarfile.TarInfo(COMMENT)
    comment.size = len(shard.comment)
    with (
        write_atomically(shard.path, "wb") as file,
        webdataset.TarWriter(file, **owner, **options) as writer,
    ):
        writer.tarstream.addfile(comment, io.BytesIO(shard.comment.encode()))
        for row, name in enumerate(shard.ids):
            try:
                parts = _read_parts(shard.paths[row], shard.frames[row])
            except InputError as error:
                bad.append((name, str(error)))
            else:
                writer.write(_sample(name, shard.speakers[row], parts))
    return bad


def _sample(name, speaker, parts):
    """One utterance as webdataset writes it."""
    metadata = {
        "id": name,
        "spk_id": speaker,
        "samples": sum(frames for *_, frames in parts),
        "sha256": [_sha256(content) for _, content, _ in parts],
    }
    sample = {"__key__": member_key(name), "json": json.dumps(metadata).encode()}
    for number, (suffix, content, _) in enumerate(parts):
        sample[suffix if len(parts) == 1 else f"{number}.{suffix}"] = content
    return sample


def _encoded(wav):
    """Samples [T] that were cut from a file → suffix and content of one that has them.

    flac where 16 bits hold them, as they do what was recorded; floats else.
    """
    content, whole = io.BytesIO(), wav * np.float32(1 << 15)
    if np.array_equal(whole, np.round(whole)) and np.abs(whole).max() < 1 << 15:
        soundfile.write(content, whole.astype(np.int16), SAMPLE_RATE, format="FLAC")
        return "flac", content.getvalue()
    soundfile.write(content, wav, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return "wav", content.getvalue()


def _read_parts(path, frames):
    """(suffix, content, samples) of the recordings of a manifest's row, decoded once.

    InputError where one is missing, corrupt, truncated or shorter than its manifest
    states.
    """
    parts = []
    for name, start, length, is_cut in parts_of(path):
        if is_cut:
            wav = read_audio(name, start, length, average=True)
            parts.append((*_encoded(wav), length))
            continue
        read_header(name)  # also finds a wav file that ends early
        decoded = len(read_audio(name, average=True))
        expected = frames if length is None else length
        if decoded < expected:
            raise InputError(
                f"{name}: {decoded} samples, the manifest states {expected}"
            )
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise InputError(f"{name}: {error.strerror}") from error
        parts.append((Path(name).suffix[1:].lower(), content, length or decoded))
    return parts


# -- the check -------------------------------------------------------------------------


def check_shards(folder, max_bad_files=0, num_workers=None):
    """Compare each recording with its SHA-256; decode it where the tar states none.

    Arguments
    ---------
    folder : str or Path
        Of tar files, of any origin.
    max_bad_files : int
        So many damaged utterances are only logged.
    num_workers : int, optional
        Processes; None: one for each core.

    Returns
    -------
    ShardCounts

    Raises
    ------
    InputError
        More damaged utterances than stated, a tar that is truncated or missing; names
        shard and utterance of the first.
    """
    paths = shards_in(Path(folder).resolve())
    bad, n_utterances, stated = [], 0, set()
    with tqdm(total=len(paths), desc="checking", unit="shard", disable=None) as bar:
        for comment, count, damaged in in_processes(_check, paths, num_workers):
            for reason in damaged:
                logger.warning("%s", reason)
            bad += damaged
            n_utterances += count
            stated.update(re.findall(r"^\d+ shards", comment))
            bar.update(1)
    for number in stated - {f"{len(paths)} shards"}:
        raise InputError(
            f"{folder}: {len(paths)} tar files, expected {number}; run the command "
            "that made them again"
        )
    if len(bad) > max_bad_files:
        raise InputError(
            f"{bad[0]} ({len(bad)} bad utterances, expected at most max_bad_files="
            f"{max_bad_files}); delete the shard and run the command that made it again"
        )
    n_bytes = sum(path.stat().st_size for path in paths)
    return ShardCounts(len(paths), n_utterances, n_bytes, len(bad))


def _check(path):
    """(comment, utterances, a line for each damaged one) of one shard."""
    utterances, comment = read_shard(path)
    count, damaged = 0, []
    for name, fields in utterances.items():
        places = recordings_of(path, name, fields)
        count += bool(places)
        try:
            checksums = None
            if places and "json" in fields:
                metadata = json.loads(_content(path, name, fields["json"]))
                checksums = isinstance(metadata, dict) and metadata.get("sha256")
            for number, place in enumerate(places):
                if not checksums:
                    read_audio(TarMember(path, name, *place), average=True)
                elif _sha256(_content(path, name, place)) != checksums[number]:
                    raise InputError(f"{path}!{name}: damaged, its SHA-256 differs")
        except InputError as error:
            damaged.append(str(error))
        except (ValueError, TypeError, LookupError):
            damaged.append(f"{path}!{name}: damaged, its .json cannot be read")
    return comment, count, damaged


def _content(path, name, place):
    with open_member(TarMember(path, name, *place)) as file:
        return file.read()


def _sha256(content):
    return hashlib.sha256(content).hexdigest()
