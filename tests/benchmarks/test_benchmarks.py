"""Every benchmark runs at toy size and says what it measured, against whom.

New scripts are found by themselves: one that cannot run, or that names no peer, fails
here. One process runs them all (:mod:`toy_runs`), so that torch is imported once.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import run_all

TEXTS = ("name", "unit", "peer_name", "source")
POSITIVE = ("ours", "peer", "ratio")
MEMORY = ("ours_memory", "peer_memory")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Folder of NAME.json, or NAME.error, of every benchmark."""
    folder = tmp_path_factory.mktemp("toys")
    script = Path(__file__).with_name("toy_runs.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("name", run_all.benchmarks())
def test_benchmark(toys, name):
    error = toys / f"{name}.error"
    assert not error.exists(), error.read_text()
    found = json.loads((toys / f"{name}.json").read_text())
    assert found["machine"]["threads"] == 1
    assert found["rows"]
    for row in found["rows"]:
        assert all(isinstance(row[key], str) and row[key] for key in TEXTS), row
        assert all(0 < row[key] < math.inf for key in POSITIVE), row
        assert all(0 <= row[f"{side}_spread"] < math.inf for side in ("ours", "peer"))
        assert all(row[key] is None or 0 <= row[key] < math.inf for key in MEMORY), row
        assert row["met"] is None, row  # nothing is promised of toys
    for left_out in found["left_out"]:
        assert left_out["name"]
        assert left_out["peer_name"]
        assert left_out["reason"]
    names = [row["name"] for row in found["rows"]]
    assert len(set(names)) == len(names), names


def test_the_peers_that_are_promised(toys):
    """Each by name, in one script at least."""
    found = [json.loads(path.read_text()) for path in toys.glob("*.json")]
    rows = [row for result in found for row in (*result["rows"], *result["left_out"])]
    peers = {row["peer_name"] for row in rows}
    expected = {"transformers", "SpeechBrain", "SpeechBrain's lobe", "published code"}
    assert expected <= peers
