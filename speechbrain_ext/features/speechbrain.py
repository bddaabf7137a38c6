"""SpeechBrain's log-mel features, padded batches as their utterances alone."""

import copy
import functools

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from speechbrain.processing.features import Filterbank
from torch import nn

from speechbrain_ext.features.frames import (
    SAMPLE_RATE,
    MelFeatures,
    energies_in_parts,
    filterbank_of,
    frames_in_graph,
    safe_power,
    spectra_by_product,
    transform,
    zero_behind,
)
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import valid_counts

AMIN = 1e-10  # of a mel bin's power
TOP_DB = 80.0
SMALLEST_STD = 1e-10


class SpeechBrainFbank(MelFeatures):
    """Log-mel features of SpeechBrain's recipes: waveform → [B, T', M].

        f = 10 log₁₀ max(M |FFT(w · x)|², 1e−10)    frames around 0, 160, 320, …
        f ← max(f, max_{t,m} f − 80)                of the utterance's own maximum
        z = f − mean_t f                            per mel bin

    SpeechBrain's ``Fbank``, whose options have their names here, then its
    ``InputNormalization`` of ``sentence``; T' = ⌊samples / hop⌋ + 1. The frames at the
    ends of a row see zeros beyond it, and its maximum is that of its own frames, so
    that a padded batch equals its utterances (SpeechBrain's frames at the end of a
    padded row see what lies in the padding). Computed in float32. Holds no parameters
    and adds nothing to a state dict.

    Arguments
    ---------
    n_mels : int
        Mel bins M.
    sample_rate : int
        Hz.
    f_min, f_max : float
        Their range, Hz; f_max None: half of the rate.
    n_fft : int
        Even.
    win_length, hop_length : float
        Milliseconds, of a Hamming window.
    std_norm : bool
        Divide by the standard deviation over time too.
    filter_shape : str
        ``triangular``, ``rectangular`` or ``gaussian``.

    Example
    -------
    >>> features, lens = SpeechBrainFbank()(torch.rand(2, 16000) - 0.5)
    >>> features.shape, lens
    (torch.Size([2, 101, 80]), tensor([1., 1.]))
    """

    def __init__(
        self,
        n_mels: PositiveInt = 80,
        sample_rate: PositiveInt = SAMPLE_RATE,
        f_min: NonNegativeFloat = 0,
        f_max: PositiveFloat | None = None,
        n_fft: PositiveInt = 400,
        win_length: PositiveFloat = 25,
        hop_length: PositiveFloat = 10,
        std_norm: bool = False,
        filter_shape: str = "triangular",
    ):
        super().__init__()
        self.sample_rate = sample_rate
        frame = round(sample_rate / 1000 * win_length)
        self.hop = round(sample_rate / 1000 * hop_length)
        self.fft = n_fft
        highest = sample_rate // 2 if f_max is None else f_max
        if n_fft % 2 or not 0 < frame <= n_fft or self.hop < 1:
            raise InputError(
                f"n_fft {n_fft}, win_length {win_length:g} and hop_length "
                f"{hop_length:g} ms at {sample_rate} Hz, expected an even number of "
                f"the {frame} samples of a frame or more"
            )
        if not f_min < highest <= sample_rate / 2:
            raise InputError(
                f"f_min {f_min:g}, f_max {highest:g} Hz, expected a range below "
                f"{sample_rate / 2:g}"
            )
        if filter_shape not in ("triangular", "rectangular", "gaussian"):
            raise InputError(
                f"filter_shape {filter_shape!r}, expected triangular, rectangular or "
                "gaussian"
            )
        self.min_samples = frame
        self.std_norm = std_norm
        self.constants = functools.partial(
            _filterbank, frame, n_fft, sample_rate, n_mels, f_min, highest, filter_shape
        )

    def frames_of(self, samples):
        return samples // self.hop + 1

    def _features(self, wavs, samples, frames, longest):
        return self._normalised(self._log_mel(self._centred(wavs), longest), frames)

    def _centred(self, wavs):
        """Zeros before and after, so that frame 0 is around sample 0."""
        return nn.functional.pad(wavs, (self.fft // 2, self.fft // 2))

    def _log_mel(self, wavs, n_frames):
        """[b, T + FFT] → [b, F, M]."""
        bank = self.constants(wavs.device)
        return energies_in_parts(wavs, bank, self.hop, n_frames, _decibels)

    def _normalised(self, log_mel, frames=None):
        """[b, F, M] and valid frames [b], None: all → normalised, zero behind them."""
        if frames is None:
            log_mel = log_mel.clamp_min(log_mel.amax((1, 2), keepdim=True) - TOP_DB)
            centred = log_mel - log_mel.mean(1, keepdim=True)
            count = log_mel.shape[1]
        else:
            count = frames.view(-1, 1, 1)
            places = torch.arange(log_mel.shape[1], device=log_mel.device)
            valid = places.view(1, -1, 1) < count
            loudest = log_mel.masked_fill(~valid, float("-inf")).amax((1, 2), True)
            log_mel = torch.maximum(log_mel, loudest - TOP_DB)
            log_mel = torch.where(valid, log_mel, 0.0)
            mean = log_mel.sum(1, keepdim=True) / count
            centred = torch.where(valid, log_mel - mean, 0.0)
        if not self.std_norm:
            return centred
        variance = centred.square().sum(1, keepdim=True) / count
        return centred / safe_power(variance, 0.5).clamp(min=SMALLEST_STD)

    def graph_form(self):
        """The same in steps that one fixed graph can hold."""
        self.constants(torch.device("cpu"))  # kept from now on: no graph makes them
        form = copy.copy(self)
        form.__class__ = _GraphFbank
        return form


class _GraphFbank(SpeechBrainFbank):
    """All frames in one product: window and transform are one matrix, in float64."""

    def forward(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] → features [B, T', M], lens [B]."""
        bank = self.constants(wavs.device)
        samples = valid_counts(wav_lens, wavs.shape[1])
        frames, longest = self.frames_of(samples), self.frames_of(wavs.shape[1])
        wavs = self._centred(zero_behind(wavs, samples))
        overlapping = frames_in_graph(wavs, self.fft, self.hop, longest)
        power = spectra_by_product(overlapping, transform(bank.window))
        log_mel = _decibels(torch.matmul(power, bank.mel))
        return self._normalised(log_mel, frames), frames / longest


def _decibels(energies):
    """10 log₁₀ of those of mel bins [b, F, M]."""
    return energies.clamp_(min=AMIN).log10_().mul_(10.0)


@functools.lru_cache
def _filterbank(frame, n_fft, rate, mels, lowest, highest, shape, device):
    """Mel filters [bins, M] and the window in the middle of [n_fft]."""
    filters = Filterbank(
        n_mels=mels,
        log_mel=False,
        filter_shape=shape,
        f_min=lowest,
        f_max=highest,
        n_fft=n_fft,
        sample_rate=rate,
    )
    left = (n_fft - frame) // 2
    # also where a model is built on the meta device, or an encoder first runs there
    with torch.inference_mode(False), torch.device("cpu"):
        mel = filters(torch.eye(n_fft // 2 + 1).unsqueeze(0)).squeeze(0)
        window = torch.hamming_window(frame)
        window = nn.functional.pad(window, (left, n_fft - frame - left))
    return filterbank_of(mel, window, device)
