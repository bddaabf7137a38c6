"""Where the recordings of a folder of tar files lie.

Any folder of WebDataset tars will do: recordings KEY.flac, KEY.wav, KEY.ogg or KEY.mp3,
with whatever else is beside them. The key is the ID of the utterance; a dot in its last
part, where WebDataset would cut it, is written ``%2E``. An utterance that was joined of
several recordings has KEY.0.flac, KEY.1.flac, …

A manifest states who speaks where and in which order; the index only states where the
bytes of an utterance are. So a run that reads from shards takes the same steps as one
that reads the files: the samples are equal on any machine, the weights to the bit where
the steps are computed alike (:mod:`speechbrain_ext.training.resumable`). One folder
serves any selection of its utterances.

``index.arrow`` beside the tars has a row for each of P recordings, sorted by key: key
of the utterance (a 64-bit hash of its ID), shard, offset and size (bytes), length
(samples; -1 where its header cannot be read), int64 each. It is mapped into memory: the
processes of a machine share one copy. It is made anew where a tar was changed.
"""

import hashlib
import json
import logging
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from speechbrain_ext.data.audio import (
    BAD_FILES,
    JOINT,
    LENGTH,
    SAMPLE_RATE,
    read_header,
)
from speechbrain_ext.data.manifest import TextColumn
from speechbrain_ext.data.shards.members import TarMember, forget_open_shards
from speechbrain_ext.scoring.trials import RECORDINGS
from speechbrain_ext.utils.distributed import main_process_first
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.parallel import in_processes

logger = logging.getLogger(__name__)

INDEX, COMMENT = "index.arrow", "__shard__"
_COLUMNS = ("key", "shard", "offset", "size", "frames")
_ROWS_AT_ONCE = 100_000
_NAME = re.compile(r"(?:\./)?(?P<key>(?:.*/)?[^./]+)\.(?P<field>[^/]+)")
_SOUND = re.compile(rf"(?:(\d+)\.)?(?:{'|'.join(s[1:] for s in RECORDINGS)})")


class ShardIndex:
    """Where the recordings of a folder of tar files lie.

    Arguments
    ---------
    folder : str or Path
        Holds ``*.tar``.
    num_workers : int, optional
        Processes that read the tars where there is no index; None: one for each core.

    Attributes
    ----------
    shards : list of Path
        The tar files, sorted by name.
    key, shard, offset, size, frames : np.ndarray
        [P] int64 each; memory-mapped.

    Raises
    ------
    InputError
        No tar with a recording; a tar that is damaged or truncated, or an utterance
        that is in two of them: names shard and utterance.
    """

    def __init__(self, folder, num_workers=None):
        self.folder = Path(folder).resolve()
        self.shards = shards_in(self.folder)
        forget_open_shards()  # one of them may have been made anew
        stats = [(path.name, path.stat()) for path in self.shards]
        tars = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        fields = [(name, pa.int64()) for name in _COLUMNS]
        schema = pa.schema(fields, {"version": "1", "shards": json.dumps(tars)})
        columns = _load(self.folder / INDEX, schema)
        if columns is None:
            columns = _build(self.folder, self.shards, schema, num_workers)
        self.key, self.shard, self.offset, self.size, self.frames = columns

    def __len__(self):
        return len(self.key)

    def find(self, ids):
        """IDs [N] → first row of each utterance, or -1; samples of it, or -1."""
        first = np.empty(len(ids), dtype=np.int32 if len(self) < 2**31 else np.int64)
        frames = np.empty(len(ids), dtype=np.int64)
        for part in slices(len(ids)):
            keys = keys_of(ids[part].tolist())
            start = np.searchsorted(self.key, keys)
            stop = np.searchsorted(self.key, keys, side="right")
            first[part] = np.where(start < stop, start, -1)
            lengths = self.frames[np.minimum(start, len(self) - 1)]
            for row in np.flatnonzero(stop - start > 1):
                several = self.frames[start[row] : stop[row]]
                lengths[row] = several.sum() if several.min() >= 0 else -1
            frames[part] = lengths
        return first, frames

    def path_of(self, name, first):
        """Path of the utterance ``name`` whose first recording is row ``first``."""
        last = first + 1
        while last < len(self) and self.key[last] == self.key[first]:
            last += 1
        paths = []
        for row in range(first, last):
            place = self.offset[row], self.size[row]
            paths.append(str(TarMember(self.shards[self.shard[row]], name, *place)))
        if len(paths) == 1:
            return paths[0]
        lengths = self.frames[first:last]
        return JOINT.join(f"{path}{LENGTH}{n}" for path, n in zip(paths, lengths))

    def __reduce__(self):
        # a process that is not forked maps the file anew
        return ShardIndex, (self.folder,)


class ShardPaths(TextColumn):
    """Paths of N utterances in shards, made when they are looked at.

    ``first`` [N] are the first rows of ``ids`` [N] in the index.
    """

    def __init__(self, index, ids, first):
        self.index, self.ids, self.first = index, ids, first

    def __len__(self):
        return len(self.first)

    def __getitem__(self, rows):
        first = self.first[rows]
        if isinstance(first, np.ndarray):
            return ShardPaths(self.index, self.ids[rows], first)
        return self.index.path_of(self.ids[rows], int(first))

    def positions(self):
        """Number of the shard, int64 [N], and offset in it, int64 [N]."""
        return self.index.shard[self.first], self.index.offset[self.first]

    def tolist(self):
        """All paths: [N] str."""
        return list(map(self.index.path_of, self.ids.tolist(), self.first.tolist()))


def from_shards(manifest, folder):
    """The same manifest, its recordings read from shards.

    Arguments
    ---------
    manifest : Manifest
        N utterances; there may be others in the shards.
    folder : str or Path
        Of tar files whose keys are the IDs.

    Returns
    -------
    Manifest
        In the same order, with other ``paths``. Utterances that could not be read when
        the shards were made (``bad_files.txt`` in the folder) are left out, and logged.

    Raises
    ------
    InputError
        As for :class:`ShardIndex`; an utterance that is not in the shards, or is
        shorter there than the manifest states.
    """
    index = main_process_first(ShardIndex, folder)
    first, frames = index.find(manifest.ids)
    missing = np.flatnonzero(first < 0)
    if len(missing):
        listing = index.folder / BAD_FILES
        lines = listing.read_text("utf-8").splitlines() if listing.exists() else ()
        bad = {line.split("\t")[0] for line in lines}
        names = [n for n in manifest.ids[missing].tolist() if n not in bad]
        if names:
            raise InputError(
                f"{index.folder}: no utterance '{names[0]}', expected all "
                f"{len(manifest)} of the manifest ({len(names)} are missing): make the "
                "shards from this manifest"
            )
        manifest = manifest.select(first >= 0)
        first, frames = first[first >= 0], frames[first >= 0]
        logger.warning(
            "%s: %d utterances were left out when these shards were made",
            *(index.folder, len(missing)),
        )
    expected = np.round(manifest.durations * SAMPLE_RATE).astype(np.int64)
    for row in np.flatnonzero((frames >= 0) & (frames < expected)):
        raise InputError(
            f"{index.folder}: '{manifest.ids[int(row)]}' has {frames[row]} samples, "
            f"the manifest states {expected[row]}: made from other recordings"
        )
    logger.info("%d utterances are read from %s", len(manifest), index.folder)
    return replace(manifest, paths=ShardPaths(index, manifest.ids, first))


# -- tar files -------------------------------------------------------------------------


def shards_in(folder):
    """Tar files of a folder, sorted by name; InputError where there is none."""
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise InputError(f"{folder}: no *.tar file, expected a folder of them")
    return shards


def read_shard(path):
    """Tar file → {ID: {field: (offset, size)}} of its members; its comment.

    InputError where it is missing, damaged or truncated; names the last good utterance.
    """
    utterances, name, comment = {}, None, ""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                comment = comment or comment_in(tar, member)
                match = _NAME.fullmatch(member.name)
                if match and member.isreg():
                    name = _id_of(match["key"])
                    place = member.offset_data, member.size
                    utterances.setdefault(name, {})[match["field"].lower()] = place
            # tarfile takes a damaged header for the end, where blocks are empty
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("damaged or truncated")
            return utterances, comment
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a tar file") from error
    except tarfile.TarError as error:
        culprit = path if name is None else f"{path}!{name}"
        raise InputError(
            f"{culprit}: {error}, here or behind it; expected a whole tar file"
        ) from error


def comment_in(tar, member):
    """What a member ``__shard__`` states; "" for other members."""
    if member is None or member.name != COMMENT:
        return ""
    return tar.extractfile(member).read().decode(errors="replace")


def recordings_of(path, name, fields):
    """(offset, size) of the recordings of one utterance, in their order."""
    matches = [(_SOUND.fullmatch(field), place) for field, place in fields.items()]
    numbered = sorted((int(match[1] or 0), place) for match, place in matches if match)
    if [number for number, _ in numbered] != list(range(len(numbered))):
        raise InputError(
            f"{path}!{name}: {', '.join(sorted(fields))}, expected one recording, or "
            "several numbered from 0"
        )
    return [place for _, place in numbered]


def member_key(name):
    """ID → key of a sample in WebDataset's sense; InputError where it can be none."""
    folder, slash, base = name.rpartition("/")
    words = name.split("/")
    if "|" in name or ".." in words or "" in words or not name.isprintable():
        raise InputError(
            f"ID {name!r}: expected one that can be a file name, without '|', '..', "
            "empty folders and unprintable characters"
        )
    return folder + slash + base.replace("%", "%25").replace(".", "%2E")


def _id_of(key):
    folder, slash, base = key.rpartition("/")
    return folder + slash + base.replace("%2E", ".").replace("%25", "%")


# -- the index -------------------------------------------------------------------------


def keys_of(ids):
    """IDs → keys: [N] int64, the first 8 bytes of BLAKE2b with that digest size."""
    hashed = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.frombuffer(b"".join(hashed), dtype="<i8").astype(np.int64)


def slices(n):
    """Some rows at a time: all IDs as Python texts would take more than the rest."""
    starts = range(0, n, _ROWS_AT_ONCE)
    return [slice(start, start + _ROWS_AT_ONCE) for start in starts]


def _load(path, schema):
    """The columns, or None where there is no index of these tars."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            if reader.schema.equals(schema, check_metadata=True):
                return [column.to_numpy() for column in reader.get_batch(0)]
    except (OSError, pa.ArrowException):  # absent, damaged
        pass
    return None


def _build(folder, shards, schema, num_workers):
    """Read all tars and write the index → its columns."""
    parts = []
    with tqdm(total=len(shards), desc="indexing", unit="shard", disable=None) as bar:
        for number, rows in enumerate(in_processes(_rows_of, shards, num_workers)):
            rows[1] = number
            parts.append(rows)
            bar.update(1)
    columns = np.concatenate(parts, axis=1)
    if not columns.size:
        raise InputError(f"{folder}: no recording KEY.flac, KEY.wav, … in its tars")
    columns = columns[:, np.argsort(columns[0], kind="stable")]
    _check_unique(shards, *columns[:2])
    batch = pa.record_batch(list(map(pa.array, columns)), schema=schema)
    try:
        with (
            write_atomically(folder / INDEX, "wb") as file,
            pa.ipc.new_file(file, schema) as writer,
        ):
            writer.write_batch(batch)
    except OSError as error:  # a folder that is only to be read
        logger.warning("%s: %s; not kept", folder / INDEX, error.strerror)
        return columns
    return _load(folder / INDEX, schema) or columns


def _rows_of(path):
    """Rows of one tar: [5, P] int64, without the shard's number."""
    names, rows = [], []
    for name, fields in read_shard(path)[0].items():
        for place in recordings_of(path, name, fields):
            try:
                frames = read_header(TarMember(path, name, *place)).frames
            except InputError as error:  # named again where it is read
                logger.warning("%s", error)
                frames = -1
            names.append(name)
            rows.append((0, *place, frames))
    return np.vstack([keys_of(names), np.array(rows, np.int64).reshape(-1, 4).T])


def _check_unique(shards, key, shard):
    """Refuse an utterance that is in two shards; names it."""
    for row in np.flatnonzero((key[1:] == key[:-1]) & (shard[1:] != shard[:-1])):
        first, second = shards[shard[row]], shards[shard[row + 1]]
        names = [n for n in read_shard(second)[0] if keys_of([n])[0] == key[row]]
        raise InputError(f"{second}!{names[0]}: also in {first}, expected each ID once")
