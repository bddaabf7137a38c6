"""Trial lists scored by a back-end: what every verification ends with.

embeddings of both sides → scores of every system, written → figures and pictures
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.backend import TrialSide
from speechbrain_ext.scoring.conditions import by_condition, plot_conditions
from speechbrain_ext.scoring.enrolment import (
    average_enrolment,
    check_speakers,
    speakers_of,
)
from speechbrain_ext.scoring.intervals import FEWEST_SPEAKERS
from speechbrain_ext.scoring.report import System, draw_pictures, evaluate
from speechbrain_ext.scoring.score_files import write_score_table, write_scores
from speechbrain_ext.scoring.trials import read_trials, rows_of
from speechbrain_ext.utils.errors import InputError, naming

logger = logging.getLogger(__name__)

NORMALISED = {"as_norm": "AS-norm", "s_norm": "S-norm"}


class Recordings(NamedTuple):
    """What one side of trials names: ``ids`` str [N], as in lists, and its ``side``.

    ``speakers`` is a dict ID → speaker; ``source`` says where they are from.
    """

    ids: np.ndarray
    side: TrialSide
    speakers: dict
    source: str


def read_lists(paths, allow_duplicates=False):
    """{file name without suffix: Trials} of every trial list.

    ``paths`` is one or a list of them. InputError as
    :func:`~speechbrain_ext.scoring.trials.read_trials`; no list, two lists of one name,
    a list of one label only.
    """
    if paths and isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    if not paths or not isinstance(paths, (list, tuple)):
        raise InputError(f"trial_lists: {paths!r}, expected one file, or [several]")
    lists = {}
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"trial_lists: {path!r}, expected the name of a file")
        path = Path(path).expanduser()
        if path.stem in lists:
            raise InputError(
                f"trial_lists: two of the name '{path.stem}', {lists[path.stem].path} "
                f"and {path}, expected one: their results are named so"
            )
        lists[path.stem] = trials = read_trials(path, allow_duplicates=allow_duplicates)
        if not trials.n_target or not trials.n_nontarget:
            raise InputError(
                f"{path}: {trials.n_target} targets and {trials.n_nontarget} "
                "non-targets, expected at least one of each"
            )
    return lists


def recordings_of(manifest, vectors, source):
    """Recordings of a manifest, with their embeddings [N, E] and where these are."""
    ids = np.array(manifest.ids.tolist())
    speakers = dict(zip(ids.tolist(), manifest.speakers.tolist()))
    return Recordings(
        ids, TrialSide(vectors, manifest.durations), speakers, str(source)
    )


def averaged(enrol_map, recordings):
    """Models of an EnrolMap: the mean embedding and total length of their recordings.

    Raises as :func:`~speechbrain_ext.scoring.enrolment.average_enrolment`.
    """
    ids, side, speakers, source = recordings
    models, vectors = average_enrolment(enrol_map, ids, side.vectors, source)
    seconds = None
    if side.durations is not None:
        rows = enrol_map.rows(ids, source)
        seconds = np.array([side.durations[row].sum() for row in rows])
    known = enrol_map.speakers(speakers)
    return Recordings(models, TrialSide(vectors, seconds), known, str(enrol_map.path))


def score_list(name, trials, backend, enrol, test, folder):
    """Score one trial list by every step of a back-end → list of System.

    ``enrol`` and ``test`` are Recordings, one object where both sides are. Scores go to
    ``scores_NAME_SYSTEM.txt`` and ``.npz`` in the folder. InputError names the list: a
    name in it that is not there, and as
    :meth:`~speechbrain_ext.scoring.backend.Backend.scores`.
    """
    rows = np.stack(
        [
            rows_of(trials, enrol.ids, enrol.source, side="enrol")[trials.enrol],
            rows_of(trials, test.ids, test.source, side="test")[trials.test],
        ],
        axis=1,
    )
    with naming(trials.path):
        found = backend.scores(enrol.side, test.side, rows)
    for system, scores in found.items():
        write_scores(folder / f"scores_{name}_{system}.txt", trials, scores)
        write_score_table(folder / f"scores_{name}_{system}.npz", trials, scores)
    return [_system(system, scores, backend) for system, scores in found.items()]


def report_list(name, trials, systems, folder, n_resamples, speakers=None, genres=None):
    """Draw the pictures of one labelled trial list → its part of the report.

    ``speakers`` is name on either side → speaker, where names do not tell; ``genres``
    str [U] those of ``trials.names``, None leaves error rates by genre out; 0
    ``n_resamples`` leave intervals out. The dict is that of
    :func:`~speechbrain_ext.scoring.report.evaluate`, with ``pictures`` and ``genres``,
    those of the last system, as
    :func:`~speechbrain_ext.scoring.conditions.by_condition` has them.
    """
    codes = _speakers(trials, speakers) if n_resamples else None
    result = evaluate(trials, systems, codes, n_resamples)
    pictures = draw_pictures(folder, name, trials, systems)
    if genres is not None:
        table = by_condition(trials, systems[-1].scores, genres, "genre")
        result["genres"] = table
        pictures["genres"] = str(folder / f"genres_{name}.png")
        plot_conditions(pictures["genres"], table)
    return {**result, "pictures": pictures}


def _system(name, scores, backend):
    normalised = backend.cohort is not None and name != "cosine"
    title = NORMALISED[backend.normalisation] if normalised else "cosine"
    calibrated = name == "llr"
    if calibrated:
        title += " + QMF"
    return System(name, title, scores, normalised, calibrated, calibrated)


def _speakers(trials, known):
    """int [U], or None where the bootstrap cannot have them."""
    speakers = speakers_of(trials.names, known)
    try:
        check_speakers(trials, speakers)
    except InputError as error:
        logger.warning("%s; no bootstrap intervals", error)
        return None
    n_speakers = len(np.unique(speakers[[trials.enrol, trials.test]]))
    if n_speakers < FEWEST_SPEAKERS:
        logger.warning(
            "%s: %d speakers, %d are needed for bootstrap intervals",
            *(trials.path, n_speakers, FEWEST_SPEAKERS),
        )
        return None
    return speakers
