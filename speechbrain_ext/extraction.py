"""Embeddings of many recordings: batched by length, shared out over ranks.

Each recording is embedded once in all: rank r takes every world-size-th batch, and
the rows are put together on every rank afterwards.
"""

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_ext.data.dataset import EvaluationSet, length_batches, make_loader
from speechbrain_ext.errors import InputError
from speechbrain_ext.features import MIN_SAMPLES


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

    Returns
    -------
    np.ndarray
        [N, E] float32, in the manifest's order, the same on every rank.

    Raises
    ------
    InputError
        A recording that cannot be read, is too short, or gives no finite embedding.
    """
    rank, world = _rank_and_world()
    recordings = EvaluationSet(manifest, max_seconds)
    seconds = np.asarray(manifest.durations)
    if max_seconds is not None:
        seconds = seconds.clip(max=max_seconds)
    own = length_batches(seconds, max_batch_seconds)[rank::world]
    loader = make_loader(recordings, own, num_workers)
    bar = tqdm(loader, "embeddings", disable=not progress or rank > 0, leave=False)
    was_training = model.training
    model.eval()
    try:
        vectors = [_embed(model, batch, device, precision) for batch in bar]
    finally:
        model.train(was_training)
    return _gather(own, vectors, len(manifest), world)


def _embed(model, batch, device, precision):
    """(ids, wavs [B, T], wav_lens [B]) → [B, E], all finite."""
    ids, wavs, wav_lens = batch
    _check_audible(ids, wavs, wav_lens)
    device_type = torch.device(device).type
    with torch.autocast(device_type, precision, enabled=precision is not None):
        out = model(wavs.to(device), wav_lens.to(device))
    out = out.squeeze(1).float().cpu().numpy()
    _check_finite(out, ids)
    return out


def _rank_and_world():
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


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


def _gather(rows, vectors, total, world):
    parts = [(rows, vectors)]
    if world > 1:
        parts = [None] * world
        torch.distributed.all_gather_object(parts, (rows, vectors))
    rows = np.concatenate([row for part in parts for row in part[0]])
    vectors = np.concatenate([vector for part in parts for vector in part[1]])
    out = np.empty((total, vectors.shape[1]), dtype=np.float32)
    out[rows] = vectors
    return out
