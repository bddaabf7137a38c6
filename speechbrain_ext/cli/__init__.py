"""``python -m speechbrain_ext COMMAND``: thin commands over public functions."""

import argparse
import json

from speechbrain_ext.cli.layers import add_stages
from speechbrain_ext.cli.models import add_inference
from speechbrain_ext.cli.scoring import add_scoring
from speechbrain_ext.cli.shards import add_shards
from speechbrain_ext.cli.share import add_convert, add_export, add_onnx
from speechbrain_ext.utils.errors import command_line


def add_profile(commands):
    """``profile``: parameters and multiply-adds of a model."""
    parser = commands.add_parser(
        "profile", help="parameters and multiply-adds of a model, without its weights"
    )
    parser.add_argument("--config", help="encoder configuration (JSON)")
    parser.add_argument(
        "--pretrained_folder",
        nargs="+",
        help="models that train.py or distill_prune.py saved, instead; also timed",
    )
    parser.add_argument(
        "--head",
        default="all",
        choices=["all", "adapter_mfa", "mfa", "weighted_ecapa"],
    )
    parser.add_argument("--lora_rank", type=int, default=64, help="0: no LoRA")
    parser.add_argument(
        "--seconds",
        type=float,
        help="of the utterance; 1 for multiply-adds, 10 for the speed of saved models",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_profile)


def run_profile(arguments):
    """Print the table, or JSON."""
    if arguments.pretrained_folder:
        profile_saved(arguments)
        return
    from speechbrain_ext.profiling import HEADS, profile_model

    seconds = 1.0 if arguments.seconds is None else arguments.seconds
    heads = list(HEADS) if arguments.head == "all" else [arguments.head]
    rows = {
        head: profile_model(arguments.config, head, arguments.lora_rank, seconds)
        for head in heads
    }
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'model':<16}{'encoder':>14}{'head':>12}{'LoRA adds':>12}{'MACs':>10}")
    for head, row in rows.items():
        print(
            f"{head:<16}{row['encoder']:>14,}{row['head']:>12,}{row['lora']:>12,}"
            f"{row['macs'] / 1e9:>8.2f} G"
        )
    print(
        f"Multiply-adds of one utterance of {seconds:g} s, counted: matrix "
        "products,\nconvolutions, attention with its relative-position products. Not "
        "counted: features,\nnormalisation, activations, softmax, biases."
    )


def profile_saved(arguments):
    """Print a row for each saved model, or JSON."""
    import torch

    from speechbrain_ext.profiling import profile_folder

    seconds = 10.0 if arguments.seconds is None else arguments.seconds
    rows = {
        folder: profile_folder(folder, seconds)
        for folder in arguments.pretrained_folder
    }
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'encoder':>13}{'head':>12}{'MACs of 1 s':>14}{'s per s':>10}  model")
    for folder, row in rows.items():
        print(
            f"{row['encoder']:>13,}{row['head']:>12,}{row['macs'] / 1e9:>12.4g} G"
            f"{row['seconds_per_second']:>10.4f}  {folder}"
        )
    print(
        f"s per s: seconds of computing for one of audio, utterances of {seconds:g} s "
        f"one at a time,\n{torch.get_num_threads()} threads on the CPU."
    )


@command_line
def main(argv=None):
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain_ext", description=__doc__
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_profile(commands)
    add_stages(commands)
    add_shards(commands)
    add_scoring(commands)
    add_convert(commands)
    add_export(commands)
    add_onnx(commands)
    add_inference(commands)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)
