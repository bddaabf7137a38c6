"""Training shard after shard, for disks that are slow at random access.

An epoch visits the shards in random order, and the utterances of each in the order of
the tar: a stream. Rank r of W takes the r-th of W equal parts of it. It draws utterance
i of its part at the time

    t(i) = i + u(i),    u(i) uniform among 0, 1, …, w − 1,

ties in their order, hence less than w positions from where it lies. At any time all
reads are within w utterances of each other, which the machine's file cache holds, and
an epoch reads each shard once, roughly from beginning to end.

The order is a function of (seed, epoch, number of ranks): as in
:mod:`speechbrain_ext.data.sampler`, neither the number of workers nor an interruption
changes it. An epoch keeps the parts that it began with: more or fewer ranks that
continue it share them, and cut the next epoch anew. The batches differ from those
without shards, and are less mixed.
"""

import numpy as np

from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.data.shards.index import ShardPaths
from speechbrain_ext.utils.errors import InputError


class ShardOrderSampler(CropBatchSampler):
    """A :class:`~speechbrain_ext.data.sampler.CropBatchSampler` in the order of shards.

    Arguments
    ---------
    paths : ShardPaths
        [N], of a manifest from
        :func:`~speechbrain_ext.data.shards.index.from_shards`.
    window : int
        w, utterances of one rank.
    labels, batch_size, **settings
        Of a CropBatchSampler, without ``draws_per_epoch``: an epoch has every utterance
        once.

    Raises
    ------
    InputError
        A setting out of range; recordings that are not in shards, balanced draws, no
        window.
    """

    def __init__(self, paths, window, labels, batch_size, **settings):
        if not isinstance(paths, ShardPaths):
            raise InputError(
                f"shard_window: {window} without shards, expected the folder of some"
            )
        if window < 1:
            raise InputError(f"shard_window: {window}, expected at least 1 utterance")
        if settings.get("draws_per_epoch") is not None:
            raise InputError(
                f"draws_per_epoch: {settings['draws_per_epoch']} with a shard_window, "
                "expected null: balanced draws follow no order of shards"
            )
        super().__init__(labels, batch_size, **settings)
        self.window = window
        self._shard, self._offset = paths.positions()
        self._parts = self._own_parts()

    def set_epoch(self, epoch):
        """Choose the epoch; a new one is cut into parts for the present ranks."""
        if epoch != self.epoch:
            self._parts = self._own_parts()
        super().set_epoch(epoch)

    def state_dict(self):
        """What is needed to resume, with the parts of this epoch."""
        return {**super().state_dict(), "parts": self._parts}

    def load_state_dict(self, state):
        """Resume; this epoch keeps the parts of the state."""
        super().load_state_dict(state)
        if 0 < self.start_step < len(self):
            self._parts = tuple(state["parts"])

    def _own_parts(self):
        """Number of parts, and of utterances in all of them."""
        return self.world_size, len(self) * self.per_step

    def _each_once(self, generator):
        """The epoch's order: W parts in turn, then what was too little for a batch."""
        n_parts, in_parts = self._parts
        stream = self._stream(generator)
        parts = stream[:in_parts].reshape(n_parts, -1)
        time = np.arange(parts.shape[1], dtype=np.int64)
        time = time + generator.integers(self.window, size=parts.shape)
        parts = np.take_along_axis(parts, np.argsort(time, axis=1, kind="stable"), 1)
        return np.concatenate([parts.T.ravel(), stream[in_parts:]])

    def _stream(self, generator):
        """All rows, shard by shard: [N]."""
        turn = generator.permutation(int(self._shard.max()) + 1)
        order = np.lexsort((self._offset, turn[self._shard]))
        return order.astype(self._rows)

    def _identity(self):
        return {**super()._identity(), "shard_window": self.window}
