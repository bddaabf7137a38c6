"""Headers that lie, in wav, aiff, au, caf and flac: read as ffmpeg reads them."""

import io
import logging
import os
import struct

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.audio import (
    read_audio,
    read_durations,
    read_header,
    read_mono,
)
from speechbrain_ext.data.sound import flac as sound_flac
from speechbrain_ext.data.sound import media
from speechbrain_ext.utils.errors import InputError
from tests.players import as_ffmpeg, ffmpeg, needs_ffmpeg, noise

PCM = noise(0.5)
SOUND = PCM.tobytes()
SIZE = len(SOUND)
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + bytes(14)


def fmt(tag=1, channels=1, rate=16000, bits=16, align=None, more=b""):
    align = channels * bits // 8 if align is None else align
    content = struct.pack("<HHIIHH", tag, channels, rate, rate * align, align, bits)
    return b"fmt " + struct.pack("<I", len(content + more)) + content + more


FORM = fmt()


def wav(riff=None, data=None, sound=SOUND, form=FORM, before=b"", after=b""):
    """A wav file with any two sizes."""
    riff = 4 + len(form + before) + 8 + len(sound + after) if riff is None else riff
    data = len(sound) if data is None else data
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVE" + form + before
    return head + b"data" + struct.pack("<I", data) + sound + after


GUID = b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
EXTENSIBLE = fmt(0xFFFE, more=struct.pack("<HHIH", 22, 16, 4, 1) + GUID)
RIGHT = 36 + SIZE
ODD = b"note" + struct.pack("<I", 3) + b"abc"

HONEST = {
    "as it should be": wav(),
    "a list before": wav(before=LIST),
    "a list after": wav(after=LIST),
    "id3 after": wav(after=b"id3 " + struct.pack("<I", 10) + b"ID3" + bytes(7)),
    "odd chunk before": wav(before=ODD + b"\0"),
    "extensible": wav(form=EXTENSIBLE),
    "long format": wav(form=fmt(more=b"\0\0")),
}
LIES = {
    "riff too large by 8": wav(RIGHT + 8),
    "riff too large by 44": wav(RIGHT + 44),
    "riff far too large": wav(RIGHT * 3),
    "riff too small": wav(1000),
    "riff zero": wav(0),
    "riff of a header alone": wav(36),
    "data too large by 8": wav(RIGHT, SIZE + 8),
    "data too large by 36": wav(RIGHT, SIZE + 36),
    "data too large by 44": wav(RIGHT, SIZE + 44),
    "both too large by 8": wav(RIGHT + 8, SIZE + 8),
    "both too large by 44": wav(RIGHT + 44, SIZE + 44),
    "data far too large": wav(RIGHT, 10 * SIZE),
    "both far too large, and not alike": wav(3 * SIZE, 30 * SIZE),
    "data too small": wav(RIGHT, 4000),
    "data too small, odd": wav(RIGHT, 4001),
    "both too small": wav(4036, 4000),
    "killed": wav(0, 0),
    "killed later": wav(36, 0),
    "data zero": wav(RIGHT, 0),
    "pipe of ffmpeg": wav(0xFFFFFFFF, 0xFFFFFFFF),
    "data 0xFFFFFFFF": wav(RIGHT, 0xFFFFFFFF),
    "oboe": wav(0x7FFFFFFF, 0x7FFFFFFF),
    "sox": wav(0x7FFFF024, 0x7FFFF000),
    "arecord": wav(0x80000024, 0x80000000),
    "half a frame more": wav(RIGHT, SIZE + 9, SOUND + b"x"),
    "pad byte missing": wav(before=ODD, riff=RIGHT),
    "killed, a list before": wav(0, 0, before=LIST),
    "extensible, killed": wav(0, 0, form=EXTENSIBLE),
    "data too large, a list after": wav(RIGHT + 34, SIZE + 1000, after=LIST),
}
# ffmpeg finds no sound in these, and other players do
LENIENT = {"pad byte missing"}


def check(path, expected, rate=16000):
    """The same of a path and of a file object, as a whole and in parts."""
    for source in (path, io.BytesIO(path.read_bytes())):
        assert read_header(source)[:2] == (len(expected), rate)
        found, found_rate = read_mono(source)
        assert found_rate == rate
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        for start, frames in (
            (0, 10),
            (len(expected) // 3, 500),
            (len(expected) - 7, 7),
        ):
            part, _ = read_mono(source, start, frames)
            np.testing.assert_array_equal(part, expected[start : start + frames])
        with pytest.raises(InputError):
            read_mono(source, len(expected) - 7, 8)
        with pytest.raises(InputError):
            read_mono(source, len(expected), 1)


@pytest.fixture
def heard(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


@needs_ffmpeg
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_wav_is_read_without_a_word(tmp_path, heard, name):
    path = tmp_path / "a.wav"
    path.write_bytes(HONEST[name])
    expected, _ = as_ffmpeg(path)
    assert len(expected) == len(PCM)
    check(path, expected)
    assert not heard.records


@needs_ffmpeg
@pytest.mark.parametrize("name", LIES)
def test_a_lying_wav_is_read_as_ffmpeg_reads_it(tmp_path, heard, name):
    path = tmp_path / "a.wav"
    path.write_bytes(LIES[name])
    if name in LENIENT:
        expected = PCM[:, 0] / np.float32(32768)
    else:
        expected, _ = as_ffmpeg(path)
        assert len(expected) >= 2000
    check(path, expected)
    assert all("its header says" in record.getMessage() for record in heard.records)
    if name not in LENIENT:
        assert f"{path}: its header says" in heard.text


def test_what_ffmpeg_takes_of_a_lying_wav(tmp_path):
    """The same without ffmpeg, by its rule."""
    path = tmp_path / "a.wav"
    for name, content in LIES.items():
        path.write_bytes(content)
        n = len(read_mono(path)[0])
        if "too small" in name and not name.startswith("riff"):
            assert n == 2000
        elif "list after" in name:
            assert n == (SIZE + len(LIST)) // 2
        else:
            assert n == len(PCM), name


@pytest.mark.parametrize("missing", [200, SIZE // 2])
@pytest.mark.parametrize("more", [0, 8, len(LIST)])
def test_sizes_that_agree_are_believed(tmp_path, missing, more):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(RIGHT + more)[:-missing])
    match = f"{44 + SIZE - missing} bytes, its header says {44 + SIZE + more}: trunc"
    for function in (read_header, read_mono):
        with pytest.raises(InputError, match=match):
            function(path)


def test_an_empty_wav_is_empty(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(sound=b""))
    assert read_header(path).frames == 0


def test_chunks_without_end_are_not_walked(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(before=b"abcd\0\0\0\0" * 5000))
    with pytest.raises(InputError, match=r"a.wav: 4096 chunks and no sound"):
        read_header(path)


def test_no_bits_at_all(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(form=fmt(bits=0, align=2)))
    with pytest.raises(InputError, match=r"a.wav: cannot be opened as sound"):
        read_header(path)


def coded(name, tmp_path, *words, channels=1):
    source = tmp_path / "source.wav"
    soundfile.write(source, noise(0.6, channels), 16000)
    path = tmp_path / name
    ffmpeg("-i", source, *words, path)
    return path


CODECS = ["pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"]
CODECS += ["pcm_alaw", "pcm_mulaw"]


def patched(path, offset, value, size=4, order="little"):
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = value.to_bytes(size, order)
    path.write_bytes(content)


@needs_ffmpeg
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_every_width(tmp_path, codec, channels):
    path = coded("a.wav", tmp_path, "-c:a", codec, channels=channels)
    check_close(path)
    patched(path, path.read_bytes().index(b"data") + 4, 0)
    check_close(path)


def check_close(path, atol=1e-6):
    """Channels may be averaged in another order."""
    expected, rate = as_ffmpeg(path)
    header = read_header(path)
    assert header[:2] == (len(expected), rate)
    found, _ = read_mono(path)
    np.testing.assert_allclose(found, expected, atol=atol)
    third = len(expected) // 3
    part, _ = read_mono(path, third, third)
    np.testing.assert_allclose(part, found[third : 2 * third], atol=1e-6)


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["adpcm_ms", "adpcm_ima_wav"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("missing", [0, 1, 37, 100])
def test_adpcm_with_a_last_block_that_is_padded_or_short(
    tmp_path, codec, channels, missing
):
    path = coded("a.wav", tmp_path, "-c:a", codec, channels=channels)
    path.write_bytes(path.read_bytes()[: -missing or None])
    # of IMA's, ffmpeg 5 rounds otherwise than libsndfile and ffmpeg 8
    check_close(path, 2e-3 if codec == "adpcm_ima_wav" else 1e-6)


@needs_ffmpeg
@pytest.mark.parametrize("words", [("-rf64", "always"), ()])
def test_rf64_and_w64_with_wrong_sizes(tmp_path, words):
    path = coded("a.wav" if words else "a.w64", tmp_path, *words)
    check_close(path)
    content = path.read_bytes()
    if words:
        at = content.index(b"ds64") + 8
        for offset, value in ((at, 0), (at + 8, 1 << 62), (at, 1 << 62)):
            patched(path, offset, value, 8)
            check_close(path)
            path.write_bytes(content)
    else:
        at = content.index(b"data\xf3") + 16
        patched(path, at, len(content) * 2, 8)
        check_close(path)


def test_rifx(tmp_path):
    """ffmpeg 5 takes its samples for little-endian ones."""
    path = tmp_path / "a.wav"
    soundfile.write(path, PCM, 16000, endian="BIG")
    check(path, PCM[:, 0] / np.float32(32768))
    patched(path, 40, 0)
    check(path, PCM[:, 0] / np.float32(32768))


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "mark", "after", "size"),
    [("a.aiff", b"SSND", 4, 4), ("a.aifc", b"SSND", 4, 4), ("a.caf", b"data", 4, 8)],
)
def test_apples_files_with_wrong_sizes(tmp_path, name, mark, after, size):
    words = ("-f", "aiff", "-c:a", "pcm_s16le") if name == "a.aifc" else ()
    path = coded(name, tmp_path, *words)
    check_close(path)
    content = path.read_bytes()
    expected, _ = read_mono(path)
    at = content.index(mark) + after
    right = int.from_bytes(content[at : at + size], "big")
    values = [right * 2, right + 44, 1 << 8 * size - 2, 0]
    for value in values:
        patched(path, at, value, size, "big")
        np.testing.assert_array_equal(read_mono(path)[0], expected)
        assert read_header(path).frames == len(expected)
        path.write_bytes(content)
    patched(path, at, right // 2, size, "big")
    check_close(path)
    if mark == b"SSND":
        for value in (0, 1 << 30, 1000):
            path.write_bytes(content)
            patched(path, 4, value, 4, "big")
            np.testing.assert_array_equal(read_mono(path)[0], expected)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="truncated"):
            read_header(path)


@needs_ffmpeg
@pytest.mark.parametrize("value", [0, 10, 1 << 20, 0xFFFFFFFF])
def test_au_is_read_to_its_end(tmp_path, value):
    path = coded("a.au", tmp_path)
    patched(path, 8, value, 4, "big")
    check_close(path)


# -- flac ------------------------------------------------------------------------------


def with_total(path, total, md5=None):
    content = bytearray(path.read_bytes())
    kept = int.from_bytes(content[21:26], "big") >> 36 << 36
    content[21:26] = (kept | total).to_bytes(5, "big")
    path.write_bytes(content)


@pytest.mark.parametrize("total", [0, 1, 4000, 8001, 16000, 1 << 35])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_stream_tells_its_length_by_its_last_frame(
    tmp_path, heard, total, channels
):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(0.5, channels), 16000)
    expected, _ = read_mono(path)
    assert not heard.records
    with_total(path, total)
    check(path, expected)
    if total != 8001:
        assert f"says {total} samples, it has 8000" in heard.text


@needs_ffmpeg
def test_a_flac_stream_of_ffmpeg(tmp_path):
    path = coded("a.flac", tmp_path)
    content = ffmpeg("-i", path, "-f", "flac", "pipe:1")
    path.write_bytes(content)
    check_close(path)
    path.write_bytes(b"ID3\x04\0\0\0\0\x01\x00" + bytes(128) + content)
    check_close(path)


@pytest.mark.parametrize(
    "seconds",
    [(0.5, 0.5), (1, 0.3), (0.3, 1), (4, 4), (4, 4, 4), (9, 1), (1, 9), (0.1,) * 5],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_files_that_were_joined_are_all_read(tmp_path, heard, seconds, channels):
    """ffmpeg reads all, too, but loses some blocks at the seam of longer ones."""
    path, parts, expected = tmp_path / "all.flac", [], []
    for number, length in enumerate(seconds):
        part = tmp_path / f"{number}.flac"
        soundfile.write(part, noise(length, channels, seed=len(parts) % 2), 16000)
        parts.append(part.read_bytes())
        expected.append(read_mono(part)[0])
    path.write_bytes(b"".join(parts))
    check(path, np.concatenate(expected))
    assert f"{len(seconds)} flac files follow one another in it" in heard.text


def test_a_flac_file_alone_is_read_without_a_search(tmp_path, monkeypatch):
    """Few bytes of it tell that nothing follows, however uneven its sound."""
    wav = noise(20)
    wav[: len(wav) // 2] = 0
    soundfile.write(tmp_path / "a.flac", wav, 16000)
    monkeypatch.setattr(sound_flac, "_streams", pytest.fail)
    read_header(tmp_path / "a.flac")


def test_joined_flac_files_that_do_not_go_together(tmp_path):
    path, parts = tmp_path / "all.flac", []
    for rate in (16000, 8000):
        soundfile.write(path, noise(1), rate)
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))
    message = "all.flac: .*flac files of 8000 Hz, .* and 16000 Hz, .* expected one"
    with pytest.raises(InputError, match=message):
        read_mono(path)
    path.write_bytes(parts[0] + parts[0][:-4000])
    with pytest.raises(InputError, match="number 2 of 2 in it is cut"):
        read_mono(path)


def test_a_flac_file_that_is_cut_is_no_shorter_recording(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(2), 16000)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="decoded"):
        read_mono(path)


# -- ogg -------------------------------------------------------------------------------


@pytest.fixture
def ogg(tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise(3.0), 16000)
    return path


@needs_ffmpeg
@pytest.mark.skipif(not media.is_available(), reason="neither PyAV nor ffmpeg")
@pytest.mark.parametrize("damage", ["none", "last page", "inside a page", "chained"])
def test_ogg_streams(ogg, damage):
    content = ogg.read_bytes()
    if damage == "last page":
        content = content[: content.rindex(b"OggS")]
    elif damage == "inside a page":
        content = content[: content.rindex(b"OggS") - 50]
    elif damage == "chained":
        other = ogg.with_name("b.ogg")
        soundfile.write(other, noise(1.0, seed=1), 16000)
        content += other.read_bytes()
    ogg.write_bytes(content)
    if damage != "chained":
        check_close(ogg)
        return
    expected, _ = as_ffmpeg(ogg)
    found, _ = read_mono(ogg)
    assert read_header(ogg).frames == len(found) == len(expected)
    close = np.abs(found - expected) < 1e-6
    assert (~close).sum() < 300  # where they meet, the versions of ffmpeg differ
    assert close[:48000].all()


# -- in bulk ---------------------------------------------------------------------------


def test_one_warning_for_each_kind_of_file(tmp_path, heard):
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(wav(RIGHT + 8))
        soundfile.write(tmp_path / f"{number}.flac", PCM, 16000)
        with_total(tmp_path / f"{number}.flac", 0)
    paths = sorted(map(str, tmp_path.iterdir()))
    seconds, bad = read_durations(paths, 2)
    assert seconds.tolist() == [0.5] * 6
    assert not bad
    assert len(heard.records) == 2
    flac, riff = (record.getMessage() for record in heard.records)
    assert flac.startswith(f"{tmp_path}/0.flac: its header says 0 samples, it has 8000")
    assert flac.endswith("(and 2 more flac files)")
    assert f"says {52 + SIZE} bytes in all, it has {44 + SIZE}" in riff
    assert riff.endswith("(and 2 more wav files)")


def test_a_crop_of_a_clean_file_opens_it_once(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    soundfile.write(path, PCM, 16000)
    expected = read_audio(path)
    monkeypatch.setattr("speechbrain_ext.data.audio.open_sound", None)
    np.testing.assert_array_equal(read_audio(path, 100, 50), expected[100:150])


@pytest.mark.parametrize("content", [wav(), wav(RIGHT + 8), wav(data=0)])
def test_a_tag_before_a_wav(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + content)
    for source in (path, io.BytesIO(path.read_bytes())):
        found, rate = read_mono(source)
        assert rate == 16000
        np.testing.assert_array_equal(found * 32768, PCM[:, 0])
