"""What PyAV or ffmpeg reads: each alone, as ffmpeg decodes; told by the first bytes."""

import io
import os
import re
import sys

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.audio import read_audio, read_header, read_mono
from speechbrain_ext.data.sound import media
from speechbrain_ext.utils.errors import InputError
from tests.players import as_ffmpeg, ffmpeg, needs_ffmpeg, noise

pytestmark = needs_ffmpeg

FILES = [("a.m4a",), ("a.mp4", "-movflags", "+faststart"), ("a.webm",), ("a.aac",)]
FILES += [("a.mkv",), ("a.m4a", "-c:a", "alac"), ("a.wma",), ("a.mov",), ("a.avi",)]
FILES += [("a.wav", "-f", "webm"), ("a.wav", "-f", "mp4"), ("a.mp3", "-f", "adts")]
FILES += [("a.mp4", "-movflags", "frag_keyframe+empty_moov"), ("a.mp2",)]


@pytest.fixture(params=["PyAV", "ffmpeg"])
def player(request, monkeypatch):
    """One of the two, the other being away."""
    if request.param == "PyAV":
        pytest.importorskip("av")
        monkeypatch.setattr("shutil.which", lambda name: None)
    else:
        monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(media, "_kept", type(media._kept)())
    return request.param


def made(folder, name, *words, channels=1, seconds=1.0):
    source = folder / "source.wav"
    soundfile.write(source, noise(seconds, channels), 16000)
    ffmpeg("-i", source, *words, folder / name)
    return folder / name


@pytest.mark.parametrize("words", FILES, ids=" ".join)
def test_as_ffmpeg_decodes_it(tmp_path, player, words):
    path = made(tmp_path, *words, channels=2 if words == ("a.m4a",) else 1)
    expected, rate = as_ffmpeg(path)
    for source in (path, io.BytesIO(path.read_bytes())):
        found, found_rate = read_mono(source)
        assert found_rate == rate
        assert read_header(source)[:2] == (len(found), rate)
        assert len(found) == len(expected)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        part, _ = read_mono(source, 4000, 3000)
        np.testing.assert_array_equal(part, found[4000:7000])
        with pytest.raises(InputError):
            read_mono(source, len(found) - 10, 11)


def test_a_file_is_decoded_once(tmp_path, player, monkeypatch):
    path = made(tmp_path, "a.m4a")
    whole = read_audio(path)
    monkeypatch.setattr(media, "_decode", None)
    np.testing.assert_array_equal(read_audio(path, 1000, 200), whole[1000:1200])
    monkeypatch.undo()
    made(tmp_path, "a.m4a", seconds=0.5)
    assert len(read_audio(path)) < len(whole)  # it is another file now


@pytest.mark.parametrize("kind", ["cut", "scrambled", "text", "no sound", "empty"])
def test_what_cannot_be_decoded_is_one_line(tmp_path, player, kind):
    path = made(tmp_path, "a.mp4", "-movflags", "+faststart", seconds=4.0)
    content = bytearray(path.read_bytes())
    if kind == "cut":
        del content[len(content) // 2 :]
    elif kind == "scrambled":
        content[200:] = os.urandom(len(content) - 200)
    elif kind == "text":
        content[40:] = b"no sound at all" * 50
    elif kind == "empty":
        del content[28:]
    else:
        ffmpeg("-f", "lavfi", "-i", "color=size=32x32:duration=1", path)
        content = path.read_bytes()
    path.write_bytes(content)
    for function in (read_header, read_mono):
        with pytest.raises(
            InputError, match=r"cannot be opened as sound \(MPEG-4"
        ) as e:
            function(path)
        assert str(e.value).startswith(f"{path}: ")
        assert "\n" not in str(e.value)


def test_without_either(tmp_path, monkeypatch):
    path = made(tmp_path, "a.m4a")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", "")
    expected = f"{path}: cannot be opened as sound (MPEG-4, expected {media.NEEDED})"
    with pytest.raises(InputError, match=re.escape(expected)):
        read_header(path)


def test_a_playlist_opens_nothing_else(tmp_path, player):
    made(tmp_path, "secret.aac")
    for name, text in {
        "a.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.aac\n",
        "b.wav": "ffconcat version 1.0\nfile secret.aac\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="cannot be opened as sound"):
            read_mono(tmp_path / name)


@pytest.mark.parametrize("decoder", ["libsndfile", "another"])
def test_what_libsndfile_reads_from_its_start_alone(tmp_path, decoder, monkeypatch):
    """GSM 6.10, of telephones: any part of it is read, as long recordings are."""
    path = tmp_path / "a.wav"
    sound = noise(2.0, rate=8000) / 65536
    soundfile.write(path, sound, 8000, format="WAV", subtype="GSM610")
    expected, rate = as_ffmpeg(path)
    if decoder == "libsndfile":
        monkeypatch.setattr(media, "is_available", lambda: False)
    for source in (path, io.BytesIO(path.read_bytes())):
        found, found_rate = read_mono(source)
        assert found_rate == rate == 8000
        assert read_header(source).frames == len(found) >= len(expected)
        np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-4)
        part, _ = read_mono(source, 4000, 3000)
        np.testing.assert_array_equal(part, found[4000:7000])
