"""m4a → flac: for real where ffmpeg is, and the message where it is not."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.prepare.convert import convert_where_needed
from speechbrain_ext.utils.errors import InputError

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="ffmpeg is not on PATH"
)


@pytest.fixture
def m4a(tmp_path):
    """Make an m4a of one second of a 500 Hz tone, 44.1 kHz stereo."""

    def make(name):
        path = tmp_path / "aac" / f"{name}.m4a"
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = "sine=frequency=500:duration=1:sample_rate=44100"
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", tone, "-ac", "2"]
        command += ["-c:a", "aac", "-movflags", "+faststart", str(path)]
        subprocess.run(command, check=True)
        return str(path)

    return make


@needs_ffmpeg
def test_converts_to_16_khz_mono_16_bit_and_keeps_the_tone(tmp_path, m4a):
    paths = {"id1/s/1": m4a("1"), "id1/s/2": "/untouched.wav"}
    assert convert_where_needed(paths, tmp_path / "flac") == []
    copy = tmp_path / "flac/id1/s/1.flac"
    assert paths == {"id1/s/1": str(copy), "id1/s/2": "/untouched.wav"}
    info = soundfile.info(copy)
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    assert info.frames == pytest.approx(16000, abs=1500)  # AAC pads its ends
    wav, _ = soundfile.read(copy)
    peak = np.abs(np.fft.rfft(wav)).argmax() * 16000 / len(wav)
    assert peak == pytest.approx(500, abs=2)


@needs_ffmpeg
def test_resumes_and_leaves_nothing_else(tmp_path, m4a):
    source = m4a("1")
    folder = tmp_path / "flac"
    folder.mkdir()
    (folder / "b.flac").write_text("made before")
    (folder / "c.flac").touch()  # what a power failure may leave
    paths = {"a": source, "b": source, "c": source}
    assert convert_where_needed(paths, folder) == []
    assert (folder / "b.flac").read_text() == "made before"
    assert soundfile.info(folder / "c.flac").frames > 0
    times = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert sorted(times) == ["a.flac", "b.flac", "c.flac"]
    assert convert_where_needed({"a": source, "c": source}, folder) == []
    assert times == {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


@needs_ffmpeg
def test_damaged_files_are_reported_not_shortened(tmp_path, m4a):
    whole = m4a("whole")
    data = Path(whole).read_bytes()
    cut, text = tmp_path / "cut.m4a", tmp_path / "text.M4A"
    cut.write_bytes(data[: len(data) // 2])
    text.write_text("no sound at all")
    paths = {"cut": str(cut), "text": str(text), "whole": whole}
    bad = convert_where_needed(paths, tmp_path / "flac")
    assert [path for path, _ in bad] == [str(cut), str(text)]
    assert all(reason.startswith("ffmpeg cannot convert it") for _, reason in bad)
    assert list(paths) == ["whole"]
    assert [p.name for p in (tmp_path / "flac").iterdir()] == ["whole.flac"]


@needs_ffmpeg
def test_pyav_does_as_well(tmp_path, m4a, monkeypatch):
    pytest.importorskip("av")
    whole, cut = m4a("1"), tmp_path / "cut.m4a"
    cut.write_bytes(Path(whole).read_bytes()[:-4000])
    convert_where_needed({"1": whole}, tmp_path / "by ffmpeg")
    monkeypatch.setenv("PATH", "")
    paths = {"1": whole, "2": str(cut)}
    (bad,) = convert_where_needed(paths, tmp_path / "flac")
    assert bad[0] == str(cut)
    assert bad[1].startswith("PyAV cannot convert it (")
    assert [p.name for p in (tmp_path / "flac").iterdir()] == ["1.flac"]
    wav, rate = soundfile.read(paths["1"])
    expected, _ = soundfile.read(tmp_path / "by ffmpeg/1.flac")
    assert rate == 16000
    assert len(wav) == pytest.approx(len(expected), abs=20)
    n = min(len(wav), len(expected))
    np.testing.assert_allclose(wav[:n], expected[:n], atol=1e-3)


def test_without_ffmpeg_and_pyav(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "av", None)
    paths = {"a": "/vox2/aac/id1/a.m4a", "b": "/vox2/aac/id2/b.M4A", "c": "/c.wav"}
    with pytest.raises(InputError) as error:
        convert_where_needed(paths, tmp_path)
    assert str(error.value).startswith("/vox2/aac: 2 m4a files")
    expected = (
        "ffmpeg on PATH or PyAV, pip install av (now neither is there), and --conv"
    )
    assert expected in str(error.value)


def test_without_convert_folder():
    with pytest.raises(InputError, match=r"/vox2/aac: 1 m4a files.*--convert_folder"):
        convert_where_needed({"a": "/vox2/aac/a.m4a"}, None)


def test_nothing_to_convert_needs_nothing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert convert_where_needed({"a": "/a.wav"}, None) == []
