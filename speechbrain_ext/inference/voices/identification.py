"""Whose voice is it? The best of N enrolled voices, or nobody's.

    s_n = score of the recording against voice n     n* = argmax s_n
    voice n* where s_n* >= t, else unknown

**Which t.** Somebody who is not enrolled is taken for one of N voices where any of N
comparisons errs. With a rate p per comparison, that is at most (Boole's inequality,
however much the voices resemble each other)

    P(any s_n >= t) <= N p(t)

So a false-accept rate that is asked for here is one of the *identification*: the
threshold is that of p = rate / N on the model's held-out trials, as verification has
it. Voices of 1 - (1 - p)^N, which independence would give, hold less than they promise
where comparisons depend on each other; for small rates the two are the same. A rate for
which there are not enough trials is refused; without any rate, the threshold is that of
1 % or, where the trials are too few, the strictest that they tell, with a warning (of
likelihood ratios, Bayes' for the prior P/N below where that is stricter).
The rate of misses is that of the speaker's own comparison; in addition, another
enrolled voice may score higher.

**Probabilities.** Of log-likelihood ratios ℓ_n and a prior P that the speaker is
enrolled, each voice being as likely as another (Bayes' rule over N + 1 answers)::

    p(n) = P/N e^ℓ_n / (1 - P + P/N Σ_m e^ℓ_m)      p(unknown) = 1 - Σ_n p(n)
"""

import contextlib
import logging
import os
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from speechbrain_ext.inference.decisions import files_of, kept_warnings, log_odds
from speechbrain_ext.inference.thresholds import checked_rate
from speechbrain_ext.inference.verifier import SpeakerModel
from speechbrain_ext.inference.voices import Voices, embed_recordings
from speechbrain_ext.scoring.backend import TrialSide
from speechbrain_ext.utils.errors import InputError, NoSpeechError, naming

logger = logging.getLogger(__name__)

DEFAULT_RATE = 0.01  # false accepts per identification, where nothing is asked for


class Candidate(NamedTuple):
    """An enrolled voice with its scores; None for those that the model has not.

    ``probability`` that it speaks, among all enrolled voices and the unknown.
    """

    voice: str
    cosine: float
    as_norm: float | None
    llr: float | None
    probability: float | None


class Identification(NamedTuple):
    """Who speaks.

    Attributes
    ----------
    voice : str or None
        Name of the best voice; None: unknown, or no speech to judge by.
    candidates : list of Candidate
        The best voices, the best first; of equal scores, the one enrolled first.
    score : str
        Which score decided: ``cosine``, ``as_norm`` or ``llr``.
    threshold : float
        What that score was held against.
    false_accept_rate : float or None
        Share of unknown speakers who are taken for an enrolled voice, at most: N times
        the rate measured for a comparison. None where nothing was measured.
    miss_rate : float or None
        Share of recordings of an enrolled voice that score lower, as measured.
    unknown_probability : float or None
        That the speaker is not enrolled.
    prior : float
        What the probabilities took for the share of recordings of enrolled speakers.
    n_voices : int
        That were compared.
    seconds : float
        Of audio.
    """

    voice: str | None
    candidates: list
    score: str
    threshold: float
    false_accept_rate: float | None
    miss_rate: float | None
    unknown_probability: float | None
    prior: float
    n_voices: int
    seconds: float


def identify(
    verifier,
    recordings,
    voices,
    score=None,
    threshold=None,
    false_accept_rate=None,
    top=5,
    prior=0.5,
    **options,
):
    """Whose voice it is, of those that are enrolled, or nobody's.

    Arguments
    ---------
    verifier : SpeakerVerifier
    recordings : str, Path or list of them, or SpeakerModel
        Of one speaker; several are averaged.
    voices : Voices or str or Path
        Enrolled voices, or their file.
    score, threshold
        As for ``SpeakerVerifier.compare``.
    false_accept_rate : float or None
        Wanted share, in (0, 1), of unknown speakers who are taken for any of the
        voices. Without it and ``threshold`` it is 1 %, or the lowest that the model's
        trials tell.
    top : int
        Candidates to list.
    prior : float
        Share of recordings of enrolled speakers, for probabilities.
    **options
        Of ``SpeakerVerifier.enrol``: how the recordings are read.

    Returns
    -------
    Identification

    Raises
    ------
    InputError
        As ``SpeakerVerifier.compare``; no voice, or those of another model.
    """
    log_odds(prior)
    if isinstance(voices, (str, os.PathLike)):
        voices = Voices.load(voices, verifier)
    if not isinstance(voices, Voices):
        raise InputError(f"voices {type(voices).__name__}, expected Voices or a file")
    if not len(voices):
        raise InputError("no voice is enrolled, expected at least one to compare with")
    voices.check_model(verifier.fingerprint, verifier.source)
    if type(top) is not int or top < 1:
        raise InputError(f"top is {top!r}, expected a whole number of at least 1")
    decider = verifier._decider
    kind = decider.kind(score, threshold, false_accept_rate)
    point = operating_point(
        decider, kind, len(voices), threshold, false_accept_rate, prior
    )
    try:
        test = verifier.enrol(recordings, **options)
    except NoSpeechError as error:
        logger.warning("%s: nobody's voice", error)
        test = SpeakerModel(None, 0.0)
    result = Identification(
        *(None, [], kind, *point, None, float(prior), len(voices), test.seconds)
    )
    if test.embedding is None:
        return result
    scores = _scores(verifier.backend, voices, test)
    probabilities = unknown = None
    if "llr" in scores:
        *probabilities, unknown = posteriors(scores["llr"], prior).tolist()
    order = np.argsort(-scores[kind], kind="stable")
    best = scores[kind][order]
    # as floats: numpy would round the threshold to the float32 of the scores
    accepted = float(best[0]) >= point.threshold
    if accepted and len(best) > 1 and best[0] == best[1]:
        logger.warning(
            "voices '%s' and '%s' have the same score: are they of one speaker?",
            *(voices.names[row] for row in order[:2]),
        )
    names = voices.names
    candidates = [
        Candidate(
            names[row],
            *(
                float(scores[k][row]) if k in scores else None
                for k in ("cosine", "as_norm", "llr")
            ),
            None if probabilities is None else probabilities[row],
        )
        for row in order[:top].tolist()
    ]
    return result._replace(
        voice=candidates[0].voice if accepted else None,
        candidates=candidates,
        unknown_probability=unknown,
    )


def operating_point(decider, kind, n_voices, threshold, false_accept_rate, prior):
    """The threshold for one of N voices, and the rates of an identification there.

    Arguments
    ---------
    decider : Decider
    kind : str
        Of score.
    n_voices : int
    threshold, false_accept_rate, prior
        As for :meth:`~speechbrain_ext.inference.verifier.SpeakerVerifier.identify`.

    Returns
    -------
    OperatingPoint
        Its false-accept rate is that of the identification, at most.

    Raises
    ------
    InputError
        As for verification; a rate that so few trials do not tell.
    """
    rate, measured = false_accept_rate, decider.thresholds.get(kind)
    shared = prior / n_voices
    if rate is not None:
        rate = checked_rate(rate) / n_voices
    elif threshold is None and measured is not None:
        rate = DEFAULT_RATE / n_voices
        if (strictest := min(1 / measured.n_nontarget, 0.5)) > rate:
            rate = strictest
            logger.warning(
                "%d non-target trials of the model's thresholds are too few for a rate "
                "of %g false accepts among %d voices: the threshold is the strictest "
                "that they tell, of likelihood ratios Bayes' where that is stricter",
                *(measured.n_nontarget, DEFAULT_RATE, n_voices),
            )
    among = contextlib.nullcontext()
    if rate is not None and n_voices > 1:
        among = naming(f"{rate * n_voices:g} false accepts among {n_voices} voices")
    with among:
        point = decider.point(kind, threshold, rate, shared)
    if point.false_accept_rate is None:
        return point
    guessed = threshold is None and false_accept_rate is None
    if guessed and kind == "llr" and rate * n_voices > DEFAULT_RATE * (1 + 1e-9):
        point = measured.rates_at(max(point.threshold, -log_odds(shared)))
    together = min(1.0, n_voices * point.false_accept_rate)
    return point._replace(false_accept_rate=together)


def posteriors(llrs, prior):
    """Probabilities of N voices and, last, of the unknown: float64 [N + 1]."""
    llrs = np.asarray(llrs, dtype=np.float64)
    shared = np.log(prior) - np.log(len(llrs))
    return softmax(np.append(llrs + shared, np.log1p(-prior)))


def _scores(backend, voices, test):
    """{kind of score: float [N]} of a SpeakerModel against all voices."""
    timed = (
        backend.calibrator is not None and "duration_min" in backend.calibrator.names
    )
    side = TrialSide(test.embedding[None], np.array([test.seconds]) if timed else None)
    scores = backend.scores_of_all(
        voices.prepared(backend, timed), backend.prepare(side)
    )
    names = {"s_norm": "as_norm"}  # S-norm is AS-norm by the whole cohort
    return {names.get(kind, kind): s[:, 0] for kind, s in scores.items()}


def identification_report(
    verifier,
    recordings,
    voices,
    score=None,
    threshold=None,
    false_accept_rate=None,
    **options,
):
    """Identify a speaker, in plain values: for JSON, and for the page.

    Arguments
    ---------
    verifier : SpeakerVerifier
    recordings : list of str, or SpeakerModel
        Of one speaker.
    voices : Voices
    score, threshold, false_accept_rate, **options
        As for :func:`identify`.

    Returns
    -------
    dict
        ``voice`` (or None), ``score`` of the best candidate, ``score_kind``,
        ``threshold``, ``threshold_from``, ``false_accept_rate`` and ``miss_rate`` of
        the identification, ``candidates`` with their scores, ``unknown_probability``
        and its ``prior``, ``n_voices``, ``test`` (files, seconds), ``model``,
        ``device``, ``warnings``.

    Raises
    ------
    InputError
        As ``identify``.
    """
    decision = score, threshold, false_accept_rate
    with kept_warnings() as warnings:
        result = identify(verifier, recordings, voices, *decision, **options)
    best = result.candidates[:1]
    return {
        "voice": result.voice,
        "score": getattr(best[0], result.score) if best else None,
        "score_kind": result.score,
        "threshold": result.threshold,
        "threshold_from": _origin(verifier, result, threshold, false_accept_rate),
        "false_accept_rate": result.false_accept_rate,
        "miss_rate": result.miss_rate,
        "candidates": [candidate._asdict() for candidate in result.candidates],
        "unknown_probability": result.unknown_probability,
        "prior": result.prior,
        "n_voices": result.n_voices,
        "test": {"files": files_of(recordings), "seconds": result.seconds},
        "model": verifier.source,
        "device": str(verifier.device),
        "warnings": warnings,
    }


def _origin(verifier, result, threshold, false_accept_rate):
    """Where the threshold comes from, in words."""
    if threshold is not None:
        return "given"
    if result.score in verifier.thresholds:
        return (
            "the model's held-out trials, at a false accept rate of "
            f"{false_accept_rate or DEFAULT_RATE:g} among all {result.n_voices} voices"
            + ", or the lowest that they tell"
            * (false_accept_rate is None)
        )
    if result.score == "llr":
        return (
            f"Bayes' rule for a prior of {result.prior:g}, shared by "
            f"{result.n_voices} voices"
        )
    return "a guess that nobody measured: the model has no thresholds"


def identify_each(
    verifier, files, voices, speech_detection=None, channel="mean", **options
):
    """Identify the speaker of every file, which are embedded together.

    Arguments
    ---------
    verifier : SpeakerVerifier
    files : list of str
    voices : Voices
    speech_detection, channel, **options
        As for :func:`identification_report`.

    Returns
    -------
    dict
        ``results``: for each file what :func:`identification_report` gives, or, of one
        that cannot be read or has no speech, ``test`` and ``error``.

    Raises
    ------
    InputError
        As ``identify``; no file can be read.
    """
    found = embed_recordings(verifier, files, speech_detection, channel)
    errors = {failure.row: failure.reason for failure in found.failures}
    unreadable = [
        failure
        for failure, error in zip(found.failures, found.errors)
        if not isinstance(error, NoSpeechError)
    ]
    if len(unreadable) == len(files):
        raise InputError(f"{files[0]}: {errors[0]} (no recording could be read)")
    results = []
    for row, file in enumerate(files):
        if row in errors:
            report = {"voice": None, "test": {}, "error": errors[row]}
        else:
            speaker = SpeakerModel(found.vectors[row], float(found.seconds[row]))
            report = identification_report(verifier, speaker, voices, **options)
        report["test"]["files"] = [file]
        results.append(report)
    return {"results": results}
