"""Files of named arrays come back bit for bit; damaged and foreign ones are refused."""

import zipfile

import numpy as np
import pytest
import safetensors.numpy

from speechbrain_ext.scoring.cohort import Cohort, load_cohort, save_cohort
from speechbrain_ext.scoring.embeddings import (
    load_embeddings,
    read_arrays,
    save_embeddings,
    write_arrays,
)
from speechbrain_ext.scoring.score_files import read_score_table, write_score_table
from speechbrain_ext.scoring.trials import Trials
from speechbrain_ext.utils.errors import InputError

FORMATS = [".npz", ".safetensors"]
TEXT = np.array(["b", "語/1", "a"])
NUMBERS = {"wide": np.arange(6, dtype=np.int64).reshape(3, 2), "one": np.float32([0.1])}
ONES = np.ones((2, 3))
SIDE = np.zeros(2, np.int32)
# what the file is called → text array, other arrays, writer of a good one, reader
KINDS = {
    "embeddings": (
        *("ids", ["vectors"]),
        lambda path: save_embeddings(path, ["a", "b"], ONES),
        load_embeddings,
    ),
    "a cohort": (
        *("speakers", ["vectors", "mean"]),
        lambda path: save_cohort(path, Cohort(np.array(["a", "b"]), ONES, ONES[0])),
        load_cohort,
    ),
    "scores": (
        *("names", ["enrol", "test", "scores", "labels"]),
        lambda path: write_score_table(
            path, Trials(path, np.array(["a", "b"]), SIDE, SIDE), np.ones(2)
        ),
        read_score_table,
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
both_formats = pytest.mark.parametrize("suffix", FORMATS)


@pytest.mark.parametrize("suffix", [*FORMATS, ".NPZ"])
def test_round_trip(tmp_path, suffix):
    path = tmp_path / "new" / f"file{suffix}"
    write_arrays(path, text=TEXT, **NUMBERS)
    text, one, wide = read_arrays(path, "a table", "text", "one", "wide")
    assert text.tolist() == TEXT.tolist()
    for again, name in ((one, "one"), (wide, "wide")):
        assert again.dtype == NUMBERS[name].dtype
        assert np.array_equal(again, NUMBERS[name])


@every_kind
@both_formats
def test_same_input_same_bytes(tmp_path, kind, suffix):
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        KINDS[kind][2](path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@every_kind
@both_formats
def test_missing_damaged_and_foreign_files(tmp_path, kind, suffix):
    text, numbers, write, read = KINDS[kind]
    path = tmp_path / f"file{suffix}"
    with pytest.raises(InputError, match=f"No such file.*expected {kind}"):
        read(path)
    write(path)
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"cannot be read as {kind}") as error:
            read(path)
        assert str(path) in str(error.value)
    for absent in (text, numbers[-1]):
        arrays = {text: TEXT, **dict.fromkeys(numbers, NUMBERS["one"])}
        arrays["x"] = arrays.pop(absent)
        if absent == text and suffix == ".safetensors":
            del arrays["x"]
        write_arrays(path, **arrays)
        with pytest.raises(InputError, match=f"arrays '{text}'.* and '{numbers[-1]}'"):
            read(path)


@every_kind
def test_a_file_that_could_hold_code_or_is_no_text(tmp_path, kind):
    text, numbers, _, read = KINDS[kind]
    numbers = dict.fromkeys(numbers, ONES)
    npz, tensors = tmp_path / "file.npz", tmp_path / "file.safetensors"
    np.savez(npz, **{text: np.array(["a", "b"], dtype=object)}, **numbers)
    with pytest.raises(InputError, match="allow_pickle=False"):
        read(npz)
    for values, message in (
        (ONES, "expected UTF-8 bytes"),
        (np.frombuffer(b"a\n\xff\xfe", np.uint8), "cannot be read"),
    ):
        safetensors.numpy.save_file({text: values, **numbers}, tensors)
        with pytest.raises(InputError, match=message):
            read(tensors)


@every_kind
def test_unknown_suffix(tmp_path, kind):
    path, (save, load) = tmp_path / "file.txt", KINDS[kind][2:]
    with pytest.raises(InputError, match=r"suffix '.txt', expected one of .npz"):
        save(path)
    with pytest.raises(InputError, match=r"file\.txt: No such file"):
        load(path)
    assert not any(tmp_path.iterdir())
    path.touch()
    with pytest.raises(InputError, match=r"suffix '.txt', expected one of .npz"):
        load(path)


def test_loading_checks_as_saving_does(tmp_path):
    """A file from elsewhere; all that is refused is in the tests of the writers."""
    path = tmp_path / "file.npz"
    np.savez(path, ids=np.array(["a", "a"]), vectors=ONES)
    with pytest.raises(InputError, match="ID 'a' in rows 0 and 1"):
        load_embeddings(path)
    path = path.with_suffix(".safetensors")
    write_arrays(path, speakers=TEXT[:2], vectors=ONES, mean=ONES)
    with pytest.raises(InputError, match=r"mean of .*shape \[2, 3\]"):
        load_cohort(path)


def test_a_header_that_claims_petabytes_or_is_no_python(tmp_path):
    path = tmp_path / "a.npz"
    for header in (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (",
    ):
        text = header.ljust(117).encode() + b"\n"
        array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("ids.npy", array)
            file.writestr("vectors.npy", array)
        with pytest.raises(InputError, match="cannot be read as embeddings"):
            read_arrays(path, "embeddings", "ids", "vectors")


def test_a_broken_stream(tmp_path):
    path = tmp_path / "a.npz"
    random = np.random.default_rng(0)
    np.savez_compressed(path, ids=np.array(["a"]), vectors=random.random((64, 64)))
    content = bytearray(path.read_bytes())
    start = content.index(b"vectors.npy") + 40
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as embeddings"):
        read_arrays(path, "embeddings", "ids", "vectors")
