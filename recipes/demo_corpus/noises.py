"""Noises and music from sums of sines and filtered random numbers.

Each function returns float64 [T] at 16 kHz with no particular level; :func:`level`
brings them to the level of a file.
"""

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import butter, lfilter, sosfilt

from speechbrain_ext.data.audio import SAMPLE_RATE


def level(wav, peak=0.6):
    """Take away the mean and scale to a peak.

    Arguments
    ---------
    wav : np.ndarray
        [T].
    peak : float
        Largest absolute value of the result.

    Returns
    -------
    np.ndarray
        float32, [T].
    """
    wav = wav - wav.mean()
    return (wav * (peak / np.abs(wav).max())).astype(np.float32)


def coloured_noise(length, slope, rng):
    """Gaussian noise with a spectrum of ``slope`` dB per octave, RMS 1.

    0 is white, -3 pink, -6 brown. Flat below 50 Hz, empty at 0 Hz.
    """
    fast = next_fast_len(length, real=True)  # ten times faster than a prime length
    spectrum = np.fft.rfft(rng.standard_normal(fast))
    frequency = np.fft.rfftfreq(fast, 1 / SAMPLE_RATE)
    spectrum *= (np.maximum(frequency, 50) / 1000) ** (slope / 6.0206)
    spectrum[0] = 0
    wav = np.fft.irfft(spectrum, fast)[:length]
    return wav / np.sqrt(np.mean(wav**2))


def hum(length, rng):
    """Mains hum: 50 or 60 Hz and its odd and even harmonics, with a little hiss."""
    base = rng.choice([50.0, 60.0])
    time = _time(length)
    wav = 0.05 * coloured_noise(length, -3, rng)
    for harmonic in range(1, 14):
        strength = rng.uniform(0.2, 1.0) / harmonic**0.7
        phase = rng.uniform(0, 2 * np.pi)
        wav += strength * np.sin(2 * np.pi * base * harmonic * time + phase)
    return wav


def fan(length, rng):
    """A fan: brown noise beating at the rate of the blades, and the motor's tone."""
    time = _time(length)
    blades = rng.uniform(12, 35)
    beat = 1 + 0.4 * np.sin(2 * np.pi * blades * time)
    motor = np.sin(2 * np.pi * rng.uniform(90, 240) * time)
    return beat * coloured_noise(length, -5, rng) + 0.4 * motor


def clicks(length, rng):
    """Keys: short damped resonances at irregular moments over a faint room tone."""
    wav = 0.01 * coloured_noise(length, -4, rng)
    for start in _moments(length, rng.uniform(4, 9), rng):
        burst = rng.standard_normal(400) * np.exp(-np.arange(400) / 60)
        ring = np.sin(2 * np.pi * rng.uniform(900, 4000) * _time(400))
        _add(wav, start, rng.uniform(0.3, 1) * burst * (0.5 + ring))
    return wav


def rain(length, rng):
    """Rain: hundreds of drops a second over a hiss."""
    drops = np.zeros(length)
    moments = _moments(length, 400, rng)
    np.add.at(drops, moments, rng.exponential(1.0, len(moments)))
    drops = _band(drops, 1200, 6500)
    return drops / drops.std() + 0.5 * coloured_noise(length, -1, rng)


def wind(length, rng):
    """Wind: brown noise whose strength wanders over seconds."""
    return _wander(length, 0.6, rng) * coloured_noise(length, -7, rng)


def traffic(length, rng):
    """Traffic: low rumble, and vehicles which pass."""
    wav = coloured_noise(length, -6, rng)
    time = _time(length)
    for start in _moments(length, 0.5, rng):
        centre, width = start / SAMPLE_RATE, rng.uniform(0.4, 1.2)
        swell = np.exp(-(((time - centre) / width) ** 2))
        wav += 4 * swell * _band(rng.standard_normal(length), 150, 1800)
    return wav


def knocks(length, rng):
    """Knocks on wood, in groups."""
    wav = 0.01 * coloured_noise(length, -3, rng)
    for start in _moments(length, 0.8, rng):
        tone = rng.uniform(110, 320)
        for blow in range(int(rng.integers(2, 5))):
            time = _time(2400)
            sound = np.sin(2 * np.pi * tone * time) + 0.3 * rng.standard_normal(2400)
            _add(wav, start + blow * 3200, sound * np.exp(-time / 0.02))
    return wav


def engine(length, rng):
    """An engine: pulses of noise at the firing rate, which drifts."""
    rate = rng.uniform(22, 45) * (1 + 0.15 * (_wander(length, 0.3, rng) - 1))
    phase = 2 * np.pi * np.cumsum(rate) / SAMPLE_RATE
    pulses = np.exp(4 * (np.cos(phase) - 1))
    return pulses * coloured_noise(length, -4, rng) + 0.5 * np.sin(phase)


def alarm(length, rng):
    """An alarm: two tones in turn over street noise."""
    time = _time(length)
    low = rng.uniform(600, 1100)
    high = low * rng.uniform(1.15, 1.5)
    switch = np.sin(2 * np.pi * rng.uniform(1, 3) * time) > 0
    phase = 2 * np.pi * np.cumsum(np.where(switch, high, low)) / SAMPLE_RATE
    return np.tanh(2 * np.sin(phase)) + 0.3 * coloured_noise(length, -3, rng)


def pink(length, rng):
    """Pink noise."""
    return coloured_noise(length, -3, rng)


NOISES = (pink, hum, fan, clicks, rain, wind, traffic, knocks, engine, alarm)


def music(length, rng):
    """Four chords in a loop, a melody from their scale, a bass and a drum.

    Arguments
    ---------
    length : int
        Samples.
    rng : np.random.Generator
        Decides key, mode, tempo, timbre and melody.

    Returns
    -------
    np.ndarray
        float64, [T].
    """
    scale = np.array(rng.choice([[0, 2, 4, 5, 7, 9, 11], [0, 2, 3, 5, 7, 8, 10]]))
    key = rng.integers(45, 57)  # MIDI notes
    beat = int(60 / rng.uniform(75, 140) * SAMPLE_RATE)
    timbre = rng.uniform(0.1, 1, 6) / np.arange(1, 7) ** rng.uniform(0.8, 1.6)
    degrees = rng.permutation(7)[:4]

    def note(degree, octave, beats):
        octaves, step = divmod(int(degree), 7)
        midi = key + scale[step] + 12 * (octave + octaves)
        return _tone(440 * 2 ** ((midi - 69) / 12), int(beats * beat), timbre)

    wav = np.zeros(length)
    for index, start in enumerate(range(0, length, beat)):
        root = degrees[index // 4 % 4]
        if index % 4 == 0:
            for third in (0, 2, 4):
                _add(wav, start, 0.4 * note(root + third, 0, 4))
            _add(wav, start, 0.7 * note(root, -1, 4))
        if rng.random() < 0.8:
            _add(wav, start, 0.8 * note(root + rng.choice([0, 1, 2, 4, 6]), 1, 1))
        strike = rng.standard_normal(1600) * np.exp(-np.arange(1600) / 250)
        _add(wav, start, (0.25 if index % 2 else 0.1) * strike)
    return wav


def _tone(frequency, length, timbre):
    time = _time(length)
    wav = np.zeros(length)
    for harmonic, strength in enumerate(timbre, start=1):
        if harmonic * frequency < SAMPLE_RATE / 2:
            wav += strength * np.sin(2 * np.pi * harmonic * frequency * time)
    attack = np.minimum(1, time / 0.01)
    return wav * attack * np.exp(-2.5 * time)


def _time(length):
    return np.arange(length) / SAMPLE_RATE


def _moments(length, per_second, rng):
    """Samples at which something happens, at least one of them."""
    count = max(1, rng.poisson(per_second * length / SAMPLE_RATE))
    return np.sort(rng.integers(0, length, count))


def _add(wav, start, sound):
    end = min(len(wav), start + len(sound))
    wav[start:end] += sound[: max(0, end - start)]


def _band(wav, low, high):
    corners = np.array([low, high]) / (SAMPLE_RATE / 2)
    return sosfilt(butter(2, corners, "band", output="sos"), wav)


def _wander(length, rate, rng):
    """A positive curve around 1 which changes ``rate`` times a second."""
    pole = np.exp(-2 * np.pi * rate / SAMPLE_RATE)
    slow = lfilter([1 - pole], [1, -pole], rng.standard_normal(length))
    return np.exp(0.5 * slow / slow.std())
