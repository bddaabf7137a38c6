"""The mel spectrum of VoxBlink2's models, for a recording as long as it is.

    x ← x / max |x|   or   (x − mean x) / std x        over the utterance
    y[n] = x[n] − 0.97 x[n−1],  y[0] = x[0]
    f = ln(M |FFT512(w · y)|² + 10⁻⁶)   Hann window w of 25 ms, 80 mels (HTK) 0–8 kHz
    z = f − mean_t f                    per utterance and mel bin

Lin et al. 2024 (arXiv 2407.11510; github.com/VoxBlink2/ScriptsForVoxBlink2): frames
around every 10 ms from the first sample on, mirrored at both ends. Each row of a batch
is mirrored at its own end.
"""

import functools
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import nn
from transformers.audio_utils import mel_filter_bank

from speechbrain_ext.features.frames import (
    FRAME,
    HOP,
    SAMPLE_RATE,
    MelFeatures,
    energies_in_parts,
    filterbank_of,
    mirrored,
    mirrored_frames_in_graph,
    spectra_by_product,
    transform,
    zero_behind,
)
from speechbrain_ext.features.kaldi import MELS, PREEMPHASIS
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import valid_counts

FFT = 512
MARGIN = FFT // 2
GUARD = 1e-6  # added to energies
PEAK_GUARD = 1e-4 / 2**15  # added to the peak, which is in units of 16 bits there


class VoxBlink2Features(MelFeatures):
    """The mel spectrum of VoxBlink2's models: waveform → [B, T', M].

    Always computed in float32, also under autocast. Holds no parameters and adds
    nothing to a state dict.

    Arguments
    ---------
    n_mels : int
        Mel bins M.
    normalise : str
        ``peak``, as the ResNets that pool by attention or over time, or
        ``deviation``, as the other ResNet and the ECAPA-TDNN.

    Example
    -------
    >>> features, lens = VoxBlink2Features()(torch.rand(2, 16000) - 0.5)
    >>> features.shape, lens
    (torch.Size([2, 101, 80]), tensor([1., 1.]))
    """

    min_samples = MARGIN + 1  # what mirroring needs

    def __init__(
        self,
        n_mels: PositiveInt = MELS,
        normalise: Literal["peak", "deviation"] = "peak",
    ):
        super().__init__()
        if normalise not in ("peak", "deviation"):
            raise InputError(f"normalise={normalise!r}, expected peak or deviation")
        self.n_mels, self.normalise = n_mels, normalise

    def frames_of(self, samples):
        return samples // HOP + 1

    def _features(self, wavs, samples, frames, longest):
        wavs = mirrored(self._emphasised(wavs, samples), samples, MARGIN)
        return _centred(self._log_mel(wavs, longest), frames)

    def _emphasised(self, wavs, samples):
        """[B, T], zero in the padding, normalised and with pre-emphasis."""
        x = self._scaled(wavs, samples)
        others = torch.sub(x[:, 1:], x[:, :-1], alpha=PREEMPHASIS)
        x = torch.cat([x[:, :1], others], dim=1)
        return x if samples is None else zero_behind(x, samples)

    def _scaled(self, wavs, samples):
        """Each row of [B, T] by its peak or deviation; anything in the padding.

        A row that never moves stays as it is, of 16 bits: it has no deviation.
        """
        count = wavs.shape[1]
        if samples is not None:
            count = samples.unsqueeze(1)
            inside = torch.arange(wavs.shape[1], device=wavs.device) < count
            wavs = wavs.where(inside, wavs[:, :1])  # neither a peak nor a move
        # aminmax takes five times as long
        low, high = wavs.amin(1, keepdim=True), wavs.amax(1, keepdim=True)
        if self.normalise == "peak":
            peak = torch.maximum(high, -low) + PEAK_GUARD
            return wavs / peak.where(low < high, 2.0**-15)
        x = wavs if samples is None else wavs.where(inside, 0.0)
        x = x - x.sum(1, keepdim=True) / count
        squares = x.square() if samples is None else x.square().where(inside, 0.0)
        variance = squares.sum(1, keepdim=True) / count
        moves = (low < high) & (variance > 0)  # squares of the quietest are zero
        # no division by zero on either side: its gradient would be NaN
        deviation = variance.where(moves, 1.0).sqrt()
        return torch.where(moves, x / deviation, wavs * 2.0**15)

    def _log_mel(self, wavs, n_frames):
        """Mirrored [B, 512 + T] → [B, F, M]."""
        bank = voxblink2_filterbank(self.n_mels, wavs.device)
        return energies_in_parts(wavs, bank, HOP, n_frames, _logarithms)

    def graph_form(self):
        """The same in steps that one fixed graph can hold."""
        return GraphVoxBlink2Features(self.n_mels, self.normalise)


class GraphVoxBlink2Features(VoxBlink2Features):
    """The same features in steps that one fixed graph can hold.

    Window and transform are one matrix, in float64.
    """

    def __init__(self, n_mels=MELS, normalise="peak"):
        super().__init__(n_mels, normalise)
        bank = voxblink2_filterbank(n_mels, torch.device("cpu"))
        self.register_buffer("projection", transform(bank.window), persistent=False)
        self.register_buffer("mel", bank.mel, persistent=False)

    def forward(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] → features [B, T', M], lens [B]."""
        samples, total = valid_counts(wav_lens, wavs.shape[1]), wavs.shape[1]
        emphasised = self._emphasised(zero_behind(wavs, samples), samples)
        overlapping = mirrored_frames_in_graph(
            emphasised, samples, FFT, HOP, self.frames_of(total)
        )
        power = spectra_by_product(overlapping, self.projection)
        log_mel = _logarithms(torch.matmul(power, self.mel))
        frames = self.frames_of(samples)
        return _centred(log_mel, frames), frames / log_mel.shape[1]


def _logarithms(energies):
    """Those of mel bins [B, F, M]."""
    return energies.add_(GUARD).log_()


def _centred(log_mel, frames):
    """[B, F, M] less the mean over valid frames [B], None: all; zero behind them."""
    if frames is None:
        return log_mel - log_mel.mean(1, keepdim=True)
    places = torch.arange(log_mel.shape[1], device=log_mel.device)
    valid = (places < frames.unsqueeze(1)).unsqueeze(-1)  # [B, F, 1]
    total = log_mel.where(valid, 0.0).sum(1, keepdim=True)
    return (log_mel - total / frames.view(-1, 1, 1)).where(valid, 0.0)


@functools.lru_cache
def voxblink2_filterbank(n_mels, device):
    """Mel filters [257, M] and window [512] on a device, made once."""
    mel = mel_filter_bank(
        num_frequency_bins=FFT // 2 + 1,
        num_mel_filters=n_mels,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm=None,
        mel_scale="htk",
    )
    left = (FFT - FRAME) // 2
    window = torch.hann_window(FRAME, device="cpu")
    window = nn.functional.pad(window, (left, FFT - FRAME - left))
    return filterbank_of(mel, window, device)
