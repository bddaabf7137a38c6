"""``verify``, ``embed`` and ``app``: a model at work on recordings.

Results are JSON on stdout, one object; all else goes to stderr. ``verify`` exits with 3
where a side has no speech: that is neither yes nor no, nor a mistake of the user's.
"""

import contextlib
import json
import logging
import sys

from speechbrain_ext.utils.errors import InputError

NO_SPEECH = 3  # exit code


def add_models(commands):
    """Add ``verify``, ``embed``, ``app``."""
    about = "decide whether recordings are of one speaker; JSON on stdout"
    verify = commands.add_parser(
        "verify",
        help=about,
        description=about,
        epilog="Exit code: 0 whatever the decision, 1 where the input is wrong, 3 "
        'where no speech was found on a side (then "same_speaker" is null).',
        usage="%(prog)s ENROL TEST --source SOURCE [options]\n"
        "       %(prog)s --enrol FILE [FILE ...] --test FILE [FILE ...] "
        "--source SOURCE [options]\n"
        "       %(prog)s TEST --voice NAME --voices FILE --source SOURCE [options]",
    )
    verify.add_argument(
        "recordings",
        nargs="*",
        metavar="FILE",
        help="one recording of the known speaker and one to test; a part of one as "
        "FILE:12.5-17.0, in seconds, or FILE:12.5-",
    )
    verify.add_argument(
        "--enrol", nargs="+", metavar="FILE", help="several of the known speaker"
    )
    verify.add_argument(
        "--voice", metavar="NAME", help="an enrolled voice, in place of ENROL"
    )
    verify.add_argument("--voices", metavar="FILE", help="written by enrol")
    verify.add_argument(
        "--test", nargs="+", metavar="FILE", help="one or several of one test speaker"
    )
    about = "embeddings of folders or files, for score and cohort"
    embed = commands.add_parser("embed", help=about, description=about)
    embed.add_argument(
        "inputs",
        nargs="+",
        metavar="FOLDER_OR_FILE",
        help="recordings, or parts of some as FILE:12.5-17.0, in seconds; folders with "
        "all below them",
    )
    embed.add_argument("--out", required=True, help="file: .npz or .safetensors")
    embed.add_argument(
        "--strict",
        action="store_true",
        help="exit code 1 if any recording failed (default: only if all did)",
    )
    embed.add_argument(
        "--batch_seconds",
        type=float,
        help="of audio in one batch: bounds the memory (default: as the device needs)",
    )
    about = "a page in the browser to compare two clips"
    app = commands.add_parser("app", help=about, description=about)
    app.add_argument("--host", default="127.0.0.1", help="0.0.0.0: open to the network")
    app.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    app.add_argument(
        "--voices",
        metavar="FILE",
        help="enrolled voices, as of enrol; begun where there is none (default: in "
        "memory, until the page ends)",
    )
    for parser in (verify, embed):
        add_channel(parser)
    verify.add_argument(
        "--test_channel",
        metavar="CHANNEL",
        help="of the test side, where it is another",
    )
    for parser, run in ((verify, run_verify), (embed, run_embed), (app, run_app)):
        add_model(parser)
        parser.set_defaults(run=run)
    for parser in (verify, app):
        add_decision(parser)
        parser.add_argument(
            "--detector",
            metavar="SOURCE",
            help="also a spoofing detector, a folder or hub id: is each voice real?",
        )
        parser.add_argument(
            "--spoof_accept_rate",
            type=float,
            help="fraction of spoofs that it lets in: the threshold that its held-out "
            "recordings had for it",
        )


def add_channel(parser):
    parser.add_argument(
        "--channel",
        default="mean",
        help="of several: left, right, a number (the first is 1), mean, or best by an "
        "estimate of the signal-to-noise ratio (default: mean)",
    )


def add_model(parser):
    parser.add_argument(
        "--source", required=True, help="model: a local folder, or an id on the hub"
    )
    parser.add_argument("--savedir", help="where a model of the hub is kept")
    parser.add_argument("--device", help="cpu, cuda:1, mps (default: cuda if there)")
    parser.add_argument(
        "--precision",
        help="of the encoder: fp32 (default), bf16 or fp16 on a GPU, int8 on a CPU",
    )
    parser.add_argument(
        "--no_speech_detection",
        dest="speech_detection",
        action="store_const",
        const=False,
        help="embed recordings as they are, with silence and noise (default: the "
        "speech in them, where the model's folder does not say otherwise)",
    )


def add_decision(parser, wrong="impostors let in"):
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--threshold", type=float, help="same speaker at this score or above"
    )
    group.add_argument(
        "--false_accept_rate",
        type=float,
        help=f"fraction of {wrong}: the threshold that the model's held-out trials had "
        "for it",
    )
    parser.add_argument(
        "--score",
        choices=("cosine", "as_norm", "llr"),
        help="of those the model has: the best calibrated (default)",
    )


def run_verify(arguments):
    """Print whether recordings are of one speaker."""
    from speechbrain_ext.inference.decisions import comparison_report
    from speechbrain_ext.inference.voices import Voices

    enrol, test = _sides(arguments)
    verifier = load_verifier(arguments)
    detection = _detection_of(arguments)
    if enrol is None:
        enrol = Voices.load(arguments.voices, verifier)[arguments.voice]
    with logged_to_stderr():
        report = comparison_report(
            *(verifier, enrol, test),
            **decision_of(arguments),
            channel=arguments.channel,
            test_channel=arguments.test_channel,
            **detection,
        )
    if arguments.voice is not None:
        report["enrol"]["voice"] = arguments.voice
    print_json(report)
    if report["same_speaker"] is None:
        raise SystemExit(NO_SPEECH)


def run_embed(arguments):
    """Write the embeddings of folders and files; print how many."""
    from speechbrain_ext.inference.folders import embed_inputs

    verifier = load_verifier(arguments, noprogressbar=True)  # one bar for all, instead
    with logged_to_stderr():
        counts = embed_inputs(
            *(verifier, arguments.inputs, arguments.out, arguments.batch_seconds),
            speech_detection=arguments.speech_detection,
            channel=arguments.channel,
        )
    print_json(counts)
    failed = f"{counts['failed']} failed"
    if counts["failures"]:
        failed += f", listed in {counts['failures']}"
    left_out = ", ".join(f"{n} {what}" for what, n in counts["left_out"].items())
    print(
        f"{counts['embedded']} recordings embedded, {failed}; "
        f"left out: {left_out or 'nothing'}",
        file=sys.stderr,
    )
    if arguments.strict and counts["failed"]:
        raise InputError(f"--strict: {failed}, expected none")


def run_app(arguments):
    """Serve the page."""
    from speechbrain_ext.app import import_gradio, launch

    import_gradio()  # before a model of gigabytes is loaded
    verifier = load_verifier(arguments)
    with logged_to_stderr():
        launch(
            *(verifier, arguments.source, arguments.host, arguments.port),
            voices=arguments.voices,
            **_detection_of(arguments),
            **decision_of(arguments),
        )


def _sides(arguments):
    """The recordings of the two sides of a trial, however they were given.

    Those of an enrolled voice are None.
    """
    recordings, enrol, test = arguments.recordings, arguments.enrol, arguments.test
    if arguments.voice is not None or arguments.voices is not None:
        if None in (arguments.voice, arguments.voices) or enrol:
            raise InputError(
                "--voice NAME and --voices FILE go together and take the place of the "
                "enrolment's recordings"
            )
        if bool(recordings) == bool(test):
            raise InputError("recordings to test with --voice, expected at least one")
        return None, recordings or test
    if not recordings and enrol and test:
        return enrol, test
    if len(recordings) == 2 and not enrol and not test:
        return recordings[:1], recordings[1:]
    raise InputError(
        f"{len(recordings)} recordings, {len(enrol or [])} with --enrol, "
        f"{len(test or [])} with --test; expected two recordings, or some with --enrol "
        "and some with --test"
    )


def decision_of(arguments):
    names = ("score", "threshold", "false_accept_rate", "speech_detection")
    return {name: getattr(arguments, name) for name in names}


def load_verifier(arguments, **run_opts):
    from speechbrain_ext.inference import SpeakerVerifier

    if arguments.device:
        run_opts["device"] = arguments.device
    return SpeakerVerifier.from_hparams(
        *(arguments.source, arguments.savedir, run_opts),
        precision=arguments.precision,
    )


def load_detector(arguments, source, savedir=None):
    from speechbrain_ext.inference import SpoofingDetector

    run_opts = {"device": arguments.device} if arguments.device else None
    return SpoofingDetector.from_hparams(
        *(source, savedir, run_opts), precision=arguments.precision
    )


def _detection_of(arguments):
    """Detector and its rate, where one is asked for → keywords of ``compare``."""
    if arguments.detector is None:
        if arguments.spoof_accept_rate is not None:
            raise InputError(
                f"--spoof_accept_rate {arguments.spoof_accept_rate:g}: expected "
                "--detector with it"
            )
        return {}
    detector = load_detector(arguments, arguments.detector)
    return {"detector": detector, "spoof_accept_rate": arguments.spoof_accept_rate}


def print_json(values):
    text = json.dumps(values, indent=1, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a name that is no text; a terminal of its own code
        text = json.dumps(values, indent=1)
    print(text)


@contextlib.contextmanager
def logged_to_stderr():
    """The package's log goes to stderr, a message of each kind once.

    Blocks of files, and comparison after comparison, repeat theirs with other values.
    """
    handler = logging.StreamHandler(sys.stderr)
    seen = set()

    def is_new(record):
        new = record.msg not in seen
        seen.add(record.msg)
        return new

    handler.addFilter(is_new)
    logger = logging.getLogger("speechbrain_ext")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
