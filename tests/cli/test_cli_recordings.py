"""verify and embed on the command line: channels, and parts of files."""

import numpy as np
import pytest
import soundfile
from test_cli import refused, run
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.scoring.embeddings import load_embeddings

RATE = 16000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_folder(tmp_path_factory.mktemp("models") / "model"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """call.wav has left.wav and right.wav; long.wav has left.wav from 1 s on."""
    monkeypatch.chdir(tmp_path)
    sides = []
    for number, name in enumerate(("left.wav", "right.wav")):
        write_voice(name, 3 * number, 1.0, number)
        sides.append(soundfile.read(name)[0])
    soundfile.write("call.wav", np.stack(sides, 1), RATE)
    soundfile.write("long.wav", np.r_[sides[1], sides[0]], RATE)
    return tmp_path


def verify(capsys, model, *words):
    return run(capsys, "verify", *words, "--source", model, "--threshold", "0.5")


def cosine_of(found):
    return pytest.approx(found["scores"]["cosine"], abs=1e-6)


@pytest.mark.parametrize(
    ("channel", "side"),
    [("left", "left"), ("1", "left"), ("right", "right"), ("2", "right")],
)
def test_verify_takes_the_channel(model, files, capsys, channel, side):
    words = ("call.wav", "call.wav", "--channel", channel, "--test_channel", "left")
    found, err = verify(capsys, model, *words)
    expected, _ = verify(capsys, model, f"{side}.wav", "left.wav")
    assert found["score"] == cosine_of(expected)
    assert not any("differ" in line for line in [err, *found["warnings"]])
    words = ("left.wav", "call.wav", "--test_channel", channel)
    found, _ = verify(capsys, model, *words)
    expected, _ = verify(capsys, model, "left.wav", f"{side}.wav")
    assert found["score"] == cosine_of(expected)


def test_verify_says_that_channels_differ(model, files, capsys):
    found, err = verify(capsys, model, "left.wav", "call.wav")
    message = "1 of 1 recordings have channels that differ, as of a call with a person"
    assert message in err
    (warning,) = (line for line in found["warnings"] if message in line)
    assert "first call.wav, correlation 0.0" in warning
    found, _ = verify(capsys, model, "left.wav", "call.wav", "--test_channel", "best")
    assert any("best of their channels is taken" in line for line in found["warnings"])


def test_embed_takes_the_channel(model, files, capsys):
    out = ["--source", model, "--out", "a.npz"]
    vectors = {}
    for channel in ("mean", "1", "right", "1"):  # a finished file is not kept by error
        found, _ = run(capsys, "embed", "call.wav", *out, "--channel", channel)
        assert found["embedded"] == 1
        vectors[channel] = load_embeddings("a.npz").vectors
    verifier = load(model)
    for channel, name in (("mean", "call"), ("1", "left"), ("right", "right")):
        expected = verifier.encode_files([f"{name}.wav"]).numpy()
        np.testing.assert_allclose(vectors[channel], expected, atol=1e-6)
    found, _ = run(capsys, "embed", "call.wav", "left.wav", *out, "--channel", "2")
    assert (found["embedded"], found["failed"]) == (1, 1)
    reason = (files / "a.npz.failures.txt").read_text()
    assert reason.startswith("left.wav\tchannel 2 of 1, expected one of those it has")


def test_a_channel_that_is_not_there_is_one_line(model, files, capsys):
    for channel, message in (
        ("3", "call.wav: channel 3 of 2, expected one of those it has"),
        ("0", "channel '0', expected left, right, a number from 1 on, mean or best"),
        ("up", "channel 'up', expected left, right, a number from 1 on, mean or best"),
    ):
        words = ("--source", model, "--channel", channel)
        refused(capsys, message, "verify", "call.wav", "call.wav", *words)
        refused(capsys, message, "embed", "call.wav", "--out", "a.npz", *words)
    assert not (files / "a.npz").exists()


def test_verify_takes_a_part(model, files, capsys):
    expected, _ = verify(capsys, model, "left.wav", "right.wav")
    for parts in (
        ("long.wav:1-2", "long.wav:0-1.0"),
        ("long.wav:1.0-", "right.wav:0-"),
    ):
        found, _ = verify(capsys, model, *parts)
        assert found["score"] == cosine_of(expected)
        assert found["enrol"] == {"files": [parts[0]], "seconds": 1.0}
    parts = ("--enrol", "long.wav:1-2", "left.wav", "--test", "long.wav:0-1")
    found, _ = verify(capsys, model, *parts)
    assert found["score"] == cosine_of(expected)


def test_embed_takes_parts_and_says_so_in_the_id(model, files, capsys):
    words = ("long.wav:1-2", "long.wav:0-1.0", f"{files}/long.wav:0-1.0", "long.wav")
    options = ("--source", model, "--out", "a.npz")
    found, _ = run(capsys, "embed", *words, *options)
    assert (found["embedded"], found["failed"]) == (3, 0)
    ids, vectors = load_embeddings("a.npz")
    assert ids.tolist() == ["long:1-2", "long:0-1.0", "long"]
    expected = load(model).encode_files(["left.wav", "right.wav", "long.wav"]).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    before = (files / "a.npz").stat().st_mtime_ns
    run(capsys, "embed", *words, *options)
    assert (files / "a.npz").stat().st_mtime_ns == before
    soundfile.write("long.wav", soundfile.read("long.wav")[0][:-100], RATE)
    run(capsys, "embed", *words, *options)  # another size: another recording
    assert (files / "a.npz").stat().st_mtime_ns != before


def test_a_part_that_is_none_is_one_line(model, files, capsys):
    for part, message in (
        ("0.5-9", "long.wav:0.5-9: from 0.5 to 9 s, expected a part of 2 s"),
        ("1.5-1", "long.wav:1.5-1: from 1.5 to 1 s, expected a part"),
        ("-1-2", "long.wav:-1-2: segment '-1-2', expected START-STOP"),
    ):
        words = (f"long.wav:{part}", "--source", model)
        refused(capsys, message, "verify", "left.wav", *words)
        refused(capsys, message, "embed", *words, "--out", "a.npz")
    message = "gone.wav:1-2: no such file or folder"
    refused(
        capsys, message, "embed", "gone.wav:1-2", "--source", model, "--out", "a.npz"
    )
    assert not (files / "a.npz").exists()
