"""Folders of recordings → one file of embeddings, whatever some of them are like.

    recordings → blocks of 256 → partial results on the disk → embeddings.npz
                    bad ones   → embeddings.npz.failures.txt

The ID of a recording is its path below the folder that was given, without extension, as
in the recipes: ``id1/session/1`` of ``FOLDER/id1/session/1.flac``; of a file that was
given by itself, its name; of a part of a file, ``1:12.5-17`` of ``1.flac:12.5-17``.

A run that was stopped continues from its partial results, where model, settings and
recordings are the same.
"""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.data.prepare.folders import Found, walk
from speechbrain_ext.inference.channels import checked_channel
from speechbrain_ext.inference.partial_results import PartialResults
from speechbrain_ext.inference.sources import split_segment
from speechbrain_ext.scoring.embeddings import check_suffix, save_embeddings
from speechbrain_ext.scoring.trials import RECORDINGS, utterance_id
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.jobs import fingerprint, states_of


class Listing(NamedTuple):
    """``ids``, ``paths`` [N]; ``refused``: (path, reason) of each.

    ``left_out``: how many of what else is there: "hidden files", "hidden folders", and
    the suffix of files that are no recordings, ".txt".
    """

    ids: list
    paths: list
    refused: list
    left_out: dict


def list_inputs(inputs):
    """Find the recordings of folders, all below them, of files, and parts of files.

    Hidden files and folders are ignored. Links are followed. Of files in one folder
    with one ID the format that comes first in ``RECORDINGS`` is taken. InputError: an
    input that is not there, or holds no recordings; two folders with one ID.
    """
    found, parts, refused, left_out = Found(), {}, [], Counter()
    for source in map(Path, inputs):
        file, part = _parted(str(source))
        if source.is_dir():
            pairs, others = recordings_below(source)
            left_out += others
        elif os.path.exists(file):
            pairs = [(utterance_id(os.path.basename(file)) + part, str(source))]
        else:
            raise InputError(
                f"{source}: no such file or folder, expected recordings or folders of "
                "them"
            )
        for name, path in sorted(pairs):
            if reason := _unfit(name):
                refused.append((path, f"{reason} in its name, expected none"))
            else:
                file, parts[name] = _parted(path)
                found.add(name, file)
    found.warn()
    if found.beside:
        left_out["files beside another format"] = len(found.beside)
    paths = [file + parts[name] for name, file in found.paths.items()]
    return Listing(list(found.paths), paths, refused, dict(left_out))


def _parted(path):
    """``a.wav:12.5-17`` → ("a.wav", ":12.5-17"); a file alone → (file, "")."""
    file = split_segment(path)[0]
    return file, path[len(file) :]


def _unfit(name):
    """What an ID has that no trial list could hold, or None."""
    if any(letter.isspace() for letter in name):
        return "white space"
    return None if name.isprintable() else "characters that cannot be printed"


def recordings_below(root):
    """[(ID, path)] of all recordings below a folder, and a Counter of what else."""
    pairs, left_out = [], Counter()
    for folder, below, files in walk(root, onerror=_stop):
        seen_below = [name for name in below if not name.startswith(".")]
        left_out["hidden folders"] += len(below) - len(seen_below)
        below[:] = seen_below
        for name in files:
            if name.startswith("."):
                left_out["hidden files"] += 1
            elif name.lower().endswith(RECORDINGS):
                path = os.path.join(folder, name)
                inside = Path(path).relative_to(root).as_posix()
                pairs.append((utterance_id(inside), path))
            else:
                left_out[Path(name).suffix.lower() or "without suffix"] += 1
    if not pairs:
        raise InputError(
            f"{root}: no recordings in it or below, expected "
            f"{', '.join(f'*{suffix}' for suffix in RECORDINGS)}"
        )
    return pairs, +left_out


def _stop(error):
    raise error


BLOCK = 256  # recordings; as much work may be lost, plus save_every
FAILURES = ".failures.txt"


def embed_inputs(
    verifier,
    inputs,
    out,
    batch_seconds=None,
    save_every=60.0,
    speech_detection=None,
    channel="mean",
):
    """Embed folders and files into one file.

    Arguments
    ---------
    verifier : SpeakerVerifier
    inputs : list of str or Path
        As for :func:`~speechbrain_ext.inference.folders.list_inputs`.
    out : str or Path
        ``.npz`` or ``.safetensors``, for
        :func:`~speechbrain_ext.scoring.embeddings.load_embeddings`; replaced.
    batch_seconds : float or None
        Of audio in one batch: bounds the memory. None takes what suits the device.
    save_every : float
        Seconds between two parts.
    speech_detection : bool or None
        Embed speech alone; None: as the model's folder says. A recording without any is
        among the failures.
    channel : str or int
        As for ``SpeakerVerifier.encode_files``.

    Returns
    -------
    dict
        ``out``, ``embedded``, ``failed``, ``failures`` (their list, or None),
        ``ignored`` and, by what they are, ``left_out``; ``size`` of an embedding,
        ``model``, ``device``.

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
    channel = checked_channel(channel)
    listing = list_inputs(inputs)
    failures = list(listing.refused)
    if speech_detection is None:
        speech_detection = verifier.speech.speech_detection
    if listing.ids:
        options = {
            "max_batch_seconds": batch_seconds,
            "speech_detection": speech_detection,
            "channel": channel,
        }
        failures += _embed(verifier, listing, out, save_every, options)
    failures_file = out.with_name(out.name + FAILURES)
    _write_failures(failures_file, failures)
    total = len(listing.ids) + len(listing.refused)
    if len(failures) == total:
        path, reason = failures[0]
        raise InputError(
            f"{path}: {reason} (none of {total} recordings was embedded; all are "
            f"listed in {failures_file})"
        )
    return {
        "out": str(out),
        "embedded": total - len(failures),
        "failed": len(failures),
        "failures": str(failures_file) if failures else None,
        "ignored": sum(listing.left_out.values()),
        "left_out": listing.left_out,
        "size": verifier.embedding_size,
        "model": verifier.source,
        "device": str(verifier.device),
    }


def _write_failures(path, failures):
    """Write ``path<TAB>reason`` lines, or remove the list of an earlier run."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    with write_atomically(path) as file:
        for name, reason in failures:
            file.write(f"{_printable(name)}\t{_printable(reason)}\n")


def _embed(verifier, listing, out, save_every, options):
    """Write the embeddings of a listing → [(path, reason)] of those that failed.

    ``options`` are those of ``encode_files``.
    """
    ids = np.array(listing.ids)
    run = _fingerprint(verifier, listing, options)
    states = states_of([[_parted(path)[0]] for path in listing.paths])
    parts = PartialResults(out, run, ids, save_every, states)
    if parts.finished() is not None:
        return []
    failures = []
    remaining = np.flatnonzero(~parts.done)
    try:
        with tqdm(
            *(None, "embeddings", len(ids)),
            initial=len(ids) - len(remaining),
            disable=None,
        ) as bar:
            for start in range(0, len(remaining), BLOCK):
                rows = remaining[start : start + BLOCK]
                failures += _embed_block(verifier, listing, rows, parts, options)
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


def _embed_block(verifier, listing, rows, parts, options):
    paths = [listing.paths[row] for row in rows]
    vectors, failures = verifier.encode_files(paths, on_error="collect", **options)
    good = np.ones(len(rows), dtype=bool)
    good[[failure.row for failure in failures]] = False
    if good.any():
        parts.add(rows[good], vectors.numpy()[good])
    return [(failure.path, failure.reason) for failure in failures]


def _fingerprint(verifier, listing, options):
    """Of model, settings and recordings, whose durations nobody knows yet."""
    paths = [os.path.abspath(path) for path in listing.paths]
    manifest = Manifest(listing.ids, paths, [0.0] * len(paths), [""] * len(paths))
    settings = {"chunking": str(verifier.chunking), "precision": verifier.precision}
    settings["channel"] = options["channel"]
    if options["speech_detection"]:
        settings["speech"] = str(verifier.speech)
    return fingerprint(verifier.mods.speaker_encoder, manifest, **settings)


def _printable(text):
    """One field of one line, whatever bytes are in a file's name."""
    if text.isprintable():
        return text
    return text.encode("unicode_escape", "backslashreplace").decode()
