"""Recordings in memory and parts of files: every kind, in every method, as its file."""

import io
import os
import re
import subprocess
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.data.sound import media
from speechbrain_ext.inference import Segment
from speechbrain_ext.inference.sources import split_segment
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16000


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    return load(make_folder(tmp_path_factory.mktemp("model") / "final"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """16 bits: what an int16 array holds exactly."""
    return write_voice(tmp_path_factory.mktemp("wavs") / "a.wav", 3, 0.7)


@pytest.fixture(scope="module")
def other(path):
    return write_voice(Path(path).with_name("b.wav"), 5, 0.6, seed=1)


@pytest.fixture(scope="module")
def int16(path):
    return soundfile.read(path, dtype="int16")[0]


class Pipe(io.RawIOBase):
    """Bytes that come once, as from a socket."""

    def __init__(self, content):
        self._content = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._content.readinto(buffer)


def whole(path):
    return Path(path).read_bytes()


def written(path):
    """A file in memory that was just written: it stands at its end."""
    file = io.BytesIO()
    file.write(whole(path))
    return file


def zipped(path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.wav", whole(path))
    return zipfile.ZipFile(file).open("a.wav")


def temporary(path):
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(whole(path))
    return file


def floats(path, dtype="float32"):
    return soundfile.read(path, dtype=dtype)[0]


def ints(path, dtype="int16"):
    return soundfile.read(path, dtype=dtype)[0]


KINDS = {
    "text": str,
    "Path": Path,
    "Segment": Segment,
    "float32": floats,
    "float64": partial(floats, dtype="float64"),
    "int16": ints,
    "int32": partial(ints, dtype="int32"),
    "other byte order": lambda path: ints(path).astype(">i2"),
    "every second": lambda path: np.repeat(floats(path), 2)[::2],
    "read-only": lambda path: np.frombuffer(floats(path).tobytes(), np.float32),
    "tensor": lambda path: torch.from_numpy(floats(path)),
    "int16 tensor": lambda path: torch.from_numpy(ints(path)),
    "double tensor": lambda path: torch.from_numpy(floats(path)).double(),
    "with gradient": lambda path: torch.from_numpy(floats(path)).requires_grad_(),
    "with rate": lambda path: (floats(path), RATE),
    "tensor with rate": lambda path: (torch.from_numpy(floats(path))[None], RATE),
    "a float for rate": lambda path: (ints(path), 16000.0),
    "numpy's rate": lambda path: (ints(path), np.int64(RATE)),
    "torch's rate": lambda path: (ints(path), torch.tensor(RATE)),
    "rate first": lambda path: (RATE, ints(path)),
    "[1, T]": lambda path: floats(path)[None],
    "[T, 1]": lambda path: floats(path)[:, None],
    "[2, T]": lambda path: np.stack([floats(path)] * 2),
    "[T, 3]": lambda path: np.stack([ints(path)] * 3, 1),
    "bytes": whole,
    "bytearray": lambda path: bytearray(whole(path)),
    "memoryview": lambda path: memoryview(whole(path)),
    "BytesIO": lambda path: io.BytesIO(whole(path)),
    "BytesIO at its end": written,
    "open file": lambda path: open(path, "rb"),  # noqa: SIM115
    "unbuffered file": lambda path: open(path, "rb", buffering=0),  # noqa: SIM115
    "temporary file": temporary,
    "in a zip file": zipped,
    "not seekable": lambda path: Pipe(whole(path)),
    "segment of an array": lambda path: Segment(
        np.r_[np.zeros(1600, np.float32), floats(path)], 0.1
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_method_is_its_file(verifier, path, other, kind):
    make = partial(KINDS[kind], path)
    expected, same = verifier.encode_files([path]), {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(verifier.encode_files(make()), expected, **same)
    found = verifier.encode_files([other, make(), other])
    torch.testing.assert_close(found[1:2], expected, **same)
    for given in (make(), [make()], (item for item in [make()])):
        model = verifier.enrol(given)
        np.testing.assert_allclose(model.embedding, expected[0], atol=1e-6)
        assert model.seconds == pytest.approx(0.7)
    loaded = verifier.load_audio(make())
    torch.testing.assert_close(loaded, verifier.load_audio(path), atol=1e-7, rtol=0)
    cosine = verifier.compare(path, other, threshold=0).cosine
    assert verifier.compare(make(), other, threshold=0).cosine == pytest.approx(cosine)
    score, _ = verifier.verify_files(other, make(), threshold=0)
    assert float(score) == pytest.approx(cosine, abs=1e-6)


def test_eight_bits_are_around_128(verifier, tmp_path):
    wav = (128 + 90 * np.sin(np.arange(8000) / 7)).astype(np.uint8)
    soundfile.write(tmp_path / "a.wav", (wav / 128.0) - 1, RATE, subtype="PCM_U8")
    for given in (wav, torch.from_numpy(wav)):
        found = verifier.load_audio(given)
        assert torch.equal(found, verifier.load_audio(tmp_path / "a.wav"))


def test_an_array_of_another_rate_is_its_file(verifier, tmp_path, caplog):
    path = write_voice(tmp_path / "a.wav", 3, 0.7, rate=44100)
    found = verifier.encode_files([path, (floats(path), 44100), (44100, ints(path))])
    torch.testing.assert_close(found[1:], found[:1].expand(2, -1), atol=1e-6, rtol=0)
    assert "3 of 3 recordings are converted to 16000 Hz" in caplog.text


def test_integers_are_scaled_by_their_type(verifier):
    wav = np.array([0, 2**14, -(2**15), 1] * 2000)
    expected = torch.tensor([0, 0.5, -1, 2**-15] * 2000)
    assert torch.equal(verifier.load_audio(wav.astype(np.int16)), expected)
    assert torch.equal(verifier.load_audio((wav * 2**16).astype(np.int32)), expected)


def test_several_for_one_voice(verifier, path, other, int16):
    model = verifier.enrol([int16, other, (torch.from_numpy(int16), RATE)])
    first, second = verifier.encode_files([path, other]).numpy()
    np.testing.assert_allclose(model.embedding, (2 * first + second) / 3, atol=1e-6)
    assert model.seconds == pytest.approx(2.0)
    pair = verifier.encode_files((path, other))  # a tuple of recordings
    torch.testing.assert_close(pair, verifier.encode_files(np.array([path, other])))
    assert verifier.encode_files((int16, int16)).shape == (2, 8)


def test_one_object_is_embedded_once(verifier, path, int16, monkeypatch):
    rows, encode = [], verifier._encode

    def counting(wavs, wav_lens):
        rows.append(len(wavs))
        return encode(wavs, wav_lens)

    monkeypatch.setattr(verifier, "_encode", counting)
    pipe = Pipe(whole(path))  # can be read once, too
    given = [int16, pipe, (int16, RATE), int16, pipe, (int16, RATE), path, path]
    found = verifier.encode_files(given)
    assert sum(rows) == 4
    torch.testing.assert_close(found, found[:1].expand(8, -1), atol=1e-6, rtol=0)


def test_what_a_player_plays_is_decoded_once_in_memory_too(
    verifier, path, tmp_path, monkeypatch
):
    file, decoded, decode = tmp_path / "a.mp4", [], media._decode
    command = ["ffmpeg", "-v", "error", "-i", path, "-c:a", "aac", str(file)]
    subprocess.run(command, check=True)

    def counting(*args):
        decoded.append(None)
        return decode(*args)

    monkeypatch.setattr(media, "_decode", counting)
    expected = verifier.encode_files([file], window_seconds=0.3)
    assert len(decoded) == 1
    for given in (whole(file), io.BytesIO(whole(file)), Pipe(whole(file))):
        decoded.clear()
        found = verifier.encode_files([given], window_seconds=0.3)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert len(decoded) == 1


def test_a_file_object_stays_where_it_was(verifier, path):
    with open(path, "rb") as file:
        file.seek(7)
        verifier.encode_files([file])
        assert file.tell() == 7
        score = float(verifier.verify_files(file, file, threshold=0)[0])
    assert score == pytest.approx(1.0, abs=1e-6)


# ---- what is wrong is one line -------------------------------------------------------

GOOD = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
NOT_FINITE = np.where(np.arange(8000) == 5, np.nan, GOOD)

BAD = [
    (np.zeros(0), r"\(array\): empty, of shape \(0,\)"),
    (np.zeros((2, 0)), r"\(array\): empty, of shape \(2, 0\)"),
    (np.zeros((1, 1, 8000)), r"\(array\): shape \(1, 1, 8000\), expected \[T\]"),
    (np.zeros((500, 500)), r"\(array\): shape \(500, 500\), .* fewer than samples"),
    (torch.zeros(300, 400), r"\(tensor\): shape \(300, 400\), .* at most 64 channels"),
    (NOT_FINITE, r"\(array\): NaN or infinite samples"),
    (GOOD.astype(np.float64) * 1e300, r"\(array\): NaN or infinite samples"),
    (np.zeros(8000), r"\(array\): silent, expected speech"),
    (GOOD[:100], r"\(array\): 100 samples, 0\.00625 s, expected at least 0\.25 s"),
    (GOOD.astype(complex), r"\(array\): complex128, expected floats in ±1, or int8"),
    (GOOD > 0, r"\(array\): bool, expected floats"),
    (torch.from_numpy(GOOD) > 0, r"\(tensor\): bool, expected floats"),
    (np.arange(8000), r"\(array\): int64, expected floats"),
    (GOOD.astype(object), r"\(array\): object, expected floats"),
    ((GOOD, 0), r"\(array\): rate 0, expected a whole number of Hz"),
    ((GOOD, -16000), r"\(array\): rate -16000, expected a whole"),
    ((GOOD, None), r"\(array\): rate None, expected a whole"),
    ((GOOD, "16000"), r"\(array\): rate '16000', expected a whole"),
    ((GOOD, 16000.5), r"\(array\): rate 16000\.5, expected a whole"),
    ((GOOD, float("nan")), r"\(array\): rate nan, expected a whole"),
    ((GOOD, True), r"\(array\): rate True, expected a whole"),
    ((GOOD, 1000), r"\(array\): 1000 Hz, expected 4000 to 768000 Hz"),
    ((GOOD, 16000, 2), r"\(tuple\): expected a path, an array"),
    (7, r"\(int\): expected a path, an array or tensor \(at 16 kHz\)"),
    (None, r"\(NoneType\): expected a path"),
    (np.float32(3), r"\(float32\): expected a path"),
    (b"", r"\(bytes\): 0 bytes, expected a sound file"),
    (b"no sound at all" * 100, r"\(bytes\): cannot be opened as sound"),
    (io.BytesIO(b"no sound" * 99), r"\(file object\): cannot be opened as sound"),
    (io.StringIO("text"), r"\(file object\): read\(\) gives str, expected bytes"),
    (Segment(GOOD, 0.4, 0.2), r"\(array\):0\.4-0\.2: from 0\.4 to 0\.2 s, expected a"),
    (Segment(GOOD, "a"), r"\(array\):a-: start 'a', expected a number of seconds"),
    (Segment(GOOD, 0, [1]), r"stop \[1\], expected a number of seconds"),
]


@pytest.mark.parametrize(("given", "expected"), BAD, ids=[line for _, line in BAD])
def test_what_is_no_recording_is_one_line_with_its_number(
    verifier, path, given, expected
):
    calls = [
        (lambda: verifier.encode_files([path, given]), "recording 2"),
        (lambda: verifier.enrol([given]), "recording 1"),
        (lambda: verifier.load_audio([given]), "recording 1"),
        (lambda: verifier.compare([given], path, threshold=0), "enrol recording 1"),
        (lambda: verifier.verify_files(path, [given], threshold=0), "test recording 1"),
    ]
    for call, name in calls:
        with pytest.raises(InputError, match=f"^{name} .*{expected}") as caught:
            call()
        assert "\n" not in str(caught.value)
    found, failures = verifier.encode_files([given, path, given], on_error="collect")
    assert torch.isfinite(found[1]).all()
    assert torch.isnan(found[[0, 2]]).all()
    assert [failure.row for failure in failures] == [0, 2]
    assert failures[1].path.startswith("recording 3 (")
    assert re.search(expected, f"{failures[0].path}: {failures[0].reason}")
    assert failures[0].reason == failures[1].reason


@pytest.mark.parametrize("given", [3, None, 0.5, object()])
def test_neither_one_recording_nor_several(verifier, path, given):
    for call in (verifier.encode_files, verifier.enrol, verifier.load_audio):
        with pytest.raises(InputError, match=r"^recordings: .*, expected a path, an"):
            call(given)
    with pytest.raises(InputError, match=r"^test: .*, expected a path, an array"):
        verifier.compare(path, given, threshold=0)


def test_files_that_cannot_be_read(verifier, path, tmp_path):
    with open(path, "rb") as closed, open(tmp_path / "w", "wb") as written:
        pass
    with open(tmp_path / "w", "wb") as writing:
        for file in (closed, written, writing):
            with pytest.raises(InputError, match=r"1 \(file .*\): cannot be read \("):
                verifier.encode_files([file])
    with pytest.raises(InputError, match="2 recordings to load, expected one"):
        verifier.load_audio([path, path])


# ---- parts of files ------------------------------------------------------------------


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """2 s, and every sample another."""
    path = tmp_path_factory.mktemp("long") / "a b.flac"
    wav = np.random.default_rng(2).uniform(-0.5, 0.5, 2 * RATE)
    soundfile.write(path, wav, RATE, subtype="PCM_16")
    return str(path)


@pytest.mark.parametrize(
    ("part", "start", "stop"),
    [
        ("0.5-1.25", 8000, 20000),
        ("1-", 16000, 32000),
        ("0-2", 0, 32000),
        ("0-2.004", 0, 32000),  # the end, rounded up
        (".25-1.", 4000, 16000),
        ("00.50000-0000001.5", 8000, 24000),
    ],
)
def test_a_part_of_a_file(verifier, long, part, start, stop):
    wav = torch.from_numpy(soundfile.read(long, dtype="float32")[0])
    text = f"{long}:{part}"
    assert torch.equal(verifier.load_audio(text), wav[start:stop])
    seconds = start / RATE, stop / RATE
    for segment in (Segment(long, *seconds), Segment(Path(long), *seconds)):
        assert torch.equal(verifier.load_audio(segment), wav[start:stop])
    for source in (wav, (wav[None], RATE), whole(long)):
        found = verifier.load_audio(Segment(source, *seconds))
        assert torch.equal(found, wav[start:stop])
    expected = verifier.encode_files([wav[start:stop]])
    same = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(verifier.encode_files(text), expected, **same)
    model = verifier.enrol([text])
    assert model.seconds == (stop - start) / RATE
    # in windows, too
    expected = verifier.encode_files([wav[start:stop]], window_seconds=0.3)
    found = verifier.encode_files([text], window_seconds=0.3)
    torch.testing.assert_close(found, expected, **same)


def test_a_part_is_cut_at_the_file_s_own_rate(verifier, tmp_path):
    path = write_voice(tmp_path / "a.wav", 3, 1.0, rate=44100)
    wav = soundfile.read(path, dtype="float32")[0][22050:33075]
    found = verifier.load_audio(f"{path}:0.5-0.75")
    assert torch.equal(found, verifier.load_audio((wav, 44100)))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("0.5-9", r"from 0\.5 to 9 s, expected a part of 2 s"),
        ("2-", r"from 2 s on, expected a part of 2 s"),
        ("7-9", r"from 7 to 9 s"),
        ("1.5-0.5", r"from 1\.5 to 0\.5 s"),
        ("1-1", r"from 1 to 1 s"),
        ("-1-2", "segment '-1-2', expected START-STOP or START- in seconds"),
        ("1--2", "segment '1--2', expected START-STOP"),
        ("-2", "segment '-2', expected START-STOP"),
        ("1-2-3", "segment '1-2-3', expected START-STOP"),
        ("1e0-2", "segment '1e0-2', expected START-STOP"),
        ("0.5-0.6", r"1600 samples, 0\.1 s, expected at least 0\.25 s"),
    ],
)
def test_a_part_that_is_none(verifier, long, part, expected):
    text = f"{long}:{part}"
    for call in (verifier.encode_files, verifier.enrol, verifier.load_audio):
        with pytest.raises(InputError, match=expected) as caught:
            call(text)
        assert str(caught.value).startswith(f"{text}: ")
    _, failures = verifier.encode_files([text, long], on_error="collect")
    assert [(row, path) for row, path, _ in failures] == [(0, text)]


def test_a_file_of_that_name_wins(verifier, long, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(long, "a.wav")
    wav = verifier.load_audio(long)
    assert len(verifier.load_audio("a.wav:0.5-1")) == 8000
    os.symlink(long, "a.wav:0.5-1")
    assert torch.equal(verifier.load_audio("a.wav:0.5-1"), wav)
    assert torch.equal(verifier.load_audio("a.wav:0.5-1:0-1"), wav[:16000])


def test_what_is_no_segment_is_a_path():
    for text in ("C:\\a.wav", "a:b.wav", "a-1", "12:30", "x.wav:", "a.wav:-", ":1-2"):
        assert split_segment(text) == (text, 0.0, None)
    assert split_segment("C:\\a.wav:1-2.5") == ("C:\\a.wav", 1.0, 2.5)
    assert split_segment("a:1-2:3-4") == ("a:1-2", 3.0, 4.0)


def test_what_is_wrong_with_the_file_names_the_part(verifier, tmp_path):
    text = f"{tmp_path / 'gone.wav'}:1-2"
    with pytest.raises(InputError) as caught:
        verifier.encode_files([text])
    assert str(caught.value).startswith(f"{text}: cannot be opened as sound (")


def test_floats_that_were_not_scaled_are_told(verifier, path, caplog):
    wav = floats(path)
    verifier.encode_files([2 * wav])
    assert "floats" not in caplog.text
    verifier.encode_files([wav, 32768 * wav, 32768 * wav])
    assert caplog.text.count("floats up to") == 1
    assert "recording 2 (array): floats up to" in caplog.text
    assert "(and 1 more array files)" in caplog.text


def test_batches_are_arrays_or_tensors_of_any_type(verifier, path):
    wav, int16 = floats(path), ints(path)
    expected = verifier.encode_batch(torch.tensor(wav))
    for given in (wav, wav.astype(">f8"), int16, torch.tensor(int16)[None]):
        found = verifier.encode_batch(given, np.ones(1))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for given, expected in (
        ([0.1, 0.2], "wavs: list, expected a tensor or array"),
        (wav.astype(np.int64), "wavs: int64, expected floats in ±1, or int8"),
        (torch.ones(800, dtype=torch.bool), "wavs: bool, expected floats in ±1"),
    ):
        with pytest.raises(InputError, match=expected):
            verifier.encode_batch(given)
