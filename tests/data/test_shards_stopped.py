"""Making shards, ended in the middle of a write; an index that lies; and who reads what
when several ranks, each with several workers, train from them."""

import contextlib
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.audio import read_audio
from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.data.shards import writer as shard_file
from speechbrain_ext.data.shards.index import KEY, OFFSET, SHARD, SIZE, from_shards
from speechbrain_ext.data.shards.order import ShardOrderSampler
from speechbrain_ext.data.shards.writer import make_shards
from speechbrain_ext.utils.errors import InputError, command_line

N = 24


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """24 recordings of 0.2 s: the path of their manifest."""
    folder = tmp_path_factory.mktemp("recordings")
    generator = np.random.default_rng(2)
    ids = [f"s{number % 3}/u{number:02d}" for number in range(N)]
    paths = [str(folder / f"{number:02d}.flac") for number in range(N)]
    for path in paths:
        soundfile.write(path, 0.1 * generator.standard_normal(3200), 16000)
    speakers = [name[:2] for name in ids]
    write_manifest(folder / "m.csv", Manifest(ids, paths, [0.2] * N, speakers))
    return folder / "m.csv"


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
    """Four shards, made without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    make_shards([manifest], folder, 6, num_workers=1)
    return folder


def contents(folder):
    files = (path for path in folder.iterdir() if path.suffix != ".lock")
    return {path.name: path.read_bytes() for path in files}


# ---- ended in the middle -------------------------------------------------------------


def _make_until(end, manifest, folder, stderr):
    """``end()`` is called after three utterances of the second shard were written."""
    write = shard_file._Hashing.write

    def writing(self, data):
        written = write(self, data)
        self.file.flush()
        if "000001" in self.file.name and self.file.tell() > 30_000:
            end()
        return written

    shard_file._Hashing.write = writing
    # a shell starts what runs in its background with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(stderr, "w") as file, contextlib.redirect_stderr(file):
        command_line(make_shards)([manifest], folder, 6, num_workers=1)


def _kill_all():
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _interrupt_all():
    """Ctrl-C goes to the whole group of processes."""
    os.kill(os.getppid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()


@pytest.mark.parametrize(
    ("end", "code", "litter"),
    [(_kill_all, -signal.SIGKILL, 1), (_interrupt_all, 130, 0)],
)
def test_a_tar_that_was_half_written_is_written_anew(
    manifest, whole, tmp_path, end, code, litter
):
    folder = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(
        target=_make_until, args=(end, manifest, folder, tmp_path / "stderr")
    )
    process.start()
    process.join()
    assert process.exitcode == code
    half = list(folder.glob(".000001.tar.*.tmp"))
    assert len(half) == litter
    assert all(path.stat().st_size > 0 for path in half)
    assert {p.name for p in folder.glob("0*")} == {"000000.tar", "000000.json"}
    if code == 130:
        assert "error: interrupted by the user" in (tmp_path / "stderr").read_text()
    make_shards([manifest], folder, 6, num_workers=2)
    assert contents(folder) == contents(whole)


# ---- an index that lies --------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "change", "expected"),
    [
        (OFFSET, 10**9, r"the shard has \d+ bytes, expected at least \d+: truncated"),
        (OFFSET, 100, "cannot be "),
        (SIZE, -4000, "cannot be |samples decoded"),
    ],
)
def test_a_wrong_place_is_named(manifest, whole, tmp_path, row, change, expected):
    for name, content in contents(whole).items():
        (tmp_path / name).write_bytes(content)
    parts = np.load(tmp_path / "index.npy")
    parts[row, 7] += change
    np.save(tmp_path / "index.npy", parts)
    sharded = from_shards(read_manifest(manifest), tmp_path)
    bad = int(np.flatnonzero(sharded.paths.first == 7)[0])
    for number in range(N):
        if number != bad:
            assert len(read_audio(sharded.paths[number])) == 3200
    name = sharded.ids[bad]
    with pytest.raises(InputError, match=rf"\.tar!{name}@\d+\+\d+: .*({expected})"):
        read_audio(sharded.paths[bad])


def test_the_index_is_that_of_the_records(whole):
    parts = np.load(whole / "index.npy")
    assert (np.diff(parts[KEY]) > 0).all()
    places = set(zip(*parts[[SHARD, OFFSET, SIZE]].tolist()))
    records = [json.loads((whole / f"{n:06d}.json").read_text()) for n in range(4)]
    assert places == {
        (number, *part[:2])
        for number, record in enumerate(records)
        for _, samples in record["samples"]
        for part in samples
    }


# ---- who reads what ------------------------------------------------------------------


def sampler_of(sharded, ordered, rank, world_size):
    settings = {"seed": 1, "rank": rank, "world_size": world_size}
    crop = (0.1, 0.15)
    if ordered:
        return ShardOrderSampler(
            sharded.paths, 5, sharded.labels, 2, crop_seconds=crop, **settings
        )
    return CropBatchSampler(sharded.labels, 2, crop, **settings)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("ordered", [False, True])
def test_each_utterance_is_read_once(manifest, whole, ordered, world_size, num_workers):
    sharded = from_shards(read_manifest(manifest), whole)
    seen = []
    for rank in range(world_size):
        sampler = sampler_of(sharded, ordered, rank, world_size)
        sampler.set_epoch(1)
        loader = make_loader(TrainingSet(sharded, 1), sampler, num_workers)
        mine = [name for batch in loader for name in batch.ids]
        loader.close()
        assert len(mine) == N // world_size
        seen += mine
    assert sorted(seen) == sorted(sharded.ids.tolist())
