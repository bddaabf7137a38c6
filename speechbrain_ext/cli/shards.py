"""Arguments of ``python -m speechbrain_ext shards``.

:mod:`speechbrain_ext.data.shards.writer` runs; it is imported only then.
"""

import sys

from speechbrain_ext.utils.errors import InputError


def add_shards(commands):
    """Add ``shards``: the recordings of manifests as tar files, or a check of them."""
    parser = commands.add_parser(
        "shards", help="recordings of a manifest to WebDataset tar files, or check them"
    )
    parser.add_argument("--manifest", nargs="+", help="train.csv, …: what goes in")
    parser.add_argument("--output", help="folder for the shards")
    parser.add_argument("--check", metavar="DIR", help="read all shards of a folder")
    parser.add_argument(
        "--utterances_per_shard", type=int, default=2000, help="%(default)s by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order in shards")
    parser.add_argument(
        "--max_bad_files",
        type=int,
        default=0,
        help="so many utterances may be unreadable; %(default)s by default",
    )
    parser.add_argument(
        "--num_workers", type=int, help="processes; one for each core by default"
    )
    parser.set_defaults(run=run_shards)


def run_shards(arguments):
    """Make shards, or check them; the counts go to stdout."""
    import logging

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    given = [bool(arguments.manifest), bool(arguments.output), bool(arguments.check)]
    if given not in ([True, True, False], [False, False, True]):
        raise InputError(
            "shards: expected --manifest and --output to make them, or --check DIR"
        )
    from speechbrain_ext.data.shards.writer import check_shards, make_shards

    if arguments.check:
        folder = arguments.check
        counts = check_shards(folder, arguments.max_bad_files, arguments.num_workers)
    else:
        folder = arguments.output
        counts = make_shards(
            arguments.manifest,
            folder,
            arguments.utterances_per_shard,
            arguments.seed,
            arguments.max_bad_files,
            arguments.num_workers,
        )
    print(
        f"{folder}: {counts.utterances} utterances in {counts.shards} shards, "
        f"{counts.bytes / 2**20:.0f} MiB; {counts.bad} bad"
    )
