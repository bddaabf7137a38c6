"""Windows: where they lie, and what their embeddings become."""

import numpy as np
import pytest
import soundfile
from tiny_verifier import load, make_folder, plain, write_voice

from speechbrain_ext.inference.audio_input import Means, Recording, pieces_of
from speechbrain_ext.inference.folder import Rules
from speechbrain_ext.pretrained import load_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")


def places(frames, window, hop, rate=1):
    """[(start, frames)] of a recording; at 1 Hz seconds are samples."""
    rules = Rules(0.1, window / rate, hop / rate)
    pieces = pieces_of(5, Recording("x", frames, rate, 1), rules)
    assert all(piece.row == 5 for piece in pieces)
    assert all(piece.seconds == piece.frames / rate for piece in pieces)
    return [(piece.start, piece.frames) for piece in pieces]


@pytest.mark.parametrize(
    ("frames", "window", "hop", "expected"),
    [
        (9, 10, 10, [(0, 9)]),
        (10, 10, 10, [(0, 10)]),
        (11, 10, 10, [(0, 10), (1, 10)]),
        (20, 10, 10, [(0, 10), (10, 10)]),
        (25, 10, 10, [(0, 10), (10, 10), (15, 10)]),
        (25, 10, 5, [(0, 10), (5, 10), (10, 10), (15, 10)]),
        (10**9, float("inf"), float("inf"), [(0, 10**9)]),
    ],
)
def test_where_windows_lie(frames, window, hop, expected):
    assert places(frames, window, hop) == expected


@pytest.mark.parametrize("seed", range(20))
def test_windows_cover_all_and_none_reaches_beyond(seed):
    random = np.random.default_rng(seed)
    rate = int(random.integers(4000, 50_000))
    frames = int(random.integers(1000, 400_000))
    window = int(random.integers(500, 100_000))
    hop = int(random.integers(1 + window // 10, window + 1))
    found = places(frames, window, hop, rate)
    covered = np.zeros(frames, dtype=bool)
    for start, length in found:
        assert start >= 0
        assert start + length <= frames
        covered[start : start + length] = True
    assert covered.all()


def test_means_by_hand():
    means = Means(3, 2)
    means.add(np.array([0, 2, 0]), np.array([[1, 2], [5, 6], [3, 8]], np.float32))
    means.add(np.array([0]), np.array([[5, 5]], np.float32))
    assert means.found().tolist() == [True, False, True]
    found = means.collect()
    assert found[[0, 2]].tolist() == [[3, 5], [5, 6]]
    assert np.isnan(found[1]).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model") / "final")


def test_short_files_are_embedded_whole_to_the_bit(folder, tmp_path):
    verifier = load(folder)
    paths = [write_voice(tmp_path / f"{n}.wav", n, 0.5 + 0.1 * n, n) for n in range(6)]
    whole = verifier.encode_files(paths, window_seconds=float("inf"))
    for options in ({}, {"window_seconds": 1.0, "hop_seconds": 0.3}):
        assert (verifier.encode_files(paths, **options) == whole).all()


def test_a_long_file_is_the_mean_of_its_windows(folder, tmp_path):
    verifier, model = load(folder), load_pretrained(folder)
    path = write_voice(tmp_path / "long.wav", 1, 2.5)
    other = write_voice(tmp_path / "other.wav", 2, 1.0)
    wav, _ = soundfile.read(path)
    parts = []
    for number, start in enumerate((0.0, 0.6, 1.2, 1.5)):
        first = round(start * 16000)
        part = tmp_path / f"part{number}.wav"
        soundfile.write(part, wav[first : first + 16000], 16000)
        parts.append(plain(model, part))
    # of different magnitude: scaled to length 1 first, the mean would be another one
    assert np.ptp(np.linalg.norm(parts, axis=1)) > 1e-3
    for batch_size in (1, 2, 64):
        found = verifier.encode_files(
            [other, path],
            batch_size=batch_size,
            window_seconds=1.0,
            hop_seconds=0.6,
        )
        np.testing.assert_allclose(found[1], np.mean(parts, axis=0), atol=1e-4)
        np.testing.assert_allclose(found[0], plain(model, other), atol=1e-4)


def test_windows_come_from_the_model_s_own_file(tmp_path):
    rules = {"window_seconds": 1.0, "hop_seconds": 0.6}
    with_windows = make_folder(tmp_path / "a", inference=rules)
    without = make_folder(tmp_path / "b")
    path = write_voice(tmp_path / "long.wav", 1, 2.5)
    found = load(with_windows).encode_files([path])
    assert (
        found == load(without).encode_files([path], 64, "raise", None, 1.0, 0.6)
    ).all()
    assert (found != load(without).encode_files([path])).any()
    assert (found == load(without, overrides=rules).encode_files([path])).all()


def test_a_window_alone_is_its_own_hop(folder, tmp_path):
    verifier = load(folder)
    path = write_voice(tmp_path / "long.wav", 1, 2.5)
    both = verifier.encode_files([path], window_seconds=1.0, hop_seconds=1.0)
    assert (verifier.encode_files([path], window_seconds=1.0) == both).all()


def test_silent_windows_do_not_count(folder, tmp_path):
    verifier, model = load(folder), load_pretrained(folder)
    path = write_voice(tmp_path / "speech.wav", 1, 1.0)
    wav, _ = soundfile.read(path)
    padded = tmp_path / "padded.wav"
    soundfile.write(padded, np.concatenate([wav, np.zeros(32000)]), 16000)
    found = verifier.encode_files([padded], window_seconds=1.0)
    np.testing.assert_allclose(found[0], plain(model, path), atol=1e-4)


def test_windows_of_another_rate(folder, tmp_path):
    verifier = load(folder)
    path = write_voice(tmp_path / "long.wav", 1, 2.0, rate=48000)
    wav, _ = soundfile.read(path)
    parts = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for part, half in zip(parts, (wav[:48000], wav[48000:])):
        soundfile.write(part, half, 48000)
    found = verifier.encode_files([path, *parts], window_seconds=1.0)
    np.testing.assert_allclose(found[0], found[1:].mean(0), atol=1e-4)
