"""Where augmentation draws from: which files, which of them, how often; files kept
in memory: the samples of the disk, once for all processes, up to a limit."""

import logging
import os
import pickle
import shutil
from functools import partial

import numpy as np
import pytest
import soundfile
from tiny_training import in_processes

from speechbrain_ext.data.augment import Augmenter, Effect, Musan, RoomResponses
from speechbrain_ext.data.augment.noises import CachedNoiseFiles, NoiseFiles
from speechbrain_ext.utils.errors import InputError

CHAINS = {"none": 1, "noise": 1, "reverb": 1, "reverb+noise": 1}
VOICES = [500 * k for k in range(1, 11)]  # Hz


def tone(hertz, n, amplitude=0.1):
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(n) / 16000)).astype("f4")


def write(path, wav, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav, rate, subtype="FLOAT")


def generators(count):
    return (np.random.default_rng([9, i]) for i in range(count))


def power(wav):
    return np.mean(np.square(wav, dtype=np.float64))


@pytest.fixture(scope="module")
def musan_folder(tmp_path_factory):
    """Noise at 1000 Hz, music at 2000 Hz, ten speech tones of unequal power."""
    folder = tmp_path_factory.mktemp("musan")
    write(folder / "noise" / "free" / "long.wav", tone(1000, 40000))
    write(folder / "noise" / "free" / "short.wav", tone(1000, 3200))
    write(folder / "music" / "a.wav", tone(2000, 20000))
    for i, hertz in enumerate(VOICES):
        wav = tone(hertz, 20000 + 1600 * i, amplitude=0.01 * (i + 1))
        write(folder / "speech" / "read" / f"{i}.wav", wav)
    return folder


@pytest.fixture
def rirs_folder(tmp_path):
    """One listed real response with 2 channels, 2 simulated ones, 1 isotropic noise."""
    folder = tmp_path / "RIRS_NOISES"
    real = folder / "real_rirs_isotropic_noises"
    channels = np.zeros((100, 2), dtype="f4")
    channels[10, 0] = channels[20, 1] = 1.0
    write(real / "rir_1.wav", channels)
    write(real / "noise_1.wav", tone(100, 1000))
    listed = "RIRS_NOISES/real_rirs_isotropic_noises/rir_1.wav"
    (real / "rir_list").write_text(f"--rir-id r1 --room-id a {listed}\n\n")
    rooms = folder / "simulated_rirs" / "smallroom"
    for name in ("Room001-1", "Room001-2"):
        write(rooms / "Room001" / f"{name}.wav", np.eye(1, 50, 5, dtype="f4")[0])
    listed = "RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-1.wav"
    (rooms / "rir_list").write_text(f"--rir-id s1 --room-id b {listed}\n")
    return folder


def test_a_draw_depends_on_its_generator_alone(musan_folder, rirs_folder):
    effects = {"noise": Musan(musan_folder), "reverb": RoomResponses(rirs_folder)}
    augment, again = (Augmenter(CHAINS, effects, cache_mib=0) for _ in range(2))
    wav = tone(440, 8000)
    first = [augment(wav, g) for g in generators(30)]
    # In another order, and with files already known.
    second = [again(wav, g) for g in reversed(list(generators(30)))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert len({a.tobytes() for a in first}) > 10
    assert all(a.dtype == np.float32 and a.shape == (8000,) for a in first)


def test_categories_and_ratios_are_uniform_and_kept(musan_folder):
    musan = Musan(musan_folder)
    wav = tone(440, 4800)
    seen = {"noise": [], "music": [], "babble": []}
    for generator, twin in zip(generators(600), generators(600)):
        noise, snr_db, category = musan.draw(4800, generator)
        added = musan.apply(wav, twin) - wav
        assert abs(10 * np.log10(power(wav) / power(added)) - snr_db) < 1e-3
        assert np.corrcoef(added, noise)[0, 1] > 0.999
        seen[category].append(snr_db)
    for category, (low, high) in {
        "noise": (5, 20),
        "music": (5, 20),
        "babble": (15, 25),
    }.items():
        found = np.array(seen[category])
        assert 150 < len(found) < 250
        assert low <= found.min() < low + 1
        assert high - 1 < found.max() <= high


def test_short_noise_is_repeated_and_long_noise_read_in_part(musan_folder):
    musan = Musan(musan_folder, {"noise": (5, 5)})
    for generator in generators(6):
        noise, snr_db, _ = musan.draw(8000, generator)
        assert snr_db == 5
        # 1000 Hz has a period of 16 samples, of which 3200 is a multiple: the
        # repeated file is one unbroken tone.
        assert np.abs(noise[16:] - noise[:-16]).max() < 1e-6
        assert abs(power(noise) - 0.005) < 1e-6


def test_babble_sums_the_drawn_number_of_voices_at_equal_power(musan_folder):
    musan = Musan(musan_folder, {"babble": (15, 25)}, babble_speakers=(3, 8))
    counts = []
    for generator in generators(60):
        noise, _, category = musan.draw(16000, generator)
        assert category == "babble"
        amplitudes = np.abs(np.fft.rfft(noise))[VOICES] / 8000
        present = amplitudes > 0.1
        assert np.allclose(amplitudes[present], np.sqrt(2), atol=2e-3)
        counts.append(int(present.sum()))
    assert set(counts) == {3, 4, 5, 6, 7, 8}


def test_babble_with_fewer_files_than_voices_takes_some_twice(tmp_path):
    write(tmp_path / "speech" / "a.wav", tone(500, 1600))
    write(tmp_path / "speech" / "b.wav", np.zeros(1600))
    noise, _, _ = Musan(tmp_path, {"babble": (15, 15)}, (4, 4)).draw(
        1600, np.random.default_rng(0)
    )
    assert np.isfinite(noise).all()
    assert power(noise) > 0


def test_rooms_are_the_listed_and_the_simulated_ones_each_once(rirs_folder):
    rooms = RoomResponses(rirs_folder)
    names = [path.rsplit("/", 1)[1] for path in rooms.files]
    assert sorted(names) == ["Room001-1.wav", "Room001-2.wav", "rir_1.wav"]
    assert RoomResponses(rirs_folder.parent).files == rooms.files
    # A folder under another name: the paths in the lists still say RIRS_NOISES.
    renamed = shutil.copytree(rirs_folder, rirs_folder.parent / "rooms")
    assert len(RoomResponses(renamed).files) == 3


def test_one_channel_of_a_response_is_drawn(rirs_folder):
    rooms = RoomResponses(rirs_folder)
    peaks = {int(np.argmax(rooms.draw(g))) for g in generators(60)}
    assert peaks == {5, 10, 20}
    wav = tone(440, 3000)
    for generator in generators(5):
        assert np.abs(rooms.apply(wav, generator) - wav).max() < 1e-6


def test_a_response_that_is_none_is_named(rirs_folder):
    rooms = RoomResponses(rirs_folder)
    rooms.files = [f for f in rooms.files if "Room001-1" in f]
    path = rirs_folder / "simulated_rirs" / "smallroom" / "Room001" / "Room001-1.wav"
    write(path, tone(100, 100), rate=8000)
    with pytest.raises(InputError, match=r"Room001-1\.wav: 8000 Hz, expected .* 16000"):
        rooms.draw(np.random.default_rng(0))
    write(path, np.zeros(100))
    with pytest.raises(InputError, match=r"Room001-1\.wav: silent"):
        rooms.draw(np.random.default_rng(0))
    path.unlink()
    with pytest.raises(InputError, match=r"Room001-1\.wav: cannot be opened"):
        rooms.draw(np.random.default_rng(0))


def test_a_foreign_line_in_a_list_is_named(rirs_folder):
    listing = rirs_folder / "real_rirs_isotropic_noises" / "rir_list"
    listing.write_text("--rir-id a elsewhere/x.wav\n")
    with pytest.raises(InputError, match=r"rir_list, line 1: 'elsewhere/x\.wav'"):
        RoomResponses(rirs_folder)


def test_folders_without_the_needed_files(tmp_path, musan_folder):
    write(tmp_path / "noise" / "a.wav", tone(100, 100))
    with pytest.raises(InputError, match="speech: no wav file"):
        Musan(tmp_path)
    assert Musan(tmp_path, {"noise": (0, 5)}).files.keys() == {"noise"}
    with pytest.raises(InputError, match="no room response, expected a rir_list"):
        RoomResponses(tmp_path)
    with pytest.raises(InputError, match=r"absent.*no room response"):
        RoomResponses(tmp_path / "absent")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"snr_db": {"rain": (0, 5)}}, "snr_db: categories"),
        ({"snr_db": {}}, "snr_db: categories"),
        ({"snr_db": {"noise": (5, 0)}}, r"snr_db of noise: \(5, 0\)"),
        ({"babble_speakers": (0, 3)}, r"babble_speakers: \(0, 3\)"),
        ({"babble_speakers": (4, 3)}, r"babble_speakers: \(4, 3\)"),
    ],
)
def test_musan_settings_out_of_range(musan_folder, arguments, expected):
    with pytest.raises(InputError, match=expected):
        Musan(musan_folder, **arguments)


class Plus(Effect):
    def apply(self, wav, generator):
        return wav + 1


class Double(Effect):
    """As an effect of another package: nothing but ``apply``."""

    def __init__(self, factor):
        self.factor = factor

    def apply(self, wav, generator):
        return wav * self.factor


def test_chains_are_drawn_by_weight_and_applied_in_order():
    augment = Augmenter(
        {"none": 1, "plus": 2, "double": 0, "double+plus": 3, "plus+double": 2},
        {"plus": Plus, "double": partial(Double, factor=2)},
    )
    wav = np.ones(1, dtype=np.float32)
    results = [float(augment(wav, g)[0]) for g in generators(4000)]
    # none 1; plus 1 + 1; double+plus 1·2 + 1; plus+double (1 + 1)·2.
    shares = np.bincount(np.array(results, dtype=int), minlength=5) / 4000
    assert np.abs(shares - np.array([0, 1, 2, 3, 2]) / 8).max() < 0.04


@pytest.mark.parametrize(
    ("chains", "expected"),
    [
        ({"echo": 1}, "chain 'echo': no effect 'echo', .*'noise', 'reverb'"),
        ({"none": 1, "noise+echo": 0}, r"chain 'noise\+echo': no effect 'echo'"),
        ({"none": 0, "noise": 0}, "chains: weights"),
        ({"none": 2, "noise": -1}, "chains: weights"),
        ({"none": float("nan")}, "chains: weights"),
        ({"none:1": None}, "None for 'none:1', expected a weight"),
        ({"none": "2"}, "2 for 'none', expected a weight"),
        ({}, "chains: weights"),
        ({"noise": 1}, "absent.*no wav file"),
        ({"none": 1, "reverb": 1}, "effect 'reverb': <object .*expected an Effect"),
    ],
)
def test_chains_that_cannot_be(tmp_path, chains, expected):
    effects = {"noise": partial(Musan, tmp_path / "absent"), "reverb": object}
    with pytest.raises(InputError, match=expected):
        Augmenter(chains, effects)


def test_folders_are_opened_only_where_they_are_drawn_from(musan_folder, tmp_path):
    effects = {
        "noise": partial(Musan, folder=musan_folder),
        "reverb": partial(RoomResponses, folder=tmp_path / "absent"),
    }
    augment = Augmenter({"none": 1, "noise": 1, "noise+reverb": 0}, effects)
    assert list(augment.effects) == ["noise"]
    wav = tone(100, 100)
    alone = Augmenter({"none": 1, "noise": 0}, effects)
    assert np.array_equal(alone(wav, np.random.default_rng(0)), wav)


# ---- in memory -----------------------------------------------------------------------


KINDS = {  # of files: (suffix, subtype, channels)
    "wav": ("wav", "PCM_16", 1),
    "flac": ("wav", "PCM_16", 1),
    "deep": ("wav", "PCM_24", 1),
    "float": ("wav", "FLOAT", 1),
    "two": ("wav", "PCM_16", 2),
}


def write_kind(path, n, generator, kind="wav"):
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
            write_kind(folder / "musan" / name / f"{kind}.wav", n, generator, kind)
        room = folder / "rirs/simulated_rirs/room" / f"{kind}.wav"
        write_kind(room, 300 + 100 * number, generator, kind)
    return folder


def augmenter_of(folder, cache_mib=0):
    effects = {
        "noise": Musan(folder / "musan"),
        "reverb": RoomResponses(folder / "rirs"),
    }
    return Augmenter(CHAINS, effects, cache_mib)


def files_of(augmenter):
    return augmenter.effects["noise"].noises, augmenter.effects["reverb"].responses


def augmented(augmenter, count=60, n=5000):
    wav = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    return np.stack([augmenter(wav, np.random.default_rng([i])) for i in range(count)])


@pytest.mark.parametrize("limit_mib", [0, 0.05, 0.3, 100])
def test_samples_are_those_of_the_files(folder, limit_mib):
    plain, held = augmenter_of(folder), augmenter_of(folder)
    held.cache(limit_mib)
    n_held = len(held.effects["noise"].sounds)
    assert held.effects["reverb"].sounds is held.effects["noise"].sounds
    noises, responses = files_of(held)
    everything = len(noises) + len(responses)
    assert n_held == {0: 0, 100: everything}.get(limit_mib, n_held)
    assert (0 < n_held < everything) == (0 < limit_mib < 100)
    found = augmented(held)
    assert found.dtype == np.float32
    assert np.array_equal(found, augmented(plain))


def test_the_shortest_are_held_within_the_limit(folder, caplog):
    noises, responses = files_of(augmenter_of(folder))
    limit = 100_000
    with caplog.at_level(logging.INFO):
        held = CachedNoiseFiles(noises, responses, limit / 2**20)
    assert len(held._memory) <= limit
    frames = {p: soundfile.info(p).frames for p in [*noises, *responses]}
    longest = max(frames[path] for path in held._slots)
    left_out = min(frames[path] for path in frames if path not in held._slots)
    assert longest <= left_out
    # 16 bit stay 16 bit, unless channels are averaged
    kinds = {os.path.basename(p): slot.dtype for p, slot in held._slots.items()}
    rooms = {p: held._slots[p].dtype for p in responses}
    assert kinds["flac.wav"] == "int16"
    assert [rooms[p] for p in sorted(rooms)] == [
        {"deep": "float32", "float": "float32"}.get(os.path.basename(p)[:-4], "int16")
        for p in sorted(rooms)
    ]
    assert f"{len(held)} files decoded in 0 MiB of memory, once for" in caplog.text
    assert f"; {len(frames) - len(held)} files of 0 MiB stay on" in caplog.text


def test_nothing_is_opened_once_it_is_held(folder, tmp_path):
    write_kind(tmp_path / "a.wav", 4000, np.random.default_rng(1))
    path = str(tmp_path / "a.wav")
    expected = NoiseFiles().crop(path, 1000, np.random.default_rng(2))
    held = CachedNoiseFiles([path], [], 1)
    os.unlink(path)
    found = held.crop(path, 1000, np.random.default_rng(2))
    assert np.array_equal(found, expected)
    found[:] = 0  # a copy: the memory is as before
    assert np.array_equal(held.crop(path, 1000, np.random.default_rng(2)), expected)
    # a process that is not forked has the disk only
    assert type(pickle.loads(pickle.dumps(held))) is NoiseFiles


def _in_rank(folder, out):
    augmenter = augmenter_of(folder, cache_mib=100)
    rank = int(os.environ["RANK"])
    with open("/proc/self/maps") as file:
        maps = [line.split() for line in file if "speechbrain_ext-" in line]
    np.savez(
        out / f"{rank}.npz",
        wavs=augmented(augmenter),
        inodes=[int(line[4]) for line in maps],
        writable=["w" in line[1] for line in maps],
        deleted=["(deleted)" in line for line in maps],
    )


def test_ranks_of_a_machine_share_one_memory(folder, tmp_path):
    assert in_processes(_in_rank, 2, folder, tmp_path) == [0, 0]
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    assert len(first["inodes"]) == len(second["inodes"]) == 1
    assert first["inodes"] == second["inodes"]
    for rank in (first, second):
        assert not rank["writable"].any()
        assert rank["deleted"].all()  # whatever ends the processes, nothing stays
    expected = augmented(augmenter_of(folder))
    assert np.array_equal(first["wavs"], expected)
    assert np.array_equal(second["wavs"], expected)


@pytest.mark.parametrize(
    ("rate", "content", "expected"),
    [
        (8000, 0.1, "8000 Hz, expected sound at 16000 Hz"),
        (16000, 0.0, "silent or not finite, expected a room response"),
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
    with pytest.raises(InputError, match="cache_mib: -1"):
        Augmenter({"none": 1}, cache_mib=-1)


def test_a_full_disk_is_named(folder, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="No space left") as caught:
        augmenter_of(folder, cache_mib=100)
    assert caught.value.filename.endswith("noises.npy")
    assert not os.path.exists(caught.value.filename)


def test_real_folders(shared):
    folder = shared / "data" / "dev"
    musan, rooms = Musan(folder / "musan"), RoomResponses(folder / "RIRS_NOISES")
    assert {k: len(v) for k, v in musan.files.items()} == {
        "noise": 30,
        "music": 3,
        "babble": 8,
    }
    assert len(rooms.files) == 84
    wav = tone(440, 32000)
    for generator in generators(20):
        output = rooms.apply(musan.apply(wav, generator), generator)
        assert output.shape == wav.shape
        assert np.isfinite(output).all()
