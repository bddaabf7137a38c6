"""A folder of shards, and manifests whose recordings are read from it.

    000000.tar, 000001.tar, …   the recordings: tar files as WebDataset has them
    000000.json, …              of each shard: SHA-256, and of each recording its
                                place, length and CRC-32; written after the tar
    index.npy, shards.json      of all together; written last

A manifest stays what says who speaks where and in which order; the shards only say
where the bytes of an utterance lie. So a run that reads from shards takes the same
steps as one that reads the files they were made from: the samples are equal on any
machine, the weights to the bit where the steps are computed alike
(:mod:`speechbrain_ext.brains.exact`). One folder of shards serves any selection of its
utterances.

``index.npy`` holds int64 ``[5, P]``: key of the utterance, shard, offset, size (bytes)
and length (samples) of each of P recordings, sorted by key; an utterance that was
joined of several has several, in their order. It is mapped into memory: the processes
of a machine share one copy. The key is a 64-bit hash of the ID; writing checks that no
two are equal.
"""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechbrain_ext.data.audio import JOINT, LENGTH, SAMPLE_RATE
from speechbrain_ext.data.manifest import TextColumn
from speechbrain_ext.data.shards.places import Place
from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
SHARDS, INDEX = "shards.json", "index.npy"
KEY, SHARD, OFFSET, SIZE, FRAMES = range(5)
_ROWS_AT_ONCE = 100_000


class ShardIndex:
    """Where the recordings of a folder of shards lie.

    Arguments
    ---------
    folder : str or Path
        What ``python -m speechbrain_ext shards`` has finished.

    Attributes
    ----------
    names : list of str
        The tar files.
    parts : np.ndarray
        [5, P], see above; memory-mapped.
    bad : set of str
        IDs of the utterances that were left out because they could not be read.

    Raises
    ------
    InputError
        Unfinished or damaged; a shard that is missing or of another size.
    """

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        known = read_marker(self.folder)
        self.names = [shard["name"] for shard in known["shards"]]
        self.bad = {name for name, _ in known["bad"]}
        self.parts = self._map(known["recordings"])
        for shard in known["shards"]:
            _check_size(self.folder / shard["name"], shard["bytes"])

    def _map(self, n_parts):
        path = self.folder / INDEX
        try:
            parts = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: {reason}; expected the index") from error
        if parts.shape != (5, n_parts) or parts.dtype != np.int64:
            raise InputError(
                f"{path}: {parts.dtype} {list(parts.shape)}, expected int64 "
                f"{[5, n_parts]}"
            )
        return np.asarray(parts)  # a plain view: np.memmap is slow to index

    def find(self, ids):
        """The first part of each utterance.

        Arguments
        ---------
        ids : column of str
            [N].

        Returns
        -------
        np.ndarray
            [N] int32 or int64, columns of ``parts``; -1 where there is none.
        """
        small = self.parts.shape[1] < 2**31
        first = np.empty(len(ids), dtype=np.int32 if small else np.int64)
        keys = self.parts[KEY]
        for part in _slices(len(ids)):
            wanted = keys_of(ids[part].tolist())
            found = np.searchsorted(keys, wanted)
            inside = np.minimum(found, len(keys) - 1)
            first[part] = np.where(keys[inside] == wanted, inside, -1)
        return first

    def parts_from(self, first):
        """All parts of one utterance: [5, n], from its first on."""
        last = first + 1
        keys = self.parts[KEY]
        while last < len(keys) and keys[last] == keys[first]:
            last += 1
        return self.parts[:, first:last]

    def frames_from(self, first):
        """Length of the utterances whose first parts are ``first``: [N] samples."""
        keys, frames = self.parts[KEY], self.parts[FRAMES]
        total = frames[first]
        rows, part = np.arange(len(first)), first + 1
        while len(rows):
            within = part < len(keys)
            rows, part = rows[within], part[within]
            same = keys[part] == keys[first[rows]]
            rows, part = rows[same], part[same]
            total[rows] += frames[part]
            part = part + 1
        return total

    def __reduce__(self):
        # a process that is not forked maps the file anew
        return ShardIndex, (self.folder,)


class PlaceColumn(TextColumn):
    """Paths of N utterances that lie in shards, made when they are looked at.

    Arguments
    ---------
    index : ShardIndex
    ids : column of str
        [N].
    first : np.ndarray
        [N], as from :meth:`ShardIndex.find`.
    """

    def __init__(self, index, ids, first):
        self.index, self.ids, self.first = index, ids, first

    def __len__(self):
        return len(self.first)

    def __getitem__(self, rows):
        first = self.first[rows]
        if isinstance(first, np.ndarray):
            return PlaceColumn(self.index, self.ids[rows], first)
        return self._path(self.ids[rows], int(first))

    def positions(self):
        """Number of the shard, int64 [N], and offset in it, int64 [N]."""
        return self.index.parts[SHARD][self.first], self.index.parts[OFFSET][self.first]

    def tolist(self):
        """All paths: [N] str."""
        return list(map(self._path, self.ids.tolist(), self.first.tolist()))

    def _path(self, name, first):
        _, *parts = self.index.parts_from(first).tolist()
        places = [
            (f"{Place(self._shard(shard), name, offset, size)}", frames)
            for shard, offset, size, frames in zip(*parts)
        ]
        if len(places) == 1:
            return places[0][0]
        return JOINT.join(f"{place}{LENGTH}{frames}" for place, frames in places)

    def _shard(self, number):
        return f"{self.index.folder}/{self.index.names[number]}"


def from_shards(manifest, folder):
    """The same manifest, its recordings read from shards.

    Arguments
    ---------
    manifest : Manifest
        N utterances; there may be others in the shards.
    folder : str or Path
        Of shards, made from this manifest or a larger one.

    Returns
    -------
    Manifest
        In the same order, and the same but for ``paths``; without those utterances
        that the making of the shards left out as bad, which is logged.

    Raises
    ------
    InputError
        As for :class:`ShardIndex`; an utterance that is not in the shards, or is
        shorter there than the manifest says.
    """
    index = ShardIndex(folder)
    if index.bad:
        good = np.ones(len(manifest), dtype=bool)
        for part in _slices(len(manifest)):
            good[part] = [name not in index.bad for name in manifest.ids[part].tolist()]
        if not good.all():
            manifest = manifest.select(good)
            logger.warning(
                "%s: %d utterances were left out when these shards were made",
                *(index.folder, np.sum(~good)),
            )
    first = index.find(manifest.ids)
    missing = np.flatnonzero(first < 0)
    if len(missing):
        raise InputError(
            f"{index.folder}: no utterance '{manifest.ids[int(missing[0])]}', expected "
            f"all {len(manifest)} of the manifest ({len(missing)} are missing): make "
            "the shards from this manifest"
        )
    _check_lengths(index, manifest, first)
    paths = PlaceColumn(index, manifest.ids, first)
    logger.info("%d utterances are read from %s", len(manifest), index.folder)
    return replace(manifest, paths=paths)


def keys_of(ids):
    """IDs → keys: [N] int64, the first 8 bytes of BLAKE2b with that digest size."""
    hashed = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.frombuffer(b"".join(hashed), dtype="<i8").astype(np.int64)


def read_marker(folder):
    """``shards.json``: the list of shards, and what is bad.

    Raises
    ------
    InputError
        Missing, damaged, or of another version.
    """
    path = folder / SHARDS
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, expected a folder that 'python -m speechbrain_ext "
            "shards' has finished"
        )
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        version = known["format_version"]
        whole = isinstance(known["recordings"], int)
        for shard in known["shards"]:
            numbers = (shard[name] for name in ("bytes", "utterances"))
            whole &= all(isinstance(number, int) for number in numbers)
            whole &= isinstance(shard["name"] + shard["sha256"], str)
        for name, reason in known["bad"]:
            whole &= isinstance(name + reason, str)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error})") from error
    if version != FORMAT_VERSION or not whole:
        raise InputError(
            f"{path}: version {version}, expected {FORMAT_VERSION} in its own form"
        )
    return known


def _check_size(path, size):
    found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
    if found != f"{size} bytes":
        raise InputError(f"{path}: {found}, expected a shard of {size} bytes")


def _slices(n):
    """Some rows at a time: all IDs as Python texts would take more than the rest."""
    starts = range(0, n, _ROWS_AT_ONCE)
    return [slice(start, start + _ROWS_AT_ONCE) for start in starts]


def _check_lengths(index, manifest, first):
    for part in _slices(len(first)):
        there = index.frames_from(first[part])
        said = np.round(manifest.durations[part] * SAMPLE_RATE).astype(np.int64)
        shorter = np.flatnonzero(there < said)
        if len(shorter):
            at = int(shorter[0])
            raise InputError(
                f"{index.folder}: '{manifest.ids[part.start + at]}' has {there[at]} "
                f"samples, the manifest says {said[at]}: made from other recordings"
            )
