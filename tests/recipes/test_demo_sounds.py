"""What the demonstration corpus is made of: voices, sentences, noises, rooms."""

import numpy as np
import pytest
from demo_corpus import espeak, noises, rooms, voices
from demo_corpus.espeak import ESPEAK_RATE, Synthesiser, Voice
from demo_corpus.text import SENTENCES, Reader
from demo_corpus.trials import make_trials

from speechbrain_ext.utils.errors import InputError


def say(voice, text="Good morning.", before=(), seed=1):
    with Synthesiser(seed) as synthesiser:
        for other in before:
            synthesiser.say("Something else.", other)
        return synthesiser.say(text, voice)


def pitch(wav):
    """Median F0 in Hz from the autocorrelation of 40 ms frames."""
    frames = np.lib.stride_tricks.sliding_window_view(wav, 882)[::441]
    frames = frames[frames.std(1) > 0.5 * wav.std()]
    spectra = np.abs(np.fft.rfft(frames * np.hanning(882), 2048)) ** 2
    lags = np.fft.irfft(spectra)[:, ESPEAK_RATE // 400 : ESPEAK_RATE // 60]
    return ESPEAK_RATE / np.median(lags.argmax(1) + ESPEAK_RATE // 400)


def test_every_voice_speaks_the_same_twice():
    """Some voices of espeak-ng read memory which nobody set: none of those is used."""
    for variant in voices.FEMALE + voices.MALE:
        voice = Voice("en-us", variant)
        once, again = say(voice), say(voice)
        assert np.array_equal(once, again), variant
        assert 0.02 < np.abs(once).max() < 0.999, variant


def test_every_accent_is_a_language_of_its_own():
    sounds = {say(Voice(accent, "m1")).tobytes() for accent in voices.ACCENTS}
    assert len(sounds) == len(voices.ACCENTS)


def test_a_new_synthesiser_knows_nothing_of_the_last():
    """espeak-ng keeps state: one copy differs after other speech, a new one does not.

    f2 has breath (random numbers) and an echo (a buffer).
    """
    voice = Voice("en-us", "f2")
    fresh = say(voice)
    assert not np.array_equal(fresh, say(voice, before=[Voice("en-us", "m5")]))
    assert np.array_equal(fresh, say(voice))


def test_voice_parameters_are_heard():
    text = SENTENCES[0]
    low, high = (pitch(say(Voice("en-us", "m3", pitch=p), text)) for p in (30, 70))
    assert high > 1.2 * low
    slow, fast = (
        say(Voice("en-us", "m3", words_per_minute=r), text) for r in (140, 190)
    )
    # 190 / 140 = 1.36, of which pauses and stops take their part
    assert 1.15 < len(slow) / len(fast) < 1.5


def test_women_speak_higher_than_men():
    female = [pitch(say(Voice("en-us", v), SENTENCES[0])) for v in voices.FEMALE]
    male = [pitch(say(Voice("en-us", v), SENTENCES[0])) for v in voices.MALE]
    assert np.median(female) > 1.4 * np.median(male)


def test_a_deep_virtual_environment_does_not_matter(tmp_path, monkeypatch):
    """espeak-ng itself cuts a data path of 200 characters and finds nothing."""
    loader = espeak.import_loader()
    deep = tmp_path.joinpath(*["environment"] * 15)
    deep.mkdir(parents=True)
    data = deep / "espeak-ng-data"
    data.symlink_to(loader.get_data_path(), target_is_directory=True)
    expected = say(Voice("en-us", "m1"))
    monkeypatch.setattr(loader, "get_data_path", lambda: str(data))
    assert len(str(data)) > 200
    assert np.array_equal(say(Voice("en-us", "m1")), expected)


def test_unknown_voices_are_named():
    with pytest.raises(InputError, match="variant 'nobody': not in"):
        say(Voice("en-us", "nobody"))
    with pytest.raises(InputError, match=r"voice 'tlh-x\+m1': unknown"):
        say(Voice("tlh-x", "m1"))
    with pytest.raises(InputError, match="expected speech"):
        say(Voice("en-us", "m1"), text="")


def test_speakers_are_distinct_and_half_are_women():
    speakers = voices.make_speakers(voices.MOST_SPEAKERS, np.random.default_rng(0))
    assert len({s.voice[:2] for s in speakers}) == voices.MOST_SPEAKERS
    assert sum(s.sex == "f" for s in speakers) == voices.MOST_SPEAKERS // 2
    # The default size, 24 + 10 speakers: no variant twice.
    assert len({s.voice.variant for s in speakers[:34]}) == 34
    with pytest.raises(InputError, match="expected at most"):
        voices.make_speakers(voices.MOST_SPEAKERS + 1, np.random.default_rng(0))


def test_a_channel_sets_level_and_noise_floor():
    """Level -26 dB and 20 dB SNR, met to half a dB in and around the speech."""
    rng = np.random.default_rng(0)
    speech = np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)
    channel = voices.Channel(80, 7000, tilt=0, level=-26, snr=20, noise_slope=0)
    wav = voices.record(speech, channel, rng)
    head = wav[:400]  # less than the shortest silence before the speech
    # The pads lower the level of the whole: compare with the measured tone.
    tone = np.sqrt(np.mean(wav[8000:24000].astype(float) ** 2))
    seconds = len(wav) / 16000
    expected = -26 + 10 * np.log10(seconds / 2)
    assert 20 * np.log10(tone) == pytest.approx(expected, abs=0.5)
    floor = 20 * np.log10(np.sqrt(np.mean(head.astype(float) ** 2)))
    assert floor == pytest.approx(-46, abs=1)


def test_sentences_are_distinct_and_short():
    assert len(set(SENTENCES)) == len(SENTENCES) == 120
    assert all(8 <= len(s.split()) <= 16 and s.endswith(".") for s in SENTENCES)
    reader = Reader(np.random.default_rng(0))
    said = [reader.next() for _ in range(240)]
    assert set(said[:120]) == set(said[120:]) == set(SENTENCES)
    assert said[:120] != said[120:]


@pytest.mark.parametrize("slope", [0, -3, -6])
def test_coloured_noise_has_its_slope(slope):
    wav = noises.coloured_noise(2**18, slope, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(wav)) ** 2
    frequency = np.fft.rfftfreq(len(wav), 1 / 16000)
    octave = [
        10 * np.log10(power[(frequency >= f) & (frequency < 2 * f)].mean())
        for f in (125, 250, 500, 1000, 2000)
    ]
    assert np.diff(octave) == pytest.approx(slope, abs=0.4)
    assert np.mean(wav**2) == pytest.approx(1)


@pytest.mark.parametrize("make", [*noises.NOISES, noises.music])
def test_noises_fill_their_file_and_differ_by_seed(make):
    length = 48000
    one, two = (noises.level(make(length, np.random.default_rng(s))) for s in (0, 1))
    assert one.shape == (length,)
    assert np.isfinite(one).all()
    assert np.abs(one).max() == pytest.approx(0.6, abs=1e-6)
    assert abs(one.mean()) < 1e-4
    assert not np.array_equal(one, two)
    quarters = np.sqrt(np.mean(one.reshape(4, -1) ** 2, axis=1))
    assert quarters.min() > 1e-4  # no file begins or ends in digital silence


def test_reflection_coefficient_is_eyring():
    """5 × 4 × 3 m: S = 94 m², V = 60 m³; rt60 0.5 s gives b = exp(-0.10277)."""
    b = rooms.reflection_coefficient(np.array([5.0, 4.0, 3.0]), 0.5)
    assert b == pytest.approx(np.exp(-0.161 * 60 / (2 * 94 * 0.5)))


def test_first_sounds_of_a_box_are_the_direct_one_and_the_floor():
    """Hand case: 1 m apart, 1 m above the floor of a hall of 40 m.

    Direct 1 m; floor sqrt(1 + 2²) m, its strength b / sqrt(5) of the direct one.
    """
    size = np.array([40.0, 40.0, 40.0])
    source, microphone = np.array([20.0, 20.0, 1.0]), np.array([21.0, 20.0, 1.0])
    response = rooms.box_response(size, source, microphone, rt60=0.5)
    direct, floor = round(16000 / 343), round(16000 * 5**0.5 / 343)
    assert list(np.argsort(-np.abs(response))[:2]) == [direct, floor]
    ratio = rooms.reflection_coefficient(size, 0.5) / 5**0.5
    # The high-pass at 40 Hz has a tail of about 2 % of the direct sound.
    assert response[floor] / response[direct] == pytest.approx(ratio, abs=0.03)
    assert np.abs(response[:direct]).max() == 0


@pytest.mark.parametrize(
    ("size", "rt60"),
    [
        ((4, 3.5, 2.5), 0.2),
        ((4, 3.5, 2.5), 0.5),
        ((11, 10, 3), 0.4),
        ((13, 12, 4), 0.8),
    ],
)
def test_boxes_reverberate_as_long_as_asked(size, rt60):
    """Schroeder's decay from -5 to -25 dB, times 3; Eyring is an approximation."""
    size = np.array(size)
    response = rooms.box_response(size, size * 0.4, size * 0.4 + [0.5, 0.4, 0.2], rt60)
    energy = np.cumsum(response[::-1].astype(float) ** 2)[::-1]
    decay = 10 * np.log10(energy / energy[0] + 1e-12)
    measured = 3 * (np.argmax(decay < -25) - np.argmax(decay < -5)) / 16000
    assert measured == pytest.approx(rt60, rel=0.2)


def test_noise_response_starts_with_its_direct_sound():
    response = rooms.noise_response(0.5, 0.01, 4.0, np.random.default_rng(0))
    assert np.abs(response).argmax() == 160
    assert np.abs(response[:160]).max() == 0
    assert len(response) == 8160
    tail = response[160:].astype(float) ** 2
    # 60 dB in 0.5 s: 24 dB between two windows 0.2 s apart
    drop = 10 * np.log10(tail[800:2400].mean() / tail[4000:5600].mean())
    assert drop == pytest.approx(24, abs=3)


def test_trials_of_a_large_corpus():
    """200 speakers, 2.9 million possible pairs: balanced, distinct, both sexes."""
    speakers = {
        f"id{i}": (
            "fm"[i % 2],
            [[f"id{i}/s{s}/{u}.wav" for u in range(4)] for s in range(3)],
        )
        for i in range(200)
    }
    trials = make_trials(speakers, 1000, np.random.default_rng(0))
    assert len({frozenset(t[1:]) for t in trials}) == len(trials) == 1000
    assert sum(label for label, _, _ in trials) == 500
    enrol, test = ([t[k].split("/") for t in trials] for k in (1, 2))
    for (label, _, _), a, b in zip(trials, enrol, test):
        assert (a[0] == b[0]) == label
        assert a[1] != b[1] or a[0] != b[0]
    same_sex = sum(
        int(a[0][2:]) % 2 == int(b[0][2:]) % 2
        for (label, _, _), a, b in zip(trials, enrol, test)
        if not label
    )
    assert same_sex == 250


def test_two_speakers_of_both_sexes_still_have_impostors():
    speakers = {"a": ("f", [["a1"], ["a2"]]), "b": ("m", [["b1"], ["b2"]])}
    trials = make_trials(speakers, 1000, np.random.default_rng(0))
    assert sorted(label for label, _, _ in trials) == [0, 0, 1, 1]
