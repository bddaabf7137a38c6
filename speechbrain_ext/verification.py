"""The steps of a verification, as the recipes' verify.py scripts take them.

    recordings → embeddings → cosine, AS-norm, likelihood ratios → report

Each step leaves its result in the output folder, so that it can be taken up again:
finished extractions are not done twice. Here are both sides of the trials; the cohort
and the calibrator are in :mod:`speechbrain_ext.backend_plan`, scores and report in
:mod:`speechbrain_ext.scoring.score_lists`.
"""

from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.concatenate import concatenate_enrolment
from speechbrain_ext.distributed import main_process_first
from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.embeddings import select_vectors
from speechbrain_ext.scoring.score_lists import averaged, recordings_of

ENROLMENTS = ("average", "concatenate")


def embedded(manifest, embed, path, given=None):
    """Embed the test recordings, or take what a file of embeddings has of them.

    Arguments
    ---------
    manifest : Manifest
    embed : callable
        (manifest, path) → float32 [N, E] on the main process.
    path : Path
        Where the embeddings go, or where those ``given`` are from.
    given : Embeddings or None
        To use instead of ``embed``.

    Returns
    -------
    Recordings
        None on other processes than the main one.

    Raises
    ------
    InputError
        As ``embed``; a recording that is not among those given.
    """
    if given is not None:
        vectors = select_vectors(given, manifest.ids, path)
    else:
        vectors = embed(manifest, path)
    return recordings_of(manifest, vectors, path) if if_main_process() else None


def enrolled(protocol, models, test, manifest, embed, folder):
    """The enrol side of trial lists that name models.

    Arguments
    ---------
    protocol : str
        ``average`` (of the embeddings) or ``concatenate`` (of the recordings).
    models : EnrolMap
    test : Recordings
        With the recordings of the map; None on other processes than the main one.
    manifest : Manifest
        The same recordings' files.
    embed : callable
        As for :func:`embedded`.
    folder : Path
        Where joined recordings and their embeddings go.

    Returns
    -------
    Recordings
        The models; None on other processes than the main one.

    Raises
    ------
    InputError
        As the steps.
    """
    if protocol == "concatenate":
        joined = main_process_first(
            concatenate_enrolment, models, manifest, folder / "enrolment"
        )
        path = folder / "enrolment_embeddings.npz"
        vectors = embed(joined, path)
        return recordings_of(joined, vectors, path) if if_main_process() else None
    return averaged(models, test) if if_main_process() else None


def checked_enrolments(enrolment):
    """One protocol or several → a list of different ones, or InputError."""
    protocols = [enrolment] if isinstance(enrolment, str) else enrolment
    if (
        not isinstance(protocols, (list, tuple))
        or not protocols
        or not all(protocol in ENROLMENTS for protocol in protocols)
        or len(set(protocols)) < len(protocols)
    ):
        raise InputError(
            f"enrolment: {enrolment!r}, expected some of {', '.join(ENROLMENTS)}, each "
            "once"
        )
    return list(protocols)
