"""Timing in turns, medians, promises, peak memory, processes of their own."""

import json
import multiprocessing
import os
from argparse import Namespace

import harness
import numpy as np
import pytest
from harness import (
    LeftOut,
    Row,
    argument_parser,
    beside_limit,
    compare,
    in_new_process,
    in_turns,
    peak_memory,
    report,
    summarise,
)
from processes import start_process

MEBI = 2**20


def test_both_sides_take_turns(monkeypatch):
    """One call of each to warm up; then, each round, one more before the clock."""
    monkeypatch.setattr(harness, "REST", 0)
    calls = []
    row = compare(
        *("x", lambda: calls.append("ours"), lambda: calls.append("peer"), 2, 1),
        peer_name="p",
    )
    assert calls == ["ours", "peer", *["ours", "ours", "peer", "peer"] * 2]
    assert row.unit == "s"
    assert row.ours > 0
    assert row.ours_memory is None


def test_several_take_turns_with_one_peer(monkeypatch):
    monkeypatch.setattr(harness, "REST", 0)
    calls = []
    sides = [lambda name=name: calls.append(name) for name in ("a", "b", "peer")]
    seconds = in_turns(sides, repeats=2, warmup=1)
    assert calls == ["a", "b", "peer", *["a", "a", "b", "b", "peer", "peer"] * 2]
    assert [len(of_side) for of_side in seconds] == [2, 2, 2]


def test_what_is_timed_is_each_side_itself(monkeypatch):
    """By a clock that each call moves on: 1 s for ours, 3 s for the peer."""
    now = [0.0]
    monkeypatch.setattr(harness, "REST", 0)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])

    def side(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    row = compare("x", side(1), side(3), peer_name="p", mark=2.0)
    assert (row.ours, row.peer, row.ratio, row.met) == (1, 3, 3, True)


def test_toy_is_short():
    calls = []
    compare("x", lambda: calls.append(1), lambda: None, 99, 99, toy=True, peer_name="p")
    assert len(calls) == 4


def test_medians_and_spreads():
    row = summarise("x", "s", [1, 2, 9], [10, 20, 30], peer_name="p")
    assert (row.ours, row.peer, row.ratio) == (2, 20, 10)
    assert (row.ours_spread, row.peer_spread) == (2, 5)  # quartiles 1.5, 5.5; 15, 25
    assert summarise("x", "s", [4], [8], peer_name="p").ours_spread == 0


@pytest.mark.parametrize(
    ("mark", "met"), [(None, None), (1.9, True), (2.0, True), (2.1, False)]
)
def test_promises(mark, met):
    row = Row("x", "s", 1.0, 2.0, peer_name="p", mark=mark)
    assert row.met is met
    assert ("promised" in row.line()) == (mark is not None)


def test_a_limit_is_a_promise():
    assert beside_limit("x", "s", [1, 2, 3], 2).met
    assert not beside_limit("x", "s", [1, 3, 3], 2).met


def test_the_peer_has_a_name():
    with pytest.raises(TypeError, match="peer_name"):
        Row("x", "s", 1.0, 2.0)


def test_json(capsys):
    rows = [
        Row("a", "s", 1.0, 2.0, peer_name="p", mark=3.0),
        LeftOut("b", "published code"),
    ]
    report(rows, Namespace(json=True, toy=False, threads=1), ["so it was"])
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["peer_name"] == "p"
    assert found["rows"][0]["met"] is False
    assert found["left_out"][0]["reason"] == "give --published FOLDER"
    assert found["notes"] == ["so it was"]
    assert found["machine"]["threads"] == 1
    assert found["machine"]["numpy"] == np.__version__


def test_text(capsys):
    rows = [Row("a", "s", 1.0, 2.0, peer_name="p"), LeftOut("b", "published code")]
    report(rows, Namespace(json=False, toy=False, threads=1), ["so it was"])
    *_, first, second, note = capsys.readouterr().out.splitlines()
    assert first == "a | 1 ± 0 s | p: 2 ± 0 s | 2.00"
    assert "left out: give --published FOLDER" in second
    assert note == "so it was"


def test_toys_promise_nothing(capsys):
    rows = [Row("a", "s", 1.0, 2.0, peer_name="p", mark=3.0)]
    report(rows, Namespace(json=True, toy=True, threads=1))
    assert json.loads(capsys.readouterr().out)["rows"][0]["met"] is None


def test_infinite_ratios_are_refused():
    rows = [Row("a", "s", 0.0, 2.0, peer_name="p")]
    with pytest.raises(ValueError, match="JSON"):
        report(rows, Namespace(json=True, toy=True, threads=1))


def test_published_is_a_folder(tmp_path, capsys):
    parser = argument_parser("x")
    assert parser.parse_args(["--published", str(tmp_path)]).published == str(tmp_path)
    assert parser.parse_args([]).published is None
    with pytest.raises(SystemExit):
        parser.parse_args(["--published", str(tmp_path / "absent")])
    assert "absent: no such folder" in capsys.readouterr().err


def test_peak_memory_counts_what_is_gone_again():
    def run():
        np.ones(64 * MEBI, np.uint8).sum()
        return np.ones(16 * MEBI, np.uint8)

    kept, taken = peak_memory(run)
    assert kept.nbytes == 16 * MEBI
    assert 60 * MEBI < taken < 100 * MEBI


# -- processes -------------------------------------------------------------------------

SCRIPT = """
import json, multiprocessing, os, sys

def main(argv):
    print("first")
    if argv[0] == "fail":
        raise ValueError("three\\nlines\\nof it")
    if argv[0] == "die":
        os._exit(3)
    method = multiprocessing.get_start_method()
    print(json.dumps({"pid": os.getpid(), "argv": argv, "method": method}))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "some_benchmark.py"
    path.write_text(SCRIPT)
    return path


def test_in_new_process(script):
    found = in_new_process(script, "--size", 3)
    assert found["argv"] == ["--size", "3"]
    assert found["pid"] not in (os.getpid(), in_new_process(script, "x")["pid"])
    # loaders start their workers as they do elsewhere
    assert found["method"] == multiprocessing.get_start_method()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "fail",
            r"some_benchmark.py fail: ValueError: three lines of it \(exit code 1",
        ),
        ("die", r"some_benchmark.py die: ended without a word \(exit code 3\)"),
    ],
)
def test_a_process_that_fails_says_why(script, word, message):
    with pytest.raises(SystemExit, match=message):
        in_new_process(script, word)


def echo(connection, word):
    connection.send(word)
    connection.send(connection.recv())


def test_a_process_that_is_talked_to():
    process, connection = start_process(echo, "one")
    assert connection.recv() == "one"
    connection.send("two")
    assert connection.recv() == "two"
    process.join()
    assert process.exitcode == 0
