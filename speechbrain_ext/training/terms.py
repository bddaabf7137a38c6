"""A table of one row per optimiser step, which a resumed run continues exactly.

Rows are written as training goes, checkpoints less often. A run that goes on from a
checkpoint first drops the rows of the steps that it will take again, so that the table
is the unbroken run's.

Training of a speaker encoder with a margin classifier, stages 1 to 3.

On top of :class:`~speechbrain_ext.training.validation.ValidatedBrain`, learning rate
and margin are set before every step from the progress in epochs.

Distillation of a frozen teacher into a student, while that is pruned or afterwards.

    loss = distillation(student, teacher) + λ₁ (s − t) + λ₂ (s − t)²

The first term compares all hidden states (:mod:`speechbrain_ext.losses`), the
others drive the student's gates to a size (:mod:`speechbrain_ext.pruning`); without a
budget there is the first alone. Weights and log α descend, λ₁ and λ₂ ascend, each with
a learning rate of its own (arXiv 2510.04213: 2e-4, 2e-2 and 2e-2, no weight decay).
"""

import torch
from speechbrain.utils.distributed import if_main_process
from torch import nn

from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.losses import distillation_loss
from speechbrain_ext.pruning import harden, prune
from speechbrain_ext.training.brain import unwrap
from speechbrain_ext.training.validation import ValidatedBrain
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically


class StepLog:
    """A CSV file whose first column is ``step``.

    Arguments
    ---------
    path : str or Path
    columns : sequence of str
        The other columns.
    """

    def __init__(self, path, columns):
        self.path = path
        self.columns = list(columns)

    def go_on_from(self, step):
        """Keep the rows of the first ``step`` steps; begin the file where it is not.

        Raises
        ------
        InputError
            Where the file has other columns.
        """
        header = ",".join(["step", *self.columns]) + "\n"
        rows = []
        if step and self.path.is_file():
            found, *lines = self.path.read_text().splitlines(keepends=True) or [""]
            if found != header:
                raise InputError(
                    f"{self.path}: columns {found.strip()!r}, expected "
                    f"{header.strip()!r}; the file is of another run"
                )
            # a killed process may leave part of a line at the end
            whole = [line for line in lines if line.endswith("\n")]
            rows = [line for line in whole if int(line.split(",")[0]) <= step]
        with write_atomically(self.path) as file:
            file.writelines([header, *rows])

    def add(self, step, values):
        """Append one row; ``values`` has a number for every column."""
        numbers = [f"{values[name]:.9g}" for name in self.columns]
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(",".join([str(step), *numbers]) + "\n")


def read_steps(path):
    """A table of :class:`StepLog` → {column: list of float}, ``step`` included."""
    header, *lines = path.read_text().splitlines()
    columns = zip(*(map(float, line.split(",")) for line in lines))
    names = header.split(",")
    return dict(zip(names, map(list, columns))) if lines else {n: [] for n in names}


class SpeakerBrain(ValidatedBrain):
    """Trains ``modules.speaker_encoder`` through ``modules.classifier``.

    The classifier is called as ``classifier(embeddings, labels)`` and gives the loss;
    its ``margin`` is set by the schedule.

    Reads from ``hparams``, beside what its base class does: ``lr_schedule``,
    ``margin_schedule`` (functions of the progress in epochs), ``max_grad_norm``.
    """

    def embedder(self):
        """The speaker encoder, without a wrapper."""
        return unwrap(self.modules.speaker_encoder)

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

    def epoch_stats(self):
        """Learning rate and margin of the last step."""
        return {
            "lr": self.optimizer.param_groups[0]["lr"],
            "margin": unwrap(self.modules.classifier).margin,
        }


DISTILLATION = ("l1", "cosine")
PRUNING = ("sparsity", "target", "lambda1", "lambda2")


class FeatureEncoder(nn.Module):
    """An encoder from its features on: what DistributedDataParallel wraps."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, features, lens=None):
        """Features and their relative lengths → list of hidden states."""
        return self.encoder.encode_features(features, lens)


class DistillPruneBrain(ValidatedBrain):
    """Trains the student's encoder; its head only shows how good that is.

    Reads from ``hparams``, beside what its base class does: ``lr_schedule`` (a function
    of the progress in epochs) for the weights, with a budget ``gate_lr`` and
    ``multiplier_lr``, and ``max_grad_norm``.

    A training step's gates are drawn from torch's generator, so every rank is to be
    seeded with another number. The warm-up of the target counts optimiser steps.

    Arguments
    ---------
    teacher : torch.nn.Module
        Encoder with ``features`` and ``encode_features``. Here it is frozen, and no
        ``train()`` reaches it.
    student : SpeakerEncoder
        Its encoder trains, with gates where there is a budget; its head, the one that
        was trained on the teacher, is used for validation.
    step_log : Path
        CSV of every optimiser step: loss and its parts on the main process.
    budget : Budget, optional
        Of the student's encoder. None: distillation alone.
    **options
        As for ``speechbrain.Brain``, and of the base class.
    """

    def __init__(self, *, teacher, student, step_log, budget=None, **options):
        modules = {"student": FeatureEncoder(student.encoder)}
        if budget is not None:
            modules["budget"] = budget
        super().__init__(modules=modules, **options)
        self.teacher = teacher.to(self.device).requires_grad_(False).eval()
        self.head = student.head.to(self.device).requires_grad_(False)
        self.prunes = budget is not None
        columns = ("epoch", "loss", *DISTILLATION, *(PRUNING if self.prunes else ()))
        self.step_log = StepLog(step_log, columns)
        self.pruning = {}  # the columns of this step
        self.group = []  # loss and its parts in this accumulation group

    # -- one step ------------------------------------------------------------------

    def compute_forward(self, batch, stage):
        """Batch → Distillation. The states live no longer than they have to."""
        batch = batch.to(self.device)
        features, lens = unwrap(self.modules.student).encoder.features(batch.wavs)
        with torch.no_grad():
            wanted = self.teacher.encode_features(features, lens)
        return distillation_loss(self.modules.student(features, lens), wanted, lens)

    def compute_objectives(self, predictions, batch, stage):
        """Distillation → loss, a scalar."""
        self.distillation, self.pruning = predictions, {}
        if not self.prunes:
            return predictions.loss
        penalty = self.modules.budget(self.optimizer_step)
        budget = unwrap(self.modules.budget)
        values = penalty.sparsity, penalty.target, budget.lambda1, budget.lambda2
        self.pruning = {k: float(v.detach()) for k, v in zip(PRUNING, values)}
        return predictions.loss + penalty.loss

    def check_loss_isfinite(self, loss):
        """Stop before the weights are spoilt, with the part that is to blame.

        Raises
        ------
        InputError
            With epoch, step, and the hidden state or the Lagrangian's values.
        """
        if torch.isfinite(loss):
            return
        for name, part in zip(("L1", "cosine"), self.distillation[1:]):
            for number, value in enumerate(part):
                where = f"distillation: {name} of hidden state {number}"
                self._check_finite(where, value)
        values = ", ".join(f"{k} {v:.4g}" for k, v in self.pruning.items())
        self._check_finite(f"Lagrangian ({values})", loss - self.distillation.loss)
        super().check_loss_isfinite(loss)

    def on_fit_batch_start(self, batch, should_step):
        """Set this step's learning rate of the weights."""
        self.optimizer.param_groups[0]["lr"] = self.hparams.lr_schedule(self.progress())

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Write the step's row, averaged over its accumulation group."""
        parts = [loss, outputs.l1.mean(), outputs.cosine.mean()]
        self.group.append(torch.stack(parts).detach())
        if should_step:
            means = torch.stack(self.group).mean(0).tolist()
            row = dict(zip(("loss", *DISTILLATION), means))
            row["epoch"] = self.hparams.epoch_counter.current
            if if_main_process():
                self.step_log.add(self.optimizer_step, {**row, **self.pruning})
            self.group = []

    def parameter_groups(self):
        """Weights; with a budget also gates and, ascending, its multipliers."""
        named = list(self.modules.student.named_parameters())
        weights = [p for name, p in named if not name.endswith("log_alpha")]
        gates = [p for name, p in named if name.endswith("log_alpha")]
        groups = [{"params": weights}]
        if self.prunes:
            groups += [
                {"params": gates, "lr": self.hparams.gate_lr},
                {
                    "params": list(self.modules.budget.parameters()),
                    "lr": self.hparams.multiplier_lr,
                    "maximize": True,
                },
            ]
        return groups

    def init_optimizers(self):
        """As in every Brain.

        Raises
        ------
        InputError
            Where the optimiser can only minimise.
        """
        super().init_optimizers()
        if self.prunes and "maximize" not in self.optimizer.defaults:
            raise InputError(
                f"opt_class: {type(self.optimizer).__name__} can only minimise, "
                "expected one with the option 'maximize', as AdamW"
            )

    # -- epochs --------------------------------------------------------------------

    def on_fit_start(self):
        """Also the table of steps goes on from the latest checkpoint."""
        super().on_fit_start()
        if if_main_process():
            self.step_log.go_on_from(self.optimizer_step)

    def embedder(self):
        """The student in eval mode, its gates without noise, under the kept head."""
        return SpeakerEncoder(unwrap(self.modules.student).encoder, self.head)

    def epoch_stats(self):
        """Learning rate of the weights, and where the pruning is."""
        return {"lr": self.optimizer.param_groups[0]["lr"], **self.pruning}

    def warmup_steps(self):
        """Optimiser steps in which the target rises; None without a budget."""
        budget = unwrap(self.modules.budget) if self.prunes else None
        return budget and budget.warmup_steps

    def chooses(self):
        """With a budget the latest epoch is the best: earlier students are larger."""
        return super().chooses() and not self.prunes

    def finish(self, multiple=1):
        """The trained student, pruned to its target where there is one.

        Arguments
        ---------
        multiple : int
            Widths that shrink become multiples of it: see
            :func:`~speechbrain_ext.pruning.harden`.

        Returns
        -------
        SpeakerEncoder
            Without gates, in eval mode.
        """
        encoder = unwrap(self.modules.student).encoder
        if self.prunes:
            harden(unwrap(self.modules.budget), multiple)
            encoder = prune(encoder)
        return SpeakerEncoder(encoder, self.head).eval()
