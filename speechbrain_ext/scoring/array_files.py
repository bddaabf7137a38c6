"""Files of named arrays, whole or absent: npz (numpy) or safetensors.

The suffix chooses the format. safetensors stores numbers only, so a text array becomes
the UTF-8 bytes of one value per line. Neither format can carry code: pickled arrays are
refused.
"""

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from speechbrain_ext.errors import InputError, describe_os_error
from speechbrain_ext.files import write_atomically

SUFFIXES = (".npz", ".safetensors")
# What the readers raise for a file that is truncated, foreign or wrong in any byte
# (RuntimeError: zip's flags would have it encrypted, or compressed in an unknown way;
# MemoryError: a header that claims petabytes; TokenError: one that is no Python).
DAMAGE = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
DAMAGE += (MemoryError, tokenize.TokenError)
DAMAGE += (safetensors.SafetensorError,)


def write_arrays(path, **arrays):
    """Write named arrays, atomically, as npz or safetensors by the suffix.

    A text array is stored in safetensors as UTF-8 bytes, one value per line.
    """
    path = Path(path)
    suffix = check_suffix(path)
    with write_atomically(path, "wb") as file:
        if suffix == ".npz":
            np.savez(file, **arrays)
        else:
            as_numbers = {name: _without_text(array) for name, array in arrays.items()}
            file.write(safetensors.numpy.save(as_numbers))


def read_arrays(path, what, text, *numbers):
    """Read the arrays of these names, the first of them text.

    Raises
    ------
    InputError
        Missing, damaged or foreign file, pickled content; ``what`` says what was
        expected. The arrays' own content is the caller's to check.
    """
    path = Path(path)
    read = _read_npz if check_suffix(path) == ".npz" else _read_safetensors
    try:
        return read(path, text, numbers)
    except KeyError as error:
        names = "', '".join((text, *numbers[:-1]))
        raise InputError(
            f"{path}: {error.args[0]}, expected arrays '{names}' and '{numbers[-1]}'"
        ) from error
    except OSError as error:
        raise InputError(f"{describe_os_error(error)}, expected {what}") from error
    except DAMAGE as e:
        raise InputError(f"{path}: cannot be read as {what} ({e})") from e


def check_suffix(path):
    """The suffix in small letters, or InputError for one that is neither."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path}: suffix '{path.suffix}', expected one of {', '.join(SUFFIXES)}"
        )
    return path.suffix.lower()


def _without_text(array):
    if array.dtype.kind != "U":
        return array
    return np.frombuffer("\n".join(array.tolist()).encode(), np.uint8)


def _read_npz(path, text, numbers):
    with open(path, "rb") as file, zipfile.ZipFile(file):
        pass  # np.load takes other files too, and would then say "pickle"
    with np.load(path, allow_pickle=False) as arrays:
        return [arrays[name] for name in (text, *numbers)]


def _read_safetensors(path, text, numbers):
    with open(path, "rb"):
        pass  # safetensors' own message for a missing file lacks the path
    arrays = safetensors.numpy.load_file(path)
    lines = arrays[text]
    if lines.dtype != np.uint8 or lines.ndim != 1:
        raise ValueError(f"{text} of type {lines.dtype}, expected UTF-8 bytes")
    lines = np.array(lines.tobytes().decode().split("\n"))
    return [lines, *(arrays[name] for name in numbers)]
