"""Distillation and pruning, with a teacher or a task, stopped at any moment, and on
several processes."""

import os
import signal
from functools import partial

import pytest
import torch
from tiny_distillation import STEPS, distill_run, steps_of
from tiny_training import (
    StoppedBrain,
    assert_same,
    in_processes,
    saved,
    state_of,
    train,
    train_in_pieces,
)

from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.training.brain import SpeakerBrain

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- stops ---------------------------------------------------------------------------


def stop_and_continue(corpus, folder, stop_at, **options):
    """Stop once, start again → final state and table."""
    brain, loader = distill_run(corpus, folder, brain=StoppedBrain, **options)
    brain.stop_at = stop_at
    with pytest.raises(SystemExit) as stopped:
        train(brain, loader)
    assert stopped.value.code == 143
    return train(*distill_run(corpus, folder, **options)), read_table(folder)


def read_table(folder):
    return (folder / "steps.csv").read_text()


@pytest.mark.parametrize("factor", [1, 3])
def test_stopped_in_any_place_it_ends_as_if_unbroken(corpus, tmp_path, factor):
    unbroken = train(*distill_run(corpus, tmp_path / "unbroken", factor=factor))
    table = read_table(tmp_path / "unbroken")
    assert any("budget.lambda1" in name for name in unbroken)
    assert any("log_alpha" in name for name in unbroken)
    # once; what is not here is below, as in test_exact_resume.py, whose brain this is
    seen = {1: {(1, 4)}, 3: {(1, 2), (2, 3)}}[factor]
    for stop_at in sorted(seen):
        folder = tmp_path / "-".join(map(str, stop_at))
        resumed, found = stop_and_continue(corpus, folder, stop_at, factor=factor)
        assert_same(resumed, unbroken)
        assert found == table
    for after in range(1, factor + 1):  # again and again, in every single step
        folder = tmp_path / f"pieces of {after}"
        run = partial(distill_run, corpus, folder, factor=factor)
        resumed, places = train_in_pieces(run, after)
        seen |= {*places}
        if places[-1] == (2, STEPS):
            resumed["random"] = unbroken["random"]
        assert_same(resumed, unbroken)
        assert read_table(folder) == table
    assert seen == {(e, step) for e in (1, 2) for step in range(1, STEPS + 1)}


@pytest.mark.parametrize("ramp", ["cosine", "sigmoid"])
def test_hybrid_pruning_stopped_again_and_again(corpus, tmp_path, ramp):
    """λ, the ramp, gates and classifier go on from every single step."""
    options = {"hybrid": True, "ramp": ramp, "clamp": ramp == "cosine", "factor": 2}
    unbroken = train(*distill_run(corpus, tmp_path / "unbroken", **options))
    steps = steps_of(tmp_path / "unbroken")
    assert len(set(steps.target.tolist())) == len(steps.target) == 8
    assert (steps.lambda1.min() < 0) == (ramp != "cosine")
    run = partial(distill_run, corpus, tmp_path / "pieces", **options)
    resumed, places = train_in_pieces(run, 1)
    if places[-1] == (2, STEPS):
        resumed["random"] = unbroken["random"]
    assert_same(resumed, unbroken)
    assert read_table(tmp_path / "pieces") == read_table(tmp_path / "unbroken")


@pytest.mark.parametrize("options", [{"workers": 2}, {"sparsity": None}])
def test_stopped_in_validation(corpus, tmp_path, options):
    unbroken = train(*distill_run(corpus, tmp_path / "unbroken", **options))
    resumed, found = stop_and_continue(
        corpus, tmp_path / "a", (1, "validation"), **options
    )
    assert_same(resumed, unbroken)
    assert found == read_table(tmp_path / "unbroken")


def test_steps_that_no_checkpoint_holds_are_taken_and_written_again(corpus, tmp_path):
    class Dies(SpeakerBrain):
        def compute_objectives(self, *arguments):
            if self.optimizer_step == 11:
                raise KeyboardInterrupt  # no checkpoint, as when it is killed
            return super().compute_objectives(*arguments)

    unbroken = train(*distill_run(corpus, tmp_path / "unbroken"))
    options = {"steps_between_checkpoints": 3}
    with pytest.raises(KeyboardInterrupt):
        train(*distill_run(corpus, tmp_path / "a", brain=Dies, **options))
    assert len(read_table(tmp_path / "a").splitlines()) == 12
    with open(tmp_path / "a/steps.csv", "a") as file:
        file.write("12,2,-0.5")  # killed while writing
    assert_same(train(*distill_run(corpus, tmp_path / "a", **options)), unbroken)
    assert read_table(tmp_path / "a") == read_table(tmp_path / "unbroken")


# ---- several processes ---------------------------------------------------------------


class Drawn(SpeakerBrain):
    """Keeps one gate's draw of every step; rank 1 may get a signal."""

    stop_at = None

    def on_fit_start(self):
        super().on_fit_start()
        self.draws = []
        _, gate = gated_groups(self.embedder().encoder)[0]
        sample = gate.units.sample

        def keep():
            self.draws.append(sample())
            return self.draws[-1]

        gate.units.sample = keep

    def compute_objectives(self, *arguments):
        here = self.hparams.epoch_counter.current, self.step
        if self.rank == 1 and here == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().compute_objectives(*arguments)


def _train_or_stop(corpus, folder, stop_at):
    options = {"brain": Drawn, "batch_size": 2, "gate_lr": 0.5}
    brain, loader = distill_run(corpus, folder, **options)
    brain.stop_at = stop_at
    train(brain, loader)
    values = {"state": state_of(brain), "draws": [d.detach() for d in brain.draws]}
    torch.save(values, folder / f"rank{os.environ['RANK']}")


def test_ranks_stay_equal_with_gate_noise_of_their_own(corpus, tmp_path):
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    for folder in (unbroken, stopped):
        folder.mkdir()
    assert in_processes(_train_or_stop, 2, corpus, unbroken, None) == [0, 0]
    one, two = (saved(unbroken / f"rank{rank}") for rank in range(2))
    expected = [{**run.state} for run in (one, two)]
    for run in (one, two):
        run.state.pop("random")
    assert_same(one.state, two.state)
    assert len(one.draws) == len(two.draws) == 2 * STEPS
    assert not any(torch.equal(a, b) for a, b in zip(one.draws, two.draws))
    assert steps_of(unbroken).step.tolist() == list(range(1, 2 * STEPS + 1))
    # one rank is told to stop, both do, and both go on
    codes = in_processes(_train_or_stop, 2, corpus, stopped, (2, 3))
    assert codes == [143, 143]
    assert in_processes(_train_or_stop, 2, corpus, stopped, None) == [0, 0]
    for rank in range(2):
        assert_same(saved(stopped / f"rank{rank}").state, expected[rank])
    assert read_table(stopped) == read_table(unbroken)
