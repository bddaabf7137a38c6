"""Finished batches of an extraction, kept on the disk until all of it is done.

    embeddings.npz                                 the result, written last
    embeddings.npz.parts-FINGERPRINT/RANDOM.npz    some batches each, by one process

A part holds rows of the list, their vectors, the states of their recordings and the
fingerprint of the run. Every file has its own name and appears by one rename, so any
number of processes may write at once, and a process may be killed at any moment. A
recording that was replaced since has another state: its vector does not count.
"""

import contextlib
import glob
import logging
import os
import shutil
import time
import uuid
from pathlib import Path

import numpy as np
from speechbrain.utils.distributed import ddp_barrier, ddp_broadcast, if_main_process

from speechbrain_ext.scoring.embeddings import (
    check_embeddings,
    read_arrays,
    write_arrays,
)
from speechbrain_ext.utils.errors import InputError, describe_os_error
from speechbrain_ext.utils.jobs import digest_of

logger = logging.getLogger(__name__)


class PartialResults:
    """Finished batches of the embeddings that will be the file ``path``.

    All processes of a run make one, with the same arguments; they must share the disk.

    Arguments
    ---------
    path : str or Path
        The file of embeddings to be written at the end.
    fingerprint : str
        Of :func:`~speechbrain_ext.utils.jobs.fingerprint`. Parts and files of another
        one are ignored.
    ids : np.ndarray
        [N] str, IDs of all recordings.
    save_every : float
        Seconds between two parts of a process: as much work may be lost.
    states : np.ndarray, optional
        [N] uint64, of :func:`~speechbrain_ext.utils.jobs.states_of`.
    measured : bool
        Whether seconds of speech are kept beside the vectors.

    Attributes
    ----------
    seconds : np.ndarray or None
        [N] float64, as far as parts have been read; None unless ``measured``.
    done : np.ndarray
        [N] bool, the recordings that parts had at the start; equal on every rank.
    """

    def __init__(
        self, path, fingerprint, ids, save_every=60.0, states=None, measured=False
    ):
        self.path = Path(path)
        self.fingerprint = fingerprint
        self.states = np.zeros(len(ids), np.uint64) if states is None else states
        self.of_all = digest_of(fingerprint, self.states.tolist())
        self.ids = ids
        self.seconds = np.full(len(ids), np.nan) if measured else None
        self._columns = ("vectors", "seconds")[: 1 + measured]
        self.save_every = save_every
        self.folder = self.path.with_name(f"{self.path.name}.parts-{fingerprint[:16]}")
        self._ignored = set()
        # one rank reads: another could see more parts, of a process that still runs,
        # and every rank must share out the same batches
        self.done = ddp_broadcast(self._find_done() if if_main_process() else None)
        self._pending = []
        self._saved_at = time.monotonic()

    def add(self, rows, vectors, seconds=None):
        """Keep a batch: rows [B] of the list, vectors [B, E], seconds of speech [B].

        InputError for a full disk; what was saved before stays.
        """
        batch = (rows, vectors) if self.seconds is None else (rows, vectors, seconds)
        self._pending.append(batch)
        if time.monotonic() - self._saved_at >= self.save_every:
            self.save()

    def save(self):
        """Write the batches that are in no part yet; raises as :meth:`add`."""
        if self._pending:
            rows, *columns = map(np.concatenate, zip(*self._pending))
            name = f"{uuid.uuid4().hex}.npz"
            of_rows = {"rows": rows, "states": self.states[rows]}
            of_rows |= zip(self._columns, columns)
            self._write(self.folder / name, self.fingerprint, **of_rows)
        self._pending = []
        self._saved_at = time.monotonic()

    def collect(self):
        """All vectors [N, E], once every rank has saved; InputError where some lack.

        None on other processes than the main one, which do not need gigabytes.
        """
        ddp_barrier()
        if not if_main_process():
            return None
        vectors, missing = self.gather()
        if not missing.any():
            return vectors
        # another process with the same work may have finished and removed the parts
        vectors = self.finished()
        if vectors is None:
            raise InputError(
                f"{self.folder}: {missing.sum()} of {len(missing)} recordings are not "
                f"there, first {self.ids[missing.argmax()]}; expected all that the "
                "processes have saved, on a disk that they share"
            )
        return vectors

    def gather(self):
        """Vectors [N, E] of all parts, undefined where ``missing``, bool [N], is set.

        Vectors are None where there are no parts.
        """
        missing = np.ones(len(self.ids), dtype=bool)
        result = None
        for rows, vectors in self._read_all():
            if result is None:
                result = np.empty((len(missing), vectors.shape[1]), dtype=np.float32)
            result[rows] = vectors
            missing[rows] = False
        return result, missing

    def finished(self):
        """Vectors [N, E] of the file ``path`` where it is of this run, or None."""
        if not self.path.exists():
            return None
        try:
            fingerprint, vectors, *_ = read_arrays(
                self.path, "embeddings", "fingerprint", *self._columns
            )
        except InputError as error:
            logger.info("%s: is made anew", error)
            return None
        if fingerprint.tolist() != [self.of_all]:
            logger.info(
                "%s: of another model, setting, list or recording: is made anew",
                self.path,
            )
            return None
        logger.info("%s: was finished by another run", self.path)
        return vectors

    def finish(self, vectors):
        """Write the file ``path``; on the main process. Raises as :meth:`add`."""
        ids, vectors = check_embeddings(self.path, self.ids, vectors)
        measured = {} if self.seconds is None else {"seconds": self.seconds}
        self._write(self.path, self.of_all, ids=ids, vectors=vectors, **measured)

    def remove(self):
        """Delete the parts, even while another process writes more of them."""
        renamed = self.path.with_name(f".{self.folder.name}.{uuid.uuid4().hex}.old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.folder, renamed)
        for old in self._siblings(f".{self.folder.name}.", "*.old"):
            shutil.rmtree(old, ignore_errors=True)

    def _find_done(self):
        done = np.zeros(len(self.ids), dtype=bool)
        for rows, _ in self._read_all():
            done[rows] = True
        if done.any():
            logger.info(
                "%s: %d of %d recordings were embedded before, %d remain",
                *(self.folder, done.sum(), len(done), (~done).sum()),
            )
        others = self._siblings(f"{self.path.name}.parts-", "*")
        others = [str(other) for other in others if other != self.folder]
        if others:
            logger.info(
                "%s: of another model, setting or list: left aside", ", ".join(others)
            )
        return done

    def _read_all(self):
        """(rows [n], vectors [n, E]) of every undamaged part, one at a time."""
        for path in sorted(set(self.folder.glob("*.npz")) - self._ignored):
            try:
                fingerprint, rows, states, vectors, *seconds = read_arrays(
                    *(path, "a part of embeddings", "fingerprint"),
                    *("rows", "states", *self._columns),
                )
                if fingerprint.tolist() != [self.fingerprint]:
                    raise InputError(f"{path}: not a part of these embeddings")
            except InputError as error:
                logger.warning("%s: left aside", error)
                self._ignored.add(path)
            else:
                same = states == self.states[rows]
                if seconds:
                    self.seconds[rows[same]] = seconds[0][same]
                yield rows[same], vectors[same]

    def _siblings(self, start, pattern):
        """Paths in the folder of ``path`` whose names begin with ``start``."""
        return sorted(self.path.parent.glob(glob.escape(start) + pattern))

    def _write(self, path, fingerprint, **arrays):
        arrays["fingerprint"] = np.array([fingerprint])
        try:
            write_arrays(path, **arrays)
        except OSError as error:
            # a process that finished the same work has just deleted the folder: then
            # this part is no longer needed
            if isinstance(error, FileNotFoundError) and self.finished() is not None:
                return
            raise InputError(
                f"{describe_os_error(error)} (parts in {self.folder} stay: the same "
                "command goes on from them)"
            ) from error
