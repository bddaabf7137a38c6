"""``profile`` and ``stages``: what a model costs, and where its time goes."""

import json

from speechbrain_ext.utils.allocator import keep_freed_memory


def add_profile(commands):
    """Add ``profile`` and ``stages``."""
    about = "parameters and multiply-adds of a model, without its weights"
    parser = commands.add_parser("profile", help=about, description=about)
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
    parser.set_defaults(run=run_profile)
    about = "where a model's time goes, beside what its arithmetic would take"
    stages = commands.add_parser("stages", help=about, description=about)
    model = stages.add_mutually_exclusive_group()
    model.add_argument("--config", help="encoder configuration (JSON), random weights")
    model.add_argument(
        "--pretrained_folder", help="a model that train.py or distill_prune.py saved"
    )
    stages.add_argument("--seconds", type=float, nargs="+", default=[3.0, 10.0, 30.0])
    stages.add_argument("--picture", metavar="PNG", help="draw it as well")
    stages.set_defaults(run=run_stages)
    for command in (parser, stages):
        command.add_argument("--json", action="store_true", help="print JSON")


def run_profile(arguments):
    """Print a row for each head or each saved model, or JSON."""
    if arguments.pretrained_folder:
        _profile_saved(arguments)
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


def _profile_saved(arguments):
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


def run_stages(arguments):
    """Print a table for each length, or JSON."""
    from speechbrain_ext.pretrained import load_pretrained
    from speechbrain_ext.profiling import random_model
    from speechbrain_ext.profiling.layers import plot_stages, stage_times

    keep_freed_memory()  # as inference does
    if arguments.pretrained_folder:
        model = load_pretrained(arguments.pretrained_folder).eval()
    else:
        model = random_model(arguments.config).eval()
    times = {seconds: stage_times(model, seconds) for seconds in arguments.seconds}
    if arguments.picture:
        plot_stages(arguments.picture, times)
    if arguments.json:
        values = {s: [stage._asdict() for stage in times[s]] for s in times}
        print(json.dumps(values, indent=1))
        return
    for seconds, stages in times.items():
        _print_stages(seconds, stages)


def _print_stages(seconds, stages):
    import torch

    total = sum(stage.seconds for stage in stages)
    limit = sum(stage.limit for stage in stages)
    print(f"{seconds:g} s, {torch.get_num_threads()} threads on the CPU")
    print(f"{'stage':<14}{'ms':>10}{'share':>8}{'G MACs':>10}{'at limit':>10}")
    for stage in stages:
        print(
            f"{stage.name:<14}{1000 * stage.seconds:>10.1f}"
            f"{stage.seconds / total:>8.0%}{stage.macs / 1e9:>10.2f}"
            f"{stage.limit / stage.seconds if stage.seconds else 0:>10.0%}"
        )
    print(f"{'all':<14}{1000 * total:>10.1f}{'':>18}{limit / total:>10.0%}\n")
