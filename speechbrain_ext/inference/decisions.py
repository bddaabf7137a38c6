"""From scores to a decision: which score, which threshold, and what it promises.

A trial is accepted where its score is at or above the threshold. Of a log-likelihood
ratio ℓ and a prior P, the probability of the same speaker is Bayes' rule,

    p = σ(ℓ + ln P / (1 - P))
"""

import contextlib
import logging
import math
from typing import NamedTuple

import numpy as np

from speechbrain_ext.inference.thresholds import (
    KINDS,
    THRESHOLDS_FILE,
    OperatingPoint,
)
from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)

# Where a model has no measured thresholds. No measurement stands behind it.
UNMEASURED_COSINE = 0.5


class Comparison(NamedTuple):
    """Two voices compared; scores, probability and decision are None without speech.

    Attributes
    ----------
    cosine : float or None
        Of the embeddings, in [-1, 1].
    as_norm : float or None
        After normalisation by the model's cohort.
    llr : float or None
        Log-likelihood ratio (natural logarithm) by the model's calibration.
    probability : float or None
        Of the same speaker, by ``llr`` and ``prior``.
    prior : float
        What ``probability`` took for the share of same-speaker pairs.
    score : str
        Which of the three decided: ``cosine``, ``as_norm`` or ``llr``.
    threshold : float
        What that score was held against.
    decision : bool or None
        Whether they are taken for one speaker; None where a side has no speech.
    false_accept_rate, miss_rate : float or None
        What the threshold promises, fractions measured on the model's held-out trials.
    enrol_seconds, test_seconds : float
        Of speech on either side; of audio, without speech detection.
    enrol_detected, test_detected : list of Detected, or None
        What a spoofing detector says of each recording; None without one, and of a
        speaker who was enrolled before.
    """

    cosine: float | None
    as_norm: float | None
    llr: float | None
    probability: float | None
    prior: float
    score: str
    threshold: float
    decision: bool | None
    false_accept_rate: float | None
    miss_rate: float | None
    enrol_seconds: float
    test_seconds: float
    enrol_detected: list | None = None
    test_detected: list | None = None

    @property
    def accepted(self):
        """Whether one speaker speaks, and no recording is a spoof; None: not known.

        Without a detector it is the decision.
        """
        detected = [*(self.enrol_detected or ()), *(self.test_detected or ())]
        answers = [self.decision, *(found.decision for found in detected)]
        if False in answers:
            return False
        return None if None in answers else True


def comparison_of(scores, kind, point, prior, enrol_seconds, test_seconds, *detected):
    """The Comparison of two voices by their score ``kind`` at an operating point.

    ``scores`` {kind: float} are empty where a side has no speech; ``detected`` are
    lists of Detected of both sides, or None each.
    """
    llr = scores.get("llr")
    return Comparison(
        cosine=scores.get("cosine"),
        as_norm=scores.get("as_norm"),
        llr=llr,
        probability=None if llr is None else probability(llr, prior),
        prior=float(prior),
        score=kind,
        threshold=point.threshold,
        decision=scores[kind] >= point.threshold if scores else None,
        false_accept_rate=point.false_accept_rate,
        miss_rate=point.miss_rate,
        enrol_seconds=enrol_seconds,
        test_seconds=test_seconds,
        **dict(zip(("enrol_detected", "test_detected"), detected)),
    )


class Decider:
    """Chooses score and threshold.

    ``kinds`` are the scores that the model can make, the best last; ``thresholds``
    those of its folder ``source``, by kind.
    """

    def __init__(self, kinds, thresholds, source):
        self.kinds, self.thresholds, self.source = kinds, thresholds, source
        self._warned = False

    def kind(self, score=None, threshold=None, false_accept_rate=None):
        """The score to decide by: the one asked for, or the best with a threshold."""
        if score is not None:
            if score not in KINDS:
                raise InputError(f"score {score!r}, expected one of {', '.join(KINDS)}")
            if score not in self.kinds:
                raise InputError(
                    f"{self.source}: score '{score}' needs "
                    f"{'cohort.npz' if score == 'as_norm' else 'calibration.json'} in "
                    f"the model's folder, expected one of {', '.join(self.kinds)}"
                )
            return score
        if threshold is not None and len(self.kinds) > 1:
            raise InputError(
                f"threshold {threshold} of no particular score, expected a score with "
                f"it: one of {', '.join(self.kinds)}"
            )
        measured = [kind for kind in self.kinds if kind in self.thresholds]
        if "llr" in self.kinds and false_accept_rate is None:
            measured.append("llr")  # its threshold follows from a prior
        return measured[-1] if measured else "cosine"

    def point(self, kind, threshold=None, false_accept_rate=None, prior=0.5):
        """The threshold, and the rates that were measured there.

        It is the one given; else that of the false-accept rate; else where both errors
        were equally frequent; else, of a log-likelihood ratio, Bayes' for the prior.
        Rates are None where nothing was measured.
        """
        measured = self.thresholds.get(kind)
        if threshold is not None:
            if false_accept_rate is not None:
                raise InputError(
                    f"threshold {threshold} and false_accept_rate {false_accept_rate}, "
                    "expected one of the two"
                )
            return _at(_checked_threshold(threshold), measured)
        if false_accept_rate is not None:
            if measured is None:
                raise InputError(
                    f"{self.source}: false_accept_rate {false_accept_rate} of '{kind}' "
                    f"needs it in {THRESHOLDS_FILE}, which has "
                    f"{', '.join(self.thresholds) or 'none'}; expected a threshold"
                )
            return measured.at_false_accept_rate(false_accept_rate)
        if measured is not None:
            return _at(measured.eer_threshold, measured)
        return self._unmeasured(kind, prior)

    def _unmeasured(self, kind, prior):
        if kind == "llr":
            return _at(0.0 - log_odds(prior), None)  # 0 for even odds, not -0
        if kind == "as_norm":
            raise InputError(
                f"{self.source}: no threshold of 'as_norm' in {THRESHOLDS_FILE}, "
                "expected a threshold"
            )
        if not self._warned:
            logger.warning(
                "%s: no %s, so the cosine is held against %g, which nobody measured "
                "(nor does SpeechBrain's 0.25 mean anything for this model); give a "
                "threshold, or measure one on pairs of your own",
                *(self.source, THRESHOLDS_FILE, UNMEASURED_COSINE),
            )
            self._warned = True
        return _at(UNMEASURED_COSINE, None)


def log_odds(prior):
    """ln P / (1 - P), or InputError."""
    number = isinstance(prior, (int, float, np.number)) and not isinstance(prior, bool)
    if not number or not 0 < prior < 1:
        raise InputError(f"prior is {prior!r}, expected between 0 and 1")
    return math.log(prior) - math.log1p(-prior)


def probability(llr, prior):
    """σ(ℓ + ln P / (1 - P)); no overflow."""
    return float(np.exp(-np.logaddexp(0, -(llr + log_odds(prior)))))


def _at(threshold, measured):
    if measured is None:
        return OperatingPoint(threshold, None, None)
    return measured.rates_at(threshold)


def _checked_threshold(threshold):
    try:
        value = float(threshold)
    except (TypeError, ValueError) as error:
        raise InputError(f"threshold is {threshold!r}, expected a number") from error
    if not math.isfinite(value):
        raise InputError(f"threshold is {threshold}, expected a finite number")
    return value


def comparison_report(
    verifier,
    enrol,
    test,
    score=None,
    threshold=None,
    false_accept_rate=None,
    speech_detection=None,
    **options,
):
    """Compare two voices, in plain values: for JSON, and for the page.

    The warnings of a comparison (a rate that was converted, a threshold that nobody
    measured, a recording without speech) belong to its answer: a program that reads the
    JSON does not see the log.

    Arguments
    ---------
    verifier : SpeakerVerifier
    enrol, test : list of str, or SpeakerModel
        Recordings of one voice each; a voice that is enrolled has no files.
    score, threshold, false_accept_rate, speech_detection, **options
        As for :meth:`~speechbrain_ext.inference.verifier.SpeakerVerifier.compare`.

    Returns
    -------
    dict
        ``same_speaker`` (None where a side has no speech), ``score``, ``score_kind``,
        ``threshold``, ``threshold_from``, ``false_accept_rate`` and ``miss_rate``
        (fractions measured there, or None), ``scores`` of every kind, ``probability``
        and its ``prior``, ``enrol`` and ``test`` (files, seconds of speech), ``model``,
        ``device``, ``warnings``. With a ``detector`` also ``accepted`` and
        ``detection``: ``enrol`` and ``test`` as ``recordings`` of
        :func:`~speechbrain_ext.inference.detector.detection_report`, and what that
        has of the threshold.

    Raises
    ------
    InputError
        As ``compare``.
    """
    with kept_warnings() as warnings:
        result = verifier.compare(
            *(enrol, test, score, threshold, false_accept_rate),
            speech_detection=speech_detection,
            **options,
        )
    kinds = ("cosine", "as_norm", "llr")
    report = {
        "same_speaker": result.decision,
        "score": getattr(result, result.score),
        "score_kind": result.score,
        "threshold": result.threshold,
        "threshold_from": threshold_origin(
            verifier, result.score, threshold, false_accept_rate, result.prior
        ),
        "false_accept_rate": result.false_accept_rate,
        "miss_rate": result.miss_rate,
        "scores": {kind: getattr(result, kind) for kind in kinds},
        "probability": result.probability,
        "prior": result.prior,
        "enrol": {"files": files_of(enrol), "seconds": result.enrol_seconds},
        "test": {"files": files_of(test), "seconds": result.test_seconds},
        "model": verifier.source,
        "device": str(verifier.device),
        "warnings": warnings,
    }
    if detector := options.get("detector"):
        report["accepted"] = result.accepted
        if result.enrol_detected or result.test_detected:  # not both enrolled before
            report["detection"] = _detection_of(
                detector, result, enrol, test, options.get("spoof_accept_rate")
            )
    return report


def _detection_of(detector, result, enrol, test, rate):
    """What the detector says of a Comparison, in plain values."""
    sides = {"enrol": result.enrol_detected, "test": result.test_detected}
    sides = {name: found for name, found in sides.items() if found}
    files = {"enrol": enrol, "test": test}
    first = next(found[0] for found in sides.values())
    return {
        **{
            name: detected_values(files_of(files[name]), found)
            for name, found in sides.items()
        },
        **threshold_values(detector, first, None, rate),
        "model": detector.source,
    }


def detected_values(names, found):
    """Recordings' names and their Detected → list of dict, for JSON."""
    kept = ("llr", "probability", "seconds")
    return [
        {
            "file": name,
            "bonafide": of.decision,
            **{key: getattr(of, key) for key in kept},
        }
        for name, of in zip(names, found, strict=True)
    ]


def threshold_values(detector, detected, threshold, false_accept_rate):
    """The threshold of a Detected, and where it is from, for JSON."""
    return {
        "threshold": detected.threshold,
        "threshold_from": threshold_origin(
            detector, "llr", threshold, false_accept_rate, detected.prior
        ),
        "false_accept_rate": detected.false_accept_rate,
        "miss_rate": detected.miss_rate,
        "prior": detected.prior,
    }


def files_of(side):
    """Names of recordings; of a SpeakerModel none."""
    return [] if hasattr(side, "embedding") else [str(file) for file in side]


def threshold_origin(model, kind, threshold, false_accept_rate, prior):
    """Where the threshold of a kind of score comes from, in words."""
    if threshold is not None:
        return "given"
    if false_accept_rate is not None:
        return (
            "the model's held-out trials, at a false accept rate of "
            f"{false_accept_rate:g} or less"
        )
    if kind in model.thresholds:
        return "the model's held-out trials, where both errors were equally frequent"
    if kind == "llr":
        return f"Bayes' rule for a prior of {prior:g}"
    return "a guess that nobody measured: the model has no thresholds"


@contextlib.contextmanager
def kept_warnings():
    """A list that gets the package's warnings of the block; they are logged as well."""
    kept = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: kept.append(record.getMessage())
    logger = logging.getLogger("speechbrain_ext")
    logger.addHandler(handler)
    try:
        yield kept
    finally:
        logger.removeHandler(handler)
