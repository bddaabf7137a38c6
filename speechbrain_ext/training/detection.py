"""Learning to tell bona fide speech from spoofs: the term of the loss, the validation.

    loss = 1/N Σ_n w_{y_n} CE(z_n, y_n) / Σ_c w_c p_c         z = logits of Detection
    π_c = w_c p_c / Σ_c w_c p_c                   p_c: share of class c among the draws

The minimum of the loss is where softmax(z) is the posterior for the priors π; they are
kept with the head, which makes log-likelihood ratios of its logits
(:mod:`speechbrain_ext.lobes.heads.detection`). The weights 0.1 and 0.9 are the usual
ones of ASVspoof, where nine of ten recordings are spoofs. torch divides by the weights
of the batch, Σ_n w_{y_n}, instead: then a spoof weighs more in a batch without bona
fide recordings, the priors are others (0.44 and not 0.51 of bona fide, of 16 recordings
with a tenth of them and these weights), and two processes are not one.

The figure that chooses the epoch is minDCF of the development recordings, with the
costs of ASVspoof 5 (arXiv 2408.08739, section 2.3): a miss costs 1, a spoof let in 10,
and one recording of twenty is a spoof.
"""

import logging
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from speechbrain_ext.evaluation.detection import read_list
from speechbrain_ext.inference.extraction import extract_embeddings
from speechbrain_ext.lobes.heads.detection import CLASSES
from speechbrain_ext.lobes.heads.detection import Detection as DetectionHead
from speechbrain_ext.scoring.detection import min_dcf_of
from speechbrain_ext.scoring.metrics import equal_error_rate
from speechbrain_ext.training.terms import Term
from speechbrain_ext.training.validation import READERS
from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)

PRIORS_DIFFER = 0.01  # in nats; less is a manifest with some recordings more


class Detection(Term):
    """Weighted cross-entropy of bona fide against spoof.

    Arguments
    ---------
    weights : dict of str to float, or "balanced", optional
        Of each class, by its name; ``balanced``: inverse to its share, so that both
        count the same. None: every recording counts the same.

    Raises
    ------
    InputError
        Weights of other classes; from :meth:`setup`: a head that does not detect,
        other classes in the training manifest.
    """

    needs_embeddings = True

    def __init__(
        self, weights: dict[str, PositiveFloat] | Literal["balanced"] | None = None
    ):
        if isinstance(weights, dict) and set(weights) != set(CLASSES):
            raise InputError(
                f"weights of {', '.join(map(str, weights)) or 'nothing'}, expected of "
                f"{' and '.join(CLASSES)}"
            )
        self.given = weights

    def setup(self, speaker_encoder, data):
        """Learn which label is which class; set the priors of the head."""
        head = speaker_encoder.head
        if not isinstance(head, DetectionHead):
            raise InputError(
                f"head: {type(head).__name__}, expected Detection for a term that "
                "tells bona fide speech from spoofs"
            )
        if sorted(data.speakers) != sorted(CLASSES):
            raise InputError(
                f"training manifest: classes {', '.join(data.speakers[:4])}, expected "
                f"{' and '.join(CLASSES)}: see train_data.label"
            )
        self.class_of = torch.tensor([CLASSES.index(name) for name in data.speakers])
        counts = np.bincount(data.manifest.labels).astype(np.float64)
        shares = counts / counts.sum()
        if data.sampler.draws_per_epoch is not None:  # drawn in turns
            shares = np.full(len(shares), 1 / len(shares))
        shares = shares[np.argsort(self.class_of.numpy())]  # in the order of CLASSES
        weights = np.ones(len(CLASSES))
        if self.given == "balanced":
            weights = 1 / shares
        elif self.given is not None:
            weights = np.array([self.given[name] for name in CLASSES])
        weights = weights / (weights @ shares)
        prior = weights * shares
        head.log_prior.copy_(torch.from_numpy(np.log(prior)))
        self.head, self.prior = head, prior
        self.weights = torch.from_numpy(weights).float()
        logger.info(
            "recordings: %s; weights %s; priors of the loss %s",
            *(
                _named(counts[np.argsort(self.class_of)]),
                _named(weights),
                _named(prior),
            ),
        )

    def check_resumed(self):
        """InputError: the run that is continued had other priors.

        Its logits are of those, and will be of neither if it goes on with these.
        """
        before = self.head.log_prior.double().exp().cpu().numpy()
        if np.abs(np.log(before / self.prior)).max() > PRIORS_DIFFER:
            raise InputError(
                f"priors of the loss: {_named(self.prior)}, expected "
                f"{_named(before)} as in the run that is continued: its weights, "
                "draws_per_epoch and recordings; or another output_folder"
            )

    def to(self, device):
        """Move weights and labels."""
        self.weights = self.weights.to(device)
        self.class_of = self.class_of.to(device)

    def loss(self, outputs, modules, step):
        """Logits [B, 1, 2] and labels → weighted cross-entropy."""
        logits = outputs.embeddings.squeeze(1).float()
        labels = self.class_of[outputs.labels]
        total = F.cross_entropy(logits, labels, self.weights, reduction="sum")
        return total / len(labels)


class DetectionErrors:
    """minDCF and EER of the development recordings, each as a whole.

    No standard error: later epochs know the attacks of the training better and others
    less, so the lowest cost counts, and the latest of several equal ones.

    Arguments
    ---------
    manifest : Manifest
    is_bonafide : np.ndarray
        bool [N].
    batch_seconds : float
        Padded seconds of audio in one batch.
    num_workers : int
        Threads that read the next batches.
    """

    measure = "minDCF"

    def __init__(self, manifest, is_bonafide, batch_seconds=300, num_workers=READERS):
        self.manifest, self.is_bonafide = manifest, is_bonafide
        self.batch_seconds, self.num_workers = batch_seconds, num_workers

    @classmethod
    def of(
        cls,
        prepared,
        batch_seconds=300,
        n_recordings: PositiveInt | None = None,
        seed: NonNegativeInt = 1986,
        num_workers: NonNegativeInt = READERS,
    ):
        """From a preparation; None where there are no development recordings.

        Arguments
        ---------
        prepared : Prepared
            ``dev``: a manifest, or None.
        batch_seconds : float
        n_recordings : int, optional
            So many, drawn once from each class by its share; None: all.
        seed : int
            Of the drawing.
        num_workers : int

        Raises
        ------
        InputError
            Recordings of one class alone, or of an unknown one.
        """
        if prepared.dev is None:
            logger.info("no development recordings: the last epoch counts as the best")
            return None
        manifest, keys = read_list(prepared.dev)
        is_bonafide = keys.is_bonafide
        if n_recordings is not None and n_recordings < len(manifest):
            rows = _drawn(is_bonafide, n_recordings, seed)
            manifest, is_bonafide = manifest.select(rows), is_bonafide[rows]
        logger.info(
            "validation on %d bona fide recordings and %d spoofs",
            *(is_bonafide.sum(), (~is_bonafide).sum()),
        )
        return cls(manifest, is_bonafide, batch_seconds, num_workers)

    def __call__(self, model, device, precision=None, progress=True):
        """``minDCF`` with the costs of ASVspoof 5, ``EER`` in percent."""
        logits = extract_embeddings(
            model,
            self.manifest,
            device,
            self.batch_seconds,
            num_workers=self.num_workers,
            precision=precision,
            progress=progress,
        )
        llr = model.head.log_likelihood_ratio(logits.astype(np.float64))
        dcf = min_dcf_of(llr, self.is_bonafide)
        eer = equal_error_rate(llr, self.is_bonafide).eer
        return {"minDCF": float(dcf), "EER": float(100 * eer)}

    def standard_error(self, cost):
        """0: the lowest cost counts."""
        return 0.0


def _drawn(is_bonafide, count, seed):
    """Row numbers of ``count`` recordings, each class by its share, at least one."""
    generator, rows = np.random.default_rng([seed]), []
    for flag in (True, False):
        own = np.flatnonzero(is_bonafide == flag)
        share = max(round(count * len(own) / len(is_bonafide)), 1)
        rows.append(generator.choice(own, min(share, len(own)), replace=False))
    return np.sort(np.concatenate(rows))


def _named(values):
    """Numbers of the classes with their names, for the log."""
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(CLASSES, values))
