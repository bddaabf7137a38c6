"""Codecs: what is left of speech, in time, in band, and what is not there."""

import pickle
import sys
from functools import partial

import numpy as np
import pytest
from scipy import signal

from speechbrain_ext.data.augment import Augmenter, Codec
from speechbrain_ext.data.augment.codecs import CODECS
from speechbrain_ext.utils.errors import InputError

av = pytest.importorskip("av")


def is_there(name):
    try:
        av.codec.Codec(CODECS[name].encoder, "w")
        av.codec.Codec(CODECS[name].decoder, "r")
    except (ValueError, av.error.FFmpegError):
        return False
    return True


THERE = [name for name in CODECS if is_there(name)]
# Correlation with the input that is left; parametric codecs keep what is heard, not the
# waveform.
ABOVE_400_HZ = signal.butter(4, 400, "high", output="sos", fs=16000)
LEAST = {"g723": 0.6, "amr_nb": 0.6, "opus_nb": 0.6, "opus": 0.6}


def voice(seconds=0.5, peak=0.4):
    """Harmonics of a falling tone, up to 7 kHz, in syllables."""
    time = np.arange(int(16000 * seconds)) / 16000
    phase = 2 * np.pi * np.cumsum(140 - 40 * time) / 16000
    random = np.random.default_rng(0)
    wav = sum(np.sin(k * phase + random.uniform(0, 6)) / k for k in range(1, 50))
    wav = wav * (1 + np.sin(2 * np.pi * 5 * time))
    return (peak * wav / np.abs(wav).max()).astype(np.float32)


@pytest.fixture(scope="module")
def codec():
    return Codec(THERE)


@pytest.mark.parametrize("name", THERE)
def test_length_time_and_what_is_heard_stay(codec, name):
    wav = voice()
    before = wav.copy()
    out = codec.transmit(wav, name, len(codec.kbps[name]) - 1)
    assert out.dtype == np.float32
    assert out.shape == wav.shape
    # telephony turns the phase of the lowest harmonics
    heard, sent = (signal.sosfilt(ABOVE_400_HZ, part) for part in (out, wav))
    correlation = signal.correlate(heard, sent)
    lag = int(np.argmax(correlation)) - len(wav) + 1
    assert abs(lag) <= 4  # a quarter of a millisecond
    norm = np.linalg.norm(heard) * np.linalg.norm(sent)
    assert correlation.max() / norm > LEAST.get(name, 0.9)
    assert (out != wav).any()
    np.testing.assert_array_equal(wav, before)


@pytest.mark.parametrize("name", [n for n in THERE if CODECS[n].rate == 8000])
def test_a_narrow_band(codec, name):
    out = codec.transmit(voice(), name, len(codec.kbps[name]) - 1)
    power = np.abs(np.fft.rfft(out)) ** 2
    hertz = np.fft.rfftfreq(len(out), 1 / 16000)
    assert power[hertz > 4300].sum() < 1e-4 * power.sum()


def test_more_bits_leave_more(codec):
    wav = voice()

    def distance(number):
        return np.linalg.norm(codec.transmit(wav, "mp3", number) - wav)

    assert distance(len(codec.kbps["mp3"]) - 1) < 0.7 * distance(0)


def test_a_draw_depends_on_its_generator_alone(codec):
    draws = [codec.draw(np.random.default_rng(n)) for n in range(60)]
    assert {name for name, _ in draws} == set(THERE)
    out = codec(voice(), np.random.default_rng(3))
    again = pickle.loads(pickle.dumps(codec))(voice(), np.random.default_rng(3))
    np.testing.assert_array_equal(out, again)


def test_samples_beyond_one_are_not_clipped(codec):
    wav = voice(0.2)
    out = codec.transmit(wav, "mulaw", 0)
    loud = codec.transmit(10 * wav, "mulaw", 0)
    assert np.abs(loud).max() > 3
    np.testing.assert_allclose(loud / 10, out, atol=0.03)


@pytest.mark.parametrize("size", [1, 100, 4001])
def test_any_length(codec, size):
    wav = voice()[:size]
    for name in THERE:
        assert codec.transmit(wav, name, 0).shape == (size,)


def test_in_a_chain():
    chains = {"none": 1, "line": 1}
    augment = Augmenter(chains, {"line": partial(Codec, ["alaw"])})
    outs = [augment(voice(0.1), np.random.default_rng(n)) for n in range(12)]
    assert 0 < sum((out == voice(0.1)).all() for out in outs) < 12


def test_bit_rates_of_ones_own():
    codec = Codec(["mp3", "alaw"], {"mp3": [40]})
    assert codec.kbps == {"mp3": [40], "alaw": [64]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"codecs": ["mp9"]}, r"codecs: mp9, expected some of mp3, m4a,"),
        ({"codecs": []}, r"codecs: none, expected some of mp3,"),
        ({"kbps": {"flac": [1]}}, r"codecs: flac, expected some of"),
        ({"kbps": {"mp3": ["a"]}}, r"kbps of mp3: \['a'\], expected bit rates such as"),
        (
            {"codecs": ["opus"], "kbps": {"opus": [900]}},
            r"codecs: opus at 900 kbps: libopus refuses it .*expected bit rates",
        ),
    ],
)
def test_wrong_settings(arguments, expected):
    with pytest.raises(InputError, match=expected):
        Codec(**arguments)


def test_a_codec_that_the_library_lacks_is_named(monkeypatch):
    monkeypatch.setitem(CODECS, "speex", CODECS["speex"]._replace(encoder="nothing"))
    expected = (
        r"codecs: speex: PyAV \d+\.\d+\.\d+ lacks nothing or speex, expected some of "
        r"those that it has: mp3, m4a"
    )
    with pytest.raises(InputError, match=expected):
        Augmenter({"line": 1}, {"line": partial(Codec, ["mp3", "speex"])})


def test_without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"codecs: PyAV is not installed, .*\[media\]"):
        Codec()
