"""The page: what it answers, and a real server without any network."""

import html
import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from page_client import compare, configuration
from tiny_detector import load_detector, make_detector
from tiny_speech import silence, spoken
from tiny_verifier import load, make_folder, make_whole, write_voice

from speechbrain_ext import app
from speechbrain_ext.app import (
    answer,
    answer_enrol,
    answer_identify,
    answer_remove,
    import_gradio,
    launch,
)
from speechbrain_ext.app.store import Store
from speechbrain_ext.inference.voices import Voices
from speechbrain_ext.utils.errors import InputError


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    return load(make_whole(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def plain_verifier(tmp_path_factory):
    return load(make_folder(tmp_path_factory.mktemp("plain") / "model"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two takes of one voice."""
    folder = tmp_path_factory.mktemp("clips")
    return [
        write_voice(folder / f"take{n}.wav", 20, 1.0 + 0.5 * n, n) for n in range(2)
    ]


def words(page):
    """What a reader sees of HTML."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


@pytest.mark.parametrize(("threshold", "decision"), [(-99.0, True), (99.0, False)])
def test_decision_score_threshold_probability(verifier, clips, threshold, decision):
    page = answer(verifier, *clips, score="llr", threshold=threshold)
    found = verifier.compare(*clips, score="llr", threshold=threshold)
    text = words(page)
    assert text.startswith("Same speaker " if decision else "Different speakers ")
    sign = "at or above" if decision else "below"
    assert f"{found.llr:.3f}, {sign} the threshold {threshold:.3f}." in text
    assert f"Probability of one speaker: {100 * found.probability:.1f} %" in text
    assert f"Cosine {found.cosine:.3f}, AS-norm score {found.as_norm:.3f}" in text
    assert "take0.wav, 1.0 s" in text
    assert "take1.wav, 1.5 s" in text
    assert page.count("data:image/png;base64,") == 3  # the line, two spectrograms
    assert page.count("alt=") == 3
    assert str(clips[0]) not in page


def test_both_answers(verifier, clips, tmp_path):
    """Same speaker, and real voices; each with its own threshold."""
    detector = load_detector(make_detector(tmp_path / "detector"))
    options = {"detector": detector, "spoof_accept_rate": 0.1}
    page = answer(verifier, *clips, score="llr", threshold=-99.0, **options)
    text = words(page)
    assert text.startswith("Same speaker ")
    found = detector.detect_files(clips, false_accept_rate=0.1)
    for number, of in enumerate(found):
        real = "real voice" if of.decision else "not a real voice"
        title = app.CLIPS[number].partition(",")[0]
        assert f"{title}: {real} " in text
        assert f"of a real voice {of.llr:.3f}, " in text
        assert f"Probability of a real voice: {100 * of.probability:.1f} %" in text
    assert f"{100 * found[0].false_accept_rate:.3g} % of spoofs were accepted" in text
    assert page.count("data:image/png;base64,") == 5  # three lines, two spectrograms
    assert str(clips[0]) not in page
    assert "real voice" not in words(answer(verifier, *clips))


def test_rates_of_the_threshold(verifier, clips):
    point = verifier.compare(*clips)
    text = words(answer(verifier, *clips))
    assert "where both errors were equally frequent" in text
    assert f"{100 * point.false_accept_rate:.3g} % of pairs of different" in text
    assert f"{100 * point.miss_rate:.3g} % of pairs of one speaker" in text


def test_a_model_without_calibration_gives_no_probability(plain_verifier, clips):
    text = words(answer(plain_verifier, *clips))
    assert "no calibration, so there is no probability" in text
    assert "nobody measured" in text
    assert "%" not in text
    assert "Also" not in text


def test_bad_clips_are_named_in_the_page(plain_verifier, clips, tmp_path, monkeypatch):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "short.wav", np.ones(800), 16000)
    soundfile.write(tmp_path / "long.wav", np.ones(32000), 16000)
    monkeypatch.setattr(app, "MOST_SECONDS", 1.9)
    for name, reason in (
        ("text.wav", "cannot be opened as sound"),
        ("silent.wav", "silent, expected speech"),
        ("short.wav", "800 samples, 0.05 s, expected at least 0.25 s"),
        ("long.wav", "2 s, expected 2 s or less"),
        ("gone.wav", "deleted, expected it to be uploaded less than 30 minutes ago"),
    ):
        page = answer(plain_verifier, clips[0], str(tmp_path / name))
        assert 'role="alert"' in page
        assert f"Clip 2, to be tested ({name}): {reason}" in words(page)
        assert str(tmp_path) not in page


def test_a_clip_without_speech_is_no_other_speaker(plain_verifier, clips):
    page = answer(plain_verifier, *clips, speech_detection=True)  # tones
    assert words(page).startswith("No speech found ")
    assert "Clip 2, to be tested (take1.wav): no speech found: no decision" in page
    assert "take1.wav, 1.5 s, 0.0 s of speech" in page
    assert "ifferent speakers" not in page
    assert str(clips[0]) not in page
    assert page.count("data:image/png;base64,") == 2  # the clips are shown


def test_digital_silence_is_an_answer(verifier, clips, tmp_path):
    silent, store = str(tmp_path / "silent.wav"), Store(verifier)
    soundfile.write(silent, np.zeros(32000), 16000)
    soundfile.write(tmp_path / "voice.wav", spoken("m1"), 16000)
    said = {"speech_detection": True}
    answer_enrol(verifier, store, "a", str(tmp_path / "voice.wav"), **said)
    pages = [
        answer(verifier, str(tmp_path / "voice.wav"), silent, **said),
        answer_enrol(verifier, store, "b", silent, **said),
        answer_identify(verifier, store, silent, **said),
    ]
    for page in pages:
        assert words(page).startswith("No speech found ")
        assert "silent.wav, 2.0 s, 0.0 s of speech" in page
        assert 'class="verdict none"' in page
        assert "alert" not in page
        assert str(tmp_path) not in page
    assert store.read().names == ["a"]


def test_warnings_are_shown(verifier, clips, tmp_path):
    """Two people of a call in their channels: the mean is of neither."""
    path = str(tmp_path / "call.wav")
    wavs = [soundfile.read(write_voice(tmp_path / "v.wav", n, 1.0))[0] for n in (3, 5)]
    wavs[0][8000:] = wavs[1][:8000] = 0
    soundfile.write(path, np.stack(wavs, axis=1), 16000)
    store = Store(verifier)
    answer_enrol(verifier, store, "a", clips[0])
    for page, title in (
        (answer(verifier, clips[0], path), "Clip 2, to be tested"),
        (answer_identify(verifier, store, path), "Clip to identify"),
    ):
        assert "have channels that differ" in words(page)
        assert f"first {title} (call.wav)" in words(page)
        assert str(tmp_path) not in page


def test_the_channel_that_is_chosen_is_heard(verifier, clips, tmp_path):
    """The clip in the second channel, one without, and a choice that is none."""
    calls = []
    for number, clip in enumerate(clips[:2]):
        wav, rate = soundfile.read(clip)
        calls.append(path := str(tmp_path / f"call{number}.wav"))
        soundfile.write(path, np.stack([wav[::-1], wav], axis=1), rate)
    store = Store(verifier)
    page = words(answer(verifier, *calls, channel="right"))
    cosine = verifier.compare(*clips[:2]).cosine
    assert f"{cosine:.3f}" in page
    page = words(answer(verifier, clips[0], path, channel="right"))
    assert "channel 2 of 1" in page
    assert "Enrolled" in answer_enrol(verifier, store, "a", path, channel="right")
    page = words(answer(verifier, clips[0], path, channel="middle"))
    assert "expected left, right, a number from 1 on" in page


# ---- enrolled voices -----------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def store(request, verifier, tmp_path):
    path = tmp_path / "voices.safetensors" if request.param == "file" else None
    return Store(verifier, path)


def test_enrolled_voices_are_identified(verifier, store, clips, tmp_path):
    others = [write_voice(tmp_path / f"{n}.wav", n, 1.5, 3) for n in range(3)]
    page = answer_enrol(verifier, store, " Zoë ", clips[0])
    assert words(page).startswith("Enrolled: Zoë 1.0 s of speech were added")
    for number, other in enumerate(others):
        answer_enrol(verifier, store, f"other {number}", other)
    page = answer_identify(verifier, store, clips[1], score="cosine", threshold=-1.0)
    found = verifier.identify(clips[1], store.read(), score="cosine", threshold=-1.0)
    text = words(page)
    assert text.startswith(f"{found.voice} Best of 4 voices: {found.voice}.")
    for candidate in found.candidates:
        assert f"{candidate.voice} {candidate.cosine:.3f}" in text
    page = answer_identify(verifier, store, clips[1], score="cosine", threshold=1.5)
    assert words(page).startswith("Unknown ")
    assert "below the threshold 1.500" in words(page)


def test_the_file_is_what_enrol_writes(verifier, clips, tmp_path):
    """Other programs read it, and what they add is seen."""
    store = Store(verifier, tmp_path / "v.safetensors")
    answer_enrol(verifier, store, "a", clips[0])
    with Voices.edit(store.path, verifier) as voices:
        assert voices.names == ["a"]
        voices.add("b", clips[1])
    assert store.read().names == ["a", "b"]
    store.remove("a")
    assert Voices.load(store.path).names == ["b"]
    assert Store(verifier, store.path).read().names == ["b"]


def test_voices_of_another_model_are_told_at_the_start(verifier, clips, tmp_path):
    store = Store(verifier, tmp_path / "v.safetensors")
    answer_enrol(verifier, store, "a", clips[0])
    with pytest.raises(InputError, match=r"v\.safetensors: of another model"):
        Store(load(make_folder(tmp_path / "other", seed=1)), store.path)


def test_a_file_of_voices_that_was_damaged_meanwhile(verifier, clips, tmp_path):
    store = Store(verifier, tmp_path / "v.safetensors")
    answer_enrol(verifier, store, "a", clips[0])
    store.path.write_bytes(b"garbage")
    for page in (
        answer_enrol(verifier, store, "b", clips[0]),
        answer_identify(verifier, store, clips[0]),
        answer_remove(store, "a"),
    ):
        assert "The file of voices: cannot be read" in words(page)
        assert str(tmp_path) not in page
    assert store.path.read_bytes() == b"garbage"


def test_a_voice_is_removed(verifier, store, clips):
    answer_enrol(verifier, store, "a", clips[0])
    assert "no voice 'b'" in html.unescape(words(answer_remove(store, "b")))
    assert 'role="alert"' in answer_remove(store, None)
    assert answer_remove(store, "a") == ""
    assert not len(store.read())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "no name"), (None, "no name"), ("x" * 81, "81 letters"), ("a\nb", "name")],
)
def test_names_that_are_none(verifier, store, clips, name, reason):
    page = answer_enrol(verifier, store, name, clips[0])
    assert 'role="alert"' in page
    assert reason in words(page)
    assert not len(store.read())


def test_names_of_voices_are_no_html(verifier, store, clips):
    name = "<img src=x onerror=alert(1)>"
    for page in (
        answer_enrol(verifier, store, name, clips[0]),
        answer_identify(verifier, store, clips[0], score="cosine", threshold=-1.0),
    ):
        assert "<img src=x" not in page
        assert "&lt;img src=x" in page


def test_nobody_is_enrolled_without_speech(verifier, store, clips):
    page = answer_enrol(verifier, store, "a", clips[0], speech_detection=True)  # tones
    assert words(page).startswith("No speech found ")
    assert not len(store.read())
    assert "no voice is enrolled" in answer_identify(verifier, store, clips[0])
    answer_enrol(verifier, store, "a", clips[0])
    page = answer_identify(verifier, store, clips[1], speech_detection=True)
    assert words(page).startswith("No speech found ")


def test_many_visitors_at_once(verifier, clips, tmp_path):
    for path in (None, tmp_path / "v.safetensors"):
        store, names = Store(verifier, path), [f"voice {n}" for n in range(24)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(store.add, names, [verifier.enrol(clips[0])] * 24))
        assert sorted(store.read().names) == sorted(names)


def test_speech_is_counted(plain_verifier, tmp_path):
    path = tmp_path / "spoken.wav"
    voice = spoken("f2")
    soundfile.write(path, np.concatenate([silence(2.0), voice, silence(3.0)]), 16000)
    page = answer(plain_verifier, str(path), str(path), speech_detection=True)
    (said,) = set(re.findall(r"spoken\.wav, ([\d.]+) s, ([\d.]+) s of speech", page))
    assert float(said[0]) == pytest.approx(5 + len(voice) / 16000, abs=0.06)
    assert float(said[1]) == pytest.approx(len(voice) / 16000, abs=0.8)


def test_a_missing_clip(plain_verifier, clips):
    assert "Clip 1, the known speaker: missing" in answer(plain_verifier, None, "b.wav")
    assert "Clip 2, to be tested: missing" in answer(plain_verifier, clips[0], None)


def test_names_of_files_are_no_html(plain_verifier, clips, tmp_path):
    path = write_voice(tmp_path / "<img src=x onerror=alert(1)>.wav", 20)
    for page in (
        answer(plain_verifier, clips[0], path),
        answer(plain_verifier, clips[0], str(tmp_path / "<script>.wav")),
    ):
        assert "<img src=x" not in page
        assert "<script>" not in page
        assert ("&lt;img src=x" in page) or ("&lt;script&gt;" in page)


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install '\.\[app\]'"):
        import_gradio()


# ---- the real server -----------------------------------------------------------------


@pytest.fixture
def other_hosts(monkeypatch):
    """Connections and look-ups beyond this machine are refused, and listed here."""
    asked = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def is_here(host):
        return str(host) in ("127.0.0.1", "localhost", "::1", "None", "0.0.0.0")

    def guarded_connect(self, address):
        if self.family != socket.AF_UNIX and not is_here(address[0]):
            asked.append(address)
            raise OSError(f"no network in this test: {address}")
        return connect(self, address)

    def guarded_look_up(host, *args, **kwargs):
        if not is_here(host.decode() if isinstance(host, bytes) else host):
            asked.append(host)
            raise OSError(f"no network in this test: {host}")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    return asked


@pytest.mark.slow  # Gradio takes ten seconds to be imported
def test_a_served_page_answers_reports_to_nobody_and_forgets(
    plain_verifier, clips, tmp_path, monkeypatch, other_hosts
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "kept"))
    (tmp_path / "bad.wav").write_text("no sound")
    page = launch(plain_verifier, "tiny", "127.0.0.1", wait=False, threshold=-1.0)
    try:
        good = compare(page.local_url, *clips)
        bad = compare(page.local_url, clips[1], tmp_path / "bad.wav")
        assert words(good).startswith("Same speaker ")
        assert "(bad.wav): cannot be opened as sound" in words(bad)
        assert configuration(page.local_url)["analytics_enabled"] is False
        assert list((tmp_path / "kept").rglob("*.wav"))
        with pytest.raises(InputError, match=f"port {page.server_port} on 127.0.0.1"):
            launch(plain_verifier, "x", "127.0.0.1", page.server_port, wait=False)
    finally:
        page.close()
    deadline = time.monotonic() + 60
    while kept := list((tmp_path / "kept").rglob("*.wav")):
        assert time.monotonic() < deadline, kept
        time.sleep(0.1)
    assert other_hosts == []
