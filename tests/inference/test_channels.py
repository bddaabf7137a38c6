"""Channels: left and right are the mono files; figures against closed forms."""

import logging
import math
import re

import numpy as np
import pytest
import soundfile
import torch
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.inference.audio_input import inspect_file
from speechbrain_ext.inference.channels import ChannelFigures, checked_channel
from speechbrain_ext.inference.sources import sources_of
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16000


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    return load(make_folder(tmp_path_factory.mktemp("model") / "final"))


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """A call, and its two sides: three files."""
    folder = tmp_path_factory.mktemp("call")
    sides = [write_voice(folder / f"{n}.wav", n, 1.0, seed=n) for n in (1, 4)]
    both = np.stack([soundfile.read(side)[0] for side in sides], 1)
    soundfile.write(folder / "call.wav", both, RATE, subtype="PCM_16")
    return [str(folder / "call.wav"), *sides]


def noise(seed=0, frames=RATE, channels=None):
    shape = frames if channels is None else (frames, channels)
    wav = np.random.default_rng(seed).standard_normal(shape)
    return (0.1 * wav).astype(np.float32)


# ---- which is taken ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "side"),
    [("left", 1), (1, 1), ("1", 1), (np.int64(1), 1), ("right", 2), (2, 2), ("2", 2)],
)
def test_a_channel_is_the_file_of_it_alone(verifier, call, channel, side, caplog):
    both, mono = call[0], call[side]
    with caplog.at_level(logging.WARNING):
        found = verifier.encode_files([both], channel=channel)
        assert not caplog.records  # it was asked for
    torch.testing.assert_close(found, verifier.encode_files([mono]), atol=1e-6, rtol=0)
    in_memory = verifier.load_audio(soundfile.read(both), channel=channel)
    assert torch.allclose(in_memory, verifier.load_audio(mono), atol=1e-7)
    assert torch.equal(verifier.load_audio(both, channel), verifier.load_audio(mono))
    model = verifier.enrol([both, mono], channel=channel if side == 1 else 1)
    assert model.seconds == 2.0


def test_each_side_of_a_comparison_has_its_channel(verifier, call):
    both, left, right = call
    options = {"threshold": 0, "channel": 1}
    assert verifier.compare(both, left, **options).cosine == pytest.approx(1)
    found = verifier.compare(both, both, **options, test_channel="right").cosine
    assert found == pytest.approx(verifier.compare(left, right, threshold=0).cosine)
    score, _ = verifier.verify_files(left, both, threshold=0, test_channel="left")
    assert float(score) == pytest.approx(1)
    model = verifier.enrol(both, channel="left")
    assert verifier.compare(model, left, threshold=0).cosine == pytest.approx(1)


def test_windows_have_the_channel_of_their_recording(verifier, call):
    found = verifier.encode_files([call[0]], window_seconds=0.3, channel=2)
    expected = verifier.encode_files([call[2]], window_seconds=0.3)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_mean_is_what_is_taken_unasked(verifier, call):
    left, right = (soundfile.read(side, dtype="float32")[0] for side in call[1:])
    for options in ({}, {"channel": "mean"}):
        found = verifier.load_audio(call[0], **options).numpy()
        np.testing.assert_allclose(found, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize(
    "channel", [0, -1, "0", "middle", "", None, True, 1.0, "Left", "1.5", [1], "-1"]
)
def test_what_is_no_channel_is_one_line(verifier, call, channel):
    calls = (
        lambda: verifier.encode_files(call, channel=channel),
        lambda: verifier.enrol(call[0], channel=channel),
        lambda: verifier.load_audio(call[0], channel=channel),
        lambda: verifier.compare(*call[:2], threshold=0, channel=channel),
    )
    for function in calls:
        with pytest.raises(
            InputError, match=r"channel .*, expected left, right, a num"
        ):
            function()


def test_a_channel_that_a_recording_has_not_is_one_line(verifier, call):
    message = rf"^{call[0]}: channel 3 of 2, expected one of those it has"
    with pytest.raises(InputError, match=message):
        verifier.encode_files([call[0]], channel=3)
    _, failures = verifier.encode_files(call, on_error="collect", channel="right")
    expected = "channel 2 of 1, expected one of those it has, counted from 1"
    assert failures == [(1, call[1], expected), (2, call[2], expected)]
    with pytest.raises(InputError, match=r"recording 1 \(array\): channel 4 of 3"):
        verifier.load_audio(noise(channels=3), channel=4)


# ---- the best ------------------------------------------------------------------------


def speech(seconds=2.0, rate=RATE, seed=0):
    """A voice that comes and goes: syllables of 0.15 s, pauses of 0.1 s."""
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * 180 * k * time) / k for k in range(1, 16))
    hiss = 1e-4 * np.random.default_rng(seed).standard_normal(len(time))
    return 0.1 * tones * (time % 0.25 < 0.15) + hiss


def humming(frames, rate=RATE):
    return np.sin(2 * np.pi * 50 * np.arange(frames) / rate)


VOICE = speech()
SIZE = len(VOICE)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        (np.zeros((2, SIZE)), "silence"),
        (np.ones((1, SIZE)) * 0.5, "a constant"),
        (noise(1, SIZE)[None] * 10, "louder noise"),
        (humming(SIZE)[None], "louder hum"),
        (np.sin(0.4 * np.arange(SIZE))[None], "a louder whistle"),
        ((VOICE + noise(2, SIZE))[None], "the voice in noise"),
        (0.001 * VOICE[None], "crosstalk"),
        (np.eye(1, SIZE, 5000), "a click"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_best_channel_is_the_one_with_the_voice(verifier, others, why, caplog):
    for place in range(len(others) + 1):
        wav = np.insert(others, place, VOICE, axis=0).astype(np.float32)
        with caplog.at_level(logging.WARNING):
            found = verifier.load_audio(wav, channel="best")
        assert torch.equal(found, torch.from_numpy(VOICE.astype(np.float32)))
        message = caplog.messages[0]
        assert "1 of 1 recordings: the best of their channels is taken" in message
        assert f"recording 1 (array), channel {place + 1} (signal-to-noise" in message
        caplog.clear()


def test_of_equal_channels_the_first_is_the_best():
    wav = np.stack([VOICE] * 3, 1).astype(np.float32)
    assert inspect_file(*sources_of(wav), 0.25, "best").channel == 1


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_the_best_is_that_of_all_windows_and_of_long_recordings(
    verifier, tmp_path, rate
):
    """The voice is in the last of 35 s, the other channel has noise throughout."""
    voice = np.r_[1e-4 * noise(3, 33 * rate), speech(2.0, rate)]
    both = np.stack([noise(4, len(voice)) / 30, voice], 1)
    soundfile.write(tmp_path / "a.flac", both, rate)
    assert inspect_file(tmp_path / "a.flac", 0.25, "best").channel == 2
    if rate == RATE:
        paths, windows = [tmp_path / "a.flac"], {"window_seconds": 10}
        found = verifier.encode_files(paths, channel="best", **windows)
        assert torch.equal(found, verifier.encode_files(paths, channel=2, **windows))


# ---- warnings ------------------------------------------------------------------------


def figures(wav, rate=RATE, chunks=1):
    found = ChannelFigures()
    for part in np.array_split(wav.astype(np.float32), chunks):
        found.add(part.T, rate)
    return found


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_correlation_is_that_of_the_signals(chunks):
    """x and a·x + b·y correlate by a / √(a² + b²)."""
    x, y = noise(0, 8 * RATE), noise(1, 8 * RATE)
    for a, b in ((0.2, 1), (-0.2, 1), (0.25, 1), (0, 3)):
        rho, *pair = figures(np.stack([x, a * x + b * y], 1), chunks=chunks).difference
        assert rho == pytest.approx(abs(a) / math.hypot(a, b), abs=0.03)
        assert pair == [1, 2]
    for other in (x + y, -x, 0.06 * x, x + 0.5):
        assert figures(np.stack([x, other], 1), chunks=chunks).difference is None
    assert figures(np.stack([x + 1, y - 1], 1), chunks=chunks).difference[0] < 0.1


def test_the_way_between_two_microphones_is_no_difference():
    x, y = noise(0), noise(1)
    for samples in (7, 155, -155):
        assert figures(np.stack([x, np.roll(x, samples)], 1)).difference is None
    assert figures(np.stack([x, np.roll(x, 400)], 1)).difference[0] < 0.1
    wav = np.stack([1.2 * x, np.roll(x, 20), y, 1e-3 * noise(2)], 1)
    assert figures(wav).difference[1:] == (1, 3)  # and not the fourth: nearly silent


@pytest.mark.parametrize("rest", [0.5, 0.1, 0.01])
def test_what_is_lost_in_the_mean(rest):
    """x and -x + r·y: 10 log10((1 + 1 + r²) / 2 / (r² / 4))."""
    x, y = noise(0, 4 * RATE), noise(1, 4 * RATE)
    expected = 10 * math.log10(2 * (2 + rest**2) / rest**2)
    found = figures(np.stack([x, rest * y - x], 1), chunks=2).lost_db
    assert found == pytest.approx(expected, abs=0.1)


def test_no_more_is_lost_than_must_be():
    x, silence = noise(0), np.zeros(RATE)
    for channels in (
        [x, x],
        [x, noise(1)],
        [x, silence],
        [x, silence, silence],
        [x, 2 * x],
    ):
        assert figures(np.stack(channels, 1)).lost_db is None
    assert figures(noise(5, channels=8)).lost_db is None
    assert figures(np.stack([x, -x], 1)).lost_db == math.inf
    assert figures(np.zeros((100, 2))).lost_db is None
    assert figures(np.zeros((100, 2))).difference is None


def test_channels_that_differ_are_one_warning(verifier, call, tmp_path, caplog):
    alike = np.stack([VOICE, VOICE + noise(0, SIZE) / 10], 1)
    given = [call[1], alike.astype(np.float32), call[0], soundfile.read(call[0])]
    with caplog.at_level(logging.WARNING):
        verifier.encode_files(given)
    (differ,) = (message for message in caplog.messages if "differ" in message)
    assert differ.startswith(
        "2 of 4 recordings have channels that differ, as of a call with a person in "
        "each; choose one by channel: left, right, a number from 1 on, mean or best; "
        f"first {call[0]}, correlation 0."
    )
    assert differ.endswith(" of channels 1 and 2")
    assert not any("cancel" in message for message in caplog.messages)
    assert caplog.messages[-1].startswith("3 of 4 recordings are converted")


def test_channels_that_nearly_cancel_are_one_warning(verifier, tmp_path, caplog):
    wav = np.stack([VOICE, 0.02 * noise(0, SIZE) - VOICE], 1)
    soundfile.write(tmp_path / "a.wav", wav, RATE, subtype="FLOAT")
    with caplog.at_level(logging.WARNING):
        verifier.enrol([tmp_path / "a.wav", VOICE])
    (cancel,) = (message for message in caplog.messages if "cancel" in message)
    assert cancel.startswith("1 of 2 recordings have channels that nearly cancel in")
    lost = re.fullmatch(r".*first (.*), (\d+\.\d) dB lost of 2 channels", cancel)
    assert lost[1] == str(tmp_path / "a.wav")
    energies = (wav**2).mean() / (wav.mean(1) ** 2).mean()
    assert float(lost[2]) == pytest.approx(10 * math.log10(energies), abs=0.1)
    caplog.clear()
    verifier.enrol([tmp_path / "a.wav"], channel="best")
    assert not any("cancel" in message for message in caplog.messages)


def test_channels_that_cancel_are_one_line(verifier):
    wav = np.stack([VOICE, -VOICE], 1).astype(np.float32)
    with pytest.raises(InputError, match="speech: its 2 channels cancel in their mean"):
        verifier.encode_files([wav])
    found = verifier.encode_files([wav], channel="left")
    torch.testing.assert_close(found, verifier.encode_files([wav[:, 0]]))


def test_names_and_numbers():
    assert [checked_channel(c) for c in ("left", "right", "7", 3, "mean", "best")] == [
        *(1, 2, 7, 3),
        *("mean", "best"),
    ]
