"""Random crops for training: from draws to batches, by workers, over bad recordings.

An item is a function of (seed, epoch, position) and the recording alone: which worker
makes it, and how many there are, changes nothing.

A disk that loses one file of ten million should not end a run of two weeks; one that
loses a shard should. So a stated number of recordings may be bad, each is named once,
and one more ends the run.
"""

import logging
import multiprocessing
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.data.augment.waveform import SpeedPerturb, read_crop
from speechbrain_ext.data.labels import Classes
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import START_METHOD, signals_held, start_worker

logger = logging.getLogger(__name__)

# Last word of an item's seed; the sampler's own streams end otherwise.
_ITEM_STREAM = 2


@dataclass
class Batch:
    """A training batch.

    ``wavs`` [B, T] float32 at 16 kHz, all of full length; ``labels`` [B] int64;
    ``ids`` list of B str.
    """

    wavs: torch.Tensor
    labels: torch.Tensor
    ids: list

    def __len__(self):
        return len(self.ids)

    def __reduce__(self):
        # a worker opens a connection for each tensor: too dear for labels
        return _from_worker, (self.wavs, self.labels.cpu().numpy(), self.ids)

    def to(self, device, non_blocking=True):
        """The same batch on ``device``."""
        wavs = self.wavs.to(device, non_blocking=non_blocking)
        labels = self.labels.to(device, non_blocking=non_blocking)
        return Batch(wavs, labels, self.ids)

    def pin_memory(self):
        """The same batch in page-locked memory (torch's loader calls this)."""
        return Batch(self.wavs.pin_memory(), self.labels.pin_memory(), self.ids)


def _from_worker(wavs, labels, ids):
    return Batch(wavs, torch.from_numpy(labels).to(wavs.device), ids)


class TrainingSet(Dataset):
    """Random crops of a manifest's recordings.

    Arguments
    ---------
    manifest : Manifest
        N recordings of S speakers.
    seed : int
        Not negative.
    augmenter : callable, optional
        ``(wav [T], generator)`` → wav [T].
    speeds : tuple of float
        The first is 1.0. A voice played faster is another voice, hence another class
        (:mod:`speechbrain_ext.data.labels`), for the speakers whom the manifest has
        perturbed.
    max_bad_recordings : int
        So many recordings that cannot be read are named and passed over: another row,
        drawn by the item's own generator, takes the place of each.

    Attributes
    ----------
    n_classes : int
        S × number of speeds where all are.
    """

    def __init__(
        self, manifest, seed, augmenter=None, speeds=(1.0,), max_bad_recordings=0
    ):
        self.manifest = manifest
        self.seed = seed
        self.augmenter = augmenter
        self.speed = SpeedPerturb(speeds)
        self.labels = manifest.labels
        self.classes = Classes(
            len(manifest.speaker_names), len(self.speed.speeds), manifest.n_perturbed
        )
        self.n_classes = self.classes.count
        self.bad = _BadRecordings(max_bad_recordings)

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, draw):
        """Make one item.

        Arguments
        ---------
        draw : Draw
            From the sampler.

        Returns
        -------
        dict
            ``wav`` float32 tensor [draw.n_samples], ``label`` int, ``id`` str. Only
            the crop is read; a recording shorter than it is repeated.

        Raises
        ------
        InputError
            Names a recording that cannot be read, or is shorter than its manifest
            says, and is one too many.
        """
        words = [self.seed, draw.epoch, draw.position, _ITEM_STREAM]
        generator = np.random.default_rng(words)
        row, speed_index, wav = self._read(draw, generator)
        if self.augmenter is not None:
            wav = self.augmenter(wav, generator)
        label = self.classes.class_of(int(self.labels[row]), speed_index)
        wav = torch.from_numpy(np.ascontiguousarray(wav))
        return {"wav": wav, "label": label, "id": self.manifest.ids[row]}

    def _read(self, draw, generator):
        """(row, speed index, float32 [draw.n_samples]); another row for a bad one."""
        row, speed_index = draw.row, draw.speed_index
        while True:
            speed = self.speed.speeds[speed_index]
            try:
                wav = read_crop(
                    self.manifest.paths[row],
                    # For all rows at once, 10 million would take 80 MB.
                    round(self.manifest.durations[row] * SAMPLE_RATE),
                    self.speed.source_length(draw.n_samples, speed),
                    generator,
                )
            except InputError as error:
                self.bad.add(row, error)
                row = int(generator.integers(len(self)))
                perturbed = self.labels[row] < self.classes.perturbed
                speed_index = draw.speed_index if perturbed else 0
            else:
                return row, speed_index, self.speed.apply(wav, speed)[: draw.n_samples]

    @staticmethod
    def collate(items):
        """Items of equal length → :class:`Batch`."""
        return Batch(
            # of torch: a worker stacks into the memory that it hands over
            default_collate([item["wav"] for item in items]),
            torch.tensor([item["label"] for item in items], dtype=torch.int64),
            [item["id"] for item in items],
        )


class _BadRecordings:
    """The bad recordings that a process and its loader workers have met."""

    def __init__(self, limit):
        if limit < 0:
            raise InputError(f"max_bad_recordings: {limit}, expected at least 0")
        self.limit = limit
        # Row numbers, -1 in empty slots; shared with the workers.
        context = multiprocessing.get_context(START_METHOD)
        self._rows = context.Array("q", [-1] * limit) if limit else None

    def __len__(self):
        return 0 if self._rows is None else sum(row >= 0 for row in self._rows[:])

    def add(self, row, error):
        """Count a row of the manifest once; raise ``error`` beyond the limit."""
        if self._rows is None:
            raise error
        with self._rows.get_lock():
            rows = self._rows[:]
            if row in rows:
                return
            if -1 not in rows:
                raise InputError(
                    f"{error} ({self.limit + 1} bad recordings, expected at most "
                    f"max_bad_recordings={self.limit})"
                ) from error
            count = rows.index(-1)
            self._rows[count] = row
        logger.warning(
            "%s; another is drawn in its place (%d of at most %d)",
            *(error, count + 1, self.limit),
        )


class _BatchOrError(Dataset):
    """Whole batches of a dataset, or the InputError of an item in place of its batch.

    torch would raise it again with the worker's whole traceback for a message.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitems__(self, keys):
        try:
            items = [self.dataset[key] for key in keys]
        except InputError as error:
            return error
        return self.dataset.collate(items)


def _unchanged(batch):
    return batch


class _TimedLoader(DataLoader):
    """Raises such errors, ends its workers, and measures the time spent waiting."""

    _began, _waited = 0.0, 0.0

    def close(self):
        """End the workers. At exit torch would wait five seconds for each."""
        workers, self._iterator = self._iterator, None
        if workers is not None:
            workers._shutdown_workers()

    def share_waited(self):
        """Share of the time since the last iteration began that was spent waiting."""
        elapsed = time.perf_counter() - self._began
        return min(self._waited / elapsed, 1.0) if elapsed > 0 else 0.0

    def __iter__(self):
        self._began, self._waited = time.perf_counter(), 0.0
        with signals_held():
            batches = super().__iter__()
        self._waited = time.perf_counter() - self._began
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            if isinstance(batch, InputError):
                raise batch
            yield batch


def make_loader(dataset, sampler, num_workers=0, pin_memory=False):
    """A loader whose errors are as short with workers as without.

    Arguments
    ---------
    dataset : TrainingSet
        Or another dataset with a ``collate``.
    sampler : iterable
        Of batches of what the dataset takes, such as a ``CropBatchSampler``.
    num_workers : int
        Processes; 0 reads in this one. They stay alive from epoch to epoch, and
        torch gives each one thread.
    pin_memory : bool
        For copies to a GPU that overlap with its work.

    Returns
    -------
    torch.utils.data.DataLoader
        Raises InputError in this process where an item does, with the same message.
        ``close()`` ends its workers, ``share_waited()`` is the share of an epoch's
        time that was spent waiting for them.

    Raises
    ------
    InputError
        A negative number of workers.
    """
    if num_workers < 0:
        raise InputError(f"num_workers: {num_workers}, expected 0 or more")
    return _TimedLoader(
        _BatchOrError(dataset),
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        persistent_workers=num_workers > 0,
        multiprocessing_context=START_METHOD if num_workers else None,
        worker_init_fn=start_worker,
        # A generator of its own: each iteration draws a seed for the workers, and
        # drawing it from torch's would make a resumed run differ from an unbroken one.
        generator=torch.Generator(),
    )


def length_batches(durations, max_batch_seconds, max_batch_size=256):
    """Group recordings of similar length, for little padding.

    Arguments
    ---------
    durations : np.ndarray
        [N] seconds.
    max_batch_seconds : float
        Of a padded batch: longest × count. A single longer recording is a batch of
        its own.
    max_batch_size : int
        Recordings per batch.

    Returns
    -------
    list of np.ndarray
        Row numbers, each once; the longest first, so that a batch too large for the
        memory shows at once.
    """
    if not max_batch_seconds > 0 or max_batch_size < 1:
        raise InputError(
            f"batches of {max_batch_seconds} s and {max_batch_size} recordings, "
            "expected both to be positive"
        )
    durations = np.asarray(durations)
    order = np.argsort(-durations, kind="stable")
    batches, first = [], 0
    while first < len(order):
        count = min(max_batch_seconds / durations[order[first]], max_batch_size)
        count = max(int(count), 1)
        batches.append(order[first : first + count])
        first += count
    return batches
