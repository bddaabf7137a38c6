"""Speech detection: the library's probabilities and rule, faster; what is no speech."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import butter, sosfilt
from tiny_speech import RATE, VARIANTS, silence, sounds, spoken

from speechbrain_ext.inference.onnx_runner import VAD_WINDOW, speech_segments
from speechbrain_ext.inference.speech import (
    SpeechConfig,
    SpeechDetector,
    silero_file,
    speech_of,
)
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def detector():
    return SpeechDetector()


def talk(seed=0, pause=1.0):
    """Room noise, speech, a pause, speech, room noise."""
    parts = [silence(0.7), spoken(VARIANTS[seed % 4]), silence(pause)]
    wav = np.concatenate([*parts, spoken(VARIANTS[seed % 4]), silence(1.1)])
    return wav + silence(len(wav) / RATE, 1e-3, seed)[: len(wav)]


def test_integers_in_floats_are_heard_as_well(detector):
    wav = talk()
    whole = (wav * 32768).astype(np.float32)
    expected, found = detector.segments(wav), detector.segments(whole)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.2 * RATE  # the network hears levels


# ---- the library ---------------------------------------------------------------------


def by_library(wav):
    """The library's own network, one window after the other, as its code runs it."""
    model = torch.jit.load(silero_file("silero_vad.jit"))
    model.reset_states()
    padded = np.pad(wav, (0, -len(wav) % VAD_WINDOW))
    with torch.no_grad():
        windows = torch.from_numpy(padded).split(VAD_WINDOW)
        return np.array([model(window, RATE).item() for window in windows])


def test_probabilities_are_the_library_s(detector):
    music = sounds(1.5, 1)["chords0"]
    wavs = [talk()[: 4 * RATE + 77], 0.1 * talk(1)[: 2 * RATE], music]
    expected = [by_library(wav) for wav in wavs]
    assert expected[0].max() > 0.9
    assert expected[0].min() < 0.1
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(wav) for wav in wavs], batch_first=True
    )
    together, _ = detector.probabilities(padded)
    for found, value, wav in zip(together.numpy(), expected, wavs):
        np.testing.assert_allclose(found[: len(value)], value, atol=1e-4)
        alone, _ = detector.probabilities(torch.from_numpy(wav)[None])
        np.testing.assert_allclose(alone[0].numpy(), value, atol=1e-4)


def test_a_recording_may_come_in_parts(detector):
    wav = torch.from_numpy(talk())[None]
    whole, _ = detector.probabilities(wav)
    cut = 50 * VAD_WINDOW
    one, state = detector.probabilities(wav[:, :cut])
    other, _ = detector.probabilities(wav[:, cut:], state)
    torch.testing.assert_close(torch.cat([one, other], 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_is_the_library_s(seed):
    threads = torch.get_num_threads()
    from silero_vad.utils_vad import get_speech_timestamps_from_probs

    torch.set_num_threads(threads)  # importing it sets 1
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.standard_normal(400)) / 4
    probabilities = 0.5 + 0.5 * np.sin(walk)
    probabilities[-1] = 1.0  # in a last pause the two differ
    samples = 400 * VAD_WINDOW - 100
    rule = SpeechConfig(
        True,
        random.uniform(0.3, 0.7),
        random.uniform(0, 0.5),
        random.uniform(0.05, 0.6),
        random.uniform(0, 0.3),
    )
    milliseconds = [round(1000 * seconds) for seconds in rule[2:]]
    rule = rule._replace(
        min_speech_seconds=milliseconds[0] / 1000,
        max_pause_seconds=milliseconds[1] / 1000,
        speech_margin_seconds=milliseconds[2] / 1000,
    )
    expected = get_speech_timestamps_from_probs(
        probabilities.tolist(),
        threshold=rule.speech_threshold,
        min_speech_duration_ms=milliseconds[0],
        min_silence_duration_ms=milliseconds[1],
        speech_pad_ms=milliseconds[2],
        audio_length_samples=samples,
    )
    found = speech_segments(probabilities, samples, *rule[1:])
    assert found.tolist() == [[s["start"], s["end"]] for s in expected]


def test_the_rule_by_hand():
    """Windows 2 to 5 and 9 to 12 are speech, with a pause of 3 windows, 96 ms."""
    values = np.array([0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0.0])
    options = {"speech_threshold": 0.5, "min_speech_seconds": 0.1}
    samples = len(values) * 512

    def segments(pause, margin):
        found = speech_segments(
            values,
            samples,
            max_pause_seconds=pause,
            speech_margin_seconds=margin,
            **options,
        )
        return (found / 512).tolist()

    assert segments(0.2, 0.0) == [[2, 13]]  # the last pause is cut, however short
    assert segments(0.05, 0.0) == [[2, 6], [9, 13]]
    assert segments(0.05, 0.032) == [[1, 7], [8, 14]]
    assert segments(0.05, 0.064) == [[0, 7.5], [7.5, 15]]  # half of what lies between
    assert segments(0.05, 1.0) == [[0, 7.5], [7.5, 16]]
    options["min_speech_seconds"] = 0.2
    assert segments(0.05, 0.0) == []


# ---- what is speech, and what is none ------------------------------------------------


def test_none_of_200_sounds_is_speech(detector):
    found = sounds()
    assert len(found) == 200
    batch = torch.from_numpy(np.stack([*found.values()]))
    heard = [name for name, s in zip(found, detector(batch)) if len(s)]
    assert heard == []


def kept(detector, wav):
    """Fraction of a recording that counts as speech."""
    return len(speech_of(wav, detector.segments(wav))) / len(wav)


def degraded(wav, seed=0):
    """Speech as it comes: quiet, noisy, by telephone, short."""
    power = np.sqrt(np.mean(wav**2))
    band = butter(4, [300, 3400], "band", fs=RATE, output="sos")
    seconds = len(wav) / RATE
    yield "as it is", wav
    for level in (0.1, 0.01, 1e-3):
        yield f"times {level}", level * wav
    for snr in (15, 10, 5):
        noise = silence(seconds, power / 10 ** (snr / 20), seed)
        yield f"{snr} dB", wav + noise[: len(wav)]
    yield "telephone", sosfilt(band, wav).astype(np.float32)
    yield "0.7 s", wav[: round(0.7 * RATE)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_speech_is_speech(detector, variant):
    for name, wav in degraded(spoken(variant)):
        assert kept(detector, wav) > 0.9, name


def test_silence_around_and_between_is_cut(detector):
    wav = talk(pause=3.0)
    speech = 2 * len(spoken("m1"))
    segments = detector.segments(wav)
    total = len(speech_of(wav, segments))
    assert 0 < total - speech < 1.4 * RATE  # 4 margins, and how long silero lingers
    assert segments[0, 0] > 0.3 * RATE
    assert len(wav) - segments[-1, 1] > 0.3 * RATE
    short = talk(pause=0.3)  # a pause of natural speech stays
    assert len(detector.segments(short)) == 1


def test_arrays_tensors_and_batches_are_alike(detector):
    wavs = [talk(seed, 1.0 + seed) for seed in range(3)]
    alone = [detector.segments(wav).tolist() for wav in wavs]
    assert alone == [detector.segments(torch.from_numpy(wav)).tolist() for wav in wavs]
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(wav) for wav in wavs], batch_first=True
    )
    lens = torch.tensor([len(wav) / padded.shape[1] for wav in wavs])
    junk = padded + (padded == 0)  # what lies in the padding has no effect
    assert [s.tolist() for s in detector(junk, lens)] == alone
    cut = detector.trimmed([torch.from_numpy(wav) for wav in wavs])
    for wav, segments, found in zip(wavs, alone, cut):
        np.testing.assert_array_equal(found.numpy(), speech_of(wav, segments))
    assert len(speech_of(wavs[0], np.zeros((0, 2), int))) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("speech_detection", "yes"),
        ("speech_threshold", 1.5),
        ("min_speech_seconds", -1),
        ("max_pause_seconds", True),
        ("speech_margin_seconds", "0.1"),
    ],
)
def test_settings_out_of_range_are_one_line(key, value):
    with pytest.raises(InputError, match=f"{key} is {value!r}, expected"):
        SpeechConfig.of({key: value}).checked()


# ---- real recordings -----------------------------------------------------------------


@pytest.fixture(scope="module")
def dev(shared):
    folder = shared / "data/dev"
    if not folder.is_dir():
        pytest.skip(f"{folder}: shared is absent")
    return folder


def read(path):
    return soundfile.read(path, dtype="float32")[0]


def test_real_noise_is_no_speech_and_real_speech_is(detector, dev):
    """Of ESC-10 there are crying babies, crowing cocks and sneezes, near a voice."""
    noise = sorted(dev.glob("musan/noise/*/*.wav"))
    heard = [path.name for path in noise if len(detector.segments(read(path)))]
    assert len(heard) <= len(noise) // 10, heard
    with open(dev / "utt_meta.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["noisy"] == "0"]
    silent = [
        row["path"]
        for row in rows
        if not len(detector.segments(read(dev / "wav" / row["path"])))
    ]
    assert len(silent) <= len(rows) // 200, silent
