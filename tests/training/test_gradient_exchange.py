"""Processes exchange gradients once per optimiser step, not in every micro-batch."""

import os

import pytest
import torch
from tiny_training import in_processes, saved, tiny_run
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from speechbrain_ext.training.brain import SpeakerBrain

pytestmark = pytest.mark.usefixtures("one_thread")


class Counted(SpeakerBrain):
    """Keeps how many all-reduces of gradients each micro-batch took."""

    def _wrap_distributed(self):
        super()._wrap_distributed()
        self.exchanges = []
        for module in self.modules.values():
            assert isinstance(module, DistributedDataParallel)
            module.register_comm_hook(self, _counted)

    def fit_batch(self, batch):
        self.exchanges.append(0)
        return super().fit_batch(batch)


def _counted(brain, bucket):
    brain.exchanges[-1] += 1
    return allreduce_hook(None, bucket)


def _train(corpus, folder, factor):
    options = {"batch_size": 2, "epochs": 1, "factor": factor, "validate": False}
    brain, loader = tiny_run(corpus, folder, brain=Counted, **options)
    brain.fit(brain.hparams.epoch_counter, loader)
    torch.save({"exchanges": brain.exchanges}, folder / f"rank{os.environ['RANK']}")


@pytest.mark.parametrize(
    # of 7 micro-batches; encoder and classifier are a bucket each
    ("factor", "expected"),
    [(1, [2] * 7), (3, [0, 0, 2, 0, 0, 2, 2])],
)
def test_gradients_are_exchanged_where_a_step_is_taken(
    corpus, tmp_path, factor, expected
):
    assert in_processes(_train, 2, corpus, tmp_path, factor) == [0, 0]
    for rank in range(2):
        assert saved(tmp_path / f"rank{rank}").exchanges == expected
