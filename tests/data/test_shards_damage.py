"""Shards of bad recordings, on full disks, damaged, truncated and gone: what is said,
and that nothing else is lost."""

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal

import numpy as np
import pytest
import soundfile

from speechbrain_ext.__main__ import main
from speechbrain_ext.data.audio import joined_path, read_audio, read_header
from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.data.sampler import CropBatchSampler, Draw
from speechbrain_ext.data.shards.check import check_shards
from speechbrain_ext.data.shards.index import from_shards
from speechbrain_ext.data.shards.places import parse_place
from speechbrain_ext.data.shards.writer import _locked, make_shards
from speechbrain_ext.utils.errors import InputError, command_line

N = 8


@pytest.fixture
def recordings(tmp_path):
    """Eight recordings of 0.5 s in flac, and their manifest."""
    generator = np.random.default_rng(1)
    folder = tmp_path / "recordings"
    folder.mkdir()
    paths = [folder / f"u{number}.flac" for number in range(N)]
    for path in paths:
        soundfile.write(path, 0.1 * generator.standard_normal(8000), 16000)
    ids = [path.stem for path in paths]
    speakers = [f"s{number % 2}" for number in range(N)]
    write_manifest(
        folder / "train.csv", Manifest(ids, list(map(str, paths)), [0.5] * N, speakers)
    )
    return folder


@pytest.fixture
def made(recordings, tmp_path):
    """Two shards of them."""
    make_shards([recordings / "train.csv"], tmp_path / "out", 4, num_workers=1)
    return tmp_path / "out"


def make(recordings, folder, **settings):
    return make_shards([recordings / "train.csv"], folder, 4, num_workers=1, **settings)


# ---- bad recordings ------------------------------------------------------------------


def spoil(path, damage):
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("no sound")
    elif damage == "short":
        soundfile.write(path, np.full(7999, 0.1), 16000)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-3000])
    elif damage == "rate":
        soundfile.write(path, np.full(8000, 0.1), 8000)


@pytest.mark.parametrize("damage", ["missing", "text", "short", "cut", "rate"])
def test_a_bad_recording_is_named_or_left_out(recordings, tmp_path, damage):
    mended = (recordings / "u3.flac").read_bytes()
    spoil(recordings / "u3.flac", damage)
    with pytest.raises(InputError, match=r"^u3: .*u3\.flac: .*1 bad files, expected"):
        make(recordings, tmp_path / "out")
    assert not (tmp_path / "out/shards.json").exists()
    counts = make(recordings, tmp_path / "out", max_bad_files=1)
    assert (counts.utterances, counts.bad) == (N - 1, 1)
    assert "u3.flac" in (tmp_path / "out/bad_files.txt").read_text()
    # trained on without it, in the order of the others
    manifest = read_manifest(recordings / "train.csv")
    sharded = from_shards(manifest, tmp_path / "out")
    assert sharded.ids.tolist() == [f"u{n}" for n in range(N) if n != 3]
    # and with it, once it is mended
    (recordings / "u3.flac").write_bytes(mended)
    assert make(recordings, tmp_path / "out").bad == 0
    assert not (tmp_path / "out/bad_files.txt").exists()
    assert len(from_shards(manifest, tmp_path / "out")) == N


def test_a_part_of_a_joined_row_is_named(recordings, tmp_path):
    parts = [str(recordings / f"u{n}.flac") for n in (0, 1)]
    row = joined_path(parts, [8000, 8001])
    write_manifest(tmp_path / "m.csv", Manifest(["a"], [row], [1.0], ["s"]))
    with pytest.raises(InputError, match=r"u1\.flac: 8000 samples, .* says 8001"):
        make_shards([tmp_path / "m.csv"], tmp_path / "out", num_workers=1)


@pytest.mark.parametrize("name", ["a|b", "../a", "/a", "a//b", "a\tb"])
def test_names_that_no_file_can_have(recordings, tmp_path, name):
    path = str(recordings / "u0.flac")
    write_manifest(tmp_path / "m.csv", Manifest([name], [path], [0.5], ["s"]))
    with pytest.raises(InputError, match="expected one that can be a file name"):
        make_shards([tmp_path / "m.csv"], tmp_path / "out")


# ---- folders and disks ---------------------------------------------------------------


def test_a_full_disk_names_the_shard_and_loses_nothing(recordings, tmp_path):
    long = recordings / "long.wav"
    soundfile.write(long, np.zeros(100_000), 16000)
    short = read_manifest(recordings / "train.csv").select(np.arange(4))
    write_manifest(recordings / "a.csv", short)
    write_manifest(recordings / "b.csv", Manifest(["long"], [str(long)], [6.25], ["s"]))
    both, folder = [recordings / "a.csv", recordings / "b.csv"], tmp_path / "out"

    @command_line
    def on_a_full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
        make_shards(both, folder, 4, num_workers=2)

    def heard():
        with (
            open(tmp_path / "stderr", "w") as file,
            contextlib.redirect_stderr(file),
        ):
            on_a_full_disk()

    process = multiprocessing.get_context("fork").Process(target=heard)
    process.start()
    process.join()
    assert process.exitcode == 1
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert line.startswith(f"error: {folder}/000001.tar: ")
    names = {path.name for path in folder.iterdir()}
    assert names == {".lock", "plan.json", "000000.tar", "000000.json"}
    kept = (folder / "000000.tar").stat().st_mtime_ns
    assert make_shards(both, folder, 4, num_workers=1).utterances == 5
    assert (folder / "000000.tar").stat().st_mtime_ns == kept


def test_a_folder_of_other_shards_is_left_alone(recordings, made):
    before = sorted(made.iterdir())
    with pytest.raises(InputError, match="begun with other utterances_per_shard, exp"):
        make_shards([recordings / "train.csv"], made, 5)
    with pytest.raises(InputError, match="begun with other seed, expected the same"):
        make(recordings, made, seed=1)
    manifest = read_manifest(recordings / "train.csv").select(np.arange(7))
    write_manifest(recordings / "train.csv", manifest)
    with pytest.raises(InputError, match="begun with other utterances, manifests, ex"):
        make(recordings, made)
    (made / "plan.json").write_text("{")
    with pytest.raises(InputError, match="begun with other an unreadable plan"):
        make(recordings, made)
    (made / "plan.json").unlink()
    with pytest.raises(InputError, match="holds other tar files"):
        make(recordings, made)
    assert sorted(made.iterdir()) == [p for p in before if p.name != "plan.json"]


def _hold(folder, held, done):
    with _locked(folder):
        held.set()
        done.wait()


def test_two_runs_in_one_folder(recordings, made):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(made, held, done))
    process.start()
    held.wait()
    with pytest.raises(InputError, match="another process is making shards in it"):
        make(recordings, made)
    done.set()
    process.join()
    make(recordings, made)


def _die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr("speechbrain_ext.data.shards.writer._make", _die)
    with pytest.raises(InputError, match="a worker process was killed"):
        make(recordings, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"utterances_per_shard": 0}, "utterances_per_shard: 0, expected at least 1"),
        ({"num_workers": 0}, "num_workers: 0, expected at least 1"),
        ({"seed": -1}, "seed: -1, expected at least 0"),
        ({"max_bad_files": -1}, "max_bad_files: -1, expected at least 0"),
    ],
)
def test_settings_out_of_range(recordings, tmp_path, settings, expected):
    with pytest.raises(InputError, match=expected):
        make_shards([recordings / "train.csv"], tmp_path / "out", **settings)


# ---- damaged shards ------------------------------------------------------------------


def middle_of(made, name):
    """(tar, a byte in the middle of an utterance)."""
    for record in made.glob("0*.json"):
        for found, parts in json.loads(record.read_text())["samples"]:
            if found == name:
                offset, size, *_ = parts[0]
                return record.with_suffix(".tar"), offset + size // 2
    raise AssertionError(name)


def test_the_check_names_shard_and_utterance(made, capsys):
    assert check_shards(made, num_workers=1) == (2, N, total_bytes(made), 0)
    tar, at = middle_of(made, "u5")
    with open(tar, "r+b") as file:
        file.seek(at)
        file.write(b"\x55\xaa")
    with pytest.raises(
        InputError, match=rf"^{tar}!u5: damaged \(1 bad utterances, exp"
    ):
        check_shards(made, num_workers=1)
    assert check_shards(made, max_bad_files=1, num_workers=1).bad == 1
    with pytest.raises(SystemExit):
        main(["shards", "--check", str(made), "--num_workers=1"])
    assert f"{tar}!u5: damaged" in capsys.readouterr().err


def total_bytes(made):
    return sum(path.stat().st_size for path in made.glob("*.tar"))


@pytest.mark.parametrize("damage", ["cut", "gone", "padding", "record"])
def test_the_check_of_other_damage(recordings, made, damage):
    tar, at = middle_of(made, "u5")
    record = json.loads(tar.with_suffix(".json").read_text())
    if damage == "cut":
        os.truncate(tar, at)
        order = [name for name, _ in record["samples"]]
        n_bad, reason = 4 - order.index("u5"), f"u5: truncated at byte {at}"
    elif damage == "gone":
        tar.unlink()
        n_bad, reason = 4, "No such file"
    else:
        content = bytearray(tar.read_bytes())
        content[-1] = 1
        tar.write_bytes(content)
        n_bad, reason = 1, "SHA-256 differs, but no recording in it is damaged"
        if damage == "record":
            tar.with_suffix(".json").write_text("{}")
            n_bad, reason = 4, r"its \.json is damaged"
    with pytest.raises(InputError, match=rf"{reason}.*\({n_bad} bad utterances"):
        check_shards(made, num_workers=1)
    # what the message says to do
    tar.unlink(missing_ok=True)
    make(recordings, made)
    assert check_shards(made, num_workers=1).bad == 0


@pytest.mark.parametrize("damage", ["cut", "gone", "marker", "index", "none", "shape"])
def test_training_does_not_begin_on_damaged_shards(recordings, made, damage):
    manifest = read_manifest(recordings / "train.csv")
    tar = made / "000001.tar"
    if damage == "cut":
        os.truncate(tar, 600)
        expected = r"000001\.tar: 600 bytes, expected a shard of \d+ bytes"
    elif damage == "gone":
        tar.unlink()
        expected = r"000001\.tar: missing, expected a shard"
    elif damage == "marker":
        (made / "shards.json").write_text('{"format_version": 1, "shards": [{}]}')
        expected = r"shards\.json: damaged"
    elif damage == "index":
        os.truncate(made / "index.npy", 200)
        expected = r"index\.npy: .*; expected the index"
    elif damage == "shape":
        np.save(made / "index.npy", np.zeros((5, 3)))
        expected = r"index\.npy: float64 \[5, 3\], expected int64 \[5, 8\]"
    else:
        shutil.rmtree(made)
        expected = r"shards\.json: no such file"
    with pytest.raises(InputError, match=expected):
        from_shards(manifest, made)


def test_a_manifest_of_other_recordings(made, recordings):
    manifest = read_manifest(recordings / "train.csv")
    ids, paths, speakers = (
        column.tolist() for column in (manifest.ids, manifest.paths, manifest.speakers)
    )
    other = Manifest([*ids, "new"], [*paths, "x"], [0.5] * 9, [*speakers, "s1"])
    with pytest.raises(
        InputError, match=r"no utterance 'new', expected all 9 of .*\(1"
    ):
        from_shards(other, made)
    longer = Manifest(ids, paths, [0.5] * 7 + [0.6], speakers)
    with pytest.raises(
        InputError, match=r"'u7' has 8000 samples, the manifest says 96"
    ):
        from_shards(longer, made)


def test_what_becomes_damaged_later_is_named_where_it_is_read(recordings, made):
    sharded = from_shards(read_manifest(recordings / "train.csv"), made)
    tar, at = middle_of(made, "u5")
    read_audio(sharded.paths[5])  # the shard is open
    os.truncate(tar, at)
    with pytest.raises(InputError, match=rf"^{tar}!u5@"):
        read_audio(sharded.paths[5])
    with pytest.raises(InputError, match=r"expected a place SHARD\.tar!ID@OFFSET"):
        read_audio(f"{tar}!u5")
    with pytest.raises(InputError, match="No such file or directory, expected a shard"):
        read_header(f"{made}/9.tar!u5@0+4")
    shutil.copy(tar, made / "copy.tar")
    with pytest.raises(InputError, match=r"the shard has \d+ bytes, expected at least"):
        read_audio(sharded.paths[5].replace(tar.name, "copy.tar"))


# ---- bad recordings while training ---------------------------------------------------


def batches_of(dataset, num_workers, epochs=(1,)):
    sampler = CropBatchSampler(dataset.labels, 2, (0.2, 0.4), n_speeds=2, seed=4)
    loader, batches = make_loader(dataset, sampler, num_workers), []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def test_a_stated_number_may_be_bad_while_training(recordings, made, caplog):
    sharded = from_shards(read_manifest(recordings / "train.csv"), made)
    whole = batches_of(TrainingSet(sharded, 4, None, (1.0, 0.9)), 0, (1, 2))
    place = parse_place(sharded.paths[5])
    with open(place.shard, "r+b") as file:
        file.seek(place.offset)
        file.write(bytes(place.size))
    runs = []
    for num_workers in (0, 2):
        dataset = TrainingSet(sharded, 4, None, (1.0, 0.9), max_bad_recordings=1)
        runs.append(batches_of(dataset, num_workers, (1, 2)))
        assert len(dataset.bad) == 1
    assert caplog.text.count("u5@") == 1  # the workers' own lines go to stderr
    assert "another is drawn in its place (1 of at most 1)" in caplog.text
    for batch, found, with_workers in zip(whole, *runs):
        assert "u5" not in found.ids
        assert found.ids == with_workers.ids
        assert (found.wavs == with_workers.wavs).all()
        for row, name in enumerate(batch.ids):
            if name != "u5":
                assert (found.wavs[row] == batch.wavs[row]).all()
                assert found.labels[row] == batch.labels[row]
    with pytest.raises(InputError, match="u5@"):
        batches_of(TrainingSet(sharded, 4, None, (1.0, 0.9)), 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_too_many_ends_the_training(recordings, num_workers):
    for name in ("u0", "u1", "u2"):
        (recordings / f"{name}.flac").unlink()
    manifest = read_manifest(recordings / "train.csv")
    dataset = TrainingSet(manifest, 4, None, (1.0, 0.9), max_bad_recordings=2)
    with pytest.raises(
        InputError, match=r"3 bad recordings, expected at most max_bad_"
    ):
        batches_of(dataset, num_workers)
    with pytest.raises(InputError, match="max_bad_recordings: -1"):
        TrainingSet(manifest, 4, max_bad_recordings=-1)


def test_a_replacement_of_true_speed_only_is_not_perturbed(recordings):
    (recordings / "u0.flac").unlink()
    manifest = read_manifest(recordings / "train.csv")
    # the speakers s1 keep their true speed
    manifest = Manifest(
        manifest.ids, manifest.paths, manifest.durations, manifest.speakers, 1
    )
    dataset = TrainingSet(manifest, 0, None, (1.0, 0.5), max_bad_recordings=1)
    seen = set()
    for position in range(40):
        item = dataset[Draw(0, position, 1, 2000, 1)]
        speaker = int(manifest.labels[manifest.ids.tolist().index(item["id"])])
        assert item["label"] == (1 if speaker == 0 else 2)
        windows = np.lib.stride_tricks.sliding_window_view(
            read_audio(str(recordings / f"{item['id']}.flac")), 2000
        )
        plain = bool((windows == item["wav"].numpy()).all(axis=1).any())
        assert plain == (speaker == 1)
        seen.add(speaker)
    assert seen == {0, 1}


# ---- the command ---------------------------------------------------------------------


def test_the_command(recordings, tmp_path, capsys):
    words = ["shards", "--manifest", str(recordings / "train.csv"), "--num_workers=1"]
    main([*words, "--output", str(tmp_path / "out"), "--utterances_per_shard=3"])
    out = capsys.readouterr().out
    assert f"{tmp_path}/out: 8 utterances in 3 shards, 0 MiB; 0 bad" in out
    main(["shards", "--check", str(tmp_path / "out"), "--num_workers=1"])
    assert "8 utterances in 3 shards" in capsys.readouterr().out
    for wrong in (words[:3], ["shards"], [*words, "--check", str(tmp_path)]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "expected --manifest and --output to make" in capsys.readouterr().err
