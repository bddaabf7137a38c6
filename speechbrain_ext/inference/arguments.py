"""Arguments of ``verify``, ``embed`` and ``app`` of ``python -m speechbrain_ext``.

What runs is in :mod:`speechbrain_ext.inference.commands` and
:mod:`speechbrain_ext.inference.app`, imported only then.
"""

SCORES = ("cosine", "as_norm", "llr")


def add_inference(commands):
    """Add ``verify``, ``embed``, ``app``."""
    _add_verify(commands)
    _add_embed(commands)
    _add_app(commands)


def _add_verify(commands):
    parser = _command(
        commands,
        "verify",
        "decide whether recordings are of one speaker; JSON on stdout",
        usage="%(prog)s ENROL TEST --source SOURCE [options]\n"
        "       %(prog)s --enrol FILE [FILE ...] --test FILE [FILE ...] "
        "--source SOURCE [options]",
    )
    parser.add_argument(
        "recordings",
        nargs="*",
        metavar="FILE",
        help="one recording of the known speaker and one to test",
    )
    parser.add_argument(
        "--enrol", nargs="+", metavar="FILE", help="several of the known speaker"
    )
    parser.add_argument(
        "--test", nargs="+", metavar="FILE", help="one or several of one test speaker"
    )
    _add_model(parser)
    _add_decision(parser)
    parser.add_argument("--score", choices=SCORES, help=f"{_BEST} (default)")


def _add_embed(commands):
    parser = _command(
        commands, "embed", "embeddings of folders or files, for score and cohort"
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FOLDER_OR_FILE",
        help="recordings (wav, flac, ogg, mp3); folders with all below them",
    )
    _add_model(parser)
    parser.add_argument("--out", required=True, help="file: .npz or .safetensors")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit code 1 if any recording failed (default: only if all did)",
    )
    parser.add_argument(
        "--batch_seconds",
        type=float,
        help="of audio in one batch: bounds the memory (default: as the device needs)",
    )


def _add_app(commands):
    parser = _command(commands, "app", "a page in the browser to compare two clips")
    _add_model(parser)
    _add_decision(parser)
    parser.add_argument("--score", choices=SCORES, help=f"{_BEST} (default)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: open to the network"
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")


_BEST = "of those the model has: the best calibrated"


def _command(commands, name, summary, **options):
    parser = commands.add_parser(name, help=summary, description=summary, **options)

    def run(arguments):
        from speechbrain_ext.inference import commands as functions

        getattr(functions, name)(arguments)

    parser.set_defaults(run=run)
    return parser


def _add_model(parser):
    parser.add_argument(
        "--source", required=True, help="model: a local folder, or an id on the hub"
    )
    parser.add_argument("--savedir", help="where a model of the hub is kept")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there)")


def _add_decision(parser):
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--threshold", type=float, help="same speaker at this score or above"
    )
    group.add_argument(
        "--false_accept_rate",
        type=float,
        help="fraction of impostors let in: the threshold that the model's held-out "
        "trials had for it",
    )
