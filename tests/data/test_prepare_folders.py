"""Which files count as recordings, under which ID, and what a list finds."""

import os
from pathlib import Path

import pytest

from speechbrain_ext.data.prepare.folders import (
    Layout,
    check_outside,
    find_recordings,
    scan_corpus,
)
from speechbrain_ext.data.prepare.selection import read_speaker_lists
from speechbrain_ext.scoring.trials import utterance_id
from speechbrain_ext.utils.errors import InputError

LAYOUT = Layout(("wav", "flac", "aac", "m4a"), levels=2)


def touch(*paths):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    "below", ["", "wav", "flac", "aac", "m4a", "WAV", "dev/wav", "vox1_dev_wav/wav"]
)
def test_every_layout(tmp_path, below):
    folder = tmp_path / "root" / below
    touch(folder / "id1/s/00001.wav", folder / "id2/s.x/00.2.flac")
    paths, folders, ignored = scan_corpus([tmp_path / "root"], LAYOUT)
    assert paths == {
        "id1/s/00001": str(folder / "id1/s/00001.wav"),
        "id2/s.x/00.2": str(folder / "id2/s.x/00.2.flac"),
    }
    assert ignored == 0
    assert folders == [folder]


def test_root_may_be_the_wav_folder_and_several_lie_below_one_root(tmp_path):
    touch(tmp_path / "dev/wav/id1/s/1.wav", tmp_path / "test/aac/id2/s/1.m4a")
    assert list(scan_corpus([tmp_path / "dev/wav"], LAYOUT)[0]) == ["id1/s/1"]
    assert list(scan_corpus([tmp_path], LAYOUT)[0]) == ["id1/s/1", "id2/s/1"]


def test_one_folder_level_for_corpora_without_sessions(tmp_path):
    touch(tmp_path / "data/id1/a.flac", tmp_path / "data/id1/s/b.flac")
    paths, _, ignored = scan_corpus([tmp_path], Layout(("data",), levels=1))
    assert list(paths) == ["id1/a"]
    assert ignored == 1


def test_what_is_no_recording_of_a_speaker_is_ignored_and_counted(tmp_path):
    touch(
        tmp_path / "wav/id1/s/1.wav",
        # Beside: three entries, whatever they hold.
        tmp_path / "musan/noise/a/1.wav",
        tmp_path / "RIRS_NOISES/pointsource_noises/1.wav",
        tmp_path / "README.md",
        # Within: five.
        tmp_path / "wav/LICENSE",
        tmp_path / "wav/id1/notes.wav",
        tmp_path / "wav/id1/s/._1.wav",
        tmp_path / "wav/id1/s/1.txt",
        tmp_path / "wav/id1/s/deep/2.wav",
    )
    paths, _, ignored = scan_corpus([tmp_path], LAYOUT)
    assert list(paths) == ["id1/s/1"]
    assert ignored == 8


def test_noise_beside_speakers_is_no_speaker(tmp_path):
    """Without a wav folder, RIRS_NOISES/pointsource_noises/x.wav looks like speech."""
    touch(
        tmp_path / "id1/s/1.wav",
        tmp_path / "RIRS_NOISES/pointsource_noises/x.wav",
        tmp_path / "musan/noise/x.wav",
        tmp_path / ".trash/s/1.wav",
    )
    paths, _, ignored = scan_corpus([tmp_path], LAYOUT)
    assert list(paths) == ["id1/s/1"]
    assert ignored == 3


@pytest.mark.parametrize("make", ["absent", "empty", "too flat"])
def test_root_without_recordings(tmp_path, make):
    root = tmp_path / "root"
    if make != "absent":
        root.mkdir()
    if make == "too flat":
        touch(root / "wav/id1/1.wav")
    with pytest.raises(InputError, match=r"root: no .*SPEAKER/SESSION/FILE") as error:
        scan_corpus([root], LAYOUT)
    assert "wav|flac|aac|m4a" in str(error.value)
    assert "*.m4a" in str(error.value)


def test_one_id_in_two_files_is_an_error_naming_both(tmp_path):
    first, second = tmp_path / "a/wav/id1/s/1.wav", tmp_path / "b/flac/id1/s/1.flac"
    touch(first, second)
    with pytest.raises(InputError) as error:
        scan_corpus([tmp_path / "a", tmp_path / "b"], LAYOUT)
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


def test_of_two_formats_in_one_folder_the_first_in_order(tmp_path, caplog):
    session = tmp_path / "wav/id1/s"
    touch(session / "1.m4a", session / "1.wav", session / "2.flac", session / "2.mp3")
    touch(session / "3.m4a", session / "4.M4A", session / "4.WAV")
    paths, *_ = scan_corpus([tmp_path], LAYOUT)
    names = ["1.wav", "2.flac", "3.m4a", "4.WAV"]
    assert list(paths.values()) == [str(session / name) for name in names]
    (message,) = caplog.messages
    assert f"{session}/1.wav is taken, not {session}/1.m4a" in message
    assert "(3 such files)" in message
    found, _ = find_recordings(["id1/s/1", "id1/s/3"], [tmp_path], LAYOUT)
    assert list(found.values()) == [str(session / name) for name in names[::2]]


NFC, NFD = "Zo\u00e9", "Zoe\u0301"


@pytest.mark.parametrize(("listed", "there"), [(NFC, NFD), (NFD, NFC)])
def test_a_name_in_another_form_of_unicode(tmp_path, listed, there):
    path = tmp_path / f"wav/{there}/s{there}/{there}.wav"
    touch(path)
    name = utterance_id(f"{listed}/s{listed}/{listed}.wav")
    assert scan_corpus([tmp_path], LAYOUT)[0] == {name: str(path)}
    assert find_recordings([name], [tmp_path], LAYOUT)[0] == {name: str(path)}
    train_list = tmp_path / "train.txt"
    train_list.write_text(f"{listed} {listed}/s{listed}/{listed}.wav\n", "utf-8")
    known = {name: name.split("/")[0]}
    assert read_speaker_lists([train_list], known, "here") == {name}


def test_one_file_reached_twice_counts_once(tmp_path):
    touch(tmp_path / "wav/id1/s/1.wav")
    (tmp_path / "links/id1/s").mkdir(parents=True)
    (tmp_path / "links/id1/s/1.wav").symlink_to(tmp_path / "wav/id1/s/1.wav")
    roots = [tmp_path / "wav", tmp_path / "wav", tmp_path / "links"]
    paths, *_ = scan_corpus([*roots, tmp_path], LAYOUT)
    assert paths == {"id1/s/1": str(tmp_path / "wav/id1/s/1.wav")}


def test_converted_copies_below_a_root_are_left_out(tmp_path):
    touch(tmp_path / "aac/id1/s/1.m4a", tmp_path / "flac/id1/s/1.flac")
    paths, *_ = scan_corpus([tmp_path], LAYOUT, leave_out=[tmp_path / "flac"])
    assert list(paths.values()) == [str(tmp_path / "aac/id1/s/1.m4a")]


@pytest.mark.parametrize("name", ["a b.wav", "a\nb.wav", "a\tb.wav", b"\xff.wav"])
def test_names_that_break_lists_are_left_out(tmp_path, name, caplog):
    strange = tmp_path / "wav/id1/s" / os.fsdecode(name)
    touch(strange)
    with pytest.raises(InputError, match="white space or unprintable") as error:
        scan_corpus([tmp_path], LAYOUT)  # there is nothing else
    str(error.value).encode("utf-8")  # can be printed
    touch(tmp_path / "wav/id1/s/1.wav", tmp_path / "wav/id 2/s/1.wav")
    assert list(scan_corpus([tmp_path], LAYOUT)[0]) == ["id1/s/1"]
    (message,) = caplog.messages
    assert "white space or unprintable" in message
    assert "left out (2 such files)" in message
    message.encode("utf-8")
    assert list(find_recordings(["id1/s/1"], [tmp_path], LAYOUT)[0]) == ["id1/s/1"]
    assert len(caplog.messages) == 1


def test_a_strange_name_in_a_list_is_named(tmp_path):
    name = "id1/s/a\u200bb"  # nothing to see, and no white space to a list
    touch(tmp_path / f"wav/{name}.wav", tmp_path / "wav/id1/s/1.wav")
    with pytest.raises(InputError, match=r"a\\u200bb.wav: white space or unprintable"):
        find_recordings([name], [tmp_path], LAYOUT)


def test_spaces_above_the_speakers_do_no_harm(tmp_path):
    touch(tmp_path / "my data/wav/id1/s/1.wav")
    assert len(scan_corpus([tmp_path / "my data"], LAYOUT)[0]) == 1


def test_order_and_result_do_not_depend_on_threads(tmp_path):
    names = [f"id{s}/v{v}/{u}" for s in range(40) for v in "ab" for u in range(3)]
    touch(*(tmp_path / "wav" / f"{name}.wav" for name in reversed(names)))
    scans = [scan_corpus([tmp_path], LAYOUT, num_workers=n)[0] for n in (1, 8)]
    assert list(scans[0]) == sorted(names)
    assert list(scans[0].items()) == list(scans[1].items())


def test_output_folders_stay_outside(tmp_path):
    audio = [tmp_path / "wav"]
    check_outside(tmp_path / "save", audio, "save_folder")
    check_outside(tmp_path, audio, "save_folder")
    check_outside(tmp_path / "wav2", audio, "save_folder")
    for folder in (tmp_path / "wav", tmp_path / "wav/id1/deep"):
        with pytest.raises(InputError, match=r"save_folder .* expected a folder out"):
            check_outside(folder, audio, "save_folder")


@pytest.mark.parametrize("name", ["a", "test/a", "id1/s/a", "x/y/z/a", "id1/s.2/a.b"])
@pytest.mark.parametrize("below", ["", "wav", "dev/wav"])
def test_every_depth(tmp_path, name, below):
    path = tmp_path / below / f"{name}.FLAC"
    touch(path, tmp_path / below / "id1/s/other.wav")
    paths, folders = find_recordings(
        [name, "absent", "test/absent"], [tmp_path], LAYOUT
    )
    assert paths == {name: str(path)}
    assert folders == [tmp_path / below]


def test_the_result_is_sorted_whatever_the_threads(tmp_path):
    names = [f"{folder}/{n}" for folder in ("test", "a/b", "enroll") for n in range(9)]
    touch(*(tmp_path / f"{name}.wav" for name in names))
    for n in (1, 8):
        paths = find_recordings(names, [tmp_path], LAYOUT, n)[0]
        assert list(paths) == sorted(names)


def test_several_roots_and_what_lies_beside_a_folder_of_speakers(tmp_path):
    touch(
        tmp_path / "a/wav/id1/s/1.wav",
        tmp_path / "a/id1/s/1.flac",  # the folder of speakers goes first
        tmp_path / "a/test/2.wav",  # not in any
        tmp_path / "b/test/3.wav",
    )
    names = ["id1/s/1", "test/2", "test/3"]
    paths, _ = find_recordings(names, [tmp_path / "a", tmp_path / "b"], LAYOUT)
    assert paths == {
        "id1/s/1": str(tmp_path / "a/wav/id1/s/1.wav"),
        "test/2": str(tmp_path / "a/test/2.wav"),
        "test/3": str(tmp_path / "b/test/3.wav"),
    }


def test_no_recordings_of_a_list(tmp_path):
    touch(tmp_path / "test/a.txt", tmp_path / "test/.b.wav", tmp_path / "c")
    (tmp_path / "test/d.wav").mkdir()
    names = ["test/a", "test/.b", "test/b", "test/d", "c/e"]
    assert find_recordings(names, [tmp_path], LAYOUT)[0] == {}


@pytest.mark.parametrize("name", ["../b/1", "x/../../b/1", "./1", "/1", "x//1"])
def test_names_stay_below_the_root(tmp_path, name):
    touch(tmp_path / "b/1.wav", tmp_path / "a/x/1.wav", tmp_path / "a/1.wav")
    if name == "/1":
        name = str(tmp_path / "b/1")
    assert find_recordings([name], [tmp_path / "a"], LAYOUT)[0] == {}


def test_converted_copies_are_not_looked_up(tmp_path):
    touch(tmp_path / "m4a/id1/s/1.m4a", tmp_path / "flac/id1/s/1.flac")
    layout = Layout(("m4a", "flac"), levels=2)
    copies = [tmp_path / "flac"]
    paths, _ = find_recordings(["id1/s/1"], [tmp_path], layout, leave_out=copies)
    assert list(paths.values()) == [str(tmp_path / "m4a/id1/s/1.m4a")]


def test_errors_of_a_look_up(tmp_path):
    with pytest.raises(InputError, match=r"absent: no such folder, expected FOLDER"):
        find_recordings(["a"], [tmp_path / "absent"], LAYOUT)
    touch(tmp_path / "a/test/1.wav", tmp_path / "b/test/1.flac")
    roots = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(InputError, match="the same utterance ID as") as error:
        find_recordings(["test/1"], roots, LAYOUT)
    assert str(tmp_path / "a/test/1.wav") in str(error.value)
    (tmp_path / "b/test/1.flac").unlink()
    (tmp_path / "b/test/1.wav").symlink_to(tmp_path / "a/test/1.wav")
    assert len(find_recordings(["test/1"], roots, LAYOUT)[0]) == 1
