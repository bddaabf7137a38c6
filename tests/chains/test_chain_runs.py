"""A chain is run once, whatever stops it, and refuses what does not fit."""

import json
import os
import signal
import sys
import time

import pytest
from toy_chain import run_toy, start_toy, write_toy

from speechbrain_ext.chains.results import rows_of, write_results
from speechbrain_ext.chains.stages import Chain, Stage
from speechbrain_ext.utils.files import write_json

RANKS = """\
import os, signal, sys, time
from pathlib import Path

import torch.distributed as dist


def toy(run_opts, /, *, output_folder: str, data_folder: str = None):
    ...


if __name__ == "__main__":
    words = dict(word[2:].split("=", 1) for word in sys.argv[2:] if "=" in word)
    folder, rank = Path(words["output_folder"]), os.environ["RANK"]
    folder.mkdir(parents=True, exist_ok=True)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *about: stopped.append(about[0]))
    dist.init_process_group("gloo")
    dist.barrier()
    if (folder / f"saved{rank}").exists():
        (folder / f"continued{rank}").touch()
    else:
        (folder / f"began{rank}").touch()
        while not stopped:
            time.sleep(0.01)
        time.sleep(0.5)  # as long as a checkpoint takes
        assert len(stopped) == 1
        dist.barrier()
        (folder / f"saved{rank}").touch()
        os._exit(143)
    dist.destroy_process_group()
"""


@pytest.fixture
def recipe(tmp_path):
    return write_toy(tmp_path)


def starts(recipe, stage):
    """The steps from which a stage started, one for each start."""
    return (recipe.parent / f"out/{stage}/starts").read_text().split()


def products(recipe):
    out = recipe.parent / "out"
    names = ("one/final/model", "two/final/model", "copy/model", "results.json")
    return {name: (out / name).read_text() for name in names}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What a chain leaves that nothing stops."""
    recipe = write_toy(tmp_path_factory.mktemp("unbroken"))
    code, lines, errors = run_toy(recipe)
    assert (code, errors) == (0, [])
    # one: 0, 1, 2.5; two: 0.5 · 2.5 = 1.25, then 2, 4 and 6 twice
    assert "| check | O | cosine | 8.66 | 0.14 | 0.500 | – | – |" in (
        recipe.parent / "out/results.md"
    ).read_text().replace(" 8.656 ", " 8.66 ")
    assert lines[-1] == f"the copy is in {recipe.parent}/out/copy"
    return products(recipe)


def wait_for(path, seconds=100):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_plan_comes_first_and_each_stage_says_what_it_did(recipe, unbroken):
    code, lines, _ = run_toy(recipe, "--launcher=")
    assert code == 0
    assert lines[0].endswith(f"4 stages, in {recipe.parent}/out")
    shown = [line for line in lines if line.startswith("$ ")]
    assert len(shown) == 4
    assert shown[1].startswith(f"$ python {recipe}/toy.py {recipe}/toy.yaml --")
    assert any(line.startswith("[2/4] two: done in ") for line in lines)
    assert products(recipe) == unbroken


def test_what_is_done_is_not_done_again(recipe, unbroken):
    assert run_toy(recipe)[0] == 0
    code, lines, errors = run_toy(recipe, "--two.num_workers=3")
    assert (code, errors) == (0, [])
    assert [line for line in lines if "done before" in line] == [
        f"[{n}/4] {name}: done before"
        for n, name in enumerate(("one", "two", "check", "copy"), start=1)
    ]
    assert starts(recipe, "one") == starts(recipe, "two") == ["0"]
    assert products(recipe) == unbroken


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_chain_goes_on_to_the_same_end(recipe, unbroken, ending):
    process = start_toy(recipe, SECONDS_OF_two=60)
    wait_for(recipe.parent / "out/two/saved")
    os.kill(process.pid, ending)
    process.join(100)
    if ending == signal.SIGKILL:
        assert process.exitcode == -ending
    else:
        assert process.exitcode == 128 + ending
        line = (recipe.parent / "stderr").read_text().splitlines()[-1]
        name = ending.name
        assert line == f"stopped by {name} in two; the same command continues"
    code, lines, errors = run_toy(recipe)
    assert (code, errors) == (0, [])
    assert "[1/4] one: done before" in lines
    assert starts(recipe, "one") == ["0"]
    assert starts(recipe, "two") == ["0", "1"]
    assert products(recipe) == unbroken


def test_killed_at_arbitrary_moments(recipe, unbroken):
    for wait in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3):
        process = start_toy(recipe)
        time.sleep(wait)
        process.kill()
        process.join()
    code, _, errors = run_toy(recipe)
    assert (code, errors) == (0, [])
    assert products(recipe) == unbroken


def test_one_chain_in_a_folder(recipe):
    process = start_toy(recipe, SECONDS_OF_one=60)
    wait_for(recipe.parent / "out/one/saved")
    other = write_toy(recipe.parent / "recipe")
    code, _, lines = run_toy(other, f"--output_folder={recipe.parent}/out")
    assert code == 1
    assert lines == [
        f"error: {recipe.parent}/out: another chain (process {process.pid}) is running "
        "in it, expected one at a time"
    ]
    process.terminate()
    process.join(100)
    assert process.exitcode == 143
    text = (recipe.parent / "stderr").read_text()
    assert text.startswith("stopped by SIGTERM in one")


def test_a_changed_override_is_refused_until_its_folders_are_removed(recipe):
    assert run_toy(recipe)[0] == 0
    out = recipe.parent / "out"
    code, lines, errors = run_toy(recipe, "--two.lr=3.0")
    assert (code, lines) == (1, [])
    assert errors == [
        "error: two: lr has changed from 2.0 to 3.0 since it was done; expected the "
        "same, or another --output_folder, or, to make it and what rests on it anew: "
        f"rm -r {out}/two {out}/check {out}/copy"
    ]
    code, _, errors = run_toy(recipe, "--one.lr=0.5")
    assert "one: lr has changed from the file's own to 0.5" in errors[0]
    for name in ("two", "check", "copy"):
        os.rename(out / name, out / f"{name}.old")
    code, lines, _ = run_toy(recipe, "--two.lr=3.0")
    assert code == 0
    assert starts(recipe, "one") == starts(recipe, "two") == ["0"]
    assert json.loads((out / "two/final/model").read_text()) == pytest.approx(12.90625)


def test_a_changed_yaml_file_is_refused(recipe):
    assert run_toy(recipe)[0] == 0
    with open(recipe / "toy_verify.yaml", "a") as file:
        file.write("# another word\n")
    code, _, errors = run_toy(recipe)
    assert code == 1
    assert errors[0].startswith("error: check: its YAML file has changed since it was")


def test_a_stage_that_fails_ends_the_chain_in_one_line(recipe):
    code, _, errors = run_toy(recipe, "--two.fails=True")
    out = recipe.parent / "out"
    assert code == 1
    (line,) = errors
    assert line.startswith("error: two ended with exit code 1 after ")
    assert line.endswith(f": the sky is falling; its log: {out}/chain/two.log")
    assert not (out / "check").exists()
    assert "step 4" in (out / "chain/two.log").read_text()


def test_the_launcher_comes_before_scripts_alone(recipe):
    nice = "--launcher=env TOY=1"
    code, lines, errors = run_toy(recipe, nice)
    assert (code, errors) == (0, [])
    shown = [line.split()[1] for line in lines if line.startswith("$ ")]
    assert shown == ["env", "env", "env", "python"]
    code, _, errors = run_toy(recipe, "--launcher=srun -N2")
    assert code == 1
    assert "expected torchrun behind it" in errors[0]
    code, _, errors = run_toy(recipe, "--launcher=no_such_program")
    assert code == 0  # all is done


def test_under_torchrun_the_ranks_are_told_to_stop(tmp_path):
    recipe = write_toy(tmp_path)
    (recipe / "toy.py").write_text(RANKS)
    stages = "stages:\n    - {name: one, script: toy.py, hparams: toy.yaml}\n"
    (recipe / "chain.yaml").write_text(stages)
    (recipe / "toy.yaml").write_text("output_folder: x\n")
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone"
    launcher = f"--launcher={torchrun} --nproc_per_node=2"
    process = start_toy(recipe, launcher)
    out = tmp_path / "out/one"
    for rank in range(2):
        wait_for(out / f"began{rank}", 200)
    os.kill(process.pid, signal.SIGTERM)
    process.join(100)
    assert process.exitcode == 143
    assert all((out / f"saved{rank}").exists() for rank in range(2))
    code, _, errors = run_toy(recipe, launcher)
    assert (code, errors) == (0, [])
    assert all((out / f"continued{rank}").exists() for rank in range(2))


def test_figures_of_spoofs_are_those_of_all_attacks(tmp_path):
    stage = Stage("spoofs", [], tmp_path / "spoofs", True, "x.yaml", {}, [], {}, {})
    pooled = {"eer_percent": 12.5, "min_dcf": 0.25, "cllr": None}
    system = {"system": "llr", "title": "calibrated", "pooled": pooled}
    results = {"lists": [{"list": "eval", "systems": [system]}]}
    write_json(stage.folder / "results.json", results)
    chain = Chain("toy", tmp_path, [stage], [], "")
    assert rows_of(chain, []) == []
    (row,) = rows_of(chain, ["spoofs"])
    assert (row["list"], row["eer_percent"], row["min_dcf"]) == ("eval", 12.5, 0.25)
    write_results(chain, [row])
    line = "| spoofs | eval | calibrated | 12.50 | – | 0.250 | – | – |"
    assert line in (tmp_path / "results.md").read_text().splitlines()
