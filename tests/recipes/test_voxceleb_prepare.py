"""Preparing made-up corpora, and a real one: no leak, nothing lost, reruns."""

import inspect
import itertools
import json
import logging
import os
import shutil
import subprocess

import pytest
from voxceleb_corpus import (
    N_SPEAKERS,
    check_no_leak,
    make_arguments,
    make_corpus,
    write_noise,
)

from speechbrain_ext.data.corpora.voxceleb import (
    prepare_voxceleb,
    prepare_voxceleb_test,
)
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.utils.errors import InputError


@pytest.fixture
def corpus(tmp_path):
    return make_arguments(tmp_path)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json"}


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_splits_share_no_speaker(corpus):
    prepared = prepare_voxceleb(**corpus)
    train, _, test = check_no_leak(prepared, [corpus["trial_lists"]])
    assert len(train.speaker_names) == N_SPEAKERS - 2 - 3
    assert len(train) == 5 * 7
    assert (train.durations == 0.5).all()
    assert test.ids.tolist() == [
        "id00/a/00000",
        "id00/b/00001",
        "id01/a/00000",
        "id01/b/00000",
    ]
    wav = corpus["train_folders"] / "wav"
    assert test.paths[0] == str(wav / "id00/a/00000.wav")
    # 3 speakers of 5 recordings: 3 · 10 target pairs are all there are.
    counts = prepared.counts
    hours = pytest.approx(15 * 0.5 / 3600)
    assert counts["valid"] == {
        "speakers": 3,
        "utterances": 15,
        "hours": hours,
        "target": 30,
        "nontarget": 30,
    }
    trials = {str(corpus["trial_lists"]): {"target": 1, "nontarget": 2}}
    assert counts["test"]["lists"] == trials
    assert counts["left_out"]["trial_speakers"] == 2


def test_log_tells_the_counts(corpus, caplog):
    caplog.set_level(logging.INFO)
    prepare_voxceleb(**corpus)
    assert "train: 7 speakers, 35 utterances, 0.00 hours" in caplog.messages
    assert f"{corpus['trial_lists']}: 1 target, 2 non-target" in caplog.messages
    assert any(m.startswith("2 speakers of the trial lists") for m in caplog.messages)


@pytest.mark.parametrize(
    ("below", "extension"),
    [("dev/wav", "wav"), ("", "wav"), ("flac", "flac"), ("vox1_dev_wav/wav", "flac")],
)
def test_layouts_and_formats_give_the_same_ids(corpus, tmp_path, below, extension):
    make_corpus(tmp_path / "other" / below, extension)
    prepared = prepare_voxceleb(**corpus)
    other = prepare_voxceleb(
        **corpus
        | {"train_folders": [tmp_path / "other"], "save_folder": tmp_path / "save2"}
    )
    assert other.counts == prepared.counts
    for name in ("train", "valid", "test"):
        first, second = (read_manifest(getattr(p, name)) for p in (prepared, other))
        assert first.ids.tolist() == second.ids.tolist()
    assert prepared.valid_trials.read_bytes() == other.valid_trials.read_bytes()


def test_noise_beside_speech_is_ignored(corpus, tmp_path):
    before = prepare_voxceleb(**corpus).counts
    write_noise(tmp_path / "vox/musan/noise/free-sound/1.wav")
    write_noise(tmp_path / "vox/RIRS_NOISES/pointsource_noises/1.wav")
    write_noise(tmp_path / "vox/wav/id05/a/._00000.wav")
    write_noise(tmp_path / "vox/wav/readme.wav")
    after = prepare_voxceleb(**corpus | {"save_folder": tmp_path / "again"}).counts
    assert after == before


def test_other_folders_for_training_and_test(corpus, tmp_path):
    """Speakers of the lists are left out of training wherever they come from."""
    make_corpus(tmp_path / "test/wav", "flac", n_speakers=2)
    more = {"test_folders": [tmp_path / "test"]}
    prepared = prepare_voxceleb(**corpus | more)
    _, _, test = check_no_leak(prepared, [corpus["trial_lists"]])
    assert test.paths[0] == str(tmp_path / "test/wav/id00/a/00000.flac")


def test_without_validation_and_test(corpus, caplog):
    caplog.set_level(logging.INFO)
    whole = prepare_voxceleb(**corpus)
    assert all(path.is_file() for path in whole[:4])
    plain = prepare_voxceleb(**corpus | {"n_valid_speakers": 0, "trial_lists": ()})
    # What an earlier run left behind would be taken for this run's.
    assert sorted(contents(corpus["save_folder"])) == ["train.csv"]
    assert plain[1:4] == (None, None, None)
    assert len(read_manifest(plain.train)) == 5 * N_SPEAKERS
    assert "valid: none asked for, no file written" in caplog.messages


def test_test_alone_needs_no_training_speakers(corpus, tmp_path):
    """The official test folder holds speakers of the trial lists only."""
    make_corpus(tmp_path / "test/wav", n_speakers=2)
    arguments = (tmp_path / "test", corpus["trial_lists"], tmp_path / "test_only")
    alone = prepare_voxceleb_test(*arguments)
    assert sorted(contents(tmp_path / "test_only")) == ["test.csv"]
    assert (alone.train, alone.valid, alone.valid_trials) == (None, None, None)
    more = {"test_folders": tmp_path / "test"}
    both = prepare_voxceleb(**corpus | more)
    assert alone.test.read_bytes() == both.test.read_bytes()
    assert prepare_voxceleb_test(*arguments).skipped
    with pytest.raises(InputError, match="0 of 2 speakers remain to train on"):
        prepare_voxceleb(**corpus | {"train_folders": tmp_path / "test"})
    with pytest.raises(InputError, match="expected at least one folder, or test_fol"):
        prepare_voxceleb_test(tmp_path / "test", [], tmp_path / "none")


def make_cn_celeb(root):
    """The shape of CN-Celeb: models of several recordings, and flat test recordings."""
    takes = [f"id{s:05d}/{g}-01-00{t}" for s in (800, 801) for g in "xy" for t in "12"]
    tests = [f"test/id{s:05d}-z-01-00{t}" for s in (800, 801) for t in "12"]
    for name in takes:
        write_noise(root / f"data/{name}.flac")
    for name in [*tests, "enroll/id00800-enroll", "enroll/id00801-enroll"]:
        write_noise(root / f"eval/{name}.flac")
    write_noise(root / "eval/test/unnamed.flac", rate=8000)
    lists = root / "eval/lists"
    lists.mkdir()
    models = ["id00800-enroll", "id00801-enroll"]
    (lists / "trials.lst").write_text(
        "".join(f"{m} {t}.wav {int(m[:7] in t)}\n" for m in models for t in tests)
    )
    (lists / "enroll.lst").write_text("".join(f"{m} enroll/{m}.wav\n" for m in models))
    (lists / "enroll.map").write_text(
        "".join(
            " ".join([m, *(f"{t}.wav" for t in takes if t[:7] in m and "-002" in t)])
            + "\n"
            for m in models
        )
    )
    return lists, tests, takes


def test_models_of_an_enrolment_map(tmp_path, caplog):
    lists, tests, takes = make_cn_celeb(tmp_path / "CN-Celeb_flac")
    folders = [tmp_path / "CN-Celeb_flac/eval", tmp_path / "CN-Celeb_flac/data"]
    caplog.set_level(logging.INFO)
    for name, enrolled in [
        ("enroll.lst", ["enroll/id00800-enroll", "enroll/id00801-enroll"]),
        ("enroll.map", [take for take in takes if "-002" in take]),
    ]:
        arguments = (folders, lists / "trials.lst", tmp_path / name)
        prepared = prepare_voxceleb_test(*arguments, enrol_map=lists / name)
        test = read_manifest(prepared.test)
        assert test.ids.tolist() == sorted([*enrolled, *tests])
        assert test.speaker_names.tolist() == ["id00800", "id00801"]
        assert str(tmp_path / "CN-Celeb_flac/eval/test/id00801-z-01-002.flac") in (
            test.paths.tolist()
        )
        assert prepared.counts["test"]["models"] == 2
        assert "enrol side: 2 models" in caplog.messages
        assert prepare_voxceleb_test(*arguments, enrol_map=lists / name).skipped
        os.utime(lists / name, ns=(1, 1))
        assert not prepare_voxceleb_test(*arguments, enrol_map=lists / name).skipped


def test_speakers_of_flat_test_recordings_are_not_trained_on(tmp_path):
    """Their first folder is ``test``: no speaker."""
    lists, *_ = make_cn_celeb(tmp_path / "cn")
    make_corpus(tmp_path / "vox/wav", n_speakers=4)
    for session in "ab":
        write_noise(tmp_path / f"vox/wav/id00800/{session}/00000.wav")
    prepared = prepare_voxceleb(
        [tmp_path / "vox"],
        tmp_path / "save",
        [tmp_path / "cn/eval", tmp_path / "cn/data"],
        lists / "trials.lst",
        n_valid_speakers=2,
        enrol_map=lists / "enroll.map",
    )
    assert prepared.counts["left_out"]["trial_speakers"] == 1
    train, valid = read_manifest(prepared.train), read_manifest(prepared.valid)
    trained = {*train.speaker_names.tolist(), *valid.speaker_names.tolist()}
    assert trained == {"id00", "id01", "id02", "id03"}


def test_what_an_enrolment_map_must_hold(tmp_path):
    root = tmp_path / "cn"
    lists, *_ = make_cn_celeb(root)
    folders, save = [root / "eval", root / "data"], tmp_path / "save"

    def prepare(folders=folders):
        trials = lists / "trials.lst"
        prepare_voxceleb_test(folders, trials, save, enrol_map=lists / "enroll.map")

    with pytest.raises(InputError, match=r"enroll.map: line 1: .* not in the rec"):
        prepare([root / "eval"])
    with pytest.raises(InputError, match=r"trials.lst: line 1: utterance 'test"):
        prepare([root / "data"])
    with pytest.raises(InputError, match=r"line 1: utterance 'id00800-enroll' is"):
        prepare_voxceleb_test([root / "eval"], lists / "trials.lst", save)
    (lists / "enroll.map").write_text("id00800-enroll id00800/x-01-001\n")
    with pytest.raises(InputError, match=r"line 5: enrol name 'id00801-enroll' is not"):
        prepare()
    with pytest.raises(InputError, match=r"enroll.map without trial_lists"):
        prepare_voxceleb([root / "eval"], save, enrol_map=lists / "enroll.map")
    (lists / "enroll.map").unlink()
    with pytest.raises(InputError, match=r"enroll.map: no such file"):
        prepare()
    assert not save.exists()


def test_excluded_speakers_and_train_lists(corpus, tmp_path):
    listed = [f"id{n:02d} id{n:02d}/{s}/00000.wav\n" for n in range(9) for s in "ab"]
    (tmp_path / "list.txt").write_text("".join(listed))
    more = {"train_lists": [tmp_path / "list.txt"], "exclude_speakers": ["id03", "x"]}
    prepared = prepare_voxceleb(**corpus | more)
    train, valid, _ = check_no_leak(prepared, [corpus["trial_lists"]])
    used = set(train.ids.tolist()) | set(valid.ids.tolist())
    of_list = {f"id{n:02d}/{s}/00000" for n in (2, 4, 5, 6, 7, 8) for s in "ab"}
    assert used == of_list


def test_bad_and_short_recordings_are_left_out(corpus, tmp_path):
    wav = tmp_path / "vox/wav"
    write_noise(wav / "id05/a/00000.wav", rate=8000)
    write_noise(wav / "id05/a/00001.wav", channels=2)
    write_noise(wav / "id06/a/00000.wav", seconds=0.39)
    write_noise(wav / "id00/a/00000.wav", seconds=0.1)  # a test recording stays
    prepared = prepare_voxceleb(**corpus | {"max_bad_files": 2})
    train, valid, test = check_no_leak(prepared, [corpus["trial_lists"]])
    assert len(test) == 4
    used = train.ids.tolist() + valid.ids.tolist()
    for name in ("id05/a/00000", "id05/a/00001", "id06/a/00000"):
        assert name not in used
    left_out = prepared.counts["left_out"]
    assert (left_out["bad_files"], left_out["too_short"]) == (2, 1)
    listing = (tmp_path / "save/bad_files.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listing] == [
        str(wav / "id05/a/00000.wav"),
        str(wav / "id05/a/00001.wav"),
    ]
    assert prepare_voxceleb(**corpus | {"max_bad_files": 2}).skipped


def test_rerun_is_skipped_and_touches_nothing(corpus):
    first = prepare_voxceleb(**corpus)
    before = times(corpus["save_folder"])
    again = prepare_voxceleb(**corpus, num_workers=3)
    assert not first.skipped
    assert again == first._replace(skipped=True)
    assert times(corpus["save_folder"]) == before


def fingerprint_of(prepared):
    marker = json.loads((prepared.train.parent / "prepare.json").read_text())
    return marker["fingerprint"]


def test_every_argument_counts(corpus, tmp_path):
    """All but num_workers, which changes nothing in the result."""
    make_corpus(tmp_path / "moved/wav")
    both = [f"id{n:02d} id{n:02d}/{s}/00000.wav\n" for n in range(12) for s in "ab"]
    (tmp_path / "list.txt").write_text("".join(both))
    shutil.copy(tmp_path / "trials.txt", tmp_path / "trials2.txt")
    (tmp_path / "enroll.map").write_text(
        "id00/a/00000 id00/a/00001.wav\nid01/b/00000 id01/a/00000 id01/b/00001\n"
    )
    other = {
        "train_folders": tmp_path / "moved",
        "save_folder": tmp_path / "save2",
        "test_folders": tmp_path / "moved",
        "trial_lists": tmp_path / "trials2.txt",
        "train_lists": tmp_path / "list.txt",
        "exclude_speakers": ["id04"],
        "n_valid_speakers": 2,
        "n_valid_trials": 20,
        "max_valid_utterances": 4,
        "min_seconds": 0.3,
        "max_bad_files": 1,
        "convert_folder": tmp_path / "converted",
        "seed": 1,
        "enrol_map": tmp_path / "enroll.map",
    }
    names = set(inspect.signature(prepare_voxceleb).parameters)
    assert names == {*other, "num_workers"}
    fingerprints = {fingerprint_of(prepare_voxceleb(**corpus))}
    for name, value in other.items():
        prepared = prepare_voxceleb(**corpus | {name: value})
        assert not prepared.skipped, name
        fingerprints.add(fingerprint_of(prepared))
    assert len(fingerprints) == 1 + len(other)


@pytest.mark.parametrize("damage", ["no marker", "truncated", "deleted", "list edited"])
def test_done_again_after_damage(corpus, damage):
    prepared = prepare_voxceleb(**corpus)
    before = contents(corpus["save_folder"])
    if damage == "no marker":
        (corpus["save_folder"] / "prepare.json").unlink()
    elif damage == "truncated":
        os.truncate(prepared.train, prepared.train.stat().st_size // 2)
    elif damage == "deleted":
        prepared.valid_trials.unlink()
    else:
        os.utime(corpus["trial_lists"], ns=(1, 1))
    assert not prepare_voxceleb(**corpus).skipped
    assert contents(corpus["save_folder"]) == before
    assert prepare_voxceleb(**corpus).skipped


def test_killed_while_writing_leaves_no_marker(corpus):
    """The third file cannot be written: nothing claims that the run was finished."""
    prepare_voxceleb(**corpus)
    save = corpus["save_folder"]
    (save / "test.csv").unlink()
    (save / "test.csv").mkdir()
    with pytest.raises(OSError, match=r"test\.csv"):
        prepare_voxceleb(**corpus | {"seed": 1})
    assert not (save / "prepare.json").exists()
    assert not list(save.glob(".*"))  # no half-written file either
    (save / "test.csv").rmdir()
    assert not prepare_voxceleb(**corpus | {"seed": 1}).skipped


def test_a_failed_run_leaves_the_earlier_one_whole(corpus):
    prepare_voxceleb(**corpus)
    before = times(corpus["save_folder"])
    with pytest.raises(InputError):
        prepare_voxceleb(**corpus | {"n_valid_speakers": 99})
    assert times(corpus["save_folder"]) == before
    assert prepare_voxceleb(**corpus).skipped


def test_result_depends_on_the_seed_alone(corpus, tmp_path):
    """Not on threads, nor on the order in which the disk lists files."""
    first = prepare_voxceleb(**corpus, num_workers=1)
    folder = tmp_path / "vox/wav"
    folder.rename(tmp_path / "kept")
    for path in sorted((tmp_path / "kept").rglob("*.wav"), reverse=True):
        copy = folder / path.relative_to(tmp_path / "kept")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    second = prepare_voxceleb(**corpus | {"save_folder": tmp_path / "2"}, num_workers=8)
    assert contents(first.train.parent) == contents(second.train.parent)
    other = prepare_voxceleb(**corpus | {"save_folder": tmp_path / "3", "seed": 7})
    assert contents(first.train.parent) != contents(other.train.parent)


def test_folders_may_be_relative(corpus, tmp_path, monkeypatch):
    first = prepare_voxceleb(**corpus)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    again = prepare_voxceleb(
        ["vox"], "~/save", None, ["trials.txt"], n_valid_speakers=3
    )
    assert again == first._replace(skipped=True)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not on PATH")
def test_m4a_is_converted_once(corpus, tmp_path):
    wav, m4a = tmp_path / "vox/wav/id00/a/00000.wav", tmp_path / "one.m4a"
    command = ["ffmpeg", "-v", "error", "-i", str(wav), "-c:a", "aac", str(m4a)]
    subprocess.run(command, check=True)
    for number, name in itertools.product(
        range(7), ("a/0", "a/1", "a/2", "b/0", "b/1")
    ):
        copy = tmp_path / f"vox2/dev/aac/id{number:02d}/{name[0]}/0000{name[-1]}.m4a"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(m4a, copy)
    more = {
        "train_folders": tmp_path / "vox2",
        "n_valid_speakers": 2,
        # Below the root, and named like a folder of speakers: not read as one.
        "convert_folder": tmp_path / "vox2/dev/flac",
        "exclude_speakers": ["id05"],
    }
    prepared = prepare_voxceleb(**corpus | more)
    train, valid, test = check_no_leak(prepared, [corpus["trial_lists"]])
    assert (len(train), len(valid), len(test)) == (10, 10, 4)
    before = times(tmp_path / "vox2/dev/flac/id02/a")
    assert sorted(before) == ["00000.flac", "00001.flac", "00002.flac"]
    assert train.paths[0].startswith(str(tmp_path / "vox2/dev/flac/id0"))
    assert not (tmp_path / "vox2/dev/flac/id05").exists()  # not needed
    (tmp_path / "save/prepare.json").unlink()
    assert not prepare_voxceleb(**corpus | more).skipped
    assert times(tmp_path / "vox2/dev/flac/id02/a") == before


def test_real_speech(shared, tmp_path):
    data = shared / "data"
    trial_lists = [data / "dev/trials.txt", data / "dev/trials_clean.txt"]
    arguments = {
        "train_folders": [data / "dev", data / "train_extra"],
        "save_folder": tmp_path,
        "trial_lists": trial_lists,
        "n_valid_speakers": 8,
    }
    prepared = prepare_voxceleb(**arguments)
    train, valid, test = check_no_leak(prepared, trial_lists)
    n_speakers = [len(m.speaker_names) for m in (train, valid, test)]
    assert n_speakers == [312 - 8, 8, 10]
    lists = prepared.counts["test"]["lists"]
    assert list(lists.values()) == [
        {"target": 1500, "nontarget": 1500},
        {"target": 675, "nontarget": 675},
    ]
    # Speakers of two sessions are there in plenty.
    sessions_of = {}
    for name in valid.ids.tolist():
        sessions_of.setdefault(name.split("/")[0], set()).add(name.rsplit("/", 1)[0])
    assert all(len(of_speaker) >= 2 for of_speaker in sessions_of.values())
    assert prepare_voxceleb(**arguments).skipped
