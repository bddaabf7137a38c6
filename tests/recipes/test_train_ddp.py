"""Several processes on the CPU: equal weights, own noise, exact stops, one failure."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from recipe_scripts import (
    RECIPE,
    SMALL,
    data_words,
    run,
    run_on_two,
    write_recipe_corpus,
)
from tiny_training import (
    assert_same,
    constant_rate,
    in_processes,
    saved,
    state_of,
    tiny_run,
    train,
)
from torch import nn

from speechbrain_ext.lobes.heads import AdapterMFA, WeightedSumECAPA
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.training.brain import SpeakerBrain

pytestmark = pytest.mark.usefixtures("one_thread")


def ranks(folder, function, *arguments, codes=(0, 0)):
    """Run on two ranks → what each left in ``folder``/rankN."""
    assert in_processes(function, 2, *arguments) == list(codes)
    return [saved(folder / f"rank{rank}") for rank in range(2)]


def leave(folder, **values):
    torch.save(values, folder / f"rank{os.environ['RANK']}")


# ---- the Brain -----------------------------------------------------------------------


class Watched(SpeakerBrain):
    """Keeps who was trained on, the noise of dropout, and what was embedded."""

    def __init__(self, **options):
        super().__init__(**options)
        self.ids, self.noise, self.embedded, self.rates = [], [], 0, []

    def embedder(self):
        model = super().embedder()
        model.register_forward_hook(self.count)
        return model

    def count(self, module, inputs, output):
        self.embedded += len(output)

    def fit_batch(self, batch):
        self.ids.append(batch.ids)
        loss = super().fit_batch(batch)
        self.noise.append(torch.get_rng_state())
        return loss

    def validate(self, progress=True):
        self.rates.append(super().validate(progress))
        self.statistics = [b.clone() for b in self.modules.speaker_encoder.buffers()]
        return self.rates[-1]


def _train_watched(corpus, folder, options):
    brain, loader = tiny_run(corpus, folder, brain=Watched, batch_size=2, **options)
    state = train(brain, loader)
    leave(
        folder,
        state=state,
        ids=brain.ids,
        noise=brain.noise,
        embedded=brain.embedded,
        rates=brain.rates,
        statistics=brain.statistics,
    )


@pytest.mark.parametrize("options", [{}, {"lora": True, "factor": 3}])
def test_ranks_stay_equal_on_their_own_data_and_noise(corpus, tmp_path, options):
    one, two = ranks(tmp_path, _train_watched, corpus, tmp_path, options)
    for state in (one.state, two.state):
        state.pop("random")
    assert_same(one.state, two.state)
    for a, b in zip(one.ids, two.ids, strict=True):
        assert not set(a) & set(b)
    assert len(one.ids) == 14
    for epoch in (slice(0, 7), slice(7, 14)):
        seen = [name for ids in one.ids[epoch] + two.ids[epoch] for name in ids]
        assert len(set(seen)) == len(seen) == 28
    assert not any(torch.equal(a, b) for a, b in zip(one.noise, two.noise))
    assert one.rates == two.rates
    assert all(map(torch.equal, one.statistics, two.statistics))
    assert one.embedded + two.embedded == 2 * 14  # once each, in two epochs
    assert min(one.embedded, two.embedded) > 0
    names = {path.name for path in tmp_path.glob("save/CKPT*/*")}
    assert {"random_state.ckpt", "random_state.rank1.pt"} <= names


def _train_exactly(corpus, folder, batch_size, head, options):
    torch.manual_seed(5)
    brain, loader = tiny_run(
        *(corpus, folder),
        batch_size=batch_size,
        dropout=0.0,
        head=head and head(16, 2, embedding_size=16),
        opt_class=partial(torch.optim.SGD, momentum=0.9),
        **options,
    )
    state = train(brain, loader)
    rank = os.environ.get("RANK", "0")
    torch.save({"state": state, "loss": brain.train_loss}, folder / f"rank{rank}")


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (None, {}),
        (None, {"factor": 2}),
        (partial(AdapterMFA, adapter_size=8, normalise=True), {}),
        (partial(WeightedSumECAPA, channels=(8, 8, 8, 8, 24)), {}),
    ],
    ids=["adapter_mfa", "accumulation", "normalised", "ecapa"],
)
def test_two_ranks_equal_one_process_with_their_global_batch(
    corpus, tmp_path, head, options
):
    """Same crops, noises and labels; BatchNorm over both; gradients averaged."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    ranks(two, _train_exactly, corpus, two, 2, head, options)
    _train_exactly(corpus, one, 4, head, options)
    whole, part = saved(one / "rank0"), saved(two / "rank0")
    assert part.loss == pytest.approx(whole.loss, rel=1e-5)
    assert part.loss == saved(two / "rank1").loss
    for name, expected in whole.state.items():
        if not name.startswith(("opt.", "random")):
            found = part.state[name]
            torch.testing.assert_close(
                found, expected, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def _train_and_validate_again(corpus, folder):
    brain, loader = tiny_run(corpus, folder, batch_size=2, epochs=1)
    train(brain, loader)
    brain.recover_best()
    meta = brain.checkpointer.find_checkpoint().meta
    leave(folder, rate=meta["EER"], again=brain.validate()["EER"])


def test_the_rate_of_several_ranks_is_that_of_the_checkpoint(corpus, tmp_path):
    one, two = ranks(tmp_path, _train_and_validate_again, corpus, tmp_path)
    assert one.rate == one.again == two.rate == two.again
    brain, _ = tiny_run(corpus, tmp_path)
    brain.recover_best()
    assert brain.validate()["EER"] == pytest.approx(one.rate, abs=1e-6)


class PlainHead(nn.Module):
    """Mean of the last state → Linear: no batch statistics."""

    embedding_size = 16

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, states, lens=None):
        return self.linear(states[-1].mean(1, keepdim=True))


def _train_plainly(corpus, folder, batch_size, factor=1):
    torch.manual_seed(0)
    head = PlainHead()
    brain, loader = tiny_run(
        *(corpus, folder),
        head=head,
        dropout=0.0,
        random_data=False,
        validate=False,
        batch_size=batch_size,
        factor=factor,
        opt_class=lambda p: torch.optim.SGD(p, 0.05),
        **constant_rate(0.05),
    )
    leave(folder, state=train(brain, loader))


def test_two_ranks_of_two_are_one_of_four(corpus, tmp_path, monkeypatch):
    one, _ = ranks(tmp_path, _train_plainly, corpus, tmp_path, 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    (tmp_path / "alone").mkdir()
    _train_plainly(corpus, tmp_path / "alone", 4)
    alone = saved(tmp_path / "alone/rank0").state
    for name, value in alone.items():
        if "random" not in name:
            torch.testing.assert_close(one.state[name], value, atol=1e-5, rtol=1e-5)


def test_groups_of_two_ranks_are_larger_batches(corpus, tmp_path):
    folders = tmp_path / "split", tmp_path / "whole"
    for folder in folders:
        folder.mkdir()
    split, _ = ranks(folders[0], _train_plainly, corpus, folders[0], 1, 2)
    whole, _ = ranks(folders[1], _train_plainly, corpus, folders[1], 2, 1)
    for name, value in whole.state.items():
        if "random" not in name:
            torch.testing.assert_close(split.state[name], value, atol=1e-5, rtol=1e-5)


class StopsOne(SpeakerBrain):
    """Rank 1 alone gets SIGTERM, in (epoch, step) or in a validation."""

    stop_at = None

    def compute_objectives(self, *args):
        self.kill_at(self.step)
        return super().compute_objectives(*args)

    def validate(self, progress=True):
        self.kill_at("validation")
        return super().validate(progress)

    def kill_at(self, place):
        here = (self.hparams.epoch_counter.current, place)
        if self.rank == 1 and here == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def _stop_or_train(corpus, folder, stop_at, factor):
    brain, loader = tiny_run(
        corpus, folder, brain=StopsOne, batch_size=2, factor=factor
    )
    brain.stop_at = stop_at
    train(brain, loader)
    leave(folder, state=state_of(brain))


@pytest.mark.parametrize(
    ("stop_at", "factor"), [((1, 2), 1), ((2, 4), 3), ((1, "validation"), 1)]
)
def test_one_rank_is_told_to_stop_and_all_continue(corpus, tmp_path, stop_at, factor):
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    for folder in (unbroken, stopped):
        folder.mkdir()
    expected = ranks(unbroken, _stop_or_train, corpus, unbroken, None, factor)
    codes = in_processes(_stop_or_train, 2, corpus, stopped, stop_at, factor)
    assert codes == [143, 143]
    found = ranks(stopped, _stop_or_train, corpus, stopped, None, factor)
    for mine, theirs in zip(found, expected):
        assert_same(mine.state, theirs.state)


# ---- train.py ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe_corpus(tmp_path_factory):
    return write_recipe_corpus(tmp_path_factory.mktemp("recipe"))


def stage_words(corpus, out, yaml, *more):
    small = [w.replace("batch_size=4", "batch_size=2") for w in SMALL]
    words = [
        *(f"hparams/{yaml}.yaml", *data_words(corpus), *small),
        *(f"--output_folder={out}", "--number_of_epochs=1", "--device=cpu"),
    ]
    if "stage1" in yaml:
        return [*words, f"--encoder_source={corpus}/tiny.json", "--lora.r=2", *more]
    return [word for word in words if "embedding_size" not in word] + list(more)


def test_stages_1_and_2_train_and_export_once(recipe_corpus, tmp_path):
    outs = [tmp_path / "1", tmp_path / "2"]
    words = [
        stage_words(recipe_corpus, outs[0], "stage1_lora_adapter_mfa"),
        stage_words(
            *(recipe_corpus, outs[1], "stage2_joint"),
            f"--pretrained_folder={outs[0]}/final",
        ),
    ]
    for out, stage in zip(outs, words):
        codes, errors = run_on_two("train", stage, tmp_path)
        assert codes == [0, 0], errors
        log = (out / "log.txt").read_text()
        assert log.count("model in") == 1
        assert log.count("optimiser steps: 7 per epoch, 7 in 1 epoch(s)") == 1
        assert log.count("set for a global batch of 512, not 4; 512 needs") == 1
        assert json.loads((out / "final/training.json").read_text())["epoch"] == 1
        assert (out / "train_log.txt").read_text().count("epoch: 1") == 1
    # one process loads, verifies and trains on with what two have made
    words = [
        *("hparams/verify.yaml", f"--pretrained_folder={outs[1]}/final"),
        *(*data_words(recipe_corpus)[1:3], f"--output_folder={tmp_path}/v"),
        *("--num_workers=0", "--noprogressbar"),
    ]
    assert run("verify", words, tmp_path / "stderr")[0] == 0
    assert load_pretrained(outs[1] / "final").embedding_size == 16


def torchrun(words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc_per_node=2", "train.py", *words],
        cwd=RECIPE,
        capture_output=True,
        text=True,
        timeout=500,  # a rank left alone would wait for two hours
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_one_failing_rank_stops_all_and_is_heard(recipe_corpus, tmp_path):
    out = tmp_path / "out"
    words = stage_words(recipe_corpus, out, "stage1_lora_adapter_mfa")
    done = torchrun(words)
    assert done.returncode == 0, done.stderr
    assert (out / "final").is_dir()
    # Seven of 28 recordings: whoever gets the first of them stops, the other waits.
    for path in (recipe_corpus / "voices/wav").glob("id0?/s0/00000.wav"):
        wav, _ = soundfile.read(path, dtype="float32")
        wav[:] = np.nan
        soundfile.write(path, wav, 16000, subtype="FLOAT")
    words = [word.replace(str(out), f"{out}2") for word in words]
    done = torchrun([*words, "--ckpt_interval_steps=1"])
    assert done.returncode == 1
    # said by the culprit, and once more in torchrun's last words
    error = r"rank (\d): \S+/00000\.wav: NaN or infinite samples"
    said = re.findall(rf"^error: {error}", done.stderr, re.M)
    assert said
    root = done.stderr[done.stderr.index("Root Cause") :]
    assert re.search(rf"rank +: (\d) .*(?s:.*): {error}", root).groups()[0] in said
    assert not (tmp_path / "out2/final").exists()
    assert all((p / "CKPT.yaml").is_file() for p in tmp_path.glob("out2/save/CKPT*"))
