"""What a comparison found, in plain values: for JSON, and for the page.

The warnings of a comparison (a rate that was converted, a threshold that nobody
measured) belong to its answer: a program that reads the JSON does not see the log.
"""

import contextlib
import logging

PACKAGE = "speechbrain_ext"


def comparison_report(
    verifier, enrol, test, score=None, threshold=None, false_accept_rate=None
):
    """Compare two voices.

    Arguments
    ---------
    verifier : SpeakerVerifier
    enrol, test : list of str
        Recordings of one voice each.
    score, threshold, false_accept_rate
        As for :meth:`~speechbrain_ext.inference.verifier.SpeakerVerifier.compare`.

    Returns
    -------
    dict
        ``same_speaker``, ``score``, ``score_kind``, ``threshold``, ``threshold_from``,
        ``false_accept_rate`` and ``miss_rate`` (fractions measured there, or None),
        ``scores`` of every kind, ``probability`` and its ``prior``, ``enrol`` and
        ``test`` (files, seconds), ``model``, ``device``, ``warnings``.

    Raises
    ------
    InputError
        As ``compare``.
    """
    with kept_warnings() as warnings:
        found = verifier.compare(enrol, test, score, threshold, false_accept_rate)
    kinds = ("cosine", "as_norm", "llr")
    return {
        "same_speaker": bool(found.decision),
        "score": getattr(found, found.score),
        "score_kind": found.score,
        "threshold": found.threshold,
        "threshold_from": _origin(verifier, found, threshold, false_accept_rate),
        "false_accept_rate": found.false_accept_rate,
        "miss_rate": found.miss_rate,
        "scores": {kind: getattr(found, kind) for kind in kinds},
        "probability": found.probability,
        "prior": found.prior,
        "enrol": {"files": [str(f) for f in enrol], "seconds": found.enrol_seconds},
        "test": {"files": [str(f) for f in test], "seconds": found.test_seconds},
        "model": verifier.source,
        "device": str(verifier.device),
        "warnings": warnings,
    }


def _origin(verifier, found, threshold, false_accept_rate):
    """Where the threshold comes from, in words."""
    if threshold is not None:
        return "given"
    if false_accept_rate is not None:
        return (
            "the model's held-out trials, at a false accept rate of "
            f"{false_accept_rate:g} or less"
        )
    if found.score in verifier.thresholds:
        return "the model's held-out trials, where both errors were equally frequent"
    if found.score == "llr":
        return f"Bayes' rule for a prior of {found.prior:g}"
    return "a guess that nobody measured: the model has no thresholds"


@contextlib.contextmanager
def kept_warnings():
    """A list that gets the package's warnings of the block; they are logged as well."""
    kept = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: kept.append(record.getMessage())
    logger = logging.getLogger(PACKAGE)
    logger.addHandler(handler)
    try:
        yield kept
    finally:
        logger.removeHandler(handler)
