"""Shards: they hold the bytes of the files and train as these do; making them can be
stopped and continued; damage is one line that names shard and utterance."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset
from tiny_training import on_a_full_disk, start

from speechbrain_ext.__main__ import main
from speechbrain_ext.data.audio import joined_path, read_audio, read_header
from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.data.shards import writer
from speechbrain_ext.data.shards.index import INDEX, from_shards
from speechbrain_ext.data.shards.members import parse_member
from speechbrain_ext.data.shards.writer import check_shards, make_shards
from speechbrain_ext.utils.errors import InputError, command_line

SUFFIXES = ("wav", "flac", "ogg")
N = 13


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
        rows.append((f"s{number % 4}/v.{number}", str(path), n / 16000))
    joined = joined_path([rows[0][1], rows[4][1]], [8000, 12444])
    ids, paths, seconds = zip(*rows, ("s0/v.0+1", joined, 20444 / 16000))
    speakers = [name[:2] for name in ids]
    write_manifest(folder / "train.csv", Manifest(ids, paths, seconds, speakers))
    return folder / "train.csv"


@pytest.fixture(scope="module")
def shards(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    counts = make_shards([recordings], folder, 5, num_workers=2)
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert counts == (3, N, size, 0)
    return folder


@pytest.fixture
def copied(shards, tmp_path):
    """Shards that a test may damage."""
    return shutil.copytree(shards, tmp_path / "copied")


@pytest.fixture
def own(recordings, tmp_path):
    """Recordings that a test may damage, and a manifest of them."""
    path = shutil.copytree(recordings.parent, tmp_path / "own") / "train.csv"
    path.write_text(path.read_text().replace(f"{recordings.parent}", f"{path.parent}"))
    return path


def tars_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def place_of(folder, recordings, row):
    """Where the recording of a row lies: a TarMember."""
    return parse_member(from_shards(read_manifest(recordings), folder).paths[row])


def overwrite(place, content, offset=100):
    with open(place.shard, "r+b") as file:
        file.seek(place.offset + offset)
        file.write(content)


# ---- what is in them -----------------------------------------------------------------


def test_webdataset_and_tar_read_them(recordings, shards):
    manifest = read_manifest(recordings)
    files = dict(zip(manifest.ids.tolist(), manifest.paths.tolist()))
    seen = []
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        metadata = json.loads(sample["json"])
        name = metadata["id"]
        seen.append(name)
        assert sample["__key__"].replace("%2E", ".") == name
        assert metadata["spk_id"] == name[:2]
        if name == "s0/v.0+1":
            parts = [sample["0.wav"], sample["1.flac"]]
            assert parts == [Path(files[f"s0/v.{n}"]).read_bytes() for n in (0, 4)]
            continue
        source = Path(files[name])
        assert sample[source.suffix[1:]] == source.read_bytes()
        assert metadata["samples"] == soundfile.info(str(source)).frames
    assert sorted(seen) == sorted(files)
    assert seen[:5] != manifest.ids[:5].tolist()  # shuffled
    for url in urls:
        with tarfile.open(url) as tar:
            assert all(member.mtime == 0 for member in tar)


def assert_samples(manifest, folder):
    sharded = from_shards(manifest, folder)
    assert sharded.ids.tolist() == manifest.ids.tolist()
    for file, member in zip(manifest.paths.tolist(), sharded.paths.tolist()):
        assert member.startswith(f"{folder}/")
        for part in ((0, -1), (3000, 4001)):
            assert np.array_equal(read_audio(member, *part), read_audio(file, *part))
    return sharded


def test_every_sample_is_that_of_the_files(recordings, shards):
    manifest = read_manifest(recordings)
    sharded = assert_samples(manifest, shards)
    assert [len(sharded.paths), len(sharded)] == [N, N]
    assert sharded.paths.tolist() == [sharded.paths[row] for row in range(N)]
    assert read_header(sharded.paths[1]) == read_header(manifest.paths[1])
    subset = from_shards(manifest.select(np.array([12, 3])), shards)
    assert subset.paths.tolist() == sharded.paths[np.array([12, 3])].tolist()
    # a process that is not forked maps the index anew
    again = pickle.loads(pickle.dumps(sharded.paths))
    assert again.tolist() == sharded.paths.tolist()
    for paths in (sharded.paths, again):
        assert not paths.index.key.flags.owndata


def test_only_the_wanted_part_of_a_long_recording_is_read(tmp_path, monkeypatch):
    wav = np.random.default_rng(0).standard_normal(60 * 16000) * 0.1
    soundfile.write(tmp_path / "a.wav", wav, 16000)
    manifest = Manifest(["a"], [str(tmp_path / "a.wav")], [60.0], ["s"])
    write_manifest(tmp_path / "m.csv", manifest)
    make_shards([tmp_path / "m.csv"], tmp_path / "out", num_workers=1)
    member = from_shards(manifest, tmp_path / "out").paths[0]
    read, preadv = [], os.preadv

    def counted(*arguments):
        read.append(preadv(*arguments))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    read_audio(member, 30 * 16000, 16000)
    assert 32000 <= sum(read) < 64000 < len(wav)


def test_arrow_manifests_and_several(recordings, shards, tmp_path):
    manifest = read_manifest(recordings)
    write_manifest(tmp_path / "train.arrow", manifest)
    arrow = tmp_path / "arrow"
    make_shards([tmp_path / "train.arrow"], arrow, 5, num_workers=1)
    assert tars_of(arrow) == tars_of(shards)
    for name, rows in (("a", np.arange(8)), ("b", np.arange(8, N))):
        write_manifest(tmp_path / f"{name}.csv", manifest.select(rows))
    both = [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert make_shards(both, tmp_path / "out", 5, num_workers=1).shards == 3
    with tarfile.open(tmp_path / "out/000002.tar") as tar:
        names = {name.replace("%2E", ".") for name in tar.getnames()}
    assert {name.split(".json")[0] for name in names if name.endswith("json")} == set(
        manifest.ids[8:].tolist()
    )
    assert_samples(manifest, tmp_path / "out")
    with pytest.raises(InputError, match=r"ID 's0/v.0' is in two manifests"):
        make_shards([recordings, both[0]], tmp_path / "twice")


# ---- tars of other programs, and the index -------------------------------------------


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_tars_of_other_programs_are_read(recordings, tmp_path, prefix, format):
    manifest = read_manifest(recordings).select(np.arange(12))
    ids = [f"{'x' * 90}/{row}" if row == 3 else f"u{row}" for row in range(12)]
    manifest = Manifest(ids, manifest.paths, manifest.durations, manifest.speakers)
    for shard in range(2):
        members = [("README", b"no sample"), (f"{prefix}only.txt", b"no sound")]
        for row in range(shard, 12, 2):
            path = Path(manifest.paths[row])
            members.append((f"{prefix}{ids[row]}{path.suffix}", path.read_bytes()))
            members.append((f"{prefix}{ids[row]}.txt", b"said"))
        write_tar(tmp_path / f"data-{shard}.tar", members, format=format)
    assert_samples(manifest, tmp_path)
    assert check_shards(tmp_path, num_workers=1)[1:] == (
        12,
        sum(path.stat().st_size for path in tmp_path.glob("*.tar")),
        0,
    )
    # a recording that cannot be read is named, and does not stop the others
    place = parse_member(from_shards(manifest, tmp_path).paths[1])
    overwrite(place, bytes(place.size), 0)
    with pytest.raises(InputError, match=rf"{place.shard}!u1@.*cannot be opened"):
        check_shards(tmp_path, num_workers=1)
    sharded = from_shards(manifest, tmp_path)
    read_audio(sharded.paths[3])
    with pytest.raises(InputError, match="u1@"):
        read_audio(sharded.paths[1])


@pytest.mark.parametrize(
    ("first", "second", "culprit"),
    [
        (["a.flac", "a.wav"], ["b.flac"], "1.tar!a: flac, wav"),
        (["a.0.flac", "a.2.flac"], ["b.flac"], "1.tar!a: 0.flac, 2.flac"),
        (["a.flac"], ["b.flac", "a.flac"], "2.tar!a: also in .*1.tar"),
        (["a.txt"], ["b.txt"], "no recording KEY.flac"),
    ],
)
def test_keys_that_are_ambiguous(recordings, tmp_path, first, second, culprit):
    content = Path(read_manifest(recordings).paths[1]).read_bytes()
    for number, names in ((1, first), (2, second)):
        write_tar(tmp_path / f"{number}.tar", [(name, content) for name in names])
    with pytest.raises(InputError, match=culprit):
        from_shards(read_manifest(recordings), tmp_path)


def test_the_index_is_made_once_and_anew_where_a_tar_changes(
    recordings, copied, monkeypatch
):
    manifest = read_manifest(recordings)

    def paths():
        return from_shards(manifest, copied).paths.tolist()

    expected = paths()
    for damage in (
        lambda: (copied / INDEX).unlink(),
        lambda: os.truncate(copied / INDEX, 300),
        lambda: (copied / INDEX).write_bytes(b"another"),
        lambda: os.utime(copied / "000001.tar"),
    ):
        damage()
        assert paths() == expected
        before = (copied / INDEX).stat().st_mtime_ns
        assert paths() == expected
        assert (copied / INDEX).stat().st_mtime_ns == before
    # names are sorted: the shards count from another one
    (copied / "000000.tar").rename(copied / "3.tar")
    assert_samples(manifest, copied)
    # where the index cannot be kept, the tars are read each time
    (copied / INDEX).unlink()
    (copied / INDEX).mkdir()
    assert_samples(manifest, copied)


def test_a_manifest_of_other_recordings(recordings, shards, tmp_path):
    manifest = read_manifest(recordings)
    other = Manifest(["new", "s0/v.0"], ["x", "y"], [0.5, 0.5], ["s1", "s0"])
    with pytest.raises(InputError, match=r"'new', expected all 2 of .*\(1 are missing"):
        from_shards(other, shards)
    durations = [*manifest.durations[:12], manifest.durations[12] + 0.1]
    longer = Manifest(manifest.ids, manifest.paths, durations, manifest.speakers)
    with pytest.raises(InputError, match=r"'s0/v.0\+1' has 20444 .* states 22044"):
        from_shards(longer, shards)
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=f"{folder}: no .*tar"):
            from_shards(manifest, folder)


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


@pytest.mark.parametrize(
    ("settings", "num_workers"),
    [({}, 0), ({"draws_per_epoch": 9}, 2), ({"rank": 1, "world_size": 2}, 2)],
)
def test_batches_are_those_of_the_files(recordings, shards, settings, num_workers):
    manifest = read_manifest(recordings)
    expected = batches_of(manifest, 0, **settings)
    found = batches_of(from_shards(manifest, shards), num_workers, **settings)
    assert len(found) == len(expected) > 2
    for batch, wanted in zip(found, expected):
        assert torch.equal(batch.wavs, wanted.wavs)
        assert torch.equal(batch.labels, wanted.labels)
        assert batch.ids == wanted.ids


# ---- stopped and continued -----------------------------------------------------------


@pytest.mark.parametrize("loss", ["nothing", "tar", "cut", "header", INDEX])
def test_a_second_run_makes_what_is_missing_or_damaged(
    recordings, shards, tmp_path, loss
):
    folder = tmp_path / "out"
    make_shards([recordings], folder, 5, num_workers=1)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    damaged = folder / "000001.tar"
    if loss == "cut":
        os.truncate(damaged, 9000)
    elif loss == "header":
        damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    elif loss != "nothing":
        (damaged if loss == "tar" else folder / loss).unlink()
    (folder / ".000002.tar.abcd.tmp").write_bytes(b"of a killed run")
    make_shards([recordings], folder, 5, num_workers=1)
    assert tars_of(folder) == tars_of(shards)
    assert not list(folder.glob(".*.tmp"))
    kept = {p: mtime for p, mtime in before.items() if p.stat().st_mtime_ns == mtime}
    assert len(kept) == (3 if loss in ("nothing", INDEX) else 2)
    assert_samples(read_manifest(recordings), folder)


@command_line
def _make_until_ended(number, manifest, folder):
    """By a kill; or Ctrl-C, which goes to the whole group of processes."""
    sample, count = writer._sample, iter(range(N))

    def end_in_the_second_shard(*arguments):
        if next(count) == 7:
            os.kill(os.getppid(), number)
            os.kill(os.getpid(), number)
            signal.pause()
        return sample(*arguments)

    writer._sample = end_in_the_second_shard
    # a shell starts what runs in its background with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    make_shards([manifest], folder, 5, num_workers=1)


@pytest.mark.parametrize(
    ("number", "code", "litter"),
    [(signal.SIGKILL, -signal.SIGKILL, 1), (signal.SIGINT, 130, 0)],
)
def test_a_run_that_was_ended_in_the_middle_of_a_tar(
    recordings, shards, tmp_path, number, code, litter
):
    folder, stderr = tmp_path / "out", tmp_path / "stderr"
    process = start(_make_until_ended, number, recordings, folder, stderr=stderr)
    process.join(60)
    assert process.exitcode == code
    assert len(list(folder.glob(".000001.tar.*.tmp"))) == litter
    assert set(tars_of(folder)) == {"000000.tar"}
    told = "error: interrupted by the user" in stderr.read_text()
    assert told == (code == 130)
    with pytest.raises(InputError, match=r"no utterance '.*\(8 are missing"):
        from_shards(read_manifest(recordings), folder)
    with pytest.raises(InputError, match="1 tar files, expected 3 shards"):
        check_shards(folder, num_workers=1)
    kept = (folder / "000000.tar").stat().st_mtime_ns
    make_shards([recordings], folder, 5, num_workers=2)
    assert tars_of(folder) == tars_of(shards)
    assert (folder / "000000.tar").stat().st_mtime_ns == kept
    assert not list(folder.glob(".*.tmp"))


def test_a_full_disk_names_the_shard_and_loses_nothing(recordings, tmp_path):
    long = tmp_path / "long.wav"
    soundfile.write(long, np.zeros(200_000), 16000)
    write_manifest(tmp_path / "b.csv", Manifest(["long"], [str(long)], [12.5], ["s"]))
    both, folder = [recordings, tmp_path / "b.csv"], tmp_path / "out"

    make = partial(make_shards, both, folder, 13, num_workers=2)
    line = on_a_full_disk(350_000, tmp_path / "stderr", make)
    assert line.startswith(f"error: {folder}/000001.tar: ")
    assert {path.name for path in folder.iterdir()} == {".lock", "000000.tar"}
    kept = (folder / "000000.tar").stat().st_mtime_ns
    assert make_shards(both, folder, 13, num_workers=1).utterances == N + 1
    assert (folder / "000000.tar").stat().st_mtime_ns == kept


def test_a_folder_of_other_tars_is_left_alone(recordings, copied, tmp_path):
    write_tar(tmp_path / "000000.tar", [("a.txt", b"")])
    fewer = tmp_path / "fewer.csv"
    write_manifest(fewer, read_manifest(recordings).select(np.arange(12)))
    before = {path: path.stat().st_mtime_ns for path in copied.glob("[!.]*")}
    for manifest, folder, settings, culprit in (
        (recordings, copied, (4,), "utterances_per_shard=5 .*utterances_per_shard=4"),
        (recordings, copied, (5, 1), "seed=0 .*seed=1"),
        (fewer, copied, (5,), r"000000\.tar: holds .*manifests="),
        (recordings, tmp_path, (5,), r"000000\.tar: holds recordings of another"),
    ):
        with pytest.raises(InputError, match=culprit):
            make_shards([manifest], folder, *settings, num_workers=1)
    assert {p: p.stat().st_mtime_ns for p in copied.glob("[!.]*")} == before


def test_two_processes_do_not_make_the_same_shards(recordings, tmp_path):
    with (
        writer._locked(tmp_path),
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(InputError, match="another process is making shards"),
    ):
        pool.apply(make_shards, ([recordings], tmp_path))
    make_shards([recordings], tmp_path, num_workers=1)


# ---- bad recordings ------------------------------------------------------------------


def spoil(path, damage):
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("no sound")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-3000])
    else:
        n, rate = (9000, 16000) if damage == "short" else (9111, 8000)
        soundfile.write(path, np.full(n, 0.1), rate)


@pytest.mark.parametrize("damage", ["missing", "text", "short", "cut", "rate"])
def test_a_bad_recording_is_named_or_left_out(own, shards, tmp_path, damage):
    folder, path = tmp_path / "out", own.parent / "s1/v.1.flac"
    mended = path.read_bytes()
    spoil(path, damage)
    with pytest.raises(InputError, match=r"^s1/v.1: .*v.1\.flac: .*1 bad files, exp"):
        make_shards([own], folder, 5, num_workers=1)
    manifest = read_manifest(own)
    with pytest.raises(InputError, match="are missing"):  # nobody accepted the loss
        from_shards(manifest, folder)
    counts = make_shards([own], folder, 5, max_bad_files=1, num_workers=1)
    assert (counts.utterances, counts.bad) == (N - 1, 1)
    assert "v.1.flac" in (folder / "bad_files.txt").read_text()
    # trained on without it, in the order of the others
    assert_samples(manifest.select(manifest.ids != "s1/v.1"), folder)
    assert len(from_shards(manifest, folder)) == N - 1
    # once more refused, the shards stay
    with pytest.raises(InputError, match=r"^s1/v.1: "):
        make_shards([own], folder, 5, num_workers=1)
    assert len(from_shards(manifest, folder)) == N - 1
    # and with it, once it is mended
    path.write_bytes(mended)
    assert make_shards([own], folder, 5, num_workers=1).bad == 0
    assert not (folder / "bad_files.txt").exists()
    assert_samples(manifest, folder)


def test_a_shard_without_a_good_recording(own, tmp_path):
    for path in own.parent.glob("s1/*"):
        path.write_text("no sound")
    manifest = read_manifest(own)
    write_manifest(tmp_path / "a.csv", manifest.select(manifest.speakers == "s1"))
    write_manifest(tmp_path / "b.csv", manifest.select(manifest.speakers != "s1"))
    both, folder = [tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out"
    for _ in range(2):
        counts = make_shards(both, folder, 20, max_bad_files=3, num_workers=1)
        assert (counts.shards, counts.utterances, counts.bad) == (2, N - 3, 3)
    assert len(from_shards(manifest, folder)) == N - 3
    assert check_shards(folder, num_workers=1).utterances == N - 3


def test_rows_that_cannot_be_packed(own, tmp_path):
    parts = [str(own.parent / name) for name in ("s0/v.0.wav", "s0/v.4.flac")]
    row = joined_path(parts, [8000, 12445])
    for name, path, culprit in (
        ("a", row, r"v.4\.flac: 12444 samples, .* 12445"),
        *((name, parts[0], repr(name)) for name in ("a|b", "../a", "/a", "a//b")),
        ("a\tb", parts[0], "'a.tb': expected one that can be a file name"),
    ):
        write_manifest(tmp_path / "m.csv", Manifest([name], [path], [1.0], ["s"]))
        with pytest.raises(InputError, match=culprit.replace("|", r"\|")):
            make_shards([tmp_path / "m.csv"], tmp_path / "out", num_workers=1)


# ---- damage --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("content", r"!s1/v.1: damaged, its SHA-256 differs \(1 bad utterances"),
        ("json", r"!s1/v.1: damaged, its .json cannot be read \(1 bad utterances"),
        ("cut", r"!s1/v.1: unexpected end of data"),
        ("header", r"!s./v.*: damaged or truncated, here or behind it"),
        ("gone", "2 tar files, expected 3 shards"),
    ],
)
def test_the_check_names_shard_and_utterance(
    recordings, shards, copied, capsys, damage, reason
):
    assert check_shards(copied, num_workers=1) == (
        *(3, N),
        sum(map(len, tars_of(copied).values())),
        0,
    )
    place = place_of(copied, recordings, 1)
    tar = Path(place.shard)
    assert tar.parent == copied
    with tarfile.open(tar) as file:
        members = file.getmembers()
    if damage == "content":
        overwrite(place, b"\x55\xaa")
    elif damage == "json":
        (member,) = [m for m in members if m.name == "s1/v%2E1.json"]
        overwrite(place._replace(offset=member.offset_data), b"\xff", 0)
    elif damage == "cut":
        os.truncate(tar, place.offset + 100)
    elif damage == "header":
        overwrite(place._replace(offset=members[4].offset), b"\xff", 0)
    else:
        tar.unlink()
    with pytest.raises(InputError, match=reason) as caught:
        check_shards(copied, num_workers=1)
    assert str(caught.value).startswith(str(copied if damage == "gone" else tar))
    if damage in ("content", "json"):
        assert check_shards(copied, max_bad_files=1, num_workers=1).bad == 1
    with pytest.raises(SystemExit):
        main(["shards", "--check", str(copied), "--num_workers=1"])
    assert str(caught.value) in capsys.readouterr().err
    if damage in ("cut", "header"):  # training does not begin either
        with pytest.raises(InputError, match=reason):
            from_shards(read_manifest(recordings), copied)
    tar.unlink(missing_ok=True)  # as the message says
    make_shards([recordings], copied, 5, num_workers=1)
    assert tars_of(copied) == tars_of(shards)


def test_damage_after_the_start_is_named_where_it_is_read(recordings, copied):
    sharded = from_shards(read_manifest(recordings), copied)
    path, place = sharded.paths[1], parse_member(sharded.paths[1])
    read_audio(path)  # the shard is open
    shutil.copy(place.shard, copied / "copy.tar")
    os.truncate(place.shard, place.offset + 100)
    os.truncate(copied / "copy.tar", place.offset + 100)
    for wrong, culprit in (
        (path, rf"^{place.shard}!s1/v.1@"),
        (path.replace(Path(place.shard).name, "copy.tar"), r"the shard has \d+ bytes"),
        (f"{place.shard}!s1", r"expected SHARD\.tar!ID@OFFSET"),
        (f"{copied}/9.tar!s1@0+4", r"9\.tar!s1@0\+4: No such file"),
        (str(place._replace(offset=10**9)), "truncated"),
        (sharded.paths[4].split("+")[0] + "+4000", r"v.4@\d+\+4000: "),
    ):
        with pytest.raises(InputError, match=culprit):
            read_audio(wrong)


# ---- the command ---------------------------------------------------------------------


def test_the_command(recordings, tmp_path, capsys):
    words = ["shards", "--manifest", str(recordings), "--num_workers=1"]
    main([*words, "--output", str(tmp_path / "out"), "--utterances_per_shard=6"])
    expected = f"{tmp_path}/out: 13 utterances in 3 shards, 0 MiB; 0 bad"
    assert expected in capsys.readouterr().out
    main(["shards", "--check", str(tmp_path / "out"), "--num_workers=1"])
    assert expected in capsys.readouterr().out
    for wrong, culprit in (
        (words[:3], "expected --manifest and --output to make"),
        (["shards"], "expected --manifest and --output to make"),
        ([*words, "--check", str(tmp_path)], "expected --manifest and --output"),
        ([*words, "--output=x", "--seed=-1"], "seed: -1"),
        ([*words, "--output=x", "--utterances_per_shard=0"], "per_shard: 0, expected"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert culprit in capsys.readouterr().err
