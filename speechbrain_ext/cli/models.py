"""Which recordings some folders and files stand for, and how they are called.

The ID of a recording is its path below the folder that was given, without extension, as
in the recipes: ``id1/session/1`` of ``FOLDER/id1/session/1.flac``. Of a file that was
given by itself it is the file's name.

Folders of recordings → a file of embeddings, whatever some of them are like.

    recordings → blocks of 256 → parts on the disk → embeddings.npz
                    bad ones   → embeddings.npz.failures.txt

A run that was stopped continues from its parts
(:class:`~speechbrain_ext.inference.partial_results.PartialResults`) where model,
settings and recordings are the same.

``verify``, ``embed`` and ``app`` of ``python -m speechbrain_ext``.

Results are JSON on stdout, one object; all else goes to stderr. Arguments are in
:mod:`speechbrain_ext.cli.models`.

Arguments of ``verify``, ``embed`` and ``app`` of ``python -m speechbrain_ext``.

What runs is in :mod:`speechbrain_ext.cli.models` and
:mod:`speechbrain_ext.app`, imported only then.
"""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from speechbrain_ext.data.audio import SOUND_FILES
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.data.prepare.folders import NEEDS_CONVERSION, check_same_file
from speechbrain_ext.inference.partial_results import PartialResults
from speechbrain_ext.scoring.embeddings import check_suffix, save_embeddings
from speechbrain_ext.scoring.trials import utterance_id
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.jobs import fingerprint

# m4a cannot be read; it is listed so that it is among the failures, not passed over
SUFFIXES = (*SOUND_FILES, NEEDS_CONVERSION)


class Listing(NamedTuple):
    """Recordings that were found.

    Attributes
    ----------
    ids, paths : list of str
        [N], in order of the IDs within each input.
    refused : list of (str, str)
        Path and reason of those whose names cannot be an ID.
    ignored : int
        Files in folders that are no recordings.
    """

    ids: list
    paths: list
    refused: list
    ignored: int


def list_inputs(inputs):
    """Find the recordings of folders, all below them, and files.

    Hidden files and folders are ignored. Links are followed.

    Arguments
    ---------
    inputs : list of str or Path

    Returns
    -------
    Listing

    Raises
    ------
    InputError
        An input that is not there, or holds no recordings; two files with one ID.
    """
    found, refused, ignored = {}, [], 0
    for given in map(Path, inputs):
        if given.is_dir():
            pairs, more = _in_folder(given)
            ignored += more
        elif given.exists():
            pairs = [(utterance_id(given.name), str(given))]
        else:
            raise InputError(
                f"{given}: no such file or folder, expected recordings or folders of "
                "them"
            )
        for name, path in sorted(pairs):
            if why := _unfit(name):
                refused.append((path, f"{why} in its name, expected none"))
            elif (known := found.setdefault(name, path)) is not path:
                check_same_file(name, known, path)
    return Listing(list(found), list(found.values()), refused, ignored)


def _unfit(name):
    """What an ID has that no trial list could hold, or None."""
    if any(letter.isspace() for letter in name):
        return "white space"
    return None if name.isprintable() else "characters that cannot be printed"


def _in_folder(root):
    """[(ID, path)] of all recordings below a folder, and how many other files."""
    pairs, ignored, seen = [], 0, set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=_stop):
        here = os.path.realpath(folder)
        if here in seen:  # a link to a folder above itself has no end
            below.clear()
            continue
        seen.add(here)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                path = os.path.join(folder, name)
                inside = Path(path).relative_to(root).as_posix()
                pairs.append((utterance_id(inside), path))
            else:
                ignored += 1
    if not pairs:
        raise InputError(
            f"{root}: no recordings in it or below, expected "
            f"{', '.join(f'*{suffix}' for suffix in SOUND_FILES)}"
        )
    return pairs, ignored


def _stop(error):
    raise error


logger = logging.getLogger(__name__)

BLOCK = 256  # recordings; as much work may be lost, plus save_every
FAILURES = ".failures.txt"


def embed_inputs(verifier, inputs, out, batch_seconds=None, save_every=60.0):
    """Embed folders and files into one file.

    Arguments
    ---------
    verifier : SpeakerVerifier
    inputs : list of str or Path
        As for :func:`~speechbrain_ext.cli.models.list_inputs`.
    out : str or Path
        ``.npz`` or ``.safetensors``, for
        :func:`~speechbrain_ext.scoring.embeddings.load_embeddings`; replaced.
    batch_seconds : float or None
        Of audio in one batch: bounds the memory. None takes what suits the device.
    save_every : float
        Seconds between two parts.

    Returns
    -------
    dict
        ``out``, ``embedded``, ``failed``, ``failures`` (their list, or None),
        ``ignored``, ``size`` of an embedding, ``model``, ``device``.

    Raises
    ------
    InputError
        As ``list_inputs``; another suffix; no recording could be embedded, then the
        list of failures is there and nothing else.
    """
    out = Path(out)
    check_suffix(out)
    if out.is_dir():
        raise InputError(f"{out}: a folder, expected the name of a file to write")
    listing = list_inputs(inputs)
    failures = list(listing.refused)
    if listing.ids:
        failures += _embed(verifier, listing, out, batch_seconds, save_every)
    write_failures(out, failures)
    total = len(listing.ids) + len(listing.refused)
    if len(failures) == total:
        path, reason = failures[0]
        raise InputError(
            f"{path}: {reason} (none of {total} recordings was embedded; all are "
            f"listed in {failures_path(out)})"
        )
    return {
        "out": str(out),
        "embedded": total - len(failures),
        "failed": len(failures),
        "failures": str(failures_path(out)) if failures else None,
        "ignored": listing.ignored,
        "size": verifier.embedding_size,
        "model": verifier.source,
        "device": str(verifier.device),
    }


def failures_path(out):
    """Where the failures of ``out`` are listed: ``embeddings.npz.failures.txt``."""
    return Path(out).with_name(Path(out).name + FAILURES)


def write_failures(out, failures):
    """Write ``path<TAB>reason`` lines, or remove the list of an earlier run."""
    path = failures_path(out)
    if not failures:
        path.unlink(missing_ok=True)
        return
    with write_atomically(path) as file:
        for name, reason in failures:
            file.write(f"{_printable(name)}\t{_printable(reason)}\n")


def _embed(verifier, listing, out, batch_seconds, save_every):
    """Write the embeddings of a listing → [(path, reason)] of those that failed."""
    ids = np.array(listing.ids)
    parts = PartialResults(out, _fingerprint(verifier, listing), ids, save_every)
    if parts.finished() is not None:
        return []
    failures = []
    left = np.flatnonzero(~parts.done)
    try:
        with tqdm(
            *(None, "embeddings", len(ids)), initial=len(ids) - len(left), disable=None
        ) as bar:
            for start in range(0, len(left), BLOCK):
                rows = left[start : start + BLOCK]
                failures += _embed_block(verifier, listing, rows, parts, batch_seconds)
                bar.update(len(rows))
    finally:
        parts.save()
    vectors, missing = parts.gather()
    if not missing.any():
        parts.finish(vectors)
    elif not missing.all():
        save_embeddings(out, ids[~missing].tolist(), vectors[~missing])
    parts.remove()
    return failures


def _embed_block(verifier, listing, rows, parts, batch_seconds):
    vectors, failures = verifier.encode_files(
        [listing.paths[row] for row in rows],
        on_error="collect",
        max_batch_seconds=batch_seconds,
    )
    good = np.ones(len(rows), dtype=bool)
    good[[failure.row for failure in failures]] = False
    if good.any():
        parts.add(rows[good], vectors.numpy()[good])
    return [(failure.path, failure.reason) for failure in failures]


def _fingerprint(verifier, listing):
    """Of model, settings and recordings, with their sizes in the place of durations."""
    sizes = [_size(path) for path in listing.paths]
    paths = [os.path.abspath(path) for path in listing.paths]
    manifest = Manifest(listing.ids, paths, sizes, [""] * len(sizes))
    settings = {"chunking": str(verifier.chunking), "precision": verifier.precision}
    return fingerprint(verifier.mods.speaker_encoder, manifest, **settings)


def _size(path):
    """Bytes; -1 of what cannot be looked at, which is among the failures later."""
    try:
        return float(os.path.getsize(path))
    except OSError:
        return -1.0


def _printable(text):
    """One field of one line, whatever bytes are in a file's name."""
    if text.isprintable():
        return text
    return text.encode("unicode_escape", "backslashreplace").decode()


DECISION = ("score", "threshold", "false_accept_rate")


def verify(arguments):
    """Print whether recordings are of one speaker."""
    from speechbrain_ext.inference.decisions import comparison_report

    enrol, test = sides(arguments.recordings, arguments.enrol, arguments.test)
    verifier = _load(arguments)
    with logged_to_stderr():
        found = comparison_report(verifier, enrol, test, **_decision(arguments))
    _print_json(found)


def embed(arguments):
    """Write the embeddings of folders and files."""
    from speechbrain_ext.cli.models import embed_inputs

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
    from speechbrain_ext.app import import_gradio, launch

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
        from speechbrain_ext.cli import models as functions

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
