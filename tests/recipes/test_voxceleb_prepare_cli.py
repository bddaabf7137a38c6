"""The command line: what it writes, and one line for every error."""

import os
import shutil
import subprocess
import sys

import pytest
from voxceleb_corpus import (
    N_SPEAKERS,
    REPOSITORY,
    SCRIPT,
    make_arguments,
    write_noise,
)

from speechbrain_ext.data.corpora.voxceleb import prepare_voxceleb
from speechbrain_ext.data.manifest import read_manifest

FOLDERS = ("--train_folders", "vox", "--save_folder", "save")


@pytest.fixture
def corpus(tmp_path):
    return make_arguments(tmp_path)


def run_script(cwd, *arguments, **environment):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_command_line(corpus, tmp_path):
    arguments = [*FOLDERS, "--trial_lists", "trials.txt"]
    done = run_script(tmp_path, *arguments, "--n_valid_speakers", 3, "--seed", 5)
    assert done.returncode == 0, done.stderr
    assert "train: 7 speakers, 35 utterances, 0.00 hours" in done.stderr
    assert prepare_voxceleb(**corpus | {"seed": 5}).skipped


def test_what_lies_on_disks_stops_nothing(corpus, tmp_path):
    """m4a beside wav, names that no list can hold, a speaker in another form."""
    vox, listed, there = tmp_path / "vox/wav", "Zo\u00e9", "Zoe\u0301"
    for path in (vox / "id03").rglob("*.wav"):
        path.with_suffix(".m4a").touch()
    write_noise(vox / "id03/a/take 2.wav")
    (vox / os.fsdecode(b"id04/a/\xff.wav")).touch()
    (vox / "id02").rename(vox / there)
    path = next((vox / there).glob("*/*.wav"))
    name = f"{listed}/{path.parent.name}/{path.name}"
    with open(tmp_path / "trials.txt", "a", encoding="utf-8") as file:
        file.write(f"0 id01/a/00000.wav {name}\n")
    arguments = [*FOLDERS, "--trial_lists", "trials.txt", "--n_valid_speakers", 3]
    done = run_script(tmp_path, *arguments, PATH="")
    assert done.returncode == 0, done.stderr
    assert "00000.wav is taken, not " in done.stderr
    assert "(5 such files)" in done.stderr
    assert "take 2.wav: white space or unprintable characters" in done.stderr
    assert "left out (2 such files)" in done.stderr
    assert "train: 6 speakers, 30 utterances, 0.00 hours" in done.stderr
    test = read_manifest(tmp_path / "save/test.csv")
    assert name.removesuffix(".wav") in test.ids.tolist()
    assert str(path) in test.paths.tolist()


def absent_folder(root):
    shutil.rmtree(root / "vox")
    return "vox: no such folder, expected FOLDER/SPEAKER/SESSION/FILE"


def no_recordings(root):
    shutil.rmtree(root / "vox/wav")
    write_noise(root / "vox/wav/id1.wav")
    return "vox: no recording found, expected"


def id_clash(root):
    write_noise(root / "vox/flac/id03/a/00000.flac")
    return "the same utterance ID as"


def m4a_without_means(root):
    (root / "vox/wav/id03/a/9.m4a").touch()
    return "1 m4a files"


def save_among_recordings(root):
    (root / "save").symlink_to(root / "vox/wav/id03")
    return "lies in the folder of recordings"


def bad_recording(root):
    write_noise(root / "vox/wav/id03/a/00000.wav", rate=44100)
    return "id03/a/00000.wav: 44100 Hz with 1 channel(s), expected 16000 Hz mono"


def empty_recording(root):
    (root / "vox/wav/id03/a/00000.wav").write_bytes(b"")
    return "(1 bad files, expected at most max_bad_files=0; all are listed in"


def bad_test_recording(root):
    (root / "vox/wav/id00/a/00000.wav").write_bytes(b"RIFF")
    return "(1 bad files of the trial lists, expected none"


def unknown_trial(root):
    with open(root / "trials.txt", "a") as file:
        file.write("0 id01/a/00000.wav id99/a/00000.wav\n")
    return "trials.txt: line 4: utterance 'id99/a/00000' is not in the recordings below"


def malformed_trial(root):
    (root / "trials.txt").write_text("1 id01/a/00000.wav\n")
    return "trials.txt: line 1: 2 columns"


def absent_trial_list(root):
    (root / "trials.txt").unlink()
    return "trials.txt: no such file"


def too_few_speakers(root):
    for number in range(4, N_SPEAKERS):
        shutil.rmtree(root / f"vox/wav/id{number:02d}")
    return "n_valid_speakers=3, expected fewer than the 2"


def nobody_left(root):
    for number in range(2, N_SPEAKERS):
        shutil.rmtree(root / f"vox/wav/id{number:02d}")
    return "vox: 0 of 2 speakers remain to train on"


def save_folder_is_a_file(root):
    (root / "save").touch()
    return "save"


BREAKAGES = [
    absent_folder,
    no_recordings,
    id_clash,
    m4a_without_means,
    save_among_recordings,
    bad_recording,
    empty_recording,
    bad_test_recording,
    unknown_trial,
    malformed_trial,
    absent_trial_list,
    too_few_speakers,
    nobody_left,
    save_folder_is_a_file,
]


@pytest.mark.parametrize("break_it", BREAKAGES)
def test_one_line_for_every_error(corpus, tmp_path, break_it):
    expected = break_it(tmp_path)
    arguments = [*FOLDERS, "--trial_lists", "trials.txt"]
    done = run_script(tmp_path, *arguments, "--n_valid_speakers", 3, PATH="")
    lines = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert expected in lines[-1]
    assert [line.startswith("error: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "save/prepare.json").exists()
    assert not (tmp_path / "save/train.csv").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("id05 id05/a/77777.wav", "utterance 'id05/a/77777' not found"),
        ("id99", "speaker 'id99' has no recording"),
    ],
)
def test_one_line_for_a_bad_train_list(corpus, tmp_path, line, expected):
    (tmp_path / "list.txt").write_text(f"id04 id04/a/00000.wav\n{line}\n")
    arguments = [*FOLDERS, "--train_lists", "list.txt"]
    done = run_script(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert f"list.txt: line 2: {expected}" in done.stderr
