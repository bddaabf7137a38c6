"""Noises and room responses: from the disk, or decoded in memory up to a limit.

MUSAN has 2,016 files and RIRS_NOISES 60,000, of which every utterance of a training
draws anew. Decoded in memory they cost no opening and no decoding. Samples of 16 bit
stay in 16 bit, x = i / 32768: they are those of the files, to the bit. The shortest
files are kept first: each file of a kind is drawn equally often, so they spare the most
reads per MiB.

All processes of a machine share one memory without a name, so that nothing can be left
behind: one process makes it (``memfd_create``: no file in any folder, no limit of
``/dev/shm``, which is 64 MB in a container by default), the others open it through
``/proc``. The system frees it when the last of them has ended, however it did.
"""

import functools
import logging
import mmap
import os
import socket
import tempfile
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from speechbrain_ext.data.audio import (
    SAMPLE_RATE,
    read_audio,
    read_channels,
    read_header,
)
from speechbrain_ext.data.augment.waveform import read_crop, take_crop
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

_MIB = 2**20
_ALIGNMENT = 64  # bytes
_SCALE = np.float32(1 / 32768)
_NUM_THREADS = 16


class NoiseFiles:
    """Sound files on the disk, read anew for each draw.

    Arguments
    ---------
    noises, responses : iterable of str
        The files that an effect will draw from, for a cache to decode: noises for
        :meth:`crop`, room responses for :meth:`response`.
    """

    def __init__(self, noises=(), responses=()):
        self.noises = sorted(noises)
        self.responses = sorted(responses)
        self._frames = {}

    def crop(self, path, n, generator):
        """``n`` samples from a random place of a noise: float32 [n], channels averaged.

        As :func:`~speechbrain_ext.data.augment.waveform.read_crop`.
        """
        if path not in self._frames:
            self._frames[path] = read_header(path).frames
        return read_crop(path, self._frames[path], n, generator)

    def response(self, path, generator):
        """One channel of a room response, drawn: float32 [K]."""
        channels = _read_response(path)
        return channels[:, generator.integers(channels.shape[1])]


class CachedNoiseFiles(NoiseFiles):
    """Sound files decoded in memory, and from the disk where they do not fit.

    All ranks of a distributed run make it together.

    Arguments
    ---------
    noises, responses : list of str
        Paths; of noises the channels are averaged, of responses they are kept.
    limit_mib : float
        Of memory on each machine.

    Raises
    ------
    InputError
        A file that is no sound at 16 kHz, or a silent response; a negative limit.
    """

    def __init__(self, noises, responses, limit_mib):
        super().__init__(noises, responses)
        if not limit_mib >= 0:
            raise InputError(f"noise_cache_mib: {limit_mib}, expected at least 0")
        self._memory, self._slots = _once_per_machine(
            lambda: _decode(self.noises, self.responses, limit_mib * _MIB)
        )

    def __len__(self):
        """Files in memory."""
        return len(self._slots)

    def __reduce__(self):
        # a process that is not forked reads from the disk
        return NoiseFiles, (self.noises, self.responses)

    def crop(self, path, n, generator):
        """As :meth:`NoiseFiles.crop`."""
        slot = self._slots.get((path, False))
        if slot is None:
            return super().crop(path, n, generator)
        samples = _view(self._memory, slot)

        def read(start, count):
            return _as_float(samples[start : start + count])

        return take_crop(read, len(samples), n, generator)

    def response(self, path, generator):
        """As :meth:`NoiseFiles.response`."""
        slot = self._slots.get((path, True))
        if slot is None:
            return super().response(path, generator)
        channels = _view(self._memory, slot)
        return _as_float(channels[:, generator.integers(channels.shape[1])])


class _Slot(NamedTuple):
    """Where a file lies in memory: ``shape`` [K], or [K, C] of a response."""

    offset: int
    shape: tuple
    dtype: str

    @property
    def size(self):
        """In bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def _view(memory, slot):
    count = int(np.prod(slot.shape))
    return np.frombuffer(memory, slot.dtype, count, slot.offset).reshape(slot.shape)


def _as_float(samples):
    """int16 or float32 → float32, a copy."""
    if samples.dtype == np.int16:
        return np.multiply(samples, _SCALE, dtype=np.float32)
    return samples.copy()


# -- decoding --------------------------------------------------------------------------


def _decode(noises, responses, limit):
    """((descriptor, memory), {(path, is a response): _Slot}), in ``limit`` bytes."""
    items = [(path, False) for path in noises] + [(path, True) for path in responses]
    shapes = parallel_map(_shape, items, _NUM_THREADS, "noises", "file")
    slots, end, bytes_on_disk = {}, 0, 0
    by_length = sorted(zip(items, shapes), key=lambda pair: (pair[1][0], pair[0]))
    for item, (shape, dtype) in by_length:
        slot = _Slot(end, shape, dtype)
        if end + slot.size > limit:
            bytes_on_disk += slot.size
            continue
        slots[item] = slot
        end += -(-slot.size // _ALIGNMENT) * _ALIGNMENT
    descriptor, memory = _allocate(end)

    def fill(item):
        _view(memory, slots[item])[...] = _samples(*item, slots[item].dtype)

    parallel_map(fill, list(slots), _NUM_THREADS, "decoding noises", "file")
    logger.info(
        "noises and rooms: %d files decoded in %d MiB of memory, once for this "
        "machine; %d files of %d MiB stay on the disk",
        *(len(slots), end / _MIB, len(items) - len(slots), bytes_on_disk / _MIB),
    )
    return (descriptor, memory), slots


def _shape(item):
    """(path, is a response) → (shape, dtype) of it in memory."""
    path, is_response = item
    header = read_header(path)
    if header.sample_rate != SAMPLE_RATE:
        raise InputError(
            f"{path}: {header.sample_rate} Hz, expected sound at {SAMPLE_RATE} Hz"
        )
    shape = (header.frames, header.channels) if is_response else (header.frames,)
    # an average of channels may lie between two steps of 16 bit
    exact = is_response or header.channels == 1
    return shape, "int16" if exact and _has_16_bits(path) else "float32"


def _has_16_bits(path):
    try:
        return soundfile.info(path).subtype == "PCM_16"
    except soundfile.SoundFileError:  # it is repaired, or read by another decoder
        return False


def _samples(path, is_response, dtype):
    """All of a file, in the type of its slot."""
    if is_response:
        channels = _checked_response(path)
    else:
        channels = read_audio(path, average=True)
    if dtype == "int16":
        return np.rint(channels / _SCALE).astype(np.int16)
    return channels


def _checked_response(path):
    """All channels of a response: float32 [K, C]."""
    header = read_header(path)
    if header.sample_rate != SAMPLE_RATE:
        raise InputError(
            f"{path}: {header.sample_rate} Hz, expected a response at {SAMPLE_RATE} Hz"
        )
    channels, _ = read_channels(path)
    channels = channels.reshape(len(channels), -1)
    if not channels.any(axis=0).all():
        raise InputError(f"{path}: silent, expected a room response")
    return channels


_read_response = functools.lru_cache(maxsize=256)(_checked_response)


# -- memory of a machine ---------------------------------------------------------------


def _once_per_machine(make):
    """(memory, description), made by one process of each machine, for all of them.

    ``make`` returns what :func:`_allocate` gave, filled, and a description that can be
    pickled. The others may only read the memory.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        (descriptor, memory), description = make()
        os.close(descriptor)
        return memory, description
    rank = distributed.get_rank()
    hosts = _gather(socket.gethostname())
    leader = hosts.index(hosts[rank])
    owner, message = rank == leader, None
    if owner:
        (descriptor, memory), description = make()
        message = os.getpid(), descriptor, description
    pid, number, description = _gather(message)[leader]
    if not owner:
        try:
            memory = _open_of(pid, number)
        except OSError:  # another container under the same name
            owner = True
            (descriptor, memory), description = make()
    distributed.barrier()
    if owner:
        os.close(descriptor)
    return memory, description


def _allocate(size):
    """(file descriptor, mmap) of ``size`` bytes, all 0; forked processes share it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("speechbrain_ext")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, max(size, 1))
    return descriptor, mmap.mmap(descriptor, max(size, 1))


def _open_of(pid, descriptor):
    other = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY)
    try:
        return mmap.mmap(other, 0, prot=mmap.PROT_READ)
    finally:
        os.close(other)


def _gather(value):
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
