"""Freed memory stays with the process, where the C library is glibc.

glibc gives large freed blocks back to the system, which hands them out again page by
page, each cleared anew: an encoder's forward pass over 30 s made 570,000 such pages, an
eighth of its time. They are kept up to a limit instead, in inference and in loader
workers; a training process is left as it is.
"""

import ctypes
import os

__all__ = ["keep_freed_memory"]

# mallopt's parameters (malloc.h): free bytes at the heap's end from which it is cut,
# and the size from which a block is no part of the heap (older glibc: at most 32 MiB).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 512 * 2**20
LARGEST_BLOCKS = (256 * 2**20, 32 * 2**20)
THRESHOLDS = ("trim_threshold", "mmap_threshold")


def keep_freed_memory():
    """Keep up to 512 MiB of freed memory for the next allocation → whether it was done.

    Nothing is done where the environment already sets one of glibc's thresholds
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, or their names within
    ``GLIBC_TUNABLES``), or where the C library has no ``mallopt``.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(
        os.environ.get(f"MALLOC_{name.upper()}_") or f"glibc.malloc.{name}=" in tunables
        for name in THRESHOLDS
    ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    fits = any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_BLOCKS)
    return bool(fits and mallopt(M_TRIM_THRESHOLD, KEPT))
