#!/usr/bin/env python3
r"""Verify: embeddings, cosine, AS-norm, calibration, and a report of every trial list.

    python verify.py hparams/verify.yaml --pretrained_folder=results/stage3_lmft/final \
        --test_folders=/data/VoxCeleb1 --trial_lists=/data/VoxCeleb1/veri_test2.txt \
        --training_manifest=results/stage3_lmft/prepared/train.csv \
        --calibration_manifest=results/stage3_lmft/prepared/valid.csv

Without these manifests (and without ``cohort`` and ``calibrator``) it stops after the
cosine. What is wrong is found before anything is embedded, where that can be. Written
to ``output_folder``: embeddings.npz, cohort.npz, calibration.json, the scores of every
list, enrolment and system as text and as a table, those of the calibration as a table,
results.json, results.md (on CN-Celeb with error rates by genre) and pictures. The table
also goes to the standard output. Stopped, the same command continues; several GPUs:
``torchrun --nproc_per_node=8 verify.py …``.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import speechbrain as sb
import torch
from pydantic import InstanceOf, NonNegativeInt, PositiveFloat, PositiveInt
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.evaluation.backend_plan import Calibration, plan_backend
from speechbrain_ext.evaluation.verification import (
    Embedder,
    check_sizes,
    embedded,
    enrolled,
    read_trials_of,
    score_and_report,
)
from speechbrain_ext.scoring.backend import Backend
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.utils.config import load_run
from speechbrain_ext.utils.distributed import leave_group, main_process_first
from speechbrain_ext.utils.errors import InputError, command_line
from speechbrain_ext.utils.precision import allow_tf32

BACKEND, CALIBRATION = Backend(), Calibration()


def verify(
    run_opts,
    /,
    *,
    output_folder: str,
    prepare: Callable,
    trials: Callable,
    pretrained_folder: str | None = None,
    embeddings: str | None = None,
    training_manifest: str | None = None,
    calibration_manifest: str | None = None,
    cohort: str | None = None,
    calibrator: str | None = None,
    max_utterances: PositiveInt | None = 20,
    seed: NonNegativeInt = 1986,
    backend: InstanceOf[Backend] = BACKEND,
    calibration: InstanceOf[Calibration] | None = CALIBRATION,
    window_seconds: PositiveFloat | None = None,
    hop_seconds: PositiveFloat | None = None,
    max_seconds: PositiveFloat | None = None,
    speech_detection: bool = False,
    tf32: bool = False,
    max_batch_seconds: PositiveFloat = 240.0,
    num_workers: NonNegativeInt = 2,
    eval_precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32",
    n_resamples: NonNegativeInt = 200,
):
    """Check, prepare, embed, score, report. Keyword arguments are keys of a YAML file.

    Arguments
    ---------
    run_opts : RunOptions
    output_folder : str
    prepare : callable
        () → Prepared: a manifest of the test recordings.
    trials : callable
        () → :class:`~speechbrain_ext.evaluation.verification.Protocol`: trial lists,
        and how models are enrolled.
    pretrained_folder : str, optional
        The model.
    embeddings : str, optional
        Of the test recordings, by any model, instead of embedding them.
    training_manifest, calibration_manifest, cohort, calibrator : str, optional
    max_utterances : int, optional
    seed : int
    backend : Backend
    calibration : Calibration, optional
        As for :func:`~speechbrain_ext.evaluation.backend_plan.plan_backend`.
    window_seconds, hop_seconds : float, optional
        Longer recordings are embedded in windows; None: those of the model's folder.
    max_seconds : float, optional
        Longer recordings are cut to this much from their middle.
    speech_detection : bool
        Embed speech alone, as ``SpeakerVerifier`` does before a decision. Published
        figures are without.
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
    files = {
        "pretrained_folder": pretrained_folder,
        "embeddings": embeddings,
        "training_manifest": training_manifest,
        "calibration_manifest": calibration_manifest,
        "cohort": cohort,
        "calibrator": calibrator,
    }
    files = {key: path for key, path in files.items() if path is not None}
    if n_resamples == 1:
        raise InputError(f"n_resamples: {n_resamples}, expected 0 or at least 2")
    protocol, folder = trials(), Path(output_folder)
    if pretrained_folder is None and (protocol.joins or embeddings is None):
        raise InputError(
            "pretrained_folder is not given, expected a model: --pretrained_folder=…, "
            "or --embeddings=…" + " without concatenation" * protocol.joins
        )
    lists = read_trials_of(protocol)
    given = load_embeddings(embeddings) if embeddings else None
    plan = plan_backend(
        *(cohort, calibrator, training_manifest, calibration_manifest),
        *(max_utterances, seed, backend, calibration),
    )
    embed = None
    if pretrained_folder is not None:
        embed = Embedder(
            *(pretrained_folder, run_opts, window_seconds, hop_seconds, eval_precision),
            max_batch_seconds=max_batch_seconds,
            max_seconds=max_seconds,
            speech_detection=speech_detection,
            num_workers=num_workers,
        )
    check_sizes(plan, embed, given, embeddings)
    manifest = read_manifest(main_process_first(prepare).test)

    plan.warn_speaker_overlap(manifest.speakers)
    test = embedded(manifest, embed, embeddings or folder / "embeddings.npz", given)
    sides = enrolled(protocol, test, manifest, embed, folder)
    backend = plan.build_backend(embed, folder)
    if if_main_process():
        score_and_report(
            *(folder, protocol, lists, backend, test, sides, n_resamples, files),
            pretrained_folder,
        )
    leave_group()


@command_line
def main():
    """Read the command line and the YAML file, verify."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], verify)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    # The log takes everything: hundreds of lines about fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    with torch.inference_mode():
        verify(run_opts, **hparams)


if __name__ == "__main__":
    main()
