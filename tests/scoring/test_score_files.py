"""Score files: text and tables come back as they were, or say what is wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from speechbrain_ext.scoring import score_files
from speechbrain_ext.scoring.score_files import (
    read_score_table,
    read_scores,
    write_score_table,
    write_scores,
)
from speechbrain_ext.scoring.trials import Trials
from speechbrain_ext.utils.errors import InputError

FORMATS = ["npz", "safetensors"]
NAMES = np.array(["a", "é/b", "語"])
ENROL, TEST = np.array([0, 0, 2], np.int32), np.array([1, 2, 2], np.int32)
LABELS = np.array([1, 0, 1], np.int8)
SCORES = np.array([1 / 3, -1e-12, np.pi * 1e9])


def make_trials(**changes):
    columns = {"names": NAMES, "enrol": ENROL, "test": TEST, "labels": LABELS}
    return Trials(Path("list.txt"), **columns | changes)


def check_equal(read, trials):
    assert read.names.tolist() == trials.names.tolist()
    for name in ("enrol", "test"):
        assert np.array_equal(getattr(read, name), getattr(trials, name))
        assert getattr(read, name).dtype == np.int32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", [2, 3, 16384])
def test_text_round_trip(tmp_path, monkeypatch, dtype, block):
    monkeypatch.setattr(score_files, "_LINES_AT_ONCE", block)
    trials, scores = make_trials(), SCORES.astype(dtype)
    path = tmp_path / "new" / "scores.txt"
    write_scores(path, trials, scores)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("a é/b 0.3333333")
    again, read = read_scores(path)
    assert read.dtype == np.float64
    assert np.array_equal(read.astype(dtype), scores)
    check_equal(again, trials)
    assert again.labels is None
    assert again.path == path
    assert os.listdir(path.parent) == ["scores.txt"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_text_has_enough_digits(tmp_path, dtype):
    random = np.random.default_rng(0)
    scores = random.standard_normal(2000) * 10.0 ** random.integers(-30, 30, 2000)
    scores = scores.astype(dtype)
    side = np.zeros(2000, np.int32)
    trials = make_trials(enrol=side, test=side, labels=None)
    write_scores(tmp_path / "scores.txt", trials, scores)
    _, read = read_scores(tmp_path / "scores.txt")
    assert np.array_equal(read.astype(dtype), scores)


def test_text_of_a_name_with_percent_sign(tmp_path):
    trials = make_trials(names=np.array(["%s", "100%", "c"]))
    write_scores(tmp_path / "scores.txt", trials, SCORES)
    assert read_scores(tmp_path / "scores.txt")[0].names.tolist() == ["%s", "100%", "c"]


@pytest.mark.parametrize("write", [write_scores, write_score_table])
def test_wrong_scores_are_not_written(tmp_path, write):
    path = tmp_path / "scores.npz"
    with pytest.raises(InputError, match=r"shape \[4\], expected \[3\] as in list.txt"):
        write(path, make_trials(), np.zeros(4))
    with pytest.raises(InputError, match="score nan of trial 2, expected finite"):
        write(path, make_trials(), np.array([0, np.nan, 0]))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b 0.1\na c high\n", "line 2: score 'high', expected a finite number"),
        ("a b 0.1\na c 1\na d nan\n", "line 3: score 'nan'"),
        ("a b inf\n", "line 1: score 'inf'"),
        ("a b 1\na c 1\na d 1e999\n", "line 3: score '1e999'"),
        ("a b 1\na\tc 1,5\n", "line 2: score '1,5'"),
        ("a b 1\na c\n", "line 2: 2 columns"),
        ("a b\n", "line 1: 2 columns, expected 3: 'enrol test score'"),
        ("", "empty, expected lines 'enrol test score'"),
    ],
)
def test_wrong_text_is_refused(tmp_path, text, message):
    path = tmp_path / "scores.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_scores(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_table_round_trip(tmp_path, suffix, dtype, labels):
    trials, scores = make_trials(labels=labels), SCORES.astype(dtype)
    path = tmp_path / "new" / f"scores.{suffix}"
    write_score_table(path, trials, scores)
    again, read = read_score_table(path)
    assert read.dtype == dtype
    assert np.array_equal(read, scores)
    check_equal(again, trials)
    assert again.path == path
    if labels is None:
        assert again.labels is None
    else:
        assert np.array_equal(again.labels, labels)
        assert (again.labels.dtype, again.n_target) == (np.int8, 2)
    assert os.listdir(path.parent) == [path.name]


def write_table(path, **changes):
    """A table from elsewhere, which nothing checked."""
    arrays = {"names": NAMES, "enrol": ENROL, "test": TEST}
    arrays |= {"scores": SCORES, "labels": LABELS} | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        text = "\n".join(map(str, arrays["names"])).encode()
        safetensors.numpy.save_file(
            arrays | {"names": np.frombuffer(text, np.uint8)}, path
        )


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": NAMES[[0, 1, 0]]}, "ID 'a' in rows 0 and 2, expected each once"),
        ({"names": np.array(["a", "b c", "d"])}, "ID 'b c'.*expected no white space"),
        (
            {"enrol": ENROL + 1},
            "enrol row 3 in trial 3, expected 0 to 2: there",
        ),
        ({"test": TEST - 2}, "test row -1 in trial 1"),  # never the last name
        ({"enrol": ENROL[:2]}, r"shapes \[\[3\], \[2\], \[3\], \[3\], \[3\]\], expect"),
        ({"labels": LABELS[:2]}, r"or \[0\], with at least one trial"),
        ({"scores": SCORES[:, None]}, "shapes"),
        ({"enrol": ENROL.astype(float)}, "types .*float64, int32, float64, int8"),
        ({"scores": np.zeros(3, int)}, "expected text, two of integers, float32 or fl"),
        ({"scores": np.zeros(3, np.float16)}, "float16"),
        ({"scores": np.array([0, np.inf, 0])}, "score inf of trial 2"),
        ({"labels": LABELS * 2}, "label 2 of trial 1, expected 0 or 1"),
        ({"labels": None}, "expected arrays 'names', 'enrol', 'test'.* and 'labels'"),
        (
            {n: np.empty(0, t) for n, t in (("enrol", int), ("test", int))}
            | {"scores": np.empty(0), "labels": np.empty(0, int)},
            "at least one trial",
        ),
    ],
)
def test_wrong_tables_are_refused(tmp_path, suffix, changes, message):
    path = tmp_path / f"scores.{suffix}"
    write_table(path, **changes)
    with pytest.raises(InputError, match=message) as error:
        read_score_table(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_wrong_trials_are_not_written(tmp_path):
    for changes, message in [
        ({"enrol": ENROL + 1}, "enrol row 3 in trial 3"),
        ({"labels": LABELS + 1}, "label 2 of trial 1"),
        ({"names": NAMES[[0, 0, 1]]}, "expected each once"),
    ]:
        with pytest.raises(InputError, match=message):
            write_score_table(tmp_path / "s.npz", make_trials(**changes), SCORES)
    with pytest.raises(InputError, match=r"suffix '.txt', expected one of .npz"):
        write_score_table(tmp_path / "s.txt", make_trials(), SCORES)
    assert os.listdir(tmp_path) == []
