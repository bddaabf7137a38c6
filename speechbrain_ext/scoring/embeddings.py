"""Embeddings: their files, and cosine scores between their rows.

A file holds ``ids``, U utterance IDs, and ``vectors``, float32 [U, E]; of speech alone
also ``seconds``, float64 [U], how long that is. It is one of
named arrays, npz (numpy) or safetensors by its suffix, as files of cohorts and scores
are. safetensors stores numbers only, so a text array becomes the UTF-8 bytes of one
value per line. Neither format can carry code: pickled arrays are refused.

The score of a trial is the cosine of its two embeddings, a·b / (|a| |b|).
"""

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from speechbrain_ext.scoring.trials import rows_among
from speechbrain_ext.utils.errors import InputError, describe_os_error
from speechbrain_ext.utils.files import write_atomically

SUFFIXES = (".npz", ".safetensors")
# What the readers raise for a file that is truncated, foreign or wrong in any byte
# (RuntimeError: zip's flags would have it encrypted, or compressed in an unknown way;
# MemoryError: a header that claims petabytes; TokenError: one that is no Python).
DAMAGE = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
DAMAGE += (MemoryError, tokenize.TokenError)
DAMAGE += (safetensors.SafetensorError,)
BLOCK = 4096  # rows or trials per step: 4 MiB of float32 at E = 256, in the cache
NORM_BLOCK = 512  # in float64, beside such a block
SMALLEST_NORM, LARGEST_NORM = 1e-30, 1e30  # a float32 cosine is sound between


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

    InputError for a missing, damaged or foreign file and for pickled content; ``what``
    says what was expected. The content of the arrays is the caller's to check.
    """
    path = Path(path)
    is_npz = not path.exists() or check_suffix(path) == ".npz"
    read = _read_npz if is_npz else _read_safetensors
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


class Embeddings(NamedTuple):
    """``ids`` str [U] and ``vectors`` float32 [U, E], row by row."""

    ids: np.ndarray
    vectors: np.ndarray


def save_embeddings(path, ids, vectors):
    """Write embeddings, atomically; the suffix chooses the format.

    Arguments
    ---------
    path : str or Path
        ``.npz`` or ``.safetensors``.
    ids : sequence of str
        Utterance IDs [U], each once.
    vectors : array_like
        float [U, E], stored as float32.

    Raises
    ------
    InputError
        Unknown suffix, another shape, an ID twice, empty or with white space, a value
        that is not finite.
    """
    ids, vectors = check_embeddings(path, ids, vectors)
    write_arrays(path, ids=ids, vectors=vectors)


def load_embeddings(path):
    """Read embeddings written by :func:`save_embeddings`, checked in full.

    Arguments
    ---------
    path : str or Path
        ``.npz`` or ``.safetensors``.

    Returns
    -------
    Embeddings

    Raises
    ------
    InputError
        Missing, damaged or foreign file, pickled content, or content that
        :func:`save_embeddings` would refuse.
    """
    arrays = read_arrays(path, "embeddings", "ids", "vectors")
    return Embeddings(*check_embeddings(path, *arrays))


def load_speech_seconds(path):
    """Seconds of speech [U] float64 behind each embedding of a file, or None.

    None: of a file whose recordings were embedded as they are. InputError as
    :func:`load_embeddings`; another number of them than of IDs, a value that is no
    positive number.
    """
    if "seconds" not in _names_in(path):
        return None
    ids, seconds = read_arrays(path, "embeddings", "ids", "seconds")
    number = seconds.dtype.kind == "f" and seconds.shape == ids.shape
    if not number or not (np.isfinite(seconds) & (seconds > 0)).all():
        raise InputError(
            f"{path}: seconds of type {seconds.dtype} and shape {list(seconds.shape)}, "
            f"expected {len(ids)} positive numbers, the speech behind each embedding"
        )
    return seconds.astype(np.float64)


def _names_in(path):
    """Of the arrays of a file; none in one that :func:`read_arrays` refuses."""
    try:
        if check_suffix(Path(path)) == ".npz":
            with zipfile.ZipFile(path) as file:
                return [name.removesuffix(".npy") for name in file.namelist()]
        with safetensors.safe_open(path, "numpy") as file:
            return list(file.keys())
    except (OSError, *DAMAGE):
        return []


def select_vectors(embeddings, ids, source):
    """Vectors of some recordings, float32 [N, E], in the order of their ``ids`` [N].

    ``source`` says where the embeddings are from; InputError names the first recording
    that has none.
    """
    rows = rows_among(embeddings.ids, ids)
    if (rows < 0).any():
        raise InputError(
            f"{source}: no embedding of '{ids[int(np.argmin(rows))]}', expected "
            f"those of all {len(rows)} recordings ({int((rows < 0).sum())} absent)"
        )
    return embeddings.vectors[rows]


def cosine_scores(vectors, enrol_rows, test_rows, block=BLOCK, test_vectors=None):
    """Cosine of each trial's two embeddings, in bounded memory.

    Beside its input and output it holds two blocks of ``block`` × E floats, whatever
    the number of trials. Norms are accumulated in float64, products in float32.

    Arguments
    ---------
    vectors : array_like
        float [U, E].
    enrol_rows, test_rows : array_like
        int [T], rows of ``vectors``.
    block : int
        Trials per step.
    test_vectors : array_like
        float [M, E], where ``test_rows`` has a matrix of its own; None takes
        ``vectors``.

    Returns
    -------
    np.ndarray
        float32 [T], in [-1, 1].

    Raises
    ------
    InputError
        Another shape, a row that does not exist, or a trial's embedding that has no
        direction (norm zero or not finite), by its row.
    """
    vectors = check_matrix(vectors)
    others = vectors if test_vectors is None else check_matrix(test_vectors)
    if others.shape[1] != vectors.shape[1]:
        raise InputError(
            f"enrolment embeddings of {vectors.shape[1]} values and test embeddings "
            f"of {others.shape[1]}, expected as many"
        )
    if block < 1:
        raise InputError(f"block is {block}, expected at least 1")
    enrol_rows, test_rows = np.asarray(enrol_rows), np.asarray(test_rows)
    if enrol_rows.ndim != 1 or enrol_rows.shape != test_rows.shape:
        raise InputError(
            f"enrolment rows of shape {list(enrol_rows.shape)} and test rows of shape "
            f"{list(test_rows.shape)}, expected one of each per trial: [T]"
        )
    check_rows("enrolment", enrol_rows, len(vectors))
    check_rows("test", test_rows, len(others))
    norms = euclidean_norms(vectors)
    other_norms = norms if others is vectors else euclidean_norms(others)
    scores = np.empty(len(enrol_rows), dtype=np.float32)
    for start in range(0, len(scores), block):
        part = slice(start, start + block)
        enrol = unit_vectors("enrolment embedding", vectors, norms, enrol_rows[part])
        test = unit_vectors("test embedding", others, other_norms, test_rows[part])
        scores[part] = np.einsum("te,te->t", enrol, test)
    return np.clip(scores, -1, 1, out=scores)  # rounding alone passes 1


def check_embeddings(path, ids, vectors):
    """IDs as text [U] and vectors as finite float32 [U, E], or InputError."""
    ids, vectors = as_text(ids), np.asarray(vectors)
    if vectors.ndim != 2 or ids.shape != vectors.shape[:1] or vectors.shape[1] == 0:
        raise InputError(
            f"{path}: {list(ids.shape)} IDs and vectors of shape "
            f"{list(vectors.shape)}, expected [U] and [U, E]"
        )
    if len(ids) == 0:
        raise InputError(f"{path}: no embeddings, expected at least one")
    if ids.dtype.kind != "U" or vectors.dtype.kind != "f":
        raise InputError(
            f"{path}: IDs of type {ids.dtype} and vectors of type {vectors.dtype}, "
            "expected text and floats"
        )
    check_ids(path, ids.tolist())
    with np.errstate(over="ignore"):  # float64 beyond float32 is found just below
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        finite = np.isfinite(vectors[start : start + BLOCK]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise InputError(
                f"{path}: NaN or infinite embedding of '{ids[row]}' (row {row}), "
                "expected finite float32 values"
            )
    return ids, vectors


def as_text(ids):
    """IDs as an array; a manifest's column (variable width) as fixed width, for npz."""
    ids = np.asarray(ids)
    return np.array(ids.tolist()) if ids.dtype.kind == "T" else ids


def check_ids(path, ids):
    """InputError for an ID that is empty, has white space or comes twice."""
    seen = {}
    for row, name in enumerate(ids):
        # Trial lists separate names by white space: such an ID could never be scored.
        if len(name.split()) != 1 or name != name.strip():
            raise InputError(
                f"{path}: ID '{name}' (row {row}), expected no white space, not empty"
            )
        first = seen.setdefault(name, row)
        if first != row:
            raise InputError(
                f"{path}: ID '{name}' in rows {first} and {row}, expected each once"
            )


def check_matrix(vectors, what="embeddings"):
    """An array of floats [U, E], or InputError."""
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise InputError(
            f"{what} of type {vectors.dtype} and shape {list(vectors.shape)}, "
            "expected floats [U, E]"
        )
    return vectors


def check_rows(side, rows, size):
    """InputError for a row, one per trial, that does not exist."""
    if rows.dtype.kind not in "iu":
        raise InputError(f"{side} rows of type {rows.dtype}, expected integers")
    outside = np.flatnonzero((rows < 0) | (rows >= size))
    if len(outside):
        raise InputError(
            f"{side} row {rows[outside[0]]} in trial {outside[0] + 1}, expected 0 to "
            f"{size - 1}: there are {size} embeddings"
        )


def euclidean_norms(vectors):
    """Norms, float64 [U]: the square of a large float32 would overflow."""
    norms = np.empty(len(vectors))
    for start in range(0, len(vectors), NORM_BLOCK):
        part = vectors[start : start + NORM_BLOCK].astype(np.float64)
        norms[start : start + NORM_BLOCK] = np.sqrt(np.einsum("ue,ue->u", part, part))
    return norms


def unit_vectors(what, vectors, norms, rows):
    """``vectors[rows]`` scaled to length 1, float32 [N, E]; ``what`` names them."""
    used = norms[rows]
    bad = np.flatnonzero(~((used > SMALLEST_NORM) & (used < LARGEST_NORM)))
    if len(bad):
        raise InputError(
            f"{what} in row {rows[bad[0]]} has norm {used[bad[0]]:g}, expected one "
            f"between {SMALLEST_NORM:g} and {LARGEST_NORM:g}: it has no cosine"
        )
    scale = (1 / used).astype(np.float32)
    return vectors[rows].astype(np.float32, copy=False) * scale[:, None]
