#!/usr/bin/env python3
"""The whole recipe on a demonstration corpus, in a few minutes on two CPU cores.

    make quickstart          (or: python recipes/VoxCeleb/SpeakerRec/quickstart.py)

It runs the scripts and YAML files of this recipe, with a tiny encoder in place of
w2v-BERT 2.0 and a few overrides that fit its size; every command is printed, so that
it can be copied. The voices are synthetic and the encoder starts from random weights:
this shows the pipeline, not the accuracy.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from speechbrain_ext.data.demo import make_demo_corpus
from speechbrain_ext.errors import InputError, command_line

HERE = Path(__file__).resolve().parent
SMALL = ["--batch_size=24", "--num_workers=1", "--n_valid_speakers=6"]
# A few epochs of nine steps: rates and warm-up that suit them, not 580 M parameters.
STAGES = {
    "stage1_lora_adapter_mfa": [
        "--encoder_source=hparams/encoders/tiny.json",
        "--number_of_epochs=6",
        "--lr=0.002",
        "--lr_schedule.warmup_epochs=1",
        "--head.normalise=True",
    ],
    "stage2_joint": [
        "--number_of_epochs=6",
        "--lr=0.0005",
        "--lr_schedule.final=0.00005",
        "--lr_schedule.decay_epochs=6",
    ],
    "stage3_lmft": [
        "--number_of_epochs=3",
        "--lr=0.0001",
        "--lr_schedule.final=0.00001",
        "--lr_schedule.decay_epochs=3",
    ],
}

LAST = "stage3_lmft"


def run(script, *arguments):
    """Run a script of this recipe from its folder, showing the command."""
    command = [sys.executable, script, *arguments]
    print("\n$ " + shlex.join(["python", *command[1:]]), flush=True)
    done = subprocess.run(
        command, cwd=HERE, env={**os.environ, "TQDM_MININTERVAL": "5"}
    )
    if done.returncode:
        raise InputError(f"{script} stopped with exit code {done.returncode}")


def train_and_verify(stage, overrides, corpus, results, pretrained):
    """One stage, then verification with its model → rows of the table."""
    data = [
        f"--train_folders={corpus.voxceleb2}",
        f"--test_folders={corpus.voxceleb1}",
        f"--trial_lists={corpus.trials}",
    ]
    if stage != LAST:
        data += [f"--musan_folder={corpus.musan}", f"--rirs_folder={corpus.rirs}"]
    if pretrained:
        data.append(f"--pretrained_folder={pretrained}")
    output = results / stage
    run(
        "train.py",
        f"hparams/{stage}.yaml",
        *data,
        *SMALL,
        *overrides,
        f"--output_folder={output}",
    )
    prepared = output / "prepared"
    normalised = [
        f"--training_manifest={prepared / 'train.csv'}",
        f"--calibration_manifest={prepared / 'valid.csv'}",
        "--calibration.shortest=0",  # synthetic utterances are short
        "--backend.top_n=10",  # of a few speakers
    ]
    run(
        "verify.py",
        "hparams/verify.yaml",
        f"--pretrained_folder={output / 'final'}",
        *data[1:3],
        *(normalised if stage == LAST else []),
        f"--output_folder={results / ('verify_' + stage)}",
    )
    trained = json.loads((output / "final" / "training.json").read_text())
    verified = json.loads((results / f"verify_{stage}" / "results.json").read_text())
    (result,) = verified["lists"]
    return [{**trained, **result, **row, "stage": stage} for row in result["systems"]]


def print_table(rows, seconds):
    """What the user came for."""
    pictures = rows[-1]["pictures"]
    print(
        f"\n{'stage':<26}{'score':<16}{'trained':>10}{'total':>10}{'EER %':>8}"
        f"{'minDCF(0.01)':>14}{'Cllr':>8}"
    )
    for row in rows:
        print(
            f"{row['stage']:<26}{row['title']:<16}{row['trained_parameters']:>10,}"
            f"{row['total_parameters']:>10,}{row['eer_percent']:>8.2f}"
            f"{row['min_dcf']['0.01']:>14.3f}{row['cllr']:>8.3f}"
        )
    print(
        f"\n{seconds:.0f} s. Parameters of encoder and head; LoRA merged after stage 1."
        "\nSynthetic voices and a tiny encoder from random weights: this shows that the"
        "\npipeline works, and says nothing about the accuracy of w2v-BERT 2.0.\n"
        f"\nDET curves        {pictures['det']}"
        f"\nscore histogram   {pictures['histograms'][rows[-1]['system']]}"
        f"\ncalibration       {pictures['calibration']}"
    )


@command_line
def main():
    """Corpus, three stages, verification, table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="quickstart", help="where all goes")
    folder = Path(parser.parse_args().folder).resolve()
    start = time.monotonic()
    corpus = make_demo_corpus(folder / "corpus")
    rows, pretrained = [], None
    for stage, overrides in STAGES.items():
        rows += train_and_verify(
            stage, overrides, corpus, folder / "results", pretrained
        )
        pretrained = folder / "results" / stage / "final"
    print_table(rows, time.monotonic() - start)


if __name__ == "__main__":
    main()
