"""All benchmarks at toy size in one process, so that torch is imported once.

python toy_runs.py FOLDER [NAME …]    # leaves FOLDER/NAME.json or FOLDER/NAME.error
"""

import contextlib
import gc
import importlib
import io
import os
import sys
import time
import traceback
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = ["--toy", "--json", "--threads", "1"]


def main():
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or run_all.benchmarks():
        start = time.perf_counter()
        run(name, folder)
        # seen where pytest is told to: pytest -s
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


def run(name, folder):
    """One benchmark → NAME.json, or what it said in NAME.error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main_of_script = importlib.import_module(name).main
            gc.freeze()  # else each measure of memory goes through all of torch
            main_of_script(OPTIONS)
    except BaseException:
        (folder / f"{name}.error").write_text(traceback.format_exc())
        return
    (folder / f"{name}.json").write_text(printed.getvalue().splitlines()[-1])


if __name__ == "__main__":
    sys.path.insert(0, str(BENCHMARKS))
    os.environ["OMP_NUM_THREADS"] = "1"
    import run_all

    main()
