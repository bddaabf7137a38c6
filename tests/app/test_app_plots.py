"""Pictures of a comparison: levels of a tone, places on the line."""

import io

import numpy as np
import pytest
from PIL import Image

from speechbrain_ext.app.plots import (
    MOST_COLUMNS,
    draw_clip,
    draw_gauge,
    envelope,
    gauge_limits,
    spectrogram,
)
from speechbrain_ext.utils.errors import InputError

SIDES = "different speakers", "same speaker"


def tone(hertz, seconds):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * 16000)) / 16000)


def test_a_tone_is_loudest_at_its_frequency():
    levels, hop = spectrogram(tone(1000, 1.0))
    assert hop == 160
    assert levels.shape == (257, 1 + (16000 - 400) // 160)
    assert (levels.argmax(axis=0) == 32).all()  # 1000 Hz of 31.25 Hz a bin
    assert levels.max() == 0
    assert levels.min() == pytest.approx(-70)


def test_half_the_amplitude_is_six_decibels_less():
    wav = tone(1000, 2.0)
    wav[16000:] /= 2
    levels, _ = spectrogram(wav)
    assert levels[32, -1] - levels[32, 0] == pytest.approx(-6.02, abs=0.01)


@pytest.mark.parametrize("samples", [400, 160_240, 160_241, 3_200_000])
def test_columns_are_bounded(samples):
    levels, hop = spectrogram(np.random.default_rng(0).standard_normal(samples))
    assert levels.shape[1] <= MOST_COLUMNS
    assert levels.shape[1] == 1 + (samples - 400) // hop
    assert (hop == 160) == (samples <= 160_240)  # 400 + 999 · 160


@pytest.mark.parametrize("wav", [np.zeros(399), np.zeros((2, 4000))])
def test_no_window_fits(wav):
    with pytest.raises(InputError, match=r"expected \[T\] with T of 400 or more"):
        spectrogram(wav)


@pytest.mark.parametrize("samples", [1, 999, 1000, 1001, 12_345])
def test_the_envelope_holds_every_sample(samples):
    wav = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    low, high, starts = envelope(wav)
    assert len(starts) == min(samples, MOST_COLUMNS)
    for part, least, most in zip(np.split(wav, starts[1:]), low, high, strict=True):
        assert (part.min(), part.max()) == (least, most)


def green(segments):
    """Share of a clip's picture in each of its quarters that speech's colour fills."""
    image = pixels(draw_clip(tone(700, 4.0), segments)).astype(int)
    spoken = (image[..., 1] > image[..., 0] + 60) & (image[..., 1] > image[..., 2] + 60)
    spoken[len(image) // 3 :] = False  # the waveform stands above the spectrogram
    return [part.mean() for part in np.array_split(spoken[:, 52:-104], 4, axis=1)]


def test_speech_is_marked_where_it_is():
    none, all_of_it = green(None), green([[0, 64000]])
    assert max(none) == 0
    assert min(all_of_it) > 0.15
    second = green([[20000, 28000]])
    assert second[1] > 0.25 * all_of_it[1]
    assert second[0] == second[2] == second[3] == 0


def test_silence_has_a_picture():
    levels, _ = spectrogram(np.zeros(4000))
    assert np.isfinite(levels).all()


def test_the_same_sound_gives_the_same_bytes():
    wav = tone(700, 0.5)
    assert draw_clip(wav) == draw_clip(wav)
    assert pixels(draw_clip(wav)).shape[2] == 3


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def centre_of_marker(score, threshold):
    """Column of the marker in the picture, by its full colour."""
    colour = (31, 119, 180) if score >= threshold else (255, 127, 14)
    picture = draw_gauge(score, threshold, "Cosine", (-1, 1), SIDES)
    found = (pixels(picture) == colour).all(2)
    assert found.any()
    return np.flatnonzero(found.any(axis=0)).mean()


def test_the_marker_moves_with_the_score_and_takes_the_side_of_the_threshold():
    places = [centre_of_marker(score, 0.3) for score in (-0.5, 0.0, 0.3, 0.8)]
    steps = np.diff(places)
    assert steps / steps[0] == pytest.approx([1, 0.6, 1], abs=0.02)


@pytest.mark.parametrize(
    ("score", "threshold", "low", "high"),
    [
        (0.5, 0.3, -1, 1),
        (0.99, 0.3, -1, 1.12),
        (-3.0, 0.3, -3.24, 1),
        (0.5, 2.0, -1, 2.18),
    ],
)
def test_the_line_holds_score_and_threshold(score, threshold, low, high):
    assert gauge_limits(score, threshold, (-1, 1)) == pytest.approx((low, high))


def test_equal_numbers_still_make_a_line():
    low, high = gauge_limits(2.0, 2.0, (2.0, 2.0))
    assert low < 2.0 < high


def test_no_line_for_nan():
    with pytest.raises(InputError, match=r"score nan, .* expected finite numbers"):
        draw_gauge(float("nan"), 0.3, "Cosine", (-1, 1), SIDES)
