"""Noises and rooms in memory: the samples of the files, once for all processes, up to a
limit."""

import logging
import os
import pickle

import numpy as np
import pytest
import soundfile
from tiny_training import in_processes

from speechbrain_ext.data.augment import Augmenter, Musan, RoomResponses
from speechbrain_ext.data.augment.noises import CachedNoiseFiles, NoiseFiles
from speechbrain_ext.utils.errors import InputError

CHAINS = {"none": 1, "noise": 1, "reverb": 1, "reverb+noise": 1}
KINDS = {  # of files: (suffix, subtype, channels)
    "wav": ("wav", "PCM_16", 1),
    "flac": ("wav", "PCM_16", 1),
    "deep": ("wav", "PCM_24", 1),
    "float": ("wav", "FLOAT", 1),
    "two": ("wav", "PCM_16", 2),
}


def write(path, n, generator, kind="wav"):
    _, subtype, channels = KINDS[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = 0.2 * generator.standard_normal((n, channels))
    soundfile.write(path, wav, 16000, subtype=subtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """MUSAN and RIRS_NOISES of files of all kinds, from 0.02 to 1 s."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(3)
    for number, kind in enumerate(KINDS):
        for name in ("noise", "music", "speech"):
            n = 3000 * number + 700
            write(folder / "musan" / name / f"{kind}.wav", n, generator, kind)
        room = folder / "rirs/simulated_rirs/room" / f"{kind}.wav"
        write(room, 300 + 100 * number, generator, kind)
    return folder


def augmenter_of(folder, noise_cache_mib=0):
    effects = {
        "noise": Musan(folder / "musan"),
        "reverb": RoomResponses(folder / "rirs"),
    }
    return Augmenter(CHAINS, effects, noise_cache_mib)


def files_of(augmenter):
    effects = augmenter.effects
    return effects["noise"].sounds.noises, effects["reverb"].sounds.responses


def augmented(augmenter, count=60, n=5000):
    wav = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    return np.stack([augmenter(wav, np.random.default_rng([i])) for i in range(count)])


@pytest.mark.parametrize("limit_mib", [0, 0.05, 0.3, 100])
def test_samples_are_those_of_the_files(folder, limit_mib):
    plain, cached = augmenter_of(folder), augmenter_of(folder, limit_mib)
    sounds = cached.effects["noise"].sounds
    if limit_mib:
        assert cached.effects["reverb"].sounds is sounds
        everything = sum(map(len, files_of(plain)))
        assert (len(sounds) < everything) == (limit_mib < 100)
        assert len(sounds) > 0
    else:
        assert type(sounds) is NoiseFiles
    wavs = augmented(cached)
    assert wavs.dtype == np.float32
    assert np.array_equal(wavs, augmented(plain))


def test_the_shortest_are_cached_within_the_limit(folder, caplog):
    noises, responses = files_of(augmenter_of(folder))
    limit = 100_000
    with caplog.at_level(logging.INFO):
        cached = CachedNoiseFiles(noises, responses, limit / 2**20)
    assert len(cached._memory) <= limit
    frames = {p: soundfile.info(p).frames for p in [*noises, *responses]}
    types = {path: slot.dtype for (path, _), slot in cached._slots.items()}
    longest = max(frames[path] for path in types)
    assert longest <= min(frames[path] for path in frames if path not in types)
    # 16 bit stay 16 bit, unless channels are averaged
    kinds = {os.path.basename(path): dtype for path, dtype in types.items()}
    rooms = {path: types[path] for path in responses}
    assert kinds["flac.wav"] == "int16"
    assert [rooms[p] for p in sorted(rooms)] == [
        {"deep": "float32", "float": "float32"}.get(os.path.basename(p)[:-4], "int16")
        for p in sorted(rooms)
    ]
    assert f"{len(cached)} files decoded in 0 MiB of memory, once for" in caplog.text
    assert f"; {len(frames) - len(cached)} files of 0 MiB stay on" in caplog.text


def test_nothing_is_opened_once_it_is_cached(folder, tmp_path):
    write(tmp_path / "a.wav", 4000, np.random.default_rng(1))
    path = str(tmp_path / "a.wav")
    expected = NoiseFiles().crop(path, 1000, np.random.default_rng(2))
    cached = CachedNoiseFiles([path], [], 1)
    os.unlink(path)
    crop = cached.crop(path, 1000, np.random.default_rng(2))
    assert np.array_equal(crop, expected)
    crop[:] = 0  # a copy: the memory is as before
    assert np.array_equal(cached.crop(path, 1000, np.random.default_rng(2)), expected)
    # a process that is not forked has the disk only
    assert type(pickle.loads(pickle.dumps(cached))) is NoiseFiles


def _in_rank(folder, out):
    augmenter = augmenter_of(folder, 100)
    rank = int(os.environ["RANK"])
    with open("/proc/self/maps") as file:
        maps = [line.split() for line in file if "memfd:speechbrain_ext" in line]
    np.savez(
        out / f"{rank}.npz",
        wavs=augmented(augmenter),
        inodes=[int(line[4]) for line in maps],
        writable=["w" in line[1] for line in maps],
    )


def test_ranks_of_a_machine_share_one_memory(folder, tmp_path):
    assert in_processes(_in_rank, 2, folder, tmp_path) == [0, 0]
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    assert len(first["inodes"]) == len(second["inodes"]) == 1
    assert first["inodes"] == second["inodes"]
    assert first["writable"].all()
    assert not second["writable"].any()
    expected = augmented(augmenter_of(folder))
    assert np.array_equal(first["wavs"], expected)
    assert np.array_equal(second["wavs"], expected)


@pytest.mark.parametrize(
    ("rate", "content", "expected"),
    [
        (8000, 0.1, "8000 Hz, expected sound at 16000 Hz"),
        (16000, 0.0, "silent, expected a room response"),
        (None, None, "cannot be opened as sound"),
    ],
)
def test_a_bad_file_is_named(tmp_path, rate, content, expected):
    path = tmp_path / "a.wav"
    if rate is None:
        path.write_text("no sound")
    else:
        soundfile.write(path, np.full(100, content), rate)
    with pytest.raises(InputError, match=rf"a\.wav: {expected}"):
        CachedNoiseFiles([], [str(path)], 1)


def test_a_negative_limit_is_refused(folder):
    with pytest.raises(InputError, match="noise_cache_mib: -1"):
        augmenter_of(folder, -1)


def test_a_file_is_a_noise_and_a_response(tmp_path):
    write(tmp_path / "a.wav", 400, np.random.default_rng(1), "two")
    path = str(tmp_path / "a.wav")
    cached, plain = CachedNoiseFiles([path], [path], 1), NoiseFiles([path], [path])
    assert len(cached) == 2
    for draw in (lambda s, g: s.crop(path, 100, g), lambda s, g: s.response(path, g)):
        wavs = [draw(sounds, np.random.default_rng(3)) for sounds in (cached, plain)]
        assert np.array_equal(*wavs)


def test_noises_are_read_as_other_recordings(tmp_path):
    """A header that lies about its size: the same from the disk and in memory."""
    write(tmp_path / "a.wav", 400, np.random.default_rng(1), "two")
    path, honest = str(tmp_path / "lie.wav"), str(tmp_path / "a.wav")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = bytes(4)
    (tmp_path / "lie.wav").write_bytes(content)
    for files in (CachedNoiseFiles([path], [path], 1), NoiseFiles([path], [path])):
        true = NoiseFiles([honest], [honest])
        for draw in (
            lambda s, p, g: s.crop(p, 100, g),
            lambda s, p, g: s.response(p, g),
        ):
            wav = draw(files, path, np.random.default_rng(3))
            assert np.array_equal(wav, draw(true, honest, np.random.default_rng(3)))
