"""The steps of an evaluation of a spoofing detector."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_detector import load_detector, make_detector

from speechbrain_ext.evaluation.detection import DetectionList, score_and_report
from speechbrain_ext.export.detection import read_detection_results
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.scoring.detection import read_keys


@pytest.fixture
def run(tmp_path):
    """Split names, and options → figures in ``results``."""
    model = make_detector(tmp_path / "model", calibrated=False)
    head = load_pretrained(model).head
    rows = [f"r{n} {('bonafide', 'spoof')[n % 2]}\n" for n in range(40)]
    (tmp_path / "keys.tsv").write_text("".join(["filename cm-label\n", *rows]))
    keys = read_keys(tmp_path / "keys.tsv")
    logits = np.random.default_rng(1).normal(size=(40, 2))
    logits[:, 1] += keys.is_bonafide  # bona fide is the second

    def evaluate(*splits, sign=1):
        lists = dict.fromkeys(splits, DetectionList(SimpleNamespace(), keys))
        found = dict.fromkeys(splits, sign * logits)
        options = {"n_resamples": 0, "model": model}
        score_and_report(tmp_path / "results", lists, found, head, **options)
        return read_detection_results(tmp_path / "results")

    (tmp_path / "results").mkdir()
    return evaluate


def test_nothing_of_an_earlier_run_is_exported(run, tmp_path):
    """An evaluation of eval alone has no thresholds, and no calibration."""
    found = run("dev", "eval")
    assert set(found.thresholds) == {"llr"}
    assert (tmp_path / "results/calibration.json").is_file()
    found = run("eval")
    assert not found.thresholds
    assert not (tmp_path / "results/calibration.json").exists()


def test_a_detector_that_is_turned_round_is_warned_of(run, tmp_path, caplog):
    """And so is everybody who loads what its calibration became."""
    run("dev")
    assert not [message for message in caplog.messages if "weight" in message]
    run("dev", "eval", sign=-1)
    told = [message for message in caplog.messages if "weight -" in message]
    assert told[0].startswith("calibration on dev: weight -")
    caplog.clear()
    model = tmp_path / "model"
    shutil.copy(tmp_path / "results/calibration.json", model)
    load_detector(model)
    (told,) = caplog.messages
    assert told.startswith(f"{model}/calibration.json: weight -")
    assert "decide the reverse" in told
