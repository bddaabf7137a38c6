"""Distillation-pruning runs of a second, beside the stages of ``tiny_training``."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger
from tiny_training import all_pairs, manifest_of, tiny_config

from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pruning import Budget, add_gates
from speechbrain_ext.schedules import Constant
from speechbrain_ext.training.checkpoints import AtomicCheckpointer
from speechbrain_ext.training.terms import DistillPruneBrain, read_steps

STEPS = 7  # of an epoch of the tiny corpus


def steps_of(folder):
    """The run's table as arrays."""
    columns = read_steps(folder / "steps.csv").items()
    return SimpleNamespace(**{name: np.array(values) for name, values in columns})


def tiny_model(dropout=0.1, seed=3):
    """A speaker encoder with random weights: 2 layers × 16."""
    torch.manual_seed(seed)
    encoder = W2VBertEncoder(tiny_config(dropout, layers=2))
    return SpeakerEncoder(encoder, AdapterMFA(16, encoder.n_states, 8, 16))


def distill_run(
    corpus,
    folder,
    *,
    brain=DistillPruneBrain,
    factor=1,
    batch_size=4,
    epochs=2,
    workers=0,
    dropout=0.1,
    sparsity=0.5,
    warmup_steps=8,
    validate=True,
    steps_between_checkpoints=0,
    crops=(0.4, 0.6),
    seed=7,
    **hparams,
):
    """A Brain and its loader; ``sparsity`` None: distillation alone.

    28 recordings of 4 speakers train, 14 of 2 others validate.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    teacher, student = tiny_model(dropout), tiny_model(dropout)
    student.train()
    budget = None
    if sparsity is not None:
        add_gates(student.encoder)
        budget = Budget(student.encoder, sparsity, warmup_steps=warmup_steps)
    manifest = manifest_of(corpus, range(4))
    sampler = CropBatchSampler(
        *(manifest.labels, batch_size, crops),
        seed=seed,
        rank=rank,
        world_size=world,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed + rank)
    values = {
        "epoch_counter": EpochCounter(epochs),
        "lr_schedule": Constant(0.01),
        "gate_lr": 0.1,
        "multiplier_lr": 0.2,
        "train_logger": FileTrainLogger(folder / "train_log.txt"),
        "valid_batch_seconds": 3.0,
        "max_grad_norm": 1.0,
        "grad_accumulation_factor": factor,
        "ckpt_interval_steps": steps_between_checkpoints,
        "noprogressbar": True,
        **hparams,
    }
    opt_class = values.pop(
        "opt_class", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)
    )
    made = brain(
        teacher=teacher.encoder,
        student=student,
        budget=budget,
        step_log=folder / "steps.csv",
        sampler=sampler,
        validation=all_pairs(manifest_of(corpus, (4, 5))) if validate else None,
        opt_class=opt_class,
        hparams=values,
        run_opts={"device": "cpu", "distributed_backend": "gloo"},
        checkpointer=AtomicCheckpointer(folder / "save"),
    )
    return made, make_loader(TrainingSet(manifest, seed), sampler, workers)


class StoppedBrain(DistillPruneBrain):
    """Gets SIGTERM in the middle of (epoch, step), or in an epoch's validation."""

    stop_at = None

    def compute_objectives(self, *arguments):
        self._stop(self.step)
        return super().compute_objectives(*arguments)

    def validate(self, progress=True, model=None):
        self._stop("validation")
        return super().validate(progress, model)

    def _stop(self, place):
        if self.stop_at == (self.hparams.epoch_counter.current, place):
            os.kill(os.getpid(), signal.SIGTERM)
