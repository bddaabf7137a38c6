"""Speech of espeak-ng, and 200 sounds that are none."""

import functools

import numpy as np
from demo_corpus import noises
from demo_corpus.espeak import ESPEAK_RATE, Synthesiser, Voice
from scipy.signal import chirp, resample_poly, sawtooth, square

RATE = 16000
TEXT = "The north wind and the sun were disputing which was the stronger."
VARIANTS = ("m1", "f2", "m3", "f4")


@functools.lru_cache
def spoken(variant="m1", text=TEXT, seed=1):
    """[T] float32 at 16 kHz, without the silence that espeak-ng adds."""
    with Synthesiser(seed) as synthesiser:
        wav = synthesiser.say(text, Voice("en-us", variant))
    wav = resample_poly(wav, RATE, ESPEAK_RATE)
    loud = np.flatnonzero(np.abs(wav) > 0.02 * np.abs(wav).max())
    wav = wav[loud[0] : loud[-1] + 1]
    return (0.3 * wav / np.abs(wav).max()).astype(np.float32)


def silence(seconds, level=0.0, seed=0):
    """Digital, or a room's noise of this RMS."""
    noise = noises.coloured_noise(
        round(seconds * RATE), -4, np.random.default_rng(seed)
    )
    return (level * noise).astype(np.float32)


def sounds(seconds=3.0, seeds=10):
    """Noise, music, tones, silence, clicks: 20 kinds × seeds → {name: [T] float32}."""
    length = round(seconds * RATE)
    found = {}
    for kind, make in KINDS.items():
        for seed in range(seeds):
            rng = np.random.default_rng([seed, len(kind), ord(kind[0])])
            wav = np.asarray(make(length, rng), dtype=np.float64)
            peak = np.abs(wav).max()
            level = 10 ** rng.uniform(-2, -0.1)
            found[f"{kind}{seed}"] = np.float32(level * wav / peak if peak else wav)
    return found


def _time(length):
    return np.arange(length) / RATE


def _tone(length, rng):
    return np.sin(2 * np.pi * rng.uniform(60, 4000) * _time(length))


def _chirp(length, rng):
    low, high = np.sort(rng.uniform(50, 7000, 2))
    return chirp(_time(length), low, length / RATE, high)


def _wave(length, rng):
    """A sawtooth or a square wave: as rich in overtones as a voice."""
    shape = rng.choice([sawtooth, square])
    return shape(2 * np.pi * rng.uniform(80, 400) * _time(length))


def _notes(length, rng, at_once=1, seconds=0.25):
    """Notes of a scale, struck and decaying: an arpeggio, or chords."""
    wav, size = np.zeros(length + RATE), round(seconds * RATE)
    scale = 110 * 2 ** (np.array([0, 2, 4, 7, 9, 12, 14, 16, 19, 21]) / 12)
    for start in range(0, length, size):
        for pitch in rng.choice(scale, at_once, replace=False):
            time = _time(RATE)
            note = sum(
                np.sin(2 * np.pi * k * pitch * time) / k**1.5 for k in range(1, 6)
            )
            wav[start : start + RATE] += note * np.exp(-4 * time)
    return wav[:length]


def _drums(length, rng):
    wav, time = np.zeros(length + RATE), _time(RATE)
    kick = np.sin(2 * np.pi * (50 * time + 8 * (1 - np.exp(-20 * time))))
    for beat in range(0, length, RATE // 4):
        noise = rng.standard_normal(RATE) * np.exp(-time * rng.choice([12, 60]))
        wav[beat : beat + RATE] += rng.choice([0, 1]) * kick * np.exp(-9 * time) + noise
    return wav[:length]


def _dial(length, rng):
    """Pairs of tones of a telephone's keys."""
    wav, size = np.zeros(length), RATE // 10
    for start in range(0, length - size, 2 * size):
        pair = rng.choice([697, 770, 852, 941]), rng.choice([1209, 1336, 1477])
        wav[start : start + size] = sum(
            np.sin(2 * np.pi * f * _time(size)) for f in pair
        )
    return wav


def _impulses(length, rng):
    wav = np.zeros(length)
    wav[rng.integers(0, length, 20)] = rng.choice([-1.0, 1.0], 20)
    return wav


KINDS = {
    "white": lambda length, rng: noises.coloured_noise(length, 0, rng),
    "pink": noises.pink,
    "brown": lambda length, rng: noises.coloured_noise(length, -6, rng),
    "hum": noises.hum,
    "fan": noises.fan,
    "keys": noises.clicks,
    "rain": noises.rain,
    "wind": noises.wind,
    "traffic": noises.traffic,
    "engine": noises.engine,
    "alarm": noises.alarm,
    "tone": _tone,
    "chirp": _chirp,
    "wave": _wave,
    "arpeggio": _notes,
    "chords": functools.partial(_notes, at_once=3, seconds=0.5),
    "drums": _drums,
    "dial": _dial,
    "impulses": _impulses,
    "silence": lambda length, rng: np.full(length, rng.choice([0.0, 0.1])),
}
