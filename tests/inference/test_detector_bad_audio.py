"""Recordings that are none, wherever a spoofing detector takes them: one line each."""

import json
import re

import numpy as np
import pytest
import soundfile
from tiny_detector import load_detector, make_detector
from tiny_speech import spoken
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.__main__ import main
from speechbrain_ext.app import answer
from speechbrain_ext.inference.decisions import comparison_report
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

# What is wrong with each, as it is said
BAD = {
    "text.wav": "cannot be opened as sound",
    "empty.flac": "cannot be opened as sound (0 bytes)",
    "cut.flac": "cannot be decoded",
    "silent.wav": "silent, expected speech",
    "nan.wav": "NaN or infinite samples",
    "short.wav": "800 samples, 0.05 s, expected at least 0.25 s",
    "slow.wav": "2000 Hz, expected 4000 to 768000 Hz",
    "cancel.wav": "its 2 channels cancel in their mean",
    "gone.wav": "No such file",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_detector(tmp_path_factory.mktemp("detector") / "model")


@pytest.fixture(scope="module")
def detector(source):
    return load_detector(source)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    return load(make_folder(tmp_path_factory.mktemp("verifier") / "model"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: path} of BAD, and of a good one: ``good.wav``."""
    folder = tmp_path_factory.mktemp("files")
    wav = 0.1 * np.random.default_rng(0).standard_normal(16000)
    write_voice(folder / "good.wav")
    (folder / "text.wav").write_text("no sound")
    (folder / "empty.flac").write_bytes(b"")
    soundfile.write(folder / "cut.flac", wav, 16000)
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    broken = np.where(np.arange(16000) == 999, np.nan, wav)
    soundfile.write(folder / "nan.wav", broken, 16000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", 0 * wav, 16000)
    soundfile.write(folder / "short.wav", wav[:800], 16000)
    soundfile.write(folder / "slow.wav", wav, 2000)
    soundfile.write(folder / "cancel.wav", np.stack([wav, -wav], 1), 16000)
    return {name: str(folder / name) for name in ("good.wav", *BAD)}


def one_line(error):
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("name", BAD)
def test_it_is_named_by_every_method(detector, verifier, files, name):
    good, bad = files["good.wav"], files[name]
    for ask in (
        lambda: detector.detect_files([good, bad]),
        lambda: verifier.compare(good, bad, detector=detector),
        lambda: verifier.compare([good, bad], good, detector=detector),
        lambda: verifier.compare(verifier.enrol(good), [bad], detector=detector),
    ):
        with pytest.raises(InputError) as refused:
            ask()
        assert f"{bad}: " in one_line(refused.value)
        assert BAD[name] in str(refused.value)
    page = answer(verifier, good, bad, detector=detector)
    assert 'role="alert"' in page
    assert "Not compared" in page
    assert str(bad) not in page
    gone = name == "gone.wav"  # uploaded, and deleted since
    assert ("deleted, expected" if gone else BAD[name]) in re.sub("<[^>]*>", "", page)


def run(capsys, *words):
    """Exit code, JSON or None, lines on stderr."""
    capsys.readouterr()
    code = 0
    try:
        main([*map(str, words), "--device", "cpu"])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, json.loads(out) if out else None, err.splitlines()


def test_of_several_files_the_good_ones_have_their_answers(
    source, detector, files, capsys
):
    (expected,) = detector.detect_files(files["good.wav"])
    code, found, lines = run(capsys, "detect", *files.values(), "--source", source)
    assert code == 1
    good, *others = found["recordings"]
    assert (good["llr"], good["bonafide"]) == (expected.llr, expected.decision)
    assert "error" not in good
    said = [line for line in lines if line.startswith("error: ")]
    for other, line, (name, reason) in zip(others, said, BAD.items(), strict=True):
        assert (other["bonafide"], other["llr"], other["probability"]) == (None,) * 3
        assert reason in other["error"]
        assert line == f"error: {files[name]}: {other['error']}"


@pytest.mark.parametrize("names", [["nan.wav"], ["gone.wav", "text.wav"]])
def test_without_a_good_file_there_is_no_answer(source, files, capsys, names):
    words = [files[name] for name in names]
    code, found, lines = run(capsys, "detect", *words, "--source", source)
    assert (code, found) == (1, None)
    assert lines[-1].startswith(f"error: {words[0]}: ")
    assert BAD[names[0]] in lines[-1]


def test_silence_is_an_answer_beside_a_bad_file(files, tmp_path, capsys):
    """Of a detector that looks for speech."""
    source = make_detector(tmp_path / "model", False, {"speech_detection": True})
    soundfile.write(tmp_path / "spoken.wav", spoken()[:24000], 16000)
    silent, short = files["silent.wav"], files["short.wav"]
    code, found, _ = run(capsys, "detect", silent, "--source", source)
    assert code == 3
    assert found["recordings"][0]["bonafide"] is None
    assert found["warnings"] == [f"{silent}: no speech found: no decision"]
    words = tmp_path / "spoken.wav", silent, short
    code, found, _ = run(capsys, "detect", *words, "--source", source)
    assert code == 1
    assert ["error" in of for of in found["recordings"]] == [False, False, True]
    decided = [of["bonafide"] is not None for of in found["recordings"]]
    assert decided == [True, False, False]


def test_other_rates_and_channels_are_converted(detector, verifier, files, tmp_path):
    """And said to be."""
    wav = soundfile.read(files["good.wav"])[0]
    soundfile.write(tmp_path / "stereo.wav", np.stack([wav, wav], 1), 16000)
    write_voice(tmp_path / "other.wav", rate=44100)
    stereo, other = str(tmp_path / "stereo.wav"), str(tmp_path / "other.wav")
    plain, both, _ = detector.detect_files([files["good.wav"], stereo, other])
    assert both.llr == pytest.approx(plain.llr, abs=1e-4)
    report = comparison_report(verifier, [other], [stereo], detector=detector)
    assert [found["file"] for found in report["detection"]["test"]] == [stereo]
    assert "converted to 16000 Hz" in " ".join(report["warnings"])


def test_two_voices_enrolled_before(detector, verifier, files):
    """Of neither is there a recording to detect anything in."""
    voice = verifier.enrol(files["good.wav"])
    report = comparison_report(verifier, voice, voice, detector=detector)
    assert report["accepted"] is report["same_speaker"] is True
    assert "detection" not in report


def test_what_else_is_asked_wrongly(detector, verifier, files):
    with pytest.raises(InputError, match="on_error 'skip', expected raise or collect"):
        detector.detect_files(files["good.wav"], on_error="skip")
    with pytest.raises(InputError, match=r"spoof_accept_rate 0\.1, expected a d"):
        verifier.compare(*[files["good.wav"]] * 2, spoof_accept_rate=0.1)
