"""Runs of a second that distil or prune, beside the stages of ``tiny_training``."""

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tiny_training import manifest_of, tiny_brain, tiny_config

from speechbrain_ext import pruning
from speechbrain_ext.data.manifest import write_manifest
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.schedules import Constant
from speechbrain_ext.training.brain import SpeakerBrain, read_steps
from speechbrain_ext.training.data import TrainingData
from speechbrain_ext.training.distillation import Distillation
from speechbrain_ext.training.terms import Budget, Classification

STEPS = 7  # of an epoch of the tiny corpus
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0)


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
    brain=SpeakerBrain,
    factor=1,
    batch_size=4,
    epochs=2,
    workers=0,
    dropout=0.1,
    hybrid=False,
    sparsity=0.5,
    warmup_steps=8,
    ramp="linear",
    clamp=False,
    validate=True,
    steps_between_checkpoints=0,
    crops=(0.4, 0.6),
    seed=7,
    **hparams,
):
    """A Brain and its loader; ``sparsity`` None: distillation alone.

    ``hybrid``: no teacher, the student learns its speakers.

    28 recordings of 4 speakers train, 14 of 2 others validate.
    """
    rank = int(os.environ.get("RANK", 0))
    student = tiny_model(dropout).train()
    rates = {
        n: hparams.pop(n, v) for n, v in (("gate_lr", 0.1), ("multiplier_lr", 0.2))
    }
    terms = [Classification(ArcFace) if hybrid else Distillation(tiny_model(dropout))]
    if sparsity is not None:
        options = {"warmup_steps": warmup_steps, "ramp": ramp, "clamp": clamp}
        budget = partial(pruning.Budget, sparsity=sparsity, **options)
        terms.append(Budget(budget, **rates))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / f"train{rank}.csv"
    write_manifest(manifest, manifest_of(corpus, range(4)))
    data = TrainingData(manifest, seed, crop_seconds=crops, batch_size=batch_size)
    for term in terms:
        term.setup(student, data)
    torch.manual_seed(seed + rank)
    made = tiny_brain(
        corpus,
        folder,
        student,
        data,
        terms,
        brain=brain,
        epochs=epochs,
        factor=factor,
        validate=validate,
        steps_between_checkpoints=steps_between_checkpoints,
        step_log=folder / "steps.csv",
        **{"lr_schedule": Constant(0.01), "opt_class": ADAMW, **hparams},
    )
    return made, data.loader(workers)
