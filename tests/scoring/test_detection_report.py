"""The report of spoofing detection: tables, files and pictures."""

import csv
import json

import numpy as np
import pytest

from speechbrain_ext.scoring.detection import Keys, detection_figures, words_of
from speechbrain_ext.scoring.detection.report import ScoredList, write_detection_report
from speechbrain_ext.scoring.report import System
from speechbrain_ext.utils.errors import InputError


def scored_list(name="eval", size=600, codecs=("-", "C01"), seed=0):
    random = np.random.default_rng(seed)
    is_bonafide = random.random(size) < 0.3
    attacks = np.where(is_bonafide, "-", random.choice(["A17", "A18"], size))
    keys = Keys(
        f"{name}.tsv",
        [f"E_{n}" for n in range(size)],
        is_bonafide,
        np.arange(size) + 1,
        words_of(random.choice([f"s{n}" for n in range(6)], size)),
        words_of(attacks),
        words_of(random.choice(codecs, size)),
    )
    scores = random.normal(np.where(is_bonafide, 2, -2), 1.5)
    raw = System("raw", "as scored", scores)
    return ScoredList(
        name, keys, [raw, System("llr", "LLR", 2 * scores, calibrated=True)]
    )


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    lists = [scored_list("dev", codecs=("-",)), scored_list()]
    return (
        folder,
        lists,
        write_detection_report(folder, lists, {"model": "some"}, n_resamples=10),
    )


def test_the_table_has_a_row_for_each_list_and_system(reported):
    _, lists, report = reported
    head, _, *rows = report.table.splitlines()
    assert "| minDCF (95 %) | actDCF (95 %) | Cllr (95 %) | EER % (95 %) |" in head
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| dev", "as scored"],
        ["| dev", "LLR"],
        ["| eval", "as scored"],
        ["| eval", "LLR"],
    ]
    keys, scores = lists[1].keys, lists[1].systems[1].scores
    figures = detection_figures(scores, keys.is_bonafide)["pooled"]
    assert f"{figures['min_dcf']:.4f} (" in rows[3]
    assert f"{figures['eer_percent']:.2f} (" in rows[3]
    assert f"| {int(keys.is_bonafide.sum())} |" in rows[3]


def test_json_has_all_figures(reported):
    folder, lists, report = reported
    results = json.loads((folder / "results.json").read_text())
    assert results["model"] == "some"
    assert results["costs"] == {"c_miss": 1.0, "c_fa": 10.0, "p_spoof": 0.05}
    last = results["lists"][1]["systems"][1]
    keys, scores = lists[1].keys, lists[1].systems[1].scores
    expected = detection_figures(
        scores,
        keys.is_bonafide,
        keys.attacks,
        keys.codecs,
        keys.speakers,
        n_resamples=10,
    )
    assert last["attacks_by_codec"] == expected["attacks_by_codec"]
    assert last["pooled"]["intervals_95"]["cllr"] == pytest.approx(
        list(expected["pooled"]["intervals_95"]["cllr"])
    )
    worst = last["worst"]["bonafide"]
    lowest = int(np.argmin(np.where(keys.is_bonafide, scores, np.inf)))
    assert worst[0] == {"file": f"E_{lowest}", "score": scores[lowest], "attack": "-"}
    assert len(worst) == 10
    assert report.results["lists"][0]["list"] == "dev"


def test_markdown_has_what_a_list_tells(reported):
    text = (reported[0] / "results.md").read_text()
    assert "- model: some" in text
    assert text.count("By attack, ") == 2
    assert "By codec, eval, LLR:" in text
    assert "By codec, dev" not in text  # it has but one
    assert "minDCF / EER % by attack and codec, eval, LLR:" in text
    assert "Worst recordings of dev, LLR:" in text


def test_csv_has_a_row_for_each_part(reported):
    with open(reported[0] / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    of_eval = [r for r in rows if (r["list"], r["system"]) == ("eval", "llr")]
    parts = [(row["attack"], row["codec"]) for row in of_eval]
    assert parts == [
        ("pooled", "pooled"),
        *(("A17", "pooled"), ("A18", "pooled")),
        *(("pooled", "-"), ("pooled", "C01")),
        *(("A17", "-"), ("A17", "C01"), ("A18", "-"), ("A18", "C01")),
    ]
    assert float(of_eval[0]["min_dcf_low"]) <= float(of_eval[0]["min_dcf"])
    assert of_eval[-1]["min_dcf_low"] == ""
    assert float(of_eval[0]["eer_percent_high"]) > float(of_eval[0]["eer_percent"]) / 2


def test_pictures(reported):
    folder, _, report = reported
    names = ["det", "scores", "calibration", "attacks", "codecs", "attacks_by_codec"]
    files = {name: f"{name}_eval.png" for name in names if name != "scores"}
    files |= {"raw": "scores_eval_raw.png", "llr": "scores_eval_llr.png"}
    for file in files.values():
        assert (folder / file).read_bytes().startswith(b"\x89PNG")
        assert report.pictures[file.removesuffix(".png")] == str(folder / file)
    assert not (folder / "codecs_dev.png").exists()


def test_keys_that_tell_nothing_more(tmp_path):
    scored = scored_list(size=60)
    keys = Keys("k.tsv", scored.keys.names, scored.keys.is_bonafide, scored.keys.lines)
    scored = scored._replace(keys=keys, systems=scored.systems[:1])
    report = write_detection_report(tmp_path, [scored])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("det_eval.png", "results.csv", "results.json", "results.md"),
        "scores_eval_raw.png",
    ]
    assert "(" not in report.table.splitlines()[2]  # no speakers, no intervals
    assert "*" in report.table  # fewer than thirty errors


def test_bad_scores_name_list_and_system(tmp_path):
    scored = scored_list(size=60)
    scored.systems[1].scores[3] = np.nan
    with pytest.raises(InputError, match=r"^eval: LLR: score nan of trial 4"):
        write_detection_report(tmp_path / "out", [scored])
    assert not (tmp_path / "out").exists()
