"""Trial lists: what is read, what is refused and how the refusal reads."""

import logging
import re

import numpy as np
import pytest

from speechbrain_ext.scoring import trials as lines
from speechbrain_ext.scoring.embeddings import Embeddings, select_vectors
from speechbrain_ext.scoring.enrolment import (
    check_speakers,
    read_enrol_map,
    speakers_of,
)
from speechbrain_ext.scoring.trials import read_trials, rows_of, utterance_id
from speechbrain_ext.utils.errors import InputError


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
        "1 a b\r0 a c\r",
        "1\ta\tb\n 0  a   c \n\n\n",
        "1 a\u3000b\n0 a c\n",
        "a b 1\na c 0\n",  # CN-Celeb's order
        "\ufeffa\tb target\r\na c nontarget",
    ],
)
def test_the_same_list_in_other_clothes(write, text):
    trials = read_trials(write(text))
    assert trials.labels.tolist() == [1, 0]
    assert trials.names.tolist() == ["a", "b", "c"]
    assert trials.enrol.tolist() == [0, 0]
    assert trials.test.tolist() == [1, 2]


def test_names_that_look_like_labels(write):
    """The first line tells the column; later names may be what they like."""
    trials = read_trials(write("a 1 0\n1 a 0\n0 1 0\n"))
    assert trials.names.tolist() == ["a", "1", "0"]
    assert trials.labels.tolist() == [0, 0, 0]
    trials = read_trials(write("1 a b\n0 a target\n"))
    assert trials.names.tolist() == ["a", "b", "target"]


@pytest.mark.parametrize(
    ("column", "names", "labels"),
    [("first", ["b", "0", "c", "1"], [1, 0]), ("last", ["1", "b", "0", "c"], [0, 1])],
)
def test_labels_at_both_ends(write, column, names, labels):
    path = write("1 b 0\n0 c 1\n")
    with pytest.raises(InputError, match="line 1: '1' and '0' may both be the label"):
        read_trials(path)
    trials = read_trials(path, label_column=column)
    assert trials.names.tolist() == names
    assert trials.labels.tolist() == labels
    with pytest.raises(InputError, match="label_column='middle', expected 'first'"):
        read_trials(path, label_column="middle")


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        (
            "first",
            "a b 1\n",
            "line 1: label 'a', expected one of 0, 1, nontarget",
        ),
        ("last", "1 a b\n", "line 1: label 'b'"),
        ("last", "a b\n", "line 1: 2 columns, expected 3: 'enrol test label'"),
        ("last", "", "empty, expected lines 'enrol test label'"),
        (None, "a b 1\n1 a c\n", "line 2: label 'c', expected one of 0, 1, nontarge"),
    ],
)
def test_every_line_has_its_label_in_that_column(write, column, text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_trials(write(text), label_column=column)


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
        ("\n1 a b\n", "line 1: 0 columns"),
        # As many fields as three in each line, but not so many in each.
        ("1 a\nb 1 c d\n", "line 1: 2 columns"),
        # As many separators as three fields have.
        ("1  a\n", "line 1: 2 columns"),
        (" 1 a\n", "line 1: 2 columns"),
        ("1 a b\n 1 a\n", "line 2: 2 columns"),
        ("1 a b\n1 a c d\n1 c\n", "line 2: 4 columns"),
        (
            "a b c\n",
            "line 1: neither 'a' nor 'c' is a label, expected one of 0, 1",
        ),
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


NFC, NFD = "Zo\u00e9", "Zoe\u0301"


@pytest.mark.parametrize(("listed", "known"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_names_in_either_form_of_unicode(write, tmp_path, listed, known):
    path = write(f"1 {listed}/1.wav {listed}/2.wav\n0 {listed}/1 b/1\n")
    trials = read_trials(path)
    ids = np.array(["b/1", f"{known}/2", f"{known}/1"])
    assert rows_of(trials, ids, "here")[trials.enrol].tolist() == [2, 2]
    assert rows_of(trials, ids, "here")[trials.test].tolist() == [1, 0]
    vectors = np.eye(3, dtype=np.float32)
    chosen = select_vectors(Embeddings(ids, vectors), [f"{listed}/2", "b/1"], "here")
    np.testing.assert_array_equal(chosen, vectors[[1, 0]])
    (tmp_path / "map").write_text(f"m {listed}/1.wav {listed}/2.wav\n", "utf-8")
    enrol_map = read_enrol_map(tmp_path / "map")
    assert [rows.tolist() for rows in enrol_map.rows(ids, "here")] == [[2, 1]]
    speakers = {name: name[:1] for name in ids.tolist()}
    assert enrol_map.speakers(speakers) == {"m": "Z"}
    assert speakers_of(trials.names, speakers).tolist() == [0, 0, 1]


def test_rows_of_one_side(write):
    """With an enrolment map the sides hold models and recordings."""
    trials = read_trials(write("m a 1\nm b 0\nb a 0\n"))
    rows = rows_of(trials, ["b", "a"], "embeddings.npz", side="test")
    assert rows[trials.test].tolist() == [1, 0, 1]
    assert rows.tolist() == [-1, 1, 0]
    rows = rows_of(trials, ["b", "x", "m"], "enroll.map", side="enrol")
    assert rows[trials.enrol].tolist() == [2, 2, 0]
    with pytest.raises(InputError) as error:
        rows_of(trials, ["m", "a"], "enroll.map", side="enrol")
    assert str(error.value) == (
        f"{trials.path}: line 3: enrol name 'b' is not in enroll.map, expected all 2 "
        "enrol names of the list there (1 absent)"
    )
    with pytest.raises(InputError, match="line 2: utterance 'b' is not in test"):
        rows_of(trials, ["m", "a"], "test.csv", side="test")


@pytest.fixture(params=[20, 400])
def small_blocks(monkeypatch, request):
    """A line or some lines at a time, as if the lists below were long."""
    monkeypatch.setattr(lines, "BLOCK", request.param)
    monkeypatch.setattr(lines, "LINES", 3)


LONG = [f"id{i % 7}/s/{i}.wav id{i % 5}/s/{i % 3}.wav {i % 2}" for i in range(100)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace(" ", "\t"),
        lambda text: text.replace(" ", "  ", 200),
        lambda text: text.replace("id3", "ïd3"),
        lambda text: "\ufeff" + text + "\n\n" * 20,
        lambda text: text.removesuffix("\n"),
    ],
)
def test_blocks_change_nothing(write, small_blocks, change):
    trials = read_trials(write(change("\n".join(LONG) + "\n")))
    names = [name.replace("ï", "i") for name in trials.names]
    seen = [
        f"{names[a]}.wav {names[b]}.wav {label}"
        for a, b, label in zip(trials.enrol, trials.test, trials.labels)
    ]
    assert seen == LONG


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a b", "line 58: 2 columns, expected 3"),
        ("a b c 1", "line 58: 4 columns, expected 3"),
        ("a b c", "line 58: label 'c'"),
        ("", "line 58: 0 columns, expected 3"),
        ("\n" * 90, "line 58: 0 columns, expected 3"),
        ("a  b 2", "line 58: label '2'"),
        (LONG[2], "line 58: the same trial as line 3"),
    ],
)
def test_lines_are_counted_over_blocks(write, small_blocks, line, message):
    path = write("\n".join([*LONG[:57], line, *LONG[57:]]))
    with pytest.raises(InputError, match=re.escape(f"{path}: {message}")):
        read_trials(path)


def test_bytes_are_counted_over_blocks(write, small_blocks):
    text = "\n".join([*LONG, "a \udcff 1"]).encode(errors="surrogateescape")
    with pytest.raises(InputError, match=f"byte {text.index(0xFF)}: expected UTF-8"):
        read_trials(write(text))
    text = b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n")
    with pytest.raises(InputError, match=f"byte {text.index(0xFF)}: expected UTF-8"):
        read_trials(write(text))


def test_list_of_cn_celebs_size(tmp_path):
    """Every of 196 models against every of 17,777 recordings: 3,484,292 trials."""
    genres = ("singing", "interview", "live_broadcast", "vlog")
    tests = [
        f"test/id{800 + i % 200:05d}-{genres[i % 4]}-{i % 30:02d}-{i // 200:03d}"
        for i in range(17_777)
    ]
    path = tmp_path / "trials.lst"
    with open(path, "w") as file:
        for model in range(800, 996):
            name = f"id{model:05d}-enroll"
            same = f"test/id{model:05d}-"
            file.writelines(f"{name} {t}.wav {int(same in t)}\n" for t in tests)
    trials = read_trials(path)
    assert len(trials) == 3_484_292
    assert len(trials.names) == 196 + 17_777
    assert trials.names[trials.test[:17_777]].tolist() == tests
    assert (trials.test.reshape(196, -1) == trials.test[:17_777]).all()
    assert (trials.enrol.reshape(196, -1) == trials.enrol[::17_777, None]).all()
    assert trials.names[trials.enrol[-1]] == "id00995-enroll"
    targets = sum(name[7:12] < "00996" for name in tests)
    assert (trials.n_target, trials.n_nontarget) == (targets, 3_484_292 - targets)


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
    speakers = speakers_of(trials.names)
    check_speakers(trials, speakers)
    assert speakers.max() + 1 == 40
