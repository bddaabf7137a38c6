"""Global batches: their size, how to keep it, where to resume with another one."""

import pytest

from speechbrain_ext.data.sampler import EpochPosition, GlobalBatch, resume_position
from speechbrain_ext.training.resumable import log_plan
from speechbrain_ext.utils.errors import InputError

PUBLISHED = GlobalBatch(64, 8, 1)


def resumed(old, before, now, steps):
    return resume_position(3, EpochPosition(*old), before, now, steps)


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
def test_another_batch_resumes_before_what_is_not_trained_on(now, steps, step, again):
    position, text = resumed((30, 100), PUBLISHED, now, steps)
    assert position == (step, steps)
    assert f"stopped after 30 of 100 steps, continues after {step} of {steps}" in text
    assert text.endswith(f": {again} utterance(s) come again")
    assert ("as before in other steps" in text) == (now.size == 512)


def test_the_same_steps_are_no_change():
    for now in (PUBLISHED, GlobalBatch(128, 4), GlobalBatch(512, 1)):
        assert resumed((30, 100), PUBLISHED, now, 100) == ((30, 100), None)
    # but a group of other steps begins with its first
    position, text = resumed((30, 100), PUBLISHED, GlobalBatch(64, 8, 4), 100)
    assert position == (28, 100)
    assert "1024 utterance(s) come again" in text


def test_a_finished_epoch_stays_finished():
    position, text = resumed((7, 7), GlobalBatch(4, 1), GlobalBatch(4, 2, 2), 3)
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
