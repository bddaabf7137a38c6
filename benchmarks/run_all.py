"""Run every benchmark and write RESULTS.md and results.png.

    make bench                                           # all, one after the other
    python benchmarks/run_all.py --published FOLDER      # the published code as a peer
    python benchmarks/run_all.py --only features loader  # these anew, the others stay
    python benchmarks/run_all.py --toy                   # small sizes: results/toy/

Each script runs in a Python of its own. What it found is kept in results/NAME.json
before the next one starts, and the table is written anew from all of them: a run that
is stopped loses one script at most, and ``--only`` runs the rest. A script that fails
keeps its place in the table with the last line that it said; the exit code is then 1.
"""

import argparse
import ast
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from results import write_results
from tqdm import tqdm

from speechbrain_ext.utils.errors import command_line
from speechbrain_ext.utils.files import write_json

HERE = Path(__file__).resolve().parent
# shared by benchmarks, none themselves
LIBRARY = (
    "encoders",
    "fake_autocast",
    "fake_gpu",
    "fake_step",
    "harness",
    "made_up_manifests",
    "processes",
    "published",
    "results",
    "run_all",
    "what_fits",
)
PEERS = "published", "wespeaker"  # whose code is not installed
NO_GPU = "needs a GPU"  # how the complaint of such a script ends
WRITTEN = ("RESULTS.md", "*.png", "results")


@command_line
def main(argv=None):
    arguments = parse(argv)
    # figures of toys mean nothing and must not take the place of others
    kept = HERE / "results" / ("toy" if arguments.toy else "")
    output = kept if arguments.toy else HERE
    progress = tqdm(arguments.only or benchmarks(), unit="script")
    failed = []
    for name in progress:
        progress.set_description(name)
        found = run_script(HERE / f"{name}.py", arguments)
        if (found["error"] or "").endswith(NO_GPU):
            # what a machine with one has found stays
            progress.write(f"{name}: left out, {NO_GPU}", file=sys.stderr)
            continue
        write_json(kept / f"{name}.json", found)
        write_results(output, read_kept(kept))
        if found["error"]:
            failed.append(name)
            progress.write(f"{name}: {found['error']}", file=sys.stderr)
    print(output / "RESULTS.md")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=benchmarks(), metavar="NAME", help="these alone"
    )
    parser.add_argument("--toy", action="store_true", help="small sizes")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--published", metavar="FOLDER", help="the published code")
    parser.add_argument("--wespeaker", metavar="FOLDER", help="wespeaker's code")
    arguments = parser.parse_args(argv)
    for peer in PEERS:
        folder = getattr(arguments, peer)
        if folder and not Path(folder).is_dir():
            parser.error(f"--{peer} {folder}: no such folder")
    return arguments


def benchmarks():
    """Names of all scripts of this folder."""
    return [p.stem for p in sorted(HERE.glob("*.py")) if p.stem not in LIBRARY]


def run_script(path, arguments):
    """One script in a Python of its own.

    Returns
    -------
    dict
        What it printed (``machine``, ``rows``, ``left_out``, ``notes``) with the
        command, date, commit and seconds; ``error`` is None, or why it failed.
    """
    options = ["--toy"] * arguments.toy
    if arguments.threads:
        options += ["--threads", str(arguments.threads)]
    shown = options
    for peer in PEERS:
        if folder := getattr(arguments, peer):  # where it lies is nobody's business
            shown = [*shown, f"--{peer} FOLDER"]
            options = [*options, f"--{peer}", folder]
    found = {
        "name": path.stem,
        "title": ast.get_docstring(ast.parse(path.read_text())).splitlines()[0],
        "command": " ".join(["python", f"benchmarks/{path.name}", *shown]),
        "date": date.today().isoformat(),
        "commit": commit(),
    }
    command = [sys.executable, str(path), "--json", *options]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    found["seconds"] = round(time.perf_counter() - start, 1)
    nothing = {"machine": None, "rows": [], "left_out": [], "notes": []}
    printed, error = read_output(done)
    return {**found, **(printed or nothing), "error": error}


def read_output(done):
    """A finished process → (what it printed, None) or (None, why it failed)."""
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return None, said[-1].strip() if said else f"exit code {done.returncode}"
    try:
        return json.loads(done.stdout.splitlines()[-1]), None
    except (IndexError, ValueError):
        return None, "printed no JSON, expected it on the last line"


def commit():
    """Short name of the commit, with "dirty" where the tree differs from it."""
    others = [f":(top,exclude)benchmarks/{name}" for name in WRITTEN]
    try:
        head = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", ":(top)", *others)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} (dirty)" if changed else head


def git(*words):
    command = ["git", "-C", str(HERE), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def read_kept(folder):
    """Results of all scripts that still exist, in the order of their names."""
    paths = (folder / f"{name}.json" for name in benchmarks())
    return [json.loads(path.read_text()) for path in paths if path.exists()]


if __name__ == "__main__":
    main()
