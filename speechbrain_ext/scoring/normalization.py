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

T trials name U << T embeddings, so μ and σ are found once per embedding, in
:mod:`~speechbrain_ext.scoring.cohort_statistics`.
"""

import numpy as np

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.cohort_statistics import (
    MEMORY_MIB,
    cohort_statistics,
    rows_in_memory,
)
from speechbrain_ext.scoring.embeddings import check_matrix, check_rows, cosine_scores

SMALLEST_STD = 1e-6  # float32 cosines of equal vectors spread by 1e-7


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
    """The half sum of both sides' normalised scores: the equation above.

    For statistics that are at hand already, as quality measures need them.

    Arguments
    ---------
    scores : array_like
        float [T].
    trials : array_like
        int [T, 2], rows of the statistics of either side.
    enrol_statistics, test_statistics : CohortStatistics
        Of the enrolment and the test embeddings.

    Returns
    -------
    np.ndarray
        float32 [T].

    Raises
    ------
    InputError
        A trial's embedding without statistics, or with a standard deviation that is
        zero but for rounding.
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
