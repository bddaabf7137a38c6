"""python -m speechbrain_ext fuse_verified: folders of verify.py → their fusion."""

import json
from dataclasses import replace

import numpy as np
import pytest

from speechbrain_ext.__main__ import main
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.metrics import equal_error_rate
from speechbrain_ext.scoring.score_files import read_score_table, write_score_table
from speechbrain_ext.scoring.trials import read_trials

LISTS = ("easy", "hard")


def run(words):
    main(words.split())


@pytest.fixture
def lists(tmp_path):
    """Two lists and the trials of held-out speakers, eight recordings each of ten."""
    names = [f"id{s}/{u}" for s in range(10) for u in range(8)]
    generator, found = np.random.default_rng(0), {}
    for name in ("calibration", *LISTS):
        pairs = generator.integers(0, len(names), (400, 2))
        pairs[:150, 1] = pairs[:150, 0] // 8 * 8 + (pairs[:150, 0] + 3) % 8
        pairs = {tuple(pair) for pair in pairs.tolist() if pair[0] != pair[1]}
        lines = [f"{int(a // 8 == b // 8)} {names[a]} {names[b]}\n" for a, b in pairs]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
        found[name] = read_trials(tmp_path / f"{name}.txt")
    return found


@pytest.fixture
def verified(lists, tmp_path, monkeypatch):
    """{list: {model: scores}} of folders a and b, which hear different things."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(1)
    scores = {}
    for name, trials in lists.items():
        scores[name] = {
            model: (generator.standard_normal(len(trials)) + 2 * trials.labels).astype(
                np.float32
            )
            for model in "ab"
        }
        stem = "calibration_scores" if name == "calibration" else f"scores_{name}"
        for model, values in scores[name].items():
            write_score_table(f"{model}/{stem}_as_norm.npz", trials, values)
    return scores


WORDS = "fuse_verified --verified x=a y=b --n_resamples 10 --output out"


def test_what_calibrate_and_fuse_make_of_each_list(lists, verified, tmp_path, capsys):
    run(WORDS)
    stacked = {n: np.column_stack(list(s.values())) for n, s in verified.items()}
    expected = QualityCalibrator(["x", "y"], l2=1e-6)
    expected.fit(stacked["calibration"], lists["calibration"].labels)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (results["verified x"], results["verified y"]) == ("a", "b")
    assert [result["list"] for result in results["lists"]] == list(LISTS)
    for result, name in zip(results["lists"], LISTS, strict=True):
        ratios = expected.log_likelihood_ratio(stacked[name])
        trials, found = read_score_table(tmp_path / f"out/scores_{name}_fused.npz")
        np.testing.assert_allclose(found, ratios, rtol=1e-5, atol=1e-6)
        assert np.array_equal(trials.labels, lists[name].labels)
        rows = {row["system"]: row for row in result["systems"]}
        assert list(rows) == ["x", "y", "fused"]
        for system, values in (*verified[name].items(), ("fused", ratios)):
            row = rows[{"a": "x", "b": "y"}.get(system, system)]
            eer = equal_error_rate(values, lists[name].labels).eer
            assert row["eer_percent"] == pytest.approx(100 * eer, abs=1e-4)
            assert ("actual_dcf" in row) == (system == "fused")
        alone = min(rows["x"]["eer_percent"], rows["y"]["eer_percent"])
        assert rows["fused"]["eer_percent"] < alone
        assert (tmp_path / f"out/det_{name}.png").exists()
    saved = QualityCalibrator.load(tmp_path / "out/calibration.json")
    np.testing.assert_allclose(saved.weights, expected.weights, rtol=1e-6)
    out = capsys.readouterr().out
    assert "| easy (" in out
    assert "bias" in out


def without_labels(folder):
    for path in folder.parent.glob("?/scores_hard_as_norm.npz"):
        trials, scores = read_score_table(path)
        write_score_table(path, replace(trials, labels=None), scores)


def of_other_trials(folder):
    table = (folder / "scores_easy_as_norm.npz").read_bytes()
    (folder / "calibration_scores_as_norm.npz").write_bytes(table)


@pytest.mark.parametrize(
    ("words", "damage", "message"),
    [
        (WORDS.replace("y=b", "y=no"), None, "no: no scores_easy_as_norm.npz, exp"),
        (f"{WORDS} --system llr", None, "a: no scores_LIST_llr.npz, expected the l"),
        (WORDS.replace("y=b", "b"), None, "--verified 'b', expected NAME=FILE"),
        (f"{WORDS} --n_resamples 1", None, "--n_resamples 1, expected 0 or at least"),
        (WORDS.replace("x=a y=b", "x=b y=a"), "scores_easy_as_norm.npz", "b: no sc"),
        (WORDS, "scores_easy_as_norm.npz", "b: no scores_easy_as_norm.npz, expected"),
        (WORDS, "calibration_scores_as_norm.npz", "calibration_scores_as_norm.npz: No"),
        (WORDS, of_other_trials, "expected all systems to score the same trials"),
        (WORDS, without_labels, "scores without labels, expected those of labelled"),
    ],
)
def test_bad_input(verified, tmp_path, words, damage, message, capsys):
    if callable(damage):
        damage(tmp_path / "b")
    elif damage:
        (tmp_path / "b" / damage).unlink()
    with pytest.raises(SystemExit) as exit_code:
        run(words)
    assert exit_code.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
