"""Arguments of the scoring commands of ``python -m speechbrain_ext``.

What runs is in :mod:`speechbrain_ext.scoring.commands`, imported only then.
"""


def add_scoring(commands):
    """Add ``cohort``, ``qmf``, ``score``, ``calibrate``, ``fuse``, ``evaluate``."""
    _add_cohort(commands)
    _add_qmf(commands)
    _add_score(commands)
    _add_calibrate(commands)
    _add_fuse(commands)
    _add_evaluate(commands)


def _add_cohort(commands):
    parser = _command(commands, "cohort", "the speakers of some embeddings as a cohort")
    _add_embeddings(parser)
    _add_output(parser, "cohort.npz, for AS-norm")


def _add_qmf(commands):
    parser = _command(
        commands, "qmf", "fit a quality-aware calibration to embeddings of speakers"
    )
    _add_embeddings(parser)
    _add_backend(parser)
    _add_fitting(parser)
    parser.add_argument("--n_trials", type=int, default=30_000, help="to draw")
    parser.add_argument(
        "--boundary", type=float, default=6.0, help="seconds: longer ones are long"
    )
    parser.add_argument(
        "--shortest", type=float, default=2.0, help="seconds: shorter are left out"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the trials")
    _add_output(parser, "calibration.json, for score --calibrator")


def _add_score(commands):
    parser = _command(commands, "score", "scores of trial lists from embeddings")
    parser.add_argument("--embeddings", required=True, help="npz or safetensors")
    parser.add_argument("--trials", required=True, nargs="+", help="one list or more")
    parser.add_argument("--enrol_map", help="lines 'model utterance …'; averaged")
    parser.add_argument(
        "--manifest", help="CSV of these recordings: durations, which QMF wants"
    )
    _add_backend(parser)
    parser.add_argument("--calibrator", help="calibration.json of qmf or verify.py")
    _add_output(parser, "folder for scores_LIST_SYSTEM.txt and .npz")


def _add_calibrate(commands):
    parser = _command(
        commands, "calibrate", "fit likelihood ratios to the scores of systems"
    )
    _add_lists(parser)
    _add_fitting(parser, l2=1e-6)
    _add_output(parser, "calibration.json, for fuse")


def _add_fuse(commands):
    parser = _command(
        commands, "fuse", "apply the calibration of one system or of several"
    )
    parser.add_argument("--calibrator", required=True, help="of calibrate")
    _add_lists(parser, required=False)
    _add_output(parser, "file: text (.txt) or a table (.npz, .safetensors)")


def _add_evaluate(commands):
    parser = _command(commands, "evaluate", "report of the scores of systems on a list")
    _add_lists(parser)
    parser.add_argument(
        "--calibrated",
        nargs="+",
        default=[],
        metavar="NAME",
        help="systems whose scores are natural-log likelihood ratios",
    )
    parser.add_argument(
        "--manifest", help="CSV: speakers of recordings whose names do not tell them"
    )
    parser.add_argument(
        "--n_resamples", type=int, default=200, help="of the bootstrap; 0: none"
    )
    _add_output(parser, "folder for results.json, results.md and pictures")


def _command(commands, name, summary):
    parser = commands.add_parser(name, help=summary, description=summary)

    def run(arguments):
        from speechbrain_ext.scoring import commands as functions

        getattr(functions, name)(arguments)

    parser.set_defaults(run=run)
    return parser


def _add_embeddings(parser):
    parser.add_argument("--embeddings", required=True, help="npz or safetensors")
    parser.add_argument("--manifest", required=True, help="CSV: whose they are")


def _add_backend(parser):
    parser.add_argument("--cohort", help="cohort.npz of cohort or verify.py: AS-norm")
    parser.add_argument(
        "--top_n", default="300", help="of the cohort; all: S-norm (default: 300)"
    )
    parser.add_argument("--memory_mib", type=float, default=512, help="of AS-norm")


def _add_fitting(parser, l2=None):
    parser.add_argument("--objective", default="cllr", help="cllr or cross_entropy")
    chosen = "by cross-validation" if l2 is None else f"{l2:g}"
    parser.add_argument(
        "--l2", type=float, default=l2, help=f"of the weights (default: {chosen})"
    )


def _add_lists(parser, required=True):
    order = "" if required else "; its order and labels, else those of the first system"
    parser.add_argument("--trials", required=required, help=f"trial list{order}")
    parser.add_argument(
        "--scores",
        required=True,
        nargs="+",
        metavar="NAME=FILE",
        help="systems: text 'enrol test score', or a table",
    )


def _add_output(parser, what):
    parser.add_argument("--output", required=True, help=what)
