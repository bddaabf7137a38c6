"""Kaldi's log-mel filterbank, batched, differentiable, on any device.

Frame by frame x of 25 ms every 10 ms, as ``torchaudio.compliance.kaldi.fbank``:

    y = s (x − mean(x))                remove DC, scale
    y[n] ← y[n] − 0.97 y[n−1]          pre-emphasis, y[0] ← 0.03 y[0]
    f = ln max(M |FFT512(w · y)|², 2⁻²³)   window w, mel filters M
    z = f − mean_t f                   per utterance and mel bin

wespeaker's models take s = 2^15 and the Hamming window, 3D-Speaker's s = 1 and Povey's
(0.5 − 0.5 cos)^0.85; the floor of 2⁻²³ makes the scale matter.

Every frame that would reach into the padding is left out, before the mean is taken, so
that a padded batch equals its single utterances.
"""

import functools
import math
from typing import Literal, NamedTuple

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from speechbrain_ext.features.frames import (
    SAMPLE_RATE,
    MelFeatures,
    energies_in_parts,
    filterbank_of,
    spectra_by_product,
    zero_behind,
)
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import has_float64, valid_counts

MELS = 80
PREEMPHASIS = 0.97
MEL_FLOOR = 2.0**-23
VARIANCE_FLOOR = 1e-7
# Name → function of torch and power
WINDOWS = {
    "povey": (torch.hann_window, 0.85),
    "hamming": (torch.hamming_window, 1),
    "hann": (torch.hann_window, 1),
    "hanning": (torch.hann_window, 1),  # Kaldi's name of it
    "blackman": (torch.blackman_window, 1),
    "rectangular": (torch.ones, 1),
}


class KaldiSettings(NamedTuple):
    """What the constants of a filterbank are made from; lengths in samples."""

    sample_rate: int
    frame: int
    hop: int
    mels: int
    window: str
    scale: float
    low: float
    high: float
    preemphasis: float
    dtype: torch.dtype

    @property
    def fft(self):
        """The power of two from the frame on."""
        return 1 << (self.frame - 1).bit_length()


class KaldiFbank(MelFeatures):
    """Waveform → log mel energies as Kaldi computes them.

    Always computed in float32, also under autocast: 2^15 squared leaves bf16 no
    digits. Holds no parameters and adds nothing to a state dict.

    Arguments
    ---------
    n_mels : int
        Mel bins M.
    window : str
        povey, hamming, hann (Kaldi: hanning), blackman or rectangular.
    scale : float
        By which a waveform of ±1 is multiplied: 32768 where the public code takes
        whole numbers of 16 bits.
    dither : float
        Deviation of the noise that is added in training, in units of the scaled
        waveform; Kaldi's default is 1.
    mean_removal : bool
        Take the mean over time off each bin.
    sample_rate : int
        Hz.
    frame_ms, hop_ms : float
        Length of a frame and the step to the next.
    low, high : float
        Range of the mel bins in Hz; ``high`` of 0 or below counts from half the rate.
    preemphasis : float
        0.97 above.

    Raises
    ------
    InputError
        Values that describe no filterbank.

    Example
    -------
    >>> features, lens = KaldiFbank()(torch.rand(2, 16000) - 0.5)
    >>> features.shape, lens
    (torch.Size([2, 98, 80]), tensor([1., 1.]))
    """

    dtype = torch.float32  # up to the spectrum

    def __init__(
        self,
        n_mels: PositiveInt = MELS,
        window: Literal[tuple(WINDOWS)] = "povey",
        scale: PositiveFloat = 1.0,
        dither: NonNegativeFloat = 0.0,
        mean_removal: bool = True,
        sample_rate: PositiveInt = SAMPLE_RATE,
        frame_ms: PositiveFloat = 25.0,
        hop_ms: PositiveFloat = 10.0,
        low: NonNegativeFloat = 20.0,
        high: float = 0.0,
        preemphasis: NonNegativeFloat = PREEMPHASIS,
    ):
        super().__init__()
        if window not in WINDOWS:
            raise InputError(f"window {window!r}, expected one of {', '.join(WINDOWS)}")
        frame = int(sample_rate * frame_ms * 0.001)  # cut off, as Kaldi does
        hop = int(sample_rate * hop_ms * 0.001)
        top = high if high > 0 else sample_rate / 2 + high
        if hop < 1 or frame < 2:
            raise InputError(
                f"frames of {frame_ms:g} ms every {hop_ms:g} ms at {sample_rate} Hz, "
                "expected two samples and one at least"
            )
        if not 0 <= low < top <= sample_rate / 2:
            raise InputError(
                f"mel bins from {low:g} to {top:g} Hz, expected a range of 0 to "
                f"{sample_rate / 2:g}"
            )
        self.settings = KaldiSettings(
            *(sample_rate, frame, hop, n_mels, window, scale),
            *(low, top, preemphasis, self.dtype),
        )
        self.dither = dither
        self.mean_removal = mean_removal
        self.normalise_variance = False

    @property
    def sample_rate(self):
        """Hz of the waveform."""
        return self.settings.sample_rate

    @property
    def min_samples(self):
        """Length of the shortest waveform."""
        return self.settings.frame + (self.stacked - 1) * self.settings.hop

    def forward(self, wavs, wav_lens=None):
        """As :meth:`MelFeatures.forward`, by the CPU where it has to be."""
        device = wavs.device
        if self.dtype is torch.float64 and not has_float64(device):
            wavs = wavs.cpu()
        features, lens = super().forward(wavs, wav_lens)
        return features.to(device), lens.to(device)

    def _features(self, wavs, samples, frames, longest):
        if self.dither and self.training:
            noise = torch.randn_like(wavs) * (self.dither / self.settings.scale)
            wavs = wavs + noise
        return self.finished(self._log_mel(wavs, longest), frames)

    def frames_of(self, samples):
        """Whole frames in so many samples, a number or a tensor of them."""
        return 1 + (samples - self.settings.frame) // self.settings.hop

    def _log_mel(self, wavs, n_frames):
        """[B, T] → [B, F, M]."""
        settings = self.settings
        bank = filterbank(settings, wavs.device)
        # the transform is longer than a frame: no copy of each frame with zeros behind,
        # but zeros behind the last one, in place of samples that belong to none
        end = (n_frames - 1) * settings.hop + settings.frame
        wavs = nn.functional.pad(wavs[:, :end], (0, settings.fft - settings.frame))
        windowed = functools.partial(_windowed, settings)
        return energies_in_parts(
            *(wavs, bank, settings.hop, n_frames, _logarithms), windowed=windowed
        )

    def finished(self, log_mel, frames):
        """[B, F, M], valid frames [B] or None: all → features [B, T', M]."""
        if frames is None:
            return (
                self._normalised(log_mel, None, None) if self.mean_removal else log_mel
            )
        places = torch.arange(log_mel.shape[1], device=log_mel.device)
        valid = (places < frames[:, None]).unsqueeze(-1)
        if not self.mean_removal:
            return torch.where(valid, log_mel, 0.0)
        return self._normalised(log_mel, valid, frames)

    def _normalised(self, log_mel, valid=None, frames=None):
        """Zero mean, and as chosen unit variance (N−1), over time: [B, F, M].

        Of the valid frames [B, F, 1], ``frames`` [B] of them; None: all are.
        """
        # less the first frame, a bin that never moves has a mean of exactly zero: else
        # the rounding of its mean would be divided by √1e−7, and without a division it
        # is still 30 times that of what moves
        log_mel = log_mel - log_mel[:, :1]
        if valid is None:
            count = log_mel.shape[1]
            centred = log_mel - log_mel.mean(1, keepdim=True)
        else:
            count = frames.view(-1, 1, 1)
            log_mel = torch.where(valid, log_mel, 0.0)
            mean = log_mel.sum(1, keepdim=True) / count
            centred = torch.where(valid, log_mel - mean, 0.0)
        if not self.normalise_variance:
            return centred
        variance = centred.square().sum(1, keepdim=True) / (count - 1)
        return centred * (variance + VARIANCE_FLOOR).rsqrt()

    def graph_form(self):
        """The same in steps that one fixed graph can hold."""
        return GraphFbank(self)


class GraphFbank(nn.Module):
    """The features of a :class:`KaldiFbank` in steps that one fixed graph can hold.

    All frames are taken in one product, x_f · P. The steps up to the spectrum are
    linear in the samples x_f of a frame: removal of the mean, pre-emphasis, window,
    scale and the transform are one matrix P. It is float64 as they are, so that a quiet
    mel bin beside a loud tone comes out the same.
    """

    def __init__(self, fbank):
        super().__init__()
        self.fbank = fbank
        mel = filterbank(fbank.settings, torch.device("cpu")).mel
        projection = _spectrum_matrix(fbank.settings)
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("mel", mel, persistent=False)

    def forward(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] → features [B, T', M], lens [B]."""
        samples = valid_counts(wav_lens, wavs.shape[1])
        overlapping = self._overlapping_frames(zero_behind(wavs, samples))
        power = torch.matmul(spectra_by_product(overlapping, self.projection), self.mel)
        frames = self.fbank.frames_of(samples)
        features = self.fbank.finished(power.clamp(min=MEL_FLOOR).log(), frames)
        return features, frames // self.fbank.stacked / features.shape[1]

    def _overlapping_frames(self, wavs):
        """[B, T] → [B, F, frame].

        F is rounded up to stacks, so that stacking leaves no frame over; a frame
        beyond the end holds nothing of use and lies in the padding of every row.
        """
        frame, hop = self.fbank.settings.frame, self.fbank.settings.hop
        step, samples = self.fbank.stacked * hop, wavs.shape[1]
        frames = self.fbank.stacked * ((samples - frame + step) // step)
        starts = torch.arange(frames, device=wavs.device) * hop
        places = starts.unsqueeze(1) + torch.arange(frame, device=wavs.device)
        return wavs[:, places.clamp(max=samples - 1)]


def _windowed(settings, wide, window):
    """Samples [B, f, fft] from the start of each frame on → what is transformed.

    Kaldi's steps in its order: where one frequency is loud, what float32 rounds away
    in them is what the quiet mel bins hold. ``window`` is zero behind the frame.
    """
    wide = wide.to(window.dtype)
    wide = wide - wide[..., : settings.frame].mean(-1, keepdim=True)
    frames = wide[..., : settings.frame]
    before = frames * settings.preemphasis
    frames[..., 1:].sub_(before[..., :-1])
    frames[..., 0].sub_(before[..., 0])
    return wide.mul_(window)


def _logarithms(energies):
    """Those of mel bins [B, f, M], not below the floor."""
    return energies.clamp_(min=MEL_FLOOR).log_()


def _spectrum_matrix(settings):
    """P [frame, 2·bins], float64: real parts of the spectrum, then imaginary ones."""
    _, _, window = filterbank(settings, torch.device("cpu"))
    frames = torch.eye(settings.frame, dtype=torch.float64)
    frames = frames - frames.mean(1, keepdim=True)
    before = nn.functional.pad(frames, (1, 0), mode="replicate")[:, :-1]
    windowed = (frames - settings.preemphasis * before) * window[: settings.frame]
    spectrum = torch.fft.rfft(windowed, n=settings.fft)
    return torch.cat([spectrum.real, spectrum.imag], dim=1)


def _mel_filters(settings):
    """Triangles over mel(f) = 1127 ln(1 + f / 700), which is where Kaldi draws them.

    [bins, M], with neighbours that meet at their centres.
    """
    like = {"dtype": settings.dtype, "device": "cpu"}
    bins = torch.arange(settings.fft // 2 + 1, **like)
    hertz = bins * (settings.sample_rate / settings.fft)
    mel = 1127 * (1 + hertz / 700).log().unsqueeze(1)
    low, high = (1127 * math.log(1 + f / 700) for f in (settings.low, settings.high))
    step = (high - low) / (settings.mels + 1)
    first = torch.arange(settings.mels, **like)
    # their widths too are rounded, as Kaldi's are
    left, centre, right = (low + (first + k) * step for k in range(3))
    up, down = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return torch.minimum(up, down).clamp(min=0)


@functools.lru_cache
def filterbank(settings, device):
    """Filterbank on a device, made once; its window is zero behind the frame.

    Not buffers of the module: ``.half()`` would round them, and a module built on the
    meta device would lose them.
    """
    make, power = WINDOWS[settings.window]
    shape = {} if make is torch.ones else {"periodic": False}
    window = make(settings.frame, **shape, dtype=settings.dtype, device="cpu")
    # of as many samples as Kaldi's: pow rounds otherwise where a vector ends
    window = window.pow(power) * settings.scale
    window = nn.functional.pad(window, (0, settings.fft - settings.frame))
    return filterbank_of(_mel_filters(settings), window, device)
