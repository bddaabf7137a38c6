"""The Brain of every recipe: a speaker encoder trained on the sum of some terms.

    wavs ─ front end ─ encoder ─ states ─ head ─ embeddings          (gradients)
              └─ what a term computes without gradients: a teacher's states
    loss = Σ term.loss(outputs)

What is trained on is :mod:`speechbrain_ext.training.terms`, how a checkpoint becomes
the best :mod:`speechbrain_ext.training.validation`, and how a run stops and continues
exactly :mod:`speechbrain_ext.training.resumable`.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain.utils.distributed import if_main_process, is_distributed_initialized
from torch import nn

from speechbrain_ext.adaptation import check_lora_gradients
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.training.resumable import ResumableBrain, is_of_epoch, unwrap
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.precision import autocast_type
from speechbrain_ext.utils.weights import load_strictly, read_weights

logger = logging.getLogger(__name__)


@dataclass
class Outputs:
    """What the terms are given of a batch.

    ``embeddings`` [B, 1, E] and ``states``, list of [B, T', C], each only where a term
    needs it; ``lens`` [B], valid part of T', or None where nothing is padded, as in
    every batch of crops; ``labels`` [B].
    """

    embeddings: torch.Tensor | None
    states: list | None
    lens: torch.Tensor | None
    labels: torch.Tensor


class FromFrontEnd(nn.Module):
    """A speaker encoder from its front end on: what DistributedDataParallel wraps.

    Its tensors are named as in SpeakerEncoder. Without a head it gives no embeddings.
    """

    def __init__(self, encoder, head=None, gives_states=False):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.gives_states = gives_states

    def forward(self, x, lens=None):
        """Front end's output, lengths → (embeddings, states), each None if unused."""
        states = self.encoder.encode(x, lens)
        embeddings = None
        if self.head is not None:
            embeddings = self.head(states, self.encoder.output_lens(x, lens))
        return embeddings, states if self.gives_states else None


class SpeakerBrain(ResumableBrain):
    """Trains ``modules["speaker_encoder"]`` and the modules of its terms.

    Reads from ``hparams``: ``epoch_counter``, ``train_logger``, ``lr_schedule`` (a
    function of the progress in epochs), and ``global_batch`` where it is there.

    Where no term needs embeddings, the head is kept as it is and validated with.

    Arguments
    ---------
    modules : dict
        ``speaker_encoder``, a SpeakerEncoder.
    terms : list of Term
        Set up, see :meth:`~speechbrain_ext.training.terms.Term.setup`.
    validation : callable, optional
        As :class:`~speechbrain_ext.training.validation.EERTrials`. None: the last
        checkpoint counts as the best.
    average : int
        Of the last epochs: their mean weights are the model at the end. 1: the best
        epoch's.
    encoder_lr_scale : float
        Of the learning rate, for the encoder's weights.
    step_log : Path, optional
        CSV of every optimiser step, where a term has something to say: loss and its
        parts on the main process.
    **options
        As for :class:`~speechbrain_ext.training.resumable.ResumableBrain`.
    """

    def __init__(
        self,
        *,
        modules,
        terms,
        validation=None,
        average=1,
        encoder_lr_scale=1.0,
        step_log=None,
        **options,
    ):
        speaker_encoder = modules["speaker_encoder"]
        trains_head = any(term.needs_embeddings for term in terms)
        wrapped = FromFrontEnd(
            speaker_encoder.encoder,
            speaker_encoder.head if trains_head else None,
            gives_states=any(term.needs_states for term in terms),
        )
        modules = {**modules, "speaker_encoder": wrapped}
        for term in terms:
            modules |= term.modules()
        super().__init__(modules=modules, **options)
        if not trains_head and not any(t.reads_last for t in terms if t.needs_states):
            logger.warning(
                "no term reads the last state of the encoder: layers behind those that "
                "are read stay as they began"
            )
            self.find_unused_parameters = True  # or processes would wait for them
        self.terms = terms
        self.validation, self.average = validation, average
        self.encoder_lr_scale = encoder_lr_scale
        self.head = speaker_encoder.head
        if not trains_head:
            self.head = self.head.to(self.device).requires_grad_(False)
        for term in terms:
            term.to(self.device)
        self.step_log = step_log and StepLog(step_log)
        self.lora_checked = False
        self.columns = {}  # of the last batch
        self.group = []  # loss and columns of each batch in this accumulation group

    # -- one step ------------------------------------------------------------------

    def compute_forward(self, batch, stage):
        """Batch → Outputs."""
        batch = batch.to(self.device)
        encoder = unwrap(self.modules.speaker_encoder).encoder
        # crops are of one length: without any lengths nothing looks for padding, for
        # which a GPU would be waited for
        x, _ = encoder.front_end(batch.wavs, None)
        for term in self.terms:
            term.before(batch.wavs, x, None, encoder)
        embeddings, states = self.modules.speaker_encoder(x)
        return Outputs(embeddings, states, None, batch.labels)

    def compute_objectives(self, predictions, batch, stage):
        """Outputs → loss, a scalar. The states live no longer than they have to."""
        losses = [
            term.loss(predictions, self.modules, self.optimizer_step)
            for term in self.terms
        ]
        predictions.states = None
        return sum(losses[1:], losses[0])

    def on_fit_batch_start(self, batch, should_step):
        """Set this step's learning rate, and what the terms schedule."""
        progress = self.progress()
        rate = self.hparams.lr_schedule(progress)
        for group in self.optimizer.param_groups:
            if "lr_scale" in group:
                group["lr"] = rate * group["lr_scale"]
        for term in self.terms:
            term.on_step(self.modules, progress)

    def watched(self):
        """The columns of the step's row that are tensors."""
        self.columns = {}
        if self.step_log is not None:
            for term in self.terms:
                self.columns |= term.columns()
        return {k: v for k, v in self.columns.items() if torch.is_tensor(v)}

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Write the step's row: tensors are averaged over its accumulation group."""
        if not self.columns:
            return
        read = {k: v for k, v in self.read.items() if k == "loss" or k in self.columns}
        self.group.append(read)
        if should_step:
            means = {k: sum(r[k] for r in self.group) / len(self.group) for k in read}
            row = {"epoch": self.hparams.epoch_counter.current, "loss": None}
            if if_main_process():
                columns = {**row, **self.columns, **means}
                self.step_log.add(self.optimizer_step, columns)
            self.group = []

    def check_loss_isfinite(self, loss):
        """Stop before the weights are spoilt, with the part that is to blame.

        Raises
        ------
        InputError
            With epoch, step, and what a term says of it.
        """
        if not math.isfinite(loss):
            for term in self.terms:
                term.check_finite(self._check_finite)
            super().check_loss_isfinite(loss)

    def optimizers_step(self):
        """As in every Brain; at first, every LoRA layer must have a gradient."""
        if not self.lora_checked:
            check_lora_gradients(unwrap(self.modules.speaker_encoder).encoder)
            self.lora_checked = True
        super().optimizers_step()

    def parameter_groups(self):
        """What follows the learning rate of the run, then the groups of the terms."""
        own = [g for term in self.terms for g in term.groups(self.modules)]
        taken = {id(p) for group in own for p in group["params"]}
        encoder = unwrap(self.modules.speaker_encoder).encoder
        scaled = set()
        if self.encoder_lr_scale != 1:
            scaled = {id(p) for p in encoder.parameters()}
        weights, of_encoder = [], []
        for p in self.modules.parameters():
            if p.requires_grad and id(p) not in taken:
                (of_encoder if id(p) in scaled else weights).append(p)
        following = [{"params": weights, "lr_scale": 1.0}]
        if of_encoder:
            scale = self.encoder_lr_scale
            following.append({"params": of_encoder, "lr_scale": scale})
        return [*following, *own]

    def init_optimizers(self):
        """As in every Brain.

        Raises
        ------
        InputError
            Where a term ascends, and the optimiser can only minimise.
        """
        super().init_optimizers()
        ascends = any(group.get("maximize") for group in self.parameter_groups())
        if ascends and "maximize" not in self.optimizer.defaults:
            raise InputError(
                f"opt_class: {type(self.optimizer).__name__} can only minimise, "
                "expected one with the option 'maximize', as AdamW"
            )

    # -- epochs --------------------------------------------------------------------

    def on_fit_start(self):
        """Also the table of steps continues from the latest checkpoint."""
        super().on_fit_start()
        for term in self.terms:
            term.check_resumed()
        if self.step_log is not None and if_main_process():
            self.step_log.drop_after(self.optimizer_step)

    def warmup_steps(self):
        """Optimiser steps of the term that counts those; None without one."""
        return next((t.warmup_steps for t in self.terms if t.warmup_steps), None)

    def embedder(self):
        """The speaker encoder that is validated: (wavs, wav_lens) → [B, 1, E]."""
        trained = unwrap(self.modules.speaker_encoder)
        return SpeakerEncoder(trained.encoder, trained.head or self.head)

    def chooses(self):
        """Whether the validation decides which epoch is the best; else the last is."""
        return self.validation is not None and not any(
            term.latest_is_best for term in self.terms
        )

    def _fit_valid(self, valid_set, epoch, enable):
        """Validate, log the epoch, save its checkpoint."""
        stats = self.validate(enable) if self.validation is not None else {}
        own = {"lr": self.optimizer.param_groups[0]["lr"]}
        for term in self.terms:
            own |= term.epoch_stats(self.modules)
        self.hparams.train_logger.log_stats(  # writes on the main process only
            stats_meta={"epoch": epoch, **own},
            # of the epoch's time, for batches that were not ready: see num_workers
            train_stats={"loss": self.train_loss, "waiting": f"{self.waiting:.1%}"},
            valid_stats=stats,
        )
        if self.chooses() and self.checkpointer is not None:
            stats |= self._choose(epoch, stats)
        keys = ["chosen"] if self.chooses() else []
        self.save_epoch({"epoch": epoch, **stats}, keys, keep=self.average)

    def _choose(self, epoch, stats):
        """→ ``chosen``, the epoch if it is the best so far, else 0; lowest error."""
        value, key = stats[self.validation.measure], f"lowest_{self.validation.measure}"
        before = self.checkpointer.find_checkpoint(max_key="chosen")
        lowest = min(before.meta[key] if before else value, value)
        error = self.validation.standard_error(lowest)
        return {"chosen": epoch if value <= lowest + error else 0, key: lowest}

    def recover_best(self):
        """Load the checkpoint of the best epoch (without validation the latest).

        → its meta data: ``epoch`` and, where there was a validation, its figures.
        InputError: no epoch was finished.
        """
        best = self.checkpointer.recover_if_possible(
            max_key="chosen" if self.chooses() else None,
            ckpt_predicate=is_of_epoch,
        )
        if best is None:
            raise InputError(
                f"{self.checkpointer.checkpoints_dir}: no checkpoint of a finished "
                "epoch, expected one"
            )
        return dict(best.meta)

    def recover_mean(self):
        """Load the mean of the last ``average`` epochs → meta data of the latest.

        Weights and running statistics: Izmailov et al. 2018 (arXiv 1803.05407) without
        a pass for the statistics, as wespeaker does it.
        """
        latest = self.checkpointer.find_checkpoints(
            ckpt_predicate=is_of_epoch, max_num_checkpoints=self.average
        )
        if not latest:
            return self.recover_best()  # says what is missing
        self.checkpointer.load_checkpoint(latest[0])
        for name, module in self.modules.items():
            mean = average_checkpoints(
                latest, name, lambda path, **_: read_weights(path)
            )
            module = unwrap(module)
            frozen = tuple(n for n in module.state_dict() if n not in mean)
            load_strictly(module, mean, name, allow_missing=frozen)
        epochs = [checkpoint.meta["epoch"] for checkpoint in latest]
        logger.info("mean of the weights after epochs %s", epochs[::-1])
        return {"epoch": latest[0].meta["epoch"], "averaged": len(latest)}

    def validate(self, progress=True, model=None):
        """The validation's figures, equal on every rank.

        Arguments
        ---------
        progress : bool
            Show a bar.
        model : torch.nn.Module, optional
            To be validated in the place of :meth:`embedder`.
        """
        model = self.embedder() if model is None else model
        if is_distributed_initialized():
            # running statistics of rank 0 for all, as the next training step would do
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        precision = autocast_type(self.eval_precision)
        return self.validation(model, self.device, precision, progress)

    def finish(self):
        """The best checkpoint's model, after what the terms do at the end.

        Returns
        -------
        model : SpeakerEncoder
            In eval mode; LoRA is not merged.
        figures : dict
            ``epoch`` and, where there is a validation, those of this very model.
        """
        averages = self.average > 1
        best = self.recover_mean() if averages else self.recover_best()
        model = self.embedder()
        trained = model.encoder
        for term in self.terms:
            model = term.finish(model, self.modules)
        model.eval()
        changed = averages or model.encoder is not trained
        if self.validation is not None and changed:
            best |= self.validate(model=model)
        return model, best


def train_logger(path):
    """SpeechBrain's log of epochs, in a file.

    Where torchvision is absent its module says so at import, of pictures that nobody
    wants: that line alone is left out, as it would stand before every error of ours.
    """

    def is_of_use(record):
        return "torchvision is not available" not in record.getMessage()

    log = logging.getLogger("speechbrain.utils.train_logger")
    log.addFilter(is_of_use)
    try:
        from speechbrain.utils.train_logger import FileTrainLogger
    finally:
        log.removeFilter(is_of_use)
    return FileTrainLogger(path)


def check_trained(modules, terms):
    """What a YAML file says is trained, and by what.

    InputError: no speaker encoder in ``modules``; ``terms`` that are no list of terms.
    """
    model = modules.get("speaker_encoder") if isinstance(modules, Mapping) else None
    if not isinstance(model, SpeakerEncoder) or not all(
        isinstance(module, nn.Module) for module in modules.values()
    ):
        raise InputError(f"modules: {modules!r}, expected {{speaker_encoder: …}}")
    right = isinstance(terms, (list, tuple)) and terms
    if not right or not all(hasattr(term, "setup") for term in terms):
        raise InputError(f"terms: {terms!r}, expected a list of terms of the loss")
    if len({id(term) for term in terms}) < len(terms):
        raise InputError("terms: a term stands twice, expected each once")
    if not any(term.needs_states or term.needs_embeddings for term in terms):
        names = ", ".join(type(term).__name__ for term in terms)
        raise InputError(
            f"terms: {names}, of which none reads what the encoder gives; expected a "
            "classification, or a distillation with a teacher"
        )


class StepLog:
    """A CSV file of one row per optimiser step, which a resumed run continues exactly.

    Rows are written as training goes, checkpoints less often. A run that continues from
    a checkpoint first drops the rows of the steps that it will take again.
    """

    def __init__(self, path):
        self.path = path
        self.header = None

    def drop_after(self, step):
        """Keep the rows of the first ``step`` steps; none: no file."""
        if not step:
            self.path.unlink(missing_ok=True)
        elif self.path.is_file():
            header, *lines = self.path.read_text().splitlines(keepends=True) or [""]
            # a killed process may leave part of a line at the end
            whole = [line for line in lines if line.endswith("\n")]
            with write_atomically(self.path) as file:
                file.write(header)
                file.writelines(r for r in whole if int(r.split(",")[0]) <= step)
            self.header = header

    def add(self, step, values):
        """Append one row, under a header of the values' names.

        Raises
        ------
        InputError
            Where the file has other columns.
        """
        header = ",".join(["step", *values]) + "\n"
        if self.header not in (None, header):
            raise InputError(
                f"{self.path}: columns {self.header.strip()!r}, expected "
                f"{header.strip()!r}; the file is of another run"
            )
        row = ",".join([str(step), *(f"{value:.9g}" for value in values.values())])
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{header if self.header is None else ''}{row}\n")
        self.header = header


def read_steps(path):
    """A table of :class:`StepLog` → {column: list of float}, ``step`` included."""
    header, *lines = path.read_text().splitlines()
    columns = zip(*(map(float, line.split(",")) for line in lines))
    names = header.split(",")
    return dict(zip(names, map(list, columns))) if lines else {n: [] for n in names}
