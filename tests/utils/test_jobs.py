"""Finished jobs: when they are done again, and when not."""

import copy
import json
import logging
import os

import numpy as np
import pytest
import torch
from torch import nn

from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.jobs import Marker, Part, fingerprint


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


PATHS = ["/x/a.wav", "/x/b.wav"]
LIST = Manifest(["a", "b"], PATHS, [1.0, 2.5], ["s", "s"])
SETTINGS = {"max_seconds": None, "precision": torch.bfloat16}


def model():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv1d(2, 2, 3, stride=2), nn.BatchNorm1d(2))
    inner.register_buffer("window", torch.ones(3), persistent=False)
    inner.heads = 4
    return inner


def changed(change):
    other = model()
    with torch.no_grad():
        change(other)
    return other


def test_equal_computations_have_equal_names():
    name = fingerprint(model(), LIST, **SETTINGS)
    assert len(name) == 64
    assert set(name) <= set("0123456789abcdef")
    again = fingerprint(copy.deepcopy(model()).eval(), LIST.select([0, 1]), **SETTINGS)
    assert again == name
    backwards = dict(reversed(SETTINGS.items()))
    assert fingerprint(model(), LIST, **backwards) == name
    same = Manifest(LIST.ids, PATHS, LIST.durations, ["other", "speakers"])
    assert fingerprint(model(), same, **SETTINGS) == name


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].bias.neg_(),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m.window.mul_(2),
        lambda m: m.bfloat16(),
        lambda m: m.append(nn.ReLU()),
        lambda m: setattr(m, "heads", 2),
        lambda m: setattr(m[0], "stride", (1,)),
    ],
)
def test_another_model_has_another_name(change):
    assert fingerprint(changed(change), LIST) != fingerprint(model(), LIST)


def test_one_bit_of_one_weight_counts():
    def flip(m):
        m[0].weight.view(torch.int32)[1, 1, 2] ^= 1

    assert fingerprint(changed(flip), LIST) != fingerprint(model(), LIST)


def test_modules_of_equal_attributes_differ_by_class():
    one, other = (nn.Sequential(kind()) for kind in (nn.ReLU, nn.SELU))
    assert fingerprint(one, LIST) != fingerprint(other, LIST)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_type_of_weights_has_a_name(dtype):
    assert fingerprint(model().to(dtype), LIST) != fingerprint(model(), LIST)


@pytest.mark.parametrize(
    "other",
    [
        LIST.select([1, 0]),
        LIST.select([0]),
        Manifest(["a", "c"], PATHS, [1.0, 2.5], ["s", "s"]),
        Manifest(["a", "b"], PATHS[::-1], [1.0, 2.5], ["s", "s"]),
        Manifest(["a", "b"], PATHS, [1.0, np.nextafter(2.5, 3)], ["s", "s"]),
    ],
)
def test_another_list_has_another_name(other):
    assert fingerprint(model(), other) != fingerprint(model(), LIST)


@pytest.mark.parametrize(
    "settings", [{}, {**SETTINGS, "precision": None}, {**SETTINGS, "max_seconds": 3.0}]
)
def test_other_settings_have_another_name(settings):
    name = fingerprint(model(), LIST, **SETTINGS)
    assert fingerprint(model(), LIST, **settings) != name


def test_a_long_list_counts_to_its_end():
    ids = [f"r{number}" for number in range(45_000)]
    long = Manifest(ids, ids, np.ones(len(ids)), ids)
    other = Manifest([*ids[:-1], "x"], ids, np.ones(len(ids)), ids)
    assert fingerprint(model(), long) != fingerprint(model(), other)


@pytest.fixture
def part(tmp_path):
    """A finished part of a long job."""
    part = Part(tmp_path / "00001.arrow", "abc")
    part.file.write_bytes(b"12345")
    part.save(bad=[["x", "y"]])
    return part


def test_a_part_is_known_by_its_record(part):
    record = part.load()
    assert record == {"fingerprint": "abc", "bytes": 5, "bad": [["x", "y"]]}
    assert Part(part.file, "other").load() is None
    part.remove()
    assert part.load() is None


@pytest.mark.parametrize("damage", ["shorter", "gone", "no JSON", "other JSON"])
def test_a_damaged_part_is_made_again(part, damage):
    if damage == "shorter":
        part.file.write_bytes(b"123")
    elif damage == "gone":
        part.file.unlink()
    else:
        part.record.write_text("[1]" if damage == "other JSON" else '{"finger')
    assert part.load() is None
