"""Validation on speakers held out of training, epoch by epoch.

A validation is a callable (model, device, precision, progress) → figures, equal on
every rank, with a ``measure`` (the figure that should be low) and its standard error.
The best epoch is the latest whose measure is within one standard error of the lowest:
what is closer is chance, and later epochs have the smaller learning rate (the one
standard error rule of Breiman et al., "Classification and regression trees", 1984).
"""

import logging
import math

from pydantic import NonNegativeInt

from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.inference.extraction import extract_embeddings
from speechbrain_ext.scoring.embeddings import cosine_scores
from speechbrain_ext.scoring.metrics import equal_error_rate, min_dcf
from speechbrain_ext.scoring.trials import read_trials, rows_of

logger = logging.getLogger(__name__)

READERS = 4  # threads: a GPU embeds sooner than one of them decodes


class EERTrials:
    """Cosine EER and minDCF of trials between held-out recordings.

    Each recording is embedded once. With p the lowest EER and n the trials of the rarer
    kind, the standard error is √(p (1 − p) / n).

    Arguments
    ---------
    manifest : Manifest
    trials : Trials
        Of its IDs.
    batch_seconds : float
        Padded seconds of audio in one batch.
    num_workers : int
        Threads that read the next batches.
    """

    measure = "EER"

    def __init__(self, manifest, trials, batch_seconds=300, num_workers=READERS):
        self.manifest = manifest
        self.trials = trials
        self.rows = rows_of(trials, manifest.ids, str(trials.path))
        self.batch_seconds, self.num_workers = batch_seconds, num_workers

    @classmethod
    def of(cls, prepared, batch_seconds=300, num_workers: NonNegativeInt = READERS):
        """From a preparation; None where no speakers were held out."""
        if prepared.valid is None:
            logger.info("no validation speakers: the last epoch counts as the best")
            return None
        manifest = read_manifest(prepared.valid)
        trials = read_trials(prepared.valid_trials)
        logger.info(
            "validation on %d other speakers, %d utterances, %d trials",
            *(len(manifest.speaker_names), len(manifest), len(trials)),
        )
        return cls(manifest, trials, batch_seconds, num_workers)

    def __call__(self, model, device, precision=None, progress=True):
        """``EER`` in percent, ``minDCF`` at p_target 0.01."""
        vectors = extract_embeddings(
            model,
            self.manifest,
            device,
            self.batch_seconds,
            num_workers=self.num_workers,
            precision=precision,
            progress=progress,
        )
        rows, trials = self.rows, self.trials
        scores = cosine_scores(vectors, rows[trials.enrol], rows[trials.test])
        eer = equal_error_rate(scores, trials.labels).eer
        dcf = min_dcf(scores, trials.labels, p_target=0.01).dcf
        # plain floats: a numpy number is saved, and refused at the next start
        return {"EER": float(100 * eer), "minDCF": float(dcf)}

    def standard_error(self, percent):
        """√(p (1 − p) / n), both in percent."""
        p, n = percent / 100, min(self.trials.n_target, self.trials.n_nontarget)
        return 100 * math.sqrt(p * (1 - p) / n)
