#!/usr/bin/env python3
"""The whole recipe on a demonstration corpus, in a few minutes on two CPU cores.

    make quickstart          (or: python recipes/VoxCeleb/SpeakerRec/quickstart.py)

It runs the scripts and YAML files of this recipe, with a tiny encoder in place of
w2v-BERT 2.0 and a few overrides that fit its size; every command is printed, so that
it can be copied. The voices are synthetic and the encoder starts from random weights:
this shows the pipeline, not the accuracy. A small detector of spoofs, by the recipe of
ASVspoof 5, comes last.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from speechbrain_ext.profiling import profile_folder
from speechbrain_ext.utils.command import Parser
from speechbrain_ext.utils.errors import InputError, command_line

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from demo_corpus import make_demo_corpus  # noqa: E402

SPOOFING = HERE.parents[1] / "ASVspoof5" / "AntiSpoofing"

SMALL = ["--batch_size=24", "--num_workers=1", "--n_valid_speakers=6"]
NOISE = ("musan", "rirs")
# A few epochs of nine steps: rates and warm-up that suit them, not 580 M parameters.
TINY_JOINT = [
    "--number_of_epochs=6",
    "--lr=0.0005",
    "--lr_schedule.final=0.00005",
    "--lr_schedule.decay_epochs=6",
]
TINY_LMFT = [
    "--number_of_epochs=3",
    "--lr=0.0001",
    "--lr_schedule.final=0.00001",
    "--lr_schedule.decay_epochs=3",
]


class Step(NamedTuple):
    """One script with one YAML file."""

    name: str  # of its folder in results
    script: str
    yaml: str
    overrides: list
    former: dict = {}  # option: step whose model it takes
    noise: bool = True  # MUSAN and room responses
    verify: bool = True


DENSE = [
    Step(
        "stage1_lora_adapter_mfa",
        "train.py",
        "stage1_lora_adapter_mfa",
        [
            "--encoder_source=hparams/encoders/tiny.json",
            "--number_of_epochs=6",
            "--lr=0.002",
            "--lr_schedule.warmup_epochs=1",
            "--head.normalise=True",
        ],
    ),
    Step(
        "stage2_joint",
        "train.py",
        "stage2_joint",
        TINY_JOINT,
        {"pretrained_folder": "stage1_lora_adapter_mfa"},
    ),
    Step(
        "stage3_lmft",
        "train.py",
        "stage3_lmft",
        TINY_LMFT,
        {"pretrained_folder": "stage2_joint"},
        noise=False,
    ),
]
TINY_DISTILLATION = ["--crop_seconds=[1.0,1.5]", "--lr=0.002"]
PRUNED = [
    Step(
        "prune1_distill",
        "distill_prune.py",
        "prune1_distill",
        [
            *TINY_DISTILLATION,
            "--sparsity=0.7",
            "--number_of_epochs=12",
            "--warmup_steps=80",
            "--gate_lr=0.2",
            "--multiplier_lr=0.2",
        ],
        {"teacher_folder": "stage2_joint"},
        noise=False,
        verify=False,
    ),
    Step(
        "prune2_distill",
        "distill_prune.py",
        "prune2_distill",
        [*TINY_DISTILLATION, "--number_of_epochs=6"],
        {"teacher_folder": "stage2_joint", "student_folder": "prune1_distill"},
        noise=False,
        verify=False,
    ),
    Step(
        "pruned_stage1",
        "train.py",
        "stage1_pruned",
        ["--number_of_epochs=2", "--lr=0.0005", "--lr_schedule.every=2"],
        {"pretrained_folder": "prune2_distill"},
        verify=False,
    ),
    Step(
        "pruned_stage2",
        "train.py",
        "stage2_joint",
        TINY_JOINT,
        {"pretrained_folder": "pruned_stage1"},
        verify=False,
    ),
    Step(
        "pruned_stage3",
        "train.py",
        "stage3_lmft",
        TINY_LMFT,
        {"pretrained_folder": "pruned_stage2"},
        noise=False,
    ),
]


def run(*words, folder=HERE):
    """Run Python from a recipe's folder, this one's, showing the command."""
    command = [sys.executable, *words]
    place = "" if folder == HERE else f"cd {os.path.relpath(folder, HERE)} && "
    print(f"\n$ {place}{shlex.join(['python', *command[1:]])}", flush=True)
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "TQDM_MININTERVAL": "5"}
    )
    if done.returncode:
        name = " ".join(words[:3] if words[0] == "-m" else words[:1])
        raise InputError(f"{name} stopped with exit code {done.returncode}")


def run_step(step, corpus, results):
    """Train, distil or prune → rows of the table: the model's, verified."""
    output = results / step.name
    data = [
        f"--train_folders={corpus.voxceleb2}",
        f"--test_folders={corpus.voxceleb1}",
        f"--trial_lists={corpus.trials}",
    ]
    if step.noise:
        data += [f"--{name}_folder={getattr(corpus, name)}" for name in NOISE]
    data += [f"--{key}={results / name / 'final'}" for key, name in step.former.items()]
    yaml = f"hparams/{step.yaml}.yaml"
    run(
        step.script,
        yaml,
        *(*data, *SMALL, *step.overrides),
        f"--output_folder={output}",
    )
    return verify(step, corpus, results) if step.verify else []


def verify(step, corpus, results):
    """Verification of a step's model → rows; the last stage's also normalised."""
    output, verified = results / step.name, results / f"verify_{step.name}"
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
        f"--test_folders={corpus.voxceleb1}",
        f"--trial_lists={corpus.trials}",
        *(normalised if step.yaml == "stage3_lmft" else []),
        f"--output_folder={verified}",
    )
    trained = json.loads((output / "final" / "training.json").read_text())
    (result,) = json.loads((verified / "results.json").read_text())["lists"]
    return [
        {**trained, **result, **row, "stage": step.name} for row in result["systems"]
    ]


def share(corpus, results, folder):
    """The pruned model as a folder to share, loaded back to verify two recordings."""
    last = PRUNED[-1].name
    run(
        *("-m", "speechbrain_ext", "export"),
        f"--pretrained_folder={results / last / 'final'}",
        f"--results={results / f'verify_{last}'}",
        f"--output={folder}",
    )
    enrol, test = corpus.trials.read_text().splitlines()[0].split()[1:]
    recordings = (str(corpus.voxceleb1 / "wav" / name) for name in (enrol, test))
    run("-m", "speechbrain_ext", "verify", *recordings, f"--source={folder}")


def detect(corpus, results):
    """A detector of spoofs → rows of its table: development and evaluation."""
    output, evaluated = results / "detector", results / "evaluate_detector"
    data = f"--data_folder={corpus.spoof}"
    run(
        *("train.py", "hparams/small.yaml", data),
        *(f"--{name}_folder={getattr(corpus, name)}" for name in NOISE),
        f"--output_folder={output}",
        folder=SPOOFING,
    )
    run(
        *("evaluate.py", "hparams/evaluate.yaml", data),
        f"--pretrained_folder={output / 'final'}",
        f"--output_folder={evaluated}",
        folder=SPOOFING,
    )
    trained = json.loads((output / "final" / "training.json").read_text())
    found = json.loads((evaluated / "results.json").read_text())
    return [
        {**trained, **one["systems"][-1], "list": one["list"]} for one in found["lists"]
    ]


def print_stages(rows):
    """Error rates after every stage."""
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


def print_sizes(rows, results):
    """Dense against pruned, by cosine."""
    print(
        f"\n{'model':<10}{'encoder':>10}{'head':>10}{'MACs of 1 s':>14}"
        f"{'s per s of audio':>18}{'EER %':>8}"
    )
    for title, step in (("dense", DENSE[-1]), ("pruned", PRUNED[-1])):
        sizes = profile_folder(results / step.name / "final")
        cosine = next(row for row in rows if row["stage"] == step.name)
        print(
            f"{title:<10}{sizes['encoder']:>10,}{sizes['head']:>10,}"
            f"{sizes['macs'] / 1e6:>12.2f} M{sizes['seconds_per_second']:>18.4f}"
            f"{cosine['eer_percent']:>8.2f}"
        )


def print_detector(rows):
    """The detector on speakers and methods it was trained without."""
    print(f"\n{'spoofs of':<26}{'parameters':>12}{'EER %':>8}{'minDCF':>10}{'Cllr':>8}")
    for row in rows:
        print(
            f"{row['list']:<26}{row['total_parameters']:>12,}"
            f"{row['pooled']['eer_percent']:>8.2f}{row['pooled']['min_dcf']:>10.3f}"
            f"{row['pooled']['cllr']:>8.3f}"
        )


def print_pictures(rows, results, seconds):
    """What to look at, and what not to conclude."""
    pictures = rows[-1]["pictures"]
    pruning = results / PRUNED[0].name
    print(
        f"\n{seconds:.0f} s. Parameters of encoder and head; LoRA merged after stage 1."
        "\nSynthetic voices and a tiny encoder from random weights: this shows that the"
        "\npipeline works, and says nothing about the accuracy of w2v-BERT 2.0.\n"
        f"\nDET curves        {pictures['det']}"
        f"\nscore histogram   {pictures['histograms'][rows[-1]['system']]}"
        f"\ncalibration       {pictures['calibration']}"
        f"\nunits left        {pruning / 'structure.png'}"
        f"\nsparsity          {pruning / 'steps.png'}"
    )


@command_line
def main():
    """Corpus, stages, pruning and stages again, verification, detection, tables."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="quickstart", help="where all goes")
    folder = Path(parser.parse_args().folder).resolve()
    start = time.monotonic()
    corpus = make_demo_corpus(folder / "corpus")
    rows, results = [], folder / "results"
    for step in (*DENSE, *PRUNED):
        rows += run_step(step, corpus, results)
    share(corpus, results, folder / "model")
    detected = detect(corpus, results)
    print_stages(rows)
    print_sizes(rows, results)
    print_detector(detected)
    print_pictures(rows, results, time.monotonic() - start)
    print(f"model to share    {folder / 'model'}")


if __name__ == "__main__":
    main()
