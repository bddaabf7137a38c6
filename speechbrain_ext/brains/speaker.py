"""Training of a speaker encoder with a margin classifier, stages 1 to 3.

On top of :class:`~speechbrain_ext.brains.exact.ExactBrain`:

- learning rate and margin set before every step from the progress in epochs;
- validation by EER on trials of held-out speakers, each recording embedded once;
- the best epoch is the latest whose EER is within one standard error of the lowest.

With p the lowest EER so far and n target trials, the standard error is
√(p (1 − p) / n). What is closer is chance, and later epochs have the smaller learning
rate (the one standard error rule of Breiman et al., "Classification and regression
trees", 1984).
"""

import math

import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.distributed import is_distributed_initialized

from speechbrain_ext.brains.exact import ExactBrain, unwrap
from speechbrain_ext.errors import InputError
from speechbrain_ext.extraction import extract_embeddings
from speechbrain_ext.precision import autocast_type
from speechbrain_ext.scoring.embeddings import cosine_scores
from speechbrain_ext.scoring.metrics import equal_error_rate, min_dcf


class SpeakerBrain(ExactBrain):
    """Trains ``modules.speaker_encoder`` through ``modules.classifier``.

    The classifier is called as ``classifier(embeddings, labels)`` and gives the loss;
    its ``margin`` is set by the schedule.

    Reads from ``hparams``: ``epoch_counter``, ``lr_schedule``, ``margin_schedule``
    (functions of the progress in epochs), ``max_grad_norm``, ``train_logger``,
    ``valid_batch_seconds``.

    Arguments
    ---------
    sampler : CropBatchSampler
        Of the training loader.
    validation : tuple, optional
        (Manifest, Trials, rows of the trials' names in the manifest). None: no
        validation, and the last checkpoint counts as the best.
    **options
        As for ``speechbrain.Brain``.
    """

    def __init__(self, *, sampler, validation=None, **options):
        super().__init__(sampler=sampler, **options)
        self.validation = validation

    def compute_forward(self, batch, stage):
        """Batch → embeddings [B, 1, E]."""
        batch = batch.to(self.device)
        return self.modules.speaker_encoder(batch.wavs)

    def compute_objectives(self, predictions, batch, stage):
        """Embeddings → loss, a scalar."""
        return self.modules.classifier(predictions, batch.labels.to(self.device))

    def on_fit_batch_start(self, batch, should_step):
        """Set this step's learning rate and margin."""
        progress = self.progress()
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr_schedule(progress)
        unwrap(self.modules.classifier).margin = self.hparams.margin_schedule(progress)

    def _fit_valid(self, valid_set, epoch, enable):
        """EER on held-out speakers, then the epoch's checkpoint."""
        stats = self.validate(enable) if self.validation is not None else {}
        self.hparams.train_logger.log_stats(  # writes on the main process only
            stats_meta={
                "epoch": epoch,
                "lr": self.optimizer.param_groups[0]["lr"],
                "margin": unwrap(self.modules.classifier).margin,
            },
            train_stats={"loss": self.train_loss},
            valid_stats=stats,
        )
        if stats and self.checkpointer is not None:
            stats |= self._choose(epoch, stats["EER"])
        self.save_epoch({"epoch": epoch, **stats}, ["chosen"] if stats else [])

    def _choose(self, epoch, eer):
        """Is this epoch the best so far? The checkpoints' meta data remember.

        Returns
        -------
        dict
            ``chosen``: the epoch, or 0 where it is not; ``lowest_EER`` so far, percent.
        """
        before = self.checkpointer.find_checkpoint(max_key="chosen")
        lowest = min(before.meta["lowest_EER"] if before else 100.0, eer)
        _, trials, _ = self.validation
        error = standard_error(lowest, min(trials.n_target, trials.n_nontarget))
        return {"chosen": epoch if eer <= lowest + error else 0, "lowest_EER": lowest}

    def recover_best(self):
        """Load the checkpoint of the best epoch, see above (without EER the latest).

        Returns
        -------
        dict
            Its meta data: ``epoch`` and, where there was a validation, ``EER``.

        Raises
        ------
        InputError
            Where no epoch was finished.
        """
        key = "chosen" if self.validation is not None else None
        best = self.checkpointer.recover_if_possible(
            max_key=key, ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG not in c.meta
        )
        if best is None:
            raise InputError(
                f"{self.checkpointer.checkpoints_dir}: no checkpoint of a finished "
                "epoch, expected one"
            )
        return dict(best.meta)

    def validate(self, progress=True):
        """EER and minDCF of the validation trials.

        Returns
        -------
        dict
            ``EER`` in percent, ``minDCF`` at p_target 0.01; equal on every rank.
        """
        manifest, trials, rows = self.validation
        _share_buffers(self.modules.speaker_encoder)
        vectors = extract_embeddings(
            unwrap(self.modules.speaker_encoder),
            manifest,
            self.device,
            self.hparams.valid_batch_seconds,
            precision=autocast_type(self.eval_precision),
            progress=progress,
        )
        scores = cosine_scores(vectors, rows[trials.enrol], rows[trials.test])
        eer = equal_error_rate(scores, trials.labels).eer
        dcf = min_dcf(scores, trials.labels, p_target=0.01).dcf
        # plain floats: a numpy number is saved, and refused at the next start
        return {"EER": float(100 * eer), "minDCF": float(dcf)}


def standard_error(percent, n_trials):
    """√(p (1 − p) / n) of an error rate, both in percent."""
    p = percent / 100
    return 100 * math.sqrt(p * (1 - p) / n_trials)


def _share_buffers(module):
    """Running statistics of rank 0 for all, as the next training step would do."""
    if is_distributed_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)
