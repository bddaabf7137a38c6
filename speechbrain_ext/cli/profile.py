"""``profile``, ``stages``, ``sizes``: what a model costs, and what it is good for."""

import json

from speechbrain_ext.utils.allocator import keep_freed_memory
from speechbrain_ext.utils.errors import InputError

LAYERS_SECONDS = [3.0, 10.0, 30.0]


def add_profile(commands):
    """Add ``profile``; ``stages``, which is ``profile --layers``; ``sizes``."""
    about = "parameters and multiply-adds of a model, without its weights"
    profile = commands.add_parser("profile", help=about, description=about)
    about = "where a model's time goes, beside what its arithmetic would take"
    profile.add_argument("--layers", action="store_true", help=f"{about} (stages)")
    stages = commands.add_parser("stages", help=about, description=about)
    stages.set_defaults(layers=True)
    for parser in (profile, stages):
        _add_options(parser)
        parser.set_defaults(run=run_profile)
    about = "error rate against size of verified models, as a table and a picture"
    sizes = commands.add_parser("sizes", help=about, description=about)
    sizes.set_defaults(run=run_sizes)
    sizes.add_argument(
        "results", nargs="+", help="output folders of verify.py; each names its model"
    )
    sizes.add_argument(
        "--system", help="cosine, as_norm, llr (default: the last that all have)"
    )
    sizes.add_argument(
        "--output", required=True, help="folder for sizes.md, sizes.json, sizes.png"
    )
    sizes.add_argument(
        "--seconds",
        type=float,
        help="also time them on an utterance of so many seconds (default: not)",
    )


def run_sizes(arguments):
    """Print the table; write it, and the picture."""
    from speechbrain_ext.evaluation.sizes import error_by_size, write_error_by_size

    keep_freed_memory()  # as inference does
    found = error_by_size(arguments.results, arguments.system, arguments.seconds)
    print(write_error_by_size(arguments.output, found))


def _add_options(parser):
    parser.add_argument("--config", help="encoder configuration (JSON), random weights")
    parser.add_argument(
        "--hparams",
        metavar="YAML",
        help="encoder and head of a recipe's file, in place of w2v-BERT and --head; "
        "with --config as the encoder's source, no weights are read",
    )
    parser.add_argument(
        "--pretrained_folder",
        nargs="+",
        help="models that train.py or distill_prune.py saved, instead; also timed",
    )
    parser.add_argument(
        "--head",
        help="adapter_mfa, mfa, weighted_ecapa, or a class of "
        "speechbrain_ext.lobes.heads (default: those three; for the time, the first)",
    )
    parser.add_argument(
        "--lora_rank",
        type=int,
        help="0: no LoRA (default: 64; with --hparams, that of the file)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="+",
        help="of the utterance (default: 1 for multiply-adds, 10 for the speed of "
        "saved models; 3, 10 and 30 for the time of layers)",
    )
    parser.add_argument("--picture", metavar="PNG", help="draw the time of layers")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_profile(arguments):
    """Print a row for each model or, with ``--layers``, each kind of layer; or JSON."""
    if arguments.pretrained_folder and (arguments.config or arguments.hparams):
        raise InputError(
            "--pretrained_folder beside --config or --hparams, expected one model"
        )
    if arguments.layers:
        _profile_layers(arguments)
        return
    if arguments.picture:
        raise InputError("--picture: expected with --layers")
    if arguments.seconds and len(arguments.seconds) > 1:
        raise InputError(f"--seconds: {len(arguments.seconds)} lengths, expected one")
    if arguments.pretrained_folder:
        _profile_saved(arguments)
    else:
        _profile_random(arguments)


def _profile_random(arguments):
    from speechbrain_ext.profiling import (
        PUBLISHED_HEADS,
        profile_model,
        profile_recipe,
    )

    (seconds,) = arguments.seconds or [1.0]
    rank = arguments.lora_rank
    if arguments.hparams:
        rows = {
            arguments.hparams: profile_recipe(
                arguments.hparams, arguments.config, rank, seconds
            )
        }
    else:
        rank = 64 if rank is None else rank
        all_heads = arguments.head in (None, "all")
        rows = {
            head: profile_model(arguments.config, head, rank, seconds)
            for head in (PUBLISHED_HEADS if all_heads else [arguments.head])
        }
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    width = max(16, *map(len, rows))
    print(f"{'model':<{width}}{'encoder':>14}{'head':>12}{'LoRA adds':>12}{'MACs':>10}")
    for name, row in rows.items():
        print(
            f"{name:<{width}}{row['encoder']:>14,}{row['head']:>12,}{row['lora']:>12,}"
            f"{row['macs'] / 1e9:>8.2f} G"
        )
    print(
        f"Multiply-adds of one utterance of {seconds:g} s, counted: matrix "
        "products,\nconvolutions, attention with its relative-position products. Not "
        "counted: features,\nnormalisation, activations, softmax, biases."
    )


def _profile_saved(arguments):
    import torch

    from speechbrain_ext.profiling import profile_folders

    (seconds,) = [10.0] if arguments.seconds is None else arguments.seconds
    rows = profile_folders(arguments.pretrained_folder, seconds)
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


def _profile_layers(arguments):
    from speechbrain_ext.profiling.layers import layer_times, plot_layers

    keep_freed_memory()  # as inference does
    model = _model(arguments).eval()
    lengths = arguments.seconds or LAYERS_SECONDS
    times = {seconds: layer_times(model, seconds) for seconds in lengths}
    if arguments.picture:
        plot_layers(arguments.picture, times)
    if arguments.json:
        values = {s: [layer._asdict() for layer in times[s]] for s in times}
        print(json.dumps(values, indent=1))
        return
    for seconds, layers in times.items():
        _print_layers(seconds, layers)


def _model(arguments):
    from speechbrain_ext.pretrained import load_pretrained
    from speechbrain_ext.profiling import random_model, recipe_model

    folders = arguments.pretrained_folder
    if folders and len(folders) > 1:
        raise InputError(f"--pretrained_folder: {len(folders)} folders, expected one")
    if folders:
        return load_pretrained(folders[0])
    if arguments.hparams:
        return recipe_model(arguments.hparams, arguments.config)
    return random_model(arguments.config, arguments.head or "adapter_mfa")


def _print_layers(seconds, layers):
    import torch

    total = sum(layer.seconds for layer in layers)
    limit = sum(layer.limit for layer in layers)
    print(f"{seconds:g} s, {torch.get_num_threads()} threads on the CPU")
    print(f"{'stage':<14}{'ms':>10}{'share':>8}{'G MACs':>10}{'at limit':>10}")
    for layer in layers:
        print(
            f"{layer.name:<14}{1000 * layer.seconds:>10.1f}"
            f"{layer.seconds / total:>8.0%}{layer.macs / 1e9:>10.2f}"
            f"{layer.limit / layer.seconds if layer.seconds else 0:>10.0%}"
        )
    print(f"{'all':<14}{1000 * total:>10.1f}{'':>18}{limit / total:>10.0%}\n")
