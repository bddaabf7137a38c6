"""Log-mel features of ReDimNet and ReDimNet2, batched, on any device.

    x ← (x − mean x) / (std x + ε)             with ``norm_signal``, N
    y[n] = x[n] − 0.97 x[n−1],  x[−1] = x[1]   with ``do_preemph``
    pt:  f = ln(M |FFT(w · y)|² + 1e−6)        frames centred on 0, 160, …, y reflected
    tf:  f = ln(c(M c(|FFT(w · y)|²)) + ε)     frames from −80 on, zeros around y
    z = f − mean_t f

Yakovlev et al. 2024 (arXiv 2407.18223) and 2026 (arXiv 2603.11841); the published code
has both front ends inside its models (``layers/features.py``, ``features_tf.py``). w is
a Hamming window, periodic (pt) or symmetric (tf); c limits to ε … 1/ε. In tf the mel
filters are laid out as if the 256 bins below Nyquist reached it, and bin 0 counts for
nothing: a quirk that its weights are trained on.
"""

import copy
import functools

import numpy as np
import torch
import torch.nn.functional as F
from transformers.audio_utils import mel_filter_bank

from speechbrain_ext.features.frames import (
    MelFeatures,
    energies_in_parts,
    filterbank_of,
    frames_in_graph,
    mirrored,
    safe_power,
    spectra_by_product,
    transform,
    zero_behind,
)
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import has_float64, valid_counts

PREEMPHASIS = 0.97
LOG_FLOOR = 1e-6  # pt
# What feat_type may be, by what it says
KINDS = {"pt": "pt", "pt_mel": "pt", "tf": "tf", "tf_mel": "tf"}
SPEC_NORMS = {"mn": False, "mvn": True}


class ReDimNetFeatures(MelFeatures):
    """Waveform → [B, T', M], the mean of the valid frames removed, zero behind them.

    Every row is as if it were alone: its own mean, deviation, reflected end. Computed
    in float32, also under autocast. Holds no parameters and adds nothing to a state
    dict. Masks on the spectrogram are no part of it.

    Arguments
    ---------
    feat_type : str
        "pt" or "tf", see above; "pt_mel" and "tf_mel" are the same.
    n_mels, sample_rate, n_fft, win_length, hop_length, f_min, f_max
        Mel bins M; Hz; samples; Hz.
    norm_signal, do_preemph : bool
        Whether the waveform is standardised, and pre-emphasised.
    spec_norm : str
        "mn" takes the mean off, "mvn" also divides by the deviation (pt only).
    eps : float
        ε; None: 1e-6 (pt), 1e-8 (tf).
    pad_right : int
        Zeros behind each row, in samples, before all else.
    min_frames : int
        Of a row.

    Raises
    ------
    InputError
        Another kind or normalisation; windows that do not fit.

    Example
    -------
    >>> features, lens = ReDimNetFeatures("tf")(torch.rand(2, 16000) - 0.5)
    >>> features.shape
    torch.Size([2, 99, 72])
    """

    def __init__(
        self,
        feat_type: str = "pt",
        n_mels: int = 72,
        sample_rate: int = 16000,
        n_fft: int = 512,
        win_length: int = 400,
        hop_length: int = 160,
        f_min: float = 20,
        f_max: float = 7600,
        norm_signal: bool = False,
        do_preemph: bool = True,
        spec_norm: str = "mn",
        eps: float | None = None,
        pad_right: int = 0,
        min_frames: int = 1,
    ):
        super().__init__()
        for name, value, choices in (
            ("feat_type", feat_type, KINDS),
            ("spec_norm", spec_norm, SPEC_NORMS),
        ):
            if value not in choices:
                raise InputError(f"{name}={value!r}, expected {' or '.join(choices)}")
        self.kind, self.deviation = KINDS[feat_type], SPEC_NORMS[spec_norm]
        of_tf = self.kind == "tf"
        if of_tf and self.deviation:
            raise InputError(f"spec_norm={spec_norm!r} with tf, expected 'mn'")
        check_at_least("win_length", win_length, 2)
        check_at_least("hop_length", hop_length, 1)
        if n_fft < win_length or n_fft % 2:
            raise InputError(
                f"n_fft={n_fft}, expected an even number of win_length={win_length} "
                "or more"
            )
        if not 0 <= f_min < f_max <= sample_rate / 2:
            raise InputError(
                f"f_min={f_min}, f_max={f_max}, expected a range of 0 to "
                f"{sample_rate / 2:g} Hz"
            )
        self.sample_rate, self.frame, self.hop = sample_rate, win_length, hop_length
        self.fft, self.pad_right = n_fft, pad_right
        self.norm_signal, self.do_preemph = norm_signal, do_preemph
        self.eps = (1e-8 if of_tf else 1e-6) if eps is None else eps
        half = hop_length // 2
        self.border = half if of_tf else n_fft // 2
        frames = max(min_frames, 2 if self.deviation else 1)
        needed = (frames - 1) * hop_length
        needed = win_length - 2 * half + needed if of_tf else max(needed, n_fft // 2)
        # one more than is reflected, and two for the pre-emphasis
        self.min_samples = max(needed + (not of_tf) - pad_right, 2)
        made_of = (win_length, self.kind, n_fft, n_mels, f_min, f_max, sample_rate)
        self.constants = functools.partial(_constants, *made_of)
        # all that the values depend on
        self.settings = (*made_of, hop_length, norm_signal, do_preemph)
        self.settings += (spec_norm, self.eps, pad_right)

    def frames_of(self, samples):
        samples = samples + self.pad_right
        if self.kind == "tf":
            return (samples + 2 * (self.hop // 2) - self.frame) // self.hop + 1
        return samples // self.hop + 1

    def _features(self, wavs, samples, frames, longest):
        log_mel = self._log_mel(self._bordered(wavs, samples), longest)
        return self._normalised(log_mel, frames)

    def _bordered(self, wavs, samples=None):
        """Standardised, emphasised, with its borders: [b, T] → [b, T + borders].

        ``samples`` [b], None: all rows are full.
        """
        if self.pad_right:
            if samples is not None:
                wavs = zero_behind(wavs, samples)
                samples = samples + self.pad_right
            wavs = F.pad(wavs, (0, self.pad_right))
        if self.norm_signal:
            wavs = self._standardised(wavs, samples)
        if self.do_preemph:
            first = wavs[:, :1] - PREEMPHASIS * wavs[:, 1:2]
            others = torch.sub(wavs[:, 1:], wavs[:, :-1], alpha=PREEMPHASIS)
            wavs = torch.cat([first, others], dim=1)
        if samples is not None:
            wavs = zero_behind(wavs, samples)
        if self.kind == "tf":
            return F.pad(wavs, (self.border, self.border))
        return mirrored(wavs, samples, self.border)

    def _standardised(self, wavs, samples):
        """Less its mean, divided by its deviation (N), which are summed in float64."""
        count, wide = wavs.shape[1], torch.float32
        if has_float64(wavs.device):
            wide = torch.float64
        if samples is not None:
            wavs, count = zero_behind(wavs, samples), samples.unsqueeze(1)
        wavs = wavs - (wavs.sum(1, keepdim=True, dtype=wide) / count).float()
        if samples is not None:
            wavs = zero_behind(wavs, samples)
        variance = wavs.square().sum(1, keepdim=True, dtype=wide) / count
        return wavs / (safe_power(variance, 0.5).float() + self.eps)

    def _log_mel(self, wavs, n_frames):
        """[b, T + borders] → [b, F, M]."""
        bank = self.constants(wavs.device)
        if self.kind == "tf":
            return self._logarithms(self._energies(wavs, bank)[:, :n_frames])
        return energies_in_parts(wavs, bank, self.hop, n_frames, self._logarithms)

    def _energies(self, wavs, bank):
        """[b, T + borders] → energies of mel bins [b, F, M] (tf)."""
        spectrum = F.conv1d(wavs.unsqueeze(1), bank.window, stride=self.hop)
        real, imaginary = spectrum.transpose(1, 2).chunk(2, dim=2)
        power = (real.square() + imaginary.square()).clamp(self.eps, 1 / self.eps)
        return torch.matmul(power, bank.mel)

    def _logarithms(self, energies):
        """Those of mel bins [b, F, M]."""
        if self.kind == "pt":
            return (energies + LOG_FLOOR).log()
        return (energies.clamp(self.eps, 1 / self.eps) + self.eps).log()

    def _normalised(self, log_mel, frames):
        """[b, F, M] and valid frames [b], None: all → normalised, zero behind them."""
        count = log_mel.shape[1]
        if frames is not None:
            log_mel, count = zero_behind(log_mel, frames), frames.view(-1, 1, 1)
        centred = log_mel - log_mel.sum(1, keepdim=True) / count
        if frames is not None:
            centred = zero_behind(centred, frames)
        if not self.deviation:
            return centred
        variance = centred.square().sum(1, keepdim=True) / (count - 1)
        return centred / (safe_power(variance, 0.5) + 1e-8)

    def graph_form(self):
        """The same in steps that one fixed graph can hold."""
        self.constants(torch.device("cpu"))  # kept from now on: no graph makes them
        form = copy.copy(self)
        form.__class__ = _GraphFeatures
        return form


class _GraphFeatures(ReDimNetFeatures):
    """All frames in one product: window and transform are one matrix, in float64."""

    def forward(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] → features [B, T', M], lens [B]."""
        bank = self.constants(wavs.device)
        samples = valid_counts(wav_lens, wavs.shape[1])
        frames, longest = self.frames_of(samples), self.frames_of(wavs.shape[1])
        wavs = self._bordered(wavs, samples)
        if self.kind == "tf":
            energies = self._energies(wavs, bank)
        else:
            overlapping = frames_in_graph(wavs, self.fft, self.hop, longest)
            power = spectra_by_product(overlapping, transform(bank.window))
            energies = torch.matmul(power, bank.mel)
        log_mel = self._logarithms(energies)
        return self._normalised(log_mel, frames), frames / longest


@functools.lru_cache
def _constants(frame, kind, n_fft, n_mels, f_min, f_max, rate, device):
    """Mel filters [bins, M] and the window.

    That of pt at its place in [n_fft]; of tf inside the transform [2 · bins, 1, frame],
    real parts, then imaginary ones. ε lets its rounding through: it is made as
    published.
    """
    if kind == "pt":
        mel = mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=n_mels,
            min_frequency=f_min,
            max_frequency=f_max,
            sampling_rate=rate,
            norm=None,
            mel_scale="htk",
        )
        left = (n_fft - frame) // 2
        window = torch.hamming_window(frame, device="cpu")
        window = F.pad(window, (left, n_fft - frame - left))
    else:
        mel = _shifted_filters(n_fft // 2, n_mels, f_min, f_max, rate)
        angles = np.outer(np.arange(frame), np.arange(n_fft // 2)) * 2 * np.pi / n_fft
        waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        hamming = np.hamming(frame).astype("float32")
        waves = waves.astype("float32") * hamming[:, None]
        window = torch.from_numpy(waves.T.copy()).unsqueeze(1)
    return filterbank_of(mel, window, device)


def _shifted_filters(bins, n_mels, f_min, f_max, rate):
    """Triangles over mels [bins, M] whose bins reach Nyquist one too early."""

    def mels(hertz):
        return 2595 * np.log10(1 + hertz / 700)

    edges = np.linspace(mels(f_min), mels(f_max), n_mels + 2)
    places = mels(np.linspace(0, rate // 2, bins))[:, None]
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    filters[0] = 0
    return filters
