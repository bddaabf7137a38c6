"""Batches of crops: shuffled, sharded over processes, resumable at any step.

The global order of an epoch is a function of (seed, epoch) alone. Step g takes its
positions gB … gB + B − 1, B = batch size × processes, and rank r those among them that
are ≡ r modulo the number of processes: the same B gives the same global batches on one
GPU and on eight. All random numbers of a step or an utterance come from (seed, epoch,
step or position), so neither the number of workers nor an interruption changes them.

One optimiser step takes a global batch of G = B × accumulation utterances. A learning
rate is published for one G. With more or fewer processes G changes, which the log says,
unless the batch size or the accumulation does the opposite. The order of an epoch is
the same for any G. A run stopped after n steps with B and resumed with B' continues at
step

    ⌊n B / B'⌋, rounded down to the beginning of an accumulation group.

The utterances trained on since that step come again. None is skipped, except a tail of
fewer than B', as in every epoch.
"""

import json
import logging
from typing import NamedTuple

import numpy as np
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch.utils.data import Sampler

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_json

logger = logging.getLogger(__name__)


class GlobalBatch(NamedTuple):
    """The three factors of G.

    ``batch_size``: utterances of one process in one step; ``processes``;
    ``accumulation``: steps whose gradients are summed for one optimiser step.
    """

    batch_size: int
    processes: int
    accumulation: int = 1

    @property
    def per_step(self):
        """B, utterances of one step of all processes."""
        return self.batch_size * self.processes

    @property
    def size(self):
        """G, utterances of one optimiser step."""
        return self.per_step * self.accumulation

    def __str__(self):
        return (
            f"{self.size} = {self.batch_size} × {self.processes} process(es) × "
            f"accumulation {self.accumulation}"
        )

    def optimiser_steps(self, steps):
        """Steps of an epoch → optimiser steps; the last may be of fewer steps."""
        return -(-steps // self.accumulation)

    def advice(self, size):
        """Options that make G ``size`` on these processes, as a sentence.

        The batch size comes first: only that makes the steps equal, too.
        """
        options = []
        for option, others in (
            ("batch_size", self.processes * self.accumulation),
            ("grad_accumulation_factor", self.per_step),
        ):
            if size % others == 0:
                options.append(f"--{option}={size // others}")
        if not options and size % self.processes == 0:
            options.append(
                f"--batch_size={size // self.processes} --grad_accumulation_factor=1"
            )
        options = " or ".join(options) or "a number of processes that divides it"
        return f"{size} needs {options}"


class EpochPosition(NamedTuple):
    """So many steps of an epoch are done."""

    step: int
    steps: int

    @property
    def at_end(self):
        """Whether the epoch is finished."""
        return self.step == self.steps


def resume_position(epoch, old, before, now, steps):
    """Where to resume with other batches, and a line for the log.

    ``old`` is the position of the stopped run, in steps of the batches ``before``;
    ``steps`` is an epoch's number of steps with the batches ``now``. The new position
    is not behind the first utterance that was not trained on. The line is None where
    the steps are the same.
    """
    if old.at_end:
        new = EpochPosition(steps, steps)
    else:
        step = old.step * before.per_step // now.per_step
        step = steps if step >= steps else step - step % now.accumulation
        new = EpochPosition(step, steps)
    if before.accumulation == now.accumulation and before.per_step == now.per_step:
        return new, None
    return new, _describe_change(epoch, old, before, new, now)


def _describe_change(epoch, old, before, new, now):
    if before.size == now.size:
        batches = f"global batch {now}, as before in other steps ({before})"
    else:
        batches = f"global batch {before} before, now {now}; {now.advice(before.size)}"
    if old.at_end:
        was, is_now = before.optimiser_steps(old.steps), now.optimiser_steps(new.steps)
        return f"{batches}; optimiser steps per epoch: {was} before, now {is_now}"
    repeated = old.step * before.per_step - new.step * now.per_step
    repeated = 0 if new.at_end else repeated
    return (
        f"{batches}; epoch {epoch}, stopped after {old.step} of {old.steps} steps, "
        f"continues after {new.step} of {new.steps}: {repeated} utterance(s) come again"
    )


# Last words of the seeds of one step or round. NumPy pads seeds with zeros, so that
# without them [seed, epoch] and [seed, epoch, 0] would be the same generator.
_STEP_STREAM = 1
_ROUND_STREAM = 2


class Draw(NamedTuple):
    """One utterance of a batch: what a dataset needs to make it.

    ``row`` of the manifest; ``position`` in the epoch's global order; ``epoch``;
    ``n_samples`` of the crop; ``speed_index`` into the dataset's speeds.
    """

    row: int
    position: int
    epoch: int
    n_samples: int
    speed_index: int


@register_checkpoint_hooks
class CropBatchSampler(Sampler):
    """Batches of draws, one crop length per batch.

    The sampler runs ahead of training by what the loader prefetches, so it cannot
    know how far training is. The trainer sets ``step_done`` after each step; a
    checkpoint holds that.

    Arguments
    ---------
    labels : np.ndarray
        [N] int, the speaker of each utterance.
    batch_size : int
        Utterances per batch and process.
    crop_seconds : tuple of float
        Shortest and longest crop; each batch draws its own length, uniformly.
    seed : int
        Not negative.
    rank, world_size : int
        This process and how many there are.
    n_speeds : int
        Each position draws one of as many speeds, uniformly.
    draws_per_epoch : int, optional
        None: an epoch has every utterance once. Otherwise as many draws, balanced over
        speakers: round after round of all speakers, each in an order of its own; the
        next epoch continues the rounds. A speaker's utterances take turns, so that the
        counts of two speakers, or of two utterances of one speaker, never differ by
        more than one. An epoch then costs the same on any corpus.
    sample_rate : int
        Hz.
    n_perturbed : int, optional
        Speakers from this number on keep their true speed, the first one; None: all
        draw.

    Attributes
    ----------
    epoch : int
        Set by ``set_epoch``.
    start_step : int
        The next iteration begins at this step of the epoch.
    step_done : int
        Steps of this epoch that training has finished; set from outside.

    Raises
    ------
    InputError
        Where an argument is out of range, or an epoch has fewer draws than one step.
    """

    def __init__(
        self,
        labels,
        batch_size,
        crop_seconds=(2.0, 3.0),
        seed=0,
        rank=0,
        world_size=1,
        n_speeds=1,
        draws_per_epoch=None,
        sample_rate=SAMPLE_RATE,
        n_perturbed=None,
    ):
        self.labels = np.asarray(labels)
        # Ten million row numbers take 40 MB so, on each rank.
        self._rows = np.int32 if len(self.labels) < 2**31 else np.int64
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.seed = _at_least("seed", seed, 0)
        self.world_size = _at_least("world_size", world_size, 1)
        self.rank = _at_least("rank", rank, 0)
        self.n_speeds = _at_least("n_speeds", n_speeds, 1)
        self.n_perturbed = n_perturbed
        if rank >= world_size:
            raise InputError(f"rank: {rank}, expected less than {world_size} processes")
        self.shortest, self.longest = _crop_range(crop_seconds, sample_rate)
        self.draws_per_epoch = draws_per_epoch
        if draws_per_epoch is None:
            self.n_draws = len(self.labels)
        else:
            self.n_draws = _at_least("draws_per_epoch", draws_per_epoch, 1)
            self._by_speaker, self._counts = self._shuffle_within_speakers()
        self.batches = GlobalBatch(batch_size, world_size)
        if self.n_draws < self.per_step:
            raise InputError(
                f"training data: {self.n_draws} utterances per epoch, expected at "
                f"least {self.per_step} (one batch of {batch_size} for each of "
                f"{world_size} process(es))"
            )
        self.epoch = 0
        self.start_step = 0
        self.step_done = 0

    @property
    def per_step(self):
        """Utterances of one step of all ranks."""
        return self.batches.per_step

    def __len__(self):
        """Steps in a full epoch; the incomplete last global batch is dropped."""
        return self.n_draws // self.per_step

    def set_epoch(self, epoch):
        """Choose the epoch of the next iteration.

        A trainer calls this at the start of every epoch, also of the one it resumes
        in: the step to start from is forgotten only when the epoch changes.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self.start_step = 0
            self.step_done = 0

    def __iter__(self):
        """Yields lists of ``batch_size`` :class:`Draw`, one list per step."""
        epoch = self.epoch
        rows, speeds = self._own_draws(epoch)
        for step in range(self.start_step, len(self)):
            first = step * self.per_step + self.rank
            n_samples = self.crop_samples(epoch, step)
            part = slice(step * self.batch_size, (step + 1) * self.batch_size)
            batch = zip(rows[part].tolist(), self._speeds_of(rows[part], speeds[part]))
            yield [
                Draw(row, first + index * self.world_size, epoch, n_samples, speed)
                for index, (row, speed) in enumerate(batch)
            ]

    def crop_samples(self, epoch, step):
        """Crop length of one step in samples, the same on every rank."""
        generator = np.random.default_rng([self.seed, epoch, step, _STEP_STREAM])
        return int(generator.integers(self.shortest, self.longest, endpoint=True))

    def accumulate(self, steps):
        """Set how many steps make an optimiser step; a resumed run begins with one."""
        self.batches = self.batches._replace(accumulation=steps)

    def state_dict(self):
        """What is needed to resume after the last finished step."""
        position = {"epoch": self.epoch, "step": self.step_done, "steps": len(self)}
        return {**position, **self._identity(), "batches": self.batches._asdict()}

    def load_state_dict(self, state):
        """Resume after the step of ``state``; rank 0 warns where the batches differ.

        Raises
        ------
        InputError
            Where the state is from the middle of an epoch in another order: other
            seed or number of utterances.
        """
        identity = self._identity()
        saved = {name: state[name] for name in identity}
        old = EpochPosition(state["step"], state["steps"])
        if saved != identity and old.step > 0 and not old.at_end:
            raise InputError(
                f"sampler: step {old.step} of an epoch with {saved}, expected "
                f"{identity}: continue with the settings the run was started with"
            )
        self.epoch, before = state["epoch"], GlobalBatch(**state["batches"])
        new, change = resume_position(self.epoch, old, before, self.batches, len(self))
        self.step_done = self.start_step = new.step
        if change and self.rank == 0:
            logger.warning(change)

    @mark_as_saver
    def save(self, path):
        """Write the state as JSON (SpeechBrain's Checkpointer calls this)."""
        write_json(path, self.state_dict())

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read what :meth:`save` wrote (SpeechBrain's Checkpointer calls this)."""
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        if end_of_epoch:
            # Also where the trainer did not count its steps: this epoch is finished.
            state["step"] = state["steps"]
        self.load_state_dict(state)

    def _identity(self):
        return {"seed": self.seed, "draws": self.n_draws, "shard_window": None}

    def _own_draws(self, epoch):
        """This rank's rows and speeds, in its order: [len(self) * batch_size] each."""
        # Copies: a view would keep what belongs to the other ranks.
        own = slice(self.rank, len(self) * self.per_step, self.world_size)
        rows, speeds = self._epoch_order(epoch)
        return rows[own].copy(), speeds[own].copy()

    def _epoch_order(self, epoch):
        """Rows of the manifest and speeds by position: [n_draws] each."""
        generator = np.random.default_rng([self.seed, epoch])
        if self.draws_per_epoch is None:
            order = self._each_once(generator)
        else:
            order = self._balanced_rows(epoch)
        if self.n_speeds == 1:
            speeds = np.zeros(self.n_draws, dtype=np.int8)
        else:
            speeds = generator.integers(self.n_speeds, size=self.n_draws, dtype=np.int8)
        return order, speeds

    def _each_once(self, generator):
        """All rows in the epoch's order: [N]."""
        order = np.arange(self.n_draws, dtype=self._rows)
        generator.shuffle(order)
        return order

    def _speeds_of(self, rows, speeds):
        """Speeds of one batch, the first one where the speaker is not perturbed."""
        if self.n_perturbed is not None:
            speeds = np.where(self.labels[rows] < self.n_perturbed, speeds, 0)
        return speeds.tolist()

    def _shuffle_within_speakers(self):
        """Rows sorted by speaker, in random order inside: [N], and counts [S]."""
        shuffled = np.arange(len(self.labels), dtype=self._rows)
        np.random.default_rng([self.seed]).shuffle(shuffled)
        by_speaker = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        _, counts = np.unique(self.labels, return_counts=True)
        return by_speaker, counts

    def _balanced_rows(self, epoch):
        """The epoch's part of the endless sequence of rounds: [n_draws]."""
        speakers = len(self._counts)
        first = epoch * self.n_draws
        rounds = range(first // speakers, -(-(first + self.n_draws) // speakers))
        rows = np.concatenate([self._round(number) for number in rounds])
        return rows[first - rounds.start * speakers :][: self.n_draws]

    def _round(self, number):
        """One row of every speaker, in random order: [S]."""
        firsts = np.cumsum(self._counts) - self._counts
        rows = self._by_speaker[firsts + number % self._counts]
        order = np.random.default_rng([self.seed, number, _ROUND_STREAM])
        return order.permutation(rows)


def _at_least(name, value, least):
    if value < least:
        raise InputError(f"{name}: {value}, expected at least {least}")
    return value


def _crop_range(crop_seconds, sample_rate):
    samples = [round(seconds * sample_rate) for seconds in crop_seconds]
    if len(samples) != 2 or not 0 < samples[0] <= samples[1]:
        raise InputError(
            f"crop_seconds: {tuple(crop_seconds)}, expected (shortest, longest), "
            "positive and in this order"
        )
    return samples
