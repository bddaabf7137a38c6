"""Named arrays come back bit for bit. What damages a file: see test_embeddings.py."""

import numpy as np
import pytest

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.array_files import read_arrays, write_arrays

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
