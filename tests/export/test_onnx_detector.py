"""A detector as ONNX: the scores of torch, and what is refused."""

import numpy as np
import pytest
import soundfile
from tiny_detector import load_detector, make_detector
from tiny_speech import silence, spoken
from tiny_verifier import write_voice

from speechbrain_ext.__main__ import main
from speechbrain_ext.inference import OnnxSpeakerEncoder, OnnxSpoofingDetector
from speechbrain_ext.utils.errors import InputError, NoSpeechError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A calibrated detector, and its file."""
    folder = tmp_path_factory.mktemp("onnx")
    inference = {"window_seconds": 2.0, "hop_seconds": 2.0, "speech_detection": True}
    source = make_detector(folder / "model", inference=inference)
    file = folder / "model.onnx"
    main(["onnx", "--source", str(source), "--output", str(file)])
    return load_detector(source), file


def test_scores_are_those_of_torch(exported, tmp_path):
    detector, file = exported
    runner = OnnxSpoofingDetector(file, threads=1, speech_detection=False)
    paths = [
        write_voice(tmp_path / f"{n}.wav", n, seconds, n)
        for n, seconds in enumerate((0.5, 1.3, 4.7))  # the last one in windows
    ]
    expected = detector.score_files(paths).tolist()
    assert runner.score_files(paths).tolist() == pytest.approx(expected, abs=1e-3)
    wav = soundfile.read(paths[0], dtype="float32")[0]
    assert runner.score(wav) == pytest.approx(expected[0], abs=1e-3)


def test_speech_is_looked_for_and_recordings_are_heard_whole(exported):
    detector, file = exported
    runner = OnnxSpoofingDetector(file, threads=1)
    room = silence(4.0, 1e-4)
    short = np.concatenate([room[:4800], spoken()[:16000], room[:4800]])
    for wav in (short, np.concatenate([room, spoken()])):
        (found,) = detector.detect_files(wav)
        assert runner.score(wav) == pytest.approx(found.llr, abs=1e-3)
    with pytest.raises(NoSpeechError, match="no speech found"):
        runner.score(room)


def test_a_file_of_the_other_kind_is_refused(exported):
    with pytest.raises(InputError, match="gives logits, expected embeddings"):
        OnnxSpeakerEncoder(exported[1])
