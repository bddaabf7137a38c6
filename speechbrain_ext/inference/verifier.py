"""A trained model as its users load it: embed, enrol, verify and compare.

    verifier = SpeakerVerifier.from_hparams(source="results/stage3_lmft/final")
    score, same = verifier.verify_files("a.wav", "b.flac")

SpeechBrain's inference class with strict loading, any recordings, and batches. A
recording is a path, a part of one (``a.wav:12.5-17``), an array or tensor with its rate
or at 16 kHz, or the bytes or file object of a sound file
(:mod:`speechbrain_ext.inference.sources`); ``channel`` chooses of several
(:mod:`speechbrain_ext.inference.channels`). The
score is the cosine of both embeddings, a·b / (|a| |b|), or what the model's folder
has beyond it: AS-norm with a cohort, log-likelihood ratios with a calibration
(:mod:`speechbrain_ext.scoring.backend`). Thresholds come from the folder too
(:mod:`speechbrain_ext.inference.thresholds`). Before a decision the speech is cut out
of recordings (:mod:`speechbrain_ext.inference.speech`): a model scores noise and
silence as if they were voices, and two of a kind as one voice.
"""

import logging
import math
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.inference.speaker import SpeakerRecognition

from speechbrain_ext.inference.decisions import (
    Comparison,
    Decider,
    comparison_of,
    log_odds,
)
from speechbrain_ext.inference.folder import load_model
from speechbrain_ext.inference.loaded import LoadedModel
from speechbrain_ext.inference.sources import sources_of
from speechbrain_ext.scoring.backend import TrialSide
from speechbrain_ext.utils.errors import InputError, NoSpeechError

logger = logging.getLogger(__name__)

__all__ = ["Comparison", "SpeakerModel", "SpeakerVerifier"]


class SpeakerModel(NamedTuple):
    """An enrolled speaker: ``embedding`` float32 [E], ``seconds`` of speech behind."""

    embedding: np.ndarray
    seconds: float


class SpeakerVerifier(LoadedModel, SpeakerRecognition):
    """SpeechBrain's SpeakerRecognition with what the model's folder knows.

    Its process keeps freed memory from here on
    (:mod:`speechbrain_ext.utils.allocator`).

    Arguments
    ---------
    model : speechbrain_ext.inference.folder.Model
        From a folder; :meth:`from_hparams` reads it.
    source : str
        Where it is from, for messages.
    run_opts : dict or RunOptions or None
        SpeechBrain's: ``device`` (a GPU where there is one), ``precision`` (``fp32``;
        ``bf16`` and ``fp16`` apply to the encoder, on a GPU), ``noprogressbar``, …
    freeze_params : bool
        No gradients.

    Attributes
    ----------
    chunking : ChunkingConfig
        Shortest recording, windows.
    speech : SpeechConfig
        What counts as speech, and whether it is looked for before a decision.
    backend : Backend
        Cohort and calibrator, or None each.
    thresholds : dict of str to Thresholds
        By kind of score; empty where the model has none.
    kinds : list of str
        Scores that it can make: ``cosine``, then ``as_norm`` and ``llr``.
    """

    read_folder = staticmethod(load_model)

    def __init__(self, model, source, run_opts=None, freeze_params=True):
        super().__init__(model, source, run_opts, freeze_params)
        self.backend = model.backend
        self.kinds = ["cosine"]
        self.kinds += ["as_norm"] * (self.backend.cohort is not None)
        self.kinds += ["llr"] * (self.backend.calibrator is not None)
        self._decider = Decider(self.kinds, self.thresholds, self.source)

    def forward(self, wavs, wav_lens=None):
        """wavs [B, T] → embeddings [B, 1, E]."""
        return self.encode_batch(wavs, wav_lens)

    def encode_batch(self, wavs, wav_lens=None, normalize=False):
        """Embed waveforms.

        Arguments
        ---------
        wavs : torch.Tensor or np.ndarray
            [B, T] or [T], ±1 at 16 kHz, padded on the right; integers are scaled.
        wav_lens : torch.Tensor or None
            [B], valid part of each row relative to T; None: all rows are full.
        normalize : bool
            Scale to length 1. (SpeechBrain subtracts a mean here; the mean of a cohort
            belongs to AS-norm.)

        Returns
        -------
        torch.Tensor
            float32 [B, 1, E] on the model's device.

        Raises
        ------
        InputError
            Wrong shape or type; a row that is too short, silent, or not finite.
        """
        embeddings = self._encode_batch(wavs, wav_lens)
        if normalize:
            embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
        return embeddings

    def encode_files(
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
        """Embed recordings of any rate and number of channels, thousands of them.

        Arguments
        ---------
        paths : list of recordings
            N files (wav, flac, ogg or mp3) or what is in memory: an array or tensor, a
            tuple (array, rate), bytes or a file object of a sound file. An array of two
            dimensions is one recording of several channels.
        batch_size : int
            Recordings in one batch, at most.
        on_error : str
            ``raise`` stops at a bad file, ``collect`` goes on and lists it.
        max_batch_seconds : float or None
            Padded seconds in one batch, at most: bounds the memory. None takes 12 s on
            a CPU, where each core has a batch of its own, and 120 s on a GPU.
        window_seconds, hop_seconds : float or None
            None takes the model's; ``float("inf")`` embeds long recordings whole, or
            as whole as the encoder can (``max_samples``).
        speech_detection : bool or None
            Embed speech alone; None: as the model's folder says. Unless asked for, a
            file is embedded as it is, as in trial lists and by SpeechBrain: decisions
            are for ``compare``.
        channel : str or int
            Of several: ``left``, ``right``, a number (the first is 1), their ``mean``,
            or the ``best`` by an estimate of the signal-to-noise ratio.

        Returns
        -------
        embeddings : torch.Tensor
            float32 [N, E] on the CPU, in the order of ``paths``.
        failures : list of Failure
            With ``on_error="collect"`` only: (row, path, reason); their embeddings are
            NaN.

        Raises
        ------
        InputError
            One line that names the recording which is missing, not sound, truncated,
            too short, silent or not finite, or has no such channel; a setting out of
            range. With speech detection NoSpeechError, a kind of it, of one without
            speech, or with too little.
        """
        result = self._embed_files(
            *(paths, batch_size, on_error, max_batch_seconds),
            *(window_seconds, hop_seconds, speech_detection, channel),
        )
        embeddings = torch.from_numpy(result.vectors)
        collects = on_error == "collect"
        return (embeddings, result.failures) if collects else embeddings

    def enrol(self, files, speech_detection=None, channel="mean"):
        """A speaker from one or several recordings: the mean of their embeddings.

        The embeddings are averaged as they are, as in the trial lists of an
        evaluation: one of larger magnitude weighs more
        (:func:`~speechbrain_ext.scoring.enrolment.average_enrolment`).

        Arguments
        ---------
        files : a recording or a list of them, or SpeakerModel
            As for :meth:`encode_files`; a speaker who is enrolled already is returned.
        speech_detection : bool or None
            Embed speech alone; None: as the model's folder says.
        channel : str or int
            As for :meth:`encode_files`.

        Returns
        -------
        SpeakerModel
            Of the recordings with speech: there is a warning of each without.

        Raises
        ------
        NoSpeechError
            No speech in any of them, or too little in each.
        InputError
            As :meth:`encode_files`; no recording.
        """
        if isinstance(files, SpeakerModel):
            return files
        options = speech_detection, channel
        found = self._embed(files, self.chunking, *options, collect=True).with_speech()
        mean = found.vectors.mean(axis=0, dtype=np.float64)
        return SpeakerModel(mean.astype(np.float32), float(found.seconds.sum()))

    def compare(
        self,
        enrol,
        test,
        score=None,
        threshold=None,
        false_accept_rate=None,
        prior=0.5,
        speech_detection=None,
        channel="mean",
        test_channel=None,
        detector=None,
        spoof_accept_rate=None,
    ):
        """Everything that the model can say about two voices.

        Arguments
        ---------
        enrol, test : a recording or a list of them, or SpeakerModel
            As for :meth:`encode_files`, of one voice each; several are averaged.
        score : str or None
            Which decides: ``cosine``, ``as_norm`` or ``llr``; None takes the best one
            that the model has a threshold of.
        threshold : float or None
            Accept at or above it.
        false_accept_rate : float or None
            Wanted rate instead, in (0, 1), by the model's held-out trials. Without both
            the threshold is where their errors were equally frequent.
        prior : float
            Share of same-speaker pairs, for ``probability``.
        speech_detection, channel
            As for :meth:`enrol`.
        test_channel : str or int or None
            The channel of ``test``, where it is another.
        detector : SpoofingDetector or None
            Also says of each recording whether it is bona fide speech.
        spoof_accept_rate : float or None
            Wanted share of spoofs that it lets in, by its own held-out recordings.

        Returns
        -------
        Comparison
            Where a side has no speech, scores, probability and decision are None, and
            there is a warning. With a detector it also has what that says of every
            recording; ``accepted`` is of both.

        Raises
        ------
        InputError
            As :meth:`enrol`; a score or threshold that the model has not; a
            ``spoof_accept_rate`` without a detector.
        """
        log_odds(prior)
        if detector is None and spoof_accept_rate is not None:
            raise InputError(
                f"spoof_accept_rate {spoof_accept_rate}, expected a detector with it"
            )
        kind = self._decider.kind(score, threshold, false_accept_rate)
        point = self._decider.point(kind, threshold, false_accept_rate, prior)
        channels = channel, channel if test_channel is None else test_channel
        sides = [
            side
            if isinstance(side, SpeakerModel)
            else [source.kept() for source in sources_of(side, name)]
            for side, name in ((enrol, "enrol"), (test, "test"))
        ]
        voices = [
            self._voice(side, speech_detection, of_side)
            for side, of_side in zip(sides, channels)
        ]
        detected = [None, None]
        if detector is not None:
            options = None, spoof_accept_rate, 0.5, speech_detection
            detected = [
                None
                if isinstance(side, SpeakerModel)
                else detector.detect_files(side, *options, of_side)
                for side, of_side in zip(sides, channels)
            ]
        heard = None not in voices
        scores = self._scores(*voices) if heard else {}
        seconds = [voice.seconds if voice else 0.0 for voice in voices]
        return comparison_of(scores, kind, point, prior, *seconds, *detected)

    def identify(self, recordings, voices, *decision, **options):
        """As :func:`speechbrain_ext.inference.voices.identification.identify`."""
        from speechbrain_ext.inference.voices.identification import identify

        return identify(self, recordings, voices, *decision, **options)

    def verify_files(
        self,
        path_x,
        path_y,
        threshold=None,
        false_accept_rate=None,
        score="cosine",
        **options,
    ):
        """Score and decision for two recordings, as SpeechBrain gives them.

        Arguments
        ---------
        path_x, path_y : a recording or a list of them, or SpeakerModel
            Of one voice each.
        threshold, false_accept_rate, score, **options
            As for :meth:`compare`.

        Returns
        -------
        score : torch.Tensor
            float32 [1]; NaN, with a warning, where a side has no speech.
        decision : torch.Tensor
            bool [1], True for the same speaker; False where the score is NaN.

        Raises
        ------
        InputError
            As :meth:`compare`.
        """
        result = self.compare(
            path_x, path_y, score, threshold, false_accept_rate, **options
        )
        value = getattr(result, result.score)
        value = torch.tensor([math.nan if value is None else value]).float()
        return value, torch.tensor([bool(result.decision)])

    def verify_batch(
        self, wavs1, wavs2, wav1_lens=None, wav2_lens=None, threshold=None
    ):
        """Cosine and decision for pairs of waveforms.

        Arguments
        ---------
        wavs1, wavs2 : torch.Tensor
            [B, T], as for :meth:`encode_batch`.
        wav1_lens, wav2_lens : torch.Tensor or None
            [B], relative.
        threshold : float or None
            None takes the model's.

        Returns
        -------
        score : torch.Tensor
            float32 [B, 1].
        decision : torch.Tensor
            bool [B, 1].

        Raises
        ------
        InputError
            As :meth:`encode_batch`.
        """
        threshold = self._decider.point("cosine", threshold).threshold
        emb1 = self.encode_batch(wavs1, wav1_lens)
        emb2 = self.encode_batch(wavs2, wav2_lens)
        score = self.similarity(emb1, emb2)
        decision = score.cpu().double() >= threshold
        return score, decision.to(score.device)

    def _voice(self, files, *options):
        """:meth:`enrol`; None, with a warning, where there is no speech."""
        try:
            return self.enrol(files, *options)
        except NoSpeechError as error:
            logger.warning("%s: no decision", error)
            return None

    def _scores(self, enrol, test):
        """Two SpeakerModels → {kind of score: float}."""
        calibrator = self.backend.calibrator
        timed = calibrator is not None and "duration_min" in calibrator.names
        sides = [
            TrialSide(
                voice.embedding[None], np.array([voice.seconds]) if timed else None
            )
            for voice in (enrol, test)
        ]
        scores = self.backend.scores(*sides, np.array([[0, 0]]))
        # S-norm is AS-norm by the whole cohort
        names = {"s_norm": "as_norm"}
        return {names.get(kind, kind): float(s[0]) for kind, s in scores.items()}
