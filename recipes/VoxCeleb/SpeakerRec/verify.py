#!/usr/bin/env python3
"""Verify: embeddings, cosine, AS-norm, calibration, and a report of every trial list.

    python verify.py hparams/verify.yaml --pretrained_folder=results/stage3_lmft/final \
        --test_folders=/data/VoxCeleb1 --trial_lists=/data/VoxCeleb1/veri_test2.txt \
        --training_manifest=results/stage3_lmft/prepared/train.csv \
        --calibration_manifest=results/stage3_lmft/prepared/valid.csv

Without these manifests (and without ``cohort`` and ``calibrator``) it stops after the
cosine. What is wrong is found before anything is embedded, where that can be. Written
to ``output_folder``: embeddings.npz, cohort.npz, calibration.json, the scores of every
list and system as text and as a table, those of the calibration as a table,
results.json, results.md and pictures. The table also goes to the standard output.
Stopped, the same command continues; several GPUs:
``torchrun --nproc_per_node=8 verify.py …``.
"""

import logging
import sys
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.corpora.voxceleb import prepare_voxceleb_test
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.evaluation.backend_plan import plan_backend
from speechbrain_ext.evaluation.score_lists import read_lists
from speechbrain_ext.evaluation.verification import (
    BACKEND,
    RUN_FILES,
    RUN_KEYS,
    Embedder,
    check,
    check_sizes,
    checked_enrolments,
    embedded,
    enrolled,
    report,
    score,
)
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.scoring.enrolment import read_enrol_map
from speechbrain_ext.utils.config import call_with, load_run
from speechbrain_ext.utils.distributed import leave_group, main_process_first
from speechbrain_ext.utils.errors import command_line

# Top-level keys of the YAML file that this script reads.
FILES = ("enrol_map", *RUN_FILES)
KEYS = (*FILES, *RUN_KEYS, "trial_lists", "allow_duplicates")


def both_sides(hparams, manifest, models, embed, given):
    """The recordings of the test, and of the enrol side by protocol."""
    folder = Path(hparams["output_folder"])
    path = hparams["embeddings"] or folder / "embeddings.npz"
    test = embedded(manifest, embed, path, given)
    if models is None:
        return test, {None: test}
    return test, {
        protocol: enrolled(protocol, models, test, manifest, embed, folder)
        for protocol in checked_enrolments(hparams["enrolment"])
    }


@command_line
def main():
    """Read and check everything, prepare, embed, score, report."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], KEYS)
    protocols = checked_enrolments(hparams["enrolment"])
    joins = hparams["enrol_map"] is not None and "concatenate" in protocols
    check(hparams, FILES, joins)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    # The log takes everything: hundreds of lines about fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)

    lists, path = {}, hparams["embeddings"]
    if if_main_process():  # the others never see a score
        lists = read_lists(hparams["trial_lists"], hparams["allow_duplicates"])
    given = load_embeddings(path) if path else None
    models = read_enrol_map(hparams["enrol_map"]) if hparams["enrol_map"] else None
    plan = plan_backend(**{key: hparams[key] for key in BACKEND})
    embed = Embedder(hparams, run_opts) if hparams["pretrained_folder"] else None
    check_sizes(hparams, plan, embed, given)
    prepared = main_process_first(call_with, prepare_voxceleb_test, "prepare", hparams)
    manifest = read_manifest(prepared.test)

    plan.warn_of(manifest.speakers)
    test, sides = both_sides(hparams, manifest, models, embed, given)
    backend = plan.carry_out(embed, Path(hparams["output_folder"]))
    if if_main_process():
        results = score(hparams, lists, backend, test, sides)
        report(hparams, backend, results, FILES)
    leave_group()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
