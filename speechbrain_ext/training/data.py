"""What a run trains on: manifest → crops, their order, batches.

    train_data: !name:speechbrain_ext.training.data.TrainingData
        augmenter: !ref <augmenter>
        speeds: [1.0, 0.9, 1.1]

and the training script calls it with the prepared manifest.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.data.manifest import COLUMNS, read_manifest
from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.data.shards.index import from_shards
from speechbrain_ext.data.shards.order import ShardOrderSampler
from speechbrain_ext.utils.distributed import rank_and_world
from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)

SPEAKER = COLUMNS[-1]


class TrainingData:
    """A training set and the sampler of its batches.

    Arguments
    ---------
    path : str or Path
        Manifest of the training recordings.
    seed : int
    crop_seconds : [float, float]
        Each batch draws one length between the two. Shorter recordings are repeated.
    batch_size : int
        Per process.
    speeds : list of float
        The first is 1.0; each other one makes new speakers of the same voices.
    augmenter : callable, optional
        Without arguments → ``(wav [T], generator)`` → wav, as a partial of
        :class:`~speechbrain_ext.data.augment.Augmenter`. None: clean crops.
    draws_per_epoch : int, optional
        None: every utterance once. A number: balanced over the classes.
    label : str
        Column of the manifest whose values are the classes: speakers, or ``key`` of a
        detection. Speeds make new classes of speakers alone.
    shards : str, optional
        Folder of ``python -m speechbrain_ext shards`` to read the recordings from.
    shard_window : int, optional
        Read shard by shard, mixed within so many utterances. None: in any order.
    max_bad_recordings : int
        So many may be unreadable, per process.
    valid_batch_seconds : float
        Padded seconds of audio in one batch of whole recordings.

    Raises
    ------
    InputError
        A setting out of range; a manifest, shards or noises that are missing, damaged
        or do not belong together.
    """

    def __init__(
        self,
        path,
        seed: NonNegativeInt = 1986,
        crop_seconds: tuple[PositiveFloat, PositiveFloat] = (2.0, 3.0),
        batch_size: PositiveInt = 64,
        speeds: list[float] = (1.0,),
        augmenter: Callable | None = None,
        draws_per_epoch: PositiveInt | None = None,
        shards: str | None = None,
        shard_window: PositiveInt | None = None,
        max_bad_recordings: NonNegativeInt = 0,
        valid_batch_seconds: PositiveFloat = 300,
        label: str = SPEAKER,
    ):
        self.manifest = _labelled(path, label)
        if label != SPEAKER and len(speeds) > 1:
            raise InputError(
                f"speeds: {list(speeds)}, expected [1.0] for classes of {label!r}: a "
                "faster voice is another speaker, and of the same class"
            )
        if shards:
            self.manifest = from_shards(self.manifest, shards)
        self.crop_seconds = crop_seconds
        self.valid_batch_seconds = valid_batch_seconds
        self.n_speeds = len(speeds)
        augmenter = augmenter and augmenter()
        self.dataset = TrainingSet(
            self.manifest, seed, augmenter, speeds, max_bad_recordings
        )
        rank, world = rank_and_world()
        order = (CropBatchSampler,)
        if shard_window is not None:
            order = ShardOrderSampler, self.manifest.paths, shard_window
            logger.info(
                "the order is that of the shards, mixed within %d utterances: other "
                "batches than with shard_window: null",
                shard_window,
            )
        sampler, *arguments = order
        self.sampler = sampler(
            *(*arguments, self.manifest.labels, batch_size),
            crop_seconds=crop_seconds,
            seed=seed,
            rank=rank,
            world_size=world,
            n_speeds=self.n_speeds,
            draws_per_epoch=draws_per_epoch,
            n_perturbed=self.n_perturbed,
        )
        logger.info(
            "training on %d %s, %d utterances, %.1f h",
            *(len(self.speakers), "speakers" if label == SPEAKER else f"{label}s"),
            len(self.manifest),
            self.manifest.durations.sum() / 3600,
        )

    @property
    def speakers(self):
        """Names of the classes in label order, speakers as a rule: list of str."""
        return self.manifest.speaker_names.tolist()

    @property
    def n_perturbed(self):
        """So many speakers, the first, are played at all speeds; None: all."""
        return self.manifest.n_perturbed

    def check_crops(self, encoder):
        """InputError where crops are longer than an encoder takes.

        A warning where they do not fill the window of one that has such a layer.
        """
        longest = encoder.max_samples
        if longest is not None and self.crop_seconds[1] * SAMPLE_RATE > longest:
            raise InputError(
                f"crop_seconds: {self.crop_seconds[1]:g}, expected "
                f"{longest / SAMPLE_RATE:g} or less: {type(encoder).__name__} takes no "
                "longer input"
            )
        fewest, most = getattr(encoder, "fitting_samples", None) or (0, math.inf)
        crops = [round(seconds * SAMPLE_RATE) for seconds in self.crop_seconds]
        if not fewest <= min(crops) <= max(crops) <= most:
            logger.warning(
                "crop_seconds: %g to %g, expected %g, of which %s has one window: "
                "shorter crops are repeated in it, longer ones cut into several",
                *(*self.crop_seconds, fewest / SAMPLE_RATE, type(encoder).__name__),
            )

    def loader(self, num_workers=0, pin_memory=False):
        """Batches of the training set in the sampler's order."""
        return make_loader(self.dataset, self.sampler, num_workers, pin_memory)


def _labelled(path, label):
    """A manifest whose classes are those of a column."""
    manifest = read_manifest(path)
    if label == SPEAKER:
        return manifest
    if label not in manifest.extra:
        known = ", ".join([SPEAKER, *manifest.extra])
        raise InputError(f"{path}: no column {label!r} to train on, expected {known}")
    return replace(manifest, speakers=manifest.extra[label], n_perturbed=None)
