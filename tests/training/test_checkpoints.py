"""Checkpoints: whole or absent, complete, small, and named when damaged."""

import os
import pickle
import random
import resource
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import assert_same, start, state_of, tiny_run, train

from speechbrain_ext.training.checkpoints import (
    AtomicCheckpointer,
    RandomState,
    TrainedState,
)
from speechbrain_ext.utils.errors import InputError, command_line

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = (
    *("CKPT.yaml", "brain.ckpt", "classifier.ckpt", "epoch_counter.ckpt"),
    *("optimizer.ckpt", "random_state.ckpt", "sampler.ckpt", "speaker_encoder.ckpt"),
)


@pytest.fixture(scope="module")
def half_done(corpus, tmp_path_factory):
    """The folder of a run whose epoch 1 of 3 is done."""
    folder = tmp_path_factory.mktemp("half")
    train(*tiny_run(corpus, folder, epochs=1))
    return folder


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """The final state of 2 epochs."""
    return train(*tiny_run(corpus, tmp_path_factory.mktemp("unbroken")))


def checkpoints(folder):
    return sorted((folder / "save").iterdir())


# ---- what is in them -----------------------------------------------------------------


def test_all_that_a_run_depends_on_is_in_a_checkpoint(half_done):
    (checkpoint,) = checkpoints(half_done)
    assert sorted(p.name for p in checkpoint.iterdir()) == sorted(FILES)


def test_frozen_weights_are_left_out_and_the_rest_is_in(corpus, tmp_path):
    brain, loader = tiny_run(corpus, tmp_path, lora=True, epochs=1)
    train(brain, loader)
    (checkpoint,) = checkpoints(tmp_path)
    names = set(torch.load(checkpoint / "speaker_encoder.ckpt", weights_only=True))
    module = brain.modules.speaker_encoder
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert any("linear_q.base_layer.weight" in name for name in frozen)
    assert names == set(module.state_dict()) - frozen
    for part in ("lora_A", "lora_B", "head.pooling", "running_mean"):
        assert any(part in name for name in names)
    kept = {n: p for n, p in module.state_dict().items() if n not in frozen}
    size = sum(p.numel() * p.element_size() for p in kept.values())
    assert (checkpoint / "speaker_encoder.ckpt").stat().st_size < size + 400 * len(kept)
    again, _ = tiny_run(corpus, tmp_path, lora=True, epochs=1)
    again.recover_best()
    assert_same(again.modules.state_dict(), brain.modules.state_dict())


def test_a_state_of_another_module_is_refused(tmp_path):
    TrainedState(torch.nn.Linear(2, 3)).save(tmp_path / "x.ckpt")
    other = torch.nn.Linear(3, 3)
    before = other.weight.clone()
    with pytest.raises(InputError, match=r"x\.ckpt: weights do not fit.*wrong shape"):
        TrainedState(other).load(tmp_path / "x.ckpt", True)
    assert torch.equal(other.weight, before)
    with pytest.raises(InputError, match="missing"):
        TrainedState(torch.nn.BatchNorm1d(3)).load(tmp_path / "x.ckpt", True)


def test_random_numbers_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1)

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        np.random.randn()  # leaves half a pair in numpy's state
        RandomState().save(tmp_path / "random_state.ckpt")
        expected = draw()
        draw()
        RandomState().load(tmp_path / "random_state.ckpt", True)
        assert draw() == expected
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def test_a_new_rank_is_seeded_by_place_and_number(tmp_path, monkeypatch):
    def draw(rank, seed=1, epoch=2, step=3):
        sampler = SimpleNamespace(seed=seed, epoch=epoch, step_done=step)
        monkeypatch.setenv("RANK", str(rank))
        RandomState(sampler).load(tmp_path / "random_state.ckpt", False)
        return random.random(), np.random.rand(), float(torch.rand(1))

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        RandomState().save(tmp_path / "random_state.ckpt")
        places = [(1,), (2,), (1, 2), (1, 1, 3), (1, 1, 2, 4)]
        first = [draw(*place) for place in places]
        assert all(len(set(numbers)) == len(places) for numbers in zip(*first))
        assert [draw(*place) for place in places] == first
        assert draw(0) == draw(0, seed=5)  # which is in the checkpoint
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


# ---- whole or absent -----------------------------------------------------------------


class Probe:
    """A recoverable that does something while it is saved."""

    def __init__(self, action):
        self.action = action

    def save(self, path):
        self.action()
        path.write_text("x")

    def add_to(self, checkpointer):
        checkpointer.add_recoverable(
            "zz",
            self,
            custom_load_hook=lambda *_: None,
            custom_save_hook=Probe.save,
        )


def test_nothing_is_seen_before_it_is_whole(tmp_path):
    checkpointer = AtomicCheckpointer(tmp_path, {"random": RandomState()})
    seen = []
    Probe(lambda: seen.append(checkpointer.list_checkpoints())).add_to(checkpointer)
    saved = checkpointer.save_checkpoint(meta={"a": 1})
    assert seen == [[]]
    (found,) = checkpointer.list_checkpoints()
    assert found.path == saved.path
    assert found.meta == saved.meta
    assert found.paramfiles == saved.paramfiles
    assert all(path.is_file() for path in saved.paramfiles.values())


def test_leftovers_of_killed_runs_are_cleaned_and_never_loaded(tmp_path):
    AtomicCheckpointer(tmp_path, {"random": RandomState()}).save_checkpoint()
    (whole,) = tmp_path.iterdir()
    shutil.copytree(whole, tmp_path / ".partial+CKPT+2030-01-01+00-00-00+00")
    shutil.copytree(whole, tmp_path / "CKPT+2030-01-01+00-00-00+00")
    (tmp_path / "CKPT+2030-01-01+00-00-00+00/CKPT.yaml").unlink()
    again = AtomicCheckpointer(tmp_path, {"random": RandomState()})
    assert again.find_checkpoint().path == whole
    assert list(tmp_path.iterdir()) == [whole]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 1")]
)
def test_a_failed_save_leaves_the_older_one_and_nothing_else(tmp_path, error):
    checkpointer = AtomicCheckpointer(tmp_path, {"random": RandomState()})
    checkpointer.save_checkpoint()
    before = list(tmp_path.rglob("*"))

    def fail():
        raise error

    Probe(fail).add_to(checkpointer)
    with pytest.raises(InputError, match="checkpoint not written") as caught:
        checkpointer.save_and_keep_only()
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("*")) == before


def test_a_mistake_of_ours_is_not_hidden(tmp_path):
    checkpointer = AtomicCheckpointer(tmp_path, {"odd": object()})
    with pytest.raises(RuntimeError, match="Don't know how to save"):
        checkpointer.save_checkpoint()
    assert list(tmp_path.iterdir()) == []


@command_line
def _train_on_a_full_disk(corpus, folder):
    torch.set_num_threads(1)
    brain, loader = tiny_run(corpus, folder, steps_between_checkpoints=2)
    start_batch = brain.on_fit_batch_start

    def fill(*args):
        start_batch(*args)
        if brain.hparams.epoch_counter.current == 2 and brain.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))

    brain.on_fit_batch_start = fill
    train(brain, loader)


def test_a_full_disk_stops_the_run_and_it_can_go_on(corpus, tmp_path, unbroken):
    stderr = tmp_path / "err"
    process = start(_train_on_a_full_disk, corpus, tmp_path, stderr=stderr)
    process.join(60)
    assert process.exitcode == 1
    lines = stderr.read_text().splitlines()
    assert "Traceback" not in stderr.read_text()
    assert lines[-1].startswith(f"error: {tmp_path}/save: checkpoint not written (")
    assert lines[-1].endswith("make room and run the same command again")
    names = [path.name for path in checkpoints(tmp_path)]
    assert len(names) == 2  # epoch 1, and step 2 of epoch 2
    assert all(name.startswith("CKPT+") for name in names)
    assert_same(train(*tiny_run(corpus, tmp_path)), unbroken)


class _Killer:
    """A module of which saving kills the process."""

    def __init__(self, number):
        self.left = number

    def __call__(self):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def _train_and_be_killed_while_saving(corpus, folder, number):
    brain, loader = tiny_run(corpus, folder, steps_between_checkpoints=2)
    Probe(_Killer(number)).add_to(brain.checkpointer)
    train(brain, loader)


@pytest.mark.parametrize("number", [1, 4, 8])
def test_killed_while_saving_it_goes_on_from_the_one_before(
    corpus, tmp_path, unbroken, number
):
    process = start(_train_and_be_killed_while_saving, corpus, tmp_path, number)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert any(p.name.startswith(".partial") for p in checkpoints(tmp_path))
    brain, loader = tiny_run(corpus, tmp_path)
    found = brain.checkpointer.find_checkpoint()
    assert (found is None) == (number == 1)
    assert_same(train(brain, loader), unbroken)
    assert all(p.name.startswith("CKPT") for p in checkpoints(tmp_path))


# ---- damaged -------------------------------------------------------------------------


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def scramble(path):
    size = path.stat().st_size
    path.write_bytes(np.random.default_rng(0).bytes(size))


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in FILES
        for damage in (empty, truncate, scramble, remove)
        # without its meta file it is no checkpoint; half of one digit is nothing
        if (name, damage)
        not in (("CKPT.yaml", remove), ("epoch_counter.ckpt", truncate))
    ],
)
def test_a_damaged_checkpoint_is_named(corpus, half_done, tmp_path, name, damage):
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    (checkpoint,) = checkpoints(folder)
    damage(checkpoint / name)
    with pytest.raises(InputError) as caught:
        train(*tiny_run(corpus, folder))
    assert str(checkpoint / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_damaged_one_it_goes_on_from_the_one_before(
    corpus, tmp_path, unbroken
):
    brain, loader = tiny_run(corpus, tmp_path)
    brain.validate = lambda progress: {
        "EER": 30.0 * brain.hparams.epoch_counter.current
    }
    train(brain, loader)
    _best, second = checkpoints(tmp_path)
    truncate(second / "optimizer.ckpt")
    with pytest.raises(InputError, match="delete its folder to go on from the one"):
        train(*tiny_run(corpus, tmp_path))
    shutil.rmtree(second)
    assert_same(train(*tiny_run(corpus, tmp_path)), unbroken)


class Malice:
    def __reduce__(self):
        return os.system, ("touch malice",)


@pytest.mark.parametrize("name", ["speaker_encoder", "optimizer", "random_state"])
def test_a_checkpoint_is_never_run_as_code(
    corpus, half_done, tmp_path, name, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    (checkpoint,) = checkpoints(folder)
    (checkpoint / f"{name}.ckpt").write_bytes(pickle.dumps(Malice()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{name}.ckpt"):
        train(*tiny_run(corpus, folder))
    assert not (tmp_path / "malice").exists()


def test_a_run_with_another_model_is_refused(corpus, half_done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    with pytest.raises(InputError, match=r"speaker_encoder\.ckpt: weights do not fit"):
        train(*tiny_run(corpus, folder, lora=True))


def test_recoverables_are_loaded_before_anything_is_trained(corpus, half_done):
    brain, _ = tiny_run(corpus, half_done, epochs=1)
    brain.on_fit_start()
    (checkpoint,) = checkpoints(half_done)
    saved = torch.load(checkpoint / "classifier.ckpt", weights_only=True)
    assert torch.equal(state_of(brain)["classifier.weight"], saved["weight"])
    assert brain.optimizer_step == 7
