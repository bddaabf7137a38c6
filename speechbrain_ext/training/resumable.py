"""A Brain whose runs can be stopped at any step and continued to the same result.

:class:`ResumableBrain` adds to SpeechBrain's Brain:

- gradients clipped module by module, in all parameter groups;
- gradient accumulation that keeps the tail of an epoch;
- checkpoints between optimiser steps only, also on SIGTERM, SIGUSR1 (which a batch
  system can send minutes before the end) and Ctrl-C, so that a
  resumed run takes the very steps of the unbroken one. To the bit on the CPU, with the
  same kind of CPU, versions of libraries, number of threads and of processes, and batch
  size: else the same crops in the same order, and products rounded otherwise;
- an error at a loss or gradient that is not finite, before it spoils the weights.

:func:`log_plan` says how many steps a run will take. More or fewer processes change the
global batch and so the steps (:mod:`speechbrain_ext.data.sampler`): schedules that
count epochs stretch with them, those that count optimiser steps do not.
"""

import logging
import math
import os
import signal
import sys
import time

import speechbrain as sb
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import ckpt_recency
from speechbrain.utils.distributed import if_main_process
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from speechbrain_ext.training.checkpoints import RandomState, TrainedState
from speechbrain_ext.utils.distributed import (
    batch_norm_explained,
    max_over_ranks,
    mean_over_ranks,
    synchronise_batch_norm,
)
from speechbrain_ext.utils.errors import InputError, lost_connection

logger = logging.getLogger(__name__)

# SIGUSR1 is not of every system.
STOPPING = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    if hasattr(signal, name)
]


def log_plan(batches, steps, epochs, wanted=None, warmup=None):
    """Log GlobalBatch, steps of an epoch and epochs, on the main process.

    ``wanted`` is the global batch that the settings are meant for, another one is
    warned of; ``warmup`` counts optimiser steps. InputError: a ``wanted`` that is no
    positive number.
    """
    if wanted is not None and not (isinstance(wanted, int) and wanted > 0):
        raise InputError(
            f"global_batch: {wanted}, expected utterances per optimiser step, or null"
        )
    if not if_main_process():
        return
    per_epoch = batches.optimiser_steps(steps)
    total = per_epoch * epochs
    logger.info(
        "global batch %s; optimiser steps: %d per epoch, %d in %d epoch(s)",
        *(batches, per_epoch, total, epochs),
    )
    if wanted is not None and wanted != batches.size:
        logger.warning(
            "learning rate and epochs are set for a global batch of %d, not %d; %s",
            *(wanted, batches.size, batches.advice(wanted)),
        )
    if warmup is None:
        return
    logger.info("warm-up of %d steps: %.2f epochs", warmup, warmup / per_epoch)
    if warmup > total:
        logger.warning(
            "warm-up of %d optimiser steps, but there are %d: its end is not reached",
            *(warmup, total),
        )


class ResumableBrain(sb.Brain):
    """A Brain that can be stopped at any moment and continued to the same result.

    Reads from ``hparams``: ``epoch_counter``, and ``global_batch`` where it is there:
    utterances per optimiser step that the other settings are meant for. A subclass says
    what a batch is trained on, and ends its ``_fit_valid`` with :meth:`save_epoch`.

    Arguments
    ---------
    sampler : CropBatchSampler
        Of the training loader.
    bf16_gradients : bool
        GPUs exchange their gradients in bf16: half the bytes.
    **options
        As for ``speechbrain.Brain``.
    """

    def __init__(self, *, sampler, bf16_gradients=False, **options):
        super().__init__(**options)
        self.bf16_gradients = bf16_gradients
        if bf16_gradients and self.distributed_launch and self.device_type == "cpu":
            raise InputError("bf16_gradients: True, expected False on a CPU")
        if self.grad_accumulation_factor < 1:
            raise InputError(
                f"grad_accumulation_factor: {self.grad_accumulation_factor}, expected "
                "at least 1"
            )
        limit = self.hparams.epoch_counter.limit
        if limit < 1:
            raise InputError(f"number_of_epochs: {limit}, expected at least 1")
        self.sampler = self.train_sampler = sampler  # SpeechBrain calls its set_epoch
        sampler.accumulate(self.grad_accumulation_factor)
        self.stop_signal = 0  # what reached this process
        self.stopping = 0  # what all processes have agreed on
        self.read = {}  # numbers of the last batch
        if self.checkpointer is not None:
            self._add_recoverables()

    # -- one step ------------------------------------------------------------------

    def fit_batch(self, batch):
        """Forward, backward, and a step where an accumulation group ends."""
        group = self._group_size()
        should_step = self._group_ends()
        self.on_fit_batch_start(batch, should_step)
        with self.no_sync(not should_step):
            with self.training_ctx:
                with batch_norm_explained():
                    outputs = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            self.scaler.scale(loss / group).backward()
        norms = self.clip_gradients() if should_step else {}
        # all at once: a GPU's queue runs empty at every look at one of its numbers
        self.read = read_together({"loss": loss, **norms, **self.watched()})
        self.check_loss_isfinite(self.read["loss"])
        if not self.scaler.is_enabled():  # in fp16 it skips such steps by itself
            for name in norms:
                self._check_finite(name, self.read[name])
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return torch.tensor(self.read["loss"], dtype=loss.dtype)

    def watched(self):
        """Name → scalar tensor of this batch, to be found as a number in ``read``."""
        return {}

    def progress(self):
        """Epochs done, counted in optimiser steps."""
        factor = self.grad_accumulation_factor
        groups = self.sampler.batches.optimiser_steps(len(self.sampler))
        done = (self.step - 1) // factor
        return self.hparams.epoch_counter.current - 1 + done / groups

    def check_loss_isfinite(self, loss):
        """Stop before the weights are spoilt, in place of SpeechBrain's patience.

        ``loss`` is a number or a scalar tensor. InputError: with epoch and step.
        """
        self._check_finite("loss", loss)

    def _check_finite(self, name, value):
        if torch.is_tensor(value):
            value = float(value.detach())
        if not math.isfinite(value):
            raise InputError(
                f"{name} is {value} in epoch "
                f"{self.hparams.epoch_counter.current}, step {self.step}, expected a "
                "finite value; checkpoints are as before"
            )

    def clip_gradients(self):
        """Clip every module by its own norm → norms before, by "gradient of …".

        A ``max_grad_norm`` of 0 or below clips nothing.
        """
        self.scaler.unscale_(self.optimizer)
        limit = self.max_grad_norm if self.max_grad_norm > 0 else math.inf
        return {
            f"gradient of {name}": torch.nn.utils.clip_grad_norm_(
                module.parameters(), limit
            )
            for name, module in self.modules.items()
        }

    def optimizers_step(self):
        """Step, with gradients that are clipped and finite."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def parameter_groups(self):
        """What the optimiser is given: parameters, or groups of them with options."""
        return [p for p in self.modules.parameters() if p.requires_grad]

    def init_optimizers(self):
        """One optimiser over what requires a gradient, saved with the checkpoints."""
        try:
            self.optimizer = self.opt_class(self.parameter_groups())
        except (ValueError, TypeError) as error:
            raise InputError(f"opt_class: {error}") from error
        self.optimizers_dict = {"optimizer": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def warmup_steps(self):
        """Optimiser steps of a schedule that does not count epochs; None without."""
        return None

    def _group_ends(self):
        return self.step % self.grad_accumulation_factor == 0 or self.step == len(
            self.sampler
        )

    def _group_size(self):
        """Batches in this step's accumulation group; the last may be smaller."""
        factor = self.grad_accumulation_factor
        tail = len(self.sampler) % factor
        return tail if self.step > len(self.sampler) - tail else factor

    # -- stopping and resuming -----------------------------------------------------

    def _add_recoverables(self):
        self.checkpointer.add_recoverable("sampler", self.sampler)
        self.checkpointer.add_recoverable("epoch_counter", self.hparams.epoch_counter)
        for name, module in self.modules.items():
            self.checkpointer.add_recoverable(name, TrainedState(module))
        self.checkpointer.add_recoverable("random_state", RandomState(self.sampler))

    def on_fit_start(self):
        """Wrap, build the optimiser, and go on from the latest checkpoint."""
        steps = len(self.sampler)
        log_plan(
            *(self.sampler.batches, steps, self.hparams.epoch_counter.limit),
            wanted=getattr(self.hparams, "global_batch", None),
            warmup=self.warmup_steps(),
        )
        super().on_fit_start()
        if self.step:  # in mid-epoch, perhaps with other batches than before
            self.step = self.sampler.start_step
        found = self.checkpointer is not None and self.checkpointer.find_checkpoint()
        if found:
            epoch, step = self.sampler.epoch, self.sampler.start_step
            logger.info(
                "resuming from %s: epoch %d, %d of %d steps done, %d optimiser steps",
                *(found.path.name, epoch, step, steps, self.optimizer_step),
            )
        else:
            logger.info("starting anew: no checkpoint found")

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        """As SpeechBrain's; signals to stop save a checkpoint before they do.

        Raises
        ------
        SystemExit
            With 128 + the signal's number, when stopped so.
        """
        before = {
            number: signal.signal(number, self._remember_signal) for number in STOPPING
        }
        self.loader = train_set
        try:
            super().fit(epoch_counter, train_set, *args, **kwargs)
        except SystemExit:
            # here and not where it was raised: the bar would have the last word
            if self.stopping and if_main_process():
                print(self._farewell(), file=sys.stderr, flush=True)
            raise
        except RuntimeError as error:
            # torchrun stops all where one has failed: then there is nothing to agree on
            if not (self.stop_signal and lost_connection(error)):
                raise
            name = signal.Signals(self.stop_signal).name
            line = f"stopped by {name}: another process has ended; checkpoints are as"
            print(line, "before", file=sys.stderr, flush=True)
            raise SystemExit(128 + self.stop_signal) from error
        finally:
            train_set.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember_signal(self, number, frame):
        if self.stop_signal:  # asked twice: do not wait for the step's end
            raise KeyboardInterrupt
        self.stop_signal = number
        if if_main_process():
            # not print: it fails where the signal falls into another print
            os.write(2, b"\nstopping after this step, once a checkpoint is saved\n")

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """Between accumulation groups only: gradients are in no checkpoint."""
        if not self._group_ends():
            return False
        minutes = (time.time() - last_ckpt_time) / 60
        due = self.checkpointer is not None and (
            0 < self.ckpt_interval_minutes < minutes
            or 0 < self.ckpt_interval_steps <= steps_since_ckpt
        )
        self._agree_on_stopping(due)
        return self.stopping > 0 or self.due

    def _save_intra_epoch_ckpt(self):
        self.sampler.step_done = self.step
        # so that it does not matter how many processes continue
        self.avg_train_loss = mean_over_ranks(self.avg_train_loss, self.device)
        if self.checkpointer is not None:
            # SpeechBrain's own call makes its list of keys longer every time
            self.checkpointer.save_and_keep_only(
                end_of_epoch=False,
                meta={INTRA_EPOCH_CKPT_FLAG: True},
                ckpt_predicate=lambda c: not is_of_epoch(c),
                importance_keys=[ckpt_recency],
                keep_recent=False,
                verbosity=logging.DEBUG,
            )
        self._stop_if_agreed()

    def _agree_on_stopping(self, due=False):
        # a signal may have reached one process alone, and at any moment; nor do their
        # clocks say at the same step that a checkpoint is due
        agreed = max_over_ranks([self.stop_signal, due], self.device)
        self.stopping, self.due = agreed[0], bool(agreed[1])

    def _stop_if_agreed(self):
        if self.stopping:
            raise SystemExit(128 + self.stopping)

    def _farewell(self):
        done = (
            f"after step {self.step} of {len(self.sampler)}" if self.step else "ended"
        )
        return (
            f"stopped by {signal.Signals(self.stopping).name}: epoch "
            f"{self.hparams.epoch_counter.current} {done}; run the same command again "
            "to continue"
        )

    # -- epochs and processes ------------------------------------------------------

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """For the log line of the epoch: loss of all processes, share of waiting."""
        if stage == sb.Stage.TRAIN:
            self.sampler.step_done = len(self.sampler)
            self.train_loss = mean_over_ranks(stage_loss, self.device)
            self.waiting = self.loader.share_waited()

    def save_epoch(self, meta, max_keys=(), keep=1):
        """The checkpoint of a finished epoch; stop here where a signal asked for it.

        Arguments
        ---------
        meta : dict
            Plain Python numbers: numpy's are saved, and refused at the next start.
        max_keys : sequence of str
            The checkpoint with the highest value of each is kept, and the latest.
        keep : int
            So many of the latest.
        """
        self.step = 0
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta=meta,
                num_to_keep=keep,
                max_keys=list(max_keys),
                importance_keys=[ckpt_recency],
                ckpt_predicate=is_of_epoch,
                keep_recent=False,
            )
            self.checkpointer.delete_checkpoints(
                num_to_keep=0, ckpt_predicate=lambda c: not is_of_epoch(c)
            )
        self._agree_on_stopping()
        self._stop_if_agreed()

    def _wrap_distributed(self):
        """DistributedDataParallel; BatchNorm over the batches of all processes."""
        if not self.distributed_launch:
            super()._wrap_distributed()
            return
        for name, module in self.modules.items():
            if not any(p.requires_grad for p in module.parameters()):
                continue
            if self.device_type == "cpu":
                # torch's synchronised BatchNorm is for GPUs only
                module = synchronise_batch_norm(module)
                self.modules[name] = DistributedDataParallel(
                    module, find_unused_parameters=self.find_unused_parameters
                )
                continue
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            self.modules[name] = wrapped = DistributedDataParallel(
                module,
                device_ids=[self.device],
                find_unused_parameters=self.find_unused_parameters,
                broadcast_buffers=False,  # the same everywhere: BatchNorm's are synced
                gradient_as_bucket_view=True,  # else all gradients are there twice
            )
            if self.bf16_gradients:
                wrapped.register_comm_hook(None, bf16_compress_hook)


def is_of_epoch(checkpoint):
    """Whether a checkpoint is of a finished epoch."""
    return INTRA_EPOCH_CKPT_FLAG not in checkpoint.meta


def unwrap(module):
    """The module without its DistributedDataParallel wrapper."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def read_together(values):
    """Name → scalar tensor, of one device: name → number, in one transfer."""
    together = torch.stack([value.detach() for value in values.values()])
    return dict(zip(values, together.cpu().tolist()))
