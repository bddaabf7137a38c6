"""Where augmentation draws from: which files, which of them, how often."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ext.data.augment import Augmenter, Channel, Musan, RoomResponses
from speechbrain_ext.data.augment.noises import NoiseFiles
from speechbrain_ext.utils.errors import InputError

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
    chains = {"none": 1, "noise": 1, "reverb": 1, "reverb+noise": 1}
    effects = {"noise": Musan(musan_folder), "reverb": RoomResponses(rirs_folder)}
    augment = Augmenter(chains, effects)
    effects = {
        "noise": partial(Musan, musan_folder),
        "reverb": lambda: RoomResponses(rirs_folder),
    }
    again = Augmenter(chains, effects, noise_cache_mib=0)
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
        added = musan(wav, twin) - wav
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
        assert np.abs(rooms(wav, generator) - wav).max() < 1e-6


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
    with pytest.raises(InputError, match="absent: no such folder"):
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


def decibels(channel, hertz, seed=9):
    """Gain of a drawn response at frequencies, next to that at 1 kHz."""
    response = channel.draw(np.random.default_rng(seed)).astype("f8")
    place = np.arange(len(response)) - len(response) // 2
    waves = np.exp(-2j * np.pi * np.outer([1000, *hertz], place) / 16000)
    gains = 20 * np.log10(np.abs(waves @ response))
    return gains[1:] - gains[0]


def test_the_gain_of_a_channel_is_what_was_drawn():
    """Two points: a line over frequency; without gain: all as it was."""
    hertz = np.array([500, 2000, 4000, 7000])
    flat = Channel(gain_db=0, band_share=0)
    assert np.abs(decibels(flat, hertz)).max() < 1e-3
    wav = tone(700, 8000)
    assert np.abs(flat(wav, np.random.default_rng(1)) - wav)[300:-300].max() < 1e-5
    tilted = Channel(gain_db=6, points=2, band_share=0)
    low, high = np.random.default_rng(9).uniform(-6, 6, 2)
    expected = (high - low) * (hertz - 1000) / 8000
    assert np.abs(decibels(tilted, hertz) - expected).max() < 0.05


def test_a_channel_has_a_band_of_the_drawn_edges():
    line = Channel(gain_db=0, low_hz=(300, 300), high_hz=(3400, 3400), band_share=1)
    passed, stopped = [450, 1500, 3250], [50, 150, 3600, 5000, 7500]
    assert np.abs(decibels(line, passed)).max() < 1
    assert decibels(line, stopped).max() < -30
    shares = Channel(gain_db=0, band_share=0.3)
    narrow = [decibels(shares, [20], seed)[0] < -6 for seed in range(200)]
    assert 0.2 < np.mean(narrow) < 0.4


def test_a_channel_keeps_time_length_and_energy():
    wav = np.zeros(16000, dtype="f4")
    wav[5000] = 1.0
    before = wav.copy()
    for generator in generators(20):
        heard = Channel()(wav, generator)
        assert (heard.dtype, heard.shape) == (np.float32, wav.shape)
        assert np.argmax(np.abs(heard)) == 5000
        assert power(heard) == pytest.approx(power(wav), rel=1e-4)
    assert (wav == before).all()
    one, same = (Channel()(wav, np.random.default_rng(3)) for _ in range(2))
    assert (one == same).all()
    assert (Channel()(0 * wav, np.random.default_rng(3)) == 0).all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"low_hz": (300, 50)}, r"low_hz \(300, 50\).* expected edges from 0 to 8000"),
        ({"high_hz": (3400, 9000)}, r"high_hz \(3400, 9000\), expected edges"),
        ({"low_hz": (0, 4000), "high_hz": (4000, 8000)}, "expected edges"),
        ({"points": 1}, "points 1, .* expected 2 or more"),
        ({"band_share": 1.5}, "band_share 1.5, expected .* 0 to 1"),
    ],
)
def test_channel_settings_out_of_range(arguments, expected):
    with pytest.raises(InputError, match=expected):
        Channel(**arguments)


def test_chains_are_drawn_by_weight_and_applied_in_order():
    def plus(wav, generator):
        return wav + 1

    def double(wav, generator):
        return wav * 2

    augment = Augmenter(
        {"none": 1, "plus": 2, "double": 0, "double+plus": 3, "plus+double": 2},
        {"plus": plus, "double": double},
    )
    wav = np.ones(1, dtype=np.float32)
    results = [float(augment(wav, g)[0]) for g in generators(4000)]
    # none 1; plus 1 + 1; double+plus 1·2 + 1; plus+double (1 + 1)·2.
    shares = np.bincount(np.array(results, dtype=int), minlength=5) / 4000
    assert np.abs(shares - np.array([0, 1, 2, 3, 2]) / 8).max() < 0.04


@pytest.mark.parametrize(
    ("chains", "expected"),
    [
        ({"echo": 1}, "chain 'echo': no effect 'echo', .* noise, reverb$"),
        ({"none": 1, "noise+echo": 0}, r"chain 'noise\+echo': no effect 'echo'"),
        ({"none+noise": 1}, r"chain 'none\+noise': no effect 'none'"),
        ({"none": 0, "noise": 0}, "chains: weights"),
        ({"none": 2, "noise": -1}, "chains: weights"),
        ({"none": float("nan")}, "chains: weights"),
        ({"none:1": None}, "None for 'none:1', expected a weight"),
        ({"none": "2"}, "2 for 'none', expected a weight"),
        ({}, "chains: weights"),
    ],
)
def test_chains_that_cannot_be(chains, expected):
    with pytest.raises(InputError, match=expected):
        Augmenter(chains, {"noise": Musan, "reverb": RoomResponses})


def test_a_folder_is_opened_only_where_a_chain_needs_it(tmp_path):
    wav = tone(100, 100)
    absent = partial(Musan, folder=tmp_path / "absent")
    augment = Augmenter({"none": 1, "noise": 0}, {"noise": absent, "unused": absent})
    assert np.array_equal(augment(wav, np.random.default_rng(0)), wav)
    with pytest.raises(InputError, match="absent: no such folder"):
        Augmenter({"none": 1, "noise": 0.1}, {"noise": absent})


class Loudness:
    """An effect of one's own: a drawn gain, and a hum from a sound file."""

    def __init__(self, hum, gains=(0.1, 0.5)):
        self.hum, self.gains = str(hum), gains
        self.sounds = NoiseFiles(noises=[self.hum])

    def __call__(self, wav, generator):
        hum = self.sounds.crop(self.hum, len(wav), generator)
        return np.float32(generator.uniform(*self.gains)) * wav + hum


OWN_EFFECT = """
augmenter: !name:speechbrain_ext.data.augment.Augmenter
    chains: {loudness: 1}
    effects:
        loudness: !name:test_augment.Loudness {hum: HUM, gains: [2, 2]}
        flip: !name:test_augment.no_such_thing
"""


@pytest.mark.parametrize("noise_cache_mib", [0, 1])
def test_an_effect_of_ones_own_is_a_class_and_a_line_of_yaml(
    tmp_path, monkeypatch, noise_cache_mib
):
    write(tmp_path / "hum.wav", tone(1000, 4000))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    text = OWN_EFFECT.replace("HUM", str(tmp_path / "hum.wav"))
    text = text.replace("no_such_thing", "Loudness")  # unused: made without its file
    augment = load_hyperpyyaml(text)["augmenter"](noise_cache_mib=noise_cache_mib)
    if noise_cache_mib:  # in memory: the file is not needed again
        (tmp_path / "hum.wav").unlink()
    wav = tone(440, 4000)
    hum = augment(wav, np.random.default_rng(1)) - 2 * wav
    assert np.abs(np.fft.rfft(hum)).argmax() * 4 == 1000


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (lambda wav, generator: wav + 1, 1),
        (lambda: lambda wav, generator: wav + 1, 1),
        (partial(lambda wav, generator, by: wav + by, by=2), 2),
        (lambda *arguments: arguments[0] + 3, 3),
    ],
)
def test_an_effect_is_a_callable_or_what_a_factory_makes(effect, expected):
    augment = Augmenter({"own": 1}, {"own": effect})
    wav = augment(np.zeros(4, dtype=np.float32), np.random.default_rng(0))
    assert (wav == expected).all()


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (None, "effects: None for 'own', expected a callable"),
        ("musan", "effects: 'musan' for 'own', expected a callable"),
        (dict, "effects: {} for 'own', expected a callable"),
        (Musan, "effects: 'own', Musan: missing a required argument: 'folder'"),
        (partial(Musan, snr_db={}), "effects: 'own', Musan: missing .* 'folder'"),
    ],
)
def test_an_effect_that_is_none_is_named(effect, expected):
    with pytest.raises(InputError, match=expected):
        Augmenter({"own": 1}, {"own": effect})


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
        output = rooms(musan(wav, generator), generator)
        assert output.shape == wav.shape
        assert np.isfinite(output).all()
