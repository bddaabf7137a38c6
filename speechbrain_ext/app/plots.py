"""Pictures of the page: a score against its threshold; clips, with their speech marked.

    S[k, m] = 20 log10 |Σₙ w[n] x[n + m·H] exp(-2πikn / N)|

over windows w of 25 ms (Hann), N = 512, hop H of 10 ms, longer where a recording would
give more columns than a screen shows. Each gives the bytes of a PNG.
"""

import numpy as np
from scipy.signal import get_window

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.scoring.plots import new_figure, png_bytes
from speechbrain_ext.utils.errors import InputError

WINDOW, FFT, HOP = 400, 512, 160  # samples at 16 kHz
MOST_COLUMNS = 1000
RANGE_DB = 70.0  # shown below the loudest point
SAME, DIFFERENT, SPEECH = "tab:blue", "tab:orange", "tab:green"


def spectrogram(wav):
    """Levels of a waveform [T] at 16 kHz over frequency and time.

    Returns ``levels``, float32 [257, M], in dB below the loudest point, -70 at least,
    M ≤ 1000; and ``hop``, the samples from one column to the next.
    """
    wav = np.asarray(wav, dtype=np.float32)
    if wav.ndim != 1 or len(wav) < WINDOW:
        raise InputError(
            f"waveform of shape {list(wav.shape)}, expected [T] with T of {WINDOW} or "
            "more"
        )
    # ceil: one column more than the last that fits would be over the limit
    hop = max(HOP, -(-(len(wav) - WINDOW) // (MOST_COLUMNS - 1)))
    frames = np.lib.stride_tricks.sliding_window_view(wav, WINDOW)[::hop]
    window = get_window("hann", WINDOW).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window, FFT)) ** 2
    peak = max(power.max(), np.finfo(np.float32).tiny)
    floor = peak * 10 ** (-RANGE_DB / 10)
    levels = 10 * np.log10(np.maximum(power, floor) / peak)
    return levels.T.astype(np.float32), hop


def envelope(wav):
    """Parts of a waveform [T] → lowest, highest and first samples [M], M ≤ 1000."""
    wav = np.asarray(wav, dtype=np.float32)
    starts = np.unique(
        np.linspace(0, len(wav), MOST_COLUMNS, endpoint=False, dtype=int)
    )
    return np.minimum.reduceat(wav, starts), np.maximum.reduceat(wav, starts), starts


def draw_clip(wav, segments=None):
    """Waveform and :func:`spectrogram` over the same seconds → PNG, bytes.

    ``segments`` [S, 2], first sample and the one after the last, are where somebody
    speaks: the rest is grey. None: nobody looked for speech.
    """
    levels, _ = spectrogram(wav)
    figure, axes = new_figure(5.6, 3.4)
    axes.remove()
    above, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    low, high, starts = envelope(wav)
    style = {"step": "post", "linewidth": 0}
    seconds = starts / SAMPLE_RATE
    above.fill_between(seconds, low, high, color="0.6", **style)
    for start, stop in [] if segments is None else segments:
        place = start / SAMPLE_RATE, stop / SAMPLE_RATE
        above.axvspan(*place, color=SPEECH, alpha=0.18, linewidth=0)
        inside = (starts >= start) & (starts < stop)
        above.fill_between(seconds, low, high, where=inside, color=SPEECH, **style)
    peak = max(np.abs(low).max(), np.abs(high).max(), 1e-6)
    above.set(ylim=(-1.08 * peak, 1.08 * peak), yticks=[])
    if segments is not None and len(segments):
        above.set_ylabel("speech", color=SPEECH)
    elif segments is not None:  # too long for the side
        place = {"transform": above.transAxes, "ha": "center", "va": "top"}
        above.text(0.5, 0.96, "no speech found", color="0.3", **place)
    image = axes.imshow(
        levels,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-RANGE_DB,
        vmax=0,
        extent=(0, len(wav) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000),
        interpolation="nearest",
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("kHz")
    figure.colorbar(image, ax=[above, axes], label="dB", pad=0.02, aspect=20)
    return png_bytes(figure)


def draw_gauge(score, threshold, words, limits, sides):
    """A score on a line that the threshold divides → PNG, bytes.

    ``words`` stand below; ``sides`` name what lies below the threshold and above it;
    ``limits`` (low, high) are widened to hold both numbers.
    """
    if not np.isfinite([score, threshold, *limits]).all():
        raise InputError(
            f"score {score}, threshold {threshold}, limits {limits}, expected finite "
            "numbers"
        )
    low, high = gauge_limits(score, threshold, limits)
    figure, axes = new_figure(7.2, 1.75)
    for start, end, colour, side in (
        (low, threshold, DIFFERENT, sides[0]),
        (threshold, high, SAME, sides[1]),
    ):
        axes.axvspan(start, end, color=colour, alpha=0.28, linewidth=0)
        if end - start > 0.22 * (high - low):  # else the words do not fit
            style = {"ha": "center", "va": "center", "fontsize": 9, "alpha": 0.85}
            axes.text((start + end) / 2, 0.22, side, **style)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1.4)
    colour = SAME if score >= threshold else DIFFERENT
    axes.plot([score], [0.6], "o", markersize=13, color=colour, markeredgecolor="black")
    _label(axes, threshold, f"threshold {threshold:.3f}", low, high)
    axes.set(xlim=(low, high), ylim=(0, 1), yticks=[])
    axes.set_xlabel(words)
    for spine in ("left", "right", "top"):
        axes.spines[spine].set_visible(False)
    return png_bytes(figure)


def gauge_limits(score, threshold, limits):
    """``limits`` widened so that score and threshold lie clear of both ends."""
    low, high = min(*limits, score, threshold), max(*limits, score, threshold)
    margin = 0.06 * (high - low) or 0.5
    inside = low + margin, high - margin
    if min(score, threshold) < inside[0]:
        low -= margin
    if max(score, threshold) > inside[1]:
        high += margin
    return low, high


def _label(axes, place, words, low, high):
    """Words above the line, within the picture wherever ``place`` is."""
    part = (place - low) / (high - low)
    align = "left" if part < 0.15 else "right" if part > 0.85 else "center"
    axes.text(place, 1.04, words, ha=align, va="bottom", fontsize=9)
