"""What the benchmarks share: fair timing, peak memory, one table.

A benchmark compares this package with a named peer on the same input in one run. Both
sides take turns, so that a slower minute of the machine slows both, after a rest, so
that the threads of neither disturb the other, and a call that is not counted, since the
rest has put them to sleep. The median is reported with the spread (half the range
between the quartiles) beside it. The ratio is peer / ours: above 1, ours is faster or
smaller.

    rows = [compare("features", ours, peer)]
    report(rows, arguments)     # name | ours | peer | ratio, or JSON with --json
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# numpy's OpenBLAS threads spin for about 0.1 s after its last product: what starts
# meanwhile has a core less (features of 64 × 3 s: 0.12 s in place of 0.03 s).
REST = 0.3
PACKAGES = ("torch", "transformers", "speechbrain", "numpy")


@dataclass(frozen=True)
class Row:
    """One comparison: medians and spreads of both sides in ``unit``."""

    name: str
    unit: str
    ours: float
    peer: float
    ours_spread: float = 0.0
    peer_spread: float = 0.0

    @property
    def ratio(self):
        """How many times faster or smaller ours is."""
        return self.peer / self.ours if self.ours > 0 else float("inf")

    def line(self):
        """name | ours | peer | ratio."""
        ours = f"{self.ours:.4g} ± {self.ours_spread:.2g} {self.unit}"
        peer = f"{self.peer:.4g} ± {self.peer_spread:.2g} {self.unit}"
        return f"{self.name} | {ours} | {peer} | {self.ratio:.2f}"


def argument_parser(description):
    """The options of every benchmark: ``--toy``, ``--json``, ``--threads``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="small sizes, for CI")
    parser.add_argument("--json", action="store_true", help="print JSON")
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    parser.add_argument(
        "--threads", type=int, default=threads, help="of torch; %(default)s by default"
    )
    return parser


def compare(name, ours, peer, repeats=7, warmup=2):
    """Time two functions in turns.

    Arguments
    ---------
    name : str
        What is measured, with its size.
    ours, peer : callable
        Without arguments.
    repeats, warmup : int
        Timed rounds, and rounds before them that are not counted.

    Returns
    -------
    Row
        In seconds.
    """
    seconds = ([], [])
    for turn in range(warmup + repeats):
        for side, function in enumerate((ours, peer)):
            time.sleep(REST)
            if turn >= warmup:
                function()
            start = time.perf_counter()
            function()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                seconds[side].append(elapsed)
    return summarise(name, "s", *seconds)


def summarise(name, unit, ours, peer):
    """Lists of figures of both sides → Row of medians and spreads."""
    return Row(
        name,
        unit,
        statistics.median(ours),
        statistics.median(peer),
        spread(ours),
        spread(peer),
    )


def spread(values):
    """Half the distance between the quartiles; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def report(rows, arguments):
    """Print the rows with what they were measured on."""
    if arguments.json:
        values = [{**asdict(row), "ratio": row.ratio} for row in rows]
        print(json.dumps({"machine": machine(arguments.threads), "rows": values}))
        return
    print(" ".join(f"{k} {v}" for k, v in machine(arguments.threads).items()))
    print("name | ours | peer | ratio")
    for row in rows:
        print(row.line())


def machine(threads):
    """Versions, threads, processor and load: what a figure depends on."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        **versions,
        "threads": threads,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


# -- peak memory -----------------------------------------------------------------------


def peak_memory(function):
    """Run ``function`` once → (result, bytes above what was held before).

    Exact in a fresh process, where no freed memory is waiting to be used again: see
    :func:`in_new_process`.
    """
    gc.collect()
    _reset_peak()
    before = _memory("VmRSS")
    result = function()
    return result, _memory("VmHWM") - before


def in_new_process(script, *arguments):
    """Run ``script`` in a Python of its own → the JSON of its last line of output."""
    command = [sys.executable, str(script), *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


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


def _reset_peak():
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")
