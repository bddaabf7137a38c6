"""The runner: what a service sees, without torch."""

import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import soundfile
from tiny_speech import silence, spoken

from speechbrain_ext.inference import SpeakerVerifier, onnx_runner
from speechbrain_ext.inference.onnx_runner import OnnxSpeakerEncoder, cosine
from speechbrain_ext.pretrained import INFERENCE
from speechbrain_ext.utils.errors import InputError, NoSpeechError

RATE = 16000


@pytest.fixture(scope="module")
def encoder(onnx_models):
    return OnnxSpeakerEncoder(
        onnx_models("pruned")[1], threads=1, speech_detection=False
    )


def waveform(samples, seed=0):
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(samples)).astype(np.float32)


def test_what_the_file_says_of_itself(encoder):
    assert encoder.sample_rate == RATE
    assert encoder.min_samples == 560
    assert encoder.embedding_size == 7
    assert encoder.metadata["head"] == "AdapterMFA"


def test_order_batches_and_kinds_of_input_make_no_difference(encoder):
    wavs = [waveform(n, n) for n in (9000, 560, 16001, 4000, 9000)]
    single = np.stack([encoder.embed(wav) for wav in wavs])
    assert single.shape == (5, 7)
    assert single.dtype == np.float32
    for size in (1, 2, 5):
        np.testing.assert_allclose(
            encoder.embed(wavs, batch_size=size), single, atol=1e-5
        )
    same = np.stack([wavs[0], wavs[4]])
    np.testing.assert_allclose(encoder.embed(same), single[[0, 4]], atol=1e-5)
    np.testing.assert_allclose(
        encoder.embed(wavs[0].astype(np.float64)), single[0], atol=1e-6
    )


def test_no_window_is_longer_than_the_model_takes(onnx_models):
    """Whatever the settings say: what a Whisper's file has as ``max_samples``."""
    encoder = OnnxSpeakerEncoder(onnx_models("pruned")[1], 1, speech_detection=False)
    wav = waveform(20000)
    parts = encoder.embed([wav[n : n + 8000] for n in (0, 8000, 12000)])
    assert encoder.max_samples is None
    encoder.max_samples = 8000
    encoder.settings["window_seconds"] = float("inf")
    np.testing.assert_allclose(encoder.embed(wav), parts.mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (waveform(559), r"recording 1: 559 samples \(0\.035 s\), expected 560 or more"),
        (np.zeros(0, np.float32), "recording 1: 0 samples"),
        (np.full(RATE, np.nan, np.float32), "recording 1: NaN or infinite"),
        (np.zeros(RATE, np.int16), "recording 1: int16 of shape .*floats in ±1"),
        (
            np.zeros((2, RATE), np.float32),
            r"recording 1: float32 of shape \(2, ",
        ),
    ],
)
def test_bad_recordings_are_named(encoder, wav, message):
    with pytest.raises(InputError, match=message):
        encoder.embed([waveform(RATE), wav])


def test_files_equal_their_waveforms_and_channels_are_averaged(encoder, tmp_path):
    left, right = waveform(RATE, 1), waveform(RATE, 2)
    soundfile.write(tmp_path / "a.wav", left, RATE, subtype="FLOAT")
    soundfile.write(
        tmp_path / "b.wav", np.stack([left, right], 1), RATE, subtype="FLOAT"
    )
    soundfile.write(tmp_path / "c.flac", right, RATE)
    files = [tmp_path / name for name in ("a.wav", "b.wav", "c.flac")]
    found = encoder.embed_files(files, batch_size=2)
    expected = encoder.embed([left, (left + right) / 2, right])
    np.testing.assert_allclose(found[:2], expected[:2], atol=1e-5)
    np.testing.assert_allclose(found[2], expected[2], atol=1e-2)  # 16 bits


def test_bad_files_are_named(encoder, tmp_path):
    soundfile.write(tmp_path / "8k.wav", waveform(RATE), 8000)
    (tmp_path / "text.wav").write_text("not sound")
    for name, message in (
        ("8k.wav", r"8k\.wav: 8000 Hz, expected 16000 Hz"),
        ("text.wav", r"text\.wav: cannot be read as sound"),
        ("absent.wav", r"absent\.wav: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            encoder.embed_files([tmp_path / name])


def test_files_that_are_no_models_are_refused(onnx_models, tmp_path):
    (tmp_path / "text.onnx").write_text("not a graph")
    model = onnx.load(onnx_models("pruned")[1])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    for name, message in (
        ("text.onnx", r"text\.onnx: cannot be loaded as ONNX"),
        ("absent.onnx", r"absent\.onnx: cannot be loaded as ONNX"),
        ("bare.onnx", r"bare\.onnx: no 'sample_rate' in its metadata"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            OnnxSpeakerEncoder(tmp_path / name)
        assert "\n" not in str(caught.value)


# ---- as SpeakerVerifier --------------------------------------------------------------


def speech_files(folder):
    """Speech: alone, before 9 s of silence, in noise with long pauses."""
    room = [silence(2.0), spoken("m1"), silence(3.0), spoken("f2"), silence(0.2)]
    room = np.concatenate(room) + silence(5.2, 1e-3).repeat(4)[: sum(map(len, room))]
    wavs = [spoken("m3"), np.r_[spoken("f4"), silence(9.0, 1e-4)], room]
    for number, wav in enumerate(wavs):
        soundfile.write(folder / f"{number}.wav", wav, RATE, subtype="FLOAT")
    return [folder / f"{number}.wav" for number in range(len(wavs))]


@pytest.mark.parametrize("speech_detection", [True, False])
@pytest.mark.parametrize("window", [60.0, 1.5])
def test_embeddings_are_those_of_the_verifier(
    onnx_models, tmp_path, window, speech_detection
):
    _, file, _ = onnx_models("pruned")
    paths = speech_files(tmp_path)
    verifier = SpeakerVerifier.from_hparams(
        file.parent / "model", run_opts={"device": "cpu"}
    )
    encoder = OnnxSpeakerEncoder(file, 1, speech_detection=speech_detection)
    encoder.settings |= {"window_seconds": window, "hop_seconds": window}
    expected = verifier.encode_files(
        paths, speech_detection=speech_detection, window_seconds=window
    ).numpy()
    for size in (1, 8):
        found = encoder.embed_files(paths, batch_size=size)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    if speech_detection:
        for path in paths:
            wav = encoder.read(path)
            segments = verifier.detector.segments(wav)
            np.testing.assert_array_equal(encoder.speech(wav), segments)


def test_settings_are_those_of_the_model_s_folder(onnx_models):
    _, file, _ = onnx_models("pruned")
    encoder = OnnxSpeakerEncoder(file, 1)
    assert encoder.speech_detection
    assert encoder.settings == {key: INFERENCE[key] for key in onnx_runner.DEFAULTS}
    assert encoder.metadata["speech_detection"] == "True"


def test_no_speech_is_an_error_of_its_own(onnx_models, encoder, tmp_path):
    with_detector = OnnxSpeakerEncoder(onnx_models("pruned")[1], 1)
    for wav in (waveform(RATE), np.zeros(RATE, np.float32)):
        with pytest.raises(NoSpeechError, match="recording 1: no speech found"):
            with_detector.embed([spoken("m1"), wav])
    with pytest.raises(InputError, match="recording 1: silent, expected speech"):
        encoder.embed([waveform(RATE), np.full(RATE, 0.1, np.float32)])
    with pytest.raises(InputError, match="recording 0: its embedding is not finite"):
        encoder.embed([1e30 * waveform(RATE)])
    path = tmp_path / "noise.wav"
    soundfile.write(path, waveform(RATE), RATE)
    with pytest.raises(NoSpeechError, match=r"noise\.wav: no speech found"):
        with_detector.embed_files([path])


def test_a_file_without_its_end_is_told(encoder, tmp_path, caplog):
    path = tmp_path / "a.wav"
    soundfile.write(path, waveform(2 * RATE), RATE)
    whole = path.read_bytes()
    path.write_bytes(whole[:RATE])
    with pytest.raises(InputError, match=r"a\.wav: 16000 bytes, .* 64044: truncated"):
        encoder.embed_files([path])
    path.write_bytes(whole[:40] + (RATE - 44).to_bytes(4, "little") + whole[44:RATE])
    found = encoder.embed_files([path])
    wav = encoder.read(path)
    assert len(wav) == (RATE - 44) // 2
    np.testing.assert_allclose(found[0], encoder.embed(wav), atol=1e-6)
    assert "a.wav: 16000 bytes, its header says 64044" in caplog.text


def test_a_pipe_is_not_waited_for(encoder, tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"a\.wav: no such file, expected a sound"):
        encoder.embed_files([tmp_path / "a.wav"])


def test_without_a_detector_it_says_so(onnx_models, tmp_path, caplog):
    _, file, _ = onnx_models("pruned")
    shutil.copy(file, tmp_path)
    alone = OnnxSpeakerEncoder(tmp_path / file.name, 1)
    assert not alone.speech_detection
    assert "silero_vad.onnx: no such file, so there is no speech detection" in (
        caplog.text
    )
    assert np.isfinite(alone.embed(waveform(RATE))).all()
    with pytest.raises(InputError, match=r"silero_vad\.onnx: no such file"):
        OnnxSpeakerEncoder(tmp_path / file.name, 1, speech_detection=True)


def test_cosine_by_hand():
    one, other = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[4.0, 3.0], [0.0, 2.0]])
    np.testing.assert_allclose(cosine(one, other), [0.96, 0.0])
    assert cosine(one[0], one[0]) == pytest.approx(1.0)


ALONE = """
import sys
sys.modules["speechbrain_ext"] = None  # as if it were not installed
import numpy as np, onnx_runner
encoder = onnx_runner.OnnxSpeakerEncoder(
    sys.argv[1], threads=1, speech_detection=False
)
np.save(sys.argv[2], encoder.embed(np.load(sys.argv[3])))
assert not {"torch", "transformers", "speechbrain", "scipy"} & set(sys.modules)
"""
INSIDE = """
import sys
from speechbrain_ext.inference.onnx_runner import OnnxSpeakerEncoder
assert not {"torch", "transformers", "speechbrain", "scipy"} & set(sys.modules)
"""


def test_it_needs_no_torch_and_no_package(encoder, onnx_models, tmp_path):
    shutil.copy(onnx_runner.__file__, tmp_path)
    wav = waveform(RATE)
    np.save(tmp_path / "wav.npy", wav)
    _, file, _ = onnx_models("pruned")
    command = [sys.executable, "-c", ALONE, file, "embedding.npy", "wav.npy"]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = np.load(tmp_path / "embedding.npy")
    np.testing.assert_allclose(found, encoder.embed(wav), atol=1e-6)


def test_importing_it_from_the_package_imports_no_torch():
    subprocess.run([sys.executable, "-c", INSIDE], check=True)
