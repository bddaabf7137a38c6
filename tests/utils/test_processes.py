"""Workers and Ctrl-C; what they raise is tested where they are used."""

import subprocess
import sys

import pytest

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
