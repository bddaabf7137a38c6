"""What an extraction has finished, kept on the disk until all of it is.

    embeddings.npz                                 the whole, written last
    embeddings.npz.parts-FINGERPRINT/RANDOM.npz    some batches each, one writer each

A part holds the rows of the manifest that it has, their vectors and the fingerprint of
the run. Every file has a name of its own and appears by one rename, so that any number
of processes may write at once, and a process may be killed at any moment.

Embeddings of many recordings: batched by length, shared out over ranks, resumable.

Each recording is embedded once in all: rank r takes every world-size-th batch. Batches
are composed from the whole list, so that an interrupted extraction, continued by
however many processes, has the batches of an unbroken one, and so its bits where every
process computes alike: the same kind of CPU or GPU, versions of libraries and number
of threads. Elsewhere embeddings agree to some 1e-5 of their size.
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
import torch
from speechbrain.utils.distributed import ddp_barrier, ddp_broadcast, if_main_process
from tqdm import tqdm

from speechbrain_ext.data.dataset import EvaluationSet, length_batches, make_loader
from speechbrain_ext.features import MIN_SAMPLES
from speechbrain_ext.scoring.embeddings import (
    check_embeddings,
    check_ids,
    check_suffix,
    read_arrays,
    write_arrays,
)
from speechbrain_ext.utils.distributed import rank_and_world
from speechbrain_ext.utils.errors import InputError, describe_os_error
from speechbrain_ext.utils.jobs import fingerprint

logger = logging.getLogger(__name__)


class Parts:
    """Finished batches of the embeddings that will be the file ``path``.

    All processes of a run make one, with the same arguments; they must share the disk.

    Arguments
    ---------
    path : str or Path
        The embeddings file to be.
    fingerprint : str
        Of :func:`~speechbrain_ext.utils.jobs.fingerprint`. Parts and files of
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


@torch.no_grad()
def extract_embeddings(
    model,
    manifest,
    device="cpu",
    max_batch_seconds=120.0,
    max_seconds=None,
    num_workers=0,
    precision=None,
    progress=True,
    parts=None,
):
    """One embedding per recording of a manifest.

    Arguments
    ---------
    model : torch.nn.Module
        (wavs [B, T], wav_lens [B]) → [B, 1, E]. Put into eval mode, and back.
    manifest : Manifest
        N recordings.
    device : str
        Where ``model`` is.
    max_batch_seconds : float
        Padded seconds in one batch: bounds the memory.
    max_seconds : float
        Longer recordings are cut to this much from their middle; None keeps all.
    num_workers : int
        Reading processes.
    precision : torch.dtype
        Autocast type on the device; None computes in float32.
    progress : bool
        Show a bar.
    parts : Parts
        Where finished batches are kept; those that it has are not embedded again.
        None keeps all in the memory.

    Returns
    -------
    np.ndarray
        [N, E] float32, in the manifest's order, the same on every rank. With
        ``parts`` on the main process only, None on the others.

    Raises
    ------
    InputError
        No recordings; one that cannot be read, is too short, or gives no finite
        embedding. What was finished before it is in ``parts``.
    """
    if not len(manifest):
        raise InputError("no recordings to embed, expected at least one")
    kept = _InMemory(len(manifest)) if parts is None else parts
    recordings = EvaluationSet(manifest, max_seconds)
    seconds = np.asarray(manifest.durations)
    if max_seconds is not None:
        seconds = seconds.clip(max=max_seconds)
    own = _own_share(length_batches(seconds, max_batch_seconds), kept.done)
    on_gpu = torch.device(device).type == "cuda"
    loader = make_loader(recordings, own, num_workers, pin_memory=on_gpu)
    was_training = model.training
    model.eval()
    try:
        for batch, rows in _with_bar(loader, own, seconds, kept.done, progress):
            kept.add(rows, _embed(model, batch, device, precision))
    finally:
        model.train(was_training)
        kept.save()
    return kept.collect()


def embed_to_file(model, manifest, path, save_every=60.0, **options):
    """Embed a manifest into a file, going on from wherever an earlier run was stopped.

    To be called on every rank, on a disk that all ranks share. While it runs, finished
    batches lie beside ``path`` (:class:`~speechbrain_ext.inference.extraction.Parts`).
    A file that the same model made from the same recordings is taken as it is.

    Arguments
    ---------
    model : torch.nn.Module
        As for :func:`extract_embeddings`.
    manifest : Manifest
        N recordings.
    path : str or Path
        ``.npz`` or ``.safetensors``, for
        :func:`~speechbrain_ext.scoring.embeddings.load_embeddings`.
    save_every : float
        Seconds between two savings: as much work may be lost.
    **options
        As for :func:`extract_embeddings`. ``max_seconds`` and ``precision`` must be
        those of the earlier run; everything else may change.

    Returns
    -------
    np.ndarray
        [N, E] float32 on the main process, None on the others.

    Raises
    ------
    InputError
        As :func:`extract_embeddings`; another suffix; an ID that the file cannot hold;
        a full disk.
    """
    check_suffix(Path(path))
    run, vectors, main = None, None, if_main_process()
    if main:
        check_ids(path, manifest.ids.tolist())
        settings = {name: options.get(name) for name in ("max_seconds", "precision")}
        run = fingerprint(model, manifest, **settings)
    parts = Parts(path, ddp_broadcast(run), manifest.ids, save_every)
    if main:
        vectors = parts.finished()
    if not ddp_broadcast(vectors is not None):
        vectors = extract_embeddings(model, manifest, parts=parts, **options)
        if main:
            parts.finish(vectors)
    if main:
        parts.remove()
    return vectors


def _own_share(batches, done):
    """What is left of every batch, and of that this rank's part."""
    left = [rest for batch in batches if len(rest := batch[~done[batch]])]
    rank, world = rank_and_world()
    return left[rank::world]


def _with_bar(loader, own, seconds, done, shown):
    """(batch, rows) of this rank; a bar shows the audio that all ranks have done."""
    left, mine = seconds[~done].sum(), sum(seconds[rows].sum() for rows in own)
    with tqdm(
        desc="embeddings",
        total=seconds.sum(),
        initial=seconds[done].sum(),
        disable=not (shown and if_main_process()),
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio "
        "[{elapsed}<{remaining}]",
    ) as bar:
        for batch, rows in zip(loader, own, strict=True):
            yield batch, rows
            bar.update(seconds[rows].sum() / mine * left)  # the others do as much


def _embed(model, batch, device, precision):
    """(ids, wavs [B, T], wav_lens [B]) → [B, E], all finite."""
    ids, wavs, wav_lens = batch
    _check_audible(ids, wavs, wav_lens)
    device_type = torch.device(device).type
    with torch.autocast(device_type, precision, enabled=precision is not None):
        out = model(
            wavs.to(device, non_blocking=True), wav_lens.to(device, non_blocking=True)
        )
    out = out.squeeze(1).float().cpu().numpy()
    _check_finite(out, ids)
    return out


def _check_audible(ids, wavs, wav_lens):
    samples = torch.round(wav_lens.double() * wavs.shape[1]).long().tolist()
    for name, wav, length in zip(ids, wavs, samples):
        if length < MIN_SAMPLES:
            raise InputError(
                f"{name}: {length} samples, expected {MIN_SAMPLES} or more"
            )
        # a constant signal is silent too: the features remove it
        if wav[:length].amax() == wav[:length].amin():
            raise InputError(f"{name}: silent, expected speech")


def _check_finite(vectors, ids):
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(f"{ids[bad[0]]}: its embedding is not finite")


class _InMemory:
    """Keeps what :class:`Parts` would keep on the disk, and gathers it at the end."""

    def __init__(self, size):
        self.done = np.zeros(size, dtype=bool)
        self._rows, self._vectors = [], []

    def add(self, rows, vectors):
        self._rows.append(rows)
        self._vectors.append(vectors)

    def save(self):
        """Nothing: what is kept here ends with the process."""

    def collect(self):
        """[N, E] on every rank."""
        _, world = rank_and_world()
        shares = [(self._rows, self._vectors)]
        if world > 1:
            shares = [None] * world
            torch.distributed.all_gather_object(shares, (self._rows, self._vectors))
        rows = np.concatenate([row for share in shares for row in share[0]])
        vectors = np.concatenate([vector for share in shares for vector in share[1]])
        out = np.empty((len(self.done), vectors.shape[1]), dtype=np.float32)
        out[rows] = vectors
        return out
