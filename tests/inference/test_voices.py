"""A store of voices: round trips, means, other people's files, two writers."""

import json
import multiprocessing
import os
import time
import unicodedata

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.inference import Voices
from speechbrain_ext.inference import voices as module
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("bare") / "final")


@pytest.fixture(scope="module")
def verifier(model):
    return load(model)


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    """Three recordings of one voice and one of another."""
    root = tmp_path_factory.mktemp("wavs")
    return [
        write_voice(root / f"{number}.wav", number // 3, 0.6 + 0.1 * number, number)
        for number in range(4)
    ]


def made_up(*names, model="m"):
    """Voices of two recordings each, of a model that is none."""
    voices = Voices()
    voices.model = model
    random = np.random.default_rng(0)
    for name in names:
        voices.add_embeddings(name, random.standard_normal((2, SIZE)), [1.5, 2.5])
    return voices


def changed(path, about=None, drop=None, **arrays):
    """The file of a store, with other contents."""
    with safetensors.safe_open(path, "numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        known = json.loads(file.metadata()["voices"])
    found = {k: v for k, v in {**found, **arrays}.items() if k != drop}
    text = about if isinstance(about, str) else json.dumps({**known, **(about or {})})
    path.write_bytes(safetensors.numpy.save(found, {"voices": text}))


# -- what is kept ----------------------------------------------------------------------


def test_a_voice_is_what_enrol_gives(verifier, wavs, tmp_path):
    voices, path = Voices(verifier), tmp_path / "v.safetensors"
    voices.add("Anna", wavs[:3])
    voices.add("Bo", wavs[3])
    voices.save(path)
    read = Voices.load(path, verifier)
    for name, files in (("Anna", wavs[:3]), ("Bo", wavs[3])):
        expected = verifier.enrol(files)
        np.testing.assert_array_equal(read[name].embedding, voices[name].embedding)
        np.testing.assert_allclose(read[name].embedding, expected.embedding, 1e-5, 1e-6)
        assert read[name].embedding.dtype == np.float32
        assert read[name].seconds == pytest.approx(expected.seconds)
    assert read.names == list(read) == ["Anna", "Bo"]
    assert len(read) == 2
    assert "Anna" in read
    assert "Cleo" not in read
    assert 3 not in read
    assert "a\nb" not in read
    assert [v["recordings"] for v in read.describe()] == [3, 1]
    voices.add("Cy", verifier.enrol(wavs[:2]))
    np.testing.assert_array_equal(
        voices["Cy"].embedding, verifier.enrol(wavs[:2]).embedding
    )
    read.remove("Anna")
    with pytest.raises(InputError, match="no voice 'Anna', expected one of 1 that"):
        read.remove("Anna")


def test_recordings_added_later_give_the_mean_of_all_at_once(tmp_path):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((7, SIZE)).astype(np.float32)
    seconds = random.uniform(1, 9, 7)
    once, later = made_up(), made_up()
    once.add_embeddings("A", vectors, seconds)
    for first, last in ((0, 3), (3, 4), (4, 7)):
        later.add_embeddings("A", vectors[first:last], seconds[first:last])
        later.save(tmp_path / "v")
        later = Voices.load(tmp_path / "v")
    np.testing.assert_allclose(once["A"].embedding, vectors.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(later["A"].embedding, once["A"].embedding, rtol=1e-6)
    assert later["A"].seconds == pytest.approx(seconds.sum())
    assert later.describe()[0]["recordings"] == 7


def test_names_are_any_printable_text(tmp_path):
    composed, apart = "Zoë Šimková", unicodedata.normalize("NFD", "Zoë Šimková")
    names = [
        composed,
        "李雷",
        "山田　太郎",
        "محمد",
        "می\u200cخواهم",
        'O\'Neil "Bo"',
        "🙂",
    ]
    voices = made_up(*names)
    voices.save(tmp_path / "v")
    read = Voices.load(tmp_path / "v")
    assert read.names == names
    assert apart in read
    assert f"  {apart} " in read
    voices.add_embeddings(apart, np.ones((1, SIZE)), [1])
    assert len(voices) == len(names)
    for name in ("", "  ", "a\nb", "a\tb", "a\x00", "\ud800", "a\u202eb", None, 7):
        with pytest.raises(InputError, match="name of a voice"):
            voices.add_embeddings(name, np.ones((1, SIZE)), [1])
    assert len(voices) == len(names)


def test_a_store_without_voices_is_one(tmp_path, verifier):
    Voices(verifier).save(tmp_path / "v")
    assert len(Voices.load(tmp_path / "v", verifier)) == 0


@pytest.mark.parametrize(
    ("vectors", "seconds", "message"),
    [
        (np.ones((2, SIZE)), [1.0], r"expected \[K, E\] and \[K\]"),
        (np.ones((0, SIZE)), [], "K at least 1"),
        (np.ones(SIZE), [1.0], r"expected floats \[U, E\]"),
        (np.ones((1, SIZE + 1)), [1.0], f"6 values, expected {SIZE}"),
        (np.zeros((1, SIZE)), [1.0], "voice 'B': norm of the embedding 0"),
        (np.full((1, SIZE), np.nan), [1.0], "norm of the embedding nan"),
        (np.ones((1, SIZE)), [0.0], "voice 'B': seconds 0"),
        (np.ones((1, SIZE)), [np.inf], "seconds inf"),
    ],
)
def test_embeddings_that_cannot_be_compared(vectors, seconds, message):
    voices = made_up("A")
    with pytest.raises(InputError, match=message):
        voices.add_embeddings("B", vectors, seconds)
    assert voices.names == ["A"]


def test_bad_recordings_are_named(verifier, wavs, tmp_path):
    voices = Voices(verifier)
    with pytest.raises(InputError, match=r"gone\.wav"):
        voices.add("A", [wavs[0], str(tmp_path / "gone.wav")])
    with pytest.raises(InputError, match="A: no recordings to enrol from"):
        voices.add("A", [])
    with pytest.raises(InputError, match="voices without a verifier"):
        made_up().add("A", wavs[0])
    assert len(voices) == 0


# -- whose they are --------------------------------------------------------------------


def test_only_the_model_that_made_them(model, verifier, wavs, tmp_path):
    path = tmp_path / "v"
    with Voices.edit(path, verifier) as voices:
        voices.add("A", wavs[0])
    before = path.read_bytes()
    other = load(make_folder(tmp_path / "other", seed=1))
    windows = load(model, overrides={"window_seconds": 7.0, "hop_seconds": 7.0})
    for stranger in (other, windows):
        with pytest.raises(InputError, match=r"v: of another model \(\w{12}\), exp"):
            Voices.load(path, stranger)
        with (
            pytest.raises(InputError, match="of another model"),
            Voices.edit(path, stranger) as voices,
        ):
            voices.add("B", wavs[1])
        with pytest.raises(InputError, match="of another model"):
            stranger.identify(wavs[0], Voices.load(path))
    assert path.read_bytes() == before
    again = load(model, overrides={"min_seconds": 0.3})  # refuses more, changes nothing
    assert Voices.load(path, again).names == ["A"]


# -- files -----------------------------------------------------------------------------


def test_damaged_and_foreign_files_are_one_line(tmp_path):
    path, broken = tmp_path / "v", tmp_path / "broken"
    made_up("A", "B").save(path)
    whole = path.read_bytes()
    for content in (
        b"",
        whole[:7],
        whole[:60],
        whole[:-1],
        whole + b"x",
        b"{}",
        b"\xff" * 64,
    ):
        broken.write_bytes(content)
        with pytest.raises(InputError, match="broken: ") as caught:
            Voices.load(broken)
        assert "\n" not in str(caught.value)
    broken.write_bytes(safetensors.numpy.save({"x": np.ones(2)}))
    with pytest.raises(InputError, match="expected a store of voices"):
        Voices.load(broken)
    with pytest.raises(InputError, match="gone: No such file"):
        Voices.load(tmp_path / "gone")
    with pytest.raises(InputError, match="no file, expected a store"):
        Voices.load(tmp_path)


def test_every_byte_of_the_header_may_be_wrong(tmp_path):
    """Whatever is read is a store, or it is refused in one line."""
    path = tmp_path / "v"
    made_up("A", "B").save(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    end = 8 + int.from_bytes(whole[:8], "little")
    for place in range(end):
        content = bytearray(whole)
        content[place] = random.integers(256)
        path.write_bytes(content)
        try:
            voices = Voices.load(path)
        except InputError:
            continue
        assert len(voices) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": {"version": 2}}, "version is 2, expected 1"),
        ({"about": {"format": "x"}}, "format is 'x'"),
        ({"about": {"names": ["A"]}}, "expected float64 of 1 voices"),
        ({"about": {"names": ["A", "A"]}}, "voice 'A' twice"),
        ({"about": {"names": ["A", "a\nb"]}}, "expected printable text"),
        ({"about": {"names": ["A", "\ud800"]}}, "expected printable text"),
        ({"about": {"names": ["A", "e\u0301"]}}, "expected 'é'"),
        ({"about": {"names": ["A", 2]}}, "names"),
        ({"about": {"more": 1}}, "more"),
        ({"about": "[" * 100_000}, "cannot be read as a store"),
        ({"about": "no JSON"}, "cannot be read as a store"),
        ({"drop": "seconds"}, "no 'seconds' in it"),
        ({"more": np.ones(2)}, "'more' in it"),
        ({"sums": np.ones((2, SIZE), np.float32)}, "sums of type float32"),
        ({"sums": np.ones(2)}, "sums of type float64 and shape"),
        ({"sums": np.full((2, SIZE), np.inf)}, "voice 'A': norm"),
        ({"recordings": np.array([1, 0])}, "voice 'B': recordings 0"),
        ({"recordings": np.array([1, -1])}, "voice 'B': recordings -1"),
        ({"seconds": np.array([np.nan, 1])}, "voice 'A': seconds nan"),
    ],
)
def test_hostile_contents(tmp_path, changes, message):
    path = tmp_path / "v"
    made_up("A", "B").save(path)
    changed(path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        Voices.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "v"
    made_up("A").save(path)
    before = path.read_bytes()

    def fail(source, target):
        raise OSError(28, "No space left on device", str(target))

    voices = Voices.load(path)
    voices.add_embeddings("B", np.ones((1, SIZE)), [1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            voices.save(path)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {"v", ".v.lock"}
    voices.save(path)  # there is space again
    assert Voices.load(path).names == ["A", "B"]


def test_rights_and_links_of_a_store_stay(tmp_path):
    path, link = tmp_path / "v", tmp_path / "link"
    made_up("A", "B").save(path)
    path.chmod(0o600)
    link.symlink_to(path)
    with Voices.edit(link) as voices:
        voices.remove("A")
    assert path.stat().st_mode & 0o777 == 0o600
    assert link.is_symlink()
    assert Voices.load(path).names == ["B"]


def test_a_killed_writer_leaves_the_old_file_and_no_lock(tmp_path):
    path = tmp_path / "v"
    made_up("A").save(path)
    before = path.read_bytes()

    def begin(ready):
        with Voices.edit(path) as voices:
            voices.remove("A")
            ready.set()
            time.sleep(60)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    writer = context.Process(target=begin, args=(ready,))
    writer.start()
    assert ready.wait(30)
    writer.kill()
    writer.join()
    assert path.read_bytes() == before
    with Voices.edit(path) as voices:
        assert voices.names == ["A"]


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    path, others = tmp_path / "v[1]", ["v[1].1", "v1", "v[1].0123456789.tmp"]
    left = tmp_path / ".v[1].0123abcd.tmp"
    kept = [tmp_path / f".{name}.0123abcd.tmp" for name in others]
    for file in (left, *kept):
        file.write_bytes(b"half")
    made_up("A").save(path)
    assert Voices.load(path).names == ["A"]
    assert not left.exists()
    assert all(file.exists() for file in kept)  # of other files


@pytest.mark.parametrize("path", [None, 3, b"v"])
def test_what_is_no_path_is_one_line(path):
    message = "is no path, expected that of a store of voices"
    with pytest.raises(InputError, match=message):
        Voices.load(path)
    with pytest.raises(InputError, match=message):
        made_up("A").save(path)
    with pytest.raises(InputError, match=message), Voices.edit(path):
        pass


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "v"
    made_up("A", "B").save(path)

    def remove(*names):
        with Voices.edit(path) as voices:
            for name in names:
                voices.remove(name)

    with pytest.raises(InputError, match="no voice 'C'"):
        remove("A", "C")
    assert Voices.load(path).names == ["A", "B"]


# -- two writers -----------------------------------------------------------------------


def test_what_another_program_wrote_is_never_overwritten(tmp_path):
    path = tmp_path / "v"
    made_up("A").save(path)
    mine, theirs = Voices.load(path), Voices.load(path)
    theirs.add_embeddings("B", np.ones((1, SIZE)), [1])
    theirs.save(path)
    theirs.remove("A")
    theirs.save(path)  # one's own writes are known
    mine.add_embeddings("C", np.ones((1, SIZE)), [1])
    with pytest.raises(InputError, match="changed since it was read here"):
        mine.save(path)
    with pytest.raises(InputError, match="changed since it was read here"):
        made_up("D").save(path)
    assert Voices.load(path).names == ["B"]
    mine.save(tmp_path / "another")
    path.unlink()
    with pytest.raises(InputError, match="changed since it was read here"):
        theirs.save(path)


def _add_many(path, name, number):
    for take in range(number):
        with Voices.edit(path) as voices:
            voices.add_embeddings(f"{name}{take}", np.ones((1, SIZE)), [1])


def test_programs_that_add_at_once_lose_no_voice(tmp_path):
    path, number = tmp_path / "v", 15
    made_up("first").save(path)
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_add_many, args=(path, name, number)) for name in "abc"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    expected = {"first"} | {f"{name}{take}" for name in "abc" for take in range(number)}
    assert set(Voices.load(path).names) == expected


def test_a_lock_that_is_held_is_an_error_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    path = tmp_path / "v"
    made_up("A").save(path)
    with (
        Voices.edit(path),
        pytest.raises(InputError, match=r"held \.v\.lock for 0.05 s"),
    ):
        made_up("B").save(path)
    assert Voices.load(path).names == ["A"]
