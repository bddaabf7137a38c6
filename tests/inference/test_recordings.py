"""Recordings of any rate: against scipy's filter and closed forms."""

import logging

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ext.inference.audio_input import (
    Recording,
    _resampler,
    inspect_file,
    inspect_files,
    read_piece,
    resampled,
    warn_of_conversions,
)
from speechbrain_ext.utils.errors import InputError


def tone(rate, seconds=0.5, frequency=700):
    time = np.arange(round(rate * seconds)) / rate
    return np.sin(2 * np.pi * frequency * time).astype(np.float32)


@pytest.mark.parametrize(
    "rate", [8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000]
)
def test_a_tone_stays_the_tone(rate):
    found = resampled(torch.from_numpy(tone(rate)), rate).numpy()
    expected = tone(16000)
    assert len(found) == -(-len(tone(rate)) * 16000 // rate)
    inner = slice(200, 7600)
    np.testing.assert_allclose(found[inner], expected[inner], atol=5e-3)


def test_what_the_lower_rate_cannot_hold_is_filtered_out():
    found = resampled(torch.from_numpy(tone(48000, frequency=11_000)), 48000)
    assert found[200:-200].abs().max() < 0.02


def test_the_rate_of_the_model_is_left_alone():
    wav = torch.randn(100)
    assert resampled(wav, 16000) is wav


@pytest.mark.parametrize("rate", [44099, 15999, 22254, 16007, 767_999])
def test_an_odd_rate_takes_no_giant_filter(rate):
    """Its exact ratio would take a filter of gigabytes; a near one is within 0.05 %."""
    resampler = _resampler(rate)
    if resampler.orig_freq != resampler.new_freq:  # else there is no filter at all
        assert resampler.kernel.numel() < 2e7
    ratio = resampler.orig_freq / resampler.new_freq
    assert ratio == pytest.approx(rate / 16000, rel=5e-4)
    found = resampled(torch.from_numpy(tone(rate, 0.2)), rate)
    assert len(found) == pytest.approx(3200, rel=5e-4)


def test_a_piece_is_a_part_of_the_file(tmp_path):
    path = tmp_path / "a.wav"
    generator = np.random.default_rng(0)
    wav = (0.1 * generator.standard_normal((8000, 3))).astype(np.float32)
    soundfile.write(path, wav, 16000, subtype="FLOAT")
    recording = inspect_file(path, 0.25)
    assert recording == (str(path), 8000, 16000, 3)
    assert recording.seconds == 0.5
    expected = wav.mean(axis=1)
    np.testing.assert_allclose(read_piece(recording), expected, atol=1e-7)
    np.testing.assert_allclose(read_piece(recording, 1000, 50), expected[1000:1050])
    with pytest.raises(
        InputError, match=r"50 samples decoded from 7950 on, expected 90"
    ):
        read_piece(recording, 7950, 90)


def test_many_headers_come_in_order(tmp_path):
    paths = []
    for number in range(70):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.ones(5000 + number), 16000)
        paths.append(str(path))
    paths[33] = str(tmp_path / "absent.wav")
    found = inspect_files(paths, 0.25)
    assert isinstance(found.pop(33), InputError)
    assert [r.frames for r in found] == [5000 + n for n in range(70) if n != 33]


def test_one_warning_for_all_conversions(caplog):
    fitting = Recording("a", 1, 16000, 1)
    others = [Recording("b", 1, 16000, 2), Recording("c", 1, 8000, 1)]
    with caplog.at_level(logging.WARNING):
        warn_of_conversions([fitting] * 3)
        assert not caplog.records
        warn_of_conversions([fitting, *others, others[1]])
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 4 recordings are converted to 16000 Hz with 1 channel: 2 of 8000 Hz with "
        "1 channel(s), 1 of 16000 Hz with 2 channel(s); first b"
    ]
