"""encode_files: equal to one by one, in order, over every kind of bad file."""

import logging
import os
import shutil

import numpy as np
import pytest
import soundfile
import torch
from tiny_verifier import load, make_folder, plain, write_voice

from speechbrain_ext.inference import engine
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SECONDS = (0.6, 1.4, 0.3, 2.0, 0.9, 0.31, 1.1, 0.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model") / "final")


@pytest.fixture(scope="module")
def verifier(folder):
    return load(folder)


@pytest.fixture(scope="module")
def model(folder):
    return load_pretrained(folder)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("wavs")
    return [
        write_voice(root / f"{number}.wav", number, seconds, number)
        for number, seconds in enumerate(SECONDS)
    ]


@pytest.fixture(scope="module")
def expected(model, paths):
    return np.array([plain(model, path) for path in paths])


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-4, rtol=0)


# ---- equal to one by one -------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 3},
        {"max_batch_seconds": 2.5},
        {"max_batch_seconds": 1e-3},
        {"max_batch_seconds": float("inf")},
        {"window_seconds": float("inf")},
    ],
)
def test_files_equal_one_by_one(verifier, paths, expected, options):
    found = verifier.encode_files(paths, **options)
    assert found.shape == (8, 8)
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"
    close(found, expected)
    assert np.abs(expected[0] - expected[1]).max() > 0.01  # else order shows nothing


def test_order_and_duplicates_are_those_of_the_list(verifier, paths, expected):
    order = [3, 1, 1, 7, 0, 3, 2]
    found = verifier.encode_files([paths[row] for row in order])
    close(found, expected[order])
    assert torch.equal(found[1], found[2])


@pytest.fixture
def watched(verifier, monkeypatch):
    """The verifier, and what its model computes: shapes, threads, batches at once."""
    seen, busy, encode = [], [], verifier._encode

    def watching(wavs, wav_lens):
        busy.append(None)
        seen.append((wavs.shape, torch.get_num_threads(), len(busy)))
        embeddings = encode(wavs, wav_lens)
        busy.pop()
        return embeddings

    monkeypatch.setattr(verifier, "_encode", watching)
    return verifier, seen


def test_each_different_file_is_computed_once(watched, paths):
    verifier, seen = watched
    verifier.encode_files([paths[0]] * 5 + [paths[1]], batch_size=1)
    assert [shape[0] for shape, _, _ in seen] == [1, 1]


def test_batches_keep_to_their_bounds(watched, paths):
    verifier, seen = watched
    verifier.encode_files(paths, batch_size=3, max_batch_seconds=2.5)
    shapes = [shape for shape, _, _ in seen]
    assert all(b <= 3 and (b == 1 or b * t <= 2.5 * 16000) for b, t in shapes)
    assert max(b for b, _ in shapes) == 3
    assert sum(b for b, _ in shapes) == len(paths)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_cores_share_the_batches(watched, paths, expected, threads):
    """Each batch has its share of torch's threads, which come back at the end."""
    verifier, seen = watched
    torch.set_num_threads(threads)
    try:
        close(verifier.encode_files(paths, batch_size=1), expected)
        assert {number for _, number, _ in seen} == {1}
        assert max(at_once for _, _, at_once in seen) <= threads
        assert torch.get_num_threads() == threads
        seen.clear()
        close(verifier.encode_files(paths[:1]), expected[:1])
        assert {number for _, number, _ in seen} == {threads}
    finally:
        torch.set_num_threads(1)


def test_a_gpu_has_one_batch_at_a_time(watched, paths, expected, monkeypatch):
    verifier, seen = watched
    monkeypatch.setattr(verifier, "device_type", "cuda")  # for the order of work alone
    close(verifier.encode_files(paths, batch_size=1), expected)
    assert max(at_once for _, _, at_once in seen) == 1


def test_an_empty_list_gives_no_embeddings(verifier):
    assert verifier.encode_files([]).shape == (0, 8)
    embeddings, failures = verifier.encode_files([], on_error="collect")
    assert embeddings.shape == (0, 8)
    assert failures == []


def test_one_path_is_a_list_of_one(verifier, paths, expected):
    close(verifier.encode_files(paths[0]), expected[:1])


# ---- any rate, any channels, any format ----------------------------------------------


def rewritten(path, target, **options):
    wav, rate = soundfile.read(path)
    soundfile.write(target, wav, rate, **options)
    return str(target)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "FLOAT"),
        ("a.wav", "DOUBLE"),
        ("a.wav", "PCM_24"),
        ("a.flac", "PCM_16"),
    ],
)
def test_lossless_formats_give_the_same(
    verifier, paths, expected, tmp_path, name, subtype
):
    path = rewritten(paths[1], tmp_path / name, subtype=subtype)
    close(verifier.encode_files([path]), expected[1:2])


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_lossy_formats_are_read_and_seeked_in(verifier, paths, tmp_path, name):
    path = rewritten(paths[3], tmp_path / name)
    found = verifier.encode_files([path], window_seconds=0.8)
    assert torch.isfinite(found).all()


def test_channels_are_averaged(verifier, paths, model, tmp_path):
    left, right = (soundfile.read(path)[0][:9600] for path in paths[:2])
    both = tmp_path / "both.wav"
    soundfile.write(both, np.stack([left, right], 1), 16000, subtype="FLOAT")
    mono = tmp_path / "mono.wav"
    soundfile.write(mono, (left + right) / 2, 16000, subtype="FLOAT")
    close(verifier.encode_files([both]), plain(model, mono)[None])


@pytest.mark.parametrize("rate", [44100, 48000, 22050, 8000, 22254])
def test_other_rates_sound_the_same(verifier, model, tmp_path, rate):
    """A voice below 1 kHz is in every one of these rates: only rounding is left."""
    time = [np.arange(r) / r for r in (rate, 16000)]
    tones = [
        0.1 * sum(np.sin(2 * np.pi * f * t) for f in (310, 620, 930)) for t in time
    ]
    noise = 0.003 * np.random.default_rng(0).standard_normal(16000)
    low = soundfile.write(tmp_path / "16.wav", tones[1], 16000, subtype="FLOAT")
    assert low is None
    stereo = np.stack([tones[0]] * 2, 1)
    soundfile.write(tmp_path / "x.wav", stereo, rate, subtype="FLOAT")
    found, same = verifier.encode_files([tmp_path / "x.wav", tmp_path / "16.wav"])
    other = tmp_path / "other.wav"
    soundfile.write(other, np.roll(tones[1], 3) + noise, 16000, subtype="FLOAT")
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(found, same, dim=0) > 0.9
    wav = verifier.load_audio(tmp_path / "x.wav")
    assert abs(len(wav) - 16000) <= 1
    inner = slice(800, 15000)
    np.testing.assert_allclose(wav[inner], tones[1][inner], atol=2e-3)


def test_conversions_are_one_warning_with_both_rates(verifier, tmp_path, caplog):
    paths = [
        write_voice(tmp_path / f"{number}.wav", number, 0.5, rate=rate)
        for number, rate in enumerate((44100, 16000, 8000, 44100))
    ]
    with caplog.at_level(logging.WARNING):
        verifier.encode_files(paths)
    (record,) = caplog.records
    message = record.getMessage()
    assert "3 of 4 recordings are converted to 16000 Hz with 1 channel" in message
    assert "2 of 44100 Hz with 1 channel(s), 1 of 8000 Hz" in message
    assert message.endswith(f"first {paths[0]}")


def test_fitting_files_are_no_warning(verifier, paths, caplog):
    with caplog.at_level(logging.INFO):
        verifier.encode_files(paths)
    assert not caplog.records


# ---- bad files -----------------------------------------------------------------------


def missing(path):
    pass


def a_folder(path):
    path.mkdir()


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("no sound at all\n" * 100)


def no_samples(path):
    soundfile.write(path, np.zeros(0), 16000)


def short(path):
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(3999), 16000)


def silent(path):
    soundfile.write(path, np.zeros(16000), 16000)


def constant(path):
    soundfile.write(path, np.full(16000, 0.25), 16000)


def silent_and_long(path):
    soundfile.write(path, np.zeros(16000 * 70), 16000)


def opposite_channels(path):
    wav = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(path, np.stack([wav, -wav], 1), 16000, subtype="FLOAT")


def not_a_number(path):
    wav = np.full(16000, 0.1)
    wav[5000] = np.nan
    soundfile.write(path, wav, 16000, subtype="FLOAT")


def infinite(path):
    wav = 0.1 * np.random.default_rng(0).standard_normal((16000, 2))
    wav[5000, 1] = np.inf
    soundfile.write(path, wav, 16000, subtype="FLOAT")


def truncated(path):
    write_voice(path)
    os.truncate(path, 20_000)


def pipe(path):
    os.mkfifo(path)  # and nobody writes into it


def link_to_nothing(path):
    path.symlink_to(path.with_name("gone.wav"))


def link_to_itself(path):
    path.symlink_to(path)


def low_rate(path):
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(8000), 1000)


def broken_flac(path):
    whole = path.with_suffix(".flac")
    write_voice(whole, seconds=2.0)
    content = bytearray(whole.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    whole.unlink()
    path.write_bytes(content)


BAD = [
    (missing, r"cannot be opened as sound \(.*No such file|System error"),
    (a_folder, "cannot be opened as sound"),
    (empty, "cannot be opened as sound"),
    (text, "cannot be opened as sound"),
    (no_samples, r"0 samples, 0 s, expected at least 0\.25 s of speech"),
    (short, r"3999 samples, 0\.2499 s, expected at least 0\.25 s of speech"),
    (silent, "silent, expected speech"),
    (constant, "silent, expected speech"),
    (silent_and_long, "silent, expected speech"),
    (opposite_channels, "silent, expected speech"),
    (not_a_number, "NaN or infinite samples"),
    (infinite, "NaN or infinite samples"),
    (truncated, "20000 bytes, its header says 32044: truncated"),
    (low_rate, "1000 Hz, expected 4000 to 768000 Hz"),
    (broken_flac, "decoded"),
    (pipe, "not a regular file"),
    (link_to_nothing, "No such file or directory"),
    (link_to_itself, "symbolic links"),
]


@pytest.mark.parametrize(("make", "expected"), BAD)
def test_a_bad_file_is_one_line_with_its_name(
    verifier, paths, tmp_path, make, expected
):
    path = tmp_path / "bad one.wav"
    make(path)
    functions = (
        lambda: verifier.encode_files([paths[0], path]),
        lambda: verifier.compare(path, paths[0], threshold=0),
        lambda: verifier.verify_files(paths[0], str(path), threshold=0),
        lambda: verifier.load_audio(path),
    )
    for function in functions:
        with pytest.raises(InputError, match=expected) as caught:
            function()
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_in_a_folder_of_files_the_rest_goes_on(verifier, paths, expected, tmp_path):
    files = list(paths)
    for place, (make, _) in enumerate(BAD):
        path = tmp_path / f"{make.__name__}.wav"
        make(path)
        files.insert(2 * place if 2 * place < len(files) else len(files), str(path))
    files += [paths[2], str(tmp_path / "empty.wav")]
    found, failures = verifier.encode_files(files, on_error="collect", batch_size=2)
    bad = [row for row, path in enumerate(files) if str(tmp_path) in path]
    assert [failure.row for failure in failures] == bad
    assert [failure.path for failure in failures] == [files[row] for row in bad]
    assert torch.isnan(found[bad]).all()
    good = [row for row in range(len(files)) if row not in bad]
    close(found[good], expected[[paths.index(files[row]) for row in good]])
    reasons = {failure.path: failure.reason for failure in failures}
    assert reasons[str(tmp_path / "truncated.wav")].startswith(
        "20000 bytes, its header"
    )
    assert not any(path in reason for path, reason in reasons.items())
    assert not any("\n" in reason for reason in reasons.values())


def test_nothing_but_bad_files(verifier, tmp_path):
    found, failures = verifier.encode_files(
        [tmp_path / "a", tmp_path / "b"], 4, "collect"
    )
    assert found.shape == (2, 8)
    assert torch.isnan(found).all()
    assert [failure.row for failure in failures] == [0, 1]


def test_a_file_that_goes_bad_while_it_is_read(verifier, paths, expected, monkeypatch):
    """Headers were fine: an error of a reader thread ends up with its file too."""
    read = engine.read_chunk

    def failing(recording, *args):
        if recording.path == paths[4]:
            raise InputError(f"{recording.path}: gone")
        return read(recording, *args)

    monkeypatch.setattr(engine, "read_chunk", failing)
    with pytest.raises(InputError, match=r"4\.wav: gone"):
        verifier.encode_files(paths, batch_size=2)
    found, failures = verifier.encode_files(paths, on_error="collect", batch_size=2)
    assert failures == [(4, paths[4], "gone")]
    rest = [row for row in range(8) if row != 4]
    close(found[rest], expected[rest])


def test_an_embedding_that_is_not_finite_is_an_error(folder, paths):
    verifier = load(folder)
    with torch.no_grad():
        verifier.mods.speaker_encoder.head.bottleneck.bias[0] = float("inf")
    with pytest.raises(InputError, match=r"\.wav: its embedding is not finite"):
        verifier.encode_files(paths)
    _, failures = verifier.encode_files(paths[:2], on_error="collect")
    assert [failure.reason for failure in failures] == [
        "its embedding is not finite"
    ] * 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"on_error": "ignore"}, "on_error 'ignore', expected raise or collect"),
        ({"batch_size": 0}, "batches of 12.0 s and 0 recordings"),
        ({"max_batch_seconds": 0}, "batches of 0 s and 64 recordings"),
        ({"window_seconds": 0.1}, r"window_seconds is 0\.1, expected at least min_sec"),
        ({"hop_seconds": 90}, r"hop_seconds is 90, .* at most window_seconds, 60\.0"),
    ],
)
def test_settings_out_of_range(verifier, paths, options, expected):
    with pytest.raises(InputError, match=expected):
        verifier.encode_files(paths[:1], **options)


def test_nothing_is_written_beside_the_files(verifier, paths, tmp_path, monkeypatch):
    copies = [shutil.copy(path, tmp_path) for path in paths[:2]]
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    verifier.compare(*copies, threshold=0)
    assert sorted(os.listdir(tmp_path)) == before
