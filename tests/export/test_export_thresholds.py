"""From which trials an export takes thresholds, and from which it does not."""

import json

import numpy as np
import pytest
from tiny_export import HELD_OUT, TRAINED, names_of, write_results

from speechbrain_ext.export.thresholds import from_calibration, from_files, read_results
from speechbrain_ext.inference.thresholds import Thresholds
from speechbrain_ext.scoring.score_files import (
    read_score_table,
    write_score_table,
    write_scores,
)
from speechbrain_ext.scoring.trials import Trials
from speechbrain_ext.utils.errors import InputError


def measured(tmp_path, trained=(), **options):
    folder = write_results(tmp_path / "verify", **options)
    return from_calibration(read_results(folder), trained)


def test_held_out(tmp_path):
    found = measured(tmp_path, names_of(TRAINED))
    assert list(found.thresholds) == ["cosine", "as_norm", "llr"]
    assert found.source.endswith(
        f"of {len(HELD_OUT)} speakers, held out of training and not among those of the "
        "results above"
    )
    n = found.thresholds["cosine"].n_target, found.thresholds["cosine"].n_nontarget
    assert found.source.startswith(f"{n[0]} target and {n[1]} non-target trials")


def test_speakers_that_were_trained_on(tmp_path):
    found = measured(tmp_path, [*names_of(TRAINED), "id12", "id11"])
    assert found.thresholds == {}
    assert found.source == (
        "2 speakers of the calibration were trained on too, first id11"
    )


def test_the_training_manifest_as_calibration(tmp_path):
    """As verify.py does without a calibration_manifest; the cohort tells, too."""
    for trained in (names_of(TRAINED), ()):
        folder = tmp_path / f"known{len(trained)}"
        folder.mkdir()
        found = measured(folder, trained, calibrate=TRAINED)
        assert found.thresholds == {}
        assert "8 speakers of the calibration were trained on too" in found.source


def test_speakers_that_are_tested(tmp_path):
    found = measured(tmp_path, names_of(TRAINED), calibrate=range(18, 23))
    assert found.thresholds == {}
    assert found.source == "3 speakers of the calibration were tested too, first id20"


def test_no_calibration(tmp_path):
    found = measured(tmp_path, calibrate=None)
    assert found.thresholds == {}
    assert "verify.py did not calibrate" in found.source


def test_scores_that_were_not_kept(tmp_path):
    folder = write_results(tmp_path / "verify")
    (folder / "calibration_scores_llr.npz").unlink()
    found = from_calibration(read_results(folder), names_of(TRAINED))
    assert found.thresholds == {}
    assert "calibration_scores_llr.npz is not there: run verify.py" in found.source


def test_names_that_tell_no_speakers(tmp_path):
    folder = write_results(tmp_path / "verify")
    for kind in ("cosine", "as_norm", "llr"):
        path = folder / f"calibration_scores_{kind}.npz"
        trials, scores = read_score_table(path)
        names = np.array([name.replace("/", "_") for name in trials.names.tolist()])
        renamed = Trials(path, names, trials.enrol, trials.test, trials.labels)
        write_score_table(path, renamed, scores)
    found = from_calibration(read_results(folder), names_of(TRAINED))
    assert found.thresholds == {}
    assert "nobody knows whether its speakers were trained on: " in found.source
    # a manifest that is still there tells them
    text = (folder / "valid.csv").read_text().splitlines()
    lines = [text[0]] + [line.replace("/", "_", 2) for line in text[1:]]
    (folder / "valid.csv").write_text("\n".join(lines) + "\n")
    found = from_calibration(read_results(folder), names_of(TRAINED))
    assert list(found.thresholds) == ["cosine", "as_norm", "llr"]


# ---- files that the user names -------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A list of 40 trials and its scores, as text and as a table."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    enrol, test = np.arange(40, dtype=np.int32), np.arange(40, 80, dtype=np.int32)
    names = np.array([f"u{n}" for n in range(80)])
    trials = Trials(tmp_path / "mine.txt", names, enrol, test, labels.astype(np.int8))
    lines = [f"{k} u{a} u{b}\n" for k, a, b in zip(labels, enrol, test, strict=True)]
    (tmp_path / "mine.txt").write_text("".join(lines))
    scores = labels + generator.standard_normal(40)
    write_scores(tmp_path / "mine_cosine.txt", trials, scores)
    write_score_table(tmp_path / "table.npz", trials, scores)
    order = np.argsort(scores)  # another order than the list's
    shuffled = Trials(trials.path, names, enrol[order], test[order])
    write_score_table(tmp_path / "shuffled.npz", shuffled, scores[order])
    return tmp_path, Thresholds.from_scores(scores, labels).to_dict()


@pytest.mark.parametrize(
    ("word", "trials", "kind"),
    [
        ("{}/mine_cosine.txt", "{}/mine.txt", "cosine"),
        ("as_norm={}/mine_cosine.txt", "{}/mine.txt", "as_norm"),
        ("s_norm={}/table.npz", None, "as_norm"),
        ("llr={}/table.npz", "{}/mine.txt", "llr"),
        ("cosine={}/shuffled.npz", "{}/mine.txt", "cosine"),
    ],
)
def test_scores_of_ones_own(own, word, trials, kind):
    folder, expected = own
    trials = trials and trials.format(folder)
    found = from_files([word.format(folder)], trials)
    assert {k: t.to_dict() for k, t in found.thresholds.items()} == {kind: expected}
    file = "mine.txt" if trials else "table.npz"
    assert found.source == f"20 target and 20 non-target trials of {file} ({kind})"


def test_a_tested_list_is_said_to_be_one(own):
    folder, _ = own
    words = [f"cosine={folder}/table.npz", f"llr={folder}/table.npz"]
    found = from_files(words, folder / "mine.txt", ["other.txt", "mine.txt"])
    assert list(found.thresholds) == ["cosine", "llr"]
    assert ". This list is among those of the results above: " in found.source
    assert "trials of mine.txt (cosine, llr). This" in found.source


@pytest.mark.parametrize(
    ("words", "trials", "message"),
    [
        (["{}/table.npz"], None, "table.npz: scores of which kind"),
        (["eer={}/table.npz"], None, "eer=.*: scores of which kind"),
        (["cosine="], None, "cosine=: scores of which kind"),
        (["cosine={}/no.npz"], None, "no.npz: No such file"),
        (["cosine={}/mine_cosine.txt"], None, "no labels, expected --trials LIST"),
        (["cosine={}/shuffled.npz"], None, "no labels, expected --trials LIST"),
        (["s_norm={}/table.npz", "as_norm={}/table.npz"], None, "a second file of as"),
        (["cosine={}/table.npz"], "{}/short.txt", "lacks 38 trials of system"),
        (["cosine={}/table.npz"], "{}/one.txt", "2 targets and 0 non-targets"),
    ],
)
def test_files_that_do_not_fit(own, words, trials, message):
    folder, _ = own
    (folder / "short.txt").write_text("0 u0 u40\n1 u1 u41\n")
    (folder / "one.txt").write_text("1 u3 u43\n1 u1 u41\n")
    with pytest.raises(InputError, match=message):
        from_files([w.format(folder) for w in words], trials and trials.format(folder))


# ---- what results say ----------------------------------------------------------------


def test_results_are_read(tmp_path):
    folder = write_results(tmp_path / "verify")
    found = read_results(folder)
    assert found.list_names == ["vox1_x.txt"]
    assert found.systems == ["cosine", "as_norm", "llr"]
    assert found.backend.top_n == 4
    assert found.calibration_folder == folder
    about = json.loads((folder / "results.json").read_text())
    about["top_n"] = 1
    (folder / "results.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"calibration\.json: calibrates as_norm_4"):
        read_results(folder)
