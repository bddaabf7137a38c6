"""Pictures of a comparison: a score against its threshold, and spectrograms.

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
SAME, DIFFERENT = "tab:blue", "tab:orange"


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


def draw_spectrogram(wav):
    """:func:`spectrogram` as a picture, seconds by kHz → PNG, bytes."""
    levels, _ = spectrogram(wav)
    figure, axes = new_figure(5.6, 2.6)
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
    figure.colorbar(image, ax=axes, label="dB", pad=0.02, aspect=14)
    return png_bytes(figure)


def draw_gauge(score, threshold, kind, limits):
    """A score on a line that the threshold divides → PNG, bytes.

    ``kind`` names the score; ``limits`` (low, high) are widened to hold both numbers.
    """
    if not np.isfinite([score, threshold, *limits]).all():
        raise InputError(
            f"score {score}, threshold {threshold}, limits {limits}, expected finite "
            "numbers"
        )
    low, high = gauge_limits(score, threshold, limits)
    figure, axes = new_figure(7.2, 1.75)
    for start, end, colour, words in (
        (low, threshold, DIFFERENT, "different speakers"),
        (threshold, high, SAME, "same speaker"),
    ):
        axes.axvspan(start, end, color=colour, alpha=0.28, linewidth=0)
        if end - start > 0.22 * (high - low):  # else the words do not fit
            style = {"ha": "center", "va": "center", "fontsize": 9, "alpha": 0.85}
            axes.text((start + end) / 2, 0.22, words, **style)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1.4)
    colour = SAME if score >= threshold else DIFFERENT
    axes.plot([score], [0.6], "o", markersize=13, color=colour, markeredgecolor="black")
    _label(axes, threshold, f"threshold {threshold:.3f}", low, high)
    axes.set(xlim=(low, high), ylim=(0, 1), yticks=[])
    axes.set_xlabel(f"{kind} of the two clips: {score:.3f}")
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
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
