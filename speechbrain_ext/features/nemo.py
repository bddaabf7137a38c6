"""Log-mel features of NVIDIA NeMo's speech recognisers, without NeMo."""

import copy
import functools
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn
from transformers.audio_utils import mel_filter_bank

from speechbrain_ext.features.frames import (
    FRAME,
    HOP,
    SAMPLE_RATE,
    MelFeatures,
    energies_in_parts,
    filterbank_of,
    frames_in_graph,
    safe_power,
    spectra_by_product,
    transform,
)
from speechbrain_ext.features.kaldi import MELS, PREEMPHASIS
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import valid_counts


class NemoFeatures(MelFeatures):
    """Log-mel features of NeMo's speech recognisers: waveform → [B, T', M].

        y[n] = x[n] − 0.97 x[n−1],  y[0] = x[0]      zeros before and after
        f = ln(M |FFT(w · y)|² + 2⁻²⁴)               frames around 0, 160, 320, …
        z = (f − mean_t f) / (std_t f + 1e−5)        per mel bin, N−1

    NeMo's ``FilterbankFeatures``, whose options have their names here; the defaults are
    those of its Conformer recipes. T' = ⌊samples / hop⌋: NeMo's one frame more, which
    it sets to zero, is what its encoder's convolutions pad with anyway, and so is what
    ``pad_to`` appends. There is no dither, in training neither. Computed in float32:
    its rounding is far below the 2⁻²⁴ that the logarithm adds. Holds no parameters and
    adds nothing to a state dict.

    Arguments
    ---------
    sample_rate : int
        Hz.
    n_window_size, n_window_stride : int
        Samples.
    window : str or None
        hann, hamming, blackman or bartlett, symmetric; None: ones.
    n_fft : int, optional
        Even; None: the power of two from the window on.
    features, lowfreq, highfreq, mel_norm
        Mel bins M, their range in Hz, equal areas ("slaney") or heights (None).
    preemph, mag_power, log, log_zero_guard_type, log_zero_guard_value
        0.97, 2, whether ln, "add" or "clamp", and 2⁻²⁴ above; or "tiny", "eps".
    normalize : str or None
        "per_feature", "all_features" (one mean, one deviation), or None.
    """

    def __init__(
        self,
        sample_rate: PositiveInt = SAMPLE_RATE,
        n_window_size: PositiveInt = FRAME,
        n_window_stride: PositiveInt = HOP,
        window: Literal["hann", "hamming", "blackman", "bartlett"] | None = "hann",
        n_fft: PositiveInt | None = None,
        features: PositiveInt = MELS,
        lowfreq: NonNegativeFloat = 0,
        highfreq: PositiveFloat | None = None,
        mel_norm: Literal["slaney"] | None = "slaney",
        preemph: float | None = PREEMPHASIS,
        mag_power: PositiveFloat = 2.0,
        log: bool = True,
        log_zero_guard_type: Literal["add", "clamp"] = "add",
        log_zero_guard_value: PositiveFloat | Literal["tiny", "eps"] = 2.0**-24,
        normalize: Literal["per_feature", "all_features"] | None = "per_feature",
    ):
        super().__init__()
        self.sample_rate, self.frame = sample_rate, n_window_size
        self.hop = n_window_stride
        self.fft = n_fft or 1 << (self.frame - 1).bit_length()
        if self.fft < self.frame or self.fft % 2:
            raise InputError(
                f"n_fft {self.fft}, expected an even number of n_window_size "
                f"{self.frame} or more"
            )
        # the unbiased deviation needs two frames
        self.min_samples = 2 * self.hop
        self.preemph, self.power = preemph or 0.0, mag_power / 2
        self.log, self.normalize = log, normalize
        if isinstance(log_zero_guard_value, str):
            log_zero_guard_value = getattr(
                torch.finfo(torch.float32), log_zero_guard_value
            )
        self.guard = (log_zero_guard_type, log_zero_guard_value)
        mels = (sample_rate, features, lowfreq, highfreq or sample_rate / 2, mel_norm)
        self.constants = functools.partial(
            _filterbank, self.frame, window, self.fft, *mels
        )

    def frames_of(self, samples):
        return samples // self.hop

    def _features(self, wavs, samples, frames, longest):
        log_mel = self._log_mel(self._emphasised(wavs, samples), longest)
        return self._normalised(log_mel, frames)

    def _emphasised(self, wavs, samples=None):
        """Pre-emphasis, zeros from the end of each row on: [b, T] → [b, T + FFT]."""
        before = nn.functional.pad(wavs, (1, 0))[:, :-1]
        wavs = wavs - self.preemph * before  # rounded as NeMo rounds it
        if samples is not None:
            places = torch.arange(wavs.shape[1], device=wavs.device)
            wavs = wavs.where(places < samples.unsqueeze(1), 0.0)
        return nn.functional.pad(wavs, (self.fft // 2, self.fft // 2))

    def _log_mel(self, wavs, n_frames):
        """[b, T + FFT] → [b, F, M]."""
        bank = self.constants(wavs.device)
        return energies_in_parts(
            wavs, bank, self.hop, n_frames, self._logarithms, self.power
        )

    def _logarithms(self, energies):
        """Those of mel bins [b, F, M], where there are to be logarithms."""
        kind, guard = self.guard
        if not self.log:
            return energies
        return (energies + guard if kind == "add" else energies.clamp(min=guard)).log()

    def _normalised(self, log_mel, frames):
        """[b, F, M] and valid frames [b], None: all → normalised, zero behind them."""
        if frames is None:
            frames = torch.full(
                (len(log_mel),), log_mel.shape[1], device=log_mel.device
            )
        count = frames.view(-1, 1, 1)
        places = torch.arange(log_mel.shape[1], device=log_mel.device)
        valid = places.view(1, -1, 1) < count
        if not self.normalize:
            return torch.where(valid, log_mel, 0.0)
        dims = (1,) if self.normalize == "per_feature" else (1, 2)
        count = count * (1 if len(dims) == 1 else log_mel.shape[2])
        # less the first frame, a bin that never moves has a mean of exactly zero
        first = log_mel[:, :1] if len(dims) == 1 else log_mel[:, :1, :1]
        log_mel = torch.where(valid, log_mel - first, 0.0)
        mean = log_mel.sum(dims, keepdim=True) / count
        centred = torch.where(valid, log_mel - mean, 0.0)
        variance = centred.square().sum(dims, keepdim=True) / (count - 1)
        return centred / (safe_power(variance, 0.5) + 1e-5)

    def graph_form(self):
        """The same in steps that one fixed graph can hold."""
        self.constants(torch.device("cpu"))  # kept from now on: no graph makes them
        form = copy.copy(self)
        form.__class__ = _GraphNemoFeatures
        return form


class _GraphNemoFeatures(NemoFeatures):
    """All frames in one product: window and transform are one matrix, in float64."""

    def forward(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] → features [B, T', M], lens [B]."""
        bank = self.constants(wavs.device)
        samples = valid_counts(wav_lens, wavs.shape[1])
        frames, longest = self.frames_of(samples), self.frames_of(wavs.shape[1])
        wavs = self._emphasised(wavs, samples)
        overlapping = frames_in_graph(wavs, self.fft, self.hop, longest)
        power = spectra_by_product(overlapping, transform(bank.window))
        power = power if self.power == 1 else power**self.power
        log_mel = self._logarithms(torch.matmul(power, bank.mel))
        return self._normalised(log_mel, frames), frames / longest


@functools.lru_cache
def _filterbank(frame, window, n_fft, rate, mels, lowest, highest, mel_norm, device):
    """Mel filters [bins, M] and the window in the middle of [n_fft]."""
    mel = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=mels,
        min_frequency=lowest,
        max_frequency=highest,
        sampling_rate=rate,
        norm=mel_norm,
        mel_scale="slaney",
    )
    make = getattr(torch, f"{window}_window") if window else None
    ones = torch.ones(frame, device="cpu")
    weights = ones if make is None else make(frame, periodic=False, device="cpu")
    left = (n_fft - frame) // 2
    weights = nn.functional.pad(weights, (left, n_fft - frame - left))
    return filterbank_of(mel, weights, device)
