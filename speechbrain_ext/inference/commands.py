"""``verify``, ``embed`` and ``app`` of ``python -m speechbrain_ext``.

Results are JSON on stdout, one object; all else goes to stderr. Arguments are in
:mod:`speechbrain_ext.inference.arguments`.
"""

import contextlib
import json
import logging
import sys

from speechbrain_ext.errors import InputError

DECISION = ("score", "threshold", "false_accept_rate")


def verify(arguments):
    """Print whether recordings are of one speaker."""
    from speechbrain_ext.inference.reporting import comparison_report

    enrol, test = sides(arguments.recordings, arguments.enrol, arguments.test)
    verifier = _load(arguments)
    with logged_to_stderr():
        found = comparison_report(verifier, enrol, test, **_decision(arguments))
    _print_json(found)


def embed(arguments):
    """Write the embeddings of folders and files."""
    from speechbrain_ext.inference.embed_command import embed_inputs

    verifier = _load(arguments, noprogressbar=True)  # one bar for all, instead
    with logged_to_stderr():
        found = embed_inputs(
            verifier, arguments.inputs, arguments.out, arguments.batch_seconds
        )
    _print_json(found)
    failed = f"{found['failed']} failed"
    if found["failures"]:
        failed += f", listed in {found['failures']}"
    print(f"{found['embedded']} recordings embedded, {failed}", file=sys.stderr)
    if arguments.strict and found["failed"]:
        raise InputError(f"--strict: {failed}, expected none")


def app(arguments):
    """Serve the page."""
    from speechbrain_ext.inference.app import import_gradio, launch

    import_gradio()  # before a model of gigabytes is loaded
    verifier = _load(arguments)
    with logged_to_stderr():
        launch(
            *(verifier, arguments.source, arguments.host, arguments.port),
            **_decision(arguments),
        )


def sides(recordings, enrol, test):
    """The two sides of a trial from what the user gave.

    Arguments
    ---------
    recordings : list of str
        Two, enrolment and test; or none.
    enrol, test : list of str or None
        Instead of them.

    Returns
    -------
    enrol, test : list of str

    Raises
    ------
    InputError
        Any other number, one side only, or both ways at a time.
    """
    if not recordings and enrol and test:
        return enrol, test
    if len(recordings) == 2 and not enrol and not test:
        return recordings[:1], recordings[1:]
    sizes = [f"{len(recordings)} recordings"]
    sizes += [
        f"{len(files or [])} with {name}"
        for name, files in (("--enrol", enrol), ("--test", test))
    ]
    raise InputError(
        f"{', '.join(sizes)}; expected two recordings, or some with --enrol and some "
        "with --test"
    )


def _decision(arguments):
    return {name: getattr(arguments, name) for name in DECISION}


def _load(arguments, **run_opts):
    from speechbrain_ext.inference import SpeakerVerifier

    if arguments.device:
        run_opts["device"] = arguments.device
    return SpeakerVerifier.from_hparams(
        arguments.source, arguments.savedir, run_opts=run_opts
    )


def _print_json(values):
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
