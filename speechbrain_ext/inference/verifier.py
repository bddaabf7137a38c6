"""A trained model as its users load it: verify and compare.

    verifier = SpeakerVerifier.from_hparams(source="results/stage3_lmft/final")
    score, same = verifier.verify_files("a.wav", "b.flac")

The score is the cosine of both embeddings, a·b / (|a| |b|), or what the model's folder
has beyond it: AS-norm with a cohort, log-likelihood ratios with a calibration
(:mod:`speechbrain_ext.scoring.backend`). Thresholds come from the folder too
(:mod:`speechbrain_ext.inference.thresholds`).
"""

import numpy as np
import torch

from speechbrain_ext.inference.decisions import (
    Comparison,
    Decider,
    log_odds,
    probability,
)
from speechbrain_ext.inference.embedder import SpeakerEmbedder, Voice
from speechbrain_ext.scoring.backend import Side

__all__ = ["Comparison", "SpeakerVerifier", "Voice"]


class SpeakerVerifier(SpeakerEmbedder):
    """SpeechBrain's SpeakerRecognition with what the model's folder knows.

    Loads by :meth:`from_hparams`; embeds recordings as
    :class:`~speechbrain_ext.inference.embedder.SpeakerEmbedder` does, whose arguments
    it takes.

    Attributes
    ----------
    backend : Backend
        Cohort and calibrator, or None each.
    thresholds : dict of str to Thresholds
        By kind of score; empty where the model has none.
    kinds : list of str
        Scores that it can make: ``cosine``, then ``as_norm`` and ``llr``.
    """

    def __init__(self, model, source, run_opts=None, freeze_params=True):
        super().__init__(model, source, run_opts, freeze_params)
        self.backend, self.thresholds = model.backend, model.thresholds
        self.kinds = ["cosine"]
        self.kinds += ["as_norm"] * (self.backend.cohort is not None)
        self.kinds += ["llr"] * (self.backend.calibrator is not None)
        self._decider = Decider(self.kinds, self.thresholds, self.source)

    def compare(
        self,
        enrol,
        test,
        score=None,
        threshold=None,
        false_accept_rate=None,
        prior=0.5,
    ):
        """Everything that the model can say about two voices.

        Arguments
        ---------
        enrol, test : str, Path, list of them, or Voice
            Recordings of one voice each; several are averaged.
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

        Returns
        -------
        Comparison

        Raises
        ------
        InputError
            As :meth:`enrol`; a score or threshold that the model has not.
        """
        log_odds(prior)
        kind = self._decider.kind(score, threshold, false_accept_rate)
        point = self._decider.point(kind, threshold, false_accept_rate, prior)
        voices = self.enrol(enrol), self.enrol(test)
        scores = self._scores(*voices)
        llr = scores.get("llr")
        return Comparison(
            cosine=scores["cosine"],
            as_norm=scores.get("as_norm"),
            llr=llr,
            probability=None if llr is None else probability(llr, prior),
            prior=float(prior),
            score=kind,
            threshold=point.threshold,
            decision=scores[kind] >= point.threshold,
            false_accept_rate=point.false_accept_rate,
            miss_rate=point.miss_rate,
            enrol_seconds=voices[0].seconds,
            test_seconds=voices[1].seconds,
        )

    def verify_files(
        self, path_x, path_y, threshold=None, false_accept_rate=None, score="cosine"
    ):
        """Score and decision for two files, as SpeechBrain gives them.

        Arguments
        ---------
        path_x, path_y : str, Path or list of them
            Recordings of one voice each.
        threshold, false_accept_rate, score
            As for :meth:`compare`.

        Returns
        -------
        score : torch.Tensor
            float32 [1].
        decision : torch.Tensor
            bool [1], True for the same speaker.

        Raises
        ------
        InputError
            As :meth:`compare`.
        """
        found = self.compare(path_x, path_y, score, threshold, false_accept_rate)
        value = torch.tensor([getattr(found, found.score)], dtype=torch.float32)
        return value, torch.tensor([found.decision])

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
        return score, score.double() >= threshold

    def _scores(self, enrol, test):
        """Two voices → {kind of score: float}."""
        calibrator = self.backend.calibrator
        timed = calibrator is not None and "duration_min" in calibrator.names
        sides = [
            Side(voice.embedding[None], np.array([voice.seconds]) if timed else None)
            for voice in (enrol, test)
        ]
        found = self.backend.scores(*sides, np.array([[0, 0]]))
        # S-norm is AS-norm by the whole cohort
        names = {"s_norm": "as_norm"}
        return {names.get(kind, kind): float(value[0]) for kind, value in found.items()}
