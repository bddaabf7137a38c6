"""``detect``: a spoofing detector at work on recordings.

JSON on stdout, one object; all else goes to stderr. It exits with 3 where a recording
has no speech: that is neither bona fide nor a spoof, nor a mistake of the user's.
"""

import sys

from speechbrain_ext.cli.models import (
    NO_SPEECH,
    add_channel,
    add_model,
    load_detector,
    logged_to_stderr,
    print_json,
)


def add_detect(commands):
    """Add ``detect``."""
    about = "decide whether recordings are bona fide speech or spoofs; JSON on stdout"
    parser = commands.add_parser(
        "detect",
        help=about,
        description=about,
        epilog="Exit code: 0 whatever the decisions, 1 where the input is wrong (one "
        'of several files: its "error" says how), 3 where no speech was found in a '
        'recording (then its "bonafide" is null).',
    )
    parser.add_argument(
        "recordings",
        nargs="+",
        metavar="FILE",
        help="a part of one as FILE:12.5-17.0, in seconds, or FILE:12.5-",
    )
    add_channel(parser)
    add_model(parser)
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--threshold", type=float, help="bona fide at this likelihood ratio or above"
    )
    group.add_argument(
        "--false_accept_rate",
        type=float,
        help="fraction of spoofs let in: the threshold that the model's held-out "
        "recordings had for it",
    )
    parser.add_argument(
        "--prior",
        type=float,
        default=0.5,
        help="share of bona fide recordings, for the probability (default: 0.5)",
    )
    parser.set_defaults(run=run_detect)


def run_detect(arguments):
    """Print whether recordings are bona fide."""
    from speechbrain_ext.inference.detector import detection_report

    detector = load_detector(arguments, arguments.source, arguments.savedir)
    names = ("threshold", "false_accept_rate", "prior", "speech_detection", "channel")
    options = {name: getattr(arguments, name) for name in names}
    with logged_to_stderr():
        report = detection_report(detector, arguments.recordings, **options)
    print_json(report)
    wrong = [found for found in report["recordings"] if "error" in found]
    for found in wrong:
        print(f"error: {found['file']}: {found['error']}", file=sys.stderr)
    if wrong:
        raise SystemExit(1)
    if any(found["bonafide"] is None for found in report["recordings"]):
        raise SystemExit(NO_SPEECH)
