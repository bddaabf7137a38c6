"""Folders of recordings → a file of embeddings, whatever some of them are like.

    recordings → blocks of 256 → parts on the disk → embeddings.npz
                    bad ones   → embeddings.npz.failures.txt

A run that was stopped goes on from its parts
(:class:`~speechbrain_ext.extraction_parts.Parts`) where model, settings and recordings
are the same.
"""

import logging
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.errors import InputError
from speechbrain_ext.extraction_parts import Parts
from speechbrain_ext.files import write_atomically
from speechbrain_ext.fingerprint import fingerprint
from speechbrain_ext.inference.listing import list_inputs
from speechbrain_ext.scoring.array_files import check_suffix
from speechbrain_ext.scoring.embeddings import save_embeddings

logger = logging.getLogger(__name__)

BLOCK = 256  # recordings; as much work may be lost, plus save_every
FAILURES = ".failures.txt"


def embed_inputs(verifier, inputs, out, batch_seconds=None, save_every=60.0):
    """Embed folders and files into one file.

    Arguments
    ---------
    verifier : SpeakerVerifier
    inputs : list of str or Path
        As for :func:`~speechbrain_ext.inference.listing.list_inputs`.
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
    parts = Parts(out, _fingerprint(verifier, listing), ids, save_every)
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
    settings = {"rules": str(verifier.rules), "precision": verifier.precision}
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
