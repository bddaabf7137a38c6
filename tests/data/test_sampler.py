"""The batch sampler: each utterance once, the same on every rank, resumable; and
global batches: their size, how to keep it, where another one continues."""

import itertools

import numpy as np
import pytest
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_ext.data.sampler import (
    CropBatchSampler,
    EpochPosition,
    GlobalBatch,
    resume_position,
)
from speechbrain_ext.training.resumable import log_plan
from speechbrain_ext.utils.errors import InputError

PUBLISHED = GlobalBatch(64, 8, 1)
LABELS = np.repeat(np.arange(7), [1, 2, 3, 10, 20, 30, 37])  # 103 utterances


def batches(sampler, epoch=1):
    sampler.set_epoch(epoch)
    return list(sampler)


def flat(all_batches):
    return list(itertools.chain.from_iterable(all_batches))


def test_an_epoch_has_every_utterance_once_but_the_dropped_tail():
    sampler = CropBatchSampler(LABELS, 10)
    drawn = flat(batches(sampler))
    assert len(sampler) == 10
    assert len({draw.row for draw in drawn}) == len(drawn) == 100
    assert [draw.position for draw in drawn] == list(range(100))
    # The tail is another one in the next epoch.
    again = {draw.row for draw in flat(batches(sampler, 2))}
    assert again != {draw.row for draw in drawn}


def test_batches_depend_on_seed_and_epoch_alone():
    first = batches(CropBatchSampler(LABELS, 10, seed=5, n_speeds=3))
    assert batches(CropBatchSampler(LABELS, 10, seed=5, n_speeds=3)) == first
    assert batches(CropBatchSampler(LABELS, 10, seed=6, n_speeds=3)) != first
    assert batches(CropBatchSampler(LABELS, 10, seed=5, n_speeds=3), 2) != first


@pytest.mark.parametrize("draws_per_epoch", [None, 140])
@pytest.mark.parametrize("world_size", [2, 5])
def test_global_batches_are_the_same_on_any_number_of_ranks(
    world_size, draws_per_epoch
):
    settings = {"n_speeds": 3, "draws_per_epoch": draws_per_epoch}
    alone = batches(CropBatchSampler(LABELS, 20, **settings))
    ranks = [
        batches(
            CropBatchSampler(
                LABELS, 20 // world_size, rank=r, world_size=world_size, **settings
            )
        )
        for r in range(world_size)
    ]
    assert all(len(rank) == len(alone) for rank in ranks)
    for step, expected in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        # Interleaved: rank r has elements r, r + W, ... and the same crop length.
        assert [draw for group in zip(*parts) for draw in group] == expected


@pytest.mark.parametrize("n_speeds", [1, 3])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_order_is_that_of_one_permutation(world_size, n_speeds):
    """Against the definition, written out: rows, speeds and positions of a rank."""
    sampler = CropBatchSampler(
        *(LABELS, 4),
        seed=9,
        rank=world_size - 1,
        world_size=world_size,
        n_speeds=n_speeds,
    )
    random = np.random.default_rng([9, 2])
    rows = random.permutation(len(LABELS))
    speeds = random.integers(n_speeds, size=len(LABELS), dtype=np.int8)
    if n_speeds == 1:
        speeds[:] = 0
    for step, batch in enumerate(batches(sampler, 2)):
        for place, draw in enumerate(batch):
            position = (4 * step + place) * world_size + world_size - 1
            assert draw.position == position
            assert draw.row == rows[position]
            assert draw.speed_index == speeds[position]


def test_one_crop_length_per_batch_uniform_over_the_range():
    sampler = CropBatchSampler(np.zeros(3000), 2, crop_seconds=(2.0, 3.0))
    lengths = [{draw.n_samples for draw in batch} for batch in batches(sampler)]
    assert all(len(found) == 1 for found in lengths)
    lengths = np.array([found.pop() for found in lengths])
    assert lengths.min() >= 32000
    assert lengths.max() <= 48000
    # Mean of 1500 uniform draws: standard error 16000 / sqrt(12 * 1500) = 119.
    assert abs(lengths.mean() - 40000) < 600
    assert abs(np.mean(lengths < 36000) - 0.25) < 0.06
    fixed = CropBatchSampler(LABELS, 4, crop_seconds=(4, 4))
    assert {draw.n_samples for draw in flat(batches(fixed))} == {64000}


def test_speeds_are_uniform_and_independent_of_the_order():
    sampler = CropBatchSampler(np.zeros(30_000), 100, n_speeds=3)
    drawn = flat(batches(sampler))
    counts = np.bincount([draw.speed_index for draw in drawn])
    assert len(counts) == 3
    assert np.all(np.abs(counts - 10_000) < 500)  # six standard deviations
    speed_by_row = np.array([d.speed_index for d in sorted(drawn)])
    assert abs(np.corrcoef(speed_by_row, np.arange(30_000))[0, 1]) < 0.03
    assert {d.speed_index for d in flat(batches(CropBatchSampler(LABELS, 10)))} == {0}


def test_balanced_epochs_use_speakers_equally_and_utterances_evenly():
    sampler = CropBatchSampler(LABELS, 5, draws_per_epoch=7 * 15, seed=2)
    assert len(sampler) == 7 * 15 // 5
    used = np.zeros(len(LABELS), dtype=int)
    for epoch in (0, 1, 2):
        rows = [draw.row for draw in flat(batches(sampler, epoch))]
        assert np.all(np.bincount(LABELS[rows]) == 15)
        used += np.bincount(rows, minlength=len(LABELS))
        for speaker in range(7):
            counts = used[speaker == LABELS]
            assert counts.max() - counts.min() <= 1
    # Speakers are mixed, not visited one after the other.
    assert len(set(LABELS[rows[:15]])) > 3


def test_balanced_epochs_of_any_length_go_on_where_the_last_one_ended():
    short = CropBatchSampler(LABELS, 5, draws_per_epoch=10, seed=3)
    rows = [draw.row for epoch in range(8) for draw in flat(batches(short, epoch))]
    speakers = LABELS[rows]
    # 80 draws are eleven rounds of all seven speakers and three more
    rounds = speakers[:77].reshape(11, 7)
    assert np.all(np.sort(rounds, axis=1) == np.arange(7))
    assert len({tuple(order) for order in rounds.tolist()}) > 1
    counts = np.bincount(speakers)
    assert counts.max() - counts.min() <= 1


def test_balanced_sampling_takes_labels_of_any_order_and_gaps():
    labels = np.random.default_rng(0).permutation(LABELS * 10 + 3)
    balanced = CropBatchSampler(labels, 7, draws_per_epoch=14)
    rows = [draw.row for draw in flat(batches(balanced))]
    names, counts = np.unique(labels[rows], return_counts=True)
    assert names.tolist() == np.unique(labels).tolist()
    assert np.all(counts == 2)


def test_resuming_gives_the_remaining_batches(tmp_path):
    whole = batches(CropBatchSampler(LABELS, 10, seed=1, n_speeds=3), epoch=3)
    following = batches(CropBatchSampler(LABELS, 10, seed=1, n_speeds=3), epoch=4)

    broken = CropBatchSampler(LABELS, 10, seed=1, n_speeds=3)
    broken.set_epoch(3)
    running = iter(broken)
    for _ in range(6):  # the loader is two batches ahead of training
        next(running)
    broken.step_done = 4
    Checkpointer(tmp_path, {"sampler": broken}).save_checkpoint(end_of_epoch=False)

    resumed = CropBatchSampler(LABELS, 10, seed=1, n_speeds=3)
    checkpointer = Checkpointer(tmp_path, {"sampler": resumed})
    assert checkpointer.recover_if_possible() is not None
    assert len(resumed) == 10
    resumed.set_epoch(3)  # as a trainer does in the epoch it resumes in
    assert resumed.step_done == 4
    assert list(resumed) == whole[4:]
    assert batches(resumed, epoch=4) == following
    assert resumed.step_done == 0


def test_the_position_is_kept_on_another_number_of_ranks():
    saved = CropBatchSampler(LABELS, 20, seed=1)
    whole = batches(saved, epoch=2)
    saved.step_done = 3
    resumed = CropBatchSampler(LABELS, 10, seed=1, rank=1, world_size=2)
    resumed.load_state_dict(saved.state_dict())
    resumed.set_epoch(2)
    assert list(resumed) == [batch[1::2] for batch in whole[3:]]


def test_a_checkpoint_at_the_end_of_an_epoch_goes_on_with_the_next(tmp_path, caplog):
    sampler = CropBatchSampler(LABELS, 10)
    sampler.set_epoch(1)  # and nobody counted the steps
    Checkpointer(tmp_path, {"sampler": sampler}).save_checkpoint(end_of_epoch=True)
    # Another stage, with larger batches, may start from it.
    resumed = CropBatchSampler(LABELS, 50)
    Checkpointer(tmp_path, {"sampler": resumed}).recover_if_possible()
    assert list(resumed) == []
    assert len(batches(resumed, epoch=2)) == 2
    (message,) = [m for m in caplog.messages if "global batch" in m]
    assert message.endswith("optimiser steps per epoch: 10 before, now 2")


@pytest.mark.parametrize("draws_per_epoch", [None, 140])
@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulation", "start"),
    [(5, 1, 1, 12), (5, 1, 5, 10), (7, 1, 1, 8), (10, 3, 1, 2), (2, 3, 2, 10)],
)
def test_other_batches_go_on_at_the_position(
    batch_size, world_size, accumulation, start, draws_per_epoch
):
    settings = {"seed": 1, "n_speeds": 3, "draws_per_epoch": draws_per_epoch}
    saved = CropBatchSampler(LABELS, 20, **settings)
    order = [
        d[:3] + d[4:] for d in flat(batches(CropBatchSampler(LABELS, 1, **settings)))
    ]
    saved.set_epoch(1)
    saved.step_done = 3  # 60 utterances
    settings["world_size"] = world_size
    left = []
    for rank in range(world_size):
        resumed = CropBatchSampler(LABELS, batch_size, rank=rank, **settings)
        resumed.accumulate(accumulation)
        resumed.load_state_dict(saved.state_dict())
        assert resumed.start_step == resumed.step_done == start
        left.append(batches(resumed))
        # once more, and with what it says itself
        again = CropBatchSampler(LABELS, batch_size, rank=rank, **settings)
        again.load_state_dict(resumed.state_dict())
        assert batches(again) == left[-1]
    left = sorted(flat(flat(left)), key=lambda draw: draw.position)
    first = start * batch_size * world_size
    assert first <= 60
    assert [d[:3] + d[4:] for d in left] == order[first : first + len(left)]
    assert len(order) - first - len(left) < batch_size * world_size


def test_a_change_is_told_once_and_none_is_not(caplog):
    saved = CropBatchSampler(LABELS, 20, seed=1)
    saved.step_done = 3
    same = CropBatchSampler(LABELS, 10, seed=1, world_size=2)
    same.load_state_dict(saved.state_dict())
    assert caplog.messages == []
    for rank in (0, 1):
        other = CropBatchSampler(LABELS, 5, seed=1, world_size=2, rank=rank)
        other.load_state_dict(saved.state_dict())
    assert caplog.messages == [
        "global batch 20 = 20 × 1 process(es) × accumulation 1 before, now 10 = 5 × 2 "
        "process(es) × accumulation 1; 20 needs --batch_size=10 or "
        "--grad_accumulation_factor=2; epoch 0, stopped after 3 of 5 steps, continues "
        "after 6 of 10: 0 utterance(s) come again"
    ]


def test_a_batch_too_large_for_what_is_left_ends_the_epoch():
    saved = CropBatchSampler(LABELS, 10)
    saved.set_epoch(1)
    saved.step_done = 9
    resumed = CropBatchSampler(LABELS, 60)
    resumed.load_state_dict(saved.state_dict())
    assert batches(resumed) == []
    assert len(batches(resumed, 2)) == 1


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"draws_per_epoch": 50}, {"labels": LABELS[:-1]}]
)
def test_the_middle_of_another_order_is_refused(other):
    settings = {"labels": LABELS, "batch_size": 10, "seed": 1}
    sampler = CropBatchSampler(**settings)
    sampler.step_done = 5
    with pytest.raises(InputError, match="step 5 of an epoch with"):
        CropBatchSampler(**{**settings, **other}).load_state_dict(sampler.state_dict())


def test_too_few_utterances_says_both_numbers():
    with pytest.raises(InputError, match=r"103 utterances.*at least 128"):
        CropBatchSampler(LABELS, 32, world_size=4)
    with pytest.raises(InputError, match=r"7 utterances.*at least 8"):
        CropBatchSampler(LABELS, 8, draws_per_epoch=7)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"batch_size": 0}, "batch_size: 0, expected at least 1"),
        ({"seed": -1}, "seed: -1"),
        ({"n_speeds": 0}, "n_speeds: 0"),
        ({"draws_per_epoch": 0}, "draws_per_epoch: 0"),
        ({"rank": 2, "world_size": 2}, "rank: 2, expected less than 2"),
        ({"crop_seconds": (3, 2)}, r"crop_seconds: \(3, 2\)"),
        ({"crop_seconds": (0, 2)}, r"crop_seconds: \(0, 2\)"),
    ],
)
def test_arguments_out_of_range(arguments, expected):
    with pytest.raises(InputError, match=expected):
        CropBatchSampler(**{"labels": LABELS, "batch_size": 2, **arguments})


# ---- global batches ------------------------------------------------------------------


def test_the_size_is_the_product_and_is_said():
    batches = GlobalBatch(64, 2, 3)
    assert (batches.per_step, batches.size) == (128, 384)
    assert str(batches) == "384 = 64 × 2 process(es) × accumulation 3"
    assert [batches.optimiser_steps(n) for n in (1, 3, 4)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("batches", "advice"),
    [
        (GlobalBatch(64, 4), "--batch_size=128 or --grad_accumulation_factor=2"),
        (GlobalBatch(64, 16), "--batch_size=32"),
        (GlobalBatch(48, 4), "--batch_size=128"),
        (GlobalBatch(64, 4, 3), "--grad_accumulation_factor=2"),
        (GlobalBatch(48, 4, 3), "--batch_size=128 --grad_accumulation_factor=1"),
        (GlobalBatch(64, 3), "a number of processes that divides it"),
    ],
)
def test_advice_makes_the_size(batches, advice):
    assert batches.advice(512) == f"512 needs {advice}"
    for choice in advice.split(" or ") if "--" in advice else ():
        words = dict(word[2:].split("=") for word in choice.split())
        size = int(words.get("batch_size", batches.batch_size))
        accumulation = int(words.get("grad_accumulation_factor", batches.accumulation))
        assert GlobalBatch(size, batches.processes, accumulation).size == 512


@pytest.mark.parametrize(
    ("now", "steps", "step", "again"),
    [
        (GlobalBatch(32, 8), 200, 60, 0),
        (GlobalBatch(64, 2, 4), 400, 120, 0),
        (GlobalBatch(64, 3), 266, 80, 0),
        (GlobalBatch(64, 3, 3), 266, 78, 2 * 192),
        (GlobalBatch(100, 9), 56, 17, 30 * 512 - 17 * 900),
        (GlobalBatch(4000, 4), 3, 0, 30 * 512),
        (GlobalBatch(15000, 1), 1, 1, 0),  # the rest is less than a batch
    ],
)
def test_another_batch_goes_on_before_what_is_left(now, steps, step, again):
    position, text = resume_position(3, EpochPosition(30, 100), PUBLISHED, now, steps)
    assert position == (step, steps)
    assert f"stopped after 30 of 100 steps, continues after {step} of {steps}" in text
    assert text.endswith(f": {again} utterance(s) come again")
    assert ("as before in other steps" in text) == (now.size == 512)


def test_the_same_steps_are_no_change():
    for now in (PUBLISHED, GlobalBatch(128, 4), GlobalBatch(512, 1)):
        assert resume_position(3, EpochPosition(30, 100), PUBLISHED, now, 100) == (
            (30, 100),
            None,
        )
    # but a group of other steps begins with its first
    position, text = resume_position(
        3, EpochPosition(30, 100), PUBLISHED, GlobalBatch(64, 8, 4), 100
    )
    assert position == (28, 100)
    assert "1024 utterance(s) come again" in text


def test_a_finished_epoch_stays_finished():
    position, text = resume_position(
        3, EpochPosition(7, 7), GlobalBatch(4, 1), GlobalBatch(4, 2, 2), 3
    )
    assert position.at_end
    assert position.steps == 3
    assert text.endswith("optimiser steps per epoch: 7 before, now 2")


# ---- the plan of a run ---------------------------------------------------------------


def planned(caplog, *arguments, **options):
    caplog.set_level("INFO")
    log_plan(*arguments, **options)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_the_plan_is_said_in_optimiser_steps(caplog):
    assert planned(caplog, GlobalBatch(64, 8, 2), 7, 15, wanted=1024) == [
        (
            "INFO",
            "global batch 1024 = 64 × 8 process(es) × accumulation 2; optimiser steps: "
            "4 per epoch, 60 in 15 epoch(s)",
        )
    ]


def test_another_global_batch_than_the_files_is_warned_of(caplog):
    _, (level, text) = planned(caplog, GlobalBatch(64, 4), 10, 1, wanted=512)
    assert level == "WARNING"
    assert text == (
        "learning rate and epochs are set for a global batch of 512, not 256; 512 "
        "needs --batch_size=128 or --grad_accumulation_factor=2"
    )


def test_a_warm_up_in_steps_is_told_in_epochs_and_must_fit(caplog):
    lines = planned(caplog, GlobalBatch(64, 4), 10, 2, warmup=20)
    assert lines[1:] == [("INFO", "warm-up of 20 steps: 2.00 epochs")]
    caplog.clear()
    *_, (level, text) = planned(caplog, GlobalBatch(64, 4), 10, 2, warmup=21)
    assert level == "WARNING"
    assert (
        text
        == "warm-up of 21 optimiser steps, but there are 20: its end is not reached"
    )


@pytest.mark.parametrize("wanted", [0, -1, 2.5, "many"])
def test_a_wanted_batch_is_a_number(wanted):
    with pytest.raises(InputError, match=f"global_batch: {wanted}, expected"):
        log_plan(GlobalBatch(1, 1), 1, 1, wanted=wanted)
