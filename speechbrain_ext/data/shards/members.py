"""Recordings inside tar files, named by the bytes they occupy.

A path of a manifest may name a member of a shard::

    /data/shards/000012.tar!id10001/1zcIwhmdeo4/00001@1536+48044

the recording of this utterance, 48,044 bytes from byte 1,536 of the tar on. It is read
like a file: only the bytes of the wanted samples, at any position and in any order.
What a network disk charges most for, opening a file, happens once per shard instead of
once per recording.
"""

import functools
import io
import os
import re
import threading
import weakref
from typing import NamedTuple

from speechbrain_ext.utils.errors import InputError

MARK = ".tar!"
_MEMBER = re.compile(
    r"(?s)(?P<shard>.+?\.tar)!(?P<id>.+)@(?P<offset>\d+)\+(?P<size>\d+)"
)
_BINARY = getattr(os, "O_BINARY", 0)  # Windows changes line ends otherwise
_SHARDS_OPEN = 128  # a process may usually have 1,024 open files


class TarMember(NamedTuple):
    """Bytes of a tar file ``shard`` that are the recording of the utterance ``id``."""

    shard: str
    id: str
    offset: int
    size: int

    def __str__(self):
        return f"{self.shard}!{self.id}@{self.offset}+{self.size}"


def is_member(path):
    """Whether a path of a manifest names a member of a shard."""
    return MARK in str(path)


def parse_member(path):
    """Path of a manifest → TarMember; InputError where it names none."""
    match = _MEMBER.fullmatch(str(path))
    if not match:
        raise InputError(f"{path}: expected SHARD.tar!ID@OFFSET+SIZE")
    return TarMember(
        match["shard"], match["id"], int(match["offset"]), int(match["size"])
    )


def open_member(path):
    """Path of a member → its bytes as an io.RawIOBase, for reading.

    InputError where the shard is missing, or ends before the recording does; names
    both.
    """
    member = parse_member(path)
    try:
        shard = _open_shard(member.shard)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a shard") from error
    end = member.offset + member.size
    if shard.size < end:
        raise InputError(
            f"{path}: the shard has {shard.size} bytes, expected at least {end}: "
            "truncated"
        )
    return _ByteRange(shard, member.offset, member.size)


class _ByteRange(io.RawIOBase):
    """Some bytes of an open file as a file of their own."""

    def __init__(self, shard, offset, size):
        self._shard = shard  # keeps the file open
        self._offset, self._size, self._position = offset, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, position, whence=os.SEEK_SET):
        if whence == os.SEEK_CUR:
            position += self._position
        elif whence == os.SEEK_END:
            position += self._size
        self._position = max(0, position)
        return self._position

    def tell(self):
        return self._position

    def readinto(self, buffer):
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        start = self._offset + self._position
        read = self._shard.read_into(memoryview(buffer)[:wanted], start)
        self._position += read
        return read


class _OpenShard:
    """A file descriptor that is closed when nothing refers to it any longer."""

    def __init__(self, path):
        self.descriptor = os.open(path, os.O_RDONLY | _BINARY)
        self.size = os.fstat(self.descriptor).st_size
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self.descriptor)

    def read_into(self, buffer, start):
        """Fill a buffer from byte ``start`` on → bytes that were there."""
        if hasattr(os, "preadv"):  # forked workers and threads share the open file
            return os.preadv(self.descriptor, [buffer], start)
        with self._lock:  # Windows forks no workers
            os.lseek(self.descriptor, start, os.SEEK_SET)
            found = os.read(self.descriptor, len(buffer))
        buffer[: len(found)] = found
        return len(found)


_open_shard = functools.lru_cache(maxsize=_SHARDS_OPEN)(_OpenShard)
forget_open_shards = _open_shard.cache_clear
