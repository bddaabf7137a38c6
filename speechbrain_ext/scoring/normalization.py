"""Score normalisation against a cohort of other speakers: AS-norm and S-norm.

s(e, t) is the cosine of a trial's embeddings, s(x, c_k) that of an embedding x and
member k of the cohort. With μ(x) and σ(x), the mean and the population standard
deviation of the cohort scores s(x, c_1) … s(x, c_K)::

    S-norm(e, t) = 1/2 (s(e, t) - μ(e)) / σ(e) + 1/2 (s(e, t) - μ(t)) / σ(t)

(Shum et al., "Unsupervised speaker adaptation based on the cosine similarity for
text-independent speaker verification", Odyssey 2010). AS-norm takes μ(x) and σ(x) over
only the N members that score highest with x: the impostors that matter to it (Matějka
et al., "Analysis of score normalization in multilingual speaker recognition",
Interspeech 2017). Vectors are taken as given: centring is the caller's.

T trials name U << T embeddings, so μ and σ are found once per embedding
(:func:`cohort_statistics`). The matrix of scores [U, K] is made and reduced in blocks
that stay in the cache. Over all K there is no need for the scores: with m the mean of
the unit vectors c_k and M that of c_k c_kᵀ, μ = x·m and μ² + σ² = xᵀ M x.
"""

import functools
from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.embeddings import (
    check_matrix,
    check_rows,
    cosine_scores,
    euclidean_norms,
    unit_vectors,
)
from speechbrain_ext.utils.errors import InputError

# 527 rows of 5,994 scores, which stay in the cache: 19 µs per embedding of 256 values
# on two cores; from 64 MiB on it is 25 µs.
MEMORY_MIB = 16
SMALLEST_STD = 1e-6  # float32 cosines of equal vectors spread by 1e-7


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
    with_own = np.flatnonzero(own >= 0)
    scores[with_own, own[with_own]] = -np.inf
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
    size, others = len(members), len(members) - known
    mean = (size * (units @ first) - own_scores) / others
    variance = (size * squares - own_scores**2) / others - mean**2
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
    if len(cohort) - one_is_left_out < wanted:
        without = ", one less where a speaker is left out" if one_is_left_out else ""
        raise InputError(
            f"cohort of {len(cohort)} members{without}, expected at least {wanted}"
        )


def as_norm(
    enrol,
    test,
    cohort,
    trials,
    top_n=300,
    enrol_speakers=None,
    test_speakers=None,
    memory_mib=MEMORY_MIB,
):
    """Adaptive symmetric normalisation of the trials' cosine scores.

    Only embeddings that a trial names are computed; where ``enrol`` and ``test`` are
    one array, each of them once. Beside input and output it holds two unit-length
    copies of the cohort and ``memory_mib``.

    Arguments
    ---------
    enrol, test : array_like
        float [N, E] and [M, E]; pass one array twice where the trials share it.
    cohort : array_like
        float [K, E], one vector per speaker.
    trials : array_like
        int [T, 2], rows of ``enrol`` and of ``test``. Without trials (``[0, 2]``) there
        are no scores.
    top_n : int
        Cohort members that count, 2 to K.
    enrol_speakers, test_speakers : array_like
        int [N] and [M], the cohort row of each embedding's own speaker, to be left out
        of its cohort, or -1. None leaves nobody out.
    memory_mib : float
        Working memory in MiB.

    Returns
    -------
    np.ndarray
        float32 [T], in standard deviations.

    Raises
    ------
    InputError
        Shapes, types or rows that do not fit, a cohort of fewer than ``top_n`` members
        (one less where a speaker is left out), a vector without direction (norm zero or
        not finite), an embedding whose cohort scores are all equal.
    """
    trials = _checked_trials(trials)
    scores = _trial_scores(enrol, test, trials, memory_mib)
    options = {"cohort": cohort, "top_n": top_n, "memory_mib": memory_mib}
    if enrol is test and _same_speakers(enrol_speakers, test_speakers):
        both = cohort_statistics(enrol, own=enrol_speakers, rows=trials, **options)
        return symmetric_norm(scores, trials, both, both)
    sides = ((enrol, enrol_speakers), (test, test_speakers))
    statistics = [
        cohort_statistics(vectors, own=own, rows=rows, **options)
        for (vectors, own), rows in zip(sides, trials.T)
    ]
    return symmetric_norm(scores, trials, *statistics)


def s_norm(
    enrol,
    test,
    cohort,
    trials,
    enrol_speakers=None,
    test_speakers=None,
    memory_mib=MEMORY_MIB,
):
    """Symmetric normalisation by all members of the cohort.

    Arguments, returns and errors as :func:`as_norm`, without ``top_n``.
    """
    return as_norm(
        enrol, test, cohort, trials, None, enrol_speakers, test_speakers, memory_mib
    )


def symmetric_norm(scores, trials, enrol_statistics, test_statistics):
    """The half sum of both sides' normalised scores: the equation above, float32 [T].

    Of scores float [T], trials int [T, 2] and the CohortStatistics of either side,
    whose rows the trials name. InputError for a trial's embedding without statistics,
    or with a standard deviation that is zero but for rounding.
    """
    scores, trials = np.asarray(scores, dtype=np.float64), _checked_trials(trials)
    if scores.shape != trials.shape[:1]:
        raise InputError(
            f"{list(scores.shape)} scores and {len(trials)} trials, expected as many"
        )
    total = np.zeros(len(scores))
    sides = (("enrolment", enrol_statistics), ("test", test_statistics))
    for (side, (mean, std)), rows in zip(sides, trials.T):
        check_rows(side, rows, len(std))
        _check_spread(side, std, rows)
        total += (scores - mean[rows]) / std[rows]
    return (total / 2).astype(np.float32)


def _trial_scores(enrol, test, trials, memory_mib):
    enrol, test = check_matrix(enrol), check_matrix(test)
    block = rows_in_memory(memory_mib, 4 * 4 * enrol.shape[1])
    return cosine_scores(enrol, *trials.T, block=block, test_vectors=test)


def _same_speakers(enrol_speakers, test_speakers):
    if enrol_speakers is None or test_speakers is None:
        return enrol_speakers is test_speakers
    return np.array_equal(enrol_speakers, test_speakers)


def _checked_trials(trials):
    trials = np.asarray(trials)
    if trials.ndim != 2 or trials.shape[1] != 2 or trials.dtype.kind not in "iu":
        raise InputError(
            f"trials of type {trials.dtype} and shape {list(trials.shape)}, expected "
            "integers [T, 2]: a row of enrol and a row of test each"
        )
    return trials


def _check_spread(side, std, rows):
    bad = np.flatnonzero(~(std[rows] > SMALLEST_STD))
    if len(bad):
        row = rows[bad[0]]
        raise InputError(
            f"{side} embedding in row {row}: standard deviation {std[row]:g} of its "
            f"cohort scores, expected above {SMALLEST_STD:g}: are all members equal?"
        )
