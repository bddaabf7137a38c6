"""Work in threads, in processes, and the signals of processes.

Many small jobs on files run in threads (:func:`parallel_map`): listing, opening and
converting files wait for the disk, the network or ffmpeg, and all of these release
Python's lock. Reading 2,000 headers from a warm cache on 2 cores took 45 µs per file in
threads and 20 µs in processes, so that 1.1 million files cost 50 s at the least; from a
cold disk or a network folder (1 ms and more per file) both wait, and threads can be far
more than cores. Processes would have to be forked beneath torchrun, CUDA and OpenMP, or
spawned and import it all anew. Long jobs run in processes of their own, which end when
their parent does (:func:`in_processes`).

A batch system that stops a job sends SIGTERM to each of its processes; a terminal sends
Ctrl-C to the whole process group. The training process then saves a checkpoint, for
which it needs no dead workers: torch would raise a RuntimeError about them in that very
moment. So a worker that reads recordings obeys only the process that started it.
"""

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from tqdm import tqdm

from speechbrain_ext.utils.allocator import keep_freed_memory
from speechbrain_ext.utils.errors import InputError

# Forked workers share the manifest's memory, and begin with their parent's signal mask;
# from Python 3.14 on this is no longer the default.
START_METHOD = "fork" if sys.platform == "linux" else None
STOPS = {signal.SIGTERM, signal.SIGINT}
_BLOCKS_SIGNALS = hasattr(signal, "pthread_sigmask")


@contextlib.contextmanager
def signals_held():
    """Start workers inside: they begin with both signals blocked.

    Otherwise one that comes before a worker has got to :func:`obey_only_parent` would
    end it. For this process the signals wait as long. (Windows blocks no signals.)
    """
    if not _BLOCKS_SIGNALS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(worker):
    """What a worker does first; a ``worker_init_fn``.

    Every utterance takes some ten arrays of its size: freed memory is kept for them.
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
        if _BLOCKS_SIGNALS:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _wait_for_parent():
    # not getppid: a fork server may stand in between
    parent = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def in_processes(function, jobs, num_workers=None):
    """Apply ``function``, of a module, to each job; yields results in order.

    Jobs are taken only as fast as they are done, by ``num_workers`` processes (None:
    one for each core). What ``function`` raises is raised here; jobs that were not
    begun are dropped then, and those under way are waited for. InputError: a process
    was killed from outside.
    """
    count = num_workers or os.cpu_count()
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context(START_METHOD), _end_with_parent
    )
    waiting = collections.deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed (out of memory?): run the same command again, "
            "with fewer of them by num_workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent():
    """Ctrl-C ends a worker without a word; so does the parent's death.

    Where Ctrl-C is ignored, as in what a shell script runs in its background, it stays
    so: the parent would take a worker's end for a lack of memory.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sentinel = multiprocessing.parent_process().sentinel

    def wait():
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def parallel_map(function, items, num_workers, description, unit, chunk=64):
    """Apply ``function`` to each item, in threads: a list of results in order.

    What it raises is raised here, and what has not yet begun is dropped.
    ``description`` is of the progress bar, shown on terminals only, ``unit`` of an
    item. A job has ``chunk`` items: a million single jobs would cost more than their
    work. A list, because of a generator that its caller left alone the jobs would go on
    to the end.
    """
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]

    def run(part):
        return [function(item) for item in part]

    done = []
    with (
        tqdm(total=len(items), desc=description, unit=unit, disable=None) as bar,
        ThreadPoolExecutor(num_workers) as threads,
    ):
        for results in threads.map(run, chunks):
            bar.update(len(results))
            done += results
    return done
