"""Shard after shard: an order of training for disks that are slow at jumping about.

The shards of an epoch come in random order, one after the other, and the utterances in
each as they lie there: a stream. Rank r of W takes the r-th of W equal parts of it. In
its part utterance i is drawn at the time

    t(i) = i + u(i),    u(i) uniform among 0, 1, …, w − 1,

ties in their order: never more than w places from where it lies. So what is being read
at any time lies within w utterances of each other, which the machine's cache of files
holds, and each shard is read once an epoch, more or less from its beginning to its end.

All follows from (seed, epoch, number of ranks): as in
:mod:`speechbrain_ext.data.sampler`, neither the number of workers nor an interruption
changes it. An epoch keeps the parts that it was begun with: where more or fewer ranks
continue it they share those, and take parts of their own in the next epoch. The batches
are other ones than without shards, and less mixed.
"""

import numpy as np

from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.data.shards.index import PlaceColumn
from speechbrain_ext.utils.errors import InputError


class ShardOrderSampler(CropBatchSampler):
    """A :class:`~speechbrain_ext.data.sampler.CropBatchSampler` in the order of shards.

    Arguments
    ---------
    paths : PlaceColumn
        [N], of a manifest from
        :func:`~speechbrain_ext.data.shards.index.from_shards`.
    window : int
        w, utterances of one rank.
    labels, batch_size, **settings
        As there, without ``draws_per_epoch``: an epoch has every utterance once.

    Raises
    ------
    InputError
        As there; recordings that are not in shards, balanced draws, no window.
    """

    def __init__(self, paths, window, labels, batch_size, **settings):
        if not isinstance(paths, PlaceColumn):
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
        """As there; another epoch is cut into parts for the ranks of now."""
        if epoch != self.epoch:
            self._parts = self._own_parts()
        super().set_epoch(epoch)

    def state_dict(self):
        """As there, and the parts of this epoch."""
        return {**super().state_dict(), "parts": self._parts}

    def load_state_dict(self, state):
        """As there; this epoch goes on in the parts of the state."""
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
