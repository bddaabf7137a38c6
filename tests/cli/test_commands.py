"""python -m speechbrain_ext cohort, qmf, score, calibrate, fuse, evaluate."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

from speechbrain_ext.__main__ import main
from speechbrain_ext.cli.scoring import add_scoring
from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.scoring.backend import Backend, TrialSide, fit_calibrator
from speechbrain_ext.scoring.calibration import L2, QualityCalibrator
from speechbrain_ext.scoring.calibration.trials import draw_calibration_trials
from speechbrain_ext.scoring.cohort import load_cohort, speaker_means
from speechbrain_ext.scoring.embeddings import save_embeddings
from speechbrain_ext.scoring.metrics import cllr, equal_error_rate
from speechbrain_ext.scoring.score_files import (
    read_score_table,
    read_scores,
    write_score_table,
    write_scores,
)
from speechbrain_ext.scoring.trials import read_trials, rows_of

SIZE, EACH = 6, 5


def write_speakers(folder, name, first, n_speakers):
    """NAME.npz, in another order than NAME.csv, which has one recording more."""
    random = np.random.default_rng(first)
    speakers = [f"id{first + s:02d}" for s in range(n_speakers) for _ in range(EACH)]
    ids = [f"{who}/{row % EACH}" for row, who in enumerate(speakers)]
    centres = random.standard_normal((n_speakers, SIZE))
    noise = random.standard_normal((len(ids), SIZE))
    vectors = (np.repeat(centres, EACH, axis=0) + noise).astype(np.float32)
    seconds = random.uniform(2, 10, len(ids))
    more = [*ids, "more"], ["x"] * (len(ids) + 1), [*seconds, 2.0], [*speakers, "more"]
    write_manifest(folder / f"{name}.csv", Manifest(*more))
    order = random.permutation(len(ids))
    save_embeddings(folder / f"{name}.npz", np.array(ids)[order], vectors[order])
    manifest = Manifest(ids, ids, seconds, speakers)
    return manifest.select(order), vectors[order]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Embeddings of training, held-out and test speakers, and a list of the last."""
    folder = tmp_path_factory.mktemp("data")
    corpora = {
        name: write_speakers(folder, name, first, n_speakers)
        for name, first, n_speakers in (
            ("train", 0, 12),
            ("valid", 20, 6),
            ("test", 40, 4),
        )
    }
    ids = sorted(corpora["test"][0].ids.tolist())
    lines = [f"{int(a[:4] == b[:4])} {a} {b}" for a in ids for b in ids[::3]]
    (folder / "o.txt").write_text("\n".join(lines) + "\n")
    return folder, corpora


@pytest.fixture
def folder(data, tmp_path, monkeypatch):
    """The same files, in the current folder."""
    for path in data[0].iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words):
    main(words.split())


def refused(words, message, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(words)
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


# ---- from embeddings to likelihood ratios --------------------------------------------


def test_cohort(data, folder, capsys):
    run("cohort --embeddings train.npz --manifest train.csv --output new/cohort.npz")
    manifest, vectors = data[1]["train"]
    expected = speaker_means(vectors, manifest.speakers)
    assert all(map(np.array_equal, load_cohort("new/cohort.npz"), expected))
    assert capsys.readouterr().out == "new/cohort.npz: 12 speakers\n"


def rows_and_side(data):
    manifest, vectors = data[1]["test"]
    trials = read_trials(data[0] / "o.txt")
    rows = rows_of(trials, manifest.ids, "x")
    rows = np.stack([rows[trials.enrol], rows[trials.test]], axis=1)
    return trials, rows, TrialSide(vectors, manifest.durations)


def check_scores(folder, trials, expected, name="o"):
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"scores_{name}_{system}.{suffix}"
        for system in expected
        for suffix in ("txt", "npz")
    )
    for system, scores in expected.items():
        found, values = read_score_table(folder / f"scores_{name}_{system}.npz")
        np.testing.assert_allclose(values, scores, rtol=1e-6, atol=1e-7)
        assert np.array_equal(found.labels, trials.labels)


def test_all_steps_from_files(data, folder, capsys):
    run("cohort --embeddings train.npz --manifest train.csv --output cohort.npz")
    run(
        "qmf --embeddings valid.npz --manifest valid.csv --cohort cohort.npz --top_n 7 "
        "--n_trials 90 --seed 4 --boundary 5 --shortest 3 --output qmf.json"
    )
    assert "duration_min" in capsys.readouterr().out
    manifest, vectors = data[1]["valid"]
    trials = draw_calibration_trials(
        manifest.speakers, manifest.durations, 90, 5.0, 3.0, seed=4
    )
    backend = Backend(load_cohort("cohort.npz"), top_n=7)
    side = TrialSide(vectors, manifest.durations)
    backend = fit_calibrator(backend, side, manifest.speakers, trials)
    found = QualityCalibrator.load("qmf.json")
    assert np.array_equal(found.weights, backend.calibrator.weights)
    run(
        "score --embeddings test.npz --manifest test.csv --trials o.txt --top_n 7 "
        "--cohort cohort.npz --calibrator qmf.json --output out"
    )
    trials, rows, side = rows_and_side(data)
    check_scores(folder / "out", trials, backend.scores(side, side, rows))
    names = [f"out/scores_o_{name}.txt" for name in ("cosine", "as_norm", "llr")]
    assert capsys.readouterr().out.splitlines() == names


def test_cosine_alone_needs_no_manifest_and_takes_several_lists(data, folder):
    lines = (folder / "o.txt").read_text().splitlines(keepends=True)
    (folder / "half.txt").write_text("".join(lines[::2]))
    run("score --embeddings test.npz --trials o.txt half.txt --output out")
    _, rows, side = rows_and_side(data)
    expected = Backend().scores(side, side, rows)["cosine"]
    for name, part in (("o", slice(None)), ("half", slice(None, None, 2))):
        scores = read_score_table(f"out/scores_{name}_cosine.npz")[1]
        np.testing.assert_allclose(scores, expected[part], atol=1e-6)
        _, as_text = read_scores(f"out/scores_{name}_cosine.txt")
        assert np.array_equal(as_text.astype(np.float32), scores)


def test_s_norm(data, folder):
    run("cohort --embeddings train.npz --manifest train.csv --output cohort.npz")
    run(
        "score --embeddings test.npz --trials o.txt --cohort cohort.npz --top_n all "
        "--output out"
    )
    trials, rows, side = rows_and_side(data)
    backend = Backend(load_cohort("cohort.npz"), top_n=None)
    check_scores(folder / "out", trials, backend.scores(side, side, rows))


def test_models_of_a_map_are_averaged(data, folder):
    (folder / "map").write_text("m0 id40/0 id40/1\nm1 id41/0.wav id41/2.wav\n")
    lines = ["m0 id40/2 target", "m1 id40/2 nontarget", "m1 id41/3 target"]
    (folder / "m.txt").write_text("\n".join(lines))
    run("score --embeddings test.npz --trials m.txt --enrol_map map --output out")
    manifest, vectors = data[1]["test"]
    vector = dict(zip(manifest.ids.tolist(), vectors, strict=True))
    models = {
        "m0": vector["id40/0"] + vector["id40/1"],
        "m1": vector["id41/0"] + vector["id41/2"],
    }
    pairs = [line.split()[:2] for line in lines]
    expected = [
        models[a] @ vector[b] / np.linalg.norm(models[a]) / np.linalg.norm(vector[b])
        for a, b in pairs
    ]
    check_scores(folder / "out", read_trials("m.txt"), {"cosine": expected}, "m")


# ---- from scores to one score and a report -------------------------------------------


@pytest.fixture
def systems(folder):
    """Scores of two systems: a.npz in the list's order, b.txt in another."""
    trials = read_trials(folder / "o.txt")
    random = np.random.default_rng(0)
    size = len(trials)
    scores = {
        name: (random.standard_normal(size) + 2 * trials.labels).astype(np.float32)
        for name in "ab"
    }
    write_score_table(folder / "a.npz", trials, scores["a"])
    write_scores(folder / "a.txt", trials, scores["a"])
    order = random.permutation(size)
    lines = [
        f"{trials.names[trials.enrol[t]]} {trials.names[trials.test[t]]} "
        f"{scores['b'][t]:.9g}\n"
        for t in order
    ]
    (folder / "b.txt").write_text("".join(lines))
    return trials, scores


def test_one_system_is_calibrated(folder, systems, capsys):
    trials, scores = systems
    run("calibrate --trials o.txt --scores a=a.npz --output c.json")
    expected = QualityCalibrator(["a"]).fit(scores["a"][:, None], trials.labels)
    found = QualityCalibrator.load("c.json")
    assert (found.names, found.l2) == (["a"], L2)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "c.json: 35 target, 105 non-target"
    assert [line.split()[0] for line in lines[1:]] == ["a", "bias"]
    assert float(lines[2].split()[1]) == pytest.approx(found.bias, rel=1e-4)
    # a table has its own labels
    run("calibrate --scores a=a.npz --output own.json")
    assert (folder / "own.json").read_bytes() == (folder / "c.json").read_bytes()
    run("fuse --calibrator c.json --scores a=a.npz --output llr.npz")
    table, ratios = read_score_table("llr.npz")
    expected = found.log_likelihood_ratio(scores["a"][:, None])
    assert np.array_equal(ratios, expected)
    assert np.array_equal(table.labels, trials.labels)  # as the table a.npz had them
    assert cllr(ratios, trials.labels).cllr < cllr(scores["a"], trials.labels).cllr


@pytest.mark.parametrize("suffix", ["txt", "npz", "safetensors"])
def test_two_systems_are_fused(folder, systems, suffix):
    trials, scores = systems
    run(
        "calibrate --trials o.txt --scores x=a.npz y=b.txt --objective cross_entropy "
        "--l2 0.01 --output c.json"
    )
    values = np.column_stack((scores["a"], scores["b"])).astype(float)
    expected = QualityCalibrator(["x", "y"], "cross_entropy", l2=0.01)
    expected.fit(values, trials.labels)
    ratios = expected.log_likelihood_ratio(values)
    # in any order of the words; rows as the list has them
    run(
        f"fuse --calibrator c.json --scores y=b.txt x=a.txt --trials o.txt "
        f"--output out/llr.{suffix}"
    )
    read = read_scores if suffix == "txt" else read_score_table
    found, fused = read(f"out/llr.{suffix}")
    np.testing.assert_allclose(fused, ratios, rtol=1e-6, atol=1e-7)
    for side in ("enrol", "test"):
        names = found.names[getattr(found, side)]
        assert np.array_equal(names, trials.names[getattr(trials, side)])
    # without a list: rows as the calibrator's first system has them
    run("fuse --calibrator c.json --scores y=b.txt x=a.txt --output two.txt")
    again, fused = read_scores("two.txt")
    np.testing.assert_allclose(fused, ratios, rtol=1e-6, atol=1e-7)
    assert np.array_equal(again.names[again.test], trials.names[trials.test])


def test_a_report_of_several_systems(folder, systems, capsys):
    trials, scores = systems
    run(
        "evaluate --trials o.txt --scores A=a.npz B=b.txt --calibrated B "
        "--n_resamples 10 --output report"
    )
    results = json.loads((folder / "report/results.json").read_text())
    (result,) = results["lists"]
    for row, column in zip(result["systems"], "ab", strict=True):
        eer = equal_error_rate(scores[column], trials.labels).eer
        assert row["title"] == column.upper()
        assert row["eer_percent"] == pytest.approx(100 * eer, abs=1e-9)
        assert (row["as_norm"], row["qmf"]) == (None, None)
        assert "intervals_95" in row
    assert ["actual_dcf" in row for row in result["systems"]] == [False, True]
    assert results["scores B"] == "b.txt"
    assert sorted(path.name for path in (folder / "report").iterdir()) == [
        *("calibration_o.png", "det_o.png", "results.json", "results.md"),
        *("scores_o_A.png", "scores_o_B.png"),
    ]
    out = capsys.readouterr().out
    assert "| o.txt (140) | A | – | – | " in out
    assert out.endswith("report report/results.md\n")


def test_speakers_of_a_manifest(folder, systems, caplog):
    """They tell who is who where names do not."""
    renamed = (folder / "o.txt").read_text().replace("id4", "x/id4")
    (folder / "n.txt").write_text(renamed)
    scores = (folder / "b.txt").read_text().replace("id4", "x/id4")
    (folder / "n_scores.txt").write_text(scores)
    words = (
        "evaluate --trials n.txt --scores B=n_scores.txt --n_resamples 10 --output r"
    )
    run(words)
    assert "no bootstrap intervals" in caplog.text
    row = json.loads((folder / "r/results.json").read_text())["lists"][0]["systems"][0]
    assert "intervals_95" not in row
    (folder / "n.csv").write_text(
        (folder / "test.csv").read_text().replace("\nid", "\nx/id")
    )
    run(f"{words} --manifest n.csv")
    row = json.loads((folder / "r/results.json").read_text())["lists"][0]["systems"][0]
    assert "intervals_95" in row


# ---- refused -------------------------------------------------------------------------

COHORT = "cohort --embeddings train.npz --manifest train.csv --output out/c.npz"
QMF = "qmf --embeddings valid.npz --manifest valid.csv --output out/c.json"
SCORE = "score --embeddings test.npz --trials o.txt --output out"
CALIBRATE = "calibrate --trials o.txt --output out/c.json --scores"
FUSE = "fuse --calibrator fused.json --output out/f.txt --scores"
EVALUATE = "evaluate --trials o.txt --output out --scores"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (COHORT.replace("train.csv", "no.csv"), "no.csv: No such file"),
        (COHORT.replace("train.npz", "no.npz"), "no.npz: No such file"),
        (COHORT.replace("train.npz", "test.npz"), "train.csv: no recording 'id4"),
        (COHORT.replace("out/c.npz", "c.txt"), "c.txt: suffix '.txt', expected one of"),
        (
            "calibrate --scores a=a.txt --output out/c.json",
            "a.txt: scores without labels, expected those of labelled trials",
        ),
        (f"{QMF} --objective eer", "objective 'eer'"),
        (f"{QMF} --l2 0", "l2 is 0"),
        (f"{QMF} --shortest 9.9 --boundary 20", "valid.csv: no trials can be made"),
        (f"{QMF} --n_trials 2", "valid.csv: n_trials is 2"),
        (f"{QMF} --top_n some", "--top_n some, expected a whole number, or all"),
        (f"{QMF} --top_n 1", "top_n is 1"),
        (f"{QMF} --memory_mib 0", "memory_mib is 0"),
        (
            f"{QMF} --cohort train.npz",
            "train.npz: speakers is not a file in the archive",
        ),
        (
            f"{QMF} --cohort other.npz --top_n 3",
            "valid.npz: embeddings of 6 values and a",
        ),
        (f"{SCORE} --cohort other.npz", "other.npz: cohort of 4 speakers, expected at"),
        (
            f"{SCORE} --cohort other.npz --top_n 4",
            "test.npz: embeddings of 6 values and",
        ),
        (
            f"{SCORE} --calibrator fused.json",
            "fused.json: calibrates x, y, expected cosine, m",
        ),
        (f"{SCORE} --calibrator o.txt", "o.txt: cannot be read as a speechbrain_ext c"),
        (SCORE.replace("o.txt", "one.txt"), "one.txt: 2 targets and 0 non-targets"),
        (SCORE.replace("o.txt", "o.txt o.txt"), "trial_lists: two of the name 'o'"),
        (
            SCORE.replace("test.npz", "valid.npz"),
            "o.txt: line 1: enrol name 'id40/0' is",
        ),
        (f"{SCORE} --manifest valid.csv", "valid.csv: no recording 'id4"),
        (f"{SCORE} --enrol_map o.txt", "o.txt: line 1: utterance 'id40/0' of '1' tw"),
        (f"{CALIBRATE} a.npz", "--scores 'a.npz', expected NAME=FILE"),
        (f"{CALIBRATE} a=", "--scores 'a=', expected NAME=FILE"),
        (f"{CALIBRATE} =a.npz", "--scores '=a.npz', expected NAME=FILE"),
        (f"{CALIBRATE} a/b=a.npz", "--scores 'a/b=a.npz', expected NAME=FILE"),
        (f"{CALIBRATE} a=a.npz a=b.txt", "--scores: two systems named 'a'"),
        (f"{CALIBRATE} a=none.npz", "none.npz: No such file"),
        (f"{CALIBRATE} a=o.txt", "o.txt: line 1: score 'id40/0', expected a finite n"),
        (
            f"{CALIBRATE} a=few.txt",
            "system 'a' lacks 139 trials of system 'the trial l",
        ),
        (f"{CALIBRATE} a=a.npz --objective x", "objective 'x', expected one of cllr"),
        (
            CALIBRATE.replace("o.txt", "one.txt") + " a=a.npz",
            "one.txt: 2 targets and 0",
        ),
        (f"{FUSE} x=a.npz", "fused.json: calibrates x, y, expected the systems of --s"),
        (f"{FUSE} x=a.npz z=b.txt", "expected the systems of --scores: x, z"),
        (f"{FUSE} x=a.npz y=few.txt", "system 'y' lacks 139 trials of system 'x'"),
        (
            FUSE.replace("f.txt", "f.csv") + " x=a.npz y=b.txt",
            "out/f.csv: suffix '.csv'",
        ),
        (FUSE.replace("fused", "no") + " x=a.npz", "no.json: No such file"),
        (
            f"{EVALUATE} a=a.npz --calibrated b",
            "--calibrated b, expected systems of --s",
        ),
        (f"{EVALUATE} a=a.npz --n_resamples 1", "--n_resamples 1, expected 0 or at l"),
        (f"{EVALUATE} a=a.npz --n_resamples -1", "--n_resamples -1, expected 0 or at"),
        (f"{EVALUATE} a=a.npz --manifest no.csv", "no.csv: No such file"),
        (
            EVALUATE.replace("o.txt", "map") + " a=a.npz",
            "map: line 1: 4 columns, expected",
        ),
    ],
)
def test_one_line_and_nothing_written(folder, systems, words, message, capsys):
    (folder / "one.txt").write_text("1 id40/0 id40/1\n1 id40/0 id40/2\n")
    (folder / "few.txt").write_text("id40/0 id40/0 1.0\n")
    (folder / "map").write_text("1 a b c\n")
    save_other_cohort()
    run("calibrate --trials o.txt --scores x=a.npz y=b.txt --output fused.json")
    refused(words, message, capsys)
    assert not (folder / "out").exists()


def save_other_cohort():
    """Of four speakers and 3 values."""
    manifest = Manifest(list("abcd"), list("abcd"), [1.0] * 4, list("abcd"))
    write_manifest("other.csv", manifest)
    save_embeddings("few.npz", list("abcd"), np.eye(4, 3) + 1)
    run("cohort --embeddings few.npz --manifest other.csv --output other.npz")


def test_words_that_are_no_arguments_are_one_line(capsys):
    message = "the following arguments are required: --embeddings"
    refused("score --trials o.txt", message, capsys)


# ---- the command line itself ---------------------------------------------------------


def test_defaults_are_those_of_the_functions():
    import argparse

    parser = argparse.ArgumentParser()
    add_scoring(parser.add_subparsers())
    arguments = parser.parse_args(QMF.split())
    drawing = inspect.signature(draw_calibration_trials).parameters
    for name in ("n_trials", "boundary", "shortest", "seed"):
        assert getattr(arguments, name) == drawing[name].default
    fitting = inspect.signature(fit_calibrator).parameters
    for name in ("objective", "l2"):
        assert getattr(arguments, name) == fitting[name].default
    assert int(arguments.top_n) == Backend().top_n
    assert parser.parse_args([*CALIBRATE.split(), "a=b"]).l2 == L2


def test_scoring_imports_no_torch_and_help_imports_nothing(folder, systems):
    code = (
        "import sys; from speechbrain_ext.__main__ import main; {}; "
        "print([n for n in ('torch', 'numpy', 'speechbrain') if n in sys.modules])"
    )
    words = [*EVALUATE.split(), "a=a.npz"]
    for do, expected in (("", "[]"), (f"main({words})", "['numpy']")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(do or "pass")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == expected
