"""Which channel of a recording is taken, and what is said of the others.

The mean m of C channels x_c is taken unless a caller chooses. It is wrong in two cases,
of which there are warnings with figures.

Channels differ, as those of a call with a person in each: the correlation of channel c
with the loudest one, x_r, is below 0.3 at every lag l up to 10 ms, which is the way
between two microphones of one room, while c is at most 25 dB below it::

    ρ = max_l |Σ_t x_r(t) x_c(t + l)| / √(Σ x_r² · Σ x_c²)

Channels nearly cancel, as microphones of which one has its phase inverted: the mean has
lost 6 dB more than the 10 log10 C of channels that have nothing in common::

    L = 10 log10 (1/C Σ_c Σ_t x_c² / Σ_t m²)

``best`` is the channel with the highest estimate of its signal-to-noise ratio in the
band of speech, 300 to 3400 Hz. Of the energies of its frames of 32 ms, N is the 10th
percentile, S their mean less N, and the estimate S_c / (N_c + max S / 1000): a channel
30 dB below the loudest voice, such as its crosstalk, is not better for being clean. Of
equal ones the first is taken. It is chosen once for a whole recording or segment.
"""

import logging
import math
import threading
from collections import Counter

import numpy as np
import scipy.fft

from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)

NAMES = {"left": 1, "right": 2}
RULES = ("mean", "best")
CHOICES = "left, right, a number from 1 on, mean or best"

DIFFERENT, LAG_SECONDS, LAG_RATE = 0.3, 0.01, 8000
AUDIBLE = 10**-2.5  # of the energy of the loudest channel
CANCELLED_DB = 6.0
BAND, FRAME_SECONDS, BLOCK_SECONDS = (300, 3400), 0.032, 30
NOISE_PERCENTILE, CROSSTALK = 10, 1e-3


def checked_channel(channel):
    """``left``, ``right``, a number from 1 on, ``mean``, ``best`` → int or rule.

    Raises
    ------
    InputError
        Anything else.
    """
    chosen = channel
    if isinstance(chosen, str):
        chosen = int(chosen) if chosen.isdecimal() else NAMES.get(chosen, chosen)
        if chosen in RULES:
            return chosen
    number = isinstance(chosen, (int, np.integer)) and not isinstance(chosen, bool)
    if not number or chosen < 1:
        raise InputError(f"channel {channel!r}, expected {CHOICES}")
    return int(chosen)


def check_number(channel, channels, name):
    """InputError where a recording has no such channel."""
    if channel not in RULES and channel > channels:
        raise InputError(
            f"{name}: channel {channel} of {channels}, expected one of those it has, "
            "counted from 1"
        )


def best_channel(recording):
    """The channel with the highest estimate of its ratio of speech to noise.

    Arguments
    ---------
    recording : Recording
        Of several channels.

    Returns
    -------
    channel : int
        The first is 1.
    ratios : np.ndarray
        Estimates of all channels [C], in dB.
    """
    energies, rate = [], recording.sample_rate
    block = round(BLOCK_SECONDS * rate)
    for start in range(0, recording.frames, block):
        is_last = start + block >= recording.frames
        wav, _ = recording.read(start, -1 if is_last else block)
        energies.append(_speech_energies(wav, rate))
    energies = np.concatenate(energies)
    noise = np.percentile(energies, NOISE_PERCENTILE, axis=0)
    signal = energies.mean(axis=0) - noise
    floor = noise + CROSSTALK * signal.max()
    ratios = np.divide(signal, floor, out=np.zeros_like(signal), where=floor > 0)
    return int(ratios.argmax()) + 1, 10 * np.log10(ratios.clip(CROSSTALK))


def _speech_energies(wav, rate):
    """[T, C] → energies of frames in the band of speech, float64 [T', C]."""
    size = round(FRAME_SECONDS * rate)
    count = len(wav) // size
    frames = wav[: count * size].reshape(count, size, -1)
    spectra = scipy.fft.rfft(frames * np.hanning(size)[:, None], axis=1)
    frequencies = np.arange(spectra.shape[1]) * rate / size
    band = (frequencies >= BAND[0]) & (frequencies <= BAND[1])
    return (np.abs(spectra[:, band]) ** 2).sum(axis=1)


class ChannelFigures:
    """How the channels of one recording go together, over all that was read of it.

    Attributes
    ----------
    ratios : np.ndarray or None
        Of :func:`best_channel`, where it chose.
    """

    def __init__(self):
        self.ratios = None
        self._lock = threading.Lock()  # threads read windows of one recording
        self._reference = None
        self._energies = self._peaks = self._weights = self._mean_energy = 0.0

    def add(self, wav, rate):
        """Count [C, T] samples at ``rate`` Hz."""
        wav = wav - wav.mean(axis=1, keepdims=True)
        products = (wav @ wav.T).astype(np.float64)
        mean = wav.mean(axis=0)
        energies = products.diagonal()
        with self._lock:
            if self._reference is None and energies.any():
                self._reference = int(energies.argmax())
            reference = self._reference or 0
        weights = np.sqrt(energies[reference] * energies)
        peaks = np.abs(products[reference])  # at no lag; what follows cannot be less
        audible = energies >= AUDIBLE * energies[reference]
        for other in np.flatnonzero(audible & (peaks < DIFFERENT * weights)):
            peaks[other] = weights[other] * _peak(wav[[reference, other]], rate)
        with self._lock:
            self._energies = self._energies + energies
            self._mean_energy += float(mean @ mean)
            self._peaks, self._weights = self._peaks + peaks, self._weights + weights

    @property
    def difference(self):
        """(correlation, a channel, another) of the two that differ most, or None."""
        if self._reference is None:
            return None
        energies = self._energies
        rho = np.divide(
            *(self._peaks, self._weights),
            out=np.ones(len(energies)),
            where=self._weights > 0,
        )
        audible = energies >= AUDIBLE * energies.max()
        rho[~audible | ~audible[self._reference]] = 1.0
        other = int(rho.argmin())
        pair = sorted((self._reference + 1, other + 1))
        return (float(rho[other]), *pair) if rho[other] < DIFFERENT else None

    @property
    def lost_db(self):
        """What the mean has lost, in dB; None where it is no more than it must be."""
        if self._reference is None:
            return None
        channels = len(self._energies)
        wanted = self._energies.mean()
        if self._mean_energy <= 1e-12 * wanted:
            return math.inf
        lost = 10 * math.log10(wanted / self._mean_energy)
        return lost if lost >= CANCELLED_DB + 10 * math.log10(channels) else None


def _peak(pair, rate):
    """[2, T] → the highest correlation within some lag, in [0, 1]."""
    step = max(rate // LAG_RATE, 1)
    count = pair.shape[1] // step
    pair = sum(pair[:, first : count * step : step] for first in range(step))
    lags = round(LAG_SECONDS * rate / step)
    size = scipy.fft.next_fast_len(count + lags, real=True)
    spectra = scipy.fft.rfft(pair, size)
    products = scipy.fft.irfft(spectra[0] * spectra[1].conj(), size)
    norms = np.sqrt(np.prod((pair.astype(np.float64) ** 2).sum(axis=1)))
    peak = np.abs(np.r_[products[: lags + 1], products[-lags:]]).max()
    return float(peak / norms) if norms > 0 else 0.0


def warn_of_channels(recordings, total):
    """One warning of each kind for all recordings of several channels, of ``total``."""
    read = [recording for recording in recordings if recording.figures]
    chosen = [recording for recording in read if recording.figures.ratios is not None]
    if chosen:
        counts = sorted(Counter(recording.channel for recording in chosen).items())
        logger.warning(
            "%d of %d recordings: the best of their channels is taken, %s; first %s, "
            "channel %d (signal-to-noise ratios %s dB)",
            *(len(chosen), total),
            ", ".join(
                f"{number} times channel {channel}" for channel, number in counts
            ),
            *(chosen[0].path, chosen[0].channel),
            ", ".join(f"{ratio:.1f}" for ratio in chosen[0].figures.ratios),
        )
    differing = [(r, found) for r in read if (found := r.figures.difference)]
    if differing:
        first, (correlation, *pair) = differing[0]
        logger.warning(
            "%d of %d recordings have channels that differ, as of a call with a person "
            "in each; choose one by channel: %s; first %s, correlation %.2f of "
            "channels %d and %d",
            *(len(differing), total, CHOICES, first.path, correlation, *pair),
        )
    means = [recording for recording in read if recording.channel == "mean"]
    cancelling = [(r, lost) for r in means if (lost := r.figures.lost_db)]
    if cancelling:
        first, lost = cancelling[0]
        logger.warning(
            "%d of %d recordings have channels that nearly cancel in their mean; "
            "choose one by channel: %s; first %s, %.1f dB lost of %d channels",
            *(len(cancelling), total, CHOICES, first.path, lost, first.channels),
        )
