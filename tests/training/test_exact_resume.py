"""Stopped at any moment, a run ends bitwise as if unbroken.

Both halves run on one machine, in one thread, in batches of the same shapes: the very
products of the unbroken run, so their last bits are promised, whatever they are.
"""

import logging
import os
import signal
from functools import partial

import pytest
import torch
from tiny_training import StoppedBrain, assert_same, tiny_run, train, train_in_pieces

from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 7  # of an epoch of the tiny corpus
EVERY_STEP = {(epoch, step) for epoch in (1, 2) for step in range(1, STEPS + 1)}
# With groups of 3, 3 and 1 steps each place in a group, and an epoch's ends; what is
# not here, test_stopped_in_every_single_step has.
PLACES = {
    1: [(1, 1), (1, 4), (1, 7), (2, 1), (2, 7)],
    3: [(1, 1), (1, 2), (1, 3), (1, 4), (1, 6), (1, 7), (2, 1), (2, 3), (2, 7)],
}


def stop_and_continue(corpus, folder, stop_at, **options):
    """Stop once, start again → final state."""
    brain, loader = tiny_run(corpus, folder, brain=StoppedBrain, **options)
    brain.stop_at = stop_at
    with pytest.raises(SystemExit) as stopped:
        train(brain, loader)
    assert stopped.value.code == 143
    assert len(list((folder / "save").iterdir())) <= 3
    brain, loader = tiny_run(corpus, folder, **options)
    return train(brain, loader)


@pytest.mark.parametrize("factor", [1, 3])
def test_stopped_in_any_place_it_ends_as_if_unbroken(corpus, tmp_path, factor):
    unbroken = train(*tiny_run(corpus, tmp_path / "unbroken", factor=factor))
    for stop_at in PLACES[factor]:
        folder = tmp_path / "-".join(map(str, stop_at))
        resumed = stop_and_continue(corpus, folder, stop_at, factor=factor)
        assert_same(resumed, unbroken)


@pytest.mark.parametrize("factor", [1, 3])
def test_stopped_in_every_single_step(corpus, tmp_path, factor):
    unbroken = train(*tiny_run(corpus, tmp_path / "unbroken", factor=factor))
    seen = {*PLACES[factor]}
    for after in range(1, factor + 1):  # a stop waits for the end of its group
        run = partial(tiny_run, corpus, tmp_path / str(after), factor=factor)
        resumed, places = train_in_pieces(run, after)
        seen |= {*places}
        if places[-1] == (2, STEPS):  # nothing was left to train, nor to load
            resumed["random"] = unbroken["random"]
        assert_same(resumed, unbroken)
    assert seen == EVERY_STEP


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("factor", [1, 3])
def test_stopped_in_validation(corpus, tmp_path, epoch, factor):
    unbroken = train(*tiny_run(corpus, tmp_path / "unbroken", factor=factor))
    stop_at = (epoch, "validation")
    resumed = stop_and_continue(corpus, tmp_path / "a", stop_at, factor=factor)
    assert_same({**resumed, "random": unbroken["random"]}, unbroken)
    if epoch == 1:  # otherwise nothing was left to train, nor to load
        assert torch.equal(resumed["random"], unbroken["random"])


@pytest.mark.parametrize("stop_at", [(1, 4), (1, 7), (2, 1)])
@pytest.mark.parametrize("lora", [False, True])
def test_stopped_with_workers_and_with_lora(corpus, tmp_path, stop_at, lora):
    options = {"workers": 2, "lora": lora, "factor": 3}
    unbroken = train(*tiny_run(corpus, tmp_path / "unbroken", **options))
    resumed = stop_and_continue(corpus, tmp_path / "a", stop_at, **options)
    assert_same(resumed, unbroken)


def test_interval_checkpoints_wait_for_the_end_of_a_group(corpus, tmp_path):
    brain, loader = tiny_run(
        corpus, tmp_path, brain=StoppedBrain, factor=3, steps_between_checkpoints=2
    )
    seen = []
    save = brain._save_intra_epoch_ckpt
    brain._save_intra_epoch_ckpt = lambda: (seen.append(brain.step), save())
    train(brain, loader)
    assert seen == [3, 6, 3, 6]  # 7 ends the epoch: one step after the last


def test_more_epochs_go_on_from_the_last(corpus, tmp_path):
    unbroken = train(*tiny_run(corpus, tmp_path / "unbroken"))
    train(*tiny_run(corpus, tmp_path / "a", epochs=1))
    assert_same(train(*tiny_run(corpus, tmp_path / "a")), unbroken)


def test_it_says_where_it_goes_on_and_how_to_continue(corpus, tmp_path, caplog, capfd):
    caplog.set_level(logging.INFO)
    run = tiny_run(corpus, tmp_path, brain=StoppedBrain, noprogressbar=False)
    run[0].stop_at = (2, 3)
    with pytest.raises(SystemExit):
        train(*run)
    assert "starting anew" in caplog.text
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == (
        "stopped by SIGTERM: epoch 2 after step 3 of 7; run the same command again to "
        "continue"
    )
    train(*tiny_run(corpus, tmp_path))
    assert "epoch 2, 3 of 7 steps done, 10 optimiser steps" in caplog.text


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has none")
def test_sigusr1_stops_as_sigterm_does(corpus, tmp_path, capfd):
    class Warned(StoppedBrain):
        def on_fit_batch_end(self, *args):
            os.kill(os.getpid(), signal.SIGUSR1)

    run = tiny_run(corpus, tmp_path, brain=Warned)
    with pytest.raises(SystemExit) as stopped:
        train(*run)
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1: epoch 1 after step 1" in capfd.readouterr().err
    train(*tiny_run(corpus, tmp_path))


def test_handlers_are_as_before_afterwards(corpus, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run = tiny_run(corpus, tmp_path, brain=StoppedBrain)
    run[0].stop_at = (1, 2)
    with pytest.raises(SystemExit):
        train(*run)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_asked_twice_it_stops_at_once(corpus, tmp_path):
    class Impatient(StoppedBrain):
        def on_fit_batch_end(self, *args):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(*tiny_run(corpus, tmp_path, brain=Impatient))


def test_another_order_in_mid_epoch_is_refused(corpus, tmp_path):
    run = tiny_run(corpus, tmp_path, brain=StoppedBrain)
    run[0].stop_at = (1, 2)
    with pytest.raises(SystemExit):
        train(*run)
    with pytest.raises(InputError, match=r"step 2 of an epoch with .*'seed': 7"):
        train(*tiny_run(corpus, tmp_path, seed=8))


@pytest.mark.parametrize("stop_at", [(1, 7), (1, "validation"), (2, 1)])
def test_groups_of_another_size_begin_with_their_first_step(
    corpus, tmp_path, stop_at, caplog
):
    """Where a group is left in the middle it is taken again, not half of it."""
    run = tiny_run(corpus, tmp_path, brain=StoppedBrain)
    run[0].stop_at = stop_at
    with pytest.raises(SystemExit):
        train(*run)
    brain, loader = tiny_run(corpus, tmp_path, factor=3)
    train(brain, loader)
    told = [message for message in caplog.messages if "global batch 4 =" in message]
    assert len(told) == 1
    # 7 before, or 8 with the step that is taken again; 3 in each whole epoch
    assert brain.optimizer_step == {1: 7 + 3, 2: 8 + 3}[stop_at[0]]
