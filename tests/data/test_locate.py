"""Recordings found by the names in a list, wherever below a folder."""

from pathlib import Path

import pytest

from speechbrain_ext.data.prepare.folders import Layout, find_recordings
from speechbrain_ext.utils.errors import InputError

LAYOUT = Layout(("wav", "flac"), levels=2)


def touch(*paths):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


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


def test_no_recordings(tmp_path):
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


def test_converted_copies_are_left_out(tmp_path):
    touch(tmp_path / "m4a/id1/s/1.m4a", tmp_path / "flac/id1/s/1.flac")
    layout = Layout(("m4a", "flac"), levels=2)
    copies = [tmp_path / "flac"]
    paths, _ = find_recordings(["id1/s/1"], [tmp_path], layout, leave_out=copies)
    assert list(paths.values()) == [str(tmp_path / "m4a/id1/s/1.m4a")]


def test_errors(tmp_path):
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
