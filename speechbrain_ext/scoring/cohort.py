"""The cohort of score normalisation: one vector per training speaker.

For the U_k training embeddings x_ku of speaker k::

    c_k = 1/U_k Σ_u x_ku        (as given: neither centred nor scaled)
    m   = 1/K Σ_k c_k           (the training mean)

m averages over speakers, not over all embeddings: a speaker with many recordings counts
once, and how many recordings of each were embedded does not matter. Scores are taken
between centred vectors, x - m and c_k - m.
"""

from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.embeddings import (
    as_text,
    check_embeddings,
    check_ids,
    check_matrix,
    read_arrays,
    write_arrays,
)
from speechbrain_ext.utils.errors import InputError

BLOCK = 16384  # embeddings per step: 32 MiB of float64 at E = 256


class Cohort(NamedTuple):
    """``speakers`` str [K], ``vectors`` float32 [K, E], ``mean`` float32 [E].

    ``vectors`` are the mean of each speaker's embeddings, not centred; ``mean`` is what
    to subtract from all embeddings and from ``vectors``.
    """

    speakers: np.ndarray
    vectors: np.ndarray
    mean: np.ndarray

    def rows_of_speakers(self, names):
        """Row of each named speaker in the cohort, int64 [N]; -1 where it is none.

        Normalisation takes these rows to leave an embedding's own speaker out.
        """
        row_of = {name: row for row, name in enumerate(self.speakers.tolist())}
        rows = [row_of.get(name, -1) for name in np.asarray(names).tolist()]
        return np.array(rows, dtype=np.int64)


def speaker_means(vectors, speakers):
    """Cohort of one mean vector per speaker, ascending, summed in float64.

    Of ``vectors`` float [U, E] in any order, perhaps memory-mapped, with their
    ``speakers`` str [U]. Beside input and output it holds two numbers per embedding,
    float64 sums [K, E] and one block of embeddings. InputError: another shape or type,
    no embedding, a value that is not finite, a speaker with an empty name or white
    space in it.
    """
    vectors, speakers = check_matrix(vectors), as_text(speakers)
    if speakers.shape != vectors.shape[:1] or vectors.size == 0:
        raise InputError(
            f"speakers of shape {list(speakers.shape)} and embeddings of shape "
            f"{list(vectors.shape)}, expected [U] and [U, E], not empty"
        )
    if speakers.dtype.kind != "U":
        raise InputError(f"speakers of type {speakers.dtype}, expected text")
    names, owner = np.unique(speakers, return_inverse=True)
    check_ids("cohort", names.tolist())
    order = np.argsort(owner, kind="stable")
    sums = np.zeros((len(names), vectors.shape[1]))
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        part = vectors[rows].astype(np.float64)
        _check_finite(part, rows, speakers)
        first = np.flatnonzero(np.diff(owner[rows], prepend=-1))  # of each speaker
        sums[owner[rows[first]]] += np.add.reduceat(part, first)
    means = sums / np.bincount(owner)[:, None]
    mean = means.mean(axis=0)
    return Cohort(names, means.astype(np.float32), mean.astype(np.float32))


def save_cohort(path, cohort):
    """Write a cohort, atomically, as ``.npz`` or ``.safetensors`` by the suffix.

    InputError for another suffix, and for what :func:`load_cohort` would refuse.
    """
    speakers, vectors, mean = _checked(path, *cohort)
    write_arrays(path, speakers=speakers, vectors=vectors, mean=mean)


def load_cohort(path):
    """Read a cohort written by :func:`save_cohort`, checked in full.

    InputError for a missing, damaged or foreign file, pickled content, shapes that do
    not fit, a speaker twice, empty or with white space, a value that is not finite.
    """
    arrays = read_arrays(path, "a cohort", "speakers", "vectors", "mean")
    return Cohort(*_checked(path, *arrays))


def _checked(path, speakers, vectors, mean):
    speakers, vectors = check_embeddings(path, speakers, vectors)
    mean = np.asarray(mean)
    if mean.shape != vectors.shape[1:] or mean.dtype.kind != "f":
        raise InputError(
            f"{path}: mean of type {mean.dtype} and shape {list(mean.shape)}, "
            f"expected floats [{vectors.shape[1]}], as many as a vector has"
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 is found just below
        mean = mean.astype(np.float32)
    if not np.isfinite(mean).all():
        raise InputError(f"{path}: NaN or infinite mean, expected finite float32")
    return speakers, vectors, mean


def _check_finite(part, rows, speakers):
    finite = np.isfinite(part).all(axis=1)
    if not finite.all():
        row = rows[np.argmin(finite)]
        raise InputError(
            f"NaN or infinite embedding of speaker '{speakers[row]}' (row {row}), "
            "expected finite values"
        )
