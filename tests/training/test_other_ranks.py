"""Continued by more or fewer processes; and one process's failure, which ends all."""

import contextlib
import errno
import logging
import math
import os
import shutil
import signal
from functools import partial

import pytest
import torch
from tiny_training import assert_same, in_processes, saved, state_of, tiny_run

from speechbrain_ext.training.brain import SpeakerBrain
from speechbrain_ext.utils import errors

pytestmark = pytest.mark.usefixtures("one_thread")


class Watched(SpeakerBrain):
    """Keeps who was trained on; every rank stops itself at (epoch, place)."""

    stop_at = None

    def fit_batch(self, batch):
        self.seen.append((self.hparams.epoch_counter.current, batch.ids))
        return super().fit_batch(batch)

    def compute_objectives(self, *arguments):
        self.stop_here(self.step)
        return super().compute_objectives(*arguments)

    def validate(self, progress=True):
        self.stop_here("validation")
        return super().validate(progress)

    def stop_here(self, place):
        if self.stop_at == (self.hparams.epoch_counter.current, place):
            os.kill(os.getpid(), signal.SIGTERM)


def _train(corpus, folder, stop_at, options):
    """Train, or until ``stop_at``; leave what happened in ``folder``/rankN."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("speechbrain_ext").addHandler(handler)
    logging.getLogger("speechbrain_ext").setLevel(logging.INFO)
    brain, loader = tiny_run(corpus, folder, brain=Watched, **options)
    brain.stop_at, brain.seen = stop_at, []
    with contextlib.suppress(SystemExit):
        brain.fit(brain.hparams.epoch_counter, loader)
    torch.save(
        {"state": state_of(brain), "seen": brain.seen, "messages": messages},
        folder / f"rank{os.environ['RANK']}",
    )


def train(ranks, *arguments):
    """What each of so many processes left."""
    assert in_processes(_train, ranks, *arguments) == [0] * ranks
    folder = arguments[1]
    return [saved(folder / f"rank{rank}") for rank in range(ranks)]


def batches(parts):
    """(epoch, the names of a global batch, in its order) of every step."""
    steps = zip(*(part.seen for part in parts), strict=True)
    return [
        (
            step[0][0],
            [name for names in zip(*(ids for _, ids in step)) for name in names],
        )
        for step in steps
    ]


def test_the_same_global_batch_goes_on_exactly(corpus, tmp_path):
    """2 ranks, then 1, then 4: the same batches, weights and losses as unbroken."""
    options = {"dropout": 0.0, "opt_class": partial(torch.optim.SGD, momentum=0.9)}
    options["factor"] = 3
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    (unbroken,) = train(1, corpus, whole, None, {**options, "batch_size": 4})
    first = train(2, corpus, parts, (1, 3), {**options, "batch_size": 2})
    second = train(1, corpus, parts, (1, "validation"), {**options, "batch_size": 4})
    third = train(4, corpus, parts, None, {**options, "batch_size": 1})
    assert batches(first) + batches(second) + batches(third) == batches([unbroken])
    for name, expected in unbroken.state.items():
        if name != "random":
            found = third[0].state[name]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    losses = [losses_of(folder / "train_log.txt") for folder in (whole, parts)]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    said = [message for part in (*first, *second, *third) for message in part.messages]
    assert not [message for message in said if "come again" in message]
    new = [message for message in said if "no random state" in message]
    assert new == [
        "rank(s) 1, 2, 3: no random state in the checkpoint, seeded from seed, epoch, "
        "step and rank"
    ]


def names_of(parts):
    """All names, in the order of training."""
    return [name for _, names in batches(parts) for name in names]


def losses_of(log):
    """Training loss of each line of a FileTrainLogger."""
    return [
        float(line.split("train loss: ")[1].split(",")[0])
        for line in log.read_text().splitlines()
    ]


@pytest.mark.parametrize(
    # left after 20 utterances; the first that comes again with groups of so many steps
    ("factor", "first"),
    [(1, 18), (2, 12)],
)
def test_another_global_batch_leaves_no_utterance_out(corpus, tmp_path, factor, first):
    options = {"batch_size": 2, "epochs": 1}
    order = names_of(train(1, corpus, tmp_path / "1", None, options))
    before = train(2, corpus, tmp_path / "2", (1, 5), options)
    after = train(3, corpus, tmp_path / "2", None, {**options, "factor": factor})
    assert names_of(before) == order[:20]
    assert names_of(after) == order[first:24]
    told = [m for part in after for m in part.messages if "come again" in m]
    assert len(told) == 1
    assert told[0].startswith(
        "global batch 4 = 2 × 2 process(es) × accumulation 1 before"
    )
    assert told[0].endswith(
        f"epoch 1, stopped after 5 of 7 steps, continues after {first // 6} of 4: "
        f"{20 - first} utterance(s) come again"
    )
    plan = [m for m in after[0].messages if "optimiser steps" in m]
    assert f"optimiser steps: {4 // factor} per epoch" in plan[0]


def test_new_ranks_have_noise_of_their_own_and_always_the_same(corpus, tmp_path):
    options = {"batch_size": 2, "epochs": 1}
    train(1, corpus, tmp_path / "a", (1, 9), options)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ends = [train(2, corpus, tmp_path / name, None, options) for name in "ab"]
    for one, other in zip(*ends):
        assert_same(one.state, other.state)
    assert not torch.equal(*(part.state["random"] for part in ends[0]))


# ---- failures ------------------------------------------------------------------------

REASONS = {
    "nan": "loss is nan in epoch 1, step 4, expected a finite value",
    "full": "checkpoint not written (No space left on device)",
    "ours": "ZeroDivisionError: division by zero",
}


class FailsOnOne(SpeakerBrain):
    """Rank 1 fails in step 4."""

    how = None

    def compute_objectives(self, *arguments):
        loss = super().compute_objectives(*arguments)
        if self.rank == 1 and self.step == 4:
            if self.how == "nan":
                return loss * math.nan
            if self.how == "full":
                torch.save = _fill_the_disk
            if self.how == "ours":
                1 / 0  # noqa: B018
        if self.rank == 0 and self.step == 4 and self.how == "ours":
            os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does then
        return loss


def _fill_the_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def _fail(corpus, folder, how):
    errors._SECONDS_TO_BE_ENDED = 0  # nobody does it here
    with (
        open(folder / f"stderr{os.environ['RANK']}", "w") as file,
        contextlib.redirect_stderr(file),
    ):
        brain, loader = tiny_run(
            *(corpus, folder),
            brain=FailsOnOne,
            batch_size=2,
            epochs=1,
            steps_between_checkpoints=2,
        )
        brain.how = how
        errors.command_line(brain.fit)(brain.hparams.epoch_counter, loader)


@pytest.mark.parametrize("how", REASONS)
def test_a_rank_that_fails_says_why_and_all_end(corpus, tmp_path, how):
    codes = in_processes(_fail, 2, corpus, tmp_path, how)
    assert codes == [143 if how == "ours" else 1, 1]
    culprit, other = ((tmp_path / f"stderr{rank}").read_text() for rank in (1, 0))
    last = culprit.splitlines()[-1]
    assert last.startswith("error: rank 1: ")
    assert REASONS[how] in last
    assert ("Traceback" in culprit) == (how == "ours")
    said = [line for line in other.splitlines() if line]
    if how == "ours":
        assert said == [
            "stopped by SIGTERM: another process has ended; checkpoints are as before"
        ]
    else:
        lost = "lost the other processes; the one that "
        if how == "nan":  # which the exchange of gradients has brought to all
            lost = "gradient of speaker_encoder is nan in epoch 1, step 4"
        assert len(said) == 1
        assert said[0].startswith(f"error: rank 0: {lost}")
    # the last checkpoint is that of step 2, and whole
    assert len(list((tmp_path / "save").glob("CKPT*"))) == 1
    if how == "full":
        after = train(2, corpus, tmp_path, None, {"batch_size": 2, "epochs": 1})
        assert len(after[0].seen) == 5
        assert {path.name[:5] for path in (tmp_path / "save").iterdir()} == {"CKPT+"}
