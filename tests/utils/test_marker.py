"""When a preparation is done again, and when not."""

import json
import logging
import os

import pytest

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.jobs import Marker


@pytest.fixture
def saved(tmp_path):
    """A finished preparation of two files."""
    (tmp_path / "list.txt").write_text("a b")
    for name in ("train.csv", "valid.csv"):
        (tmp_path / name).write_text(name)
    marker = Marker.of(
        tmp_path, {"seed": 1, "folder": tmp_path}, [tmp_path / "list.txt"]
    )
    marker.save(["train.csv", "valid.csv"], {"train": 3})
    return marker


def test_same_arguments_and_files(saved):
    again = Marker.of(
        saved.folder,
        {"folder": saved.folder, "seed": 1},
        [saved.folder / "list.txt"],
    )
    assert again.fingerprint == saved.fingerprint
    assert again.load() == {"train": 3}


def test_log_names_what_changed(saved, caplog):
    caplog.set_level(logging.INFO)
    arguments = {"seed": 2, "folder": saved.folder}
    marker = Marker.of(saved.folder, arguments, [saved.folder / "list.txt"])
    assert marker.load() is None
    assert caplog.messages == ["seed changed: all is made anew"]


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_changed_list_counts(saved, change):
    path = saved.folder / "list.txt"
    if change == "content":
        path.write_text("a b c")
    else:
        os.utime(path, ns=(1, 1))
    arguments = {"seed": 1, "folder": saved.folder}
    assert Marker.of(saved.folder, arguments, [path]).load() is None


@pytest.mark.parametrize("change", ["truncated", "deleted", "marker deleted", "broken"])
def test_damage_is_noticed(saved, change):
    if change == "truncated":
        (saved.folder / "train.csv").write_text("train")
    elif change == "deleted":
        (saved.folder / "valid.csv").unlink()
    elif change == "marker deleted":
        saved.remove()
    else:
        path = saved.folder / "prepare.json"
        path.write_text(path.read_text()[:-20])
    assert saved.load() is None


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"fingerprint": 1}', ""])
def test_a_file_of_another_program(saved, text):
    (saved.folder / "prepare.json").write_text(text)
    assert saved.load() is None


def test_marker_is_readable(saved):
    written = json.loads((saved.folder / "prepare.json").read_text())
    assert written["arguments"]["seed"] == 1
    assert written["arguments"]["folder"] == str(saved.folder)
    # SHA-256 of the nine bytes "train.csv", as sha256sum prints it.
    assert written["files"]["train.csv"] == (
        "eba6f1d5dc4e384d5af8e05f93b4f3a11d2f760bc9c64921e0465167d0822e34"
    )


def test_a_list_must_exist(tmp_path):
    with pytest.raises(InputError, match=r"absent.txt: no such file"):
        Marker.of(tmp_path, {}, [tmp_path / "absent.txt"])
