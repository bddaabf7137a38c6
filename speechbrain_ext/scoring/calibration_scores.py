"""What every step of a back-end makes of the trials that it was calibrated on.

    calibration_scores_SYSTEM.npz    trials, labels and scores, a file per system

As a rule these are the only trials of speakers that neither the training nor the test
knew: a model's thresholds are taken from them. A file is a table of
:mod:`~speechbrain_ext.scoring.score_files`, for ``evaluate`` and ``calibrate`` too. An
utterance's own speaker was left out of its cohort scores. The likelihood ratios, unlike
the other scores, are those of the very trials that their few weights were fitted to.
"""

from pathlib import Path

import numpy as np

from speechbrain_ext.scoring.backend import Side, of_speakers
from speechbrain_ext.scoring.score_files import write_score_table
from speechbrain_ext.scoring.trials import Trials


def calibration_scores_path(folder, system):
    """``cosine``, ``as_norm``, ``llr`` → the file of its scores in a folder."""
    return Path(folder) / f"calibration_scores_{system}.npz"


def write_calibration_scores(folder, backend, manifest, vectors, trials):
    """Score the calibration trials by every step, and write a file for each.

    Arguments
    ---------
    folder : str or Path
    backend : Backend
        With its calibrator.
    manifest : Manifest
        N recordings.
    vectors : np.ndarray
        float [N, E], their embeddings.
    trials : CalibrationTrials
        Of these recordings.

    Raises
    ------
    InputError
        As :meth:`~speechbrain_ext.scoring.backend.Backend.scores`.
    """
    side = of_speakers(Side(vectors, manifest.durations), manifest.speakers, backend)
    rows = np.stack([trials.enrol, trials.test], axis=1)
    ids = np.array(manifest.ids.tolist())
    for system, scores in backend.scores(side, side, rows).items():
        path = calibration_scores_path(folder, system)
        table = Trials(path, ids, trials.enrol, trials.test, trials.labels)
        write_score_table(path, table, scores)
