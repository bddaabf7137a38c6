"""Trial lists scored by a back-end: what every verification ends with.

embeddings of both sides → scores of every system, written → figures and pictures
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.backend import Side
from speechbrain_ext.scoring.report import System, draw_pictures, evaluate
from speechbrain_ext.scoring.score_files import write_score_table, write_scores
from speechbrain_ext.scoring.speakers import check_speakers, speakers_of
from speechbrain_ext.scoring.trials import read_trials, rows_of

logger = logging.getLogger(__name__)


class Recordings(NamedTuple):
    """What one side of trials names: ``ids`` str [N], as in lists, and its ``side``.

    ``speakers`` is a dict ID → speaker; ``source`` says where they are from.
    """

    ids: np.ndarray
    side: Side
    speakers: dict
    source: str


def read_lists(paths, allow_duplicates=False):
    """Every trial list by the name that its results get.

    Arguments
    ---------
    paths : str, Path or list of them
    allow_duplicates : bool
        As for :func:`~speechbrain_ext.scoring.trials.read_trials`.

    Returns
    -------
    dict
        File name without suffix → Trials.

    Raises
    ------
    InputError
        As ``read_trials``; two lists of one name.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    lists = {}
    for path in paths:
        name = Path(path).stem
        if name in lists:
            raise InputError(f"trial_lists: two of the name {name!r}, expected one")
        lists[name] = read_trials(path, allow_duplicates=allow_duplicates)
    return lists


def score_list(name, trials, backend, enrol, test, folder, n_resamples):
    """Score one trial list, write its scores and pictures → its part of the report.

    Arguments
    ---------
    name : str
        Of the list, as in file names.
    trials : Trials
    backend : Backend
    enrol, test : Recordings
        The same object where both sides are recordings.
    folder : Path
    n_resamples : int
        Of the bootstrap; 0 leaves the intervals out.

    Returns
    -------
    dict
        As :func:`~speechbrain_ext.scoring.report.evaluate`, with ``pictures``.
    """
    rows = np.stack(
        [
            rows_of(trials, enrol.ids, enrol.source, side="enrol")[trials.enrol],
            rows_of(trials, test.ids, test.source, side="test")[trials.test],
        ],
        axis=1,
    )
    systems = []
    for system, scores in backend.scores(enrol.side, test.side, rows).items():
        write_scores(folder / f"scores_{name}_{system}.txt", trials, scores)
        write_score_table(folder / f"scores_{name}_{system}.npz", trials, scores)
        systems.append(_system(system, scores, backend))
    speakers = _speakers(trials, test.speakers | enrol.speakers)
    result = evaluate(trials, systems, speakers, n_resamples)
    return {**result, "pictures": draw_pictures(folder, name, trials, systems)}


def _system(name, scores, backend):
    normalised = backend.cohort is not None and name != "cosine"
    title = "AS-norm" if normalised else "cosine"
    calibrated = name == "llr"
    if calibrated:
        title += " + QMF"
    return System(name, title, scores, normalised, calibrated, calibrated)


def _speakers(trials, known):
    """int [U], or None where names and labels contradict each other."""
    speakers = speakers_of(trials.names, known)
    try:
        check_speakers(trials, speakers)
    except InputError as error:
        logger.warning("%s; no bootstrap intervals", error)
        return None
    return speakers
