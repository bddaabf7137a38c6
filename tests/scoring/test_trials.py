"""Trial lists: what is read, what is refused and how the refusal reads."""

import logging
import os
import re
import time

import numpy as np
import pytest

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.trials import (
    read_scores,
    read_trials,
    rows_of,
    utterance_id,
    write_scores,
)


@pytest.fixture
def write(tmp_path):
    def _write(text, name="trials.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("id1/a/00001.wav", "id1/a/00001"),
        ("id1/a/00001.FLAC", "id1/a/00001"),
        ("a.m4a", "a"),
        ("a.ogg", "a"),
        ("a.Mp3", "a"),
        ("id1/a/00001", "id1/a/00001"),
        ("a.wav.flac", "a.wav"),  # one extension, not all
        ("speaker.b/take.v2", "speaker.b/take.v2"),  # a dot is no extension
        ("a.wave", "a.wave"),
        ("a/.wav", "a/.wav"),  # nothing would be left
    ],
)
def test_utterance_id(name, expected):
    assert utterance_id(name) == expected


def test_read_by_hand(write):
    trials = read_trials(write("1 a.wav b.wav\n0 a.wav c.flac\n1 c b\n"))
    assert trials.names.tolist() == ["a", "b", "c"]
    assert trials.enrol.tolist() == [0, 0, 2]
    assert trials.test.tolist() == [1, 2, 1]
    assert trials.labels.tolist() == [1, 0, 1]
    assert (len(trials), trials.n_target, trials.n_nontarget) == (3, 2, 1)
    assert trials.enrol.dtype == trials.test.dtype == np.int32
    assert trials.labels.dtype == np.int8


@pytest.mark.parametrize(
    "text",
    [
        "target a b\nnontarget a c\n",
        "1 a b\r\n0 a c\r\n",
        "\ufeff1 a b\n0 a c",  # byte-order mark, no newline at the end
        "1\ta\tb\n 0  a   c \n\n\n",
    ],
)
def test_the_same_list_in_other_clothes(write, text):
    trials = read_trials(write(text))
    assert trials.labels.tolist() == [1, 0]
    assert trials.names.tolist() == ["a", "b", "c"]


def test_without_labels(write):
    trials = read_trials(write("a b\na c\n"), labelled=False)
    assert trials.labels is None
    assert trials.n_target is None
    assert trials.n_nontarget is None
    assert trials.test.tolist() == [1, 2]


def test_swapped_pairs_are_accepted(write, caplog):
    trials = read_trials(write("1 a b\n1 b a\n"))
    assert len(trials) == 2
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, expected lines 'label enrol test'"),
        ("\n\n", "empty"),
        ("1 a b\n1 a\n", "line 2: 2 columns, expected 3: 'label enrol test'"),
        ("1 a b\n1 a c d\n", "line 2: 4 columns"),
        ("1 a b\n\n\n0 a c\n", "line 2: 0 columns"),
        ("a b target\n", "line 1: label 'a', expected one of 0, 1, nontarget, target"),
        ("1 a b\n2 a c\n", "line 2: label '2'"),
        ("1 a b\n1 a c\n1 a.wav b.flac\n", "line 3: the same trial as line 1 (1 such"),
        ("1 a b\n0 c d\n0 a b\n", "line 3: label 0 for 'a' and 'b', expected 1 as in"),
        ("1 a b\n0 b a\n", "line 2: label 0 for 'b' and 'a', expected 1 as in line 1"),
        (b"1 a \xff\xfe\n", "byte 4: expected UTF-8 text"),
    ],
)
def test_refused(write, text, message):
    path = write(text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_trials(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_list_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"absent.txt: No such file"):
        read_trials(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="Is a directory"):
        read_trials(tmp_path)


def test_duplicates_may_be_allowed_but_contradictions_never(write, caplog):
    path = write("1 a b\n0 a c\n1 a b\n1 a b\n")
    with caplog.at_level(logging.WARNING):
        trials = read_trials(path, allow_duplicates=True)
    assert trials.labels.tolist() == [1, 0, 1, 1]
    assert "line 3: the same trial as line 1 (2 such lines)" in caplog.text
    with pytest.raises(InputError, match="line 2: label 0"):
        read_trials(write("1 a b\n0 a b\n"), allow_duplicates=True)


def test_rows_of(write):
    trials = read_trials(write("1 a.wav b.wav\n0 c.wav a.wav\n"))
    rows = rows_of(trials, np.array(["c", "x", "b", "a"]), "embeddings.npz")
    assert rows.tolist() == [3, 2, 0]
    assert rows[trials.enrol].tolist() == [3, 0]
    assert rows[trials.test].tolist() == [2, 3]


def test_rows_of_names_line_utterance_and_list(write):
    trials = read_trials(write("1 a b\n0 a c\n0 d a\n"))
    with pytest.raises(InputError) as error:
        rows_of(trials, ["a", "b"], "embeddings.npz")
    assert str(error.value) == (
        f"{trials.path}: line 2: utterance 'c' is not in embeddings.npz, expected all "
        "4 utterances of the list there (2 absent)"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_round_trip(write, tmp_path, dtype):
    trials = read_trials(write("1 a.wav b.wav\n0 a.wav c.wav\n0 d e\n"))
    scores = np.array([1 / 3, -1e-12, np.pi * 1e9], dtype=dtype)
    path = tmp_path / "new" / "scores.txt"
    write_scores(path, trials, scores)
    assert path.read_text().splitlines()[0].startswith("a b 0.3333333")
    again, read = read_scores(path)
    assert np.array_equal(read.astype(dtype), scores)
    assert again.names.tolist() == trials.names.tolist()
    assert np.array_equal(again.enrol, trials.enrol)
    assert np.array_equal(again.test, trials.test)
    assert again.labels is None
    assert os.listdir(path.parent) == ["scores.txt"]


def test_scores_refused(write, tmp_path):
    trials = read_trials(write("1 a b\n0 a c\n"))
    path = tmp_path / "scores.txt"
    with pytest.raises(InputError, match=r"shape \[3\], expected \[2\]"):
        write_scores(path, trials, np.zeros(3))
    with pytest.raises(InputError, match="score nan of trial 2"):
        write_scores(path, trials, np.array([0, np.nan]))
    assert not path.exists()
    for text, message in [
        ("a b 0.1\na c high\n", "line 2: score 'high', expected a finite number"),
        ("a b inf\n", "line 1: score 'inf'"),
        ("a b\n", "line 1: 2 columns, expected 3: 'enrol test score'"),
        ("", "empty"),
    ]:
        with pytest.raises(InputError, match=message):
            read_scores(write(text, "scores.txt"))


def test_full_size_list(write):
    """580,000 trials over 145,000 utterances: seconds, not minutes."""
    utterances = 145_000
    names = [f"id{i % 1251:05d}/video/{i}.wav" for i in range(utterances)]
    lines = [
        f"{step % 2} {names[i]} {names[(i + 37 * step) % utterances]}"
        for i in range(utterances)
        for step in range(1, 5)
    ]
    path = write("\n".join(lines))
    start = time.process_time()
    trials = read_trials(path)
    seconds = time.process_time() - start
    assert len(trials) == 580_000
    assert len(trials.names) == utterances
    assert trials.n_target == 290_000
    assert seconds < 10, f"{seconds:.1f} s"  # about 1 s on an idle core


@pytest.mark.parametrize(
    ("name", "count", "swapped"),
    [
        ("voxceleb1_veri_test.txt", 37_720, 338),
        ("voxceleb1_veri_test_fixed.txt", 37_611, 337),
    ],
)
def test_published_lists(shared, name, count, swapped):
    trials = read_trials(shared / "data" / "protocols" / "vox1" / name)
    assert len(trials) == count
    pairs = set(zip(trials.enrol.tolist(), trials.test.tolist()))
    assert len(pairs) == count
    assert sum((b, a) in pairs for a, b in pairs) == 2 * swapped
    speakers = [name.split("/")[0] for name in trials.names]
    same = [speakers[a] == speakers[b] for a, b in zip(trials.enrol, trials.test)]
    assert trials.labels.tolist() == [int(value) for value in same]
