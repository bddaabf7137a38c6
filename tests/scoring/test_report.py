"""The report has the metrics' own figures, the worst trials, and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest

from speechbrain_ext.scoring.intervals import bootstrap_intervals
from speechbrain_ext.scoring.metrics import (
    actual_dcf,
    cllr,
    equal_error_rate,
    min_cllr,
    min_dcf,
)
from speechbrain_ext.scoring.report import (
    System,
    as_markdown,
    draw_pictures,
    evaluate,
    worst_trials,
    write_report,
)
from speechbrain_ext.scoring.trials import Trials
from speechbrain_ext.utils.errors import InputError


def trials_of(labels, path="lists/some.txt"):
    """Trial t is between ``e{t}`` and ``t{t}``."""
    size = len(labels)
    names = np.array([f"{side}{row}" for side in "et" for row in range(size)])
    rows = np.arange(size, dtype=np.int32)
    labels = np.array(labels, dtype=np.int8)
    return Trials(Path(path), names, rows, rows + size, labels)


@pytest.fixture(scope="module")
def case():
    """Trials of 10 speakers, two systems, the speakers."""
    random = np.random.default_rng(0)
    labels = random.random(400) < 0.3
    trials = trials_of(labels)
    enrol = random.integers(0, 10, 400)
    test = np.where(labels, enrol, (enrol + random.integers(1, 10, 400)) % 10)
    cosine = (random.standard_normal(400) + 2 * labels).astype(np.float32)
    systems = [
        System("cosine", "cosine", cosine, False, False),
        System("llr", "AS-norm + QMF", 2.0 * cosine - 3, True, True, True),
    ]
    return trials, systems, np.concatenate((enrol, test))


# ---- figures -------------------------------------------------------------------------


def test_figures_are_those_of_the_metrics(case):
    trials, systems, speakers = case
    result = evaluate(trials, systems, speakers, n_resamples=20)
    assert result["list"] == "lists/some.txt"
    assert result["trials"] == 400
    assert result["targets"] == trials.labels.sum()
    assert result["targets"] + result["nontargets"] == 400
    codes = speakers[trials.enrol], speakers[trials.test]
    for system, row in zip(systems, result["systems"], strict=True):
        data = system.scores, trials.labels
        eer = equal_error_rate(*data)
        assert row["system"] == system.name
        assert row["title"] == system.title
        assert row["eer_percent"] == 100 * eer.eer
        assert row["eer_threshold"] == eer.threshold
        assert row["min_dcf"] == {str(p): min_dcf(*data, p).dcf for p in (0.01, 0.05)}
        assert row["cllr"] == cllr(*data).cllr
        assert row["min_cllr"] == min_cllr(*data).cllr
        assert row["intervals_95"] == bootstrap_intervals(*data, *codes, 20)
    cosine, llr = result["systems"]
    assert "actual_dcf" not in cosine
    data = systems[1].scores, trials.labels
    assert llr["actual_dcf"] == {str(p): actual_dcf(*data, p).dcf for p in (0.01, 0.05)}
    flags = [
        [row[k] for k in ("as_norm", "qmf", "calibrated")] for row in (cosine, llr)
    ]
    assert flags == [[False] * 3, [True] * 3]


@pytest.mark.parametrize("how", ["no speakers", "no resamples"])
def test_intervals_may_be_left_out(case, how):
    trials, systems, speakers = case
    options = (None, 20) if how == "no speakers" else (speakers, 0)
    result = evaluate(trials, systems, *options)
    assert not any("intervals_95" in row for row in result["systems"])
    assert "–" in as_markdown([result])  # only of what is not calibrated
    assert "(0." not in as_markdown([result]).replace("(0.01)", "").replace(
        "(0.05)", ""
    )


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_names_the_list_and_the_system(label):
    trials = trials_of([label] * 4)
    message = (
        r"^lists/some.txt: plain: \d targets and \d non-targets, expected at least"
    )
    with pytest.raises(InputError, match=message):
        evaluate(trials, [System("a", "plain", np.arange(4.0))])


def test_a_score_that_is_not_finite_names_the_list():
    with pytest.raises(
        InputError, match=r"^lists/some.txt: plain: score nan of trial 2"
    ):
        evaluate(trials_of([0, 1]), [System("a", "plain", np.array([0, np.nan]))])


# ---- worst trials --------------------------------------------------------------------


def plainly(trials, scores, n):
    """The worst by a full sort."""
    found = {}
    for name, label, sign in (("targets", 1, 1), ("nontargets", 0, -1)):
        rows = [row for row in range(len(scores)) if trials.labels[row] == label]
        rows.sort(key=lambda row: (sign * scores[row], row))
        found[name] = [row + 1 for row in rows[:n]]
    return found


def lines(worst):
    return {kind: [trial["line"] for trial in found] for kind, found in worst.items()}


def test_worst_trials_by_hand():
    trials = trials_of([1, 0, 1, 0, 1, 0, 1])
    scores = np.array([0.5, 0.9, 0.1, 0.2, 0.1, 0.9, 0.8], dtype=np.float32)
    worst = worst_trials(trials, scores, n=2)
    assert lines(worst) == {"targets": [3, 5], "nontargets": [2, 6]}
    assert worst["targets"][0] == {
        "line": 3,
        "enrol": "e2",
        "test": "t2",
        "score": pytest.approx(0.1),
    }
    assert lines(worst_trials(trials, scores, n=3)) == {
        "targets": [3, 5, 1],
        "nontargets": [2, 6, 4],
    }
    # fewer than n
    assert lines(worst_trials(trials, scores, n=10)) == {
        "targets": [3, 5, 1, 7],
        "nontargets": [2, 6, 4],
    }


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_worst_trials_with_ties_against_a_full_sort(levels, n):
    random = np.random.default_rng(levels)
    trials = trials_of(random.random(300) < 0.5)
    scores = random.integers(0, levels, 300) / levels
    assert lines(worst_trials(trials, scores, n)) == plainly(trials, scores, n)


def test_a_label_that_nobody_has_has_no_worst():
    worst = worst_trials(trials_of([1, 1]), np.array([1.0, 0.0]))
    assert lines(worst) == {"targets": [2, 1], "nontargets": []}


# ---- files ---------------------------------------------------------------------------


def test_json_holds_every_figure(case, tmp_path):
    trials, systems, speakers = case
    result = evaluate(trials, systems, speakers, 20)
    about = {"pretrained_folder": "final", "top_n": 300}
    write_report(tmp_path / "new", [result, {**result, "enrolment": "average"}], about)
    read = json.loads((tmp_path / "new/results.json").read_text())
    assert {key: read[key] for key in about} == about
    assert read["lists"][0] == json.loads(json.dumps(result))
    assert read["lists"][1]["enrolment"] == "average"
    assert (
        read["lists"][0]["systems"][1]["eer_percent"]
        == result["systems"][1]["eer_percent"]
    )


def test_json_has_no_nan(tmp_path):
    """Cllr of such scores is beyond any float."""
    trials = trials_of([1, 0, 1, 0])
    scores = np.array([-1.7e308, 1.7e308, -1.7e308, 1.7e308])
    with np.errstate(over="ignore"):
        result = evaluate(trials, [System("a", "a", scores, calibrated=True)])
    assert result["systems"][0]["cllr"] == np.inf
    write_report(tmp_path, [result], {})

    def refuse(name):
        raise AssertionError(name)

    text = (tmp_path / "results.json").read_text()
    read = json.loads(text, parse_constant=refuse)
    assert read["lists"][0]["systems"][0]["cllr"] is None
    assert read["lists"][0]["systems"][0]["eer_percent"] == 100


def test_the_table(case, tmp_path):
    trials, systems, speakers = case
    result = evaluate(trials, systems, speakers, 20)
    plain = evaluate(trials, [System("other", "other|one", systems[0].scores)])
    plain = {**plain, "enrolment": "concatenate"}
    table = write_report(tmp_path, [result, plain], {"model": "final"}).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    assert rows[0] == [
        *("list", "system", "AS-norm", "QMF", "EER % (95 %)"),
        *("minDCF(0.01) (95 %)", "minDCF(0.05) (95 %)"),
        *("actDCF(0.01)", "actDCF(0.05)", "Cllr (95 %)", "minCllr"),
    ]
    assert len(table) == 2 + 3
    assert {len(row) for row in rows[2:]} == {len(rows[0])}
    assert table[1] == "|" + " --- |" * len(rows[0])
    cosine, llr = result["systems"]
    low, high = cosine["intervals_95"]["eer"]
    eer = f"{cosine['eer_percent']:.2f} ({100 * low:.2f}–{100 * high:.2f})"
    assert rows[2][:5] == ["some.txt (400)", "cosine", "no", "no", eer]
    assert rows[2][7:9] == ["–", "–"]
    low, high = llr["intervals_95"]["min_dcf_0.05"]
    assert rows[3][1:4] == ["AS-norm + QMF", "yes", "yes"]
    assert rows[3][6] == f"{llr['min_dcf']['0.05']:.3f} ({low:.3f}–{high:.3f})"
    assert rows[3][7] == f"{llr['actual_dcf']['0.01']:.3f}"
    low, high = llr["intervals_95"]["cllr"]
    assert rows[3][9] == f"{llr['cllr']:.3f} ({low:.3f}–{high:.3f})"
    assert rows[3][10] == f"{llr['min_cllr']:.3f}"
    # Nothing is claimed of a system that nothing is known of.
    assert rows[4][0] == "some.txt (400, enrolment: concatenate)"
    assert rows[4][1:4] == [r"other\|one", "–", "–"]
    assert rows[4][4] == f"{plain['systems'][0]['eer_percent']:.2f}"


def test_the_page(case, tmp_path):
    trials, systems, _ = case
    result = evaluate(trials, systems)
    table = write_report(tmp_path, [result], {"model": "final"})
    page = (tmp_path / "results.md").read_text()
    assert page.startswith(table + "\n\n")
    assert "\n- model: final\n" in page
    _, worst = page.split("Worst trials of some.txt (400), AS-norm + QMF:\n\n")
    rows = worst.strip().splitlines()
    assert len(rows) == 2 + 20
    first = result["systems"][1]["worst"]["targets"][0]
    assert rows[2] == (
        f"| target | {first['line']} | {first['enrol']} | {first['test']} | "
        f"{first['score']:.3f} |"
    )
    assert rows[12].startswith("| non-target |")


def test_pictures_exist_and_are_named(case, tmp_path):
    trials, systems, _ = case
    pictures = draw_pictures(tmp_path / "new", "some", trials, systems)
    assert pictures == {
        "det": f"{tmp_path}/new/det_some.png",
        "histograms": {
            "cosine": f"{tmp_path}/new/scores_some_cosine.png",
            "llr": f"{tmp_path}/new/scores_some_llr.png",
        },
        "calibration": f"{tmp_path}/new/calibration_some.png",
    }
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == [
        *("calibration_some.png", "det_some.png"),
        *("scores_some_cosine.png", "scores_some_llr.png"),
    ]
    for file in (tmp_path / "new").iterdir():
        assert file.read_bytes().startswith(b"\x89PNG")


def test_no_calibration_picture_of_scores_that_are_no_ratios(case, tmp_path):
    trials, systems, _ = case
    pictures = draw_pictures(tmp_path, "some", trials, systems[:1])
    assert sorted(pictures) == ["det", "histograms"]
    assert not (tmp_path / "calibration_some.png").exists()
