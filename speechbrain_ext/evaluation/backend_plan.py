"""Cohort and calibrator, from an earlier run or from recordings of other speakers.

Both take an extraction, hours on a large corpus. So there is a plan first: which
recordings, which calibration trials, which files. Whatever can be wrong with it without
an embedding is found when it is made.
"""

import functools
import logging
import os
from dataclasses import dataclass, field, replace

import numpy as np
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.audio import parts_of
from speechbrain_ext.data.manifest import Manifest, read_manifest
from speechbrain_ext.data.prepare.pipeline import check_at_least
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
from speechbrain_ext.scoring.embeddings import check_ids
from speechbrain_ext.utils.config import call_with
from speechbrain_ext.utils.errors import InputError, naming

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BackendPlan:
    """What there is of a back-end, and the recordings that give the rest.

    Attributes
    ----------
    backend : Backend
        With the cohort and the calibrator of an earlier run, if there are any.
    training : Manifest or None
        Whose speakers are to be the cohort.
    calibration : Manifest or None
        Recordings of the calibration; the same object where they are the same.
    trials : CalibrationTrials or None
        Of them.
    fitting : dict
        ``objective`` and ``l2`` of
        :func:`~speechbrain_ext.scoring.backend.fit_calibrator`.
    """

    backend: Backend
    training: Manifest | None = None
    calibration: Manifest | None = None
    trials: CalibrationTrials | None = None
    fitting: dict = field(default_factory=dict)

    @property
    def needs_embeddings(self):
        """Whether there is anything left to do."""
        return self.training is not None or self.calibration is not None

    @property
    def cohort_speakers(self):
        """Names, str [K]; none without a cohort."""
        if self.training is not None:
            return self.training.speaker_names
        cohort = self.backend.cohort
        return np.array([], dtype=np.str_) if cohort is None else cohort.speakers

    def warn_of(self, test_speakers):
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

    def carry_out(self, embed, folder):
        """Embed these recordings, make the cohort, fit the calibrator.

        Arguments
        ---------
        embed : callable
            (manifest, path) → float32 [N, E] on the main process.
        folder : Path
            Gets the embeddings, ``cohort.npz``, ``calibration.json`` and the scores of
            the calibration trials, ``calibration_scores_SYSTEM.npz``.

        Returns
        -------
        Backend
            None on other processes than the main one.

        Raises
        ------
        InputError
            As the steps.
        """
        of_training = of_calibration = None
        if self.training is not None:
            of_training = embed(self.training, folder / "training_embeddings.npz")
        if self.calibration is self.training:
            of_calibration = of_training
        elif self.calibration is not None:
            path = folder / "calibration_embeddings.npz"
            of_calibration = embed(self.calibration, path)
        if not if_main_process():
            return None
        backend = self.backend
        if self.training is not None:
            cohort = speaker_means(of_training, self.training.speakers)
            save_cohort(folder / "cohort.npz", cohort)
            logger.info("cohort: %d speakers", len(cohort.speakers))
            backend = replace(backend, cohort=cohort)
        if self.trials is not None:
            side = TrialSide(of_calibration, self.calibration.durations)
            with naming("calibration"):
                backend = fit_calibrator(
                    *(backend, side, self.calibration.speakers, self.trials),
                    **self.fitting,
                )
            backend.calibrator.save(folder / "calibration.json")
            logger.info("calibration: l2 %g", backend.calibrator.l2)
            write_calibration_scores(
                *(folder, backend, self.calibration, of_calibration, self.trials)
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
    """Read and check all that a back-end is to be made of, but its embeddings.

    Arguments
    ---------
    cohort, calibrator : str or None
        ``cohort.npz`` and ``calibration.json`` of an earlier run.
    training_manifest : str or None
        CSV of recordings whose speakers are the cohort, where none is given.
    calibration_manifest : str or None
        CSV of recordings to calibrate on, best of speakers that were not trained on,
        where no calibrator is given; None takes the training manifest.
    max_utterances : int or None
        So many at most of each of these speakers; None takes all.
    seed : int
        Of that choice.
    backend : dict or None
        ``top_n`` and ``memory_mib`` of
        :class:`~speechbrain_ext.scoring.backend.Backend`.
    calibration : dict or None
        ``objective`` and ``l2`` of
        :func:`~speechbrain_ext.scoring.backend.fit_calibrator`, and options of
        :func:`~speechbrain_ext.scoring.calibration.trials.draw_calibration_trials`.
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
    settings = call_with(_settings, "backend", {"backend": backend or {}})
    with_cohort = bool(cohort or training_manifest)
    names = input_names(True, with_cohort, settings["top_n"])
    found = {
        "cohort": load_cohort(cohort) if cohort else None,
        "calibrator": QualityCalibrator.load(calibrator, names) if calibrator else None,
    }
    with naming(cohort or "backend"):
        at_hand = Backend(**found, **settings)
    of_cohort = None if cohort else training_manifest
    of_calibration = calibration_manifest or training_manifest
    if calibrator or calibration is None:
        of_calibration = None
    if of_calibration and of_calibration == training_manifest:
        logger.warning(
            "calibration on speakers that the model was trained on, if %s is what its "
            "name says: it will trust its scores too much; see calibration_manifest",
            training_manifest,
        )
    chosen = {None: None}
    for path in (of_cohort, of_calibration):
        if path not in chosen:
            chosen[path] = choose_recordings(path, max_utterances, seed)
    plan = BackendPlan(at_hand, chosen[of_cohort], chosen[of_calibration])
    if of_calibration:
        with naming(f"calibration on {of_calibration}"):
            draw = functools.partial(_draw, plan.calibration)
            drawn = call_with(draw, "calibration", {"calibration": calibration})
        plan = replace(plan, **drawn)
    if cohort or of_cohort:
        _check_cohort(plan, cohort or of_cohort)
    return plan


def choose_recordings(path, max_utterances, seed):
    """Some recordings of every speaker of a manifest.

    Arguments
    ---------
    path : str
        The manifest.
    max_utterances : int or None
        So many at most of each speaker; None takes all.
    seed : int

    Returns
    -------
    Manifest

    Raises
    ------
    InputError
        As :func:`~speechbrain_ext.data.manifest.read_manifest`; a recording that is
        gone.
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


def _settings(top_n=300, memory_mib=512):
    return {"top_n": top_n, "memory_mib": memory_mib}


def _draw(manifest, objective="cllr", l2=None, **drawing):
    """Trials, and how to fit to them; all that may fail without their features."""
    draw = functools.partial(
        draw_calibration_trials, manifest.speakers, manifest.durations
    )
    trials = call_with(draw, "calibration", {"calibration": drawing})
    for kind, (targets, nontargets) in trials.counts().items():
        logger.info(
            "calibration trials, %s: %d target, %d non-target",
            *(kind, targets, nontargets),
        )
    if l2 is None:
        QualityCalibrator(objective=objective)
        deal_trials(
            trials.labels,
            np.stack([manifest.labels[trials.enrol], manifest.labels[trials.test]], 1),
        )
    else:
        check_at_least("l2", l2, 0, whole=False)
        QualityCalibrator(objective=objective, l2=l2)
    return {"trials": trials, "fitting": {"objective": objective, "l2": l2}}


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
    files = (part for row in manifest.paths.tolist() for part, _ in parts_of(row))
    for file in files:
        if not os.path.isfile(file):
            raise InputError(
                f"{path}: {file}: no such file, expected the {len(manifest)} "
                "recordings that were chosen from this manifest"
            )
