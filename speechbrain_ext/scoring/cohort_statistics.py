"""Mean and spread of an embedding's scores with a cohort of other speakers.

For an embedding x and the members c_1 … c_K of the cohort, with cosines s(x, c_k)::

    μ(x) = mean of the N highest s(x, c_k)
    σ(x) = their population standard deviation

Score normalisation divides by σ, and μ tells how common a voice sounds. The matrix of
scores [U, K] is made and reduced in blocks that stay in the cache. Over all K there is
no need for the scores: with m the mean of the unit vectors c_k and M that of c_k c_kᵀ,
μ = x·m and μ² + σ² = xᵀ M x.
"""

import functools
from typing import NamedTuple

import numpy as np

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.embeddings import (
    check_matrix,
    euclidean_norms,
    unit_vectors,
)

# 527 rows of 5,994 scores, which stay in the cache: 19 µs per embedding of 256 values
# on two cores; from 64 MiB on it is 25 µs.
MEMORY_MIB = 16


class CohortStatistics(NamedTuple):
    """``mean`` and ``std`` of each embedding's cohort scores, float64 [U]."""

    mean: np.ndarray
    std: np.ndarray


def cohort_statistics(
    vectors, cohort, top_n=300, own=None, rows=None, memory_mib=MEMORY_MIB
):
    """Mean and standard deviation of each embedding's highest cohort scores.

    Beside input and output it holds two copies of the cohort and ``memory_mib``.

    Arguments
    ---------
    vectors : array_like
        float [U, E].
    cohort : array_like
        float [K, E].
    top_n : int
        Members that count, 2 to K; None takes all.
    own : array_like
        int [U], cohort row of each embedding's own speaker, left out, or -1.
    rows : array_like
        int, of any shape: the embeddings to compute, each once; None computes all.
    memory_mib : float
        Working memory in MiB.

    Returns
    -------
    CohortStatistics
        float64 [U], NaN in rows that were not asked for.

    Raises
    ------
    InputError
        Shapes, types or rows that do not fit, a cohort of fewer than ``top_n`` members
        (one less where a speaker is left out), a vector without direction (norm zero or
        not finite). Cohort scores that are all equal are none: ``std`` is then zero but
        for rounding.
    """
    vectors, cohort = check_matrix(vectors), check_matrix(cohort, "cohort")
    rows = _checked_rows(rows, len(vectors))
    own = _checked_own(own, len(vectors), len(cohort))
    _check_sizes(vectors, cohort, top_n, (own[rows] >= 0).any())
    members = unit_vectors(
        "cohort member", cohort, euclidean_norms(cohort), np.arange(len(cohort))
    )
    norms = euclidean_norms(vectors)
    if top_n is None:
        find = functools.partial(_over_all, members, *_moments(members))
        per_row = 8 * 4 * members.shape[1]
    else:
        find = functools.partial(_over_top, members, top_n)
        per_row = 4 * len(members) + 4 * 3 * members.shape[1] + 8 * 2 * top_n
    block = rows_in_memory(memory_mib, per_row)
    mean, std = np.full((2, len(vectors)), np.nan)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        units = unit_vectors("embedding", vectors, norms, part)
        mean[part], std[part] = find(units, own[part])
    return CohortStatistics(mean, std)


def _over_top(members, top_n, units, own):
    """Statistics over the ``top_n`` highest scores of each row of ``units`` [N, E]."""
    scores = units @ members.T  # [N, K]
    known = np.flatnonzero(own >= 0)
    scores[known, own[known]] = -np.inf
    scores.partition(scores.shape[1] - top_n, axis=1)  # the highest to the right
    top = scores[:, -top_n:]
    return top.mean(axis=1, dtype=np.float64), top.std(axis=1, dtype=np.float64)


def _moments(members):
    """m = mean of c_k [E] and M = mean of c_k c_kᵀ [E, E], float64."""
    members = members.astype(np.float64)
    return members.mean(axis=0), members.T @ members / len(members)


def _over_all(members, first, second, units, own):
    """Statistics over all scores, without the scores: μ = x·m, μ² + σ² = xᵀ M x."""
    known = own >= 0
    own_scores = np.zeros(len(units))
    own_scores[known] = np.einsum("ne,ne->n", units[known], members[own[known]])
    units = units.astype(np.float64)
    squares = np.einsum("ne,ne->n", units @ second, units)
    size, left = len(members), len(members) - known
    mean = (size * (units @ first) - own_scores) / left
    variance = (size * squares - own_scores**2) / left - mean**2
    return mean, np.sqrt(variance.clip(min=0))


def rows_in_memory(memory_mib, bytes_per_row):
    """How many rows fit into ``memory_mib``, at least one."""
    if not 0 < memory_mib < np.inf:
        raise InputError(f"memory_mib is {memory_mib}, expected MiB above 0")
    return max(1, int(memory_mib * 2**20 / bytes_per_row))


def _checked_rows(rows, size):
    rows = np.arange(size) if rows is None else np.unique(rows)
    if len(rows) and not 0 <= rows[0] <= rows[-1] < size:
        raise InputError(
            f"rows {rows[0]} to {rows[-1]} asked for, expected 0 to {size - 1}"
        )
    return rows


def _checked_own(own, n_vectors, n_members):
    if own is None:
        return np.full(n_vectors, -1)
    own = np.asarray(own)
    if own.shape != (n_vectors,) or own.dtype.kind not in "iu":
        raise InputError(
            f"own speakers of type {own.dtype} and shape {list(own.shape)}, expected "
            f"one cohort row or -1 per embedding: integers [{n_vectors}]"
        )
    bad = np.flatnonzero((own < -1) | (own >= n_members))
    if len(bad):
        raise InputError(
            f"own speaker {own[bad[0]]} of the embedding in row {bad[0]}, expected a "
            f"cohort row, 0 to {n_members - 1}, or -1"
        )
    return own


def _check_sizes(vectors, cohort, top_n, one_is_left_out):
    if vectors.shape[1] != cohort.shape[1]:
        raise InputError(
            f"embeddings of {vectors.shape[1]} values and a cohort of "
            f"{cohort.shape[1]}, expected as many"
        )
    wanted = 2 if top_n is None else top_n
    if wanted < 2:
        raise InputError(f"top_n is {top_n}, expected at least 2: one has no spread")
    left = len(cohort) - one_is_left_out
    if left < wanted:
        without = ", one less where a speaker is left out" if one_is_left_out else ""
        raise InputError(
            f"cohort of {len(cohort)} members{without}, expected at least {wanted}"
        )
