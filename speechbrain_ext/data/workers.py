"""Signals in the processes that read recordings.

A batch system that stops a job sends SIGTERM to each of its processes; a terminal sends
Ctrl-C to the whole process group. The training process then saves a checkpoint, for
which it needs no dead workers: torch would raise a RuntimeError about them in that very
moment. So a worker obeys nobody but the process that started it.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading

from speechbrain_ext.allocator import keep_freed_memory

# Forked workers share the manifest's memory, and begin with their parent's signal mask;
# from Python 3.14 on this is no longer the default.
START_METHOD = "fork" if sys.platform == "linux" else None
STOPS = {signal.SIGTERM, signal.SIGINT}


@contextlib.contextmanager
def signals_held():
    """Start workers inside: they begin with both signals blocked.

    Otherwise one that comes before a worker has got to :func:`obey_only_parent` would
    end it. For this process the signals wait as long.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(worker):
    """What a worker does first; a ``worker_init_fn``.

    Every utterance takes some ten arrays of its size: freed memory is kept for them.

    Arguments
    ---------
    worker : int
        Not used.
    """
    del worker
    obey_only_parent()
    keep_freed_memory()


def obey_only_parent():
    """Leave SIGTERM and Ctrl-C to the training process.

    torch ends its workers by SIGTERM, so one from the parent still counts.
    """
    if hasattr(signal, "sigwaitinfo"):  # tells the sender; macOS has none
        # Blocked here, before there are other threads, and so in all of them.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        threading.Thread(target=_wait_for_parent, daemon=True).start()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _wait_for_parent():
    # not getppid: a fork server may stand in between
    parent = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
