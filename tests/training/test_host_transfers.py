"""A training step looks at the numbers of its device once, whatever its terms are."""

from functools import partial

import pytest
import torch
from tiny_distillation import distill_run
from tiny_training import tiny_run, train
from torch.utils._python_dispatch import TorchDispatchMode

from speechbrain_ext.training import resumable
from speechbrain_ext.training.brain import SpeakerBrain

pytestmark = pytest.mark.usefixtures("one_thread")

aten = torch.ops.aten
# What waits for a GPU: a number of it, or a shape that depends on its numbers.
WAITING = {
    *(aten._local_scalar_dense.default, aten.is_nonzero.default),
    *(aten.nonzero.default, aten.masked_select.default, aten._unique2.default),
    *(aten.repeat_interleave.Tensor, aten.equal.default),
}


class Waits(TorchDispatchMode):
    """Counts the operations that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function is aten.index.Tensor and any(
            place is not None and place.dtype == torch.bool for place in args[1]
        )
        if function in WAITING or by_mask:
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class Watched(SpeakerBrain):
    """Counts in every step."""

    steps = ()

    def fit_batch(self, batch):
        with Waits() as waits:
            loss = super().fit_batch(batch)
        self.steps = [*self.steps, waits.seen]
        return loss


RUNS = {
    "stage": (tiny_run, {}),
    "LoRA, accumulation": (tiny_run, {"lora": True, "factor": 2}),
    "distillation, pruning": (distill_run, {}),
    "hybrid pruning": (distill_run, {"hybrid": True}),
}
# one call for all weights, as on a GPU; on a CPU torch's default is one for each
FUSED = partial(torch.optim.AdamW, lr=0.01, fused=True)


@pytest.mark.parametrize("name", RUNS)
def test_numbers_are_read_together_once_a_step(name, corpus, tmp_path, monkeypatch):
    reads = []
    read = resumable.read_together
    monkeypatch.setattr(
        resumable, "read_together", lambda values: reads.append(1) or read(values)
    )
    run, options = RUNS[name]
    brain, loader = run(corpus, tmp_path, brain=Watched, opt_class=FUSED, **options)
    train(brain, loader)
    assert len(reads) == len(brain.steps) > 4
    _, *steps = brain.steps  # constants are made in the first one
    assert steps == [[]] * len(steps)
