"""Preparing CN-Celeb in its true layout: no leak, nothing lost, reruns, bad input."""

import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from cnceleb_corpus import (
    DEV,
    EVAL,
    JOIN_SECONDS,
    RECIPE,
    SECOND,
    TAKES,
    make_arguments,
    write_cnceleb,
    write_lines,
    write_take,
)

from speechbrain_ext.data.audio import parts_of, read_audio
from speechbrain_ext.data.corpora.cnceleb import prepare_cnceleb, prepare_cnceleb_test
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.scoring.enrolment import read_enrol_map
from speechbrain_ext.scoring.trials import read_trials, rows_of
from speechbrain_ext.utils.errors import InputError

PER_SPEAKER = sum(map(len, TAKES.values()))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus, only to be read."""
    return make_arguments(tmp_path_factory.mktemp("cnceleb"))


@pytest.fixture
def good(made, tmp_path):
    """The same corpus, its results elsewhere."""
    return made | {"save_folder": tmp_path / "save"}


@pytest.fixture
def spoilt(made, tmp_path):
    """A copy to spoil."""
    folders = {}
    for name in ("cnceleb1_folder", "cnceleb2_folder"):
        folders[name] = tmp_path / made[name].name
        shutil.copytree(made[name], folders[name])
    return made | folders | {"save_folder": tmp_path / "save"}


def test_no_speaker_is_in_two_parts(good):
    prepared = prepare_cnceleb(**good)
    train, valid, test = (read_manifest(p) for p in (prepared[0], *prepared[1:4:2]))
    speakers = [set(m.speaker_names.tolist()) for m in (train, valid, test)]
    assert speakers[2] == set(EVAL)
    assert speakers[0] | speakers[1] == set(DEV + SECOND)
    assert not speakers[0] & speakers[1]
    assert len(speakers[1]) == 2
    trials = read_trials(prepared.valid_trials)
    rows_of(trials, valid.ids, "valid.csv")
    assert trials.n_target == trials.n_nontarget > 0


def test_every_training_recording_is_in_one_row_and_no_row_is_too_short(good):
    prepared = prepare_cnceleb(**good)
    train = read_manifest(prepared.train)
    parts = [part for path in train.paths.tolist() for part, *_ in parts_of(path)]
    assert len(parts) == len(set(parts)) == 4 * PER_SPEAKER
    assert prepared.counts["train"]["recordings"] == 4 * PER_SPEAKER
    assert (train.durations >= JOIN_SECONDS).all()
    for row in range(len(train)):
        path, seconds = train.paths[row], train.durations[row]
        names = {part.rsplit("/", 2)[1] for part, *_ in parts_of(path)}
        genres = {part.rsplit("/", 1)[1].split("-")[0] for part, *_ in parts_of(path)}
        assert names == {train.speakers[row]}
        assert genres == {train.ids[row].split("/")[1].split("-")[0]}
        wav = read_audio(path)
        assert len(wav) == round(seconds * 16000)
        alone = [read_audio(part) for part, *_ in parts_of(path)]
        assert np.array_equal(wav, np.concatenate(alone))


def test_validation_and_test_are_as_recorded(good):
    prepared = prepare_cnceleb(**good)
    for path in (prepared.valid, prepared.test):
        assert "|" not in path.read_text()
    assert len(read_manifest(prepared.valid)) == 2 * PER_SPEAKER


def test_the_test_has_both_enrolments(good, tmp_path):
    whole = prepare_cnceleb(**good)
    test = read_manifest(whole.test)
    lists = good["cnceleb1_folder"] / "eval/lists"
    for name in ("enroll.map", "enroll.lst"):
        assert len(read_enrol_map(lists / name).rows(test.ids, "test.csv")) == 3
    rows_of(read_trials(lists / "trials.lst"), test.ids, "test.csv", "test")
    assert len(test) == 3 * 4 + 3 * 2 + 3
    alone = prepare_cnceleb_test(good["cnceleb1_folder"], tmp_path / "alone")
    assert alone.test.read_bytes() == whole.test.read_bytes()
    assert (alone.train, alone.valid) == (None, None)
    assert prepare_cnceleb_test(good["cnceleb1_folder"], tmp_path / "alone").skipped
    one = prepare_cnceleb_test(good["cnceleb1_folder"], tmp_path / "one", "average")
    assert len(read_manifest(one.test)) == 3 * 4 + 3 * 2


def test_counts_by_genre(good, caplog):
    caplog.set_level(logging.INFO)
    counts = prepare_cnceleb(**good).counts
    seconds = {}
    for session, lengths in TAKES.items():
        genre = session.split("-")[0]
        seconds[genre] = seconds.get(genre, 0) + sum(lengths)
    for split, n in (("train", 4), ("valid", 2)):
        genres = counts[split]["genres"]
        assert set(genres) == set(seconds)
        for genre, found in genres.items():
            assert found["speakers"] == n
            assert found["hours"] * 3600 == pytest.approx(n * seconds[genre])
        sizes = [found["utterances"] for found in genres.values()]
        assert sum(sizes) == counts[split]["utterances"]
    assert counts["test"]["genres"]["unknown"]["utterances"] == 3  # id00800-enroll
    assert counts["test"]["models"] == 3
    assert f"train: joined from {4 * PER_SPEAKER} recordings" in caplog.messages
    assert "train, singing: 4 speakers, 4 utterances, 0.00 hours" in caplog.messages
    assert counts["left_out"]["trial_speakers"] == len(EVAL)


def test_wav_and_flac_give_the_same_rows(good, tmp_path):
    first, second = write_cnceleb(tmp_path / "as_wav", "wav")
    folders = {"cnceleb1_folder": first, "cnceleb2_folder": second}
    other = prepare_cnceleb(**good | folders | {"save_folder": tmp_path / "other"})
    prepared = prepare_cnceleb(**good)
    assert "wav:" in other.train.read_text()
    for name in ("train", "valid", "test"):
        one, two = (read_manifest(getattr(p, name)) for p in (prepared, other))
        assert one.ids.tolist() == two.ids.tolist()
        assert one.durations.tolist() == two.durations.tolist()
    assert prepared.valid_trials.read_bytes() == other.valid_trials.read_bytes()


def test_without_joining_and_without_the_second_corpus(good):
    more = {"join_seconds": 0, "cnceleb2_folder": None, "n_valid_speakers": 0}
    train = read_manifest(prepare_cnceleb(**good | more).train)
    assert set(train.speaker_names.tolist()) == set(DEV)
    assert len(train) == len(DEV) * PER_SPEAKER
    assert train.durations.min() < JOIN_SECONDS


def test_a_rerun_does_nothing_and_any_argument_or_list_changes_that(spoilt):
    before = prepare_cnceleb(**spoilt)
    assert not before.skipped
    assert prepare_cnceleb(**spoilt).skipped
    assert prepare_cnceleb(**spoilt, num_workers=2).skipped
    assert prepare_cnceleb(**spoilt).counts == before.counts
    changes = [
        *({"join_seconds": 2.0}, {"enrolment": "average"}, {"seed": 1}),
        *({"exclude_speakers": [DEV[0]]}, {"n_valid_speakers": 0}),
        *({"n_valid_trials": 10}, {"max_valid_utterances": 3}, {"min_seconds": 0.1}),
        *({"max_bad_files": 1}, {"cnceleb2_folder": None, "n_valid_speakers": 0}),
    ]
    for change in changes:
        assert not prepare_cnceleb(**spoilt | change).skipped, change
        assert prepare_cnceleb(**spoilt | change).skipped
    assert not prepare_cnceleb(**spoilt).skipped
    for name in ("dev/dev.lst", "eval/lists/enroll.map", "eval/lists/enroll.lst"):
        path = spoilt["cnceleb1_folder"] / name
        path.write_text(path.read_text() + "\n")
        assert not prepare_cnceleb(**spoilt).skipped, name


def test_a_speaker_of_the_trials_is_not_trained_on_even_where_dev_lst_names_them(
    spoilt,
):
    path = spoilt["cnceleb1_folder"] / "dev/dev.lst"
    write_lines(path, [*DEV, EVAL[0], EVAL[-1]])
    prepared = prepare_cnceleb(**spoilt | {"n_valid_speakers": 0})
    names = set(read_manifest(prepared.train).speaker_names.tolist())
    assert names == set(DEV + SECOND)


# ---- bad input -----------------------------------------------------------------------


def spoil_list(name, line):
    """Add a line to a list of the first corpus."""

    def spoil(first, second):
        with open(first / name, "a") as file:
            file.write(f"{line}\n")

    return spoil


def spoil_file(name, **options):
    """Put something else in the place of a recording of the first corpus."""

    def spoil(first, second):
        wav = options.pop("wav", np.zeros(8000))
        soundfile.write(first / name, wav, options.get("rate", 16000))

    return spoil


def add_recording(name):
    def spoil(first, second):
        write_take(first / "data" / name, "id00000", 0.5, np.random.default_rng(0))

    return spoil


def empty_speaker(first, second):
    shutil.rmtree(second / "data" / SECOND[1])
    (second / "data" / SECOND[1]).mkdir()


def sessions_in_folders(first, second):
    """As VoxCeleb's: one folder deeper."""
    folder = first / "data" / DEV[1]
    for path in list(folder.iterdir()):
        (folder / "a").mkdir(exist_ok=True)
        path.rename(folder / "a" / path.name)


def one_name_for_two(first, second):
    folder = (second / "data" / SECOND[0]).rename(second / "data" / DEV[0])
    for path in list(folder.iterdir()):  # other recordings, too
        path.rename(folder / path.name.replace("-0", "-7", 1))
    write_lines(second / "spk.lst", [DEV[0], *SECOND[1:]])


def lose(name):
    def spoil(first, second):
        (first / name).unlink()

    return spoil


TRIALS, MAP = "eval/lists/trials.lst", "eval/lists/enroll.map"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            spoil_list(TRIALS, "id00800-enroll test/id00800-vlog-01-001.wav 1"),
            "trials.lst: line 37: utterance 'test/id00800-vlog-01-001' is not in the r",
        ),
        (
            spoil_list(TRIALS, "id00803-enroll test/id00800-singing-02-001.wav 0"),
            "trials.lst: line 37: enrol name 'id00803-enroll' is not in ",
        ),
        (
            spoil_list(TRIALS, "id00800-enroll test/id00800-singing-02-001.wav"),
            "trials.lst: line 37: 2 columns, expected 3",
        ),
        (
            spoil_list(MAP, "id00803-enroll id00803/vlog-01-009.wav"),
            "enroll.map: line 4: utterance 'id00803/vlog-01-009' of 'id00803-enroll'",
        ),
        (spoil_list(MAP, "id00800-enroll id00800/a.wav"), "enroll.map: line 4: model"),
        (
            spoil_list("eval/lists/enroll.lst", "id00803-enroll enroll/none.wav"),
            "enroll.lst: line 4: utterance 'enroll/none' of 'id00803-enroll' is not",
        ),
        (
            spoil_list("dev/dev.lst", "id00777"),
            "dev.lst: line 4: speaker 'id00777' has no recording, expected some below",
        ),
        (spoil_list("dev/dev.lst", DEV[0]), "dev.lst: line 4: speaker 'id00000' again"),
        (empty_speaker, "spk.lst: line 2: speaker 'id10001' has no recording"),
        (sessions_in_folders, "dev.lst: line 2: speaker 'id00001' has no recording"),
        (
            one_name_for_two,
            "spk.lst: line 1: speaker 'id00000' again, expected each on",
        ),
        (
            add_recording("id00000/interview01.flac"),
            "recording 'id00000/interview01': malformed name, expected SPEAKER/GENRE-",
        ),
        (lose(MAP), "enroll.map: no such list, expected it as in CN-Celeb_flac"),
        (lose("dev/dev.lst"), "dev.lst: no such list"),
        (
            spoil_file(f"data/{DEV[0]}/singing-01-001.flac", rate=8000),
            "id00000/singing-01-001.flac: 8000 Hz with 1 channel(s), expected 16000 Hz",
        ),
        (
            spoil_file(f"data/{DEV[0]}/singing-01-001.flac", wav=np.zeros((8000, 2))),
            "id00000/singing-01-001.flac: 16000 Hz with 2 channel(s), expected 16000",
        ),
        (
            spoil_file("eval/enroll/id00801-enroll.flac", rate=44100),
            "eval/enroll/id00801-enroll.flac: 44100 Hz with 1 channel(s)",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(spoilt, spoil, expected):
    spoil(spoilt["cnceleb1_folder"], spoilt["cnceleb2_folder"])
    with pytest.raises(InputError) as error:
        prepare_cnceleb(**spoilt)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    left = {path.name for path in spoilt["save_folder"].glob("*")}
    assert left <= {"bad_files.txt"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"join_seconds": -1}, "join_seconds=-1, expected a number of at least 0"),
        ({"join_seconds": "5"}, "join_seconds='5', expected a number"),
        ({"enrolment": "max"}, "enrolment: 'max', expected some of average, concat"),
        ({"n_valid_speakers": 6}, "n_valid_speakers=6"),
    ],
)
def test_wrong_arguments(good, more, expected):
    with pytest.raises(InputError) as error:
        prepare_cnceleb(**good | more)
    assert expected in str(error.value)


def test_exchanged_folders(good):
    folders = {
        "cnceleb1_folder": good["cnceleb2_folder"],
        "cnceleb2_folder": good["cnceleb1_folder"],
    }
    with pytest.raises(InputError, match=r"CN-Celeb2_flac/dev/dev\.lst: no such list"):
        prepare_cnceleb(**good | folders)


def test_nothing_is_written_among_the_recordings(good):
    folder = good["cnceleb1_folder"] / "data"
    with pytest.raises(InputError, match="lies in the folder of recordings"):
        prepare_cnceleb(**good | {"save_folder": folder / "save"})


def test_from_the_command_line(good):
    words = [f"--{k}={v}" for k, v in good.items()]
    command = [sys.executable, str(RECIPE / "cnceleb_prepare.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train, singing: 4 speakers, 4 utterances" in done.stderr
    assert prepare_cnceleb(**good).skipped
    command += ["--join_seconds=-2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: join_seconds=-2.0, expected")
    assert "Traceback" not in done.stderr
