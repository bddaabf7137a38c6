"""Peak memory, and processes of their own to measure it in."""

import contextlib
import ctypes
import gc
import importlib
import io
import json
import multiprocessing
import resource
import sys
from pathlib import Path

# once for all processes that are started; pyarrow looks for pandas by itself
IMPORTED = ["torch", "transformers", "speechbrain", "scipy.signal", "pandas"]


def peak_memory(function):
    """Run ``function`` once → (result, bytes above what was held before).

    Freed memory that malloc keeps is handed back first; what does not go back makes the
    figure too small, so it is exact only in a fresh process: see
    :func:`in_new_process`.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)
    _reset_peak()
    before = _memory("VmRSS")
    result = function()
    return result, max(0, _memory("VmHWM") - before)


def _memory(field):
    """VmRSS (now) or VmHWM (at most) of this process in bytes."""
    # ru_maxrss would do, but on Linux it remembers the parent that started us
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for line in status.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{status}: no line {field}")


def memory_of(pid):
    """Memory of a process in bytes, as Linux tells it.

    ``pss`` counts a page that n processes share as 1/n, ``own`` (the unique set size)
    not at all: the sum of ``pss`` is what a machine needs for them.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in rollup[1:] + status)
    own = sum(int(found[f"Private_{kind}"].split()[0]) for kind in ("Clean", "Dirty"))
    return {"own": own * 1024} | {
        name: int(found[key].split()[0]) * 1024
        for name, key in (
            ("pss", "Pss"),
            ("anonymous", "Pss_Anon"),
            ("shared_file", "Pss_File"),
            ("peak_rss", "VmHWM"),
        )
    }


def _reset_peak():
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def start_process(function, *arguments):
    """Run ``function(connection, *arguments)`` in a process of its own.

    It is forked from one that has imported torch and done nothing else: as fresh as a
    new Python, in milliseconds in place of seconds.

    Arguments
    ---------
    function : callable
        Of a module, so that the process finds it by its name.
    *arguments
        What can be pickled.

    Returns
    -------
    process : multiprocessing.Process
    connection : multiprocessing.connection.Connection
        The other end of the function's.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    ours, theirs = context.Pipe()
    method = multiprocessing.get_start_method()
    process = context.Process(target=_run, args=(method, function, theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def _run(method, function, connection, *arguments):
    # else workers of its loaders, too, would come from the server, by pickling
    multiprocessing.set_start_method(method, force=True)
    function(connection, *arguments)


def in_new_process(script, *arguments):
    """``main(arguments)`` of ``script`` in a process of its own → the JSON it prints.

    Raises
    ------
    SystemExit
        Where it fails: with its message.
    """
    words = list(map(str, arguments))
    process, connection = start_process(_run_main, str(script), words)
    try:
        printed, error = connection.recv()
    except EOFError:  # it was killed
        printed, error = None, "ended without a word"
    process.join()
    if error:
        command = " ".join([Path(script).name, *words])
        raise SystemExit(f"{command}: {error} (exit code {process.exitcode})")
    return json.loads(printed.splitlines()[-1])


def _run_main(connection, script, words):
    sys.path.insert(0, str(Path(script).parent))
    module = importlib.import_module(Path(script).stem)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            module.main(words)
    except BaseException as error:
        connection.send((None, " ".join(f"{type(error).__name__}: {error}".split())))
        raise
    connection.send((printed.getvalue(), None))
