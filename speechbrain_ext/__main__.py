"""``python -m speechbrain_ext COMMAND``: thin commands over public functions."""

import argparse
import json

from speechbrain_ext.errors import command_line
from speechbrain_ext.inference.convert_arguments import add_convert
from speechbrain_ext.scoring.arguments import add_scoring


def add_profile(commands):
    """``profile``: parameters and multiply-adds of a model."""
    parser = commands.add_parser(
        "profile", help="parameters and multiply-adds of a model, without its weights"
    )
    parser.add_argument("--config", help="encoder configuration (JSON)")
    parser.add_argument(
        "--head",
        default="all",
        choices=["all", "adapter_mfa", "mfa", "weighted_ecapa"],
    )
    parser.add_argument("--lora_rank", type=int, default=64, help="0: no LoRA")
    parser.add_argument("--seconds", type=float, default=1.0, help="of the utterance")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_profile)


def run_profile(arguments):
    """Print the table, or JSON."""
    from speechbrain_ext.profiling import HEADS, profile_model

    heads = list(HEADS) if arguments.head == "all" else [arguments.head]
    rows = {
        head: profile_model(
            arguments.config, head, arguments.lora_rank, arguments.seconds
        )
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
        f"Multiply-adds of one utterance of {arguments.seconds:g} s, counted: matrix "
        "products,\nconvolutions, attention with its relative-position products. Not "
        "counted: features,\nnormalisation, activations, softmax, biases."
    )


@command_line
def main(argv=None):
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain_ext", description=__doc__
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_profile(commands)
    add_scoring(commands)
    add_convert(commands)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
