"""python -m speechbrain_ext verify, as a user and a program run it."""

import json
import subprocess
import sys

import pytest
import soundfile
from tiny_verifier import load, make_folder, make_whole, write_voice

from speechbrain_ext.__main__ import main

KEYS = {
    *("same_speaker", "score", "score_kind", "threshold", "threshold_from"),
    *("false_accept_rate", "miss_rate", "scores", "probability", "prior"),
    *("enrol", "test", "model", "device", "warnings"),
}


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory):
    """Without cohort, calibration and thresholds."""
    return str(make_folder(tmp_path_factory.mktemp("plain") / "model"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With everything."""
    return str(make_whole(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    """Two takes of one voice, one of another."""
    folder = tmp_path_factory.mktemp("wavs")
    return [
        write_voice(folder / f"{name}.wav", number, 1.0, seed)
        for name, number, seed in (("a1", 20, 0), ("a2", 20, 1), ("b", 25, 2))
    ]


def run(capsys, *words):
    capsys.readouterr()
    main([*words, "--device", "cpu"])
    out, err = capsys.readouterr()
    return json.loads(out), err


def refused(capsys, message, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*words, "--device", "cpu"])
    out, err = capsys.readouterr()
    assert caught.value.code == 1
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]


def test_everything_that_the_model_can_say(model, wavs, capsys):
    found, err = run(capsys, "verify", wavs[0], wavs[2], "--source", model)
    expected = load(model).compare(wavs[0], wavs[2])
    assert set(found) == KEYS
    assert found["same_speaker"] == expected.decision
    assert found["score_kind"] == expected.score == "llr"
    assert found["score"] == expected.llr == found["scores"]["llr"]
    assert found["scores"]["cosine"] == expected.cosine
    assert found["scores"]["as_norm"] == expected.as_norm
    assert found["probability"] == expected.probability
    assert found["threshold"] == expected.threshold
    assert found["false_accept_rate"] == expected.false_accept_rate
    assert found["miss_rate"] == expected.miss_rate
    assert found["threshold_from"] == (
        "the model's held-out trials, where both errors were equally frequent"
    )
    assert found["enrol"] == {"files": [wavs[0]], "seconds": 1.0}
    assert found["test"] == {"files": [wavs[2]], "seconds": 1.0}
    assert found["model"] == model
    assert found["device"] == "cpu"
    assert found["warnings"] == []
    assert err == ""


def test_a_threshold_of_ones_own_decides(model, wavs, capsys):
    words = ("verify", *wavs[:2], "--source", model, "--score", "cosine")
    for threshold, decision in ((-1.0, True), (1.0, False)):
        found, _ = run(capsys, *words, f"--threshold={threshold}")
        assert found["same_speaker"] is decision
        assert found["score"] == found["scores"]["cosine"]
        assert (found["threshold"], found["threshold_from"]) == (threshold, "given")


def test_a_wanted_rate_of_false_accepts(model, wavs, capsys):
    words = ("verify", *wavs[:2], "--source", model, "--score", "as_norm")
    found, err = run(capsys, *words, "--false_accept_rate", "0.2")
    expected = load(model).thresholds["as_norm"].at_false_accept_rate(0.2)
    assert found["threshold"] == expected.threshold
    assert found["false_accept_rate"] == expected.false_accept_rate <= 0.2
    assert found["threshold_from"].endswith("a false accept rate of 0.2 or less")
    assert "false accepts are expected among" in found["warnings"][0]  # too few trials
    assert found["warnings"][0] in err


def test_several_recordings_on_a_side(model, wavs, capsys):
    words = ("verify", "--enrol", *wavs[:2], "--test", wavs[2], "--source", model)
    found, _ = run(capsys, *words)
    assert found["scores"]["cosine"] == load(model).compare(wavs[:2], wavs[2]).cosine
    assert found["enrol"] == {"files": wavs[:2], "seconds": 2.0}


def test_a_model_without_thresholds_warns_where_programs_look(
    plain_model, wavs, capsys
):
    found, err = run(capsys, "verify", *wavs[:2], "--source", plain_model)
    assert found["score_kind"] == "cosine"
    assert found["probability"] is None
    assert found["scores"]["as_norm"] is found["scores"]["llr"] is None
    assert found["false_accept_rate"] is None
    assert "nobody measured" in found["threshold_from"]
    assert "nobody measured" in found["warnings"][0]
    assert found["warnings"][0] in err


def test_other_rates_are_converted_and_told(plain_model, wavs, tmp_path, capsys):
    path = write_voice(tmp_path / "c.flac", 20, 1.0, rate=44100)
    words = ("verify", wavs[0], path, "--source", plain_model, "--threshold", "0.5")
    found, _ = run(capsys, *words)
    assert "converted to 16000 Hz" in " ".join(found["warnings"])
    assert found["test"]["seconds"] == 1.0


def test_bad_recordings_are_named_in_one_line(plain_model, wavs, tmp_path, capsys):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "silent.wav", [0.0] * 16000, 16000)
    for path, reason in (
        ("text.wav", "cannot be opened as sound"),
        ("silent.wav", "silent"),
        ("gone.wav", "cannot be opened as sound"),
    ):
        path = str(tmp_path / path)
        words = ("verify", wavs[0], path, "--source", plain_model)
        refused(capsys, f"{path}: {reason}", *words)


def test_bad_settings(model, plain_model, wavs, tmp_path, capsys):
    for source, message, words in (
        (model, "threshold 0.5 of no particular score", ["--threshold", "0.5"]),
        (plain_model, "score 'llr' needs calibration.json", ["--score", "llr"]),
        (plain_model, "false_accept_rate 0.1", ["--false_accept_rate", "0.1"]),
        (str(tmp_path), "no hyperparams.yaml", []),
        ("no such model", "no such folder", []),
    ):
        refused(capsys, message, "verify", *wavs[:2], "--source", source, *words)


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        ("", "0 recordings, 0 with --enrol, 0 with --test"),
        ("a", "1 recordings"),
        ("a b c", "3 recordings"),
        ("--enrol a", "1 with --enrol, 0 with --test"),
        ("a b --test c", "2 recordings, 0 with --enrol, 1 with --test"),
        ("a --enrol b --test c", "1 recordings, 1 with --enrol, 1 with --test"),
    ],
)
def test_sides_that_are_no_trial(capsys, words, seen):
    refused(capsys, seen, "verify", *words.split(), "--source", "no model")


@pytest.mark.slow  # a process of its own: stdout must hold nothing but the JSON
def test_as_a_program_runs_it(model, wavs):
    command = [sys.executable, "-m", "speechbrain_ext", "verify", *wavs[:2]]
    command += ["--source", model]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == KEYS
