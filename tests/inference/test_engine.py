"""One engine: verify.py, validation and SpeakerVerifier have the same embeddings."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tiny_extraction import make_model, one_by_one, some_recordings
from tiny_verifier import load, make_folder, plain, write_voice

from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.evaluation.verification import Embedder
from speechbrain_ext.inference.audio_input import ChunkingConfig
from speechbrain_ext.inference.engine import SAMPLES, encode, lengthened, plan_jobs
from speechbrain_ext.inference.extraction import extract_embeddings
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import valid_counts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model") / "final")


def manifest_of(paths):
    """As somebody may write it: of files of any rate."""
    names = [f"r{row}" for row in range(len(paths))]
    seconds = [soundfile.info(path).duration for path in paths]
    return Manifest(names, [str(path) for path in paths], seconds, names)


def close(found, expected, scale=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, atol=scale * np.abs(expected).max())


# ---- shapes that a GPU has met -------------------------------------------------------


@pytest.mark.parametrize("samples", [SAMPLES - 3, SAMPLES, SAMPLES + 1, 30_000])
def test_a_longer_batch_gives_the_same(samples):
    model, wavs = make_model().eval(), 0.1 * torch.randn(3, samples)
    wav_lens = torch.tensor([samples, samples - 777, samples // 2]) / samples
    longer, lens = lengthened(wavs, wav_lens)
    assert longer.shape == (3, -(-samples // SAMPLES) * SAMPLES)
    counts = [samples, samples - 777, samples // 2]
    assert valid_counts(lens, longer.shape[1]).tolist() == counts
    with torch.no_grad():
        expected = encode(model, wavs, wav_lens, "cpu")
        close(encode(model, longer, lens, "cpu"), expected)


def test_a_longer_batch_is_no_longer_than_an_encoder_takes():
    wavs, full = torch.ones(1, SAMPLES + 10), torch.ones(1)
    for most, expected in ((SAMPLES + 10, 10), (SAMPLES + 99, 99), (10**6, SAMPLES)):
        longer, lens = lengthened(wavs, full, most)
        assert longer.shape[1] == SAMPLES + expected
        assert valid_counts(lens, longer.shape[1]).item() == SAMPLES + 10


# ---- verify.py and SpeakerVerifier ---------------------------------------------------


def by_verify(folder, paths, out, **options):
    """Embeddings as verify.py makes them."""
    run_opts = SimpleNamespace(device="cpu", noprogressbar=True)
    embed = Embedder(folder, run_opts, max_batch_seconds=100.0, **options)
    return embed(manifest_of(paths), out / "embeddings.npz")


def strange_recordings(folder):
    """Short, longer than the window, stereo, 8 kHz; and long with silence in it."""
    paths = [
        write_voice(folder / "short.wav", 1, 0.6),
        write_voice(folder / "long.wav", 2, 70.0),
        write_voice(folder / "8k.wav", 3, 1.3, rate=8000),
        write_voice(folder / "48k.wav", 4, 65.0, rate=48000),
    ]
    wav, _ = soundfile.read(write_voice(folder / "a.wav", 4, 1.0))
    soundfile.write(folder / "a.wav", np.stack([wav, wav[::-1]], 1), 16000)
    paths.append(str(folder / "a.wav"))
    soundfile.write(folder / "b.wav", np.r_[wav, np.zeros(16000 * 119)], 16000)
    return [*paths, str(folder / "b.wav")]


def test_verify_and_verifier_embed_alike(folder, tmp_path, caplog):
    paths = strange_recordings(tmp_path)
    expected = load(folder).encode_files(paths).numpy()
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        found = by_verify(folder, paths, tmp_path)
    close(found, expected)
    assert "3 of 6 recordings are converted to 16000 Hz" in caplog.text
    # windows that verify.py is told of, and a recording that is cut to its middle
    options = {"window_seconds": 1.0, "hop_seconds": 0.6}
    expected = load(folder).encode_files(paths, **options).numpy()
    close(by_verify(folder, paths, tmp_path / "w", **options), expected)
    cut = by_verify(folder, paths[:2], tmp_path / "cut", max_seconds=30.0)
    wav, _ = soundfile.read(paths[1], dtype="int16")
    soundfile.write(tmp_path / "middle.wav", wav[16000 * 20 : 16000 * 50], 16000)
    close(cut[1], plain(load_pretrained(folder), tmp_path / "middle.wav"))


def test_a_model_s_folder_says_which_windows_verify_takes(tmp_path):
    windows = {"window_seconds": 1.0, "hop_seconds": 0.6}
    folder = make_folder(tmp_path / "final", inference=windows)
    path = write_voice(tmp_path / "long.wav", 1, 2.5)
    expected = load(folder).encode_files([path]).numpy()
    close(by_verify(folder, [path], tmp_path), expected)
    whole = by_verify(folder, [path], tmp_path / "w", window_seconds=60.0)
    assert np.abs(whole - expected).max() > 1e-3
    with pytest.raises(InputError, match=r"window_seconds is 0\.1, expected at least"):
        by_verify(folder, [path], tmp_path, window_seconds=0.1)


def test_half_precision_is_of_the_encoder_alone():
    model, seen = make_model().eval(), []
    wavs, lens = torch.randn(2, 8000), torch.ones(2)
    with torch.no_grad():
        exact = encode(model, wavs, lens, "cpu")
        assert torch.equal(exact, model(wavs, lens))
        model.head.register_forward_pre_hook(
            lambda module, inputs: seen.append(
                ({s.dtype for s in inputs[0]}, torch.is_autocast_enabled("cpu"))
            )
        )
        found = encode(model, wavs, lens, "cpu", torch.bfloat16)
    assert seen == [({torch.float32}, False)]
    assert found.dtype == torch.float32
    assert 1e-6 < (found - exact).abs().max() < 0.2 * exact.abs().max()


# ---- windows -------------------------------------------------------------------------


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
    options = {"window_seconds": 1.0, "hop_seconds": 0.6}
    for batch_size in (1, 2, 64):
        found = verifier.encode_files([other, path], batch_size=batch_size, **options)
        close(found[1], np.mean(parts, axis=0), 1e-4)
        close(found[0], plain(model, other), 1e-4)
    manifest = manifest_of([other, path])
    chunking = ChunkingConfig(0.25, **options)
    for seconds in (0.1, 2.0, 100.0):
        found = extract_embeddings(
            *(model, manifest, "cpu", seconds), progress=False, chunking=chunking
        )
        close(found, [plain(model, other), np.mean(parts, axis=0)], 1e-4)


def test_short_files_are_embedded_whole_to_the_bit(folder, tmp_path):
    verifier = load(folder)
    paths = [write_voice(tmp_path / f"{n}.wav", n, 0.5 + 0.1 * n, n) for n in range(6)]
    whole = verifier.encode_files(paths, window_seconds=float("inf"))
    for options in ({}, {"window_seconds": 1.0, "hop_seconds": 0.3}):
        assert (verifier.encode_files(paths, **options) == whole).all()


def test_silent_windows_do_not_count(folder, tmp_path):
    path = write_voice(tmp_path / "speech.wav", 1, 1.0)
    wav, _ = soundfile.read(path)
    padded = tmp_path / "padded.wav"
    soundfile.write(padded, np.concatenate([wav, np.zeros(32000)]), 16000)
    found = load(folder).encode_files([padded], window_seconds=1.0)
    close(found[0], plain(load_pretrained(folder), path), 1e-4)


def test_windows_come_from_the_model_s_own_file(tmp_path):
    windows = {"window_seconds": 1.0, "hop_seconds": 0.6}
    with_windows = make_folder(tmp_path / "a", inference=windows)
    without = load(make_folder(tmp_path / "b"))
    path = write_voice(tmp_path / "long.wav", 1, 2.5)
    found = load(with_windows).encode_files([path])
    assert (found == without.encode_files([path], **windows)).all()
    assert (found != without.encode_files([path])).any()
    overridden = load(tmp_path / "b", overrides=windows)
    assert (found == overridden.encode_files([path])).all()


# ---- jobs ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_every_recording_is_in_one_job_that_fits_the_memory(seed):
    random = np.random.default_rng(seed)
    seconds = random.uniform(0.3, 30, 200)
    chunking = ChunkingConfig(0.25, 10.0, float(random.uniform(2, 10)))
    jobs = plan_jobs(seconds, chunking, 60.0, 8)
    assert sorted(np.concatenate(jobs).tolist()) == list(range(200))
    for job in jobs:
        kinds = set(seconds[job] > 10)
        assert len(kinds) == 1  # windows and whole recordings are not mixed
        if not kinds.pop():
            assert seconds[job].max() * len(job) <= 60
    # those of one window are batched as if there were no windows
    whole = seconds.clip(max=10)
    assert [j.tolist() for j in plan_jobs(whole, ChunkingConfig(), 60.0, 8)] == [
        j.tolist() for j in plan_jobs(whole, chunking, 60.0, 8)
    ]


def test_a_list_knows_the_encoder_s_shortest_recording_and_not_the_folder_s(tmp_path):
    """Of a trial list every recording counts; `min_seconds` is for decisions."""
    model, manifest = make_model(), some_recordings(tmp_path)
    chunking = ChunkingConfig(1.0)
    found = extract_embeddings(model, manifest, progress=False, chunking=chunking)
    close(found, one_by_one(model, manifest))
    model.encoder.min_samples = 8000
    with pytest.raises(InputError, match=r"r\d\.wav: .* expected at least 0\.5 s"):
        extract_embeddings(model, manifest, progress=False)
