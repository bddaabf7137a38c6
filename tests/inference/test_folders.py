"""Recordings of folders and files, and how they are called."""

import pytest

from speechbrain_ext.inference.folders import list_inputs
from speechbrain_ext.utils.errors import InputError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_in_full_depth_by_their_path_without_extension(tmp_path):
    touch(tmp_path, "id2/s/1.wav", "id1/s/t/2.FLAC", "3.mp3", "4.ogg", "5.m4a")
    touch(tmp_path, "notes.txt", ".hidden.wav", "._1.wav", ".git/x.wav", "id1/a.csv")
    found = list_inputs([tmp_path])
    assert found.ids == ["3", "4", "5", "id1/s/t/2", "id2/s/1"]
    assert found.paths[3] == str(tmp_path / "id1/s/t/2.FLAC")
    assert found.left_out == {
        "hidden files": 2,
        "hidden folders": 1,  # which are not even looked into
        ".txt": 1,
        ".csv": 1,
    }
    assert found.refused == []


def test_files_by_their_name(tmp_path):
    touch(tmp_path, "a/one.wav", "b/two.aiff", "c/three.wav")
    found = list_inputs([tmp_path / "b/two.aiff", tmp_path / "a/one.wav", tmp_path])
    assert found.ids == ["two", "one", "a/one", "b/two", "c/three"]


def test_a_name_that_no_list_can_hold_is_refused_not_fatal(tmp_path):
    touch(tmp_path, "good.wav", "my voice.wav", "tab\t.wav", "x/a b/c.wav")
    found = list_inputs([tmp_path])
    assert found.ids == ["good"]
    assert sorted(found.refused) == sorted(
        (str(tmp_path / name), "white space in its name, expected none")
        for name in ("my voice.wav", "tab\t.wav", "x/a b/c.wav")
    )


def test_one_file_reached_twice_counts_once(tmp_path):
    touch(tmp_path, "a/1.wav")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.wav").symlink_to(tmp_path / "a/1.wav")
    assert list_inputs([tmp_path / "a", tmp_path / "b"]).ids == ["1"]


def test_two_files_of_one_name(tmp_path):
    touch(tmp_path, "a/1.wav", "b/1.flac")
    with pytest.raises(InputError, match=r"b/1.flac: the same utterance ID as .*1.wav"):
        list_inputs([tmp_path / "a", tmp_path / "b"])


def test_of_three_formats_the_one_that_is_taken_is_named(tmp_path, caplog):
    files = [tmp_path / f"1.{suffix}" for suffix in ("m4a", "flac", "wav")]
    touch(tmp_path, *(file.name for file in files))
    assert list_inputs(files).paths == [str(files[2])]
    assert f"{files[2]} is taken, not {files[1]}" in caplog.text
    assert f"{files[1]} is taken" not in caplog.text


def test_of_two_formats_in_one_folder_the_first_in_order(tmp_path, caplog):
    touch(tmp_path, "a/1.m4a", "a/1.wav", "a/2.ogg", "a/2.flac", "a/2.webm")
    found = list_inputs([tmp_path])
    assert found.paths == [str(tmp_path / "a/1.wav"), str(tmp_path / "a/2.flac")]
    assert found.left_out == {"files beside another format": 3}
    (message,) = caplog.messages
    assert f"{tmp_path}/a/1.wav is taken, not {tmp_path}/a/1.m4a" in message
    files = [tmp_path / "a/1.m4a", f"{tmp_path / 'a/2.flac'}:1-2", tmp_path / "a/1.wav"]
    found = list_inputs(files)
    assert found.ids == ["1", "2:1-2"]
    assert found.paths == [str(tmp_path / "a/1.wav"), f"{tmp_path / 'a/2.flac'}:1-2"]


def test_ids_are_in_the_composed_form_of_unicode(tmp_path):
    touch(tmp_path, "Zoe\u0301.wav")
    found = list_inputs([tmp_path])
    assert found.ids == ["Zo\u00e9"]
    assert found.paths == [str(tmp_path / "Zoe\u0301.wav")]


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="gone: no such file or folder"):
        list_inputs([tmp_path / "gone"])
    touch(tmp_path, "notes.txt")
    with pytest.raises(InputError, match=r"no recordings in it .*\*\.wav, \*\.flac"):
        list_inputs([tmp_path])
