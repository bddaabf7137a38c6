"""Extraction by several processes: killed, in other numbers, at once, one failing."""

import contextlib
import os
import signal
import time

import pytest
from tiny_extraction import (
    OPTIONS,
    N,
    assert_whole,
    at_batch,
    begin,
    go_on,
    make_model,
    manifest,
    parts_of,
    path,
    recording,
    unbroken,
)
from tiny_training import in_processes, start
from torch.distributed import get_rank

from speechbrain_ext.inference.extraction import embed_to_file
from speechbrain_ext.utils.errors import InputError, command_line

__all__ = ["manifest", "path", "unbroken"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")

WORLDS = [(1, 1), (1, 2), (2, 1), (2, 3)]


def _embed_and_be_killed(manifest, path, world):
    """Each rank is killed at its third batch, when all parts before it are there."""

    def kill():
        while len(parts_of(path)) < 2 * world:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    embed_to_file(at_batch(2, kill), manifest, path, save_every=0, **OPTIONS)


def _go_on(manifest, path, counts):
    vectors, embedded = go_on(manifest, path)
    assert (vectors is None) == (get_rank() > 0)
    (counts / str(get_rank())).write_text(str(embedded))


@pytest.mark.parametrize(("before", "after"), WORLDS)
def test_killed_and_continued_by_others(
    manifest, path, unbroken, tmp_path, before, after
):
    codes = in_processes(_embed_and_be_killed, before, manifest, path, before)
    assert codes == [-signal.SIGKILL] * before
    assert not path.exists()
    counts = tmp_path / "counts"
    counts.mkdir()
    assert in_processes(_go_on, after, manifest, path, counts) == [0] * after
    embedded = [int(file.read_text()) for file in counts.iterdir()]
    assert len(embedded) == after
    assert sum(embedded) == N - 2 * before
    assert min(embedded) > 0
    assert_whole(path, manifest, unbroken)


def test_a_finished_file_is_taken_by_all_ranks(manifest, path, unbroken, tmp_path):
    go_on(manifest, path)
    assert in_processes(_go_on, 2, manifest, path, tmp_path) == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["0", "0"]
    assert_whole(path, manifest, unbroken)


# ---- at once -------------------------------------------------------------------------


def _wait_at_a_gate(manifest, path, gate, save_every):
    """Embed three batches, then stand still until somebody opens the gate."""

    def stand_still():
        with open(gate) as reader:
            reader.read()

    model = at_batch(3, stand_still)
    embed_to_file(model, manifest, path, save_every=save_every, **OPTIONS)


def arrival(gate, process):
    """Wait for a process at its gate → a descriptor; closing it opens the gate."""
    while process.is_alive():
        with contextlib.suppress(OSError):  # nobody is there yet
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.01)
    pytest.fail(f"exit code {process.exitcode} before the gate")


@pytest.fixture
def gate(tmp_path):
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def test_killed_by_another_process(manifest, path, unbroken, gate):
    process = start(_wait_at_a_gate, manifest, path, gate, 0)
    descriptor = arrival(gate, process)
    assert len(parts_of(path)) == 3
    process.kill()
    process.join(100)
    os.close(descriptor)
    assert process.exitcode == -signal.SIGKILL
    assert go_on(manifest, path)[1] == N - 3
    assert_whole(path, manifest, unbroken)


@pytest.mark.parametrize(
    ("before", "save_every", "embedded"),
    [(0, 0, N - 3), (2, 0, N - 5), (2, 1e9, N - 2)],
)
def test_one_of_two_finishes_while_the_other_is_at_work(
    manifest, path, unbroken, gate, before, save_every, embedded
):
    """The parts that the slower one relies on are gone when it comes to them."""
    if before:
        begin(manifest, path, before)
    process = start(_wait_at_a_gate, manifest, path, gate, save_every)
    descriptor = arrival(gate, process)
    assert go_on(manifest, path)[1] == embedded
    assert_whole(path, manifest, unbroken)
    os.close(descriptor)
    process.join(100)
    assert process.exitcode == 0
    assert_whole(path, manifest, unbroken)


def _embed(manifest, path):
    embed_to_file(make_model(), manifest, path, save_every=0, **OPTIONS)


def test_several_at_full_speed(manifest, path, unbroken):
    processes = [start(_embed, manifest, path) for _ in range(3)]
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_whole(path, manifest, unbroken)


# ---- one of several fails ------------------------------------------------------------


@command_line
def _meet_a_bad_recording(manifest, path):
    embed_to_file(make_model(), manifest, path, save_every=0, **OPTIONS)


def test_one_rank_fails_and_no_other_waits(manifest, path, unbroken):
    bad = recording(manifest, 5)
    whole = bad.read_bytes()
    bad.write_bytes(b"")
    assert in_processes(_meet_a_bad_recording, 2, manifest, path) == [1, 1]
    assert not path.exists()
    bad.write_bytes(whole)
    # the second rank had two good batches before the bad one
    assert go_on(manifest, path)[1] <= N - 2
    assert_whole(path, manifest, unbroken)


def _write_to_own_disk(manifest, path):
    path = path.with_name(f"rank{get_rank()}") / path.name
    model, counts, text = make_model(), [], ""
    model.register_forward_hook(lambda m, i, o: counts.append(len(o)))
    try:
        embed_to_file(model, manifest, path, **OPTIONS)
    except InputError as error:
        text = str(error)
    path.with_name("counts").write_text(str(sum(counts)))
    path.with_name("error").write_text(text)


def test_a_disk_that_is_not_shared_is_noticed(manifest, path):
    folders = [path.parent / f"rank{rank}" for rank in range(2)]
    begin(manifest, folders[0] / path.name, 3)
    assert in_processes(_write_to_own_disk, 2, manifest, path) == [0, 0]
    # what the first rank has found, the second knows too
    counts = [int((folder / "counts").read_text()) for folder in folders]
    assert sum(counts) == N - 3
    texts = [(folder / "error").read_text() for folder in folders]
    assert f"{counts[1]} of 10 recordings are not there, first r" in texts[0]
    assert "a disk that they share" in texts[0]
    assert texts[1] == ""
