"""The marker of a finished preparation: what it was made from, what it made.

``prepare.json`` is written last, and holds

- the fingerprint: a SHA-256 over every argument that shapes the result, the size and
  time of every list that was read, and the version of the format;
- the SHA-256 of each file written, and the counts.

A second run with the same fingerprint, whose files are all unchanged, has nothing to
do. Whatever stopped a run in between, no marker matches what it left behind.

A name for one computation: the same model, settings and recordings, or not.

    fingerprint = SHA-256(version, settings, modules, weights, recordings)

What is kept from an interrupted run may be used by the next one only where this name is
the same. The device, the number of processes and the size of batches are left out:
embeddings do not depend on them.
"""

import hashlib
import itertools
import json
import logging
from pathlib import Path
from typing import NamedTuple

import torch

from speechbrain_ext import __version__
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_json

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MARKER = "prepare.json"


class Marker(NamedTuple):
    """What makes a preparation the same as an earlier one.

    Attributes
    ----------
    folder : Path
        Where the prepared files and ``prepare.json`` go.
    arguments : dict
        Every argument, as JSON has it.
    fingerprint : str
        SHA-256 over them.
    """

    folder: Path
    arguments: dict
    fingerprint: str

    @classmethod
    def of(cls, folder, arguments, lists=()):
        """Make the marker of a run.

        Arguments
        ---------
        folder : Path
            Where the prepared files go, resolved.
        arguments : dict
            Every argument that shapes the result; folders resolved.
        lists : list of Path
            Text files that are read: their size and time count as well.

        Raises
        ------
        InputError
            A list does not exist.
        """
        states = {}
        for path in lists:
            if not path.is_file():
                raise InputError(f"{path}: no such file, expected a list of utterances")
            state = path.stat()
            states[str(path)] = [state.st_size, state.st_mtime_ns]
        arguments = {**arguments, "lists": states, "format_version": FORMAT_VERSION}
        text = json.dumps(arguments, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return cls(folder, json.loads(text), digest)

    def load(self):
        """The counts of an earlier run that made just this, or None; logs why."""
        path = self.folder / MARKER
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            fingerprint, files = earlier["fingerprint"], earlier["files"]
            arguments, counts = earlier["arguments"], earlier["counts"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.info("%s: not a marker of this program: all is made anew", path)
            return None
        if fingerprint != self.fingerprint:
            names = sorted({*arguments, *self.arguments})
            changed = [n for n in names if arguments.get(n) != self.arguments.get(n)]
            logger.info("%s changed: all is made anew", ", ".join(changed))
            return None
        for name, digest in files.items():
            file = self.folder / name
            if not file.is_file() or sha256(file) != digest:
                logger.info("%s is missing or was changed: all is made anew", file)
                return None
        logger.info("%s: prepared before with the same arguments: skipped", self.folder)
        return counts

    def remove(self):
        """Take the marker away before the first file changes."""
        (self.folder / MARKER).unlink(missing_ok=True)

    def save(self, names, counts):
        """Write the marker: last of all, when the files ``names`` are whole."""
        files = {name: sha256(self.folder / name) for name in names}
        write_json(
            self.folder / MARKER,
            {
                "fingerprint": self.fingerprint,
                "arguments": self.arguments,
                "counts": counts,
                "files": files,
            },
        )


def sha256(path):
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_SCALARS = (bool, int, float, str, type(None))
_ROWS_AT_ONCE = 20_000


def fingerprint(model, manifest, **settings):
    """Hash all that decides on the embeddings of a list of recordings.

    Arguments
    ---------
    model : torch.nn.Module
        Counted are the class and the plain attributes of each module (number of heads,
        strides, …), every parameter and every buffer. Training mode is not.
    manifest : Manifest
        IDs, paths and durations in their order. The sound files are not read: one
        that is replaced by another of the same name and duration goes unnoticed.
    **settings
        Whatever else matters: ``precision``, ``max_seconds``.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    _add(digest, __version__, sorted(settings.items()))
    for name, module in model.named_modules():
        _add(digest, name, type(module).__qualname__, _plain_attributes(module))
    for name, tensor in itertools.chain(
        model.named_parameters(), model.named_buffers()
    ):
        _add(digest, name, tensor.dtype, list(tensor.shape))
        # as bytes, since numpy has no bfloat16
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy())
    _add(digest, len(manifest))
    for start in range(0, len(manifest), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        for column in (manifest.ids, manifest.paths):
            digest.update("\0".join(column[part].tolist()).encode())
        digest.update(manifest.durations[part].tobytes())
    return digest.hexdigest()


def _add(digest, *values):
    digest.update(json.dumps(values, default=str).encode() + b"\n")


def _plain_attributes(module):
    """[(name, value)] of numbers, texts and tuples of them, sorted by name."""
    return sorted(
        (name, value)
        for name, value in vars(module).items()
        if name != "training"
        and all(
            isinstance(item, _SCALARS)
            for item in (value if isinstance(value, tuple) else (value,))
        )
    )
