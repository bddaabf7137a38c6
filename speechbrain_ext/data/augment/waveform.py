"""Arithmetic on one waveform: random crops, speed, noise, reverberation.

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
from scipy.fft import irfft, next_fast_len, rfft
from torchaudio.transforms import Resample

from speechbrain_ext.data.audio import read_audio
from speechbrain_ext.utils.errors import InputError

_BLOCKS = 4  # of a convolution


def read_crop(path, frames, n, generator):
    """Samples from a random place of a 16 kHz recording: float32 [n].

    Of several channels the mean is taken. Only the crop of its ``frames`` samples is
    read; a shorter recording is repeated, from a random phase on. The generator is
    drawn from once. InputError: missing, corrupt, or shorter than ``frames``.
    """
    read = functools.partial(read_audio, path, average=True)
    return take_crop(read, frames, n, generator)


def take_crop(read, frames, n, generator):
    """A crop as by :func:`read_crop`; ``read``: (start, count) → float32 [count]."""
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
        Where the first is not 1.0, or one is repeated or out of range.
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
        self._filters = {
            speed: Resample(ratio.numerator, ratio.denominator)
            for speed, ratio in self._ratios.items()
            if speed != 1.0
        }

    def source_length(self, n, speed):
        """Fewest samples that become at least ``n`` samples at this speed."""
        # The resampler gives ceil(m / speed) samples for m.
        ratio = self._ratios[speed]
        return (n - 1) * ratio.numerator // ratio.denominator + 1

    def apply(self, wav, speed):
        """Play at one of the speeds: float32 [T] → float32 [ceil(T / speed)].

        torchaudio's resampling. Its convolution has a stride, so it is a product of two
        matrices: 0.07 ms for 3 s on one core in place of 0.16 ms.
        """
        if speed == 1.0:
            return wav
        ratio, resample = self._ratios[speed], self._filters[speed]
        step, kernel = ratio.numerator, resample.kernel[:, 0]  # [new, K]
        padded = np.zeros(len(wav) + 2 * resample.width + step, dtype=np.float32)
        padded[resample.width : resample.width + len(wav)] = wav
        frames = torch.from_numpy(padded).unfold(0, kernel.shape[1], step)
        with _one_thread():
            played = torch.mm(frames, kernel.t())
        length = -(-len(wav) * ratio.denominator // step)
        return played.flatten()[:length].numpy()


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
    """Add noise at ``snr_db`` = 10·log10(Pₓ / Pₙ) over the whole crop: float32 [T].

    Where either side is silent there is no such ratio, and the input comes back
    unchanged.
    """
    signal_power, noise_power = mean_power(wav), mean_power(noise)
    if signal_power == 0 or noise_power == 0:
        return wav
    scale = np.sqrt(signal_power / (noise_power * 10 ** (snr_db / 10)))
    mixed = np.float32(scale) * noise
    mixed += wav
    return mixed


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
    audible = response[: peak + len(wav)]
    wet = convolve(wav, audible)[peak : peak + len(wav)]
    wet_power = mean_power(wet)
    if wet_power == 0:
        return wet
    wet *= np.float32(np.sqrt(mean_power(wav) / wet_power))
    return wet


def convolve(wav, response):
    """All of x ∗ h, block by block: overlap-add (Stockham 1966).

    float32 [T], [K] → [T + K − 1]. Four blocks, because scipy transforms four rows in
    the time of two or less: faster than ``scipy.signal.oaconvolve`` for rooms
    (docs/NOTES.md).
    """
    step = -(-len(wav) // _BLOCKS)
    size = next_fast_len(step + len(response) - 1, real=True)
    blocks = np.zeros((_BLOCKS, step), dtype=np.float32)
    blocks.ravel()[: len(wav)] = wav
    spectra = rfft(blocks, size)
    spectra *= rfft(response, size)
    parts = irfft(spectra, size, overwrite_x=True)
    result = np.zeros((_BLOCKS - 1) * step + size, dtype=np.float32)
    for number, part in enumerate(parts):
        result[number * step : number * step + size] += part
    return result[: len(wav) + len(response) - 1]


def mean_power(wav):
    """Mean of the squares of [T] samples, in float64."""
    wide = torch.from_numpy(wav).double()
    with _one_thread():
        return float(wide.dot(wide)) / len(wav)
