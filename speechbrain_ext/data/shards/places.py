"""Recordings inside tar shards, named by the place where their bytes lie.

A path of a manifest may be such a place::

    /data/shards/000012.tar!id10001/1zcIwhmdeo4/00001@1536+48044

the recording of this utterance, 48,044 bytes from byte 1,536 of the tar on. A place is
read as a file of its own would be: only the bytes that the wanted samples are in, at
any position and in any order. What a network disk charges most for, opening a file, is
done once per shard instead of once per recording.
"""

import functools
import io
import os
import re
from typing import NamedTuple

from speechbrain_ext.utils.errors import InputError

MARK = ".tar!"
_PLACE = re.compile(
    r"(?s)(?P<shard>.+?\.tar)!(?P<id>.+)@(?P<offset>\d+)\+(?P<size>\d+)"
)
_SHARDS_OPEN = 128  # a process may usually have 1,024 open files


class Place(NamedTuple):
    """Where the bytes of one recording are.

    Attributes
    ----------
    shard : str
        The tar file.
    id : str
        The utterance.
    offset, size : int
        In bytes.
    """

    shard: str
    id: str
    offset: int
    size: int

    def __str__(self):
        return f"{self.shard}!{self.id}@{self.offset}+{self.size}"


def is_place(path):
    """Whether a path of a manifest is a place in a shard."""
    return MARK in str(path)


def parse_place(path):
    """Path of a manifest → Place.

    Raises
    ------
    InputError
        Where it is none.
    """
    match = _PLACE.fullmatch(str(path))
    if not match:
        raise InputError(f"{path}: expected a place SHARD.tar!ID@OFFSET+SIZE")
    return Place(match["shard"], match["id"], int(match["offset"]), int(match["size"]))


def open_place(path):
    """Open a recording inside a shard.

    Arguments
    ---------
    path : str
        A place.

    Returns
    -------
    ByteRange

    Raises
    ------
    InputError
        The shard is missing, or ends before the recording does; names both.
    """
    place = parse_place(path)
    try:
        shard = _open_shard(place.shard)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a shard") from error
    if shard.size < place.offset + place.size:
        raise InputError(
            f"{path}: the shard has {shard.size} bytes, expected at least "
            f"{place.offset + place.size}: truncated"
        )
    return ByteRange(shard, place.offset, place.size)


class ByteRange(io.RawIOBase):
    """Some bytes of an open file as a file of their own, for reading."""

    def __init__(self, shard, offset, size):
        self._shard = shard  # keeps the file open
        self._offset, self._size, self._position = offset, size, 0

    def readable(self):
        """True."""
        return True

    def seekable(self):
        """True."""
        return True

    def seek(self, position, whence=os.SEEK_SET):
        """Go to a byte of the range."""
        if whence == os.SEEK_CUR:
            position += self._position
        elif whence == os.SEEK_END:
            position += self._size
        self._position = max(0, position)
        return self._position

    def tell(self):
        """The position in the range."""
        return self._position

    def readinto(self, buffer):
        """Fill a buffer; fewer bytes where the range ends."""
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        start = self._offset + self._position
        # with a position: workers and threads share the open file
        read = os.preadv(self._shard.descriptor, [memoryview(buffer)[:wanted]], start)
        self._position += read
        return read


class _OpenShard:
    """A file descriptor that is closed when nobody reads from it any longer."""

    def __init__(self, path):
        self.descriptor = None
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size

    def __del__(self):
        if self.descriptor is not None:
            os.close(self.descriptor)


_open_shard = functools.lru_cache(maxsize=_SHARDS_OPEN)(_OpenShard)
