"""What docs/gpu.md says fits: choice, page, and memory against a step at full size."""

import pytest
import what_fits
from what_fits import GIB, TOLERANCE, check, choice, peak_of, read_kept

# A step takes 1 TFLOP and 1 GiB an utterance, beside 2 GiB of which 1 are gradients.
PLAIN = {
    "peak forward": [2 * GIB, 1 * GIB],
    "peak optimiser": [4 * GIB, 0],
    "gradients": [1 * GIB, 0],
    "flops": [0, 1e12],
    "moved": [0, 0],
    "kernels": [1, 0],
}
CHECKPOINTING = {**PLAIN, "peak forward": [2 * GIB, GIB / 4], "flops": [0, 4e12 / 3]}


@pytest.mark.parametrize(
    ("gpus", "card", "expected"),
    [
        (1, 80, (64, 1, "plain")),
        (1, 40, (32, 2, "plain")),
        (2, 24, (16, 2, "plain")),
        (8, 24, (8, 1, "plain")),
        (3, 24, None),  # does not divide
    ],
)
def test_the_fastest_that_fits(gpus, card, expected):
    found = choice({"plain": PLAIN, "checkpointing": CHECKPOINTING}, 64, gpus, card)
    assert (found and found[1:]) == expected


def test_checkpointing_where_nothing_else_fits():
    large = {**PLAIN, "peak forward": [20 * GIB, 4 * GIB]}
    small = {**PLAIN, "peak forward": [8 * GIB, GIB]}
    found = choice({"plain": large, "checkpointing": small}, 16, 2, 24)
    assert found[1:] == (8, 1, "checkpointing")
    assert choice({"plain": large}, 16, 2, 24) is None


def test_memory_is_the_highest_part_and_gradients_that_wait():
    assert peak_of(PLAIN, 1) == 4  # the optimiser's
    assert peak_of(PLAIN, 8) == 10
    assert peak_of(PLAIN, 8, accumulation=2) == 11


def test_the_page_is_what_the_script_writes(tmp_path, monkeypatch):
    text = what_fits.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(what_fits, "PAGE", tmp_path / "gpu.md")
    what_fits.PAGE.write_text(text, encoding="utf-8")
    what_fits.write_page(read_kept())
    assert what_fits.PAGE.read_text(encoding="utf-8") == text
    assert {"stage1_lora_adapter_mfa", "stage2_joint", "prune1_distill"} <= {
        *read_kept()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage2_joint"])
def test_a_step_at_full_size_takes_what_the_page_says(name):
    table, step = check(name)
    assert table == pytest.approx(step, rel=TOLERANCE)
