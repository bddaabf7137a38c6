"""The steps of a verification, as the recipes' verify.py scripts take them.

    recordings → embeddings → cosine, AS-norm, likelihood ratios → report

Each step leaves its result in the output folder, so that it can be taken up again:
finished extractions are not done twice, and a cohort or a calibrator may be given to
the next run.
"""

import logging
from dataclasses import replace

import numpy as np
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.concatenate import concatenate_enrolment
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.distributed import main_process_first
from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.backend import Backend, Side, fit_calibrator
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.cohort import load_cohort, save_cohort, speaker_means
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.scoring.enrolment import average_enrolment, read_enrol_map
from speechbrain_ext.scoring.score_lists import Recordings

logger = logging.getLogger(__name__)

ENROLMENTS = ("average", "concatenate")


def embedded(manifest, embed, path, given=None):
    """Embed the test recordings, or take a file of embeddings.

    Arguments
    ---------
    manifest : Manifest
    embed : callable
        (manifest, path) → float32 [N, E] on the main process.
    path : Path
        Where the embeddings go.
    given : str or None
        A file of embeddings to use instead of ``embed``.

    Returns
    -------
    Recordings
        None on other processes than the main one.

    Raises
    ------
    InputError
        As ``embed``; a recording that the file has not.
    """
    vectors = _pick(given, manifest) if given else embed(manifest, path)
    if not if_main_process():
        return None
    return _recordings(manifest, vectors, str(given or path))


def enrolled(protocol, map_path, test, manifest, embed, folder):
    """The enrol side of trial lists that name models.

    Arguments
    ---------
    protocol : str
        ``average`` (of the embeddings) or ``concatenate`` (of the recordings).
    map_path : str
        The enrolment map.
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
        Another protocol; as the steps.
    """
    if protocol not in ENROLMENTS:
        raise InputError(
            f"enrolment {protocol!r}, expected one of {', '.join(ENROLMENTS)}"
        )
    models = read_enrol_map(map_path)
    if protocol == "concatenate":
        joined = main_process_first(
            concatenate_enrolment, models, manifest, folder / "enrolment"
        )
        vectors = embed(joined, folder / "enrolment_embeddings.npz")
        return _recordings(joined, vectors, map_path) if if_main_process() else None
    if not if_main_process():
        return None
    names, vectors = average_enrolment(models, test.ids, test.side.vectors, test.source)
    rows = models.rows(test.ids, test.source)
    seconds = np.array([test.side.durations[row].sum() for row in rows])
    return Recordings(
        names, Side(vectors, seconds), models.speakers(test.speakers), map_path
    )


def choose_training(path, max_utterances, seed):
    """Some recordings of every training speaker, for the cohort and the calibration.

    Arguments
    ---------
    path : str
        Manifest of the training recordings.
    max_utterances : int or None
        So many at most of each speaker; None takes all.
    seed : int

    Returns
    -------
    Manifest
    """
    manifest = read_manifest(path)
    if max_utterances is None:
        return manifest
    if max_utterances < 1:
        raise InputError(f"max_utterances is {max_utterances}, expected at least 1")
    shuffled = np.random.default_rng(seed).permutation(len(manifest))
    order = shuffled[np.argsort(manifest.labels[shuffled], kind="stable")]
    labels = manifest.labels[order]
    first = np.flatnonzero(np.diff(labels, prepend=-1))
    place = np.arange(len(order)) - np.repeat(
        first, np.diff(np.append(first, len(order)))
    )
    chosen = manifest.select(np.sort(order[place < max_utterances]))
    logger.info(
        "%s: %d of %d recordings, %d speakers",
        *(path, len(chosen), len(manifest), len(chosen.speaker_names)),
    )
    return chosen


def add_cohort(backend, manifest, vectors, folder):
    """The back-end with a cohort of training speakers, saved as cohort.npz.

    Arguments
    ---------
    backend : Backend
    manifest : Manifest
        N training recordings.
    vectors : np.ndarray
        float32 [N, E], their embeddings.
    folder : Path

    Returns
    -------
    Backend
    """
    cohort = speaker_means(vectors, manifest.speakers)
    save_cohort(folder / "cohort.npz", cohort)
    logger.info("cohort: %d speakers, top %d", len(cohort.speakers), backend.top_n)
    return replace(backend, cohort=cohort)


def add_calibrator(backend, manifest, vectors, options, folder):
    """The back-end with a calibrator, saved as calibration.json.

    Arguments
    ---------
    backend : Backend
        With its cohort, if it is to have one.
    manifest : Manifest
        N recordings to draw trials from, best of speakers that were not trained on.
    vectors : np.ndarray
        float32 [N, E], their embeddings.
    options : dict
        Of :func:`~speechbrain_ext.scoring.backend.fit_calibrator`.
    folder : Path

    Returns
    -------
    Backend
    """
    side = Side(vectors, manifest.durations)
    backend, trials = fit_calibrator(backend, side, manifest.speakers, **options)
    backend.calibrator.save(folder / "calibration.json")
    for kind, (targets, nontargets) in trials.counts().items():
        logger.info(
            "calibration trials, %s: %d target, %d non-target",
            *(kind, targets, nontargets),
        )
    logger.info("calibration: l2 %g", backend.calibrator.l2)
    return backend


def load_backend(cohort, calibrator, **options):
    """A back-end from files of an earlier run; None for what there is not."""
    return Backend(
        cohort=load_cohort(cohort) if cohort else None,
        calibrator=QualityCalibrator.load(calibrator) if calibrator else None,
        **options,
    )


def _recordings(manifest, vectors, source):
    ids = np.array(manifest.ids.tolist())
    by_id = dict(zip(manifest.ids.tolist(), manifest.speakers.tolist()))
    return Recordings(ids, Side(vectors, manifest.durations), by_id, source)


def _pick(path, manifest):
    """The rows of an embeddings file that a manifest names: [N, E]."""
    ids, vectors = load_embeddings(path)
    row_of = {name: row for row, name in enumerate(ids.tolist())}
    rows = [row_of.get(name) for name in manifest.ids.tolist()]
    if None in rows:
        missing = manifest.ids[rows.index(None)]
        raise InputError(
            f"{path}: no embedding of '{missing}', expected all {len(rows)} recordings "
            "of the trial lists"
        )
    return vectors[rows]
