"""Speakers, the channel of each of their sessions, and what they record.

A speaker is a variant of espeak-ng's voice with an accent, a pitch, a pitch range and
a speaking rate. A session adds what one microphone on one day adds: pitch and rate a
little off, a high-pass and a low-pass, a spectral tilt, a level, and a noise floor.
Without the channel, recognising these speakers would be trivial.
"""

from typing import NamedTuple

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import butter, resample_poly, sosfilt

from demo_corpus.espeak import ESPEAK_RATE, Voice
from demo_corpus.noises import coloured_noise
from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.utils.errors import InputError

SHORTEST, LONGEST = 2.0, 6.0  # seconds of an utterance

ACCENTS = (
    "en-us",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-029",
    "en-us-nyc",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)
# Left out: whispers, robots, croaks, and every variant built on "klatt 6", whose sound
# depends on memory that espeak-ng does not initialise.
_FEMALE = """
f1 Annie linda f3 anika belinda f2 steph Alicia grandma f4 shelby Andrea f5 aunty
steph3 steph2
"""
_MALE = """
m1 Andy boris Mario m3 Nguyen paul m7 ed rob m5 Lee gustave m8 pablo travis m4 antonio
Michael Gene max m2 quincy sandro Denis marcelo norbert miguel m6 victor ian iven
Henrique edward grandpa Mike robert pedro Alex
"""
FEMALE, MALE = tuple(_FEMALE.split()), tuple(_MALE.split())
MOST_SPEAKERS = 2 * len(FEMALE) * len(ACCENTS)


class Speaker(NamedTuple):
    """Sex ("f" or "m") and voice of one speaker."""

    sex: str
    voice: Voice


class Channel(NamedTuple):
    """What one session does to the sound.

    high_pass, low_pass : corner frequencies, Hz
    tilt : dB per octave around 1 kHz
    level : RMS of the speech, dB relative to full scale
    snr : level of the speech above the noise floor, dB
    noise_slope : dB per octave of the noise floor
    """

    high_pass: float
    low_pass: float
    tilt: float
    level: float
    snr: float
    noise_slope: float


def make_speakers(count, rng):
    """Draw ``count`` distinct speakers, women and men in turn.

    No two share both variant and accent; up to 34 speakers no two share a variant.

    Arguments
    ---------
    count : int
        How many, at most ``MOST_SPEAKERS``.
    rng : np.random.Generator
        Decides accent, pitch and rate.

    Returns
    -------
    list of Speaker

    Raises
    ------
    InputError
        For more speakers than there are distinct voices.
    """
    if count > MOST_SPEAKERS:
        raise InputError(
            f"{count} voices asked for, expected at most {MOST_SPEAKERS} "
            f"(speakers and the voices of the babble together)"
        )
    speakers = []
    for index in range(count):
        sex, variants = (("f", FEMALE), ("m", MALE))[index % 2]
        turn, place = divmod(index // 2, len(variants))
        # 3 has no factor in common with 7 accents: neighbours differ, and so does
        # the same variant at every turn.
        accent = ACCENTS[(3 * place + turn) % len(ACCENTS)]
        voice = Voice(
            accent,
            variants[place],
            pitch=int(rng.integers(32, 69)),
            pitch_range=int(rng.integers(30, 76)),
            words_per_minute=int(rng.integers(145, 191)),
        )
        speakers.append(Speaker(sex, voice))
    return speakers


def make_channel(rng):
    """Draw the channel of one session."""
    return Channel(
        high_pass=rng.uniform(60, 180),
        low_pass=rng.uniform(3200, 7600),
        tilt=rng.uniform(-2.5, 2.5),
        level=rng.uniform(-32, -20),
        snr=rng.uniform(18, 40),
        noise_slope=rng.uniform(-6, 0),
    )


def vary(voice, rng, pitch, rate):
    """The same speaker in another mood.

    Arguments
    ---------
    voice : Voice
        The speaker.
    rng : np.random.Generator
        Decides how far.
    pitch : int
        Largest change of the pitch.
    rate : float
        Largest relative change of the speaking rate.
    """
    return voice._replace(
        pitch=voice.pitch + int(rng.integers(-pitch, pitch + 1)),
        words_per_minute=round(
            voice.words_per_minute * rng.uniform(1 - rate, 1 + rate)
        ),
    )


def speak(synthesiser, reader, voice, shortest, longest):
    """Speak sentences until one take lasts as long as asked for.

    Arguments
    ---------
    synthesiser : Synthesiser
        The speaker's own.
    reader : Reader
        Where sentences come from.
    voice : Voice
        The speaker.
    shortest, longest : float
        Seconds. A take which is too short is continued with one more sentence; one
        which is too long is thrown away.

    Returns
    -------
    np.ndarray
        float32, [T] at 16 kHz.
    """
    sentences = []
    while True:
        sentences.append(reader.next())
        take = synthesiser.say(" ".join(sentences), voice)
        seconds = len(take) / ESPEAK_RATE
        if seconds > longest:
            sentences.clear()
        elif seconds >= shortest:
            return resample_poly(take, 320, 441).astype(np.float32)


def record(speech, channel, rng):
    """Pass speech through the channel of a session.

    Arguments
    ---------
    speech : np.ndarray
        [T] at 16 kHz.
    channel : Channel
        The session.
    rng : np.random.Generator
        Decides the silence around the speech and the noise floor.

    Returns
    -------
    np.ndarray
        float32, up to 0.3 s longer than ``speech``, peak at most 0.95.
    """
    pad = rng.integers(0.03 * SAMPLE_RATE, 0.15 * SAMPLE_RATE, size=2)
    wav = np.pad(speech, tuple(pad))
    nyquist = SAMPLE_RATE / 2
    wav = sosfilt(butter(2, channel.high_pass / nyquist, "high", output="sos"), wav)
    wav = sosfilt(butter(4, channel.low_pass / nyquist, "low", output="sos"), wav)
    wav = _tilt(wav, channel.tilt)
    wav *= 10 ** (channel.level / 20) / np.sqrt(np.mean(wav**2))
    floor = coloured_noise(len(wav), channel.noise_slope, rng)
    wav += 10 ** ((channel.level - channel.snr) / 20) * floor
    wav *= min(1.0, 0.95 / np.abs(wav).max())
    return wav.astype(np.float32)


def _tilt(wav, slope):
    fast = next_fast_len(len(wav), real=True)
    frequency = np.fft.rfftfreq(fast, 1 / SAMPLE_RATE)
    octaves = np.log2(np.clip(frequency, 125, 8000) / 1000)
    gain = 10 ** (slope * octaves / 20)
    return np.fft.irfft(np.fft.rfft(wav, fast) * gain, fast)[: len(wav)]
