"""``enrol``, ``identify``, ``voices`` and ``thresholds``: one's own voices.

Results are JSON on stdout, one object; all else goes to stderr.
"""

import sys

from speechbrain_ext.cli.models import (
    NO_SPEECH,
    add_channel,
    add_decision,
    add_model,
    decision_of,
    load_verifier,
    logged_to_stderr,
    print_json,
)
from speechbrain_ext.utils.errors import InputError


def add_voices(commands):
    """Add ``enrol``, ``identify``, ``voices``, ``thresholds``."""
    for add in (_add_enrol, _add_identify, _add_voices, _add_thresholds):
        add(commands)


def _add_enrol(commands):
    about = "keep voices in a file, to identify or verify later; JSON on stdout"
    parser = commands.add_parser(
        "enrol",
        help=about,
        description=about,
        usage="%(prog)s NAME FILE [FILE ...] --voices FILE --source SOURCE\n"
        "       %(prog)s --folder FOLDER --voices FILE --source SOURCE",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME FILE",
        help="the speaker's name and recordings",
    )
    parser.add_argument(
        "--folder", help="SPEAKER/FILE: enrol everyone whose folder is in it"
    )
    _add_store(parser, "to write: begun, or added to")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="forget these voices' earlier recordings (default: add to them)",
    )
    add_model(parser)
    add_channel(parser)
    parser.set_defaults(run=run_enrol)


def _add_store(parser, what):
    parser.add_argument(
        "--voices", required=True, metavar="FILE", help=f"enrolled voices, {what}"
    )


def _reading(arguments):
    """How recordings are read."""
    return {name: getattr(arguments, name) for name in ("speech_detection", "channel")}


def run_enrol(arguments):
    """Enrol; print who, and from how much."""
    from speechbrain_ext.inference.voices.enrolment import (
        enrol_inputs,
        recordings_of_speakers,
    )

    words = arguments.words
    name, *files = words or [None]
    if bool(words) == (arguments.folder is not None) or (words and not files):
        raise InputError(
            f"{len(words)} words and {'no' * (not arguments.folder)} "
            "--folder, expected a name and its recordings, or --folder FOLDER"
        )
    with logged_to_stderr():
        recordings = (
            {name: files} if words else recordings_of_speakers(arguments.folder)
        )
        verifier = load_verifier(arguments)
        report = enrol_inputs(
            *(verifier, arguments.voices, recordings, arguments.replace),
            skip_bad=not words,
            **_reading(arguments),
        )
    print_json(report)


def _add_identify(commands):
    about = "whose voice it is, of those enrolled, or unknown; JSON on stdout"
    parser = commands.add_parser("identify", help=about, description=about)
    parser.add_argument(
        "recordings", nargs="+", metavar="FILE", help="recordings of one speaker"
    )
    _add_store(parser, "written by enrol")
    parser.add_argument(
        "--each", action="store_true", help="every recording is of a speaker of its own"
    )
    parser.add_argument(
        "--top", type=int, default=5, help="candidates to list (default: %(default)s)"
    )
    add_model(parser)
    add_channel(parser)
    add_decision(parser, "unknown speakers taken for any of the voices")
    parser.set_defaults(run=run_identify)


def run_identify(arguments):
    """Print whose voice it is."""
    from speechbrain_ext.inference.voices import Voices
    from speechbrain_ext.inference.voices.identification import (
        identification_report,
        identify_each,
    )

    verifier = load_verifier(arguments)
    voices = Voices.load(arguments.voices, verifier)
    reading, top = _reading(arguments), arguments.top
    options = {**decision_of(arguments), **reading, "top": top}
    with logged_to_stderr():
        if arguments.each:
            report = identify_each(verifier, arguments.recordings, voices, **options)
            answers = report["results"]
        else:
            report = identification_report(
                verifier, arguments.recordings, voices, **options
            )
            answers = [report]
    print_json(report)
    if not any(answer.get("candidates") for answer in answers):
        sys.exit(NO_SPEECH)


def _add_voices(commands):
    about = "list or remove enrolled voices; JSON on stdout"
    parser = commands.add_parser("voices", help=about, description=about)
    parser.add_argument("file", metavar="FILE", help="written by enrol")
    parser.add_argument("action", nargs="?", choices=("list", "remove"), default="list")
    parser.add_argument("names", nargs="*", metavar="NAME", help="to remove")
    parser.set_defaults(run=run_voices)


def run_voices(arguments):
    """List, or remove and list."""
    from speechbrain_ext.inference.voices import Voices

    path, names = arguments.file, arguments.names
    if bool(names) != (arguments.action == "remove"):
        raise InputError(
            f"voices {arguments.action} with {len(names)} names, expected "
            f"{'one or more' if arguments.action == 'remove' else 'none'}"
        )
    if names:
        with Voices.edit(path) as voices:
            for name in dict.fromkeys(names):
                voices.remove(name)
    else:
        voices = Voices.load(path)
    print_json(
        {
            "file": path,
            "model": voices.model,
            "n_voices": len(voices),
            "voices": voices.describe(),
        }
    )


def _add_thresholds(commands):
    about = "calibration and thresholds from recordings of one's own; JSON on stdout"
    parser = commands.add_parser("thresholds", help=about, description=about)
    parser.add_argument("folder", metavar="FOLDER", help="SPEAKER/FILE, any depth")
    parser.add_argument(
        "--output",
        help="folder for a copy of the model with them (default: the model's own)",
    )
    parser.add_argument(
        "--max_trials",
        type=int,
        default=200_000,
        help="pairs of recordings to score, drawn where there are more "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of what is drawn (default: %(default)s)"
    )
    add_model(parser)
    add_channel(parser)
    parser.set_defaults(run=run_thresholds)


def run_thresholds(arguments):
    """Measure, write, print: a table to stderr, figures to stdout."""
    from speechbrain_ext.export.own_thresholds import (
        as_table,
        measure_thresholds,
        place_of,
    )

    model, output = place_of(arguments.source, arguments.savedir, arguments.output)
    verifier = load_verifier(arguments)
    with logged_to_stderr():
        report = measure_thresholds(
            *(verifier, arguments.folder, model, output),
            max_trials=arguments.max_trials,
            seed=arguments.seed,
            **_reading(arguments),
        )
    print(as_table(report), file=sys.stderr)
    print_json(report)
