"""Recordings of any rate and length: against closed forms, and where windows lie."""

import logging

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ext.data.audio import joined_path
from speechbrain_ext.inference.audio_input import (
    Chunk,
    ChunkingConfig,
    Recording,
    _resampler,
    chunks_of,
    inspect_file,
    inspect_files,
    read_chunk,
    resampled,
    warn_of_conversions,
)
from speechbrain_ext.lobes.encoder import Encoder
from speechbrain_ext.utils.errors import InputError


def tone(rate, seconds=0.5, frequency=700):
    time = np.arange(round(rate * seconds)) / rate
    return np.sin(2 * np.pi * frequency * time).astype(np.float32)


# ---- other rates ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate", [8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000]
)
def test_a_tone_stays_the_tone(rate):
    found = resampled(torch.from_numpy(tone(rate)), rate).numpy()
    expected = tone(16000)
    assert len(found) == -(-len(tone(rate)) * 16000 // rate)
    inner = slice(200, 7600)
    np.testing.assert_allclose(found[inner], expected[inner], atol=5e-3)


def test_what_the_lower_rate_cannot_hold_is_filtered_out():
    found = resampled(torch.from_numpy(tone(48000, frequency=11_000)), 48000)
    assert found[200:-200].abs().max() < 0.02


def test_the_rate_of_the_model_is_left_alone():
    wav = torch.randn(100)
    assert resampled(wav, 16000) is wav


@pytest.mark.parametrize("rate", [44099, 15999, 22254, 16007, 767_999])
def test_an_odd_rate_takes_no_giant_filter(rate):
    """Its exact ratio would take a filter of gigabytes; a near one is within 0.05 %."""
    resampler = _resampler(rate)
    if resampler.orig_freq != resampler.new_freq:  # else there is no filter at all
        assert resampler.kernel.numel() < 2e7
    ratio = resampler.orig_freq / resampler.new_freq
    assert ratio == pytest.approx(rate / 16000, rel=5e-4)
    found = resampled(torch.from_numpy(tone(rate, 0.2)), rate)
    assert len(found) == pytest.approx(3200, rel=5e-4)


def test_one_warning_for_all_conversions(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_conversions([], 3)
        assert not caplog.records
        others = [Recording("b", 1, 16000, 2), *[Recording("c", 1, 8000, 1)] * 2]
        warn_of_conversions(others, 4)
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 4 recordings are converted to 16000 Hz with 1 channel: 2 of 8000 Hz with "
        "1 channel(s), 1 of 16000 Hz with 2 channel(s); first b"
    ]


# ---- reading -------------------------------------------------------------------------


def noise(path, frames=8000, rate=16000, channels=1):
    generator = np.random.default_rng(0)
    wav = (0.1 * generator.standard_normal((frames, channels))).astype(np.float32)
    soundfile.write(path, wav, rate, subtype="FLOAT")
    return wav.mean(axis=1)


def test_a_chunk_is_a_part_of_the_file(tmp_path):
    path = tmp_path / "a.wav"
    expected = noise(path, channels=3)
    recording = inspect_file(path, 0.25)
    assert recording[:4] == (str(path), 8000, 16000, 3)
    assert recording.seconds == 0.5
    for start, frames in ((0, -1), (1000, 50)):
        wav, found = read_chunk(recording, Chunk(0, start, frames, 0.5), 0.25)
        part = expected[start:] if frames < 0 else expected[start : start + frames]
        np.testing.assert_allclose(wav, part, atol=1e-7)
        assert found == recording
    with pytest.raises(
        InputError, match="50 samples decoded from 7950 on, expected 90"
    ):
        read_chunk(recording, Chunk(0, 7950, 90, 0.5), 0.25)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_what_a_manifest_says_in_16_khz_is_found_at_any_rate(tmp_path, rate):
    wav = noise(tmp_path / "a.wav", 2 * rate, rate)
    said = Recording(str(tmp_path / "a.wav"), 32000)
    whole, found = read_chunk(said, Chunk(0, 0, -1, 2.0), 0.25)
    assert (found.sample_rate, len(whole)) == (rate, 32000)
    last, _ = read_chunk(said, Chunk(0, 16000, 16000, 1.0), 0.25)
    torch.testing.assert_close(last, resampled(torch.from_numpy(wav[rate:]), rate))
    # a duration that was rounded up is no reason to refuse the last window
    beyond, _ = read_chunk(said, Chunk(0, 16002, 16000, 1.0), 0.25)
    assert abs(len(beyond) - 16000) < 8


def test_joined_recordings_are_read_as_one(tmp_path):
    parts = [noise(tmp_path / f"{n}.wav", n) for n in (5000, 7000)]
    path = joined_path([tmp_path / "5000.wav", tmp_path / "7000.wav"], [5000, 7000])
    recording = inspect_file(path, 0.25)
    assert recording.seconds == 0.75
    wav, _ = read_chunk(recording, Chunk(0, 4000, 2000, 0.125), 0.25)
    expected = np.concatenate(parts)[4000:6000]
    np.testing.assert_array_equal(wav, expected)


def test_many_headers_come_in_order(tmp_path):
    paths = []
    for number in range(70):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.ones(5000 + number), 16000)
        paths.append(str(path))
    paths[33] = str(tmp_path / "absent.wav")
    found = inspect_files(paths, 0.25)
    assert isinstance(found.pop(33), InputError)
    assert [r.frames for r in found] == [5000 + n for n in range(70) if n != 33]


# ---- windows -------------------------------------------------------------------------


def places(frames, window, hop, rate=1, max_seconds=None):
    """[(start, frames)] of a recording; at 1 Hz seconds are samples."""
    chunking = ChunkingConfig(0.1, window / rate, hop / rate)
    chunks = chunks_of(5, Recording("x", frames, rate), chunking, max_seconds)
    assert all(chunk.row == 5 for chunk in chunks)
    for chunk in chunks:
        length = frames if chunk.frames < 0 else chunk.frames
        assert chunk.seconds == length / rate
    return [(chunk.start, chunk.frames) for chunk in chunks]


@pytest.mark.parametrize(
    ("frames", "window", "hop", "cut", "expected"),
    [
        (9, 10, 10, None, [(0, -1)]),
        (10, 10, 10, None, [(0, -1)]),
        (11, 10, 10, None, [(0, 10), (1, 10)]),
        (20, 10, 10, None, [(0, 10), (10, 10)]),
        (25, 10, 10, None, [(0, 10), (10, 10), (15, 10)]),
        (25, 10, 5, None, [(0, 10), (5, 10), (10, 10), (15, 10)]),
        (10**9, float("inf"), float("inf"), None, [(0, -1)]),
        (25, 10, 10, 25, [(0, 10), (10, 10), (15, 10)]),
        (25, 10, 10, 8, [(8, 8)]),
        (25, 10, 10, 15, [(5, 10), (10, 10)]),
    ],
)
def test_where_windows_lie(frames, window, hop, cut, expected):
    assert places(frames, window, hop, max_seconds=cut) == expected


@pytest.mark.parametrize("seed", range(20))
def test_windows_cover_all_and_none_reaches_beyond(seed):
    random = np.random.default_rng(seed)
    rate = int(random.integers(4000, 50_000))
    frames = int(random.integers(1000, 400_000))
    window = int(random.integers(500, 100_000))
    hop = int(random.integers(1 + window // 10, window + 1))
    covered = np.zeros(frames, dtype=bool)
    for start, length in places(frames, window, hop, rate):
        length = frames if length < 0 else length
        assert start >= 0
        assert start + length <= frames
        covered[start : start + length] = True
    assert covered.all()


def encoder(shortest, longest=None):
    made = Encoder()
    made.min_samples, made.max_samples = shortest, longest
    return made


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.01, 60, 60), r"min_seconds is 0\.01, expected at least 0\.035"),
        ((None, 60, 60), "min_seconds is None, expected a number of seconds"),
        ((float("inf"),) * 3, "min_seconds is inf"),
        ((0.25, 0.1, 0.1), r"window_seconds is 0\.1, expected at least min_seconds"),
        ((0.25, True, 60), "window_seconds is True, expected a number"),
        ((0.25, "1", 60), "window_seconds is '1', expected a number"),
        ((0.25, 60, 0), "hop_seconds is 0, expected above 0"),
        ((0.25, 60, 90), "hop_seconds is 90, .* at most window_seconds, 60"),
    ],
)
def test_settings_out_of_range(values, expected):
    with pytest.raises(InputError, match=expected):
        ChunkingConfig(*values).checked(encoder(560))


def test_the_shortest_recording_is_the_encoder_s():
    """A larger stride needs more samples."""
    assert ChunkingConfig(0.25).checked(encoder(4000)) == (0.25, 60, 60)
    with pytest.raises(
        InputError, match=r"min_seconds is 0\.25, expected at least 0.5"
    ):
        ChunkingConfig(0.25).checked(encoder(8000))


def test_no_window_is_longer_than_the_encoder_takes():
    some = encoder(400, 480_000)
    assert ChunkingConfig(0.25).checked(some) == (0.25, 30, 30)
    assert ChunkingConfig(0.25, float("inf"), 20).checked(some) == (0.25, 30, 20)
    assert ChunkingConfig(0.25, 10, 5).checked(some) == (0.25, 10, 5)


@pytest.mark.parametrize("rate", [44099, 15999, 16007])
def test_a_window_at_an_odd_rate_is_as_long_as_at_any(tmp_path, rate):
    noise(tmp_path / "a.wav", 3 * rate, rate)
    recording = inspect_file(tmp_path / "a.wav", 0.25)
    for chunk in chunks_of(0, recording, ChunkingConfig(0.25, 2.0, 1.0)):
        wav, _ = read_chunk(recording, chunk, 0.25)
        assert 32000 - 16 <= len(wav) <= 32000


def test_a_window_alone_is_its_own_hop():
    assert ChunkingConfig(0.25, 60, 60).changed(1.0) == (0.25, 1.0, 1.0)
    assert ChunkingConfig(0.25, 60, 60).changed(1.0, 0.6) == (0.25, 1.0, 0.6)
    assert ChunkingConfig(0.25, 60, 60).changed(None, 30) == (0.25, 60, 30)
