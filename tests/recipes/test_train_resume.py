"""train.py stopped and killed at any moment ends with the same files as unbroken."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from recipe_scripts import (
    RECIPE,
    SMALL,
    data_words,
    run,
    run_script,
    write_recipe_corpus,
)
from tiny_training import start, tiny_config

from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import load_pretrained, save_pretrained

PRODUCTS = ("speaker_encoder.safetensors", "classifier.safetensors", "training.json")
EPOCHS = 5  # of 7 steps


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """With the end state of a stage 1, whose encoder drops out a tenth everywhere."""
    folder = write_recipe_corpus(tmp_path_factory.mktemp("corpus"))
    torch.manual_seed(0)
    model = SpeakerEncoder(W2VBertEncoder(tiny_config()), AdapterMFA(16, 2, 8, 16))
    training = {"speakers": [f"id{s:02d}" for s in range(6)], "n_speeds": 3}
    save_pretrained(folder / "stage1", model, ArcFace(16, 18), training)
    return folder


def words_of(corpus, out, *more):
    """Stage 2 with everything on: dropout, noise, speeds, groups with a tail."""
    small = [word for word in SMALL if "embedding_size" not in word]
    return [
        *("hparams/stage2_joint.yaml", *data_words(corpus), *small),
        *(f"--pretrained_folder={corpus}/stage1", f"--output_folder={out}"),
        *(f"--number_of_epochs={EPOCHS}", "--lr=1e-3", "--lr_schedule.final=1e-4"),
        *("--grad_accumulation_factor=3", *more),
    ]


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """What an unbroken run leaves: {file name: bytes}."""
    folder = tmp_path_factory.mktemp("unbroken")
    code, lines = run("train", words_of(corpus, folder / "out"), folder / "stderr")
    assert code == 0, lines
    return products(folder / "out")


def products(out):
    return {name: (out / "final" / name).read_bytes() for name in PRODUCTS}


def start_and_wait(start_it, out, seconds=60):
    """Start a run, → its process as soon as it has saved something."""
    known = set(out.glob("save/CKPT*"))
    process = start_it()
    end = time.monotonic() + seconds
    while not set(out.glob("save/CKPT*")) - known:
        assert time.monotonic() < end
        assert process.is_alive()
        time.sleep(0.005)
    return process


def _in_a_group_of_its_own(*arguments):
    os.setpgrp()
    run_script(*arguments)


def check_stopped(out, code, text):
    lines = text.splitlines()
    assert code == 143, text
    assert lines[-1].startswith("stopped by SIGTERM: epoch ")
    assert lines[-1].endswith("run the same command again to continue")
    assert "Traceback" not in text
    assert not list(out.glob("save/.partial*"))
    assert not (out / "final").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_and_continued(corpus, unbroken, tmp_path, workers):
    out, stderr = tmp_path / "out", tmp_path / "stderr"
    more = ("--ckpt_interval_steps=1", f"--num_workers={workers}")
    words = words_of(corpus, out, *more)
    for delay in (0.0, 0.05):
        process = start_and_wait(
            lambda: start(_in_a_group_of_its_own, "train", *words, stderr=stderr), out
        )
        time.sleep(delay)
        # as a batch system does: to the workers, too
        os.killpg(process.pid, signal.SIGTERM)
        asked = time.monotonic()
        process.join(60)
        assert time.monotonic() - asked < 20
        check_stopped(out, process.exitcode, stderr.read_text())
    code, lines = run("train", words, stderr)
    assert code == 0, lines
    assert products(out) == unbroken
    log = (out / "log.txt").read_text()
    assert log.count("resuming from CKPT+") == 2
    assert log.count("starting anew") == 1


def test_killed_at_arbitrary_moments(corpus, unbroken, tmp_path):
    out, stderr = tmp_path / "out", tmp_path / "stderr"
    words = words_of(corpus, out, "--ckpt_interval_steps=2")
    moments = random.Random(0)
    for _ in range(3):
        process = start_and_wait(
            lambda: start(run_script, "train", *words, stderr=stderr), out
        )
        # far less than what is left of the run, however fast the machine
        time.sleep(moments.uniform(0.0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    code, lines = run("train", words, stderr)
    assert code == 0, lines
    assert products(out) == unbroken
    assert not list(out.glob("save/.partial*"))


@pytest.mark.slow
def test_a_real_process_is_stopped_and_continued(corpus, unbroken, tmp_path):
    out = tmp_path / "out"
    words = words_of(corpus, out, "--ckpt_interval_steps=1")
    command = [sys.executable, "train.py", *words]
    options = {"cwd": RECIPE, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    options |= {"stderr": subprocess.PIPE, "text": True}

    def start_it():
        process = subprocess.Popen(command, **options)
        process.is_alive = lambda: process.poll() is None
        return process

    with start_and_wait(start_it, out) as process:
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=60)
    check_stopped(out, process.returncode, text)
    code, lines = run("train", words, tmp_path / "stderr")
    assert code == 0, lines
    assert products(out) == unbroken


def test_a_finished_run_has_nothing_to_do_but_its_export(corpus, tmp_path):
    out, stderr = tmp_path / "out", tmp_path / "stderr"
    words = words_of(corpus, out, "--number_of_epochs=1")
    assert run("train", words, stderr)[0] == 0
    first = products(out)
    (out / "final/speaker_encoder.safetensors").unlink()
    assert run("train", words, stderr)[0] == 0
    assert products(out) == first
    assert len(list(out.glob("save/*"))) == 1


def test_the_best_epoch_is_exported_and_can_be_read(corpus, unbroken, tmp_path):
    training = json.loads(unbroken["training.json"])
    assert training["stage"] == "stage2_joint"  # what the YAML file is called
    assert training["n_speeds"] == 3
    assert len(training["speakers"]) == 4
    assert 1 <= training["epoch"] <= EPOCHS
    assert 0 <= training["validation_eer_percent"] <= 100
    assert training["trained_parameters"] == training["total_parameters"]


@pytest.mark.parametrize("name", ["adapter_mfa", "lora_adapter_mfa"])
def test_three_stages_and_a_verification(corpus, tmp_path, name):
    stderr = tmp_path / "stderr"
    small = [w for w in SMALL if "embedding_size" not in w] + ["--number_of_epochs=1"]
    stage1 = [
        *(f"hparams/stage1_{name}.yaml", *data_words(corpus), *small),
        *(f"--encoder_source={corpus}/tiny.json", "--embedding_size=16"),
        *(f"--output_folder={tmp_path}/1",),
    ]
    if "lora" in name:
        stage1.append("--lora.r=2")
    stages = [stage1]
    for number, yaml in ((2, "stage2_joint"), (3, "stage3_lmft")):
        data = data_words(corpus)[: 5 if number == 2 else 3]
        source = f"--pretrained_folder={tmp_path}/{number - 1}/final"
        out = f"--output_folder={tmp_path}/{number}"
        stages.append([f"hparams/{yaml}.yaml", *data, *small, source, out])
    for words in stages:
        code, lines = run("train", words, stderr)
        assert code == 0, lines
    classes = [
        json.loads((tmp_path / f"{n}/final/training.json").read_text())["n_speeds"]
        for n in (1, 2, 3)
    ]
    assert classes == [3, 3, 1]
    wavs = torch.randn(2, 8000)
    outputs = [load_pretrained(tmp_path / f"{n}/final")(wavs) for n in (1, 2, 3)]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    words = [
        *("hparams/verify.yaml", f"--pretrained_folder={tmp_path}/3/final"),
        *(*data_words(corpus)[1:3], f"--output_folder={tmp_path}/v"),
        *("--num_workers=0", "--noprogressbar"),
    ]
    code, lines = run("verify", words, stderr)
    assert code == 0, lines
    results = json.loads((tmp_path / "v/results.json").read_text())
    assert [row["trials"] for row in results["lists"]] == [15]
