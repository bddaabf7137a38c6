"""What is done to one waveform: random crops, speed, noise, reverberation.

Speed s plays a recording s times as fast: y(t) = x(s·t). A tone of f Hz becomes one of
s·f Hz and T seconds become T/s (Ko et al. 2015). It is a resampling from s·16 kHz to
16 kHz, and makes what counts as another speaker.

Noise at a signal-to-noise ratio of r dB: x + a·n with a = √(Pₓ / (Pₙ·10^(r/10))), where
P is the mean power over the crop. Reverberation: x ∗ h with the peak of h moved to
sample 0, so that the output stays in time with the input, at the input's energy.
"""

import contextlib
import functools
from fractions import Fraction

import numpy as np
import torch
from scipy.fft import irfft, rfft
from torchaudio.transforms import Resample

from speechbrain_ext.data.audio import read_audio
from speechbrain_ext.errors import InputError

_SHORTEST_BLOCK = 1 << 13  # samples, of a convolution


def read_crop(path, frames, n, generator):
    """Read ``n`` samples from a random place of a recording.

    Arguments
    ---------
    path : str
        16 kHz; of several channels the mean is taken.
    frames : int
        Length of the recording in samples; only the crop is read.
    n : int
        Samples wanted. A shorter recording is repeated, from a random phase on.
    generator : np.random.Generator
        Drawn from once.

    Returns
    -------
    np.ndarray
        float32, [n].

    Raises
    ------
    InputError
        Where the recording is missing, corrupt, or shorter than ``frames``.
    """
    read = functools.partial(read_audio, path, average=True)
    return take_crop(read, frames, n, generator)


def take_crop(read, frames, n, generator):
    """What :func:`read_crop` does, on samples that lie anywhere.

    Arguments
    ---------
    read : callable
        ``(start, count)`` → float32 [count].
    frames, n, generator
        As there.
    """
    if frames >= n:
        return read(int(generator.integers(frames - n, endpoint=True)), n)
    wav = read(0, frames)
    phase = int(generator.integers(frames))
    return np.take(wav, np.arange(phase, phase + n), mode="wrap")


class SpeedPerturb:
    """Change of speed, by one of a few factors.

    Arguments
    ---------
    speeds : tuple of float
        The first is 1.0: the recordings as they are.

    Raises
    ------
    InputError
        Where the speeds are not such.
    """

    def __init__(self, speeds=(1.0, 0.9, 1.1)):
        speeds = tuple(float(speed) for speed in speeds)
        valid = speeds[:1] == (1.0,) and len(set(speeds)) == len(speeds)
        if not valid or not all(0.1 <= speed <= 10 for speed in speeds):
            raise InputError(
                f"speeds: {speeds}, expected 1.0 first, then others between 0.1 and "
                "10, each once"
            )
        self.speeds = speeds
        self._ratios = {
            speed: Fraction(speed).limit_denominator(100) for speed in speeds
        }
        # torchaudio takes 0.15 ms for 3 s on one core, scipy's resample_poly 0.45 ms.
        self._resamplers = {
            speed: Resample(ratio.numerator, ratio.denominator)
            for speed, ratio in self._ratios.items()
        }

    def source_length(self, n, speed):
        """Fewest samples that become at least ``n`` samples at this speed."""
        # The resampler gives ceil(m / speed) samples for m.
        ratio = self._ratios[speed]
        return (n - 1) * ratio.numerator // ratio.denominator + 1

    def apply(self, wav, speed):
        """Play at another speed.

        Arguments
        ---------
        wav : np.ndarray
            float32, [T].
        speed : float
            One of the speeds.

        Returns
        -------
        np.ndarray
            float32, [ceil(T / speed)].
        """
        if speed == 1.0:
            return wav
        with _one_thread():
            return self._resamplers[speed](torch.from_numpy(wav)).numpy()


@contextlib.contextmanager
def _one_thread():
    """As in a loader worker: with more threads, resampling rounds differently."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def add_noise(wav, noise, snr_db):
    """Add noise at a signal-to-noise ratio over the whole crop.

    Arguments
    ---------
    wav, noise : np.ndarray
        float32, [T] each.
    snr_db : float
        10·log10(Pₓ / Pₙ) of the result.

    Returns
    -------
    np.ndarray
        float32, [T]. Where either side is silent there is no such ratio, and the
        input comes back unchanged.
    """
    signal_power, noise_power = mean_power(wav), mean_power(noise)
    if signal_power == 0 or noise_power == 0:
        return wav
    scale = np.sqrt(signal_power / (noise_power * 10 ** (snr_db / 10)))
    return wav + np.float32(scale) * noise


def reverb(wav, response):
    """Convolve with a room response; keep time, length and energy of the input.

    Arguments
    ---------
    wav : np.ndarray
        float32, [T].
    response : np.ndarray
        float32, [K]; its absolute peak is taken for the direct path.

    Returns
    -------
    np.ndarray
        float32, [T]; silence stays silence.
    """
    peak = int(np.argmax(np.abs(response)))
    heard = response[: peak + len(wav)]
    wet = convolve(wav, heard)[peak : peak + len(wav)]
    wet_power = mean_power(wet)
    if wet_power == 0:
        return wet
    return wet * np.float32(np.sqrt(mean_power(wav) / wet_power))


def convolve(wav, response):
    """All of x ∗ h, block by block: overlap-add (Stockham 1966).

    Blocks of four times the response, a power of two: for 3 s and responses of 0.25,
    0.5 and 1 s 0.37, 0.84 and 0.97 ms, where scipy's fftconvolve takes 1.15, 1.20 and
    1.06 ms in one transform, and its oaconvolve, in blocks of its own choice, 1.11,
    1.17 and 1.05 ms.

    Arguments
    ---------
    wav : np.ndarray
        float32, [T].
    response : np.ndarray
        float32, [K].

    Returns
    -------
    np.ndarray
        float32, [T + K - 1].
    """
    total = len(wav) + len(response) - 1
    wanted = max(_SHORTEST_BLOCK, 4 << (len(response) - 1).bit_length())
    size = min(wanted, 1 << (total - 1).bit_length())
    step = size - len(response) + 1
    count = -(-len(wav) // step)
    blocks = np.zeros((count, step), dtype=np.float32)
    blocks.ravel()[: len(wav)] = wav
    parts = irfft(rfft(blocks, size) * rfft(response, size), size)
    result = np.zeros((count - 1) * step + size, dtype=np.float32)
    for number, part in enumerate(parts):
        result[number * step : number * step + size] += part
    return result[:total]


def mean_power(wav):
    """Mean of the squares of [T] samples, in float64."""
    return float(np.mean(np.square(wav, dtype=np.float64)))
