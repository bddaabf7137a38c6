"""What the benchmarks share: fair timing, peak memory, one table.

A benchmark compares this package with a named peer on the same input in one run. Both
sides take turns, so that a slower minute of the machine slows both, after a rest, so
that the threads of neither disturb the other, and a call that is not counted, since the
rest has put them to sleep. The median is reported with the spread (half the range
between the quartiles) beside it. The ratio is peer / ours: above 1, ours is faster or
smaller. Where the project promises a ratio, the row says so (``mark``), and the table
says whether it holds.

    def main(argv=None):
        arguments = argument_parser(__doc__).parse_args(argv)
        rows = [compare("features", ours, peer, peer_name="transformers' extractor")]
        report(rows, arguments)  # name | ours | peer | ratio, or JSON with --json

``run_all.py`` runs every script of this folder that has such a ``main``.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from processes import in_new_process, peak_memory

__all__ = [
    "LeftOut",
    "Row",
    "argument_parser",
    "beside_limit",
    "compare",
    "in_new_process",
    "in_turns",
    "peak_memory",
    "report",
    "sides_in_turns",
    "summarise",
]

# numpy's OpenBLAS threads spin for about 0.1 s after their last product: what starts
# meanwhile has a core less (features of 64 × 3 s: 0.12 s in place of 0.03 s).
REST = 0.3
PACKAGES = ("torch", "transformers", "speechbrain", "numpy")
LOAD_AT_START = os.getloadavg()[0]  # before the benchmark adds its own
LIMIT = "limit"  # the peer's name where a figure stands beside what is allowed


@dataclass(frozen=True)
class Row:
    """One comparison: medians and spreads of both sides in ``unit``.

    ``peer_name`` is what the table calls the peer, ``source`` where it is to be found;
    ``mark`` is the ratio that the project promises at full size. Memory is the peak
    above what was held before, in MiB.
    """

    name: str
    unit: str
    ours: float
    peer: float
    ours_spread: float = 0.0
    peer_spread: float = 0.0
    peer_name: str = field(kw_only=True)
    source: str = ""
    mark: float | None = None
    ours_memory: float | None = None
    peer_memory: float | None = None

    @property
    def ratio(self):
        """How many times faster or smaller ours is."""
        return self.peer / self.ours if self.ours > 0 else float("inf")

    @property
    def met(self):
        """Whether what was promised holds; None where nothing was."""
        return None if self.mark is None else self.ratio >= self.mark

    def line(self):
        """name | ours | peer | ratio."""
        ours = f"{self.ours:.4g} ± {self.ours_spread:.2g} {self.unit}"
        peer = f"{self.peer:.4g} ± {self.peer_spread:.2g} {self.unit}"
        if self.ours_memory is not None:
            ours += f", {self.ours_memory:.4g} MiB"
            peer += f", {self.peer_memory:.4g} MiB"
        promise = "" if self.met is None else f" ({self.mark:g} promised)"
        return f"{self.name} | {ours} | {self.peer_name}: {peer} | {self.ratio:.2f}" + (
            promise
        )


@dataclass(frozen=True)
class LeftOut:
    """A comparison that could not be made, among the rows of a report."""

    name: str
    peer_name: str
    reason: str = "give --published FOLDER"

    def line(self):
        """name | left out: reason."""
        return f"{self.name} | left out: {self.reason} | {self.peer_name} | –"


def argument_parser(description):
    """The options of every benchmark, whether or not it has a use for each."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="small sizes, for CI")
    parser.add_argument("--json", action="store_true", help="print JSON")
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    parser.add_argument(
        "--threads", type=int, default=threads, help="of torch; %(default)s by default"
    )
    parser.add_argument(
        "--published",
        type=_folder,
        metavar="FOLDER",
        help="published code (https://github.com/ZXHY-82/w2v-BERT-2.0_SV), as a peer",
    )
    parser.add_argument(
        "--wespeaker",
        type=_folder,
        metavar="FOLDER",
        help="a checkout of https://github.com/wenet-e2e/wespeaker, as a peer",
    )
    return parser


def _folder(path):
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{path}: no such folder")
    return str(Path(path).resolve())


# -- time ------------------------------------------------------------------------------


def compare(name, ours, peer, repeats=7, warmup=2, *, toy=False, memory=False, **about):
    """Time two functions in turns.

    Arguments
    ---------
    name : str
        What is measured, with its size.
    ours, peer : callable
        Without arguments.
    repeats, warmup : int
        Timed rounds, and rounds before them that are not counted.
    toy : bool
        Two rounds and no rest: the figures mean nothing.
    memory : bool
        Call both once more for their peak memory.
    **about
        ``peer_name``, ``source`` and ``mark`` of the Row.

    Returns
    -------
    Row
        In seconds.
    """
    seconds = in_turns((ours, peer), repeats, warmup, toy=toy)
    if memory:
        about |= {
            f"{side}_memory": peak_memory(function)[1] / 2**20
            for side, function in (("ours", ours), ("peer", peer))
        }
    return summarise(name, "s", *seconds, **about)


def in_turns(functions, repeats=7, warmup=2, *, toy=False, clock=None):
    """Time functions in turns: rows of :func:`summarise` that share a peer's figures.

    Arguments
    ---------
    functions : sequence of callable
        Without arguments.
    repeats, warmup, toy
        As for :func:`compare`.
    clock : callable, optional
        () → seconds; None: those of the clock on the wall.

    Returns
    -------
    list of list of float
        For each function the seconds of every round.
    """
    repeats, warmup, rest = (2, 0, 0) if toy else (repeats, warmup, REST)
    clock = clock or time.perf_counter
    seconds = [[] for _ in functions]
    for turn in range(warmup + repeats):
        for function, of_function in zip(functions, seconds):
            time.sleep(rest)
            if turn >= warmup:
                function()
            start = clock()
            function()
            elapsed = clock() - start
            if turn >= warmup:
                of_function.append(elapsed)
    return seconds


def sides_in_turns(script, arguments, rounds):
    """Both sides of a benchmark by turns, each time in a new process.

    Arguments
    ---------
    script : str
        With ``--side ours`` or ``peer`` and ``--output FILE.npz`` it prints its
        figures, and keeps there what must be equal.
    arguments : argparse.Namespace
        ``threads`` and ``toy`` are handed on.
    rounds : int
        1 at toy size.

    Returns
    -------
    figures : dict
        Side → list of what was printed.
    outputs : dict
        Side → {name: array} of its last round.
    """
    options = ["--threads", arguments.threads] + ["--toy"] * arguments.toy
    found = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder, f"{side}.npz") for side in found}
        for _ in range(1 if arguments.toy else rounds):
            for side, file in files.items():
                figures = in_new_process(
                    script, "--side", side, "--output", file, *options
                )
                found[side].append(figures)
        return found, {side: dict(np.load(file)) for side, file in files.items()}


def summarise(name, unit, ours, peer, **about):
    """Lists of figures of both sides → Row of medians and spreads.

    Arguments
    ---------
    name, unit : str
        Of the Row.
    ours, peer : list of float
        One figure per round.
    **about
        Other fields of the Row; ``peer_name`` at least.
    """
    return Row(
        name,
        unit,
        statistics.median(ours),
        statistics.median(peer),
        spread(ours),
        spread(peer),
        **about,
    )


def beside_limit(name, unit, figures, limit):
    """Lists of figures of ours → Row beside what is allowed."""
    return summarise(
        name,
        unit,
        *(figures, [limit]),
        peer_name=LIMIT,
        source="what the project allows itself",
        mark=1.0,
    )


def spread(values):
    """Half the distance between the quartiles; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


# -- report ----------------------------------------------------------------------------


def report(rows, arguments, notes=()):
    """Print rows (Row or LeftOut) and notes, with what they were measured on."""
    if arguments.toy:  # nothing is promised of toy sizes
        rows = [replace(r, mark=None) if isinstance(r, Row) else r for r in rows]
    about = machine(arguments.threads)
    if arguments.json:
        measured = [row for row in rows if isinstance(row, Row)]
        left_out = [asdict(row) for row in rows if isinstance(row, LeftOut)]
        values = [{**asdict(r), "ratio": r.ratio, "met": r.met} for r in measured]
        found = {"machine": about, "rows": values, "left_out": left_out}
        print(json.dumps({**found, "notes": list(notes)}, allow_nan=False))
        return
    print(" ".join(f"{k} {v}" for k, v in about.items()))
    print("name | ours | peer | ratio")
    for line in (*(row.line() for row in rows), *notes):
        print(line)


def machine(threads):
    """Versions, threads, processor and load: what a figure depends on."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        **_gpu(),
        "memory_gib": round(_bytes_of_memory() / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
        "threads": threads,
        "load": round(LOAD_AT_START, 1),
    }


def _processor():
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1] for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown").strip()


def _gpu():
    torch = sys.modules.get("torch")  # a benchmark without torch needs none here
    used = torch is not None and torch.cuda.is_available()
    return {"gpu": torch.cuda.get_device_name()} if used else {}


def _bytes_of_memory():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
