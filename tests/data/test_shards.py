"""Shards: what they hold, that they train as the files do, and that making them can be
stopped and continued."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset

from speechbrain_ext.data.audio import joined_path, read_audio, read_header
from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.data.shards import writer as shard_writer
from speechbrain_ext.data.shards.index import ShardIndex, from_shards
from speechbrain_ext.data.shards.writer import make_shards
from speechbrain_ext.utils.errors import InputError

SUFFIXES = ("wav", "flac", "ogg")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Twelve recordings in three formats, the last row joined of two: a manifest."""
    folder = tmp_path_factory.mktemp("recordings")
    generator = np.random.default_rng(5)
    rows = []
    for number in range(12):
        n = 8000 + 1111 * number
        path = folder / f"s{number % 4}" / f"v.{number}.{SUFFIXES[number % 3]}"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * generator.standard_normal(n), 16000)
        rows.append((f"s{number % 4}/v.{number}", str(path), n))
    ids, paths, frames = map(list, zip(*rows))
    ids.append("s0/v.0+1")
    paths.append(joined_path([paths[0], paths[4]], [frames[0], frames[4]]))
    frames.append(frames[0] + frames[4])
    speakers = [name.split("/")[0] for name in ids]
    seconds = [n / 16000 for n in frames]
    manifest = Manifest(ids, paths, seconds, speakers)
    path = folder / "train.csv"
    write_manifest(path, manifest)
    return path


@pytest.fixture(scope="module")
def shards(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    counts = make_shards([recordings], folder, 5, num_workers=2)
    assert counts[:2] == (3, 13)
    assert counts.bytes == sum(p.stat().st_size for p in folder.glob("*.tar"))
    assert counts.bad == 0
    return folder


def contents(folder):
    names = (p for p in sorted(Path(folder).iterdir()) if p.suffix != ".lock")
    return {p.name: p.read_bytes() for p in names if p.is_file()}


# ---- what is in them -----------------------------------------------------------------


def test_webdataset_and_tar_read_them(recordings, shards):
    manifest = read_manifest(recordings)
    files = dict(zip(manifest.ids.tolist(), manifest.paths.tolist()))
    seen = []
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        said = json.loads(sample["json"])
        name = said["id"]
        seen.append(name)
        assert sample["__key__"].replace("%2E", ".") == name
        assert said["spk_id"] == name[:2]
        if name == "s0/v.0+1":
            parts = [sample["0.wav"], sample["1.flac"]]
            assert parts == [Path(files[f"s0/v.{n}"]).read_bytes() for n in (0, 4)]
            continue
        source = Path(files[name])
        assert sample[source.suffix[1:]] == source.read_bytes()
        assert said["samples"] == soundfile.info(str(source)).frames
    assert sorted(seen) == sorted(files)
    assert seen[:5] != manifest.ids[:5].tolist()  # shuffled
    for url in urls:
        with tarfile.open(url) as tar:
            assert all(member.mtime == 0 for member in tar)


def test_the_records_have_checksums_and_places(shards):
    marker = json.loads((shards / "shards.json").read_text())
    for shard in marker["shards"]:
        content = (shards / shard["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        record = json.loads((shards / shard["name"]).with_suffix(".json").read_text())
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = {
                (m.offset_data, m.size) for m in tar if not m.name.endswith("json")
            }
        places = {tuple(p[:2]) for _, parts in record["samples"] for p in parts}
        assert places == members


def test_every_sample_is_that_of_the_files(recordings, shards):
    manifest = read_manifest(recordings)
    sharded = from_shards(manifest, shards)
    assert [len(sharded.paths), len(sharded)] == [13, 13]
    assert sharded.paths.tolist() == [sharded.paths[row] for row in range(13)]
    assert sharded.ids.tolist() == manifest.ids.tolist()
    for file, place in zip(manifest.paths.tolist(), sharded.paths.tolist()):
        assert place.startswith(str(shards / "00000"))
        for part in ((0, -1), (3000, 4001)):
            assert np.array_equal(read_audio(place, *part), read_audio(file, *part))
    assert read_header(sharded.paths[1]) == read_header(manifest.paths[1])
    subset = from_shards(manifest.select(np.array([12, 3])), shards)
    assert subset.paths.tolist() == sharded.paths[np.array([12, 3])].tolist()


def test_only_the_wanted_part_of_a_long_recording_is_read(tmp_path, monkeypatch):
    wav = np.random.default_rng(0).standard_normal(60 * 16000) * 0.1
    write_one(tmp_path, wav)
    place = from_shards(read_manifest(tmp_path / "m.csv"), tmp_path / "out").paths[0]
    read, preadv = [], os.preadv

    def counted(*arguments):
        read.append(preadv(*arguments))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    read_audio(place, 30 * 16000, 16000)
    assert 32000 <= sum(read) < 64000 < len(wav)


def write_one(folder, wav, name="a", suffix="wav"):
    path = folder / f"{name}.{suffix}"
    soundfile.write(path, wav, 16000)
    manifest = Manifest([name], [str(path)], [len(wav) / 16000], ["s"])
    write_manifest(folder / "m.csv", manifest)
    make_shards([folder / "m.csv"], folder / "out", num_workers=1)


# ---- training from them --------------------------------------------------------------


def batches_of(manifest, num_workers, **settings):
    sampler = CropBatchSampler(
        manifest.labels, 3, (0.3, 1.2), seed=3, n_speeds=3, **settings
    )
    dataset = TrainingSet(manifest, 3, None, (1.0, 0.9, 1.1))
    batches = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        batches += list(make_loader(dataset, sampler, num_workers))
    return batches


@pytest.mark.parametrize("settings", [{}, {"draws_per_epoch": 9}, {"rank": 1}])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_are_those_of_the_files(
    recordings, shards, settings, num_workers
):
    if "rank" in settings:
        settings = {**settings, "world_size": 2}
    manifest = read_manifest(recordings)
    expected = batches_of(manifest, 0, **settings)
    found = batches_of(from_shards(manifest, shards), num_workers, **settings)
    assert len(found) == len(expected) > 2
    for batch, wanted in zip(found, expected):
        assert torch.equal(batch.wavs, wanted.wavs)
        assert torch.equal(batch.labels, wanted.labels)
        assert batch.ids == wanted.ids


def test_an_arrow_manifest_is_sharded_as_a_csv_is(recordings, shards, tmp_path):
    arrow = tmp_path / "train.arrow"
    write_manifest(arrow, read_manifest(recordings))
    make_shards([arrow], tmp_path / "out", 5, num_workers=1)
    assert contents(tmp_path / "out") == contents(shards)
    manifest = read_manifest(arrow)
    sharded = from_shards(manifest, tmp_path / "out")
    for row in (0, 12):
        wav = read_audio(sharded.paths[row])
        assert np.array_equal(wav, read_audio(manifest.paths[row]))


def test_a_process_that_is_not_forked_maps_the_index_anew(recordings, shards):
    paths = from_shards(read_manifest(recordings), shards).paths
    assert not paths.index.parts.flags.owndata
    pickled = pickle.dumps(paths)
    again = pickle.loads(pickled)
    assert not again.index.parts.flags.owndata
    assert again.tolist() == paths.tolist()


# ---- stopped and continued -----------------------------------------------------------


def test_a_second_run_writes_nothing(recordings, shards):
    before = {p: p.stat().st_mtime_ns for p in shards.glob("*.tar")}
    assert make_shards([recordings], shards, 5, num_workers=1)[:2] == (3, 13)
    assert {p: p.stat().st_mtime_ns for p in shards.glob("*.tar")} == before


@pytest.mark.parametrize("loss", ["tar", "json", "cut", "marker", "index"])
def test_what_is_missing_is_made_again(recordings, shards, tmp_path, loss):
    folder = tmp_path / "out"
    make_shards([recordings], folder, 5, num_workers=1)
    assert contents(folder) == contents(shards)
    if loss == "cut":
        with open(folder / "000001.tar", "r+b") as file:
            file.truncate(700)
    else:
        names = {"marker": "shards.json", "index": "index.npy"}
        (folder / names.get(loss, f"000001.{loss}")).unlink()
    (folder / ".000002.tar.abcd.tmp").write_bytes(b"of a killed run")
    kept = (folder / "000000.tar").stat().st_mtime_ns
    make_shards([recordings], folder, 5, num_workers=1)
    assert contents(folder) == contents(shards)
    assert (folder / "000000.tar").stat().st_mtime_ns == kept
    assert not list(folder.glob(".*.tmp"))


def _killed_in_the_second_shard(recordings, folder):
    whole = shard_writer.write_shard

    def write(job):
        if job.name == "000001.tar":
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # its own end comes with its parent's
        return whole(job)

    shard_writer.write_shard = write
    make_shards([recordings], folder, 5, num_workers=1)


def test_a_killed_run_is_continued(recordings, shards, tmp_path):
    folder = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(
        target=_killed_in_the_second_shard, args=(recordings, folder)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (folder / "000000.json").exists()
    with pytest.raises(InputError, match=r"shards.json: no such file, expected a fold"):
        ShardIndex(folder)
    kept = (folder / "000000.tar").stat().st_mtime_ns
    make_shards([recordings], folder, 5, num_workers=1)
    assert contents(folder) == contents(shards)
    assert (folder / "000000.tar").stat().st_mtime_ns == kept


def test_several_manifests_have_shards_of_their_own(recordings, tmp_path):
    manifest = read_manifest(recordings)
    for name, rows in (("a", np.arange(8)), ("b", np.arange(8, 13))):
        write_manifest(tmp_path / f"{name}.csv", manifest.select(rows))
    both = [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert make_shards(both, tmp_path / "out", 5, num_workers=1).shards == 3
    last = json.loads((tmp_path / "out/000002.json").read_text())
    assert {name for name, _ in last["samples"]} == set(manifest.ids[8:].tolist())
    assert len(from_shards(manifest, tmp_path / "out")) == 13
    with pytest.raises(InputError, match=r"ID 's0/v.0' is in two manifests"):
        make_shards([recordings, both[0]], tmp_path / "twice")
