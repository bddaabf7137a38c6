"""Freed memory is kept: pages are counted, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

from speechbrain_ext.utils.allocator import keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"
# New pages while 40 MiB are asked for, filled and freed 20 times.
PAGES = """
import ctypes, resource
from speechbrain_ext.utils.allocator import keep_freed_memory
print(keep_freed_memory())
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use():
    block = c.malloc(40 * 2**20)
    ctypes.memset(block, 1, 40 * 2**20)
    c.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(**environment):
    """Whether it was done, and the new pages."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    found = subprocess.run(
        [sys.executable, "-c", PAGES],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    done, count = found.stdout.split()
    return done == "True", int(count)


@pytest.mark.skipif(not GLIBC, reason="glibc only")
def test_freed_memory_is_used_again():
    done, count = pages()
    assert done
    assert count < 1000


@pytest.mark.skipif(not GLIBC, reason="glibc only")
@pytest.mark.parametrize(
    "chosen",
    [
        {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"},
    ],
)
def test_what_the_user_set_stays(chosen):
    done, count = pages(**chosen)
    assert not done
    assert count > 1000


@pytest.mark.skipif(not GLIBC, reason="glibc only")
def test_other_tunables_are_no_choice_of_thresholds():
    done, count = pages(GLIBC_TUNABLES="glibc.malloc.arena_max=8")
    assert done
    assert count < 1000


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
