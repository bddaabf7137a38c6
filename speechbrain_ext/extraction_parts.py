"""What an extraction has finished, kept on the disk until all of it is.

    embeddings.npz                                 the whole, written last
    embeddings.npz.parts-FINGERPRINT/RANDOM.npz    some batches each, one writer each

A part holds the rows of the manifest that it has, their vectors and the fingerprint of
the run. Every file has a name of its own and appears by one rename, so that any number
of processes may write at once, and a process may be killed at any moment.
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
from speechbrain.utils.distributed import (
    ddp_barrier,
    ddp_broadcast,
    if_main_process,
)

from speechbrain_ext.errors import InputError, describe_os_error
from speechbrain_ext.scoring.array_files import read_arrays, write_arrays
from speechbrain_ext.scoring.embeddings import check_embeddings

logger = logging.getLogger(__name__)


class Parts:
    """Finished batches of the embeddings that will be the file ``path``.

    All processes of a run make one, with the same arguments; they must share the disk.

    Arguments
    ---------
    path : str or Path
        The embeddings file to be.
    fingerprint : str
        Of :func:`~speechbrain_ext.fingerprint.fingerprint`. Parts and files of
        another one are left aside.
    ids : np.ndarray
        [N] str, IDs of all recordings.
    save_every : float
        Seconds between two parts of a process: as much work may be lost.

    Attributes
    ----------
    done : np.ndarray
        [N] bool, the recordings that parts had at the start; equal on every rank.
    """

    def __init__(self, path, fingerprint, ids, save_every=60.0):
        self.path = Path(path)
        self.fingerprint = fingerprint
        self.ids = ids
        self.save_every = save_every
        self.folder = self.path.with_name(f"{self.path.name}.parts-{fingerprint[:16]}")
        self._left_aside = set()
        # read by one rank: the others could see more parts, of another process, and
        # each rank must know the same batches to be left
        self.done = ddp_broadcast(self._find_done() if if_main_process() else None)
        self._pending = []
        self._saved_at = time.monotonic()

    def add(self, rows, vectors):
        """Keep a batch: rows [B] of the manifest, vectors [B, E].

        Raises
        ------
        InputError
            A full disk; what was saved before stays.
        """
        self._pending.append((rows, vectors))
        if time.monotonic() - self._saved_at >= self.save_every:
            self.save()

    def save(self):
        """Write what is not yet in a part, if anything is; raises as :meth:`add`."""
        if self._pending:
            rows, vectors = map(np.concatenate, zip(*self._pending))
            name = f"{uuid.uuid4().hex}.npz"
            self._write(self.folder / name, rows=rows, vectors=vectors)
        self._pending = []
        self._saved_at = time.monotonic()

    def collect(self):
        """All vectors, once every rank has saved its own.

        Returns
        -------
        np.ndarray
            [N, E] float32 on the main process; None on the others, which have nothing
            to do with gigabytes.

        Raises
        ------
        InputError
            Where recordings are missing, with the first ID.
        """
        ddp_barrier()
        if not if_main_process():
            return None
        out, missing = self.gather()
        if not missing.any():
            return out
        # another process doing the same may have finished and removed the parts
        whole = self.finished()
        if whole is None:
            raise InputError(
                f"{self.folder}: {missing.sum()} of {len(missing)} recordings are not "
                f"there, first {self.ids[missing.argmax()]}; expected all that the "
                "processes have saved, on a disk that they share"
            )
        return whole

    def gather(self):
        """What the parts have by now, on one process.

        Returns
        -------
        vectors : np.ndarray or None
            [N, E] float32, any values where nothing is; None where there are no parts.
        missing : np.ndarray
            [N] bool.
        """
        missing = np.ones(len(self.ids), dtype=bool)
        out = None
        for rows, vectors in self._read_all():
            if out is None:
                out = np.empty((len(missing), vectors.shape[1]), dtype=np.float32)
            out[rows] = vectors
            missing[rows] = False
        return out, missing

    def finished(self):
        """Vectors [N, E] of the file ``path`` where it is this run's, or None."""
        if not self.path.exists():
            return None
        try:
            found, vectors = read_arrays(
                self.path, "embeddings", "fingerprint", "vectors"
            )
        except InputError as error:
            logger.info("%s: is made anew", error)
            return None
        if found.tolist() != [self.fingerprint]:
            logger.info(
                "%s: of another model, setting or list: is made anew", self.path
            )
            return None
        logger.info("%s: was finished by another run", self.path)
        return vectors

    def finish(self, vectors):
        """Write the file ``path``; on the main process. Raises as :meth:`add`."""
        ids, vectors = check_embeddings(self.path, self.ids, vectors)
        self._write(self.path, ids=ids, vectors=vectors)

    def remove(self):
        """Take the parts away, whatever another process is writing there just now."""
        aside = self.path.with_name(f".{self.folder.name}.{uuid.uuid4().hex}.old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.folder, aside)
        for old in self._beside(f".{self.folder.name}.", "*.old"):
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
        others = self._beside(f"{self.path.name}.parts-", "*")
        others = [str(other) for other in others if other != self.folder]
        if others:
            logger.info(
                "%s: of another model, setting or list: left aside", ", ".join(others)
            )
        return done

    def _read_all(self):
        """(rows [n], vectors [n, E]) of every part that is whole, one at a time."""
        for path in sorted(set(self.folder.glob("*.npz")) - self._left_aside):
            try:
                found, rows, vectors = read_arrays(
                    path, "a part of embeddings", "fingerprint", "rows", "vectors"
                )
                if found.tolist() != [self.fingerprint]:
                    raise InputError(f"{path}: not a part of these embeddings")
            except InputError as error:
                logger.warning("%s: left aside", error)
                self._left_aside.add(path)
            else:
                yield rows, vectors

    def _beside(self, start, pattern):
        """Paths in the folder of ``path`` whose names begin with ``start``."""
        return sorted(self.path.parent.glob(glob.escape(start) + pattern))

    def _write(self, path, **arrays):
        arrays["fingerprint"] = np.array([self.fingerprint])
        try:
            write_arrays(path, **arrays)
        except OSError as error:
            # a process that finished the same work took the folder away just now: then
            # this part has become needless, too
            if isinstance(error, FileNotFoundError) and self.finished() is not None:
                return
            raise InputError(
                f"{describe_os_error(error)} (parts in {self.folder} stay: the same "
                "command goes on from them)"
            ) from error
