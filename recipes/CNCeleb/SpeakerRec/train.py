#!/usr/bin/env python3
"""Train a speaker encoder on CN-Celeb: one stage of arXiv 2510.04213 per YAML file.

    python train.py hparams/stage1_lora_adapter_mfa.yaml \
        --cnceleb1_folder=/data/CN-Celeb_flac --cnceleb2_folder=/data/CN-Celeb2_flac \
        --musan_folder=/data/musan --rirs_folder=/data/RIRS_NOISES

Several GPUs: ``torchrun --nproc_per_node=8 train.py hparams/….yaml …``. Stop it at any
time; the same command continues where it stopped. The end state is in
``<output_folder>/final``, from which the next stage and ``verify.py`` start.
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.corpora.cnceleb import prepare_cnceleb
from speechbrain_ext.training.build import (
    KEYS,
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


@command_line
def main():
    """Prepare, train, export."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], KEYS)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    prepared = main_process_first(call_with, prepare_cnceleb, "prepare", hparams)

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
