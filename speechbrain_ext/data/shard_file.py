"""One shard: a tar file in WebDataset's form, and what is known of it.

Each recording is a member ``KEY.flac`` (or whatever its file is), its bytes unchanged,
beside ``KEY.json`` with ID, speaker and duration, so that ``webdataset.WebDataset`` and
``tar`` can read a shard without anything of ours. An utterance joined of several
recordings has ``KEY.0.flac``, ``KEY.1.flac``, …  The key is the ID; a dot in its last
part, at which WebDataset would cut it, is written ``%2E``.

The same recordings make the same bytes: owners and times are not kept.
"""

import contextlib
import hashlib
import json
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

from speechbrain_ext.data.audio import read_audio, read_header
from speechbrain_ext.data.joined_paths import parts_of
from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_atomically

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
