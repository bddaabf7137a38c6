#!/usr/bin/env python3
"""Verify on CN-Celeb: both enrolments, AS-norm, calibration, error rates by genre.

    python verify.py hparams/verify.yaml \
        --cnceleb1_folder=/data/CN-Celeb_flac \
        --pretrained_folder=results/stage2_joint/final \
        --training_manifest=results/stage2_joint/prepared/train.csv \
        --calibration_manifest=results/stage2_joint/prepared/valid.csv

A model is the mean embedding of its recordings (``average``, enroll.map), or the
embedding of these joined (``concatenate``, enroll.lst): two protocols whose error rates
are not to be compared, each labelled in the report. Without the two manifests (and
without ``cohort`` and ``calibrator``) it stops after the cosine. Written to
``output_folder``: embeddings.npz, cohort.npz, calibration.json, the scores of every
enrolment and system as text and as a table, results.json, results.md with error rates
by genre, and pictures. The table also goes to the standard output. Stopped, the same
command continues; several GPUs: ``torchrun --nproc_per_node=8 verify.py …``.
"""

import logging
import sys
from functools import partial
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.corpora.cnceleb import (
    find_evaluation,
    genres_of,
    prepare_cnceleb_test,
)
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.evaluation.backend_plan import plan_backend
from speechbrain_ext.evaluation.score_lists import averaged, read_lists
from speechbrain_ext.evaluation.verification import (
    BACKEND,
    RUN_KEYS,
    Embedder,
    check,
    check_sizes,
    embedded,
    report,
    score,
)
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.scoring.enrolment import read_enrol_map
from speechbrain_ext.utils.config import call_with, load_run
from speechbrain_ext.utils.distributed import leave_group, main_process_first
from speechbrain_ext.utils.errors import command_line

# Top-level keys of the YAML file that this script reads.
KEYS = (*RUN_KEYS, "cnceleb1_folder")


@command_line
def main():
    """Read and check everything, prepare, embed, score, report."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], KEYS)
    check(hparams)
    evaluation = find_evaluation(hparams["cnceleb1_folder"], hparams["enrolment"])
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    # The log takes everything: hundreds of lines about fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)

    lists, path = {}, hparams["embeddings"]
    if if_main_process():  # the others never see a score
        lists = read_lists(evaluation.trials)
    models = {p: read_enrol_map(file) for p, file in evaluation.enrol_maps.items()}
    given = load_embeddings(path) if path else None
    plan = plan_backend(**{key: hparams[key] for key in BACKEND})
    embed = Embedder(hparams, run_opts) if hparams["pretrained_folder"] else None
    check_sizes(hparams, plan, embed, given)
    prepared = main_process_first(call_with, prepare_cnceleb_test, "prepare", hparams)
    manifest = read_manifest(prepared.test)

    plan.warn_of(manifest.speakers)
    folder = Path(hparams["output_folder"])
    test = embedded(manifest, embed, path or folder / "embeddings.npz", given)
    backend = plan.carry_out(embed, folder)
    if if_main_process():
        # Each model of enroll.lst has one recording, and is its own mean.
        sides = {p: averaged(enrol_map, test) for p, enrol_map in models.items()}
        # What enroll.map says of a model's genre goes for its file in enroll.lst.
        genres = partial(genres_of, enrol_map=read_enrol_map(evaluation.enrol_map))
        results = score(hparams, lists, backend, test, sides, genres)
        report(hparams, backend, results)
    leave_group()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
