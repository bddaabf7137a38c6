#!/usr/bin/env python3
"""Train a speaker encoder: one stage of arXiv 2510.04213 per YAML file.

    python train.py hparams/stage1_lora_adapter_mfa.yaml \
        --train_folders=/data/VoxCeleb2 --test_folders=/data/VoxCeleb1 \
        --musan_folder=/data/musan --rirs_folder=/data/RIRS_NOISES

Several GPUs: ``torchrun --nproc_per_node=8 train.py hparams/….yaml …``. Stop it at any
time; the same command continues where it stopped. The end state is in
``<output_folder>/final``, from which the next stage and ``verify.py`` start.
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.arrow_manifest import mix_manifests
from speechbrain_ext.data.corpora.csv_file import prepare_own_corpus
from speechbrain_ext.data.corpora.voxblink2 import prepare_voxblink2
from speechbrain_ext.data.corpora.voxceleb import prepare_voxceleb
from speechbrain_ext.training.build import KEYS as OF_A_STAGE
from speechbrain_ext.training.build import (
    export,
    log_decisions,
    make_brain,
    make_modules,
    make_training_set,
    read_training_manifest,
)
from speechbrain_ext.training.validation import read_validation
from speechbrain_ext.utils.config import call_with, load_run
from speechbrain_ext.utils.distributed import leave_group, main_process_first
from speechbrain_ext.utils.errors import command_line

# Top-level keys of the YAML files that this script and its Brain read.
KEYS = (*OF_A_STAGE, "voxblink2")


def prepare(hparams):
    """VoxCeleb, or what a CSV file lists; and VoxBlink2 where the YAML has it."""
    if "manifest" in hparams:
        return call_with(prepare_own_corpus, "prepare", hparams)
    prepared = call_with(prepare_voxceleb, "prepare", hparams)
    if "voxblink2" not in hparams:
        return prepared
    added = call_with(prepare_voxblink2, "voxblink2", hparams)
    folder = Path(hparams["output_folder"]) / "mixed"
    return prepared._replace(train=mix_manifests(prepared.train, added.train, folder))


@command_line
def main():
    """Prepare, train, export."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], KEYS)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    prepared = main_process_first(prepare, hparams)

    manifest = read_training_manifest(hparams, prepared.train)
    dataset, sampler = make_training_set(hparams, manifest)
    validation = read_validation(prepared)
    modules = make_modules(hparams, manifest)
    log_decisions(modules, manifest, validation)

    brain, loader = make_brain(hparams, run_opts, modules, dataset, sampler, validation)
    brain.fit(hparams["epoch_counter"], loader)
    if if_main_process():
        export(brain, hparams, manifest, Path(hparams_file).stem)
    leave_group()


if __name__ == "__main__":
    main()
