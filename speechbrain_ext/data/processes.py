"""Long jobs in processes of their own, which end when their parent does."""

import collections
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from speechbrain_ext.data.workers import START_METHOD
from speechbrain_ext.errors import InputError


def in_processes(function, jobs, num_workers=None):
    """Apply ``function`` to each job; results come in order.

    Arguments
    ---------
    function : callable
        Of a module, takes one job. What it raises is raised here; jobs that were not
        begun are dropped then, and those under way are waited for.
    jobs : iterable
        Taken from only as fast as they are done.
    num_workers : int, optional
        Processes; None: one for each core.

    Yields
    ------
    What ``function`` returns.

    Raises
    ------
    InputError
        A process was killed from outside.
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
