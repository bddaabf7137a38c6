"""Speakers told by names, and held against the labels."""

import re
from pathlib import Path

import numpy as np
import pytest

from speechbrain_ext.scoring.enrolment import check_speakers, speaker_of, speakers_of
from speechbrain_ext.scoring.trials import Trials, read_trials
from speechbrain_ext.utils.errors import InputError


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


def test_labels_agree(tmp_path):
    path = tmp_path / "trials.lst"
    path.write_text(
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
def test_labels_disagree(tmp_path, text, message):
    path = tmp_path / "trials.txt"
    path.write_text(text)
    trials = read_trials(path)
    with pytest.raises(InputError, match=re.escape(f"{path}: {message}")):
        check_speakers(trials, speakers_of(trials.names))


def test_nothing_to_check_against():
    side = np.zeros(1, np.int32)
    trials = Trials(Path("scores.txt"), np.array(["a"]), side, side)
    with pytest.raises(InputError, match=r"scores.txt: no labels"):
        check_speakers(trials, np.zeros(1, int))
