"""RESULTS.md and its picture from what the scripts found."""

import re
from dataclasses import asdict

import pytest
import results
from harness import LIMIT, LeftOut, Row
from matplotlib.image import imread

MACHINE = {
    "processor": "Abacus",
    "cpus": 2,
    "memory_gib": 8,
    "python": "3.11",
    "threads": 1,
    "load": 0.5,
}


def result(name="features", rows=(), left_out=(), **others):
    found = [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in rows]
    return {
        "name": name,
        "title": "What it measures.",
        "command": f"python benchmarks/{name}.py",
        "date": "2026-11-21",
        "commit": "abc1234",
        "error": None,
        "machine": MACHINE,
        "rows": found,
        "left_out": [asdict(row) for row in left_out],
        "notes": [],
        **others,
    }


def row(name="64 × 3 s", ours=0.5, peer=5.0, **about):
    about = {"peer_name": "transformers", "source": "Extractor", **about}
    return Row(name, "s", ours, peer, 0.01, 0.2, **about)


def write(folder, *found):
    results.write_results(folder, found)
    return (folder / "RESULTS.md").read_text()


def test_a_row_says_all_of_it(tmp_path):
    marked = row(mark=5.0, ours_memory=12.0, peer_memory=3450.0)
    text = write(tmp_path, result(rows=[marked]))
    assert (
        "| 64 × 3 s | 0.5 ± 0.01 s | transformers (Extractor): 5 ± 0.2 s | 10 "
        "| ≥ 5, held | 12 / 3,450 MiB |"
    ) in text
    facts = "`python benchmarks/features.py` · 2026-11-21 · commit abc1234 · threads 1"
    assert f"{facts}, load 0.5 at start" in text
    assert "- Abacus, 2 cores, 8 GiB; python 3.11" in text
    assert "**1 of 1 promises hold.**" in text


def test_a_promise_that_is_not_held_is_said_so(tmp_path):
    text = write(tmp_path, result(rows=[row(mark=20.0), row("other")]))
    assert "**0 of 1 promises hold.**" in text
    assert "- not held: features: 64 × 3 s" in text
    assert "≥ 20, **not held**" in text


def test_left_out_and_failed(tmp_path):
    nothing = {"machine": None, "rows": [], "left_out": []}
    text = write(
        tmp_path,
        result(rows=[row()], left_out=[LeftOut("a|b", "published code")]),
        {**result("loader", error="no space left"), **nothing},
    )
    left_out = "left out: give --published FOLDER"
    assert rf"| a\|b | {left_out} | published code | – | – | – |" in text
    assert "- failed: loader" in text
    assert "**Failed:** `no space left`" in text


def test_machines_are_told_once_each(tmp_path):
    other = {**MACHINE, "processor": "Slide rule", "gpu": "Lathe"}
    text = write(
        tmp_path,
        result("a"),
        result("b", machine={**MACHINE, "load": 9}),
        result("c", machine=other),
    )
    assert re.findall("^- (.+?), 2 cores", text, re.MULTILINE) == [
        "Abacus",
        "Slide rule",
    ]
    assert "Slide rule, 2 cores, 8 GiB; Lathe" in text


def test_notes(tmp_path):
    assert "\n\n- so it was\n" in write(
        tmp_path, result(rows=[row()], notes=["so it was"])
    )


def test_tables_are_tables(tmp_path):
    """As many cells in every line."""
    text = write(
        tmp_path, result(rows=[row(), row("b", mark=3.0)]), result("b", [row()])
    )
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 3 + 1 + 2 + 1
    assert {line.count("|") for line in lines} == {7}


# -- picture ---------------------------------------------------------------------------

COLOURS = {None: "tab:blue", True: "tab:green", False: "tab:red"}


def share(path, colour):
    """Of the picture that has one of matplotlib's colours."""
    from matplotlib.colors import to_rgb

    return (abs(imread(path)[..., :3] - to_rgb(colour)).max(axis=-1) < 0.02).mean()


@pytest.mark.parametrize(("mark", "met"), [(None, None), (2.0, True), (20.0, False)])
def test_bars_have_the_colour_of_their_promise(tmp_path, mark, met):
    without = write(tmp_path, result(rows=[row(ours=5.0)]))  # a ratio of 1: no bar
    least = {m: share(tmp_path / "results.png", c) for m, c in COLOURS.items()}
    write(tmp_path, result(rows=[row(mark=mark)]))
    found = {m: share(tmp_path / "results.png", c) for m, c in COLOURS.items()}
    assert "![1 ratios" in without
    for other in COLOURS:
        grown = found[other] - least[other]
        assert (grown > 0.005) if other is met else abs(grown) < 0.002


def test_limits_are_not_drawn(tmp_path):
    """They compare with nothing; and a picture of earlier rows goes."""
    write(tmp_path, result(rows=[row()]))
    assert (tmp_path / "results.png").exists()
    text = write(tmp_path, result(rows=[row(peer_name=LIMIT, mark=1.0)]))
    assert "limit" in text
    assert "![" not in text
    assert not (tmp_path / "results.png").exists()


def test_many_ratios_from_tiny_to_huge(tmp_path):
    rows = [row(str(n), ours=10.0 ** (n - 3)) for n in range(8)]
    many = [result(name, rows) for name in "abcdef"]
    assert "![48 ratios" in write(tmp_path, *many)
    picture = (tmp_path / "results.png").read_bytes()
    write(tmp_path, *many)
    assert (tmp_path / "results.png").read_bytes() == picture
    assert imread(tmp_path / "results.png").shape[0] > 1000
