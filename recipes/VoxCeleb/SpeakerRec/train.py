#!/usr/bin/env python3
r"""Train a speaker encoder or a spoofing detector, or prune it, as a YAML file says.

    python train.py hparams/stage1_lora_adapter_mfa.yaml \
        --train_folders=/data/VoxCeleb2 --test_folders=/data/VoxCeleb1 \
        --musan_folder=/data/musan --rirs_folder=/data/RIRS_NOISES
    python distill_prune.py hparams/prune1_distill.yaml \
        --teacher_folder=results/stage2_joint/final \
        --train_folders=/data/VoxCeleb2 --test_folders=/data/VoxCeleb1

Several GPUs: ``torchrun --nproc_per_node=8 train.py hparams/….yaml …``. Stop it at any
time; the same command continues where it stopped. Written to ``output_folder``:

    final/           the model, for the next stage, verify.py and inference
    train_log.txt    a line per epoch; save/ has the checkpoints
    steps.csv        loss and its parts of every step, where the file distils or prunes;
    steps.png        then also a picture of them,
    pruning.json     and the units of every layer; structure.png shows them

distill_prune.py is this script under another name. The Brain is
:class:`speechbrain_ext.training.brain.SpeakerBrain`.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import speechbrain as sb
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import get_rank, if_main_process
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_ext.adaptation import inject_lora, merge_lora
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.training.brain import SpeakerBrain, check_trained, train_logger
from speechbrain_ext.training.classifiers import keep_classifier
from speechbrain_ext.training.validation import EERTrials
from speechbrain_ext.utils.arguments import check_arguments
from speechbrain_ext.utils.config import load_run
from speechbrain_ext.utils.distributed import leave_group, main_process_first
from speechbrain_ext.utils.errors import command_line
from speechbrain_ext.utils.precision import allow_tf32

logger = logging.getLogger(__name__)


def train(
    run_opts,
    stage,
    /,
    *,
    output_folder: str,
    prepare: Callable,
    train_data: Callable,
    modules: dict,
    terms: list,
    opt_class: Callable,
    lr_schedule: Callable,
    epoch_counter: EpochCounter,
    checkpointer: Checkpointer,
    lora: dict | None = None,
    pretrained_folder: str | None = None,
    validation: Callable = EERTrials.of,
    seed: NonNegativeInt = 1986,
    num_workers: NonNegativeInt = 8,
    global_batch: PositiveInt | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "bf16",
    tf32: bool = False,
    bf16_gradients: bool = False,
    ckpt_interval_minutes: NonNegativeFloat = 30,
    max_grad_norm: float = 1.0,
    average_epochs: PositiveInt = 1,
    encoder_lr_scale: PositiveFloat = 1.0,
    **options,
):
    """Prepare, train, save. The keyword arguments are the keys of a YAML file.

    Arguments
    ---------
    run_opts : RunOptions
    stage : str
        The YAML file's name, for training.json.
    output_folder : str
    prepare : callable
        → Prepared, the paths of the manifests.
    train_data : callable
        Training manifest → TrainingData.
    modules : dict
        ``speaker_encoder``: what is trained.
    terms : list of Term
        Of the loss.
    opt_class : callable
        Parameters → optimiser.
    lr_schedule : callable
        Progress in epochs → learning rate.
    epoch_counter, checkpointer
        SpeechBrain's.
    lora : dict, optional
        Arguments of :func:`~speechbrain_ext.adaptation.inject_lora`.
    pretrained_folder : str, optional
        A former stage's folder. Its classifier is handed on where no term trains one.
    validation : callable
        (Prepared, batch_seconds) → a validation, or None.
    seed : int
        Of crops, order and dropout.
    num_workers : int
        Processes that read recordings.
    global_batch : int, optional
        Utterances per optimiser step that the settings are meant for; another number
        is warned of.
    precision : str
        Of the encoder. On a CPU fp32, unless the command line asks for bf16.
    tf32 : bool
        Products of fp32 may be of TF32 on a GPU: about twice as fast, with 10 bits.
    bf16_gradients : bool
        GPUs exchange their gradients in bf16: half the bytes, where a network is slow.
    ckpt_interval_minutes : float
        Between checkpoints within an epoch.
    max_grad_norm : float
        Of the gradient of each module.
    average_epochs : int
        Of the last epochs: their mean weights are the model that is saved. 1: the best
        epoch's are.
    encoder_lr_scale : float
        Of the learning rate, for the encoder's weights.
    **options
        Other run options of SpeechBrain.
    """
    allow_tf32(tf32)
    check_arguments("lora", inject_lora, kwargs=lora, later=True)
    check_trained(modules, terms)
    folder = Path(output_folder)
    prepared = main_process_first(prepare)
    data = train_data(prepared.train, seed=seed)
    speaker_encoder = modules["speaker_encoder"]
    data.check_crops(speaker_encoder.encoder)
    for term in terms:
        term.setup(speaker_encoder, data)
    if lora:
        inject_lora(speaker_encoder.encoder, **lora)

    # from here on (dropout, gates) every rank has random numbers of its own
    torch.manual_seed(seed + (get_rank() or 0))
    brain = SpeakerBrain(
        modules=modules,
        terms=terms,
        validation=validation(prepared, data.valid_batch_seconds),
        average=average_epochs,
        encoder_lr_scale=encoder_lr_scale,
        step_log=folder / "steps.csv",
        sampler=data.sampler,
        bf16_gradients=bf16_gradients,
        opt_class=opt_class,
        hparams={
            **options,
            "lr_schedule": lr_schedule,
            "epoch_counter": epoch_counter,
            "train_logger": train_logger(folder / "train_log.txt"),
            "global_batch": global_batch,
            "precision": precision,
            "ckpt_interval_minutes": ckpt_interval_minutes,
            "max_grad_norm": max_grad_norm,
        },
        run_opts=run_opts,
        checkpointer=checkpointer,
    )
    for name, module in brain.modules.items():
        trained, total = count_parameters(module)
        logger.info(
            "%s: %d parameters trained, %d frozen", name, trained, total - trained
        )
    if not checkpointer.list_checkpoints():
        for term in terms:
            term.begin(brain, data)
    brain.fit(epoch_counter, data.loader(num_workers, brain.device_type == "cuda"))

    model, figures = brain.finish()
    if if_main_process():
        save(model, figures, terms, pretrained_folder, folder, stage)
    leave_group()


def save(model, figures, terms, pretrained_folder, folder, stage):
    """Write ``final`` and what the terms report."""
    trained, total = count_parameters(model)
    classifier, training = None, {}
    for term in terms:
        own, about = term.saved()
        classifier, training = own or classifier, training | about
    if classifier is None and pretrained_folder:
        classifier, training = keep_classifier(pretrained_folder)
    merge_lora(model.encoder)
    training |= {
        "stage": stage,
        "epoch": figures.get("epoch"),
        "validation_eer_percent": figures.get("EER"),
        "validation_min_dcf": figures.get("minDCF"),
        "trained_parameters": trained,
        "total_parameters": total,
    }
    save_pretrained(folder / "final", model, classifier, training)
    for term in terms:
        term.report(folder, model)
    logger.info(
        "epoch %s: %d parameters, validation EER %s; model in %s",
        *(figures.get("epoch"), total, figures.get("EER"), folder / "final"),
    )


@command_line
def main():
    """Read the command line and the YAML file, train."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], train)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    train(run_opts, Path(hparams_file).stem, **hparams)


if __name__ == "__main__":
    main()
