"""Validation by EER on trials of speakers held out of training, epoch by epoch.

Each recording is embedded once. The best epoch is the latest whose EER is within one
standard error of the lowest. With p the lowest EER so far and n target trials, that
error is √(p (1 − p) / n). What is closer is chance, and later epochs have the smaller
learning rate (the one standard error rule of Breiman et al., "Classification and
regression trees", 1984).
"""

import math

import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.distributed import is_distributed_initialized

from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.inference.extraction import extract_embeddings
from speechbrain_ext.scoring.embeddings import cosine_scores
from speechbrain_ext.scoring.metrics import equal_error_rate, min_dcf
from speechbrain_ext.scoring.trials import read_trials, rows_of
from speechbrain_ext.training.brain import ExactBrain
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import autocast_type


def read_validation(prepared):
    """What a Brain validates on, or None where no speakers were held out.

    Arguments
    ---------
    prepared : object
        What the recipe's preparation returned: ``valid`` and ``valid_trials``, paths.

    Returns
    -------
    tuple
        (Manifest, Trials, rows of the trials' names in the manifest).
    """
    if prepared.valid is None:
        return None
    manifest = read_manifest(prepared.valid)
    trials = read_trials(prepared.valid_trials)
    return manifest, trials, rows_of(trials, manifest.ids, str(prepared.valid))


class ValidatedBrain(ExactBrain):
    """An :class:`~speechbrain_ext.training.brain.ExactBrain` that knows its best epoch.

    A subclass has :meth:`embedder` and :meth:`epoch_stats`. Reads from ``hparams``:
    ``epoch_counter``, ``train_logger``, ``valid_batch_seconds``.

    Arguments
    ---------
    sampler : CropBatchSampler
        Of the training loader.
    validation : tuple, optional
        From :func:`read_validation`. None: no validation, and the last checkpoint
        counts as the best.
    **options
        As for ``speechbrain.Brain``.
    """

    def __init__(self, *, sampler, validation=None, **options):
        super().__init__(sampler=sampler, **options)
        self.validation = validation

    def embedder(self):
        """The module that is validated: (wavs, wav_lens) → [B, 1, E]."""
        raise NotImplementedError

    def epoch_stats(self):
        """What the log says of an epoch beside loss and EER: name → plain number."""
        return {}

    def chooses(self):
        """Whether the EER decides which epoch is the best; else the latest is."""
        return self.validation is not None

    def _fit_valid(self, valid_set, epoch, enable):
        """EER on held-out speakers, then the epoch's checkpoint."""
        stats = self.validate(enable) if self.validation is not None else {}
        self.hparams.train_logger.log_stats(  # writes on the main process only
            stats_meta={"epoch": epoch, **self.epoch_stats()},
            # of the epoch's time, for batches that were not ready: see num_workers
            train_stats={"loss": self.train_loss, "waiting": f"{self.waiting:.1%}"},
            valid_stats=stats,
        )
        if self.chooses() and self.checkpointer is not None:
            stats |= self._choose(epoch, stats["EER"])
        self.save_epoch({"epoch": epoch, **stats}, ["chosen"] if self.chooses() else [])

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
        best = self.checkpointer.recover_if_possible(
            max_key="chosen" if self.chooses() else None,
            ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG not in c.meta,
        )
        if best is None:
            raise InputError(
                f"{self.checkpointer.checkpoints_dir}: no checkpoint of a finished "
                "epoch, expected one"
            )
        return dict(best.meta)

    def validate(self, progress=True, model=None):
        """EER and minDCF of the validation trials.

        Arguments
        ---------
        progress : bool
            Show a bar.
        model : torch.nn.Module, optional
            To be validated in the place of :meth:`embedder`.

        Returns
        -------
        dict
            ``EER`` in percent, ``minDCF`` at p_target 0.01; equal on every rank.
        """
        manifest, trials, rows = self.validation
        model = self.embedder() if model is None else model
        _share_buffers(model)
        vectors = extract_embeddings(
            model,
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
