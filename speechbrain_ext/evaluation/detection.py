"""The steps of an evaluation of a spoofing detector, as the recipe's evaluate.py does.

    recordings → logits → log-likelihood ratios → calibration on dev → figures

Finished extractions are not done twice: the logits lie in the output folder. Written
beside them are, of each split, ``scores_SPLIT.tsv`` and ``keys_SPLIT.tsv`` as the
evaluation package of ASVspoof 5 reads them, and the report
(:mod:`speechbrain_ext.scoring.detection.report`).
"""

import logging
from typing import NamedTuple

import numpy as np

from speechbrain_ext.data.corpora.asvspoof import keys_of
from speechbrain_ext.data.manifest import Manifest, read_manifest
from speechbrain_ext.inference.folder import CALIBRATION_FILE
from speechbrain_ext.inference.thresholds import (
    THRESHOLDS_FILE,
    Thresholds,
    save_thresholds,
)
from speechbrain_ext.pretrained import weights_file
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.detection import Keys, write_keys, write_scores
from speechbrain_ext.scoring.detection.report import ScoredList, write_detection_report
from speechbrain_ext.scoring.report import System
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import sha256

logger = logging.getLogger(__name__)

SPLITS = ("dev", "eval")
LLR, RAW = "llr", "uncalibrated"


class DetectionList(NamedTuple):
    """N recordings to be told apart: ``manifest``, and what they are, ``keys``."""

    manifest: Manifest
    keys: Keys


def read_list(path):
    """A manifest of the detection task, with some recordings of both classes.

    InputError: a manifest that cannot be read or has not the columns; another key than
    ``bonafide`` and ``spoof``; recordings of one class alone.
    """
    manifest = read_manifest(path)
    keys = keys_of(path, manifest)
    n_bonafide = int(keys.is_bonafide.sum())
    if n_bonafide in (0, len(keys)):
        raise InputError(
            f"{path}: {n_bonafide} bona fide recordings and {len(keys) - n_bonafide} "
            "spoofs, expected at least one of each"
        )
    return DetectionList(manifest, keys)


def lists_of(prepared):
    """{split: DetectionList} of what there is of dev and eval; InputError: neither."""
    paths = {split: getattr(prepared, split) for split in SPLITS}
    found = {split: read_list(path) for split, path in paths.items() if path}
    if not found:
        raise InputError("recordings of neither dev nor eval, expected some of either")
    return found


def score_and_report(
    folder, lists, logits, head, calibrator=None, n_resamples=200, model=None
):
    """Scores of every split, calibrated; files, figures; prints the table.

    Arguments
    ---------
    folder : Path
    lists : dict of str to DetectionList
        By split.
    logits : dict of str to np.ndarray
        float [N, 2].
    head : Detection
        Which knows the priors of the logits.
    calibrator : tuple of (str, QualityCalibrator), optional
        Of an earlier run, behind its file; None fits one to dev, where there is dev.
    n_resamples : int
        Of the bootstrap over speakers.
    model : str or Path
        The pretrained folder: the report has a hash of its weights, since an export
        asks whose results it has.
    """
    raw = {
        split: head.log_likelihood_ratio(values.astype(np.float64))
        for split, values in logits.items()
    }
    source, earlier = calibrator or ("dev", None)
    scores, fitted = raw, _calibrator(folder, earlier, raw, lists)
    if fitted is not None:
        scores = {
            split: fitted.log_likelihood_ratio(values[:, None])
            for split, values in raw.items()
        }
    if "dev" in scores:
        curve = Thresholds.from_scores(scores["dev"], lists["dev"].keys.is_bonafide)
        save_thresholds(folder / THRESHOLDS_FILE, {LLR: curve})
    else:  # those of an earlier run are of other scores: an export would take them
        (folder / THRESHOLDS_FILE).unlink(missing_ok=True)
    scored = []
    for split, (_, keys) in lists.items():
        write_keys(folder / f"keys_{split}.tsv", keys)
        write_scores(folder / f"scores_{split}.tsv", keys.names, scores[split])
        title = "by the priors of the training"
        systems = [System(RAW, title, raw[split], calibrated=True)]
        if fitted is not None:
            systems.append(System(LLR, "calibrated", scores[split], calibrated=True))
        scored.append(ScoredList(split, keys, systems))
    about = {
        "pretrained_folder": str(model),
        "weights_sha256": sha256(weights_file(model)),
        "calibrator": None if fitted is None else str(source),
    }
    report = write_detection_report(folder, scored, about, n_resamples=n_resamples)
    print(report.table)
    print(f"report {folder / 'results.md'}")


def _calibrator(folder, found, raw, lists):
    """The one found, one fitted to dev, or None; kept as calibration.json."""
    if found is None and "dev" in raw:
        found = QualityCalibrator([LLR])
        with naming("calibration on dev"):
            found.fit(raw["dev"][:, None], lists["dev"].keys.is_bonafide)
        logger.info("calibration: %.4g llr %+.4g", found.weights[0], found.bias)
        found.warn_if_turned("calibration on dev")
    if found is None:
        logger.warning("no recordings of dev and no calibrator: not calibrated")
        (folder / CALIBRATION_FILE).unlink(missing_ok=True)  # of an earlier run
        return None
    found.save(folder / CALIBRATION_FILE)
    return found
