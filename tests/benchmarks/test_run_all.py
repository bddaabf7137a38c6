"""The runner on made-up benchmarks: what is kept, what is said, how it ends."""

import json
import shutil
import subprocess
import sys

import pytest

LIBRARY = ("harness", "processes", "results", "run_all")
GOOD = '''"""A good one.

More of it.
"""
from harness import LeftOut, Row, argument_parser, report

def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    rows = [Row("speed", "s", 1.0, 2.0, peer_name="snail", mark=1.5)]
    if not arguments.published:
        rows.append(LeftOut("more speed", "published code"))
    report(rows, arguments, [f"threads {arguments.threads}"])

if __name__ == "__main__":
    main()
'''
BAD = '"""A bad one."""\nimport sys\nsys.exit("a warning\\nthe disk is on fire\\n")\n'
WITHOUT_GPU = '"""One."""\nimport sys\nsys.exit("error: gpu.py needs a GPU")\n'
SILENT = '"""A silent one."""\n'
DEADLY = '"""Ends the run."""\nimport os\nos.kill(os.getppid(), 9)\n'


@pytest.fixture
def folder(tmp_path, benchmarks_folder):
    """A folder ``benchmarks`` with the runner and one good script."""
    copy = tmp_path / "benchmarks"
    copy.mkdir()
    for name in LIBRARY:
        shutil.copy(benchmarks_folder / f"{name}.py", copy)
    (copy / "good.py").write_text(GOOD)
    return copy


def run(folder, *words):
    command = [sys.executable, str(folder / "run_all.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def kept(folder, name):
    return json.loads((folder / "results" / f"{name}.json").read_text())


def test_a_script_that_fails_keeps_its_place(folder):
    (folder / "bad.py").write_text(BAD)
    (folder / "silent.py").write_text(SILENT)
    done = run(folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "failed: bad, silent"
    assert done.stdout.splitlines() == [str(folder / "RESULTS.md")]
    assert "bad: the disk is on fire" in done.stderr
    assert "3/3" in done.stderr
    text = (folder / "RESULTS.md").read_text()
    assert "**Failed:** `the disk is on fire`" in text
    assert "**Failed:** `printed no JSON, expected it on the last line`" in text
    assert "A good one.\n" in text
    assert "| speed | 1 s | snail: 2 s | 2 | ≥ 1.5, held | – |" in text
    assert (folder / "results.png").exists()
    assert kept(folder, "good")["commit"] == "unknown"  # no repository here

    # the bad one mended and run alone: the others stay
    (folder / "bad.py").write_text(GOOD)
    (folder / "silent.py").unlink()
    assert run(folder, "--only", "bad").returncode == 0
    text = (folder / "RESULTS.md").read_text()
    assert text.count("| speed |") == 2
    assert "Failed" not in text


def test_a_script_that_needs_a_gpu_is_left_out(folder):
    """What a machine with a GPU has found stays."""
    (folder / "gpu.py").write_text(GOOD)
    assert run(folder).returncode == 0
    (folder / "gpu.py").write_text(WITHOUT_GPU)
    done = run(folder)
    assert done.returncode == 0
    assert "gpu: left out, needs a GPU" in done.stderr
    assert kept(folder, "gpu")["error"] is None
    assert (folder / "RESULTS.md").read_text().count("| speed |") == 2


def test_a_run_that_is_killed_keeps_what_was_done(folder):
    (folder / "later.py").write_text(DEADLY)
    (folder / "latest.py").write_text(GOOD)
    assert run(folder).returncode == -9
    assert "| speed |" in (folder / "RESULTS.md").read_text()
    assert sorted(p.name for p in (folder / "results").iterdir()) == ["good.json"]


def test_options_reach_the_script(folder, tmp_path):
    published = tmp_path / "somewhere"
    published.mkdir()
    assert run(folder, "--published", published, "--threads", "3").returncode == 0
    found = kept(folder, "good")
    assert found["left_out"] == []
    assert found["notes"] == ["threads 3"]
    named = "python benchmarks/good.py --threads 3 --published FOLDER"
    assert found["command"] == named
    assert "somewhere" not in (folder / "RESULTS.md").read_text()


def test_toys_are_kept_apart(folder):
    assert run(folder, "--toy").returncode == 0
    assert not (folder / "RESULTS.md").exists()
    text = (folder / "results/toy/RESULTS.md").read_text()
    assert "No promise is checked at these sizes." in text
    assert "left out: give --published FOLDER" in text
    assert "good.py --toy`" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "absent"), "invalid choice: 'absent'"),
        (("--published", "/absent"), "--published /absent: no such folder"),
    ],
)
def test_options_that_are_wrong(folder, words, message):
    done = run(folder, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (folder / "results").exists()


def test_the_commit_and_whether_the_tree_is_dirty(folder):
    """What the run itself writes does not count."""
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    # the repository's root is above the folder: as in the real one
    (folder.parent / "other").touch()
    found = []
    for change in ("nothing", "more"):
        assert run(folder).returncode == 0
        found.append(kept(folder, "good")["commit"])
        (folder / "good.py").write_text(f"{GOOD}# {change}\n")
    assert found == [head, f"{head} (dirty)"]
