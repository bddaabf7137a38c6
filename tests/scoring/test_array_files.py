"""Named arrays come back bit for bit. What damages a file: see test_embeddings.py."""

import zipfile

import numpy as np
import pytest

from speechbrain_ext.scoring.embeddings import read_arrays, write_arrays
from speechbrain_ext.utils.errors import InputError

TEXT = np.array(["b", "語/1", "a"])
NUMBERS = {"wide": np.arange(6, dtype=np.int64).reshape(3, 2), "one": np.float32([0.1])}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".NPZ"])
def test_round_trip(tmp_path, suffix):
    path = tmp_path / "new" / f"file{suffix}"
    write_arrays(path, text=TEXT, **NUMBERS)
    text, one, wide = read_arrays(path, "a table", "text", "one", "wide")
    assert text.tolist() == TEXT.tolist()
    for again, name in ((one, "one"), (wide, "wide")):
        assert again.dtype == NUMBERS[name].dtype
        assert np.array_equal(again, NUMBERS[name])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_missing_array(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    write_arrays(path, text=TEXT, one=NUMBERS["one"])
    message = "wide.*expected arrays 'text', 'one' and 'wide'"
    with pytest.raises(InputError, match=message):
        read_arrays(path, "a table", "text", "one", "wide")


def test_refused(tmp_path):
    with pytest.raises(InputError, match=r"suffix '.txt', expected one of .npz"):
        write_arrays(tmp_path / "file.txt", text=TEXT)
    with pytest.raises(InputError, match=r"No such file.*, expected a table"):
        read_arrays(tmp_path / "file.npz", "a table", "text", "one")


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
