"""Memory that all processes of a machine share, without a name and so without litter.

One process of each machine makes it (``memfd_create``: no file in any folder, no limit
of ``/dev/shm``, which is 64 MB in a container by default) and the others open it
through ``/proc``. The system frees it when the last of them has ended, however it did.
"""

import mmap
import os
import socket
import tempfile

import torch


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
