"""A spoofing detector of a folder: scores, decisions, speech, and what it refuses."""

import io
import json
import logging
import math

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.inference.interfaces import foreign_class
from tiny_detector import PRIOR, load_detector, make_detector
from tiny_speech import silence, spoken
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.__main__ import main
from speechbrain_ext.inference import Segment
from speechbrain_ext.inference.detector import detection_report
from speechbrain_ext.inference.thresholds import Thresholds, save_thresholds
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.utils.errors import InputError

SECONDS = (0.5, 1.3, 0.8)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With calibration and thresholds."""
    return make_detector(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """A model alone, which looks for speech."""
    path = tmp_path_factory.mktemp("plain") / "model"
    return make_detector(path, False, {"speech_detection": True})


@pytest.fixture(scope="module")
def detector(folder):
    return load_detector(folder)


@pytest.fixture(scope="module")
def plain(plain_folder):
    return load_detector(plain_folder)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    return load(make_folder(tmp_path_factory.mktemp("verifier") / "model"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return [
        write_voice(folder / f"{n}.wav", n, seconds, n)
        for n, seconds in enumerate(SECONDS)
    ]


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Speech between pauses, and a room without anybody."""
    folder = tmp_path_factory.mktemp("talk")
    quiet = silence(1.0, 1e-4)
    wavs = {"talk": np.concatenate([quiet, spoken(), quiet]), "room": silence(3, 1e-3)}
    for name, wav in wavs.items():
        soundfile.write(folder / f"{name}.wav", wav, 16000, subtype="FLOAT")
    return {name: str(folder / f"{name}.wav") for name in wavs}


def ratio(model, wav, calibrator=None):
    """By the definition, of one recording alone."""
    with torch.no_grad():
        spoof, bonafide = model(torch.as_tensor(wav)[None].float())[0, 0].double()
    llr = (bonafide - math.log(PRIOR[1])) - (spoof - math.log(PRIOR[0]))
    if calibrator is not None:
        llr = calibrator.weights[0] * llr + calibrator.bias
    return float(llr)


def read(path):
    return soundfile.read(path, dtype="float32")[0]


# ---- scores --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["detector", "plain"])
def test_scores_are_calibrated_ratios(name, files, request):
    model = request.getfixturevalue(name)
    assert (model.calibrator is None) == (name == "plain")
    inner = model.mods.speaker_encoder
    expected = [ratio(inner, read(file), model.calibrator) for file in files]
    found = model.score_files(files)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    wavs = [torch.from_numpy(read(file)) for file in files]
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    lens = torch.tensor([len(wav) / padded.shape[1] for wav in wavs])
    assert model.score_batch(padded, lens).tolist() == pytest.approx(expected, abs=1e-4)


def test_any_recording(detector, files, tmp_path):
    """As a verifier takes them."""
    wav, path = read(files[1]), files[1]
    with open(path, "rb") as file:
        content = file.read()
    stereo = str(tmp_path / "stereo.wav")
    soundfile.write(stereo, np.stack([0 * wav, wav], 1), 16000, subtype="FLOAT")
    found = detector.score_files(
        [path, wav, (wav, 16000), content, io.BytesIO(content), torch.from_numpy(wav)]
    )
    assert found.tolist() == pytest.approx([found[0].item()] * 6, abs=1e-4)
    right = detector.score_files(stereo, channel="right")
    assert right.item() == pytest.approx(found[0].item(), abs=1e-4)
    parts = [f"{path}:0.2-0.9", Segment(path, 0.2, 0.9), wav[3200:14400]]
    found = detector.score_files(parts)
    assert found.tolist() == pytest.approx([found[2].item()] * 3, abs=1e-4)


def test_bad_files_are_collected(detector, files, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    several = [files[0], str(tmp_path / "bad.wav"), files[1]]
    scores, failures = detector.score_files(several, on_error="collect")
    assert [failure.row for failure in failures] == [1]
    assert torch.isnan(scores).tolist() == [False, True, False]
    with pytest.raises(InputError, match=r"bad\.wav"):
        detector.score_files(several)


def test_long_recordings_are_scored_in_windows(folder, files):
    overrides = {"window_seconds": 0.5, "hop_seconds": 0.5}
    detector = load_detector(folder, overrides=overrides)
    wav, inner = read(files[1]), detector.mods.speaker_encoder
    starts = [0, 8000, len(wav) - 8000]
    with torch.no_grad():
        windows = torch.stack([torch.from_numpy(wav[s : s + 8000]) for s in starts])
        logits = inner(windows).squeeze(1).mean(0).double()
    llr = inner.head.log_likelihood_ratio(logits).item()
    expected = detector.calibrator.log_likelihood_ratio([[llr]])[0]
    found = detector.score_files(files[1]).item()
    assert found == pytest.approx(expected, abs=1e-4)


# ---- decisions -----------------------------------------------------------------------


def test_a_decision_at_a_false_accept_rate(detector, files):
    point = detector.thresholds["llr"].at_false_accept_rate(0.1)
    found = detector.detect_files(files, false_accept_rate=0.1, prior=0.2)
    scores = detector.score_files(files).tolist()
    for of, score in zip(found, scores, strict=True):
        assert of.llr == score
        assert of.decision == (score >= point.threshold)
        assert of.threshold == point.threshold
        assert of.false_accept_rate == point.false_accept_rate <= 0.1
        odds = math.exp(score) * 0.2 / 0.8
        assert of.probability == pytest.approx(odds / (1 + odds))
    assert [of.seconds for of in found] == pytest.approx(SECONDS)


def test_a_decision_without_a_rate(detector, plain, files):
    (measured,) = detector.detect_files(files[0])
    assert measured.threshold == detector.thresholds["llr"].eer_threshold
    (bayes,) = plain.detect_files(files[0], prior=0.9, speech_detection=False)
    assert bayes.threshold == pytest.approx(-math.log(9))
    assert bayes.false_accept_rate is None
    (given,) = plain.detect_files(files[0], threshold=-99, speech_detection=False)
    assert given.decision is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"false_accept_rate": 0.1}, "false_accept_rate 0.1 of 'llr' needs it in thr"),
        ({"threshold": "x"}, "threshold is 'x', expected a number"),
        ({"prior": 0}, "prior is 0, expected between 0 and 1"),
        ({"channel": "both"}, "channel"),
    ],
)
def test_what_is_asked_wrongly(plain, files, options, message):
    with pytest.raises(InputError, match=message):
        plain.detect_files(files[0], **options)


def test_without_speech_nothing_is_decided(plain, talk, caplog):
    with caplog.at_level(logging.WARNING):
        heard, silent = plain.detect_files([talk["talk"], talk["room"]])
    assert heard.decision is not None
    assert silent[:2] == (None, None)
    assert (silent.decision, silent.seconds) == (None, 0)
    assert f"{talk['room']}: no speech found: no decision" in caplog.text


def test_a_recording_with_speech_is_heard_whole(plain, talk):
    """Pauses tell spoofs from speech, too: the training heard them."""
    (found,) = plain.detect_files(talk["talk"])
    wav = read(talk["talk"])
    expected = ratio(plain.mods.speaker_encoder, wav)
    assert found.llr == pytest.approx(expected, abs=1e-4)
    assert found.seconds == pytest.approx(len(wav) / 16000)


def test_of_a_long_recording_windows_with_speech_count(plain_folder, talk):
    overrides = {"window_seconds": 2.0, "hop_seconds": 2.0}
    detector = load_detector(plain_folder, overrides=overrides)
    room, speech = silence(4.0, 1e-4), read(talk["talk"])[: 2 * 16000 + 8000]
    wav = np.concatenate([room, speech])  # windows: two of the room, then speech
    (found,) = detector.detect_files(wav)
    starts = [4 * 16000, len(wav) - 2 * 16000]
    inner = detector.mods.speaker_encoder
    with torch.no_grad():
        parts = np.stack([wav[start : start + 32000] for start in starts])
        logits = inner(torch.from_numpy(parts)).squeeze(1).mean(0).double()
    expected = inner.head.log_likelihood_ratio(logits).item()
    assert found.llr == pytest.approx(expected, abs=1e-4)
    (silent,) = detector.detect_files(np.concatenate([room, room]))
    assert silent.decision is None


# ---- folders -------------------------------------------------------------------------


def test_the_folder_of_the_other_kind_is_refused(folder, verifier):
    with pytest.raises(InputError, match="Detection, of a model for SpoofingDetector"):
        load(folder)
    with pytest.raises(InputError, match="AdapterMFA, of a model for SpeakerVerifier"):
        load_detector(verifier.source)


def test_files_of_the_other_kind_are_refused(tmp_path):
    folder = make_detector(tmp_path / "model", calibrated=False)
    scores, labels = np.arange(8.0), np.arange(8) % 2 == 1
    path = folder / "thresholds.json"
    save_thresholds(path, {"cosine": Thresholds.from_scores(scores, labels)})
    with pytest.raises(InputError, match="thresholds of cosine, expected of llr"):
        load_detector(folder)
    path.unlink()
    calibrator = QualityCalibrator(["cosine"]).fit(scores[:, None], labels)
    calibrator.save(folder / "calibration.json")
    with pytest.raises(InputError, match="calibrates cosine, expected llr"):
        load_detector(folder)
    (folder / "calibration.json").write_text("{")
    with pytest.raises(InputError, match=r"calibration\.json"):
        load_detector(folder)


def test_speechbrain_loads_the_same(folder, detector, files):
    made = foreign_class(
        source=str(folder),
        pymodule_file="custom_interface.py",
        classname="SpoofingDetector",
        run_opts={"device": "cpu", "noprogressbar": True},
    )
    assert torch.equal(made.score_files(files), detector.score_files(files))
    assert made.thresholds.keys() == {"llr"}


# ---- beside a verifier ---------------------------------------------------------------


def test_a_comparison_gives_both_scores(verifier, detector, files):
    alone = verifier.compare(files[0], files[1], threshold=-2)
    both = verifier.compare(
        files[0], files[1:], threshold=-2, detector=detector, spoof_accept_rate=0.1
    )
    assert alone.enrol_detected is None
    assert alone.accepted is alone.decision is True
    options = {"false_accept_rate": 0.1}
    assert both.enrol_detected == detector.detect_files(files[0], **options)
    assert both.test_detected == detector.detect_files(files[1:], **options)
    real = [of.decision for of in (*both.enrol_detected, *both.test_detected)]
    assert both.accepted is all(real)
    enrolled = verifier.compare(
        verifier.enrol(files[0]), files[1], threshold=2, detector=detector
    )
    assert enrolled.enrol_detected is None
    assert enrolled.accepted is False


def test_a_stream_is_read_once_for_both(verifier, detector, files):
    class Stream:
        """Without a way back."""

        def __init__(self, path):
            with open(path, "rb") as file:
                self.content = file.read()

        def read(self):
            content, self.content = self.content, b""
            return content

    found, expected = (
        verifier.compare(files[0], test, threshold=0, detector=detector)
        for test in (Stream(files[1]), files[1])
    )
    assert found.cosine == pytest.approx(expected.cosine)
    assert found.test_detected == expected.test_detected


def test_reports_are_plain_values(detector, files):
    report = detection_report(detector, files, false_accept_rate=0.1)
    assert json.loads(json.dumps(report)) == report
    assert [found["file"] for found in report["recordings"]] == files
    assert "at a false accept rate of 0.1" in report["threshold_from"]
    with pytest.raises(InputError, match="no recordings"):
        detection_report(detector, [])


# ---- command line --------------------------------------------------------------------


def run(capsys, *words):
    capsys.readouterr()
    code = 0
    try:
        main([*map(str, words), "--device", "cpu"])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_detect(folder, plain_folder, detector, files, talk, capsys):
    words = "--source", folder, "--false_accept_rate", 0.1
    code, found, _ = run(capsys, "detect", *files, *words)
    assert code == 0
    scores = detector.score_files(files).tolist()
    assert [of["llr"] for of in found["recordings"]] == scores
    code, found, _ = run(capsys, "detect", talk["room"], "--source", plain_folder)
    assert code == 3
    assert found["recordings"][0]["bonafide"] is None
    assert "no speech found" in found["warnings"][0]


def test_verify_with_a_detector(folder, verifier, files, capsys):
    words = "verify", *files[:2], "--source", verifier.source
    code, found, _ = run(capsys, *words, "--detector", folder)
    assert code == 0
    assert found["accepted"] in (True, False)
    assert found["detection"]["model"] == str(folder)
    assert found["detection"]["test"][0]["file"] == files[1]
    code, _, err = run(capsys, *words, "--spoof_accept_rate", 0.1)
    assert code == 1
    assert "expected --detector with it" in err


@pytest.mark.parametrize("command", ["detect", "verify"])
def test_a_wrong_folder_is_one_line(command, folder, verifier, files, capsys):
    source = {"detect": verifier.source, "verify": folder}[command]
    code, found, err = run(capsys, command, *files[:2], "--source", source)
    assert (code, found) == (1, None)
    assert err.splitlines()[-1].startswith("error: ")
    assert "hyperparams.yaml: the head is" in err.splitlines()[-1]
