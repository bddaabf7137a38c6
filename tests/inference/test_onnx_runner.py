"""The runner: what a service sees, without torch."""

import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import soundfile

from speechbrain_ext.inference import onnx_runner
from speechbrain_ext.inference.onnx_runner import OnnxSpeakerEncoder, cosine
from speechbrain_ext.utils.errors import InputError

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
        ("absent.wav", r"absent\.wav: cannot be read as sound"),
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
