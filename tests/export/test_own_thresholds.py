"""Thresholds of one's own recordings: by hand, written whole, and what few can tell."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from tiny_export import write_final
from tiny_verifier import add_backend, load, make_folder, write_voice

from speechbrain_ext.export import own_thresholds as module
from speechbrain_ext.export.folder import export_model
from speechbrain_ext.export.own_thresholds import measure_thresholds, place_of
from speechbrain_ext.inference.thresholds import Thresholds, load_thresholds
from speechbrain_ext.scoring.backend import TrialSide
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.calibration.cross_validation import held_out_ratios
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SPEAKERS, EACH = 6, 3


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """SPEAKER/day/FILE of six speakers."""
    return write_speakers(tmp_path_factory.mktemp("own"), SPEAKERS, EACH)


def write_speakers(root, speakers, each):
    for speaker in range(speakers):
        for take in range(each):
            path = root / f"Anna {speaker}" / "day" / f"{take}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_voice(path, 30 + speaker, 0.5 + 0.2 * take, 9 * speaker + take)
    return root


@pytest.fixture(scope="module")
def cosine_model(tmp_path_factory):
    """Without cohort, calibration and thresholds. Only to be read."""
    return make_folder(tmp_path_factory.mktemp("bare") / "model")


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory):
    """With everything. Only to be read."""
    root = tmp_path_factory.mktemp("whole")
    model = make_folder(root / "model", inference={"as_norm_top_n": 4})
    add_backend(model, root / "voices")
    return model


def measure(model, folder, output=None, **options):
    model, output = place_of(model, output=output)
    return measure_thresholds(load(model), folder, model, output, **options)


def state_of(folder):
    return {
        path.name: (path.read_bytes(), path.is_symlink()) for path in folder.iterdir()
    }


# -- figures ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["cosine_model", "whole_model"])
def test_the_thresholds_are_those_of_all_pairs(which, own, tmp_path, request):
    model = request.getfixturevalue(which)
    report = measure(model, own, tmp_path / "new")
    verifier = load(model)
    files = sorted(own.rglob("*.wav"))
    models = [verifier.enrol(str(file)) for file in files]
    side = TrialSide(
        np.array([m.embedding for m in models]), np.array([m.seconds for m in models])
    )
    pairs = np.stack(np.triu_indices(len(files), 1), axis=1)
    speakers = np.array([file.parts[-3] for file in files])
    labels = (speakers[pairs[:, 0]] == speakers[pairs[:, 1]]).astype(int)
    scores = replace(verifier.backend, calibrator=None).scores(side, side, pairs)
    found = load_thresholds(tmp_path / "new" / "thresholds.json")
    assert list(found) == sorted([*scores, "llr"])
    for kind, values in scores.items():
        expected = Thresholds.from_scores(values, labels)
        assert found[kind].n_target == report["targets"] == SPEAKERS * EACH
        assert found[kind].n_nontarget == report["nontargets"] == 135
        assert found[kind].eer == pytest.approx(expected.eer)
        np.testing.assert_allclose(
            found[kind].eer_threshold, expected.eer_threshold, rtol=1e-3, atol=1e-4
        )
    assert found["llr"].n_nontarget == 135
    assert report["speakers"] == SPEAKERS
    assert report["calibrated"] is True
    for kind, values in report["scores"].items():
        low, high = values["eer_interval"]
        assert 0 <= low <= high <= 1
        equal, five, *_ = values["points"]
        assert equal["threshold"] == found[kind].eer_threshold
        assert five["false_accept_rate"] <= 0.05
        assert five["false_accepts"] == round(135 * five["false_accept_rate"])


def test_likelihood_ratios_are_of_calibrators_that_did_not_know_the_speaker(
    own, cosine_model, tmp_path, monkeypatch
):
    seen = {}

    def kept(*arguments):
        seen["ratios"] = held_out_ratios(*arguments)
        seen["labels"] = arguments[1]
        return seen["ratios"]

    monkeypatch.setattr(module, "held_out_ratios", kept)
    measure(cosine_model, own, tmp_path / "new")
    found = load_thresholds(tmp_path / "new" / "thresholds.json")["llr"]
    expected = Thresholds.from_scores(seen["ratios"], seen["labels"])
    assert found.eer_threshold == expected.eer_threshold
    calibrator = QualityCalibrator.load(tmp_path / "new" / "calibration.json")
    assert calibrator.names[:2] == ["cosine", "duration_min"]
    assert (calibrator.n_target, calibrator.n_nontarget) == (18, 135)


def test_the_same_seed_gives_the_same_file_and_fewer_trials_are_drawn(
    own, cosine_model, tmp_path
):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        report = measure(cosine_model, own, tmp_path / name, max_trials=60, seed=seed)
        assert report["targets"] == 18
        assert report["nontargets"] == 42
    texts = [(tmp_path / name / "thresholds.json").read_bytes() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


# -- what is written -------------------------------------------------------------------


def test_beside_the_model_or_in_a_copy(own, whole_model, tmp_path):
    before = state_of(whole_model)
    copy = tmp_path / "copy"
    for _ in range(2):  # a copy may be measured again
        measure(whole_model, own, copy)
    assert state_of(whole_model) == before
    changed = {"calibration.json", "thresholds.json"}
    assert set(state_of(copy)) == set(before)
    assert {n for n, v in state_of(copy).items() if v != before[n]} == changed
    measured = state_of(copy)
    mine = shutil.copytree(whole_model, tmp_path / "mine")
    link = tmp_path / "link"
    link.symlink_to(mine)
    measure(link, own)
    assert link.is_symlink()
    assert state_of(mine) == measured
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "link", "mine"]
    expected = load(whole_model).compare(*map(str, sorted(own.rglob("*.wav"))[:2]))
    found = load(mine).compare(*map(str, sorted(own.rglob("*.wav"))[:2]))
    assert found.cosine == expected.cosine
    assert found.threshold != expected.threshold


def test_the_card_says_what_the_thresholds_are_of(own, tmp_path):
    export_model(write_final(tmp_path), tmp_path / "shared", name="me/shared")
    before = (tmp_path / "shared" / "README.md").read_text()
    assert "None are in this folder" in before
    measure(tmp_path / "shared", own, speech_detection=False)  # tones are none
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "None are in this folder" not in text
    assert "18 target and 135 non-target trials of 18 recordings by 6 speakers" in text
    assert "| cosine | " in text
    start, end = "## Thresholds\n", "## Size\n"
    assert text.split(start)[0] == before.split(start)[0]
    assert text.split(end)[1] == before.split(end)[1]


def test_a_failure_leaves_everything_as_it_was(own, whole_model, tmp_path, monkeypatch):
    mine = shutil.copytree(whole_model, tmp_path / "mine")
    before = state_of(mine)

    def fail(path, thresholds):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "save_thresholds", fail)
    with pytest.raises(OSError, match="No space"):
        measure(mine, own)
    assert state_of(mine) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_where_it_may_be_written(own, cosine_model, whole_model, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"other: exists and is not a copy of"):
        place_of(cosine_model, output=tmp_path / "other")
    stranger = make_folder(tmp_path / "stranger", seed=3)
    with pytest.raises(InputError, match=r"stranger: exists and is not a copy"):
        place_of(cosine_model, output=stranger)
    copy = shutil.copytree(cosine_model, tmp_path / "copy")
    assert place_of(cosine_model, output=copy) == (cosine_model.resolve(), copy)
    (copy / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds mine\.txt, which would be removed"):
        place_of(cosine_model, output=copy)
    with pytest.raises(InputError, match="no such folder"):
        place_of(tmp_path / "gone")
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="cannot be written to, expected --output"):
        place_of(cosine_model)
    monkeypatch.setattr(module, "find_folder", lambda source, savedir: cosine_model)
    with pytest.raises(InputError, match="me/model: from the hub, expected --output"):
        place_of("me/model")


def test_the_working_directory_is_not_replaced(cosine_model, tmp_path, monkeypatch):
    monkeypatch.chdir(cosine_model)
    with pytest.raises(InputError, match="holds the working directory, expected"):
        place_of(".")
    assert place_of(".", output=tmp_path / "new") == (cosine_model, tmp_path / "new")


# -- few people ------------------------------------------------------------------------


def test_two_speakers_keep_the_calibration_of_the_model(whole_model, tmp_path):
    folder = write_speakers(tmp_path / "two", 2, 3)
    report = measure(whole_model, folder, tmp_path / "new")
    assert report["calibrated"] is False
    assert list(report["scores"]) == ["cosine", "as_norm", "llr"]
    assert report["scores"]["llr"]["eer_interval"] is None
    assert "no calibration to these recordings: trials of 2" in report["warnings"][0]
    assert "2 speakers: of log-likelihood ratio, no interval" in report["warnings"][1]
    files = [whole_model / "calibration.json", tmp_path / "new" / "calibration.json"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert module.as_table(report).count("| cosine |") == 1


def test_an_interval_of_no_error_is_not_claimed(caplog):
    module._warn_of_few(5, {"cosine": {"eer_interval": [0.0, 0.0]}})
    assert "no error was made in any resample, which so few do not prove" in caplog.text
    module._warn_of_few(5, {"cosine": {"eer_interval": [0.0, 0.125]}})
    assert "equal error rate is 0 to 12 %" in caplog.text


def test_two_speakers_and_a_model_without_calibration(cosine_model, tmp_path):
    folder = write_speakers(tmp_path / "two", 2, 3)
    report = measure(cosine_model, folder, tmp_path / "new")
    assert list(report["scores"]) == ["cosine"]
    assert not (tmp_path / "new" / "calibration.json").exists()


@pytest.mark.parametrize(
    ("speakers", "each", "message"),
    [
        (1, 3, "recordings of 1 speakers, expected at least 2"),
        (3, 1, "3 recordings of 3 speakers, expected two speakers and two recordings"),
    ],
)
def test_too_few_are_an_error(speakers, each, message, cosine_model, tmp_path):
    folder = write_speakers(tmp_path / "few", speakers, each)
    with pytest.raises(InputError, match=message):
        measure(cosine_model, folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_bad_recordings_are_left_out_and_told(own, cosine_model, tmp_path):
    folder = shutil.copytree(own, tmp_path / "own")
    (folder / "Anna 0" / "bad.wav").write_text("no sound")
    (folder / "Bo").mkdir()
    (folder / "Bo" / "bad.wav").write_text("no sound")
    (folder / "loose.wav").write_text("no sound")
    report = measure(cosine_model, folder, tmp_path / "new")
    assert report["speakers"] == SPEAKERS
    assert len(report["failures"]) == 2
    assert "loose.wav" in " ".join(report["warnings"])
