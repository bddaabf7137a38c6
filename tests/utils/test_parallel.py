"""Workers and Ctrl-C; what they raise is tested where they are used."""

import subprocess
import sys
import time

import pytest

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map

MAIN = """
import os, signal, sys
from speechbrain_ext.utils.parallel import in_processes

def interrupted(number):
    os.kill(os.getpid(), signal.SIGINT)
    return number

if __name__ == "__main__":
    signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
    print(list(in_processes(interrupted, range(4), 2)))
"""


@pytest.mark.parametrize(
    ("handler", "code", "printed"),
    [("SIG_IGN", 0, "[0, 1, 2, 3]"), ("default_int_handler", 1, "worker process was")],
)
def test_an_ignored_interrupt_is_ignored_by_workers(tmp_path, handler, code, printed):
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    found = subprocess.run(
        [sys.executable, str(script), handler],
        capture_output=True,
        text=True,
    )
    assert found.returncode == code
    assert printed in found.stdout + found.stderr


@pytest.mark.parametrize("n_items", [0, 1, 7, 200])
def test_results_come_in_order(n_items):
    results = parallel_map(lambda x: x * x, range(n_items), 5, "", "item", chunk=3)
    assert results == [x * x for x in range(n_items)]


def test_the_first_error_stops_the_rest():
    done = []

    def work(item):
        if item == 5:
            raise InputError("item 5")
        time.sleep(0.001)
        done.append(item)

    with pytest.raises(InputError, match="item 5"):
        parallel_map(work, range(2_000), 2, "", "item", chunk=1)
    assert len(done) < 1_000
