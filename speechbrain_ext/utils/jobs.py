"""Jobs that were finished, in whole or in part, and need not be done again.

    Marker        of a finished job: what it was made from and what it made
    Part          one file of a long job, with a record of what it was made from
    fingerprint   names an extraction: the same model, settings and recordings, or not
    model_fingerprint   names a model alone

A marker, ``prepare.json``, is written last. It holds the SHA-256 of every argument that
shapes the result, of the size and time of every list that was read, and of the version
of the format; and the SHA-256 of each file that was written. A second run with the same
arguments, whose files are all unchanged, has nothing to do. Whatever stopped a run in
between, no marker matches what it left behind. A part's record is written last, too.
Where the job says so, size and time of the recordings count as well.
"""

import hashlib
import itertools
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_ext import __version__
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import sha256, write_atomically, write_json
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MARKER = "prepare.json"


def digest_of(*values):
    """SHA-256, in hexadecimal digits, of anything that JSON has; paths as text."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Part(NamedTuple):
    """One file of a job that is done file by file, and continued where it stopped.

    Beside ``file``, ``NAME.EXTENSION``, lies ``NAME.json``: what the file was made from
    (the ``fingerprint`` of all that decides on its content), its size and whatever else
    the job says of it. Each appears by one rename, the record last.
    """

    file: Path
    fingerprint: str

    @property
    def record(self):
        """Path of the record."""
        return self.file.with_suffix(".json")

    def load(self):
        """The record of an earlier run's file, or None where it must be made again."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            same = record["fingerprint"] == self.fingerprint
            whole = record["bytes"] == self.file.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if same and whole else None

    def remove(self):
        """Take the record away before the file changes."""
        self.record.unlink(missing_ok=True)

    def save(self, **details):
        """Write the record, once the file is whole → the record."""
        size = self.file.stat().st_size
        record = {"fingerprint": self.fingerprint, "bytes": size, **details}
        with write_atomically(self.record) as file:
            json.dump(record, file)
        return record


class Marker(NamedTuple):
    """What makes a preparation the same as an earlier one.

    ``folder`` gets the prepared files and ``prepare.json``; ``fingerprint`` is the
    SHA-256 over every argument, as JSON has it.
    """

    folder: Path
    arguments: dict
    fingerprint: str

    @classmethod
    def of(cls, folder, arguments, lists=()):
        """The marker of a run, of every argument that shapes it, folders resolved.

        Of ``lists``, text files that are read, size and time count as well. InputError:
        a list that does not exist.
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

    def load(self, recordings=None):
        """The counts of an earlier run that made just this, or None; logs why.

        ``recordings``, a function, gives what :meth:`save` was given of them, or None
        where they are not there to be compared.
        """
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
        states = recordings() if recordings and "recordings" in earlier else None
        if states is not None and states != earlier["recordings"]:
            logger.info("%s: recordings changed: all is made anew", self.folder)
            return None
        logger.info("%s: prepared before with the same arguments: skipped", self.folder)
        return counts

    def remove(self):
        """Take the marker away before the first file changes."""
        (self.folder / MARKER).unlink(missing_ok=True)

    def save(self, names, counts, recordings=None):
        """Write the marker: last of all, when the files ``names`` are whole.

        ``recordings``: a text that changes where one of them is replaced.
        """
        files = {name: sha256(self.folder / name) for name in names}
        write_json(
            self.folder / MARKER,
            {
                "fingerprint": self.fingerprint,
                "arguments": self.arguments,
                "counts": counts,
                "files": files,
                "recordings": recordings,
            },
        )


def states_of(recordings, num_workers=16):
    """What changes where a recording is replaced by another: of size and time.

    Arguments
    ---------
    recordings : list of list of str
        N recordings, and the files of each. A file is asked once; one that is not there
        counts as such.
    num_workers : int
        Threads: on a network's disk each answer takes a while.

    Returns
    -------
    np.ndarray
        uint64 [N]; a number for each.
    """
    files = list(dict.fromkeys(file for files in recordings for file in files))
    found = parallel_map(_state, files, num_workers, "asking files", "file")
    state_of = dict(zip(files, found))
    states = np.empty(len(recordings), np.uint64)
    for row, of_one in enumerate(recordings):
        text = b";".join(map(state_of.__getitem__, of_one))
        states[row] = _number(text)
    return states


def _number(text):
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


_ABSENT = b"absent"
ABSENT = _number(_ABSENT)  # the state of a recording of one file that is not there


def _state(file):
    try:
        state = os.stat(file)
    except (OSError, ValueError):  # a null in its name
        return _ABSENT
    return b"%d %d" % (state.st_size, state.st_mtime_ns)


_SCALARS = (bool, int, float, str, type(None))
_ROWS_AT_ONCE = 20_000


def fingerprint(model, manifest, **settings):
    """Hash all that decides on the embeddings of a manifest: 64 hexadecimal digits.

    Counted of a model are the class and the plain attributes of each module (number of
    heads, strides, …), every parameter and every buffer, not the training mode; of the
    manifest IDs, paths and durations in their order. ``settings`` are whatever else
    matters: ``precision``, ``max_seconds``. The sound files are not read:
    :func:`states_of` tells which was replaced.
    """
    digest = hashlib.sha256()
    _add(digest, __version__, sorted(settings.items()))
    for name, module in model.named_modules():
        _add(digest, name, type(module).__qualname__, _plain_attributes(module))
    _add_tensors(digest, model)
    _add(digest, len(manifest))
    for start in range(0, len(manifest), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        for column in (manifest.ids, manifest.paths):
            digest.update("\0".join(column[part].tolist()).encode())
        digest.update(manifest.durations[part].tobytes())
    return digest.hexdigest()


def model_fingerprint(model, **settings):
    """Hash a model by its weights, and ``settings``, whatever version computes it.

    For files that outlive a version of this package. 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    _add(digest, sorted(settings.items()))
    _add_tensors(digest, model)
    return digest.hexdigest()


def _add_tensors(digest, model):
    """Every parameter and every buffer: name, type, shape, values."""
    for name, tensor in itertools.chain(
        model.named_parameters(), model.named_buffers()
    ):
        _add(digest, name, tensor.dtype, list(tensor.shape))
        # as bytes, since numpy has no bfloat16
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy())


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
