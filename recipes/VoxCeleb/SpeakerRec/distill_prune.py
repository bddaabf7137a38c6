#!/usr/bin/env python3
"""Make a speaker encoder smaller: structured pruning guided by distillation.

    python distill_prune.py hparams/prune1_distill.yaml \
        --teacher_folder=results/stage2_joint/final \
        --train_folders=/data/VoxCeleb2 --test_folders=/data/VoxCeleb1
    python distill_prune.py hparams/prune2_distill.yaml \
        --teacher_folder=results/stage2_joint/final \
        --student_folder=results/prune1_distill/final \
        --train_folders=/data/VoxCeleb2 --test_folders=/data/VoxCeleb1

The first prunes while it distils, the second distils the pruned model further. Several
GPUs: ``torchrun --nproc_per_node=8 distill_prune.py hparams/….yaml …``. Stop it at any
time; the same command continues where it stopped. Written to ``output_folder``:

    final/           the smaller model, for verify.py and the next stage of train.py
    pruning.json     units that are left, by layer and kind; structure.png shows them
    steps.csv        loss, sparsity and multipliers of every step; steps.png shows the
                     distillation and the sparsity
"""

import logging
import sys
from functools import partial
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import get_rank, if_main_process

from speechbrain_ext.data.corpora.voxceleb import prepare_voxceleb
from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.pretrained import keep_classifier, save_pretrained
from speechbrain_ext.profiling import count_parameters
from speechbrain_ext.pruning import Budget, add_gates, structure
from speechbrain_ext.pruning.plots import plot_progress, plot_structure
from speechbrain_ext.training.build import make_sampler, read_training_manifest
from speechbrain_ext.training.checkpoints import AtomicCheckpointer
from speechbrain_ext.training.terms import DistillPruneBrain, read_steps
from speechbrain_ext.training.validation import read_validation
from speechbrain_ext.utils.config import call_with, load_run
from speechbrain_ext.utils.distributed import leave_group, main_process_first
from speechbrain_ext.utils.errors import command_line
from speechbrain_ext.utils.files import write_json

logger = logging.getLogger(__name__)

# Top-level keys of the YAML files that this script and its Brain read.
KEYS = (
    *("output_folder", "save_folder", "train_logger", "seed", "prepare"),
    *("crop_seconds", "batch_size", "global_batch", "draws_per_epoch", "num_workers"),
    *("shards", "shard_window", "max_bad_recordings"),
    *("valid_batch_seconds", "teacher", "student", "student_folder"),
    *("gates", "budget", "multiple", "gate_lr", "multiplier_lr"),
    *("opt_class", "epoch_counter", "lr_schedule"),
)


def make_training_set(hparams, manifest):
    """Manifest → (TrainingSet, its sampler): clean crops, whoever speaks."""
    tolerated = hparams["max_bad_recordings"]
    dataset = TrainingSet(manifest, hparams["seed"], max_bad_recordings=tolerated)
    return dataset, make_sampler(hparams, manifest)


def make_budget(hparams):
    """Put gates into the student → their budget, or None where nothing is pruned."""
    if not hparams["budget"]:
        return None
    encoder = hparams["student"].encoder
    call_with(partial(add_gates, encoder), "gates", hparams)
    return call_with(partial(Budget, encoder), "budget", hparams)


def log_decisions(hparams, manifest, budget):
    """What this run is about to do, in figures."""
    logger.info(
        "training on %d utterances, %.1f h",
        *(len(manifest), manifest.durations.sum() / 3600),
    )
    sizes = [count_parameters(hparams[name].encoder) for name in ("teacher", "student")]
    logger.info(
        "encoders: teacher %d parameters, student %d, gates included",
        *(size.total for size in sizes),
    )
    if budget is not None:
        logger.info(
            "to leave: %d of %d %s, sparsity %.4f after %d steps",
            *(budget.target_cost, budget.ledger.full, budget.ledger.what),
            *(budget.target, budget.warmup_steps),
        )


def export(brain, hparams, stage):
    """Best checkpoint, pruned → ``final``, the structure and pictures."""
    best = brain.recover_best()
    folder = Path(hparams["output_folder"])
    model = brain.finish(hparams["multiple"])
    stats = {} if brain.validation is None else brain.validate(model=model)
    if not if_main_process():
        return
    left = structure(model.encoder)
    classifier, training = keep_classifier(hparams["student_folder"])
    save_pretrained(
        folder / "final",
        model,
        classifier,
        {
            **training,
            "stage": stage,
            "epoch": best.get("epoch"),
            "validation_eer_percent": stats.get("EER"),
            "trained_parameters": left["parameters"],
            "total_parameters": count_parameters(model).total,
        },
    )
    write_json(folder / "pruning.json", left)
    plot_structure(folder / "structure.png", left)
    if brain.prunes:
        steps = read_steps(folder / "steps.csv")
        # without the Lagrangian, which grows and shrinks with its multipliers
        loss = [l1 - cosine for l1, cosine in zip(steps["l1"], steps["cosine"])]
        series = (steps[name] for name in ("step", "sparsity", "target"))
        plot_progress(folder / "steps.png", *series, loss)
    logger.info(
        "epoch %s: the encoder has %d parameters, validation EER %s; model in %s",
        *(best.get("epoch"), left["parameters"], stats.get("EER"), folder / "final"),
    )


@command_line
def main():
    """Prepare, distil, prune, export."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], KEYS)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    budget = make_budget(hparams)
    prepared = main_process_first(call_with, prepare_voxceleb, "prepare", hparams)

    manifest = read_training_manifest(hparams, prepared.train)
    dataset, sampler = make_training_set(hparams, manifest)
    log_decisions(hparams, manifest, budget)
    # from here on (dropout, gates) every rank has random numbers of its own
    torch.manual_seed(hparams["seed"] + (get_rank() or 0))
    brain = DistillPruneBrain(
        teacher=hparams["teacher"].encoder,
        student=hparams["student"],
        budget=budget,
        step_log=Path(hparams["output_folder"]) / "steps.csv",
        sampler=sampler,
        validation=read_validation(prepared),
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=AtomicCheckpointer(hparams["save_folder"]),
    )
    on_gpu = brain.device_type == "cuda"
    loader = make_loader(dataset, sampler, hparams["num_workers"], pin_memory=on_gpu)
    brain.fit(hparams["epoch_counter"], loader)
    export(brain, hparams, Path(hparams_file).stem)
    leave_group()


if __name__ == "__main__":
    main()
