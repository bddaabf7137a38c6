"""Embeddings of many recordings: batched by length, shared out over ranks, resumable.

Each recording is embedded once in all: rank r takes every world-size-th batch. Batches
are composed from the whole list, so that an interrupted extraction, continued by
however many processes, has the batches of an unbroken one, and so its bits where every
process computes alike: the same kind of CPU or GPU, versions of libraries and number
of threads. Elsewhere embeddings agree to some 1e-5 of their size.
"""

from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.distributed import ddp_broadcast, if_main_process
from tqdm import tqdm

from speechbrain_ext.data.dataset import EvaluationSet, length_batches, make_loader
from speechbrain_ext.distributed import rank_and_world
from speechbrain_ext.errors import InputError
from speechbrain_ext.extraction_parts import Parts
from speechbrain_ext.features import MIN_SAMPLES
from speechbrain_ext.fingerprint import fingerprint
from speechbrain_ext.scoring.array_files import check_suffix
from speechbrain_ext.scoring.embeddings import check_ids


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
    batches lie beside ``path`` (:class:`~speechbrain_ext.extraction_parts.Parts`). A
    file that the same model made from the same recordings is taken as it is.

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
