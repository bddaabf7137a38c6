"""Error rates by condition: each cell is the metric of its own trials."""

import json
from pathlib import Path

import numpy as np
import pytest

from speechbrain_ext.data.corpora.cnceleb import genre_of, genres_of
from speechbrain_ext.evaluation.score_lists import report_list
from speechbrain_ext.scoring.conditions import by_condition, plot_conditions
from speechbrain_ext.scoring.enrolment import EnrolMap
from speechbrain_ext.scoring.metrics import equal_error_rate
from speechbrain_ext.scoring.report import (
    System,
    conditions_as_markdown,
    write_report,
)
from speechbrain_ext.scoring.trials import Trials
from speechbrain_ext.utils.errors import InputError

CELLS = ("eer_percent", "targets", "nontargets", "enough")


def trials_of(enrol, test, labels, names):
    return Trials(
        Path("lists/trials.lst"),
        np.array(names),
        np.array(enrol, dtype=np.int32),
        np.array(test, dtype=np.int32),
        None if labels is None else np.array(labels, dtype=np.int8),
    )


@pytest.fixture(scope="module")
def case():
    """20,000 trials of 60 names of 4 genres; one genre is never enrolled."""
    random = np.random.default_rng(0)
    genres = np.array(["interview", "singing", "vlog", "drama"])[
        random.integers(0, 4, 60)
    ]
    enrol = random.choice(np.flatnonzero(genres != "drama"), 20_000)
    test = random.integers(0, 60, 20_000)
    labels = random.random(20_000) < 0.3
    trials = trials_of(enrol, test, labels, [f"n{n}" for n in range(60)])
    easy = np.where(genres[test] == "singing", 0.5, 2)
    scores = random.standard_normal(20_000) + easy * labels
    return trials, scores.astype(np.float32), genres


# ---- names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "genre"),
    [
        ("id00010/interview-01-001", "interview"),
        ("id00010/live_broadcast-01-001+3", "live_broadcast"),
        ("test/id00800-singing-01-001", "singing"),
        ("singing-01-001", "singing"),
        ("enroll/id00800-enroll", None),
        ("id00800-enroll", None),
        ("id10270/x6uYqmx31kE/00001", None),
        ("id10270/-x6uYq-1-1/00001", None),
    ],
)
def test_the_genre_that_a_name_tells(name, genre):
    assert genre_of(name) == genre


def test_models_have_the_genre_of_their_recordings():
    enrol_map = EnrolMap(
        Path("enroll.map"),
        {
            "a-enroll": ("a/vlog-01-001", "a/vlog-02-001"),
            "b-enroll": ("b/vlog-01-001", "b/play-01-001"),
            "c-enroll": ("enroll/c-enroll",),
        },
    )
    names = ["a-enroll", "b-enroll", "c-enroll", "d-enroll", "test/a-drama-01-001"]
    found = genres_of(names, enrol_map).tolist()
    assert found == ["vlog", "several", "unknown", "unknown", "drama"]
    assert genres_of(names).tolist() == ["unknown"] * 4 + ["drama"]


# ---- figures -------------------------------------------------------------------------


def test_every_cell_is_the_metric_of_its_trials(case):
    trials, scores, genres = case
    table = by_condition(trials, scores, genres, "genre")
    assert table["enrol"] == ["interview", "singing", "vlog", "all"]
    assert table["test"] == ["drama", "interview", "singing", "vlog", "all"]
    enrol, test = genres[trials.enrol], genres[trials.test]
    for row, of_enrol in enumerate(table["enrol"]):
        for column, of_test in enumerate(table["test"]):
            part = np.isin(enrol, of_enrol) if of_enrol != "all" else enrol != ""
            part &= test == of_test if of_test != "all" else test != ""
            check({k: table[k][row][column] for k in CELLS}, scores, trials, part)
    check(table["same_genre"], scores, trials, enrol == test)
    check(table["other_genre"], scores, trials, enrol != test)
    rates = np.array(table["eer_percent"])
    assert (rates[:, 2] > 1.5 * rates[:, 1]).all()  # singing was made hard
    json.dumps(table)


def check(cell, scores, trials, part):
    eer = equal_error_rate(scores[part], trials.labels[part]).eer
    n_target = int(trials.labels[part].sum())
    assert cell["eer_percent"] == 100 * eer
    assert (cell["targets"], cell["nontargets"]) == (n_target, part.sum() - n_target)
    assert cell["enough"] == (eer * min(n_target, part.sum() - n_target) >= 30)


@pytest.mark.parametrize(("n", "enough"), [(29, False), (30, True)])
def test_the_rule_of_thirty(n, enough):
    """n misses of 100 targets, and as many false alarms of 1000 non-targets."""
    labels = np.repeat([1, 0], [100, 1000])
    scores = np.concatenate([np.arange(100) < n, np.arange(1000) >= 10 * n])
    trials = trials_of([0] * 1100, [1] * 1100, labels, ["a/x-1-1", "b/x-1-1"])
    table = by_condition(trials, -scores.astype(float), np.array(["x", "x"]))
    assert table["eer_percent"][0][0] == pytest.approx(n)
    assert table["enough"][0][0] is enough
    assert ("*" in conditions_as_markdown(table, "t").splitlines()[4]) is not enough


def test_cells_without_rates():
    """Targets only, non-targets only, and no trial at all."""
    trials = trials_of([0, 0, 0, 1], [2, 2, 3, 3], [1, 1, 0, 0], list("abcd"))
    table = by_condition(
        trials, -np.arange(4.0), np.array(["x", "y", "z", "w"]), "codec"
    )
    assert table["eer_percent"][0] == [None, None, 0.0]
    assert table["targets"][1] == [0, 0, 0]
    assert table["nontargets"][1] == [1, 0, 1]
    assert table["same_codec"]["eer_percent"] is None
    lines = conditions_as_markdown(table, "t").splitlines()
    assert lines[2] == "| enrolment \\ test | w | z | all |"
    assert lines[4] == "| x | – | – (2) | 0.00* (2) |"
    assert lines[5] == "| y | – | – | – |"
    assert "of the same codec –, another 0.00* (2)." in lines[-1]


def test_what_cannot_be_split(case):
    trials, scores, genres = case
    with pytest.raises(InputError, match="59 conditions and 20000 scores"):
        by_condition(trials, scores, genres[1:])
    with pytest.raises(InputError, match="60 conditions and 19999 scores"):
        by_condition(trials, scores[1:], genres)
    unlabelled = trials_of([0], [1], None, ["a", "b"])
    with pytest.raises(InputError, match=r"trials\.lst: no labels"):
        by_condition(unlabelled, scores[:1], genres[:2])


# ---- report --------------------------------------------------------------------------


def test_the_report_has_the_last_systems_table_and_picture(case, tmp_path):
    trials, scores, genres = case
    systems = [
        System("cosine", "cosine", scores[::-1]),
        System("as_norm", "AS-norm", scores),
    ]
    result = report_list("t", trials, systems, tmp_path, 0, genres=genres)
    assert result["genres"] == by_condition(trials, scores, genres, "genre")
    result["enrolment"] = "average"
    write_report(tmp_path, [result], {})
    page = (tmp_path / "results.md").read_text()
    what = "trials.lst (20,000, enrolment: average), AS-norm"
    title = f"EER % (targets) by genre of {what}:"
    assert f"\n{title}\n\n| enrolment \\ test | drama | interview |" in page
    written = json.loads((tmp_path / "results.json").read_text())["lists"][0]
    assert written["genres"] == result["genres"]
    assert Path(result["pictures"]["genres"]) == tmp_path / "genres_t.png"
    assert (tmp_path / "genres_t.png").read_bytes()[:4] == b"\x89PNG"
    plain = report_list("u", trials, systems[:1], tmp_path, 0)
    assert "genres" not in plain
    assert "genres" not in plain["pictures"]


def test_a_picture_of_nothing(tmp_path):
    trials = trials_of([0], [1], [1], ["a", "b"])
    plot_conditions(
        tmp_path / "g.png", by_condition(trials, [0.5], np.array(["x", "y"]))
    )
    assert (tmp_path / "g.png").stat().st_size > 1000
