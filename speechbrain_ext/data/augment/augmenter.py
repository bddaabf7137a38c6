"""Chains of effects for training crops, drawn anew for every utterance.

Noise, music and babble come from MUSAN (Snyder et al. 2015), room responses from
RIRS_NOISES (Ko et al. 2017); microphones and lines are made up. The arithmetic is in
``waveform.py``. Samples beyond ±1 stay: clipping would distort, and the encoder's
features are normalised in level.

An effect is any callable ``(wav, generator)`` → wav: float32 [T] at 16 kHz both, never
changed in place, all random numbers from the ``np.random.Generator`` it gets. It is a
line of YAML, with a chain that names it; one of your own is a class, or a function::

    augmenter: !name:speechbrain_ext.data.augment.Augmenter
        chains: {none: 1, noise: 1, codec+noise: 1}
        effects:
            noise: !name:speechbrain_ext.data.augment.Musan {folder: /data/musan}
            codec: !name:speechbrain_ext.data.augment.Codec {codecs: [mp3, opus]}
            other: !name:my_effects.Other {strength: 2}

Optionally it has an attribute ``sounds``, the
:class:`~speechbrain_ext.data.augment.noises.NoiseFiles` that it draws from. The
Augmenter replaces it by a cache of the same files in memory: equal samples, sooner.
"""

import functools
import inspect
from pathlib import Path

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from scipy.fft import irfft, next_fast_len, rfft

from speechbrain_ext.data.augment.noises import CachedNoiseFiles, NoiseFiles
from speechbrain_ext.data.augment.waveform import add_noise, mean_power, reverb
from speechbrain_ext.utils.errors import InputError, check_folder

__all__ = ["Augmenter", "Channel", "Musan", "RoomResponses", "SpecAugment"]

RATE = 16000  # Hz
TAPS = 512  # of a channel: steps of 31 Hz
TOP_MEL = 2595 * np.log10(1 + RATE / 2 / 700)
STOPPED_DB = 60.0  # what is outside of a band
SNR_DB = {"noise": (5, 20), "music": (5, 20), "babble": (15, 25)}


class Musan:
    """Noise, music and babble from a folder in MUSAN's layout.

    Arguments
    ---------
    folder : str or Path
        Holds ``noise``, ``music`` and ``speech``, with 16 kHz mono wav files anywhere
        below.
    snr_db : dict
        Lowest and highest signal-to-noise ratio of each category to use: ``noise``,
        ``music``, ``babble`` (which needs ``speech``).
    babble_speakers : tuple of int
        Fewest and most recordings summed into one babble.

    Raises
    ------
    InputError
        Where a folder in use has no wav file, or a range is out of order.
    """

    folders = {"noise": "noise", "music": "music", "babble": "speech"}

    def __init__(
        self,
        folder,
        snr_db: dict[str, tuple[float, float]] = SNR_DB,
        babble_speakers: tuple[int, int] = (3, 8),
    ):
        check_folder(folder)
        unknown = sorted(set(snr_db) - set(self.folders))
        if unknown or not snr_db:
            raise InputError(
                f"snr_db: categories {sorted(snr_db)}, expected some of "
                f"{sorted(self.folders)}"
            )
        for name, (low, high) in snr_db.items():
            if not low <= high:
                raise InputError(f"snr_db of {name}: {(low, high)}, expected low, high")
        if not 1 <= babble_speakers[0] <= babble_speakers[1]:
            raise InputError(
                f"babble_speakers: {tuple(babble_speakers)}, expected fewest, most"
            )
        self.snr_db = dict(snr_db)
        self.babble_speakers = tuple(babble_speakers)
        # Sorted: a draw means the same file on every machine.
        self.categories = sorted(self.snr_db)
        self.files = {
            category: _wavs_below(Path(folder) / self.folders[category])
            for category in self.categories
        }
        self.sounds = NoiseFiles({f for files in self.files.values() for f in files})

    def __call__(self, wav, generator):
        """Add one drawn noise at one drawn ratio: [T] → [T]."""
        noise, snr_db, _ = self.draw(len(wav), generator)
        return add_noise(wav, noise, snr_db)

    def draw(self, n, generator):
        """Draw ``n`` samples to add: (noise float32 [n], ratio in dB, category)."""
        category = self.categories[generator.integers(len(self.categories))]
        snr_db = generator.uniform(*self.snr_db[category])
        if category == "babble":
            noise = self._babble(n, generator)
        else:
            files = self.files[category]
            path = files[generator.integers(len(files))]
            noise = self.sounds.crop(path, n, generator)
        return noise, snr_db, category

    def _babble(self, n, generator):
        files = self.files["babble"]
        count = generator.integers(*self.babble_speakers, endpoint=True)
        # Distinct recordings as long as there are enough of them.
        chosen = generator.choice(len(files), count, replace=count > len(files))
        babble = np.zeros(n, dtype=np.float32)
        for index in chosen:
            voice = self.sounds.crop(files[index], n, generator)
            power = mean_power(voice)
            if power > 0:
                babble += voice / np.float32(np.sqrt(power))
        return babble


class RoomResponses:
    """Room impulse responses from a folder in the layout of RIRS_NOISES.

    Uses every file that a ``rir_list`` names and every wav file below
    ``simulated_rirs``. The isotropic noises beside the real responses are in no
    ``rir_list`` and are never used.

    Arguments
    ---------
    folder : str or Path
        RIRS_NOISES itself, or the folder that holds it. The paths in a ``rir_list``
        begin with ``RIRS_NOISES/``.

    Raises
    ------
    InputError
        Where there is no response.
    """

    def __init__(self, folder):
        folder = check_folder(folder)
        if (folder / "RIRS_NOISES").is_dir():
            folder = folder / "RIRS_NOISES"
        paths = set(map(str, folder.glob("simulated_rirs/**/*.wav")))
        for listing in sorted(folder.rglob("rir_list")):
            paths.update(_listed(listing, folder))
        if not paths:
            raise InputError(
                f"{folder}: no room response, expected a rir_list or "
                "simulated_rirs/**/*.wav"
            )
        self.files = sorted(paths)
        self.sounds = NoiseFiles(responses=self.files)

    def __call__(self, wav, generator):
        """Put the utterance into one drawn room: [T] → [T]."""
        return reverb(wav, self.draw(generator))

    def draw(self, generator):
        """Draw a response, and one of its channels: float32 [K]."""
        path = self.files[generator.integers(len(self.files))]
        return self.sounds.response(path, generator)


class Channel:
    """A microphone and a line: uneven gain over frequency, and often a narrower band.

    The gain in dB is drawn at points at equal distances on the mel scale, and is linear
    between them. A line has a band in ``band_share`` of the draws. The response has
    linear phase, so that time and length stay, and energy does.

    Arguments
    ---------
    gain_db : float
        Each point's gain is between −``gain_db`` and ``gain_db``.
    points : int
        Of the gain, from 0 to 8 kHz.
    low_hz, high_hz : tuple of float
        Lowest and highest lower edge of a band, and of its upper edge.
    band_share : float
        Between 0 and 1.

    Raises
    ------
    InputError
        Edges out of order or beyond 8 kHz, fewer than 2 points, another share.
    """

    def __init__(
        self,
        gain_db: NonNegativeFloat = 8.0,
        points: PositiveInt = 8,
        low_hz: tuple[float, float] = (50.0, 300.0),
        high_hz: tuple[float, float] = (3400.0, 8000.0),
        band_share: NonNegativeFloat = 0.5,
    ):
        edges = [0.0, *low_hz, *high_hz, RATE / 2]
        if edges != sorted(edges) or low_hz[1] == high_hz[0]:
            raise InputError(
                f"low_hz {tuple(low_hz)}, high_hz {tuple(high_hz)}, expected edges "
                f"from 0 to {RATE // 2} Hz, in order"
            )
        if points < 2 or band_share > 1:
            raise InputError(
                f"points {points}, band_share {band_share}, expected 2 or more, and 0 "
                "to 1"
            )
        self.gain_db, self.band_share = gain_db, band_share
        self.low_hz, self.high_hz = tuple(low_hz), tuple(high_hz)
        self.places = _hertz(np.linspace(0, TOP_MEL, points))

    def __call__(self, wav, generator):
        """Send the utterance through one drawn channel: [T] → [T]."""
        return reverb(wav, self.draw(generator))

    def draw(self, generator):
        """Draw a channel → its response, float32 [TAPS + 1], symmetric."""
        gains = generator.uniform(-self.gain_db, self.gain_db, len(self.places))
        frequencies = np.fft.rfftfreq(TAPS, 1 / RATE)
        gain = np.interp(frequencies, self.places, gains)
        if generator.random() < self.band_share:
            low, high = (generator.uniform(*e) for e in (self.low_hz, self.high_hz))
            gain[(frequencies < low) | (frequencies > high)] = -STOPPED_DB
        response = np.fft.irfft(10 ** (gain / 20))
        response = np.roll(response, TAPS // 2)
        response = np.append(response, response[0]) * np.hanning(TAPS + 1)
        return response.astype(np.float32)


class SpecAugment:
    """Bands and moments covered by noise: SpecAugment on the waveform.

    Park et al. 2019 put the mean in their place in features; this suits every front
    end. The noise has the spectrum of the crop and a phase drawn anew, so nothing of
    what was said is left. Zeros would not do: between the bins of a band, and in the
    logarithm, the words that leak into it are as plain as before.

    Arguments
    ---------
    bands, moments : int
        How many are drawn; they may overlap.
    band_mel : float
        Widest band, in mel; 8 kHz are at 2,840. Widths are uniform from 0.
    moment_seconds : float
        Longest moment; a fifth of the crop at most. Lengths are uniform from 0.
    below_db : float
        So much the noise is below what it covers, on average over the crop.

    Raises
    ------
    InputError
        A number below 0, or a band wider than the spectrum.
    """

    def __init__(
        self,
        bands: NonNegativeInt = 2,
        band_mel: NonNegativeFloat = 400.0,
        moments: NonNegativeInt = 2,
        moment_seconds: NonNegativeFloat = 0.25,
        below_db: NonNegativeFloat = 15.0,
    ):
        numbers = bands, band_mel, moments, moment_seconds, below_db
        if band_mel > TOP_MEL or not all(0 <= n < np.inf for n in numbers):
            raise InputError(
                f"SpecAugment{numbers}, expected numbers of 0 or more, and a band_mel "
                f"of {TOP_MEL:.0f} at most"
            )
        self.bands, self.band_mel = bands, band_mel
        self.moments, self.moment_seconds = moments, moment_seconds
        self.gain = np.float32(10 ** (-below_db / 20))

    def __call__(self, wav, generator):
        """Cover some of it: [T] → [T]."""
        # what rings at one end must not reach the other
        size = next_fast_len(len(wav) + TAPS, real=True)
        spectrum = rfft(wav, size)
        phase = generator.random(len(spectrum), dtype=np.float32)
        noise = self.gain * np.abs(spectrum) * np.exp(2j * np.pi * phase)
        for _ in range(self.bands):
            width = generator.uniform(0, self.band_mel)
            low = generator.uniform(0, TOP_MEL - width)
            edges = _hertz(np.array([low, low + width])) * (size / RATE)
            band = slice(*np.ceil(edges).astype(int))
            spectrum[band] = noise[band]
        wav, noise = (irfft(s, size)[: len(wav)] for s in (spectrum, noise))
        longest = min(self.moment_seconds * RATE, len(wav) / 5)
        for _ in range(self.moments):
            length = int(generator.uniform(0, longest))
            start = generator.integers(len(wav) - length + 1)
            wav[start : start + length] = noise[start : start + length]
        return wav.astype(np.float32)


class Augmenter:
    """Draw one chain of effects per utterance and apply its steps in order.

    Arguments
    ---------
    chains : dict
        Weight of each chain: ``none``, or steps joined by ``+`` such as ``noise``,
        ``reverb``, ``reverb+noise`` (a dry noise on a wet voice).
    effects : dict
        Of each step: a callable ``(wav, generator)`` → wav, or a factory, which is
        called without arguments and returns one. A factory is called only where a
        chain of non-zero weight has the step, so only then are its folders read.
    noise_cache_mib : float
        Memory of each machine for sound files that effects draw from, the shortest
        first; its processes share it. Samples are equal. 0: all from the disk.

    Raises
    ------
    InputError
        For a chain with an unknown step, weights that cannot be drawn by, or an
        effect that is none.
    """

    def __init__(
        self, chains: dict, effects: dict, noise_cache_mib: NonNegativeFloat = 2048
    ):
        for name, weight in chains.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise InputError(
                    f"chains: {weight} for {name!r}, expected a weight as in "
                    "{none: 1, noise: 2}, with a blank after the colon"
                )
        weights = np.array([float(weight) for weight in chains.values()])
        if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            raise InputError(
                f"chains: weights {dict(chains)}, expected at least one above 0 and "
                "none below"
            )
        self.chains = [_steps(name, effects) for name in chains]
        self.probabilities = weights / weights.sum()
        used = {s for steps, w in zip(self.chains, weights) if w > 0 for s in steps}
        self.effects = {s: _make(s, effects[s]) for s in effects if s in used}
        if noise_cache_mib:
            self._cache(noise_cache_mib)

    def __call__(self, wav, generator):
        """Augment one utterance: float32 [T] → float32 [T]."""
        chain = generator.choice(len(self.chains), p=self.probabilities)
        for step in self.chains[chain]:
            wav = self.effects[step](wav, generator)
        return wav

    def _cache(self, limit_mib):
        """Decode into memory what the effects draw from, up to a limit."""
        drawing = [
            effect
            for effect in self.effects.values()
            if isinstance(getattr(effect, "sounds", None), NoiseFiles)
        ]
        if not drawing:
            return
        noises = sorted({path for e in drawing for path in e.sounds.noises})
        responses = sorted({path for e in drawing for path in e.sounds.responses})
        cached = CachedNoiseFiles(noises, responses, limit_mib)
        for effect in drawing:
            effect.sounds = cached


def _steps(name, effects):
    steps = () if name == "none" else tuple(name.split("+"))
    unknown = [step for step in steps if step not in effects]
    if unknown:
        raise InputError(
            f"chain {name!r}: no effect {unknown[0]!r}, expected none, or steps joined "
            f"by +, of {', '.join(effects) or 'no effects'}"
        )
    return steps


def _make(step, effect):
    """The effect of a step: itself, or what its factory returns."""
    maker = effect.func if isinstance(effect, functools.partial) else effect
    missing, variadic = _signature(effect)
    if isinstance(maker, type):  # a class, or !name: of one
        if missing:
            raise InputError(f"effects: {step!r}, {maker.__name__}: {missing}")
        effect = effect()
    elif missing is None and not variadic:
        effect = effect()
    if not callable(effect):
        raise InputError(
            f"effects: {effect!r} for {step!r}, expected a callable (wav, generator), "
            "or a factory (!name:) that returns one"
        )
    return effect


def _signature(function):
    """(why it cannot be called without arguments, or None; whether it has *args)."""
    try:
        signature = inspect.signature(function)
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        signature.bind()
    except ValueError:  # of a builtin: unknown
        return None, True
    except TypeError as error:
        return str(error), False
    return None, inspect.Parameter.VAR_POSITIONAL in kinds


def _hertz(mel):
    """Of mel(f) = 2595 log10(1 + f / 700)."""
    return 700 * (10 ** (mel / 2595) - 1)


def _wavs_below(folder):
    files = sorted(map(str, folder.rglob("*.wav")))
    if not files:
        raise InputError(f"{folder}: no wav file, expected some (MUSAN's layout)")
    return files


def _listed(listing, folder):
    """Paths of a rir_list: the last word of each line, ``RIRS_NOISES/...``."""
    for number, line in enumerate(listing.read_text("utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        top, *below = Path(words[-1]).parts
        if top != "RIRS_NOISES" or not below:
            raise InputError(
                f"{listing}, line {number}: {words[-1]!r}, expected RIRS_NOISES/..."
            )
        yield str(folder.joinpath(*below))
