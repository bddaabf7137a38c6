"""A name for one computation: the same model, settings and recordings, or not.

    fingerprint = SHA-256(version, settings, modules, weights, recordings)

What is kept from an interrupted run may be used by the next one only where this name is
the same. The device, the number of processes and the size of batches are left out:
embeddings do not depend on them.
"""

import hashlib
import itertools
import json

import torch

from speechbrain_ext import __version__

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
