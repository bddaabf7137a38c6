"""A classifier of new speakers begins where their recordings are.

    w_s = mean over recordings r of speaker s of e_r / |e_r|

scaled to the length that the row had: the imprinted weights of Qi et al. 2018 (arXiv
1712.07136), section 3.2. From random rows a pretrained encoder would be pulled about
for as long as the classifier looks for its speakers: at the small learning rates of
fine-tuning, for most of the run.
"""

import logging

import numpy as np
import torch

from speechbrain_ext.data.classes import Classes
from speechbrain_ext.extraction import extract_embeddings

logger = logging.getLogger(__name__)

MAX_UTTERANCES = 20  # of each speaker, as in the cohort of verify.py


def imprint(modules, manifest, n_speeds, device, max_batch_seconds, max_seconds):
    """Set a classifier's rows to the mean embeddings of its speakers.

    The rows of a speaker at other speeds begin at the same place. To be called on every
    rank: they share the work.

    Arguments
    ---------
    modules : dict
        ``speaker_encoder`` and ``classifier``, an
        :class:`~speechbrain_ext.losses.ArcFace`, which is changed in place.
    manifest : Manifest
        The training recordings.
    n_speeds : int
        As for :class:`~speechbrain_ext.data.classes.Classes`.
    device : str
        Where the modules are.
    max_batch_seconds, max_seconds : float
        As for :func:`~speechbrain_ext.extraction.extract_embeddings`; the latter is the
        longest crop, so that the means are of what training will see.

    Raises
    ------
    InputError
        A recording that cannot be embedded.
    """
    n_speakers = len(manifest.speaker_names)
    part = manifest.select(first_of_each(manifest.labels, MAX_UTTERANCES))
    logger.info("the classifier begins at the means of %d recordings", len(part))
    vectors = extract_embeddings(
        modules["speaker_encoder"],
        part,
        device,
        max_batch_seconds,
        max_seconds,
        progress=False,
    )
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    means = np.zeros((n_speakers, vectors.shape[1]))
    np.add.at(means, part.labels, vectors)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    classes = Classes(n_speakers, n_speeds, manifest.n_perturbed)
    rows = [speaker for speaker, _ in classes.speakers_and_speeds()]
    with torch.no_grad():
        weight = modules["classifier"].weight
        directions = torch.from_numpy(means[rows]).to(weight)
        weight.copy_(directions * weight.norm(dim=1, keepdim=True))


def first_of_each(labels, count):
    """Rows of the first ``count`` recordings of each speaker: int64 [M], ascending."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < count])
