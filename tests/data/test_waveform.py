"""Crops, speed, noise and reverberation, each against its formula."""

import os

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import fftconvolve, resample_poly
from torchaudio.transforms import Resample

from speechbrain_ext.data.augment.waveform import (
    SpeedPerturb,
    add_noise,
    convolve,
    read_crop,
    reverb,
)
from speechbrain_ext.utils.errors import InputError


def tone(hertz, n):
    return np.sin(2 * np.pi * hertz * np.arange(n) / 16000).astype(np.float32)


def noise(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def ratio_db(signal, added):
    power = [np.mean(np.square(x, dtype=np.float64)) for x in (signal, added)]
    return 10 * np.log10(power[0] / power[1])


@pytest.fixture
def ramp(tmp_path):
    """A recording whose sample i is i / 2^15: its content tells its place."""
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.arange(1000, dtype=np.int16), 16000, subtype="PCM_16")
    return str(path)


def places(wav):
    return np.round(wav * 2**15).astype(int)


def test_crops_start_anywhere_from_the_first_to_the_last_place(ramp):
    generator = np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        found = places(read_crop(ramp, 1000, 996, generator))
        assert np.array_equal(found, found[0] + np.arange(996))
        starts.add(int(found[0]))
    assert starts == {0, 1, 2, 3, 4}


def test_a_short_recording_is_repeated_from_a_random_phase(ramp):
    generator = np.random.default_rng(0)
    phases = set()
    for _ in range(5):
        found = places(read_crop(ramp, 1000, 2500, generator))
        assert np.array_equal(found, (found[0] + np.arange(2500)) % 1000)
        phases.add(int(found[0]))
    assert len(phases) == 5


def bytes_read():
    """By this process so far, from files and pipes."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counted by Linux")
@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_only_the_part_that_is_needed_is_read(tmp_path, kind):
    path = tmp_path / f"long.{kind}"
    wav = 0.1 * noise(2_000_000)
    soundfile.write(path, wav, 16000)
    size = os.path.getsize(path)
    read_crop(str(path), len(wav), 100, np.random.default_rng(0))
    for seed in range(3):
        before = bytes_read()
        crop = read_crop(str(path), len(wav), 16000, np.random.default_rng(seed))
        assert bytes_read() - before < size / 10
        start = int(
            np.random.default_rng(seed).integers(len(wav) - 16000, endpoint=True)
        )
        assert np.allclose(crop, wav[start : start + 16000], atol=1e-4)


def test_channels_are_averaged(tmp_path):
    path = str(tmp_path / "two.wav")
    both = 0.1 * noise(2000).reshape(1000, 2)
    soundfile.write(path, both, 16000, subtype="FLOAT")
    for n in (1000, 1500):
        crop = read_crop(path, 1000, n, np.random.default_rng(3))
        assert crop.shape == (n,)
        assert np.allclose(np.sort(crop)[-1], both.mean(axis=1).max(), atol=1e-7)


def test_a_recording_shorter_than_stated_is_named(ramp):
    with pytest.raises(InputError, match=r"ramp\.wav: 1000 samples .* expected 1200"):
        read_crop(ramp, 1200, 4000, np.random.default_rng(0))


@pytest.mark.parametrize(("speed", "hertz"), [(0.9, 396), (1.1, 484), (1.0, 440)])
def test_speed_scales_pitch_and_duration(speed, hertz):
    perturb = SpeedPerturb((1.0, 0.9, 1.1))
    source = tone(440, perturb.source_length(32000, speed))
    output = perturb.apply(source, speed)
    assert output.dtype == np.float32
    assert len(output) == 32000
    spectrum = np.abs(np.fft.rfft(output))
    assert np.argmax(spectrum) * 16000 / 32000 == hertz
    # The whole tone, at its amplitude, apart from the filter's edges.
    assert np.abs(output[200:-200] - tone(hertz, 32000)[200:-200]).max() < 2e-2


def test_speed_agrees_with_another_resampler():
    low = np.convolve(noise(20000), np.hanning(16) / 8, mode="same").astype(np.float32)
    for speed, up, down in ((0.9, 10, 9), (1.1, 10, 11)):
        ours = SpeedPerturb((1.0, speed)).apply(low, speed)
        theirs = resample_poly(low, up, down)
        assert len(ours) == len(theirs)
        assert ratio_db(theirs[100:-100], (ours - theirs)[100:-100]) > 35


@pytest.mark.parametrize("n", [1, 9, 10, 11, 480, 48001])
@pytest.mark.parametrize("speed", [0.9, 1.1, 0.95, 2.0])
def test_speed_is_a_resampling_of_torchaudio(speed, n):
    wav = noise(n)
    up = {0.9: (9, 10), 1.1: (11, 10), 0.95: (19, 20), 2.0: (2, 1)}[speed]
    expected = Resample(*up)(torch.from_numpy(wav)).numpy()
    found = SpeedPerturb((1.0, speed)).apply(wav, speed)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("speed", [0.9, 1.1, 0.95, 1.25])
def test_source_length_is_the_fewest_that_suffice(speed):
    perturb = SpeedPerturb((1.0, speed))
    for n in (1, 2, 9, 10, 11, 12345, 48000):
        source = perturb.source_length(n, speed)
        assert len(perturb.apply(noise(source), speed)) >= n
        if source > 1:
            assert len(perturb.apply(noise(source - 1), speed)) < n


@pytest.mark.parametrize(
    "speeds", [(), (0.9, 1.0), (1.0, 0.9, 0.9), (1.0, 0.0), (1.0, -1), (1.0, 20)]
)
def test_speeds_that_are_none(speeds):
    with pytest.raises(InputError, match=r"expected 1\.0 first"):
        SpeedPerturb(speeds)


@pytest.mark.parametrize("snr_db", [-10, 0, 5, 20, 37.5])
def test_noise_is_added_at_the_ratio(snr_db):
    wav, added = 0.03 * tone(300, 48000), 7 * noise(48000)
    mixed = add_noise(wav, added, snr_db)
    assert mixed.dtype == np.float32
    assert abs(ratio_db(wav, mixed - wav) - snr_db) < 1e-3
    # And the noise keeps its shape.
    assert np.corrcoef(mixed - wav, added)[0, 1] > 0.999


def test_silence_on_either_side_changes_nothing():
    silence, wav = np.zeros(100, dtype=np.float32), noise(100)
    assert np.array_equal(add_noise(wav, silence, 10), wav)
    assert np.array_equal(add_noise(silence, wav, 10), silence)
    assert np.array_equal(reverb(silence, noise(10)), silence)


@pytest.mark.parametrize("delay", [0, 1, 777, 5000])
def test_a_delayed_impulse_of_any_sign_and_size_returns_the_input(delay):
    response = np.zeros(6000, dtype=np.float32)
    response[delay] = 0.25
    wav = noise(4000)
    assert np.abs(reverb(wav, response) - wav).max() < 1e-5
    assert np.abs(reverb(wav, -response) + wav).max() < 1e-5


@pytest.mark.parametrize("n_response", [1, 2, 9, 2048, 2049, 5000, 70_000])
@pytest.mark.parametrize("n", [1, 7, 8192, 30_000])
def test_blocks_join_to_the_whole_convolution(n, n_response):
    generator = np.random.default_rng(n)
    wav, response = (
        generator.standard_normal(size).astype(np.float32) for size in (n, n_response)
    )
    found = convolve(wav, response)
    assert found.dtype == np.float32
    expected = fftconvolve(wav.astype(np.float64), response.astype(np.float64))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-6 * np.linalg.norm(wav) * (
        np.linalg.norm(response)
    )


def test_reverb_is_the_convolution_in_time_with_the_input():
    generator = np.random.default_rng(0)
    wav = noise(500)
    response = (generator.standard_normal(120) * 0.1).astype(np.float32)
    response[30] = -1.0
    expected = np.convolve(wav.astype(float), response.astype(float))[30:530]
    expected *= np.sqrt(np.sum(wav.astype(float) ** 2) / np.sum(expected**2))
    output = reverb(wav, response)
    assert output.dtype == np.float32
    assert np.abs(output - expected).max() < 1e-5
    assert abs(ratio_db(output, wav)) < 1e-3
