"""Noises and room responses: from the disk, or decoded in memory up to a limit.

MUSAN has 2,016 files and RIRS_NOISES 60,000, of which every utterance of a training
draws anew. Kept decoded, they cost no opening and no decoding. What lies in 16 bit
stays in 16 bit; the samples are those of the files, to the bit:

    x = i / 32768

One process of each machine decodes them into a temporary ``.npy`` file. All map it into
memory, where they share its pages, and its name is deleted at once: the system frees it
when the last process has ended, however it did. The shortest files are kept first: each
file of a kind is drawn equally often, so they spare the most reads per MiB.
"""

import errno
import functools
import logging
import os
import socket
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from speechbrain_ext.data.audio import SAMPLE_RATE, read_audio, read_header
from speechbrain_ext.data.augment.waveform import read_crop, take_crop
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

_MIB = 2**20
_ALIGNMENT = 64  # bytes
_SCALE = np.float32(1 / 32768)
_NUM_THREADS = 16


class NoiseFiles:
    """Sound files as they lie on the disk."""

    def __init__(self):
        self._frames = {}

    def crop(self, path, n, generator):
        """``n`` samples from a random place of a noise, channels averaged: float32."""
        if path not in self._frames:
            self._frames[path] = read_header(path).frames
        return read_crop(path, self._frames[path], n, generator)

    def response(self, path, generator):
        """One channel of a room response, drawn: float32 [K]."""
        channels = _read_response(path)
        return channels[:, generator.integers(channels.shape[1])]


class _Slot(NamedTuple):
    """Where a file lies in memory: ``shape`` [K], or [K, C] of a response."""

    offset: int
    shape: tuple
    dtype: str

    @property
    def size(self):
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


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
        super().__init__()
        if not limit_mib >= 0:
            raise InputError(f"cache_mib: {limit_mib}, expected at least 0")
        make = functools.partial(_decode, noises, responses, limit_mib * _MIB)
        self._memory, self._slots = _once_per_machine(make)

    def __len__(self):
        """Files in memory."""
        return len(self._slots)

    def __reduce__(self):
        # a process that is not forked reads from the disk
        return NoiseFiles, ()

    def crop(self, path, n, generator):
        if path not in self._slots:
            return super().crop(path, n, generator)
        samples = self._samples(path)

        def read(start, count):
            return _as_float(samples[start : start + count])

        return take_crop(read, len(samples), n, generator)

    def response(self, path, generator):
        if path not in self._slots:
            return super().response(path, generator)
        channels = self._samples(path)
        return _as_float(channels[:, generator.integers(channels.shape[1])])

    def _samples(self, path):
        slot = self._slots[path]
        content = self._memory[slot.offset : slot.offset + slot.size]
        return content.view(slot.dtype).reshape(slot.shape)


def _as_float(samples):
    """int16 or float32 → float32, a copy."""
    if samples.dtype == np.int16:
        return np.multiply(samples, _SCALE, dtype=np.float32)
    return samples.copy()


# -- filling ---------------------------------------------------------------------------


def _once_per_machine(make):
    """(memory uint8, slots): ``make(path)``, in one process of each machine."""
    distributed = torch.distributed
    alone = not (distributed.is_available() and distributed.is_initialized())
    with tempfile.TemporaryDirectory(prefix="speechbrain_ext-") as folder:
        path = Path(folder) / "noises.npy"
        if alone:
            slots = make(path)
            return _mapped(path), slots
        # of the CPU: before a Brain has chosen its GPU, all ranks are on the first one
        group = distributed.new_group(backend="gloo")
        rank = distributed.get_rank()
        hosts = _gather(socket.gethostname(), group)
        leader = hosts.index(hosts[rank])
        result = (path, make(path)) if rank == leader else None
        shared, slots = _gather(result, group)[leader]
        if not shared.exists():  # another container under the same name
            shared, slots = path, make(path)
        memory = _mapped(shared)
        distributed.barrier(group)  # the folder is deleted behind it
        distributed.destroy_process_group(group)
        return memory, slots


def _mapped(path):
    # a plain view: np.memmap is slow to index
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _gather(value, group):
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def _decode(noises, responses, limit, path):
    """Write what fits into ``limit`` bytes → {path of a sound: its slot}."""
    items = [(name, False) for name in noises] + [(name, True) for name in responses]
    shapes = parallel_map(_shape, items, _NUM_THREADS, "noises", "file")
    slots, end, left_out = {}, 0, 0
    sorted_items = sorted(zip(items, shapes), key=lambda i: (i[1][0], i[0]))
    for (name, _), (shape, dtype) in sorted_items:
        slot = _Slot(end, shape, dtype)
        if end + slot.size > limit:
            left_out += slot.size
            continue
        slots[name] = slot
        end += -(-slot.size // _ALIGNMENT) * _ALIGNMENT
    kept = [item for item in items if item[0] in slots]
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (max(end, 1),)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + max(end, 1))

        def write(item):
            name, is_response = item
            slot = slots[name]
            content = _decoded(name, is_response, slot.dtype).tobytes()
            try:
                written = os.pwrite(file.fileno(), content, start + slot.offset)
                code = None if written == slot.size else errno.ENOSPC
            except OSError as error:
                code = error.errno
            if code:
                raise OSError(code, os.strerror(code), str(path))

        parallel_map(write, kept, _NUM_THREADS, "decoding noises", "file")
    logger.info(
        "noises and rooms: %d files decoded in %d MiB of memory, once for this "
        "machine; %d files of %d MiB stay on the disk",
        *(len(kept), end / _MIB, len(items) - len(kept), left_out / _MIB),
    )
    return slots


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
