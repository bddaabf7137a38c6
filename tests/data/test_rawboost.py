"""RawBoost against the plain definition: firwin, convolution, loops."""

from functools import partial

import numpy as np
import pytest
from scipy import signal

from speechbrain_ext.data.augment import Augmenter, RawBoost
from speechbrain_ext.data.augment.rawboost import cascades, filtered_sum
from speechbrain_ext.utils.errors import InputError


def speech(size=8000, peak=0.5):
    random = np.random.default_rng(size)
    wav = signal.lfilter([1], [1, -0.9], random.standard_normal(size))
    return (peak * wav / np.abs(wav).max()).astype(np.float32)


def plain_cascade(centre, width, taps, gain_db):
    """One filter of band stops, one after the other: [K]."""
    response = np.ones(1)
    for hertz, wide, count in zip(centre, width, taps):
        edges = [max(hertz - wide / 2, 1e-3), min(hertz + wide / 2, 8000 - 1e-3)]
        stop = signal.firwin(count, edges, window="hamming", fs=16000)
        response = np.convolve(response, stop)
    _, gain = signal.freqz(response, 1, 1 << 15)
    return 10 ** (gain_db / 20) * response / np.abs(gain).max()


def settings(seed, filters=4, bands=5, most=101):
    random = np.random.default_rng(seed)
    shape = filters, bands
    return (
        random.uniform(20, 8000, shape),
        random.uniform(100, 1000, shape),
        random.integers(11, most, shape) | 1,
        random.uniform(-20, 3, filters),
    )


@pytest.mark.parametrize("most", [20, 101, 901])
def test_filters_are_cascades_of_band_stops(most):
    drawn = settings(most, most=most)
    found = cascades(*drawn)
    for response, *of_one in zip(found, *drawn):
        expected = plain_cascade(*of_one)
        more = (len(response) - len(expected)) // 2
        inside = response[more : len(response) - more]
        # the highest gain is looked for at few points
        scale = np.linalg.norm(expected) / np.linalg.norm(inside)
        assert scale == pytest.approx(1, abs=0.01)
        np.testing.assert_allclose(scale * inside, expected, atol=1e-6)
        np.testing.assert_allclose(response[:more], 0, atol=1e-7)
        np.testing.assert_allclose(response, response[::-1], atol=1e-7)


@pytest.mark.parametrize("size", [1, 700, 8000])
@pytest.mark.parametrize("most", [20, 901])
def test_sum_of_filtered_waveforms(size, most):
    wavs = np.stack([speech(size) ** k for k in range(1, 5)])
    responses = cascades(*settings(3, most=most))
    middle = responses.shape[1] // 2
    expected = sum(
        np.convolve(wav.astype(np.float64), response)[middle : middle + size]
        for wav, response in zip(wavs, responses)
    )
    np.testing.assert_allclose(filtered_sum(wavs, responses), expected, atol=1e-5)


def test_convolutive_noise_is_the_sum_of_filtered_powers():
    wav, boost = speech(), RawBoost(1, gain_db=(-3, 6))
    responses = boost.draw_filters(np.random.default_rng(5), 5)
    middle = responses.shape[1] // 2
    expected = sum(
        np.convolve(wav.astype(np.float64) ** k, h)[middle : middle + len(wav)]
        for k, h in enumerate(responses, 1)
    )
    expected -= expected.mean()
    expected /= max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(
        boost(wav, np.random.default_rng(5)), expected, atol=1e-5
    )


def test_gains_are_as_drawn():
    boost = RawBoost(1, gain_db=(2, 2), lower_db=(6, 20))
    highest = []
    for seed in range(20):
        filters = boost.draw_filters(np.random.default_rng(seed), 3)
        gain = np.abs(np.fft.rfft(filters, 1024)).max(axis=1)
        highest.append(20 * np.log10(gain))
    highest = np.array(highest)
    np.testing.assert_allclose(highest[:, 0], 2, atol=0.1)
    others = highest[:, 1:]
    assert -18.1 <= others.min() < -15
    assert -7 < others.max() <= -3.9


def test_impulses_hit_some_percent_and_depend_on_the_sample():
    wav = speech(20_000)
    boosted = RawBoost(2, impulse_percent=10, impulse_gain=0.5)
    shares = []
    for seed in range(20):
        out = boosted(wav, np.random.default_rng(seed))
        changed = out != wav
        shares.append(changed.mean())
        ratio = out[changed] / wav[changed] - 1
        assert np.abs(ratio).max() <= 0.5 + 1e-5
        assert abs(ratio.mean()) < 0.1
    assert max(shares) < 0.1
    assert 0.02 < np.mean(shares) < 0.08


def test_stationary_noise_has_the_drawn_ratio():
    wav = speech(16_000)
    for seed in range(5):
        out = RawBoost(3, snr_db=(12, 12))(wav, np.random.default_rng(seed))
        noise = out - wav
        ratio = 10 * np.log10(np.sum(wav**2) / np.sum(noise**2))
        assert ratio == pytest.approx(12, abs=0.01)
        # coloured: white noise has equal power everywhere
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        parts = spectrum[:8000].reshape(80, 100).mean(axis=1)
        assert parts.min() < 0.2 * parts.max()


@pytest.mark.parametrize(
    ("algorithm", "steps"),
    [(4, (1, 2, 3)), (5, (1, 2)), (6, (1, 3)), (7, (2, 3))],
)
def test_series(algorithm, steps):
    wav, generator = speech(), np.random.default_rng(2)
    expected = wav
    for step in steps:
        expected = RawBoost(step)(expected, generator)
    found = RawBoost(algorithm)(wav, np.random.default_rng(2))
    np.testing.assert_array_equal(found, expected)


def test_parallel():
    wav, generator = speech(), np.random.default_rng(2)
    both = RawBoost(1)(wav, generator) + RawBoost(2)(wav, generator)
    found = RawBoost(8)(wav, np.random.default_rng(2))
    np.testing.assert_allclose(found, both / max(np.abs(both).max(), 1), atol=1e-7)


@pytest.mark.parametrize("algorithm", range(1, 9))
def test_time_length_type_and_input_stay(algorithm):
    wav = speech(peak=0.9)
    before, boost = wav.copy(), RawBoost(algorithm)
    out = boost(wav, np.random.default_rng(0))
    np.testing.assert_array_equal(wav, before)
    assert out.dtype == np.float32
    assert out.shape == wav.shape
    assert np.abs(out).max() <= 1 or algorithm in (3, 4, 6, 7)  # noise may go beyond
    correlation = signal.correlate(out, wav)
    assert np.argmax(np.abs(correlation)) == len(wav) - 1
    again = boost(wav, np.random.default_rng(0))
    np.testing.assert_array_equal(out, again)
    assert (boost(wav, np.random.default_rng(1)) != out).any()


@pytest.mark.parametrize("algorithm", range(1, 9))
@pytest.mark.parametrize("size", [1, 3, 50_000])
def test_silence_stays_silence(algorithm, size):
    out = RawBoost(algorithm)(np.zeros(size, np.float32), np.random.default_rng(0))
    np.testing.assert_array_equal(out, np.zeros(size, np.float32))


def test_in_a_chain():
    chains = {"none": 1, "raw": 1, "raw+other": 1}
    effects = {
        "raw": partial(RawBoost, algorithm=5),
        "other": RawBoost(3, snr_db=(0, 5)),
    }
    augment = Augmenter(chains, effects)
    outs = [augment(speech(), np.random.default_rng(n)) for n in range(20)]
    n_clean = sum((out == speech()).all() for out in outs)
    assert 0 < n_clean < 15


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"algorithm": 9}, r"algorithm: 9, expected 1 to 8"),
        ({"centre_hz": (4000, 300)}, r"centre_hz: \(4000, 300\), expected low, high"),
        ({"width_hz": (100, 9000)}, r"width_hz: .* from 0 to 8000"),
        ({"taps": (1, 100)}, r"taps: \(1, 100\), expected low, high from 3 to"),
        ({"snr_db": (40, 10)}, r"snr_db: \(40, 10\), expected low, high"),
        ({"impulse_percent": 101}, r"impulse_percent: 101, expected 100 at most"),
    ],
)
def test_settings_out_of_range(arguments, expected):
    with pytest.raises(InputError, match=expected):
        RawBoost(**arguments)
