"""RawBoost: what telephony does to a waveform, made up without any recording of noise.

Tak et al., "RawBoost: a raw data boosting and augmentation method applied to automatic
speaker verification anti-spoofing", ICASSP 2022 (arXiv:2111.04433), section 3::

    1   y = Σ_k h_k ∗ x^k                convolutive, linear (k = 1) and not (k > 1)
    2   y_t = x_t + g x_t u_t v_t        impulsive: at a few percent of all t
    3   y = x + a (h ∗ n)                stationary: coloured white noise n at an SNR

h_k is a cascade of band stops at drawn places, its highest gain drawn in dB, that of
higher orders lower; u and v are uniform in ±1. The mean is taken from 1; a peak beyond
±1 is brought back to 1. The other algorithms are combinations::

    4   1, 2, 3 in series      6   1, 3 in series      8   1 and 2 in parallel, added
    5   1, 2 in series         7   2, 3 in series

Each band stop is the windowed ideal one (Hamming; gain 1 at 0 Hz). Here all filters are
made at once, centred at sample 0, where their spectra are real: a cascade is a product,
the peak of its gain is at hand, and time stays.
"""

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt
from scipy.fft import irfft, next_fast_len, rfft

from speechbrain_ext.data.augment.waveform import add_noise
from speechbrain_ext.utils.errors import InputError

NYQUIST = 8000.0  # Hz
GAIN_POINTS = 512  # up to there, at which the highest gain is looked for
BLOCK = 2048  # samples of a transform, or more where filters are long
SERIES = {
    1: ("convolve",),
    2: ("impulses",),
    3: ("noise",),
    4: ("convolve", "impulses", "noise"),
    5: ("convolve", "impulses"),
    6: ("convolve", "noise"),
    7: ("impulses", "noise"),
}
PARALLEL = 8


class RawBoost:
    """One of the eight algorithms, with drawn settings.

    Arguments
    ---------
    algorithm : int
        1 to 8. Common practice is 5 for telephony (ASVspoof 2021 LA), 3 for
        compression (2021 DF).
    bands : int
        Band stops of a filter.
    centre_hz, width_hz : tuple of float
        Lowest and highest, of a band stop.
    taps : tuple of int
        Fewest and most, of a band stop; even numbers become odd.
    gain_db : tuple of float
        Lowest and highest, of a filter's highest gain.
    orders : int
        Of the convolutive noise: how many powers of the waveform.
    lower_db : tuple of float
        By so much the lowest and the highest gain of higher powers are lower.
    impulse_percent, impulse_gain : float
        At most so many percent of the samples get an impulse, of such a gain.
    snr_db : tuple of float
        Lowest and highest, of the stationary noise.

    Raises
    ------
    InputError
        Another algorithm; a setting out of range.
    """

    def __init__(
        self,
        algorithm: PositiveInt = 5,
        bands: PositiveInt = 5,
        centre_hz: tuple[float, float] = (20.0, 8000.0),
        width_hz: tuple[float, float] = (100.0, 1000.0),
        taps: tuple[int, int] = (10, 100),
        gain_db: tuple[float, float] = (0.0, 0.0),
        orders: PositiveInt = 5,
        lower_db: tuple[float, float] = (5.0, 20.0),
        impulse_percent: NonNegativeFloat = 10.0,
        impulse_gain: NonNegativeFloat = 2.0,
        snr_db: tuple[float, float] = (10.0, 40.0),
    ):
        if algorithm not in (*SERIES, PARALLEL):
            raise InputError(f"algorithm: {algorithm!r}, expected 1 to {PARALLEL}")
        ranges = {
            "centre_hz": (centre_hz, 0, NYQUIST),
            "width_hz": (width_hz, 0, NYQUIST),
            "taps": (taps, 3, 10_000),
            "gain_db": (gain_db, -np.inf, np.inf),
            "snr_db": (snr_db, -np.inf, np.inf),
        }
        for name, ((low, high), least, most) in ranges.items():
            if not least <= low <= high <= most:
                raise InputError(
                    f"{name}: {(low, high)}, expected low, high from {least:g} to "
                    f"{most:g}"
                )
        if impulse_percent > 100:
            raise InputError(
                f"impulse_percent: {impulse_percent}, expected 100 at most"
            )
        self.algorithm, self.bands, self.orders = algorithm, bands, orders
        self.centre_hz, self.width_hz, self.taps = centre_hz, width_hz, taps
        self.gain_db, self.lower_db, self.snr_db = gain_db, lower_db, snr_db
        self.impulse_percent, self.impulse_gain = impulse_percent, impulse_gain

    def __call__(self, wav, generator):
        """Boost one utterance: [T] → [T]."""
        if self.algorithm == PARALLEL:
            both = self.convolve(wav, generator) + self.impulses(wav, generator)
            return _within_one(both)
        for step in SERIES[self.algorithm]:
            wav = getattr(self, step)(wav, generator)
        return wav

    def convolve(self, wav, generator):
        """Linear and non-linear convolutive noise: [T] → [T]."""
        powers = np.empty((self.orders, len(wav)), dtype=np.float32)
        powers[0] = wav
        for order in range(1, self.orders):
            np.multiply(powers[order - 1], wav, out=powers[order])
        wet = filtered_sum(powers, self.draw_filters(generator, self.orders))
        return _within_one(wet - wet.mean(dtype=np.float64).astype(np.float32))

    def impulses(self, wav, generator):
        """Impulsive noise that depends on the signal: [T] → [T]."""
        share = generator.uniform(0, self.impulse_percent) / 100
        count = int(share * len(wav))
        places = generator.choice(len(wav), count, replace=False, shuffle=False)
        gains = generator.uniform(-1, 1, (2, count)).prod(axis=0)
        boosted = wav.copy()
        boosted[places] *= (1 + self.impulse_gain * gains).astype(np.float32)
        return _within_one(boosted)

    def noise(self, wav, generator):
        """Stationary noise that does not depend on the signal: [T] → [T]."""
        white = generator.standard_normal(len(wav), dtype=np.float32)
        coloured = filtered_sum(white[None], self.draw_filters(generator, 1))
        return add_noise(wav, coloured, generator.uniform(*self.snr_db))

    def draw_filters(self, generator, count):
        """Draw filters, the first linear, others lower → [count, K], K odd, centred."""
        size = count, self.bands
        centre = generator.uniform(*self.centre_hz, size)
        width = generator.uniform(*self.width_hz, size)
        taps = generator.integers(*self.taps, size, endpoint=True) | 1
        low, high = (np.full(count, float(gain)) for gain in self.gain_db)
        low[1:] -= self.lower_db[0]
        high[1:] -= self.lower_db[1]
        gain_db = low + (high - low) * generator.random(count)
        return cascades(centre, width, taps, gain_db)


def cascades(centre, width, taps, gain_db):
    """Cascades of band stops.

    Arguments
    ---------
    centre, width : np.ndarray
        Hz, [F, B].
    taps : np.ndarray
        Odd, [F, B].
    gain_db : np.ndarray
        Highest gain of each cascade, [F].

    Returns
    -------
    np.ndarray
        float32 [F, K], symmetric around the middle.
    """
    low = np.maximum(centre - width / 2, 1e-3) / NYQUIST
    high = np.minimum(centre + width / 2, NYQUIST - 1e-3) / NYQUIST
    half = int(taps.max()) // 2
    place = np.arange(half + 1)  # of a symmetric response the half is enough

    def low_pass(edge):
        return edge[..., None] * np.sinc(edge[..., None] * place)

    # a band stop lets everything through but what lies between its edges
    stop = low_pass(low) - low_pass(high) + (place == 0)
    reach = (taps // 2)[..., None]
    stop *= 0.54 + 0.46 * np.cos(np.pi * place / reach)
    stop[place > reach] = 0
    total = half * stop.shape[-2]  # samples to either side of the cascade's middle
    size = next_fast_len(max(2 * total + 1, 2 * GAIN_POINTS), real=True)
    both = np.zeros((*stop.shape[:-1], size))
    both[..., : half + 1] = stop
    both[..., size - half :] = stop[..., :0:-1]
    spectrum = rfft(both).real  # [F, B, size // 2 + 1]
    spectrum = (spectrum / spectrum[..., :1]).prod(axis=-2)
    highest = np.abs(spectrum).max(axis=-1)
    spectrum *= (10 ** (gain_db / 20) / highest)[:, None]
    response = irfft(spectrum, size)
    return np.roll(response, total, axis=-1)[:, : 2 * total + 1].astype(np.float32)


def filtered_sum(wavs, responses):
    """Σ h_k ∗ x_k, in time: [F, T], [F, K] → float32 [T]; K odd, centred.

    Block by block (overlap-add), all at once.
    """
    length, taps = wavs.shape[1], responses.shape[1]
    size = max(BLOCK, next_fast_len(2 * taps, real=True))
    step = size - taps + 1
    count = -(-length // step)
    blocks = np.zeros((len(wavs), count * step), dtype=np.float32)
    blocks[:, :length] = wavs
    spectra = rfft(blocks.reshape(len(wavs), count, step), size)
    spectra *= rfft(responses, size)[:, None]
    parts = irfft(spectra.sum(axis=0), size)
    whole = np.zeros((count + 1) * step + size, dtype=np.float32)
    # a part reaches over the next ones by K - 1 samples
    for number, part in enumerate(parts):
        whole[number * step : number * step + size] += part
    begin = taps // 2
    return whole[begin : begin + length]


def _within_one(wav):
    """A peak beyond ±1 becomes 1."""
    peak = np.abs(wav).max(initial=0)
    return wav / peak if peak > 1 else wav
