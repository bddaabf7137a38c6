#!/usr/bin/env python3
r"""Evaluate a spoofing detector: scores of dev and eval, calibration on dev, figures.

    python evaluate.py hparams/evaluate.yaml \
        --pretrained_folder=results/wavlm_mhfa/final --data_folder=/data/ASVspoof5

What is wrong is found before anything is scored, where that can be. Written to
``output_folder``: logits_dev.npz and logits_eval.npz; scores_dev.tsv, scores_eval.tsv
and keys_dev.tsv, keys_eval.tsv, as the evaluation package of ASVspoof 5 reads them;
calibration.json and thresholds.json, both of dev, for the detector's folder;
results.json, results.md and results.csv with figures by attack and by codec, and their
pictures; the table also goes to the standard output. Stopped, the same command
continues; several GPUs: ``torchrun --nproc_per_node=8 evaluate.py …``.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import speechbrain as sb
import torch
from pydantic import NonNegativeInt, PositiveFloat
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.evaluation.detection import LLR, lists_of, score_and_report
from speechbrain_ext.evaluation.verification import Embedder
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.utils.config import load_run
from speechbrain_ext.utils.distributed import leave_group, main_process_first
from speechbrain_ext.utils.errors import InputError, command_line
from speechbrain_ext.utils.precision import allow_tf32


def evaluate(
    run_opts,
    /,
    *,
    output_folder: str,
    prepare: Callable,
    pretrained_folder: str,
    calibrator: str | None = None,
    window_seconds: PositiveFloat | None = None,
    hop_seconds: PositiveFloat | None = None,
    max_seconds: PositiveFloat | None = None,
    tf32: bool = False,
    max_batch_seconds: PositiveFloat = 240.0,
    num_workers: NonNegativeInt = 2,
    eval_precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32",
    n_resamples: NonNegativeInt = 200,
):
    """Check, prepare, score, report. Keyword arguments are keys of a YAML file.

    Arguments
    ---------
    run_opts : RunOptions
    output_folder : str
    prepare : callable
        () → PreparedDetection: manifests of dev and eval.
    pretrained_folder : str
        The detector.
    calibrator : str, optional
        calibration.json of an earlier run, instead of one fitted to dev.
    window_seconds, hop_seconds : float, optional
        Longer recordings are scored in windows; None: those of the model's folder.
    max_seconds : float, optional
        Longer recordings are cut to this much from their middle.
    tf32 : bool
        Products of fp32 may be of TF32 on a GPU: about twice as fast, with 10 bits.
    max_batch_seconds : float
        Padded seconds of audio in a batch: bounds the memory.
    num_workers : int
        Threads that read recordings.
    eval_precision : str
        Of the encoder. On a CPU fp32 or int8, or bf16 if the command line asks for it.
    n_resamples : int
        Of the bootstrap over speakers; 0: no intervals.
    """
    allow_tf32(tf32)
    if n_resamples == 1:
        raise InputError(f"n_resamples: {n_resamples}, expected 0 or at least 2")
    folder = Path(output_folder)
    embed = Embedder(
        *(pretrained_folder, run_opts, window_seconds, hop_seconds, eval_precision),
        used_by="SpoofingDetector",
        max_batch_seconds=max_batch_seconds,
        max_seconds=max_seconds,
        num_workers=num_workers,
    )
    if calibrator is not None:
        calibrator = calibrator, QualityCalibrator.load(calibrator, [LLR])
    lists = lists_of(main_process_first(prepare))
    logits = {
        split: embed(one.manifest, folder / f"logits_{split}.npz")
        for split, one in lists.items()
    }
    if if_main_process():
        score_and_report(
            *(folder, lists, logits, embed.model.head, calibrator, n_resamples),
            pretrained_folder,
        )
    leave_group()


@command_line
def main():
    """Read the command line and the YAML file, evaluate."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], evaluate)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    # The log takes everything: hundreds of lines about fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    with torch.inference_mode():
        evaluate(run_opts, **hparams)


if __name__ == "__main__":
    main()
