"""Waveform → w2v-BERT 2.0 input, batched, differentiable, on any device.

Kaldi's log-mel filterbank as transformers' ``SeamlessM4TFeatureExtractor`` computes
it, frame by frame x of 25 ms every 10 ms:

    y = (x − mean(x)) · 2^15          remove DC, 16-bit range
    y[n] ← y[n] − 0.97 y[n−1]          pre-emphasis, y[0] ← 0.03 y[0]
    f = log max(M |FFT512(w · y)|², 2⁻²³)  povey window w, 80 Kaldi mels 20 Hz–8 kHz
    z = (f − mean_t f) / √(var_t f + 1e−7)  per utterance and mel bin, N−1
    input[t] = (z[2t], z[2t+1])        two frames stacked: 160 values at 50 Hz

Every frame that would reach into the padding is left out, before the mean and the
variance are taken, so that a padded batch equals its single utterances.
"""

import functools

import numpy as np
import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank, window_function

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import full_precision, has_float64, valid_counts

SAMPLE_RATE = 16000
FRAME = 400
HOP = 160
FFT = 512
MELS = 80
STACK = 2
PREEMPHASIS = 0.97
MEL_FLOOR = 2.0**-23
VARIANCE_FLOOR = 1e-7
MIN_SAMPLES = FRAME + HOP * (STACK - 1)
# Frames taken at once: on a CPU, for each thread, what fits in its cache (3 times
# faster than all at once), elsewhere what bounds the memory of long recordings.
CPU_CHUNK, CHUNK = 768, 65536


class W2VBertFeatures(nn.Module):
    """The 160-dimensional input of w2v-BERT 2.0.

    Always computed in float32, also under autocast: 2^15 squared leaves bf16 no
    digits. Up to the spectrum even in float64: beside a loud tone the quiet mel bins
    are less than float32's rounding of it, which the logarithm would show. For a device
    without float64, as Apple's GPUs, the CPU computes them. Holds no parameters and
    adds nothing to a state dict.

    Arguments
    ---------
    normalise_variance : bool
        As w2v-BERT 2.0 does. False takes the mean off only: the spread of a mel bin
        tells speakers apart in short clean recordings, and an encoder that starts from
        random weights may learn from it.

    Example
    -------
    >>> features, lens = W2VBertFeatures()(torch.rand(2, 16000) - 0.5)
    >>> features.shape, lens
    (torch.Size([2, 49, 160]), tensor([1., 1.]))
    """

    def __init__(self, normalise_variance=True):
        super().__init__()
        self.normalise_variance = normalise_variance

    def forward(self, wavs, wav_lens=None):
        """Compute the features of a batch.

        Arguments
        ---------
        wavs : torch.Tensor
            [B, T], float in ±1 at 16 kHz, padded on the right.
        wav_lens : torch.Tensor
            [B], valid part of each row relative to T (SpeechBrain's convention).
            None: all rows are full.

        Returns
        -------
        features : torch.Tensor
            [B, T', 160]; zero in the padding. T' = ⌊frames / 2⌋ of the longest row.
        lens : torch.Tensor
            [B], valid part of each row relative to T'.

        Raises
        ------
        InputError
            Wrong shape, or a row shorter than 560 samples (two frames, 35 ms).
        """
        samples, device = sample_counts(wavs, wav_lens), wavs.device
        if not has_float64(device):
            samples, wavs = samples.cpu(), wavs.cpu()
        with full_precision(wavs):
            wavs = without_padding(wavs.float(), samples)
            features, lens = self._features(wavs, samples)
        return features.to(device), lens.to(device)

    def _features(self, wavs, samples):
        """A few rows at a time, from waveform to normalised features."""
        frames = 1 + (samples - FRAME) // HOP
        longest = int(frames.max())
        padded = int(frames.min()) < longest
        size = chunk_size(wavs.device)
        rows = max(1, size // longest)
        parts = []
        for some, valid in zip(wavs.split(rows), frames.split(rows)):
            log_mel = _log_mel(some, longest, size)  # [b, F, 80]
            parts.append(self._normalised(log_mel, valid if padded else None))
        steps = frames // STACK
        return torch.cat(parts), steps / (longest // STACK)

    def _normalised(self, log_mel, frames):
        """[b, F, 80], valid frames [b] or None: all → [b, F / 2, 160]."""
        total = log_mel.shape[1] // STACK
        if frames is None:
            normalised = _normalise(log_mel, self.normalise_variance)
        else:
            places = torch.arange(log_mel.shape[1], device=log_mel.device)
            valid = (places < frames[:, None]).unsqueeze(-1)
            normalised = _normalise_valid(
                log_mel, valid, frames, self.normalise_variance
            )
        shape = (log_mel.shape[0], total, STACK * MELS)
        stacked = normalised[:, : total * STACK].reshape(shape)
        if frames is not None:
            # the last frame of an odd number has no partner
            inside = places[:total] < (frames // STACK)[:, None]
            stacked = stacked * inside.unsqueeze(-1)
        return stacked


def chunk_size(device):
    if device.type == "cpu":
        return CPU_CHUNK * torch.get_num_threads()
    return CHUNK


def _log_mel(wavs, n_frames, size):
    """[B, T] → [B, F, 80], ``size`` frames at a time.

    Pre-emphasis runs on the waveform and not on its overlapping frames: what the
    first sample of a frame takes from the one before it, the window multiplies by
    zero. The mean of a frame is taken off after it, where it is 0.03 times as much.
    """
    size = max(1, size // len(wavs))
    parts = []
    for start in range(0, n_frames, size):
        stop = min(start + size, n_frames)
        samples = slice(start * HOP, (stop - 1) * HOP + FRAME)
        parts.append(_log_mel_of(wavs[:, samples]))
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _log_mel_of(wavs):
    """[B, (f − 1)·160 + 400] → [B, f, 80]."""
    mel, window = filterbank(wavs.device)
    wide = wavs.to(window.dtype)
    offset = _frame_means(wide) * (1 - PREEMPHASIS)  # [B, f]
    # so that frames come as long as the transform, where the window is zero
    wide = nn.functional.pad(wide, (1, FFT - FRAME))
    emphasised = torch.sub(wide[:, 1:], wide[:, :-1], alpha=PREEMPHASIS)
    frames = emphasised.unfold(-1, FFT, HOP)  # [B, f, 512], a view
    windowed = (frames - offset.unsqueeze(-1)).mul_(window)
    spectrum = torch.view_as_real(torch.fft.rfft(windowed))  # [B, f, 257, 2]
    squares = spectrum.float().square_()
    power = squares[..., 0] + squares[..., 1]
    return torch.matmul(power, mel).clamp_(min=MEL_FLOOR).log_()


def without_padding(wavs, samples):
    """Zeros in the padding, where NaN would pass through a window of zero."""
    if int(samples.min()) == wavs.shape[1]:
        return wavs
    valid = torch.arange(wavs.shape[1], device=wavs.device) < samples.unsqueeze(1)
    return wavs.where(valid, 0.0)


def _frame_means(wavs):
    """Mean of every frame from sums of 80 samples: [B, T] → [B, f]."""
    block = FRAME // 5  # five blocks make a frame, two make a hop
    sums = wavs.unflatten(-1, (-1, block)).sum(-1)
    return sums.unfold(-1, FRAME // block, HOP // block).sum(-1) / FRAME


@functools.lru_cache
def filterbank(device):
    """Mel filters float32 [257, 80] and window [512] on a device, made once.

    Not buffers of the module: ``.half()`` would round them, and a module built on the
    meta device would lose them. The window is float64, times 2^15, zero from 400 on.
    """
    mel = mel_filter_bank(
        num_frequency_bins=FFT // 2 + 1,
        num_mel_filters=MELS,
        min_frequency=20,
        max_frequency=SAMPLE_RATE // 2,
        sampling_rate=SAMPLE_RATE,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    window = window_function(FRAME, "povey", periodic=False) * 2.0**15
    window = np.pad(window, (0, FFT - FRAME))
    # a tensor made in inference mode could never meet a gradient later
    with torch.inference_mode(False):
        return (
            torch.tensor(mel, dtype=torch.float32, device=device),
            torch.tensor(window, dtype=torch.float64, device=device),
        )


def sample_counts(wavs, wav_lens=None, minimum=MIN_SAMPLES):
    """Valid samples of each row of a padded batch [B, T]: int64 [B] on its device.

    ``wav_lens`` [B] are relative to T. InputError: wrong shapes, or a row of fewer than
    ``minimum``.
    """
    if wavs.dim() != 2:
        raise InputError(f"wavs: shape {tuple(wavs.shape)}, expected [batch, samples]")
    if wav_lens is None:
        wav_lens = torch.ones(len(wavs))
    if wav_lens.shape != wavs.shape[:1]:
        raise InputError(
            f"wav_lens: shape {tuple(wav_lens.shape)}, expected [{len(wavs)}]"
        )
    samples = valid_counts(wav_lens, wavs.shape[1])
    shortest = int(samples.min()) if len(samples) else 0
    if shortest < minimum or int(samples.max()) > wavs.shape[1]:
        raise InputError(
            f"wavs: a row of {shortest} samples ({shortest / SAMPLE_RATE:.3f} s) in a "
            f"batch of {wavs.shape[1]}, expected {minimum} ({minimum / 16:.0f} "
            "ms) to all of it"
        )
    return samples.to(wavs.device)


def _normalise(log_mel, variance_too):
    """Zero mean, unit variance over time (N−1): [B, F, 80] → the same."""
    # less the first frame, a bin that never moves has a mean of exactly zero: else
    # the rounding of its mean would be divided by √1e−7
    log_mel = log_mel - log_mel[:, :1]
    centred = log_mel - log_mel.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / (log_mel.shape[1] - 1)
    return centred * (variance + VARIANCE_FLOOR).rsqrt() if variance_too else centred


def _normalise_valid(log_mel, valid, frames, variance_too):
    """The same over the valid frames only; valid [B, F, 1], frames [B]."""
    count = frames.view(-1, 1, 1)
    log_mel = torch.where(valid, log_mel - log_mel[:, :1], 0.0)
    mean = log_mel.sum(1, keepdim=True) / count
    centred = torch.where(valid, log_mel - mean, 0.0)
    variance = centred.square().sum(1, keepdim=True) / (count - 1)
    return centred * (variance + VARIANCE_FLOOR).rsqrt() if variance_too else centred


# -- for ONNX --------------------------------------------------------------------------


class GraphFeatures(W2VBertFeatures):
    """The same features in steps that one fixed graph can hold.

    All frames are taken in one product, x_f · P. The steps up to the spectrum are
    linear in the 400 samples x_f of a frame: removal of the mean, pre-emphasis, window,
    2^15 and the transform are one matrix P. It is float64 as they are, so that a quiet
    mel bin beside a loud tone comes out the same.
    """

    def __init__(self, normalise_variance=True):
        super().__init__(normalise_variance)
        mel, _ = filterbank(torch.device("cpu"))
        self.register_buffer("projection", _spectrum_matrix(), persistent=False)
        self.register_buffer("mel", mel, persistent=False)

    def forward(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] → features [B, T', 160], lens [B]."""
        samples = valid_counts(wav_lens, wavs.shape[1])
        inside = torch.arange(wavs.shape[1], device=wavs.device) < samples.unsqueeze(1)
        overlapping = _overlapping_frames(wavs.where(inside, 0.0)).double()
        spectrum = torch.matmul(overlapping, self.projection)
        real, imaginary = spectrum.float().square().chunk(2, dim=-1)
        power = torch.matmul(real + imaginary, self.mel)
        frames = 1 + (samples - FRAME) // HOP
        features = self._normalised(power.clamp(min=MEL_FLOOR).log(), frames)
        return features, frames // STACK / features.shape[1]


def _spectrum_matrix():
    """P [400, 2·257], float64: real parts of the spectrum, then imaginary ones."""
    _, window = filterbank(torch.device("cpu"))
    frames = torch.eye(FRAME, dtype=torch.float64)
    frames = frames - frames.mean(1, keepdim=True)
    before = nn.functional.pad(frames, (1, 0))[:, :-1]
    emphasised = frames - PREEMPHASIS * before  # the window is 0 at the first sample
    spectrum = torch.fft.rfft(emphasised * window[:FRAME], n=FFT)
    return torch.cat([spectrum.real, spectrum.imag], dim=1)


def _overlapping_frames(wavs):
    """[B, T] → [B, F, 400].

    F is rounded up to pairs, so that stacking them leaves no frame over; the frame
    beyond the end holds nothing of use and lies in the padding of every row.
    """
    samples = wavs.shape[1]
    pairs = (samples - FRAME + STACK * HOP) // (STACK * HOP)
    starts = torch.arange(STACK * pairs, device=wavs.device) * HOP
    places = starts.unsqueeze(1) + torch.arange(FRAME, device=wavs.device)
    return wavs[:, places.clamp(max=samples - 1)]
