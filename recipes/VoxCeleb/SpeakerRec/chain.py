#!/usr/bin/env python3
r"""A whole paper by one command: the stages of a chain, one after the other.

    python chain.py chains/paper_table2.yaml --launcher="torchrun --nproc_per_node=8" \
        --train_folders=/data/VoxCeleb2 --test_folders=/data/VoxCeleb1 \
        --trial_lists=[/data/vox1_o.txt,/data/vox1_e.txt,/data/vox1_h.txt] \
        --musan_folder=/data/musan --rirs_folder=/data/RIRS_NOISES

First it says what it will do (with ``--plan`` nothing more), and checks that all files,
folders and keys exist. Stopped or killed at any moment, the same command continues; a
stage that is done is skipped. ``--launcher`` starts train.py and verify.py; on several
machines of Slurm ``--launcher="srun --ntasks-per-node=1 torchrun --nnodes=2 …"``. Any
other option goes to every stage whose YAML file takes it, ``--STAGE.key=…`` to one.

Written to ``output_folder`` (``results/NAME OF THE CHAIN``):

    STAGE/             what the stage writes
    chain/STAGE.log    what it prints
    results.md         error rates of all verifications beside the published ones
    results.json

A chain's file: see :mod:`speechbrain_ext.chains.stages`.
"""

import sys
from pathlib import Path

from speechbrain_ext.chains.runner import run_chain
from speechbrain_ext.chains.stages import read_chain
from speechbrain_ext.utils.errors import InputError, command_line

HERE = Path(__file__).resolve().parent


@command_line
def main():
    """A chain, from the command line."""
    words = [word for word in sys.argv[1:] if word != "--plan"]
    if not words or words[0].startswith("-"):
        raise InputError("no chain; expected: chain.py chains/x.yaml")
    run_chain(read_chain(words[0], words[1:], HERE), "--plan" in sys.argv)


if __name__ == "__main__":
    main()
