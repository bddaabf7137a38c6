"""chain.py with the recipe's own scripts and files, stopped, continued, and planned."""

import json
import os
import re
import signal
import time

import pytest
from recipe_scripts import RECIPE, SMALL, data_words, run, write_recipe_corpus
from tiny_training import start

from speechbrain_ext.chains.plan import cost_of, describe, processes_of
from speechbrain_ext.chains.runner import run_chain
from speechbrain_ext.chains.stages import read_chain
from speechbrain_ext.utils.errors import InputError, command_line

CHAINS = sorted((RECIPE / "chains").glob("*.yaml"))
TINY = """\
stages:
    - name: stage1
      script: train.py
      hparams: hparams/stage1_adapter_mfa.yaml
      overrides: {ckpt_interval_steps: 1}
    - name: verify1
      script: verify.py
      hparams: hparams/verify.yaml
      overrides: {pretrained_folder: <stage1>/final}
      published: {cosine: {trials: 0.43}}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_recipe_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def words(corpus, tmp_path):
    """The command line of a tiny chain."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    return [
        *(str(tmp_path / "tiny.yaml"), *data_words(corpus), *SMALL, "--num_workers=1"),
        *(f"--encoder_source={corpus}/tiny.json", f"--output_folder={tmp_path}/out"),
    ]


@command_line
def run_words(path, *words):
    run_chain(read_chain(path, list(words), RECIPE))


def test_a_stopped_training_continues_and_is_verified(words, tmp_path):
    stderr = tmp_path / "stderr"
    options = {"stderr": stderr, "OMP_NUM_THREADS": 1}
    process = start(run_words, *words, **options)
    end = time.monotonic() + 300
    while not list(tmp_path.glob("out/stage1/save/CKPT*")):
        assert time.monotonic() < end, stderr.read_text()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    process.join(100)
    assert process.exitcode == 143
    line = stderr.read_text().splitlines()[-1]
    assert line == "stopped by SIGTERM in stage1; the same command continues"
    log = (tmp_path / "out/chain/stage1.log").read_text()
    assert "stopped by SIGTERM: epoch 1 after step" in log
    assert "%|" not in log  # no bar
    process = start(run_words, *words, **options)
    process.join(300)
    assert process.exitcode == 0, stderr.read_text()
    stage, _ = read_chain(words[0], words[1:], RECIPE).stages
    *alone, _ = stage.words[1:]  # the last is the output folder
    code, lines = run("train", [*alone, f"--output_folder={tmp_path}/alone"], stderr)
    assert code == 0, lines
    model = "final/speaker_encoder.safetensors"
    assert (tmp_path / "out/stage1" / model).read_bytes() == (
        tmp_path / "alone" / model
    ).read_bytes()
    (row,) = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert row["stage"] == "verify1"
    assert row["trials"] == 15
    assert row["published_eer_percent"] == 0.43
    about = json.loads((tmp_path / "out/stage1/final/training.json").read_text())
    assert row["parameters"] == about["total_parameters"]


# ---- what is wrong is said before the first stage ------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch_sise=4"], "--batch_sise: no stage takes it; did you mean 'batch_"),
        (["--stage1.no_key=4"], r"stage1: --no_key: no such key in .*adapter_mfa.yaml"),
        (["--stage1.lr=fast"], "stage1: --lr=fast: expected a number"),
        (["--musan_folder=/no"], "stage1: --musan_folder: /no: no such file or folder"),
        (["--trial_lists=[/no/a,/no/b]"], "--trial_lists: /no/a: no such file or fo"),
        (["--train_folders=null"], "stage1: .*train_folders must be given"),
        (["--encoder_source=no.json"], "--encoder_source: no.json: no such file"),
    ],
)
def test_wrong_words(words, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        read_chain(words[0], [*words[1:], *more], RECIPE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: verify1", "name: stage1"), "stage 'stage1' stands twice"),
        (("<stage1>", "<stage2>"), "<stage2>: must be given: --stage2=…; did you mean"),
        (("name: verify1", "nam: verify1"), r"no stages\[1\].name, expected a chain"),
        (("script: verify.py", "script: no.py"), "verify1: .*no.py: no such script"),
        (("verify.yaml", "no.yaml"), "no.yaml: no such hyperparameter file"),
        (("stages:", "stagess:"), "no stages, expected a chain"),
        (("trials: 0.43", "trials: low"), r"published is .*, expected {score: {list"),
        (("{ckpt", "{{ckpt"), "not valid YAML"),
    ],
)
def test_wrong_files(words, tmp_path, change, message):
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(InputError, match=message):
        read_chain(path, words[1:], RECIPE)


# ---- the chains of the recipe --------------------------------------------------------


@pytest.fixture(scope="module")
def full_words(tmp_path_factory):
    """Every option that the headers name, as empty files and folders."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "list.txt").write_text("")
    words = {"trial_lists": f"[{folder}/list.txt]", "spk2videos": f"{folder}/list.txt"}
    for key in ("train_folders", "test_folders", "musan_folder", "rirs_folder"):
        words[key] = folder
    words["voxblink2_folders"] = f"[{folder}]"
    return words


def load(path, full_words, *more):
    header = path.read_text().split("\n\n")[0]
    named = set(re.findall(r"--(\w+)=", header)) & set(full_words)
    words = [f"--{key}={full_words[key]}" for key in sorted(named)]
    return read_chain(path, [*words, *more], RECIPE)


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.stem)
def test_a_chain_of_the_recipe(path, full_words):
    override = re.search(r"\n# One override: (--\S+)", path.read_text())[1]
    chain = load(path, full_words, "--launcher=torchrun --nproc_per_node=8", override)
    states = {stage.name: "to do" for stage in chain.stages}
    lines = describe(chain, states)
    assert lines[0].startswith(f"{path.stem}: {len(chain.stages)} stages, in ")
    if path.stem != "quickstart":  # whose corpus is to be made yet
        training = [s for s in chain.stages if "number_of_epochs" in s.tree]
        processes = 1 if path.stem == "small_fused" else 8  # two cores
        assert all(cost_of(stage, processes).steps >= 1000 for stage in training)
    assert all("<" not in word for stage in chain.stages for word in stage.words)


def test_steps_and_hours_of_the_published_run(full_words):
    path = RECIPE / "chains/paper_table2.yaml"
    stage1, verify, stage2, *_ = load(path, full_words).stages
    # 1,092,009 utterances, batches of 64 in 8 processes, 15 epochs
    cost = cost_of(stage1, 8)
    assert cost.steps == 2132 * 15
    assert cost.hours == pytest.approx(2132 * 15 * 0.115 / 3600)
    assert cost_of(verify, 8).hours == pytest.approx(0.5 / 8)
    # twice the batch: half the steps, each twice as long; groups of two: as many hours
    (twice,) = load(path, full_words, "--lora_stage2.batch_size=128").stages[2:3]
    assert cost_of(twice, 8).steps == 1066 * 4
    assert cost_of(twice, 8).hours == pytest.approx(cost_of(stage2, 8).hours, rel=1e-3)
    word = "--grad_accumulation_factor=2"
    (grouped,) = load(path, full_words, word).stages[2:3]
    assert cost_of(grouped, 4).steps == 2132 * 4 + 4  # 4265 batches: the tail counts


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        ("", 1),
        ("torchrun --nproc_per_node=8", 8),
        ("torchrun --nnodes 2 --nproc-per-node 4", 8),
        ("torchrun --nnodes=1:4 --nproc_per_node=2", 8),
        ("torchrun --nproc_per_node=gpu", 1),
    ],
)
def test_processes_of_a_launcher(launcher, processes):
    assert processes_of(launcher.split()) == processes
