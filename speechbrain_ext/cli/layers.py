"""``python -m speechbrain_ext stages``: where the time of a forward pass goes."""

import json

from speechbrain_ext.utils.allocator import keep_freed_memory


def add_stages(commands):
    """``stages``: time of features, feed-forward, attention, convolution, head."""
    parser = commands.add_parser(
        "stages",
        help="where a model's time goes, beside what its arithmetic would take",
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config", help="encoder configuration (JSON), random weights")
    model.add_argument(
        "--pretrained_folder", help="a model that train.py or distill_prune.py saved"
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 10.0, 30.0])
    parser.add_argument("--picture", metavar="PNG", help="draw it as well")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_stages)


def run_stages(arguments):
    """Print a table for each length, or JSON."""
    from speechbrain_ext.profiling.layers import plot_stages, stage_times

    keep_freed_memory()  # as inference does
    model = _model(arguments)
    times = {seconds: stage_times(model, seconds) for seconds in arguments.seconds}
    if arguments.picture:
        plot_stages(arguments.picture, times)
    if arguments.json:
        found = {s: [stage._asdict() for stage in times[s]] for s in times}
        print(json.dumps(found, indent=1))
        return
    for seconds, stages in times.items():
        _print_table(seconds, stages)


def _model(arguments):
    from speechbrain_ext.pretrained import load_pretrained
    from speechbrain_ext.profiling import random_model

    if arguments.pretrained_folder:
        return load_pretrained(arguments.pretrained_folder).eval()
    return random_model(arguments.config).eval()


def _print_table(seconds, stages):
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
