"""Enrolment maps and what they need, mean embeddings, speakers told by names."""

import re
from pathlib import Path

import numpy as np
import pytest

from speechbrain_ext.scoring.enrolment import (
    average_enrolment,
    check_speakers,
    read_enrol_map,
    speaker_of,
    speakers_of,
    utterances_of,
)
from speechbrain_ext.scoring.trials import Trials, read_trials
from speechbrain_ext.utils.errors import InputError

MAP = (
    "id00800-enroll id00800/singing-01-002.wav id00800/vlog-01-001.flac\n"
    "id00801-enroll id00801/play-01-001.wav\n"
)


def test_read_by_hand(write):
    enrol_map = read_enrol_map(write(MAP))
    assert enrol_map.utterances == {
        "id00800-enroll": ("id00800/singing-01-002", "id00800/vlog-01-001"),
        "id00801-enroll": ("id00801/play-01-001",),
    }
    assert enrol_map.models.tolist() == ["id00800-enroll", "id00801-enroll"]
    assert len(enrol_map) == 2


def test_enroll_lst_is_a_map_too(write):
    """One recording each; tabs, CRLF and a byte-order mark do no harm."""
    path = write("\ufeffm1\tenroll/m1.wav\r\nm2.wav  enroll/m2.wav \r\n\r\n")
    assert read_enrol_map(path).utterances == {
        "m1": ("enroll/m1",),
        "m2": ("enroll/m2",),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, expected lines 'model utterance [utterance ...]'"),
        ("\n", "empty"),
        ("m a b\nn\n", "line 2: 1 columns, expected 'model utterance [utterance ...]'"),
        ("m a\n\nn b\n", "line 2: 0 columns"),
        ("m a\nn b\nm c\n", "line 3: model 'm' again, expected each once (it is in l"),
        ("m a\nm.wav b\n", "line 2: model 'm' again"),
        ("m a\nn b c b\n", "line 2: utterance 'b' of 'n' twice, expected each once"),
        ("m a.wav a.flac\n", "line 1: utterance 'a' of 'm' twice"),
        (b"m \xff\n", "byte 2: expected UTF-8 text"),
    ],
)
def test_refused(write, text, message):
    path = write(text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_enrol_map(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_recording_may_serve_two_models(write):
    assert len(read_enrol_map(write("m a b\nn b\n"))) == 2


def test_what_a_list_needs(write):
    trials = read_trials(write("m t1.wav 1\nn t1.wav 0\nm m 0\n", "trials.lst"))
    assert utterances_of(trials) == {"m", "n", "t1"}
    # All of the map, and on the test side a recording that has a model's name.
    enrol_map = read_enrol_map(write("n e3\nm e1 e2\nunused e4\n"))
    assert utterances_of(trials, enrol_map) == {"e1", "e2", "e3", "e4", "t1", "m"}


def test_an_enrol_side_that_is_no_model(write):
    trials = read_trials(write("m t 1\nn t 0\no t 0\n", "trials.lst"))
    enrol_map = read_enrol_map(write("m n t\no e\n"))  # n and t are recordings here
    with pytest.raises(InputError) as error:
        utterances_of(trials, enrol_map)
    assert str(error.value) == (
        f"{trials.path}: line 2: enrol name 'n' is not in {enrol_map.path}, expected "
        "all 3 enrol names of the list there (1 absent)"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_by_hand(write, dtype):
    enrol_map = read_enrol_map(write("n c\nm a d\n"))
    vectors = np.array([[1, 2], [9, 9], [5, -5], [3, -8]], dtype)
    models, means = average_enrolment(enrol_map, list("abcd"), vectors, "emb.npz")
    assert models.tolist() == ["n", "m"]
    # As they are: of a and d scaled to length 1 first it would be another direction.
    assert means.tolist() == [[5, -5], [2, -3]]
    assert means.dtype == np.float32


def test_mean_against_the_definition(write):
    random = np.random.default_rng(0)
    ids = [f"u{i}" for i in range(300)]
    vectors = random.standard_normal((300, 16)).astype(np.float32)
    chosen = [
        random.choice(300, size, replace=False) for size in random.integers(1, 40, 50)
    ]
    lines = [" ".join([f"m{k}", *(ids[i] for i in c)]) for k, c in enumerate(chosen)]
    enrol_map = read_enrol_map(write("\n".join(lines)))
    _, means = average_enrolment(enrol_map, np.array(ids), vectors, "emb.npz")
    expected = [sum(vectors[i].astype(float) for i in c) / len(c) for c in chosen]
    # summed in float64 and rounded once, to half a digit: 2⁻²⁴
    assert means == pytest.approx(np.array(expected), rel=2**-23, abs=1e-12)


def test_large_embeddings_do_not_overflow(write):
    vectors = np.full((3, 2), 3e38, np.float32)
    enrol_map = read_enrol_map(write("m a b c\n"))
    _, means = average_enrolment(enrol_map, list("abc"), vectors, "emb.npz")
    assert means == pytest.approx(vectors[:1])


def test_mean_refused(write):
    enrol_map = read_enrol_map(write("m a\nn a x y\n"))
    with pytest.raises(InputError) as error:
        average_enrolment(enrol_map, ["a", "b"], np.ones((2, 3)), "emb.npz")
    assert str(error.value) == (
        f"{enrol_map.path}: line 2: utterance 'x' of 'n' is not in emb.npz, expected "
        "the recordings of all 2 models there"
    )
    for vectors in (np.ones((3, 3)), np.ones(2)):
        with pytest.raises(InputError, match=r"emb.npz: 2 IDs and embeddings of shape"):
            average_enrolment(enrol_map, ["a", "b"], vectors, "emb.npz")


def test_speakers_of_models(write):
    enrol_map = read_enrol_map(write("m a b\nn a c\no a x\np x\n"))
    assert enrol_map.speakers({"a": "s1", "b": "s1", "c": "s2"}) == {"m": "s1"}


# ---- speakers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "speaker"),
    [
        ("id10270/x6uYqmx31kE/00001", "id10270"),  # VoxCeleb
        ("id00800/singing-01-002", "id00800"),  # CN-Celeb's enroll.map
        ("id00800-enroll", "id00800"),
        ("enroll/id00800-enroll", "id00800"),
        ("test/id00800-singing-01-001", "id00800"),
        ("eval/test/id00800-live_broadcast-01-001", "id00800"),
        ("test/id10270/x6uYqmx31kE/00001", "id10270"),
        ("id-1/a-b/c-d", "id-1"),  # hyphens part file names only
        ("test", "test"),
        ("test-1", "test"),
        ("a", "a"),
    ],
)
def test_by_name(name, speaker):
    assert speaker_of(name) == speaker


def test_numbers():
    names = np.array(["b/s/1", "a/s/1", "test/b-2", "x", "b/s/3"])
    assert speakers_of(names).tolist() == [1, 0, 1, 2, 1]
    assert speakers_of(names).dtype == np.int64
    # A manifest goes before the rule, where it knows the recording.
    known = {"x": "a", "b/s/3": "zoe", "elsewhere": "e"}
    assert speakers_of(names, known).tolist() == [1, 0, 1, 0, 2]


def test_labels_agree(write):
    path = write(
        "id1-enroll test/id1-x-01 1\nid2-enroll test/id1-x-01 0\n"
        "id2-enroll test/id2-x-01 1\n"
    )
    trials = read_trials(path)
    speakers = speakers_of(trials.names)
    check_speakers(trials, speakers)
    assert speakers[trials.enrol].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1 a/1 a/2\n1 a/1 b/1\n0 a/1 b/2\n1 b/1 c/3\n",
            "line 2: label 1 for two speakers of 'a/1' and 'b/1', expected 1 exactly "
            "where both are of one speaker (2 such lines)",
        ),
        # One folder for all would otherwise pass: every target is of one "speaker".
        (
            "1 all/1 all/2\n0 all/1 all/3\n",
            "line 2: label 0 for one speaker of 'all/1' and 'all/3'",
        ),
    ],
)
def test_labels_disagree(write, text, message):
    path = write(text)
    trials = read_trials(path)
    with pytest.raises(InputError, match=re.escape(f"{path}: {message}")):
        check_speakers(trials, speakers_of(trials.names))


def test_nothing_to_check_against():
    side = np.zeros(1, np.int32)
    trials = Trials(Path("scores.txt"), np.array(["a"]), side, side)
    with pytest.raises(InputError, match=r"scores.txt: no labels"):
        check_speakers(trials, np.zeros(1, int))
