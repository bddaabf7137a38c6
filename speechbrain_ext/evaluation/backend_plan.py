"""Cohort and calibrator: those of an earlier run, or from recordings of other speakers.

Both need an extraction, hours on a large corpus. So a plan is made first: which
recordings, which calibration trials, which files. Everything that can be wrong without
an embedding is found by then.
"""

import logging
import os
from dataclasses import dataclass, replace

import numpy as np
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.audio import parts_of
from speechbrain_ext.data.manifest import Manifest, read_manifest
from speechbrain_ext.scoring.backend import (
    Backend,
    TrialSide,
    fit_calibrator,
    input_names,
)
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.calibration.cross_validation import deal_trials
from speechbrain_ext.scoring.calibration.trials import (
    CalibrationTrials,
    draw_calibration_trials,
    write_calibration_scores,
)
from speechbrain_ext.scoring.cohort import load_cohort, save_cohort, speaker_means
from speechbrain_ext.scoring.embeddings import check_ids, load_speech_seconds
from speechbrain_ext.utils.errors import InputError, check_at_least, naming

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """How a calibrator is fitted, and to which trials.

    Attributes
    ----------
    objective : str
        ``cllr`` or ``cross_entropy``.
    l2 : float or None
        Of the standardised inputs' weights; None chooses it by cross-validation.
    n_trials : int
        To draw, half of them target.
    boundary : float
        Seconds from which a recording is long: a third of the trials each are short,
        mixed and long.
    shortest : float
        Seconds; shorter recordings are left out.
    seed : int
        Of the trials.
    """

    objective: str = "cllr"
    l2: float | None = None
    n_trials: int = 30_000
    boundary: float = 6.0
    shortest: float = 2.0
    seed: int = 1986

    def draw(self, manifest):
        """Trials of a manifest, after all checks that need no embeddings."""
        options = self.n_trials, self.boundary, self.shortest, self.seed
        trials = draw_calibration_trials(
            manifest.speakers, manifest.durations, *options
        )
        for kind, (targets, nontargets) in trials.counts().items():
            logger.info(
                "calibration trials, %s: %d target, %d non-target",
                *(kind, targets, nontargets),
            )
        if self.l2 is None:
            QualityCalibrator(objective=self.objective)
            labels = manifest.labels
            rows = np.stack([labels[trials.enrol], labels[trials.test]], axis=1)
            deal_trials(trials.labels, rows)
        else:
            check_at_least("l2", self.l2, 0, whole=False)
            QualityCalibrator(objective=self.objective, l2=self.l2)
        return trials


@dataclass(frozen=True, eq=False)
class BackendPlan:
    """A back-end as far as it exists, and the recordings that the rest is made of.

    Attributes
    ----------
    backend : Backend
        With the cohort and the calibrator of an earlier run, if there are any.
    training : Manifest or None
        Whose speakers will be the cohort.
    calibration : Manifest or None
        Recordings of the calibration; the same object where they are the same.
    trials : CalibrationTrials or None
        Of them.
    settings : Calibration or None
        How to fit to the trials.
    """

    backend: Backend
    training: Manifest | None = None
    calibration: Manifest | None = None
    trials: CalibrationTrials | None = None
    settings: Calibration | None = None

    @property
    def needs_embeddings(self):
        """Whether recordings must be embedded."""
        return self.training is not None or self.calibration is not None

    @property
    def cohort_speakers(self):
        """Names, str [K]; none without a cohort."""
        if self.training is not None:
            return self.training.speaker_names
        cohort = self.backend.cohort
        return np.array([], dtype=np.str_) if cohort is None else cohort.speakers

    def warn_speaker_overlap(self, test_speakers):
        """Warn where speakers of the test are known to the back-end."""
        known = {"cohort": self.cohort_speakers}
        if self.calibration is not None:
            known["calibration"] = self.calibration.speaker_names
        for what, speakers in known.items():
            shared = sorted(set(speakers.tolist()) & set(test_speakers.tolist()))
            if shared:
                logger.warning(
                    "%d speakers of the test are in the %s too, first %s: if they are "
                    "the same people, the figures say nothing about other people",
                    *(len(shared), what, shared[0]),
                )

    def build_backend(self, embed, folder):
        """Embed the recordings, make the cohort, fit the calibrator.

        ``embed`` makes (manifest, path) float32 [N, E] on the main process. ``folder``
        gets the embeddings, ``cohort.npz``, ``calibration.json`` and the scores of the
        calibration trials. → Backend; None on other processes. InputError as the steps.
        """
        training = calibration = None
        if self.training is not None:
            path = folder / "training_embeddings.npz"
            training = embed(self.training, path)
        if self.calibration is self.training:
            calibration = training
        elif self.calibration is not None:
            path = folder / "calibration_embeddings.npz"
            calibration = embed(self.calibration, path)
        if not if_main_process():
            return None
        backend = self.backend
        if self.training is not None:
            cohort = speaker_means(training, self.training.speakers)
            save_cohort(folder / "cohort.npz", cohort)
            logger.info("cohort: %d speakers", len(cohort.speakers))
            backend = replace(backend, cohort=cohort)
        if self.trials is not None:
            manifest, seconds = self.calibration, load_speech_seconds(path)
            if seconds is not None:  # trials were drawn by the files' durations
                manifest = replace(manifest, durations=seconds)
            side = TrialSide(calibration, manifest.durations)
            fitting = self.settings.objective, self.settings.l2
            with naming("calibration"):
                backend = fit_calibrator(
                    *(backend, side, manifest.speakers, self.trials), *fitting
                )
            backend.calibrator.save(folder / "calibration.json")
            logger.info("calibration: l2 %g", backend.calibrator.l2)
            write_calibration_scores(
                folder, backend, manifest, calibration, self.trials
            )
        return backend


def plan_backend(
    cohort=None,
    calibrator=None,
    training_manifest=None,
    calibration_manifest=None,
    max_utterances=None,
    seed=0,
    backend=None,
    calibration=None,
):
    """Read and check everything that a back-end is made of, but its embeddings.

    Arguments
    ---------
    cohort, calibrator : str or None
        ``cohort.npz`` and ``calibration.json`` of an earlier run.
    training_manifest : str or None
        CSV of recordings whose speakers are the cohort, unless one is given.
    calibration_manifest : str or None
        CSV of recordings to calibrate on, best of speakers that were not trained on,
        unless a calibrator is given; None takes the training manifest.
    max_utterances : int or None
        At most so many recordings of each of these speakers; None takes all.
    seed : int
        Of that choice.
    backend : Backend or None
        Its settings, without cohort and calibrator; None takes the defaults.
    calibration : Calibration or None
        None calibrates only with a calibrator that is given.

    Returns
    -------
    BackendPlan

    Raises
    ------
    InputError
        A file that is missing or damaged, a recording that is gone, a setting out of
        range, a calibrator of other inputs, fewer speakers than AS-norm or the
        calibration needs.
    """
    backend, with_cohort = backend or Backend(), bool(cohort or training_manifest)
    names = input_names(True, with_cohort, backend.top_n)
    files = {
        "cohort": load_cohort(cohort) if cohort else None,
        "calibrator": QualityCalibrator.load(calibrator, names) if calibrator else None,
    }
    with naming(cohort or "backend"):
        plan = BackendPlan(replace(backend, **files))
    cohort_manifest = None if cohort else training_manifest
    if calibrator or calibration is None:
        calibration_manifest = None
    else:
        calibration_manifest = calibration_manifest or training_manifest
    if calibration_manifest and calibration_manifest == training_manifest:
        logger.warning(
            "calibration on speakers that the model was trained on, if %s is what its "
            "name says: it will trust its scores too much; see calibration_manifest",
            training_manifest,
        )
    chosen = {None: None}
    for path in (cohort_manifest, calibration_manifest):
        if path not in chosen:
            chosen[path] = choose_recordings(path, max_utterances, seed)
    plan = replace(plan, training=chosen[cohort_manifest])
    if calibration_manifest:
        manifest = chosen[calibration_manifest]
        with naming(f"calibration on {calibration_manifest}"):
            trials = calibration.draw(manifest)
        plan = replace(plan, calibration=manifest, trials=trials, settings=calibration)
    if with_cohort:
        _check_cohort(plan, cohort or cohort_manifest)
    return plan


def choose_recordings(path, max_utterances, seed):
    """At most ``max_utterances`` recordings of every speaker of a manifest file.

    InputError where one of them is gone.
    """
    check_at_least("seed", seed, 0)
    if max_utterances is not None:
        check_at_least("max_utterances", max_utterances, 1)
    manifest = chosen = read_manifest(path)
    if max_utterances is not None:
        shuffled = np.random.default_rng(seed).permutation(len(manifest))
        order = shuffled[np.argsort(manifest.labels[shuffled], kind="stable")]
        labels = manifest.labels[order]
        place = np.arange(len(order)) - np.searchsorted(labels, labels)
        chosen = manifest.select(np.sort(order[place < max_utterances]))
    logger.info(
        "%s: %d of %d recordings, %d speakers",
        *(path, len(chosen), len(manifest), len(chosen.speaker_names)),
    )
    if if_main_process():
        _check_present(path, chosen)
    return chosen


def _check_cohort(plan, source):
    """Names that a file can hold; enough for AS-norm, less one who is calibrated on."""
    speakers, others, why = plan.cohort_speakers.tolist(), [], ""
    if plan.calibration is not None:
        others = plan.calibration.speaker_names.tolist()
    check_ids(source, speakers)
    size = len(speakers)
    if set(speakers) & set(others):
        size, why = size - 1, " besides that of an utterance of the calibration"
    with naming(source):
        plan.backend.check_cohort_size(size, why)


def _check_present(path, manifest):
    files = (part.file for row in manifest.paths.tolist() for part in parts_of(row))
    for file in files:
        if not os.path.isfile(file):
            raise InputError(
                f"{path}: {file}: no such file, expected the {len(manifest)} "
                "recordings that were chosen from this manifest"
            )
