"""A trained spoofing detector as its users load it: is this voice bona fide or made?

    detector = SpoofingDetector.from_hparams(source="results/wavlm_mhfa/final")
    llr = detector.score_files(["a.wav", "b.flac"])
    (found,) = detector.detect_files("a.wav", false_accept_rate=0.01)

Of the logits of the head (:mod:`speechbrain_ext.lobes.heads.detection`) it makes

    ℓ = (z_b − ln π_b) − (z_s − ln π_s),       then a ℓ + b with a calibration.json

the log-likelihood ratio of bona fide speech against spoofs: positive where the first is
likelier. Recordings are any that a verifier takes
(:mod:`speechbrain_ext.inference.sources`), in the same batches. They are heard whole,
as in training: pauses, too, tell spoofs from speech. Speech is only looked for:
where nobody speaks, nothing is decided (:class:`~speechbrain_ext.inference.speech
.SpeechGate`). A false accept is a spoof that was taken for bona fide speech.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.inference.interfaces import Pretrained

from speechbrain_ext.inference.audio_input import ChunkingConfig
from speechbrain_ext.inference.decisions import (
    Decider,
    detected_values,
    files_of,
    kept_warnings,
    log_odds,
    probability,
    threshold_values,
)
from speechbrain_ext.inference.folder import (
    CALIBRATION_FILE,
    checked_encoder,
    is_there,
)
from speechbrain_ext.inference.loaded import LoadedModel
from speechbrain_ext.inference.sources import sources_of
from speechbrain_ext.inference.speech import SpeechConfig, SpeechGate
from speechbrain_ext.inference.thresholds import THRESHOLDS_FILE, load_thresholds
from speechbrain_ext.pretrained import HYPERPARAMS, load_hyperparams
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.utils.errors import InputError, NoSpeechError, naming

logger = logging.getLogger(__name__)

LLR = "llr"  # the one kind of score


class Detected(NamedTuple):
    """What a detector says of a recording; without speech all but a few are None.

    Attributes
    ----------
    llr : float or None
        Log-likelihood ratio (natural logarithm) of bona fide speech against spoofs.
    probability : float or None
        Of bona fide speech, by ``llr`` and ``prior``.
    prior : float
        What ``probability`` took for the share of bona fide recordings.
    threshold : float
        What ``llr`` was held against.
    decision : bool or None
        True: bona fide; False: a spoof; None: there is no speech.
    false_accept_rate, miss_rate : float or None
        What the threshold promises: shares of spoofs accepted and of bona fide speech
        rejected, measured on the model's held-out recordings.
    seconds : float
        Of the recording; 0 without speech.
    """

    llr: float | None
    probability: float | None
    prior: float
    threshold: float
    decision: bool | None
    false_accept_rate: float | None
    miss_rate: float | None
    seconds: float


class DetectorFolder(NamedTuple):
    """What is in a detector's folder; ``calibrator`` QualityCalibrator or None."""

    hparams: dict
    chunking: ChunkingConfig
    speech: SpeechConfig
    calibrator: QualityCalibrator | None
    thresholds: dict


def load_detector(folder, overrides=None):
    """Read a detector's folder, strictly → DetectorFolder.

    ``overrides`` are of ``hyperparams.yaml``. InputError names the file that is
    missing, damaged, or does not fit the others; a folder of a speaker encoder.
    """
    return complete_detector(folder, load_hyperparams(folder, overrides))


def complete_detector(folder, hparams):
    """What ``load_hyperparams`` gave of a folder, and its other files."""
    folder = Path(folder)
    chunking = checked_encoder(folder, hparams, SpoofingDetector.__name__)
    with naming(folder / HYPERPARAMS):
        speech = SpeechConfig.of(hparams).checked()
    calibrator, thresholds = None, {}
    if is_there(path := folder / CALIBRATION_FILE):
        calibrator = QualityCalibrator.load(path, [LLR])
    if is_there(path := folder / THRESHOLDS_FILE):
        thresholds = load_thresholds(path)
        if set(thresholds) != {LLR}:
            raise InputError(
                f"{path}: thresholds of {', '.join(thresholds)}, expected of {LLR}"
            )
    return DetectorFolder(hparams, chunking, speech, calibrator, thresholds)


class SpoofingDetector(LoadedModel, Pretrained):
    """Tells bona fide speech from spoofs.

    Arguments
    ---------
    model : DetectorFolder
        From a folder; :meth:`from_hparams` reads it.
    source : str
        Where it is from, for messages.
    run_opts : dict or RunOptions or None
        SpeechBrain's: ``device`` (a GPU where there is one), ``precision``, …
    freeze_params : bool
        No gradients.

    Attributes
    ----------
    chunking : ChunkingConfig
        Shortest recording, windows; the logits of windows are averaged.
    speech : SpeechConfig
        What counts as speech, and whether it is looked for before a decision.
    calibrator : QualityCalibrator or None
    thresholds : dict of str to Thresholds
        Of ``llr``; empty where the model has none.
    """

    read_folder = staticmethod(load_detector)

    def __init__(self, model, source, run_opts=None, freeze_params=True):
        super().__init__(model, source, run_opts, freeze_params)
        self.calibrator = model.calibrator
        self._decider = Decider([LLR], self.thresholds, self.source)

    def _speech_detector(self):
        return SpeechGate(self.speech, self.chunking.min_seconds)

    def forward(self, wavs, wav_lens=None):
        """wavs [B, T] → log-likelihood ratios [B]."""
        return self.score_batch(wavs, wav_lens)

    def score_batch(self, wavs, wav_lens=None):
        """Score waveforms as they are.

        Arguments
        ---------
        wavs : torch.Tensor or np.ndarray
            [B, T] or [T], ±1 at 16 kHz, padded on the right; integers are scaled.
        wav_lens : torch.Tensor or None
            [B], valid part of each row relative to T; None: all rows are full.

        Returns
        -------
        torch.Tensor
            float64 [B] on the CPU.

        Raises
        ------
        InputError
            Wrong shape or type; a row that is too short, silent, or not finite.
        """
        with torch.inference_mode():
            logits = self._encode_batch(wavs, wav_lens).squeeze(1)
        return torch.from_numpy(self._llr(logits.float().cpu().numpy()))

    def score_files(
        self,
        paths,
        batch_size=64,
        on_error="raise",
        max_batch_seconds=None,
        window_seconds=None,
        hop_seconds=None,
        speech_detection=False,
        channel="mean",
    ):
        """Log-likelihood ratios of recordings of any rate, thousands of them.

        Arguments
        ---------
        paths, batch_size, on_error, max_batch_seconds, window_seconds, hop_seconds
            As for :meth:`~speechbrain_ext.inference.verifier.SpeakerVerifier
            .encode_files`.
        speech_detection : bool or None
            Refuse recordings without speech; None: as the model's folder says. Unless
            asked for, a file is scored as it is, as in an evaluation.
        channel : str or int
            Of several.

        Returns
        -------
        scores : torch.Tensor
            float64 [N] on the CPU, in the order of ``paths``.
        failures : list of Failure
            With ``on_error="collect"`` only; their scores are NaN.

        Raises
        ------
        InputError
            As ``encode_files``.
        """
        result = self._embed_files(
            *(paths, batch_size, on_error, max_batch_seconds),
            *(window_seconds, hop_seconds, speech_detection, channel),
        )
        scores = torch.from_numpy(self._llr(result.vectors))
        return (scores, result.failures) if on_error == "collect" else scores

    def detect_files(
        self,
        paths,
        threshold=None,
        false_accept_rate=None,
        prior=0.5,
        speech_detection=None,
        channel="mean",
        side="",
        on_error="raise",
    ):
        """Bona fide or spoof: everything that the model can say of recordings.

        Arguments
        ---------
        paths : a recording or a list of them
            N of any kind, as for :meth:`score_files`.
        threshold : float or None
            Bona fide at or above it.
        false_accept_rate : float or None
            Wanted share of spoofs let in instead, in (0, 1), by the model's held-out
            recordings. Without both the threshold is where their errors were equally
            frequent; where none were measured, Bayes' for ``prior``.
        prior : float
            Share of bona fide recordings, for ``probability``.
        speech_detection : bool or None
            Decide nothing where nobody speaks; None: as the model's folder says.
        channel : str or int
            Of several.
        side : str
            Comes before the number of recordings without a name: ``test``.
        on_error : str
            ``raise`` at the first recording that cannot be read, or ``collect`` them.

        Returns
        -------
        found : list of Detected
            In the order of ``paths``. Where a recording has no speech, score,
            probability and decision are None, and there is a warning.
        failures : list of Failure
            With ``on_error="collect"`` only, those without speech not among them; their
            scores, probabilities and decisions are None, too.

        Raises
        ------
        InputError
            As :meth:`score_files`; a threshold that the model has not.
        """
        log_odds(prior)
        self._check_on_error(on_error)
        point = self._decider.point(LLR, threshold, false_accept_rate, prior)
        options = speech_detection, channel
        sources = sources_of(paths, side)
        found = self._embed(sources, self.chunking, *options, collect=True)
        unreadable = []
        for failure, error in zip(found.failures, found.errors):
            if isinstance(error, NoSpeechError):
                logger.warning("%s: no decision", error)
            elif on_error == "raise":
                raise error
            else:
                unreadable.append(failure)
        scores = self._llr(found.vectors).tolist()
        failed = {failure.row for failure in found.failures}
        detected = [
            Detected(
                llr=None if row in failed else score,
                probability=None if row in failed else probability(score, prior),
                prior=float(prior),
                threshold=point.threshold,
                decision=None if row in failed else score >= point.threshold,
                false_accept_rate=point.false_accept_rate,
                miss_rate=point.miss_rate,
                seconds=0.0 if row in failed else float(found.seconds[row]),
            )
            for row, score in enumerate(scores)
        ]
        return (detected, unreadable) if on_error == "collect" else detected

    def _llr(self, logits):
        """Logits [N, 2], NaN where there is none → float64 [N]."""
        head = self.mods.speaker_encoder.head
        scores = head.log_likelihood_ratio(logits.astype(np.float64))
        if self.calibrator is not None:
            good = np.isfinite(scores)
            calibrated = self.calibrator.log_likelihood_ratio(scores[good, None])
            scores[good] = calibrated
        return scores


def detection_report(
    detector,
    files,
    threshold=None,
    false_accept_rate=None,
    prior=0.5,
    speech_detection=None,
    channel="mean",
):
    """Detect, in plain values: for JSON, and for the page.

    Arguments
    ---------
    detector : SpoofingDetector
    files : list of recordings
    threshold, false_accept_rate, prior, speech_detection, channel
        As for :meth:`SpoofingDetector.detect_files`.

    Returns
    -------
    dict
        ``recordings``, a list of dictionaries with ``file``, ``bonafide`` (None where
        there is no speech), ``llr``, ``probability`` and ``seconds``, and ``error`` of
        one that cannot be read; ``threshold``, ``threshold_from``,
        ``false_accept_rate`` and ``miss_rate`` (fractions measured there, or None),
        ``prior``, ``model``, ``device``, ``warnings``.

    Raises
    ------
    InputError
        As ``detect_files``, but for recordings of which another can be read; no
        recordings.
    """
    if not files:
        raise InputError("no recordings, expected at least one")
    options = threshold, false_accept_rate, prior, speech_detection, channel
    with kept_warnings() as warnings:
        found, failures = detector.detect_files(files, *options, on_error="collect")
    if len(failures) == len(files):
        raise InputError(f"{failures[0].path}: {failures[0].reason}")
    recordings = detected_values(files_of(files), found)
    for failure in failures:
        recordings[failure.row]["error"] = failure.reason
    return {
        "recordings": recordings,
        **threshold_values(detector, found[0], threshold, false_accept_rate),
        "model": detector.source,
        "device": str(detector.device),
        "warnings": warnings,
    }
