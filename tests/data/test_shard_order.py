"""Training in the order of shards: each utterance once, near to where it lies, resumed
at any step."""

import json

import numpy as np
import pytest

from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.data.shards.index import ShardPaths
from speechbrain_ext.data.shards.order import ShardOrderSampler
from speechbrain_ext.utils.errors import InputError

N, SHARDS = 603, 12


class Paths(ShardPaths):
    """Utterance i lies in shard (7·i mod 12) at the offset 603 − i."""

    def __init__(self):
        super().__init__(None, None, np.arange(N))

    def positions(self):
        return 7 * self.first % SHARDS, N - self.first


def sampler_of(window=20, batch_size=4, **settings):
    return ShardOrderSampler(
        Paths(), window, np.zeros(N, int), batch_size, seed=5, **settings
    )


def batches_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def rows_of(sampler, epoch=1):
    return [draw.row for batch in batches_of(sampler, epoch) for draw in batch]


def stream_of(rows, shards):
    """Rows sorted as they lie, shard by shard in a given order."""
    return sorted(rows, key=lambda row: (shards.index(7 * row % SHARDS), -row))


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_utterance_once_whatever_the_epoch(world_size):
    seen = []
    for epoch in (1, 2):
        ranks = [
            rows_of(sampler_of(rank=rank, world_size=world_size), epoch)
            for rank in range(world_size)
        ]
        rows = [row for part in ranks for row in part]
        assert len(rows) == len(set(rows)) == N // (4 * world_size) * 4 * world_size
        assert {len(part) for part in ranks} == {len(rows) // world_size}
        seen.append(rows)
    assert seen[0] != seen[1]
    assert rows_of(sampler_of(), 1) == rows_of(sampler_of(), 1)


def test_a_window_of_one_is_the_order_on_the_disk():
    rows = rows_of(sampler_of(window=1))
    shards = list(dict.fromkeys(7 * row % SHARDS for row in rows))
    assert len(shards) == SHARDS
    assert shards != sorted(shards)
    assert rows == stream_of(rows, shards)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_utterance_is_drawn_within_the_window_of_its_place(world_size):
    for rank in range(world_size):
        settings = {"rank": rank, "world_size": world_size}
        stream = rows_of(sampler_of(window=1, **settings))
        rows = rows_of(sampler_of(window=20, **settings))
        # the last of a rank's part may be the first of the next one's: same generator
        assert sorted(rows) == sorted(stream)
        moved = np.array([rows.index(row) for row in stream]) - np.arange(len(stream))
        assert np.abs(moved).max() < 20
        assert len(set(moved)) > 20  # both ways, and not by one step alone


def test_ranks_read_different_shards():
    parts = [set(rows_of(sampler_of(rank=r, world_size=3))) for r in range(3)]
    shards = [{7 * row % SHARDS for row in part} for part in parts]
    for one in range(3):
        assert len(shards[one]) <= SHARDS // 3 + 2
        assert len(shards[one] & shards[one - 1]) <= 1


def test_an_epoch_is_continued_at_any_step():
    whole = sampler_of(n_speeds=3)
    whole.set_epoch(2)
    batches = list(whole)
    for step in (0, 1, 77, len(batches)):
        whole.step_done = step
        resumed = sampler_of(n_speeds=3)
        resumed.load_state_dict(whole.state_dict())
        resumed.set_epoch(2)
        assert list(resumed) == batches[step:]


def all_ranks(batch_size, world_size, state=None):
    """Draws (row, position, speed) of epoch 2 in order, and the last rank's sampler."""
    draws = []
    for rank in range(world_size):
        settings = {"rank": rank, "world_size": world_size, "n_speeds": 3}
        sampler = sampler_of(batch_size=batch_size, **settings)
        if state is not None:
            sampler.load_state_dict(json.loads(json.dumps(state)))
        draws += [draw for batch in batches_of(sampler, 2) for draw in batch]
    draws.sort(key=lambda draw: draw.position)
    return [(d.row, d.position, d.speed_index) for d in draws], sampler


@pytest.mark.parametrize(("batch_size", "world_size"), [(2, 6), (5, 1), (1, 3), (9, 2)])
def test_other_ranks_share_the_parts_of_the_epoch(batch_size, world_size):
    """Its order goes on, to the last utterance but what is too little for a batch."""
    begun, sampler = all_ranks(4, 3)
    assert len(begun) == 600
    sampler.step_done = 20  # 240 utterances
    left, other = all_ranks(batch_size, world_size, sampler.state_dict())
    first = other.start_step * other.per_step
    assert 240 - other.per_step < first <= 240
    assert left[: 600 - first] == begun[first:][: len(left)]
    seen = [row for row, *_ in begun[:first] + left]
    assert len(seen) == len(set(seen)) == N // other.per_step * other.per_step
    other.step_done = 30
    again, sampler = all_ranks(4, 3, other.state_dict())
    assert again == begun[sampler.start_step * 12 :]
    # the next epoch is one of their own
    assert rows_of(other, 3) == rows_of(
        sampler_of(
            batch_size=batch_size,
            world_size=world_size,
            rank=world_size - 1,
            n_speeds=3,
        ),
        3,
    )


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (lambda: sampler_of(), lambda: sampler_of(window=21)),
        (lambda: sampler_of(), lambda: CropBatchSampler(np.zeros(N, int), 4, seed=5)),
        (lambda: CropBatchSampler(np.zeros(N, int), 4, seed=5), lambda: sampler_of()),
    ],
)
def test_another_order_is_not_continued_with(saved, loaded):
    sampler = saved()
    sampler.step_done = 3
    with pytest.raises(InputError, match="sampler: step 3 of an epoch with"):
        loaded().load_state_dict(sampler.state_dict())


def test_settings_out_of_range():
    with pytest.raises(InputError, match="shard_window: 0, expected at least 1"):
        sampler_of(window=0)
    with pytest.raises(InputError, match="draws_per_epoch: 50 with a shard_window"):
        sampler_of(draws_per_epoch=50)
    with pytest.raises(InputError, match="shard_window: 5 without shards"):
        ShardOrderSampler(np.array(["a.wav"]), 5, np.zeros(1, int), 1)
