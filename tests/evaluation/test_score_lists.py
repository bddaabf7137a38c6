"""Trial lists against a back-end: right names, right rows, files that come back."""

import logging
from pathlib import Path

import numpy as np
import pytest

from speechbrain_ext.evaluation.score_lists import (
    Recordings,
    averaged,
    read_lists,
    report_list,
    score_list,
)
from speechbrain_ext.scoring.backend import Backend, TrialSide
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.cohort import speaker_means
from speechbrain_ext.scoring.enrolment import read_enrol_map
from speechbrain_ext.scoring.score_files import read_score_table, read_scores
from speechbrain_ext.scoring.trials import read_trials
from speechbrain_ext.utils.errors import InputError

N_SPEAKERS, EACH = 4, 3


def write(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def recordings():
    """In another order than the lists name them."""
    random = np.random.default_rng(0)
    ids = [f"s{s}/{take}" for s in range(N_SPEAKERS) for take in range(EACH)]
    ids = np.array(ids)[random.permutation(len(ids))]
    vectors = random.standard_normal((len(ids), 5)).astype(np.float32)
    side = TrialSide(vectors, random.uniform(1, 5, len(ids)))
    return Recordings(ids, side, {name: name[:2] for name in ids}, "some.npz")


@pytest.fixture
def path(tmp_path):
    names = [f"s{s}/{take}" for s in range(N_SPEAKERS) for take in range(EACH)]
    return write(
        tmp_path / "o.txt",
        [f"{int(a[:2] == b[:2])} {a}.wav {b}.wav" for a in names for b in names[::2]],
    )


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


# ---- reading -------------------------------------------------------------------------


def test_lists_by_the_name_of_their_file(tmp_path, path):
    other = write(tmp_path / "list.hard.txt", ["1 a b", "0 a c"])
    lists = read_lists([str(path), other])
    assert list(lists) == ["o", "list.hard"]
    assert len(lists["list.hard"]) == 2
    assert list(read_lists(path)) == list(read_lists(str(path))) == ["o"]


def test_the_home_folder(tmp_path, path, monkeypatch):
    """As the preparation finds it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_lists("~/o.txt")["o"].path == path


def test_repeated_lines_are_refused_unless_allowed(tmp_path):
    path = write(tmp_path / "a.txt", ["1 a b", "0 a c", "1 a b"])
    with pytest.raises(InputError, match="line 3: the same trial as line 1"):
        read_lists(path)
    assert len(read_lists(path, allow_duplicates=True)["a"]) == 3


@pytest.mark.parametrize("paths", [None, [], "", (), 3, {"a": 1}])
def test_no_list(paths):
    with pytest.raises(InputError, match=r"trial_lists: .*, expected one file, or "):
        read_lists(paths)


def test_names_of_lists(tmp_path, path):
    with pytest.raises(InputError, match="trial_lists: 3, expected the name of a file"):
        read_lists([path, 3])
    again = write(tmp_path / "again/o.lst", ["1 a b", "0 a c"])
    with pytest.raises(
        InputError, match=rf"name 'o', {path} and {again}, expected one"
    ):
        read_lists([path, again])
    with pytest.raises(InputError, match=r"none.txt: No such file"):
        read_lists([tmp_path / "none.txt"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1 a b", "1 a c"], "one.txt: 2 targets and 0 non-targets"),
        (["0 a b"], "one.txt: 0 targets and 1 non-targets"),
    ],
)
def test_a_list_of_one_label(tmp_path, lines, message):
    path = write(tmp_path / "one.txt", lines)
    with pytest.raises(InputError, match=message):
        read_lists([path])


# ---- models --------------------------------------------------------------------------


def test_models_are_means_as_long_as_their_recordings(tmp_path, recordings):
    path = write(
        tmp_path / "map", ["m1 s0/0.wav s0/2.wav", "m0 s3/1.wav", "m2 s0/1 s1/1"]
    )
    models = averaged(read_enrol_map(path), recordings)
    row = {name: row for row, name in enumerate(recordings.ids)}
    rows = [[row["s0/0"], row["s0/2"]], [row["s3/1"]], [row["s0/1"], row["s1/1"]]]
    ids, side, speakers, source = models
    assert ids.tolist() == ["m1", "m0", "m2"]
    expected = [recordings.side.vectors[r].mean(axis=0) for r in rows]
    np.testing.assert_allclose(side.vectors, expected, rtol=1e-6)
    expected = [recordings.side.durations[r].sum() for r in rows]
    np.testing.assert_allclose(side.durations, expected)
    assert speakers == {"m1": "s0", "m0": "s3"}
    assert source == str(path)
    bare = recordings._replace(side=TrialSide(recordings.side.vectors))
    assert averaged(read_enrol_map(path), bare).side.durations is None


# ---- scoring -------------------------------------------------------------------------


def test_every_trial_gets_its_own_score(tmp_path, path, recordings):
    trials = read_lists(path)["o"]
    (system,) = score_list("o", trials, Backend(), recordings, recordings, tmp_path)
    vector = dict(zip(recordings.ids.tolist(), recordings.side.vectors, strict=True))
    expected = []
    for line in path.read_text().splitlines():
        a, b = (name.removesuffix(".wav") for name in line.split()[1:])
        expected.append(cosine(vector[a], vector[b]))
    np.testing.assert_allclose(system.scores, expected, atol=1e-6)
    assert (system.name, system.title) == ("cosine", "cosine")
    flags = system.as_norm, system.qmf, system.calibrated
    assert flags == (False, False, False)


def test_models_against_recordings(tmp_path, recordings):
    enrol_map = read_enrol_map(write(tmp_path / "map", ["b s0/0 s0/1", "a s1/0 s1/1"]))
    path = write(
        tmp_path / "m.txt", ["a s1/2 target", "b s1/2 nontarget", "b s0/2 target"]
    )
    trials, models = read_lists(path)["m"], averaged(enrol_map, recordings)
    (system,) = score_list("m", trials, Backend(), models, recordings, tmp_path)
    vector = dict(zip(recordings.ids.tolist(), recordings.side.vectors, strict=True))
    mean = {"a": vector["s1/0"] + vector["s1/1"], "b": vector["s0/0"] + vector["s0/1"]}
    pairs = [("a", "s1/2"), ("b", "s1/2"), ("b", "s0/2")]
    expected = [cosine(mean[a], vector[b]) for a, b in pairs]
    np.testing.assert_allclose(system.scores, expected, atol=1e-6)


def test_systems_and_files_of_every_step(tmp_path, path, recordings):
    trials = read_lists(path)["o"]
    random = np.random.default_rng(1)
    vectors = random.standard_normal((40, 5)).astype(np.float32)
    cohort = speaker_means(vectors, np.array([f"c{k // 2}" for k in range(40)]))
    rows = np.stack([trials.enrol, trials.test], axis=1)  # any will do here
    names, values = Backend(cohort, top_n=6).features(
        recordings.side, recordings.side, rows
    )
    calibrator = QualityCalibrator(names).fit(values, trials.labels)
    backend = Backend(cohort, calibrator, top_n=6)
    systems = score_list("x", trials, backend, recordings, recordings, tmp_path)
    assert [s.name for s in systems] == ["cosine", "as_norm", "llr"]
    assert [s.title for s in systems] == ["cosine", "AS-norm", "AS-norm + QMF"]
    flags = [(s.as_norm, s.qmf, s.calibrated) for s in systems]
    assert flags == [(False,) * 3, (True, False, False), (True,) * 3]
    for system in systems:
        file = tmp_path / f"scores_x_{system.name}"
        as_text, scores = read_scores(f"{file}.txt")
        assert np.array_equal(scores.astype(system.scores.dtype), system.scores)
        table, scores = read_score_table(f"{file}.npz")
        assert np.array_equal(scores, system.scores)
        assert np.array_equal(table.labels, trials.labels)
        for found in (as_text, table):
            pairs = found.names[found.enrol], found.names[found.test]
            assert np.array_equal(pairs[0], trials.names[trials.enrol])
            assert np.array_equal(pairs[1], trials.names[trials.test])
    # without a cohort, and with all of it
    found = score_list(
        *("y", trials, Backend(cohort, top_n=None), recordings, recordings, tmp_path)
    )
    assert [s.title for s in found] == ["cosine", "S-norm"]
    assert (tmp_path / "scores_y_s_norm.txt").exists()
    names, values = Backend().features(recordings.side, recordings.side, rows)
    calibrator = QualityCalibrator(names).fit(values, trials.labels)
    backend = Backend(calibrator=calibrator)
    found = score_list("z", trials, backend, recordings, recordings, tmp_path)
    assert [s.title for s in found] == ["cosine", "cosine + QMF"]
    assert [s.as_norm for s in found] == [False, False]


def test_what_cannot_be_scored_names_the_list(tmp_path, path, recordings):
    trials = read_lists(path)["o"]
    fewer = recordings._replace(ids=np.char.add(recordings.ids, "x"))
    with pytest.raises(
        InputError, match=r"o.txt: line 1: enrol name 's0/0' is not in s"
    ):
        score_list("o", trials, Backend(), fewer, recordings, tmp_path)
    with pytest.raises(
        InputError, match=r"o.txt: line 1: utterance 's0/0' is not in so"
    ):
        score_list("o", trials, Backend(), recordings, fewer, tmp_path)
    vectors = recordings.side.vectors.copy()
    vectors[recordings.ids.tolist().index("s0/0")] = 0
    silent = recordings._replace(side=TrialSide(vectors))
    with pytest.raises(
        InputError, match=r"o.txt: enrolment embedding in row \d+ has no"
    ):
        score_list("o", trials, Backend(), silent, silent, tmp_path)
    assert list(tmp_path.glob("scores*")) == []


# ---- reports -------------------------------------------------------------------------


def some_systems(tmp_path, trials, recordings):
    return score_list("o", trials, Backend(), recordings, recordings, tmp_path)


def test_a_report_has_figures_intervals_and_pictures(tmp_path, path, recordings):
    trials = read_lists(path)["o"]
    systems = some_systems(tmp_path, trials, recordings)
    result = report_list("o", trials, systems, tmp_path, 10, recordings.speakers)
    assert result["list"] == str(path)
    assert result["systems"][0]["intervals_95"]["eer"]
    assert Path(result["pictures"]["det"]) == tmp_path / "det_o.png"
    assert (tmp_path / "det_o.png").exists()
    # names tell the same speakers
    again = report_list("o", trials, systems, tmp_path, 10)
    assert again == result
    without = report_list("o", trials, systems, tmp_path, 0)
    assert "intervals_95" not in without["systems"][0]


def test_speakers_that_contradict_the_labels_cost_the_intervals(
    tmp_path, path, recordings, caplog
):
    trials = read_lists(path)["o"]
    systems = some_systems(tmp_path, trials, recordings)
    wrong = {**recordings.speakers, "s2/1": "s0"}
    with caplog.at_level(logging.WARNING):
        result = report_list("o", trials, systems, tmp_path, 10, wrong)
    assert "intervals_95" not in result["systems"][0]
    assert "o.txt: line " in caplog.text
    assert "no bootstrap intervals" in caplog.text


@pytest.mark.parametrize("n_speakers", [2, 3])
def test_two_speakers_have_no_intervals(tmp_path, recordings, caplog, n_speakers):
    """Those of models that no trial names do not count."""
    names = [f"s{s}/{take}" for s in range(n_speakers) for take in range(EACH)]
    lines = [f"{int(a[:2] == b[:2])} {a} {b}" for a in names for b in names]
    trials = read_trials(write(tmp_path / "o.txt", lines))
    systems = some_systems(tmp_path, trials, recordings)
    with caplog.at_level(logging.WARNING):
        result = report_list("o", trials, systems, tmp_path, 10, recordings.speakers)
    assert ("intervals_95" in result["systems"][0]) == (n_speakers == 3)
    message = "o.txt: 2 speakers, 3 are needed for bootstrap intervals"
    assert (message in caplog.text) == (n_speakers == 2)
