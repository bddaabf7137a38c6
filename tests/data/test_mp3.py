"""mp3 files of any make have the samples that ffmpeg decodes of them."""

import io

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.audio import read_header, read_mono
from speechbrain_ext.data.sound import mpeg
from speechbrain_ext.data.sound.headers import Peek
from speechbrain_ext.utils.errors import InputError
from tests.players import as_ffmpeg, ffmpeg, needs_ffmpeg, noise

pytestmark = needs_ffmpeg

KINDS = {  # rate, channels, options of ffmpeg
    "44.1 kHz": (44100, 1, ()),
    "varying bit rate, stereo": (44100, 2, ("-q:a", "2")),
    "16 kHz": (16000, 1, ()),
    "16 kHz, varying bit rate": (16000, 1, ("-q:a", "5")),
    "8 kHz": (8000, 1, ()),
}


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """A file with an ID3v2 tag and an Info frame, and the places of both."""
    rate, channels, words = KINDS[request.param]
    folder = tmp_path_factory.mktemp("mp3")
    soundfile.write(folder / "a.wav", noise(2.2, channels, rate), rate)
    ffmpeg("-i", folder / "a.wav", *words, folder / "a.mp3")
    content = (folder / "a.mp3").read_bytes()
    peek = Peek(io.BytesIO(content))
    begin = mpeg.find_frames(peek, mpeg.after_tags(peek), peek.size)
    size = mpeg._BYTES[int.from_bytes(content[begin + 1 : begin + 3], "big")]
    return content, begin, size


def with_frames(whole, change):
    content, begin, size = bytearray(whole[0]), *whole[1:]
    at = max(content.find(b"Info", 0, begin + size), content.find(b"Xing")) + 8
    frames = change(int.from_bytes(content[at : at + 4], "big"))
    content[at : at + 4] = frames.to_bytes(4, "big")
    return bytes(content)


def without_info(whole):
    content, begin, size = whole
    return content[:begin] + content[begin + size :]


APE = (
    b"APETAGEX" + (2000).to_bytes(4, "little") + (32).to_bytes(4, "little") + bytes(16)
)
CHANGES = {
    "as it is": lambda whole: whole[0],
    "no info frame": without_info,
    "nothing but frames": lambda whole: without_info(whole)[whole[1] :],
    "ID3v1": lambda whole: without_info(whole) + b"TAG" + bytes(125),
    "APE and ID3v1": lambda whole: without_info(whole) + APE + b"TAG" + bytes(125),
    "two ID3v2 tags": lambda whole: whole[0][: whole[1]] + without_info(whole),
    "half of the frames": lambda whole: with_frames(whole, lambda n: n // 2),
    "a frame too few": lambda whole: with_frames(whole, lambda n: n - 1),
    "a frame too many": lambda whole: with_frames(whole, lambda n: n + 1),
    "twice the frames": lambda whole: with_frames(whole, lambda n: 2 * n),
    "no frames stated": lambda whole: with_frames(whole, lambda n: 0),
    "two files joined": lambda whole: whole[0] * 2,
    "half, no info frame": lambda whole: without_info(whole)[: len(whole[0]) // 2],
    "cut a little": lambda whole: whole[0][:-90],
}


@pytest.mark.parametrize("change", CHANGES)
def test_as_ffmpeg_decodes_it(whole, change, tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(CHANGES[change](whole))
    expected, rate = as_ffmpeg(path)
    assert read_header(path)[:2] == (len(expected), rate)
    for source in (path, io.BytesIO(path.read_bytes())):
        found, _ = read_mono(source)
        assert len(found) == len(expected)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        for start in (100, len(found) // 2, len(found) - 500):
            part, _ = read_mono(source, start, 500)
            np.testing.assert_allclose(part, found[start : start + 500], atol=2e-6)


def test_a_file_that_begins_within_a_frame(whole, tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(without_info(whole)[whole[1] + 77 :])
    expected, _ = as_ffmpeg(path)
    found, _ = read_mono(path)
    assert len(found) == len(expected)
    np.testing.assert_allclose(found[-9000:], expected[-9000:], atol=2e-5)


def test_a_file_that_lost_its_end_is_refused(whole, tmp_path, caplog):
    path = tmp_path / "a.mp3"
    path.write_bytes(whole[0][: len(whole[0]) // 2])
    with pytest.raises(InputError, match=r"bytes of mp3, its header says .*truncated"):
        read_header(path)
    path.write_bytes(with_frames(whole, lambda n: 2 * n))
    read_header(path)
    assert "samples, it has" in caplog.text
