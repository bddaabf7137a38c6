"""Memory that all processes of a machine share, without a name and so without litter.

One process of each machine makes it (``memfd_create``: no file in any folder, no limit
of ``/dev/shm``, which is 64 MB in a container by default) and the others open it
through ``/proc``. The system frees it when the last of them has ended, however it did.

Noises and room responses: from the disk, or decoded in memory up to a limit.

MUSAN has 2,016 files and RIRS_NOISES 60,000, of which every utterance of a training
draws anew. Kept decoded, they cost no opening and no decoding. What lies in 16 bit
stays in 16 bit; the samples are those of the files, to the bit:

    x = i / 32768

The memory is one for all processes of a machine. The shortest files are kept first:
each file of a kind is drawn equally often, so they spare the most reads per MiB.
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

from speechbrain_ext.data.audio import SAMPLE_RATE, read_audio, read_header
from speechbrain_ext.data.augment.waveform import read_crop, take_crop
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map


def once_per_machine(make):
    """Let one process of each machine make something that lies in shared memory.

    Arguments
    ---------
    make : callable
        Returns (buffer, description): what :func:`allocate` gave, and any object that
        can be pickled.

    Returns
    -------
    mmap.mmap
        The memory; only to be read by those who did not make it.
    description
        As ``make`` returned it.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        (descriptor, memory), description = make()
        os.close(descriptor)
        return memory, description
    # of the CPU: before a Brain has chosen its GPU, all ranks are on the first one
    group = distributed.new_group(backend="gloo")
    rank = distributed.get_rank()
    hosts = _gather(socket.gethostname(), group)
    leader = hosts.index(hosts[rank])
    descriptor = None
    if rank == leader:
        (descriptor, memory), description = make()
    told = (os.getpid(), descriptor, description) if rank == leader else None
    pid, number, description = _gather(told, group)[leader]
    mine = rank == leader
    if not mine:
        try:
            memory = _open_of(pid, number)
        except OSError:  # another container under the same name
            mine = True
            (descriptor, memory), description = make()
    distributed.barrier(group)
    if mine:
        os.close(descriptor)
    distributed.destroy_process_group(group)
    return memory, description


def allocate(size):
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


def _gather(value, group):
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=group)
    return values


logger = logging.getLogger(__name__)

_MIB = 2**20
_ALIGNMENT = 64  # bytes
_SCALE = np.float32(1 / 32768)
_NUM_THREADS = 16


class Sounds:
    """Sound files as they lie on the disk."""

    def __init__(self):
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


class Slot(NamedTuple):
    """Where a file lies in memory: ``shape`` [K], or [K, C] of a response."""

    offset: int
    shape: tuple
    dtype: str

    @property
    def size(self):
        """In bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class HeldSounds(Sounds):
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
        super().__init__()
        if not limit_mib >= 0:
            raise InputError(f"noise_cache_mib: {limit_mib}, expected at least 0")
        make = functools.partial(_hold, noises, responses, limit_mib * _MIB)
        self._memory, self._slots = once_per_machine(make)

    def __len__(self):
        """Files in memory."""
        return len(self._slots)

    def __reduce__(self):
        # a process that is not forked reads from the disk
        return Sounds, ()

    def crop(self, path, n, generator):
        """As :meth:`Sounds.crop`."""
        if path not in self._slots:
            return super().crop(path, n, generator)
        samples = self._view(path)

        def read(start, count):
            return _as_float(samples[start : start + count])

        return take_crop(read, len(samples), n, generator)

    def response(self, path, generator):
        """As :meth:`Sounds.response`."""
        if path not in self._slots:
            return super().response(path, generator)
        channels = self._view(path)
        return _as_float(channels[:, generator.integers(channels.shape[1])])

    def _view(self, path):
        return _view(self._memory, self._slots[path])


def _view(memory, slot):
    count = int(np.prod(slot.shape))
    return np.frombuffer(memory, slot.dtype, count, slot.offset).reshape(slot.shape)


def _as_float(samples):
    """int16 or float32 → float32, a copy."""
    if samples.dtype == np.int16:
        return np.multiply(samples, _SCALE, dtype=np.float32)
    return samples.copy()


# -- filling ---------------------------------------------------------------------------


def _hold(noises, responses, limit):
    """((descriptor, memory), {path: Slot}) of what fits into ``limit`` bytes."""
    items = [(path, False) for path in noises] + [(path, True) for path in responses]
    shapes = parallel_map(_shape, items, _NUM_THREADS, "noises", "file")
    slots, end, left_out = {}, 0, 0
    found = zip(items, shapes)
    for (path, _), (shape, dtype) in sorted(found, key=lambda f: (f[1][0], f[0])):
        slot = Slot(end, shape, dtype)
        if end + slot.size > limit:
            left_out += slot.size
            continue
        slots[path] = slot
        end += -(-slot.size // _ALIGNMENT) * _ALIGNMENT
    descriptor, memory = allocate(end)
    kept = [item for item in items if item[0] in slots]

    def fill(item):
        path, is_response = item
        slot = slots[path]
        _view(memory, slot)[...] = _decoded(path, is_response, slot.dtype)

    parallel_map(fill, kept, _NUM_THREADS, "decoding noises", "file")
    logger.info(
        "noises and rooms: %d files decoded in %d MiB of memory, once for this "
        "machine; %d files of %d MiB stay on the disk",
        *(len(kept), end / _MIB, len(items) - len(kept), left_out / _MIB),
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
    exact &= soundfile.info(path).subtype == "PCM_16"
    return shape, "int16" if exact else "float32"


def _decoded(path, is_response, dtype):
    if is_response:
        channels = _checked_response(path)
    else:
        channels = read_audio(path, average=True)
    if dtype == "int16":
        return np.rint(channels / _SCALE).astype(np.int16)
    return channels


# -- responses -------------------------------------------------------------------------


def _checked_response(path):
    """All channels of a response: float32 [K, C]."""
    header = read_header(path)
    if header.sample_rate != SAMPLE_RATE:
        raise InputError(
            f"{path}: {header.sample_rate} Hz, expected a response at {SAMPLE_RATE} Hz"
        )
    try:
        channels, _ = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be decoded ({error})") from error
    if not np.isfinite(channels).all() or not channels.any(axis=0).all():
        raise InputError(f"{path}: silent or not finite, expected a room response")
    return channels


_read_response = functools.lru_cache(maxsize=256)(_checked_response)
