"""What docs/gpu.md says fits: choice, page, and memory against a step at full size."""

import pytest
import what_fits
from what_fits import GIB, TOLERANCE, check, choice, peak_of, read_kept, seconds_of

from speechbrain_ext.utils.config import read_tree

CHAINS = what_fits.VOXCELEB.parent / "chains"
# Stages of a pruned encoder or a larger head than the table of their file is for
OTHER_MODELS = [f"{kind}_stage{n}" for kind in ("pruned", "mfa") for n in (2, 3)]

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


def test_the_pages_are_what_the_script_writes(tmp_path, monkeypatch):
    texts = {}
    for page in ("PAGE", "README"):
        texts[page] = getattr(what_fits, page).read_text(encoding="utf-8")
        monkeypatch.setattr(what_fits, page, tmp_path / page)
        (tmp_path / page).write_text(texts[page], encoding="utf-8")
    what_fits.write_pages(read_kept())
    for page, text in texts.items():
        assert (tmp_path / page).read_text(encoding="utf-8") == text
    assert [*read_kept()] == [*what_fits.FILES]  # none is left out


def test_hours_and_disk_of_a_row(monkeypatch):
    """64 crops a step of 1 TFLOP each on one H100: 0.128 s, by hand."""
    monkeypatch.setattr(what_fits, "plan_of", lambda *_: ({1: (0.128, 64)}, 9000, 1))
    assert what_fits.gpu_hours("any", {}, 80) == pytest.approx(0.32)
    found = {"plain": {"trained": [1e9, 0]}}
    assert what_fits.disk_of(found) == 48  # 4 checkpoints of 12 bytes a weight
    assert what_fits.sum_of([1, None]) is None


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        (path.stem, stage["name"])
        for path in sorted(CHAINS.glob("*.yaml"))
        for stage in read_tree(path)["stages"]
        if "seconds_per_step" in stage and stage["name"] not in OTHER_MODELS
    ],
)
def test_chains_plan_with_these_estimates(name, stage):
    """A step of a file's own batch on the card of 80 GB."""
    stages = read_tree(CHAINS / f"{name}.yaml")["stages"]
    stage = next(s for s in stages if s["name"] == stage)
    path = what_fits.VOXCELEB.parent / stage["hparams"]
    file = str(path.relative_to(what_fits.VOXCELEB).with_suffix(""))
    batch = int(read_tree(path)["train_data"]["batch_size"])
    found = seconds_of(read_kept()[file]["plain"], batch, 1, card=80)
    assert stage["seconds_per_step"] == pytest.approx(found, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage2_joint"])
def test_a_step_at_full_size_takes_what_the_page_says(name):
    table, step = check(name)
    assert table == pytest.approx(step, rel=TOLERANCE)
