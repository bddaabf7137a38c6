"""Speech made again from what a model would keep of it: the spoofs' signal processing.

Source and filter, frame by frame: spectrum = envelope · excitation. Copy-synthesis
keeps an envelope and a pitch, or a mel spectrogram, and makes up the rest; conversion
changes pitch or envelope and keeps the rest. All methods take and give [T] float32 at
16 kHz and keep the length.

None multiplies matrices by BLAS, whose last bits depend on how many cores it finds.

Griffin-Lim with momentum: Perraudin, Balazs, Søndergaard, "A fast Griffin-Lim
algorithm", WASPAA 2013, equations 8-10. Linear prediction: Atal and Hanauer, JASA 50
(1971). Minimum phase from the cepstrum: Oppenheim and Schafer, "Discrete-Time Signal
Processing", section 12. WSOLA: Verhelst and Roelands, ICASSP 1993.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import irfft, rfft
from torchaudio.functional import melscale_fbanks

from speechbrain_ext.data.audio import SAMPLE_RATE

SIZE, HOP = 512, 128  # of the source-filter methods: 32 ms, 8 ms
LOWEST, HIGHEST = 60, 400  # Hz, of the pitch


def mel_griffin_lim(wav, rng, mels, size, hop, iterations, momentum=0.99):
    """Copy-synthesis: the mel spectrogram's magnitudes, with phases that fit them."""
    bank = melscale_fbanks(size // 2 + 1, 20.0, 8000.0, mels, SAMPLE_RATE).numpy()
    power = np.einsum("tf,fm->tm", np.abs(stft(wav, size, hop)) ** 2, bank)
    # Back to bins: the mean of a triangle's power, and between two of them in part.
    weights = bank / np.maximum(bank.sum(1, keepdims=True), 1e-3)
    power = np.einsum("tm,fm->tf", power / np.maximum(bank.sum(0), 1e-3), weights)
    return griffin_lim(np.sqrt(power), len(wav), hop, iterations, rng, momentum)


def griffin_lim(magnitude, length, hop, iterations, rng, momentum=0.99):
    """[frames, bins] of magnitudes → a signal whose spectrogram is near them."""
    size = 2 * (magnitude.shape[1] - 1)
    phase = np.exp(2j * np.pi * rng.random(magnitude.shape, np.float32))
    before = 0
    for _ in range(iterations):
        seen = stft(istft(magnitude * phase, length, hop), size, hop)
        phase = seen - momentum / (1 + momentum) * before
        phase /= np.abs(phase) + 1e-9
        before = seen
    return istft(magnitude * phase, length, hop)


def lpc_vocoder(wav, rng, order=18):
    """Linear prediction's filter, driven by single pulses or by noise."""
    source = _pulses(track_pitch(wav), len(wav), rng)
    return _filter(source, prediction_envelope(wav, order))


def harmonic_vocoder(wav, rng, quefrency=0.002):
    """Harmonics of equal phase under a smoothed spectrum, and noise where unvoiced."""
    source = _harmonics(track_pitch(wav), len(wav), rng)
    return _filter(source, np.exp(cepstrum_envelope(wav, quefrency)))


def mixed_vocoder(wav, rng, quefrency=0.0025, edge=3000):
    """Minimum-phase filter, driven by harmonics below ``edge`` Hz and noise above."""
    voiced = stft(_harmonics(track_pitch(wav), len(wav), rng), SIZE, HOP)
    noise = stft(rng.standard_normal(len(wav), np.float32), SIZE, HOP)
    frequency = np.arange(voiced.shape[1]) * SAMPLE_RATE / SIZE
    low = 1 / (1 + np.exp((frequency - edge) / 400)).astype(np.float32)
    source = np.sqrt(low) * voiced + np.sqrt(1 - low) * noise
    envelope = np.exp(_minimum_phase(cepstrum_envelope(wav, quefrency)))
    return istft(_fit(envelope, len(source)) * source, len(wav), HOP)


def convert_formants(wav, factor, order=18):
    """Move the formants by ``factor``; the residual of prediction stays as it is."""
    envelope = prediction_envelope(wav, order)
    bins = np.arange(envelope.shape[1])
    source = np.minimum(bins / factor, bins[-1])
    log = np.log(np.abs(envelope))
    left = np.minimum(source.astype(int), bins[-1] - 1)
    share = (source - left).astype(np.float32)
    moved = log[:, left] * (1 - share) + log[:, left + 1] * share
    return istft(stft(wav, SIZE, HOP) * np.exp(moved - log), len(wav), HOP)


def convert_pitch(wav, factor, size=1024):
    """Multiply the pitch by ``factor`` by a phase vocoder; formants move with it."""
    hop = size // 4
    frames = stft(wav, size, hop)
    # Every frame of the stretched signal lies between two of the old ones.
    places = np.arange(0, len(frames) - 1, 1 / factor)
    left = places.astype(int)
    share = (places - left)[:, None].astype(np.float32)
    magnitude = np.abs(frames)
    magnitude = magnitude[left] * (1 - share) + magnitude[left + 1] * share
    expected = 2 * np.pi * hop * np.arange(frames.shape[1]) / size
    advance = np.angle(frames[1:]) - np.angle(frames[:-1]) - expected
    advance = expected + (advance + np.pi) % (2 * np.pi) - np.pi
    phase = np.angle(frames[:1]) + np.cumsum(advance[left], axis=0)
    stretched = istft(
        (magnitude * np.exp(1j * phase)).astype(np.complex64),
        round(len(wav) * factor),
        hop,
    )
    return _resample(stretched, len(wav))


def convert_pitch_in_time(wav, factor, window=480, search=160):
    """Multiply the pitch by ``factor``: cut and overlap (WSOLA), then resample."""
    hop = window // 2
    length = round(len(wav) * factor)
    padded = np.pad(wav, (search, window + 2 * search + hop))
    shape = np.hanning(window + 1)[:-1].astype(np.float32)
    out = np.zeros(length + window, np.float32)
    follow = padded[:window]
    for start in range(0, length, hop):
        place = min(round(start / factor), len(wav))  # less ``search``, plus padding
        near = padded[place : place + window + 2 * search]
        cut = place + int(np.argmax(np.correlate(near, follow, "valid")))
        out[start : start + window] += shape * padded[cut : cut + window]
        follow = padded[cut + hop : cut + hop + window]
        follow = np.pad(follow, (0, window - len(follow)))
    return _resample(out[:length], len(wav))


def stft(wav, size, hop):
    """[T] → complex64 [frames, size // 2 + 1], Hann window."""
    padded = np.pad(wav, (size, size + -len(wav) % hop))
    return rfft(sliding_window_view(padded, size)[::hop] * _window(size))


def istft(spectrum, length, hop):
    """The signal of ``length`` whose :func:`stft` is nearest to ``spectrum``."""
    size = 2 * (spectrum.shape[1] - 1)
    window = _window(size)
    weight = _overlap_add(np.tile(window**2, (len(spectrum), 1)), hop)
    wav = _overlap_add(irfft(spectrum, size) * window, hop) / np.maximum(weight, 1e-3)
    wav = wav[size : size + length]
    return np.pad(wav, (0, length - len(wav)))


def track_pitch(wav, size=1024):
    """Pitch of every frame of ``HOP`` samples in Hz, 0 where unvoiced: [frames]."""
    padded = np.pad(wav, size // 2)
    window = _window(size)
    frames = sliding_window_view(padded, size)[::HOP]
    frames = (frames - frames.mean(1, keepdims=True)) * window
    spectra = np.abs(rfft(frames, 2 * size)) ** 2
    shape = irfft(np.abs(rfft(window, 2 * size)) ** 2)[: size // 2]
    likeness = irfft(spectra)[:, : size // 2] / np.maximum(shape / shape[0], 0.05)
    shortest, longest = SAMPLE_RATE // HIGHEST, SAMPLE_RATE // LOWEST
    peaks = likeness[:, shortest:longest]
    # The shortest lag almost as good as the best one: not an octave too low.
    best = peaks.max(1, keepdims=True)
    lag = shortest + np.argmax(peaks > 0.9 * best, axis=1)
    near = lag[:, None] + np.arange(-2, 3)  # its peak, a few samples further
    lag += np.argmax(np.take_along_axis(likeness, near, 1), axis=1) - 2
    energy = likeness[:, 0]
    voiced = (best[:, 0] > 0.5 * energy) & (energy > 1e-3 * energy.mean())
    return np.where(voiced, SAMPLE_RATE / lag, 0).astype(np.float32)


def prediction_envelope(wav, order):
    """Minimum-phase response of linear prediction: complex [frames, bins].

    By Levinson's recursion, all frames at once.
    """
    lags = irfft(np.abs(stft(wav, SIZE, HOP)) ** 2)[:, : order + 1].astype(float)
    lags[:, 0] = lags[:, 0] * (1 + 1e-5) + 1e-9
    taps = np.zeros((len(lags), order + 1))
    taps[:, 0], error = 1, lags[:, 0].copy()
    for n in range(1, order + 1):
        reflection = -(taps[:, :n] * lags[:, n:0:-1]).sum(1) / error
        taps[:, : n + 1] += reflection[:, None] * taps[:, n::-1]
        error *= 1 - reflection**2
    gain = np.sqrt(error / np.sum(_window(SIZE) ** 2))
    return (gain[:, None] / rfft(taps, SIZE)).astype(np.complex64)


def cepstrum_envelope(wav, quefrency):
    """Smoothed log magnitude: real values [frames, bins]."""
    log = np.log(np.abs(stft(wav, SIZE, HOP)) + 1e-5)
    log -= np.log(np.sqrt(np.sum(_window(SIZE) ** 2)))
    cepstrum = irfft(log)
    keep = round(quefrency * SAMPLE_RATE)
    cepstrum[:, keep : SIZE - keep + 1] = 0
    return rfft(cepstrum).real


def _minimum_phase(log):
    cepstrum = irfft(log)
    cepstrum[:, 1 : SIZE // 2] *= 2
    cepstrum[:, SIZE // 2 + 1 :] = 0
    return rfft(cepstrum)


def _filter(source, envelope):
    frames = stft(source, SIZE, HOP)
    return istft(frames * _fit(envelope, len(frames)), len(source), HOP)


def _fit(frames, count):
    return frames[np.minimum(np.arange(count), len(frames) - 1)]


def _phase(pitch, length):
    """Cycles until every sample, and which samples are voiced."""
    each = np.repeat(pitch, HOP)[:length]
    each = np.pad(each, (0, length - len(each)))
    return np.cumsum(each / SAMPLE_RATE, dtype=float), each


def _pulses(pitch, length, rng):
    cycles, each = _phase(pitch, length)
    beats = np.diff(np.floor(cycles), prepend=0) > 0
    pulses = np.where(beats, np.sqrt(SAMPLE_RATE / np.maximum(each, LOWEST)), 0)
    noise = rng.standard_normal(length)
    return np.where(each > 0, pulses, noise).astype(np.float32)


def _harmonics(pitch, length, rng):
    """All harmonics below 8 kHz, cosines of one phase (Dirichlet's kernel)."""
    cycles, each = _phase(pitch, length)
    count = np.floor(SAMPLE_RATE / 2 / np.maximum(each, LOWEST))
    half = np.pi * (cycles % 1)
    safe = np.abs(np.sin(half)) > 1e-6
    kernel = np.sin((2 * count + 1) * half) / np.where(safe, np.sin(half), 1)
    kernel = np.where(safe, kernel, 2 * count + 1)
    tone = (kernel - 1) / np.sqrt(2 * np.maximum(count, 1))
    noise = rng.standard_normal(length)
    return np.where(each > 0, tone, noise).astype(np.float32)


def _resample(wav, length):
    """Bring to ``length`` by interpolation after a low-pass at the new Nyquist."""
    spectrum = rfft(wav)
    bins = length // 2 + 1
    spectrum = np.pad(spectrum[:bins], (0, max(0, bins - len(spectrum))))
    return irfft(spectrum, length) * np.float32(length / len(wav))


def _window(size):
    return np.hanning(size + 1)[:-1].astype(np.float32)


def _overlap_add(frames, hop):
    count, size = frames.shape
    parts = size // hop
    out = np.zeros((count + parts - 1, hop), frames.dtype)
    for part in range(parts):
        out[part : part + count] += frames[:, part * hop : (part + 1) * hop]
    return out.reshape(-1)
