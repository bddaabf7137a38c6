"""Whisper's log-mel spectrogram, for a recording as long as it is.

    f = log₁₀ max(M |FFT400(w · y)|², 10⁻¹⁰)   Hann window w, 80 or 128 mels 0–8 kHz
    z = (max(f, max f − 8) + 4) / 4            the maximum over the utterance

Radford et al. 2023 (arXiv 2212.04356, section 2.2): frames of 25 ms around every 10 ms,
mirrored at both ends, the last one left out. Each row is mirrored at its own end, and
its maximum is that of its own frames.
"""

import functools

import torch
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
from speechbrain_ext.utils.precision import valid_counts

# Power below 80 dB under the loudest is cut off.
MARGIN = FRAME // 2
FLOOR, RANGE = 1e-10, 8.0


class WhisperFeatures(MelFeatures):
    """The log-mel spectrogram of Whisper, for a recording as long as it is.

    Always computed in float32, also under autocast: what float32 rounds away lies below
    the floor of 80 dB. Holds no parameters and adds nothing to a state dict.

    Arguments
    ---------
    n_mels : int
        80; 128 from large-v3 on.

    Example
    -------
    >>> features, lens = WhisperFeatures()(torch.rand(2, 16000) - 0.5)
    >>> features.shape, lens
    (torch.Size([2, 100, 80]), tensor([1., 1.]))
    """

    min_samples = MARGIN + 1  # what mirroring needs

    def __init__(self, n_mels=80):
        super().__init__()
        self.n_mels = n_mels

    def frames_of(self, samples):
        return samples // HOP

    def _features(self, wavs, samples, frames, longest):
        log_mel = self._log_mel(mirrored(wavs, samples, MARGIN), longest)
        return self._above_floor(log_mel, frames)

    def _log_mel(self, wavs, n_frames):
        """Mirrored [B, 400 + T] → [B, F, M]."""
        bank = whisper_filterbank(self.n_mels, wavs.device)
        return energies_in_parts(wavs, bank, HOP, n_frames, _logarithms)

    def _above_floor(self, log_mel, frames):
        """[B, F, M], valid frames [B] or None: all → features [B, F, M]."""
        heard = log_mel
        if frames is not None:
            places = torch.arange(log_mel.shape[1], device=log_mel.device)
            padding = (places >= frames.unsqueeze(1)).unsqueeze(-1)  # [B, F, 1]
            heard = log_mel.masked_fill(padding, -torch.inf)
        loudest = heard.amax((1, 2), keepdim=True)
        features = torch.maximum(log_mel, loudest - RANGE).add_(4.0).div_(4.0)
        return features if frames is None else features.masked_fill(padding, 0.0)

    def graph_form(self):
        """The same in steps that one fixed graph can hold."""
        return GraphWhisperFeatures(self.n_mels)


@functools.lru_cache
def whisper_filterbank(n_mels, device):
    """Mel filters [201, M] and window [400] on a device, made once."""
    mel = mel_filter_bank(
        num_frequency_bins=FRAME // 2 + 1,
        num_mel_filters=n_mels,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return filterbank_of(mel, torch.hann_window(FRAME, device="cpu"), device)


def _logarithms(energies):
    """Those of mel bins [B, F, M], not below the floor."""
    return energies.clamp_(min=FLOOR).log10_()


class GraphWhisperFeatures(WhisperFeatures):
    """The same features in steps that one fixed graph can hold.

    Window and transform are one matrix, in float64: a sum of 400 products in float32
    would show 80 dB below a loud tone.
    """

    def __init__(self, n_mels=80):
        super().__init__(n_mels)
        bank = whisper_filterbank(n_mels, torch.device("cpu"))
        self.register_buffer("projection", transform(bank.window), persistent=False)
        self.register_buffer("mel", bank.mel, persistent=False)

    def forward(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] → features [B, T', M], lens [B]."""
        samples, total = valid_counts(wav_lens, wavs.shape[1]), wavs.shape[1]
        overlapping = mirrored_frames_in_graph(
            zero_behind(wavs, samples), samples, FRAME, HOP, self.frames_of(total)
        )
        power = spectra_by_product(overlapping, self.projection)
        log_mel = _logarithms(torch.matmul(power, self.mel))
        frames = self.frames_of(samples)
        return self._above_floor(log_mel, frames), frames / log_mel.shape[1]
