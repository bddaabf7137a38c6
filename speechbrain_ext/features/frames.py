"""Frames of a padded batch of waveforms, and their power spectra.

Rows are checked and cut at their own ends. Spectra are made a few frames at a time,
what fits in the cache; or, where one fixed graph has to hold them, of all frames by a
matrix P that has window w and transform in it::

    |FFT(w · x)|² = (x Re P)² + (x Im P)²,     P = FFT(diag w), in float64
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import full_precision, valid_counts

SAMPLE_RATE = 16000
FRAME = 400
HOP = 160
# Frames taken at once: on a CPU, for each thread, what fits in its cache (2.5 times
# faster than all at once), elsewhere what bounds the memory of long recordings.
CPU_CHUNK, CHUNK = 640, 65536
PART = 16  # mel bins of one product: what its kernels take at once


# -- rows ------------------------------------------------------------------------------


def sample_counts(wavs, wav_lens, minimum, rate=SAMPLE_RATE):
    """Valid samples of each row of a padded batch [B, T]: a list of int.

    ``wav_lens`` [B] are relative to T. InputError: wrong shapes, or a row of fewer than
    ``minimum``.
    """
    if wavs.dim() != 2:
        raise InputError(f"wavs: shape {tuple(wavs.shape)}, expected [batch, samples]")
    if wav_lens is not None and wav_lens.shape != wavs.shape[:1]:
        raise InputError(
            f"wav_lens: shape {tuple(wav_lens.shape)}, expected [{len(wavs)}]"
        )
    total = wavs.shape[1]
    if wav_lens is None:
        samples = [total] * len(wavs)
    else:
        samples = valid_counts(wav_lens, total).tolist()
    shortest = min(samples, default=0)
    if shortest < minimum or max(samples) > total:
        raise InputError(
            f"wavs: a row of {shortest} samples ({shortest / rate:.3f} s) in a "
            f"batch of {total}, expected {minimum} ({1000 * minimum / rate:.0f} ms) "
            "to all of it"
        )
    return samples


def zero_behind(x, count):
    """Zeros from ``count`` [B] on, where NaN would pass through a window of zero.

    [B, T, …] → the same.
    """
    places = torch.arange(x.shape[1], device=x.device)
    valid = places < count.unsqueeze(1)
    return x.where(valid.view(*valid.shape, *[1] * (x.dim() - 2)), 0.0)


def mirrored(wavs, samples, margin):
    """[B, T] → [B, T + 2 margin]: so many samples mirrored at both ends of each row.

    Row b ends after ``samples`` [B] of it, None: all of it, and zeros follow, also
    behind what is mirrored there.
    """
    before = wavs[:, 1 : margin + 1].flip(1)
    if samples is None:
        return torch.cat([before, wavs, wavs[:, -margin - 1 : -1].flip(1)], dim=1)
    steps = torch.arange(margin, device=wavs.device)
    ends = samples.unsqueeze(1)
    after = wavs.gather(1, ends - 2 - steps)
    wide = torch.cat([before, wavs, torch.zeros_like(before)], dim=1)
    return wide.scatter(1, margin + ends + steps, after)


# -- spectra ---------------------------------------------------------------------------


def chunk_size(device):
    """Frames that are taken at once on a device."""
    if device.type == "cpu":
        return CPU_CHUNK * torch.get_num_threads()
    return CHUNK


class MelFeatures(nn.Module):
    """Waveform → features of a front end, each row of a batch as if it were alone.

    A few rows at a time, in float32 also under autocast. A front end has
    ``min_samples`` of the shortest row, ``frames_of`` and ``_features``.
    """

    sample_rate = SAMPLE_RATE  # Hz of the waveform
    stacked = 1  # frames that make one of the output

    def forward(self, wavs, wav_lens=None):
        """Compute the features of a batch.

        Arguments
        ---------
        wavs : torch.Tensor
            [B, T], float in ±1, padded on the right.
        wav_lens : torch.Tensor
            [B], valid part of each row relative to T (SpeechBrain's convention).
            None: all rows are full.

        Returns
        -------
        features : torch.Tensor
            [B, T', M], T' those of the longest row (``frames_of``, as many of them as
            are stacked); zero in the padding.
        lens : torch.Tensor
            [B], valid part of each row relative to T'.

        Raises
        ------
        InputError
            Wrong shape, or a row shorter than ``min_samples``.
        """
        samples = sample_counts(wavs, wav_lens, self.min_samples, self.sample_rate)
        frames = [self.frames_of(count) for count in samples]
        longest = max(frames)
        rows = max(1, chunk_size(wavs.device) // longest)
        with full_precision(wavs):
            wavs = wavs.float()
            if min(samples) == wavs.shape[1]:
                some = wavs.split(rows)
                found = [self._features(x, None, None, longest) for x in some]
                lens = wavs.new_ones(len(wavs))
            else:
                counts = torch.tensor([samples, frames]).to(wavs.device)
                some = zip(wavs.split(rows), *(count.split(rows) for count in counts))
                found = [
                    self._features(zero_behind(x, n), n, valid, longest)
                    for x, n, valid in some
                ]
                lens = counts[1] // self.stacked / (longest // self.stacked)
        return found[0] if len(found) == 1 else torch.cat(found), lens

    def frames_of(self, samples):
        """Frames of so many samples, a number or a tensor of them."""
        raise NotImplementedError(f"{type(self).__name__}.frames_of")

    def _features(self, wavs, samples, frames, longest):
        """Some rows, from waveform to normalised features.

        [b, T], zero behind their ``samples`` [b] → [b, ``longest``, M], of which
        ``frames`` [b] are valid. Both counts are None where every row is full.
        """
        raise NotImplementedError(f"{type(self).__name__}._features")


class Filterbank(NamedTuple):
    """What makes mel energies of frames, on one device."""

    parts: list  # [(slice of a frame's squares, filters [2 · its bins, 16]), …]
    mel: torch.Tensor  # the filters, float32 [bins, M]
    window: torch.Tensor


def filterbank_of(mel, window, device):
    """Filters [bins, M], an array or a tensor, and a window, on the CPU → Filterbank.

    A few mel bins look at their part of the spectrum only: a fifth of the products, in
    0.4 of the time. Each filter stands there twice, for the squares of the real and of
    the imaginary part: a pass less over the spectrum.
    """
    # tensors made in inference mode could never meet a gradient later
    with torch.inference_mode(False):
        mel = torch.as_tensor(mel, dtype=torch.float32, device="cpu")
        parts = [(both, some.to(device)) for both, some in _parts(mel)]
        return Filterbank(parts, *(x.to(device, copy=True) for x in (mel, window)))


def _parts(mel):
    for some in mel.split(PART, dim=1):
        heard = [int(n) for n in some.any(1).nonzero()] or [0]
        first, stop = heard[0], heard[-1] + 1
        twice = some[first:stop].repeat_interleave(2, dim=0)
        yield slice(2 * first, 2 * stop), twice


def safe_power(x, exponent):
    """x^exponent of x ≥ 0, with a gradient of 0 at 0, where a root has none."""
    return x.clamp(min=torch.finfo(x.dtype).tiny) ** exponent


def mel_energies(frames, bank, exponent=1):
    """Σ M |FFT(x)|²: windowed frames [B, f, frame] → [B, f, M].

    ``exponent``: of |FFT(x)|², before the filters M.
    """
    spectrum = torch.view_as_real(torch.fft.rfft(frames))
    squares = spectrum.float().square_()
    if exponent != 1:
        return torch.matmul(safe_power(squares.sum(-1), exponent), bank.mel)
    squares = squares.flatten(-2).flatten(0, 1)  # [B f, 2 · bins]
    energies = torch.cat([squares[:, both] @ mel for both, mel in bank.parts], dim=1)
    return energies.unflatten(0, frames.shape[:2])


def energies_in_parts(
    wavs, bank, hop, n_frames, finish, exponent=1, windowed=torch.mul
):
    """[B, T] → [B, F, M], ``finish`` of energies [B, f, M], a few frames at a time.

    Frames are as long as the window of ``bank`` and begin every ``hop`` samples.
    ``windowed``: (frames [B, f, frame], window) → what is transformed.
    """
    # of equal sizes: a short one at the end takes longer than its share
    n_parts = math.ceil(n_frames * len(wavs) / chunk_size(wavs.device))
    frames = wavs.unfold(-1, len(bank.window), hop)[:, :n_frames]
    found = [
        finish(mel_energies(windowed(some, bank.window), bank, exponent))
        for some in frames.split(math.ceil(n_frames / n_parts), 1)
    ]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def transform(window):
    """P [frame, 2 · bins] in float64: real parts, then imaginary ones."""
    spectrum = torch.fft.rfft(torch.diag(window.double()))
    return torch.cat([spectrum.real, spectrum.imag], dim=1)


def spectra_by_product(frames, projection):
    """Frames [B, F, frame] and P → power spectra [B, F, bins]."""
    spectrum = torch.matmul(frames.double(), projection)
    real, imaginary = spectrum.float().square().chunk(2, dim=-1)
    return real + imaginary


def frames_in_graph(wavs, size, hop, n_frames):
    """[B, T] → [B, F, size], without a view that a graph cannot hold."""
    starts = torch.arange(n_frames, device=wavs.device) * hop
    return wavs[:, starts.unsqueeze(1) + torch.arange(size, device=wavs.device)]


def mirrored_frames_in_graph(wavs, samples, size, hop, n_frames):
    """The same around every ``hop`` samples, each row mirrored at its own ends."""
    starts = torch.arange(n_frames, device=wavs.device) * hop
    places = torch.arange(size, device=wavs.device) - size // 2
    places = (starts.unsqueeze(1) + places).abs()  # mirrored before the start
    last = samples.view(-1, 1, 1) - 1
    places = (last - (last - places).abs()).clamp(min=0)  # and at the end
    return wavs.gather(1, places.flatten(1)).view(places.shape)
