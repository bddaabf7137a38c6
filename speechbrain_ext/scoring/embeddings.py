"""Files of embeddings, and cosine scores between their rows.

A file holds ``ids`` (U utterance IDs) and ``vectors`` (float32 [U, E]), as npz (numpy)
or safetensors. The latter stores numbers only, so its IDs are the UTF-8 bytes of one
ID per line. Neither format can carry code: pickled arrays are refused.

The score of a trial is the cosine of its two embeddings, a·b / (|a| |b|).
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from speechbrain_ext.errors import InputError, describe_os_error
from speechbrain_ext.files import write_atomically

SUFFIXES = (".npz", ".safetensors")
BLOCK = 65536  # rows or trials per step: 64 MiB of float32 at E = 256
SMALLEST_NORM, LARGEST_NORM = 1e-30, 1e30  # a float32 cosine is sound between


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
    path = Path(path)
    suffix = _suffix(path)
    ids, vectors = _checked(path, ids, vectors)
    with write_atomically(path, "wb") as file:
        if suffix == ".npz":
            np.savez(file, ids=ids, vectors=vectors)
        else:
            text = "\n".join(ids.tolist()).encode()
            arrays = {"ids": np.frombuffer(text, np.uint8), "vectors": vectors}
            file.write(safetensors.numpy.save(arrays))


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
    path = Path(path)
    read = _read_npz if _suffix(path) == ".npz" else _read_safetensors
    try:
        ids, vectors = read(path)
    except KeyError as error:
        raise InputError(
            f"{path}: {error.args[0]}, expected arrays 'ids' and 'vectors'"
        ) from error
    except OSError as error:
        raise InputError(f"{describe_os_error(error)}, expected embeddings") from error
    except (ValueError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as e:
        raise InputError(f"{path}: cannot be read as embeddings ({e})") from e
    return Embeddings(*_checked(path, ids, vectors))


def cosine_scores(vectors, enrol_rows, test_rows, block=BLOCK):
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
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise InputError(
            f"embeddings of type {vectors.dtype} and shape {list(vectors.shape)}, "
            "expected floats [U, E]"
        )
    if block < 1:
        raise InputError(f"block is {block}, expected at least 1")
    enrol_rows, test_rows = np.asarray(enrol_rows), np.asarray(test_rows)
    if enrol_rows.ndim != 1 or enrol_rows.shape != test_rows.shape:
        raise InputError(
            f"enrolment rows of shape {list(enrol_rows.shape)} and test rows of shape "
            f"{list(test_rows.shape)}, expected one of each per trial: [T]"
        )
    for rows in (enrol_rows, test_rows):
        _check_rows(rows, len(vectors))
    norms = _norms(vectors, block)
    scores = np.empty(len(enrol_rows), dtype=np.float32)
    for start in range(0, len(scores), block):
        part = slice(start, start + block)
        enrol = _unit_vectors(vectors, norms, enrol_rows[part])  # [block, E]
        test = _unit_vectors(vectors, norms, test_rows[part])
        scores[part] = np.einsum("te,te->t", enrol, test)
    return np.clip(scores, -1, 1, out=scores)  # rounding alone passes 1


def _suffix(path):
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path}: suffix '{path.suffix}', expected one of {', '.join(SUFFIXES)}"
        )
    return path.suffix.lower()


def _read_npz(path):
    with open(path, "rb") as file, zipfile.ZipFile(file):
        pass  # np.load takes other files too, and would then say "pickle"
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["ids"], arrays["vectors"]


def _read_safetensors(path):
    with open(path, "rb"):
        pass  # safetensors' own message for a missing file lacks the path
    arrays = safetensors.numpy.load_file(path)
    ids, vectors = arrays["ids"], arrays["vectors"]
    if ids.dtype != np.uint8 or ids.ndim != 1:
        raise ValueError(f"ids of type {ids.dtype}, expected UTF-8 bytes")
    return np.array(ids.tobytes().decode().split("\n")), vectors


def _checked(path, ids, vectors):
    ids, vectors = np.asarray(ids), np.asarray(vectors)
    if ids.dtype.kind == "T":  # a manifest's column; npz has no variable-width text
        ids = np.array(ids.tolist())
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
    _check_ids(path, ids.tolist())
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


def _check_ids(path, ids):
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


def _check_rows(rows, size):
    if rows.dtype.kind not in "iu":
        raise InputError(f"rows of type {rows.dtype}, expected integers")
    outside = np.flatnonzero((rows < 0) | (rows >= size))
    if len(outside):
        raise InputError(
            f"row {rows[outside[0]]} in trial {outside[0] + 1}, expected 0 to "
            f"{size - 1}: there are {size} embeddings"
        )


def _norms(vectors, block):
    """Euclidean norms, float64 [U]: the square of a large float32 would overflow."""
    norms = np.empty(len(vectors))
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block].astype(np.float64)
        norms[start : start + block] = np.sqrt(np.einsum("ue,ue->u", part, part))
    return norms


def _unit_vectors(vectors, norms, rows):
    used = norms[rows]
    bad = np.flatnonzero(~((used > SMALLEST_NORM) & (used < LARGEST_NORM)))
    if len(bad):
        raise InputError(
            f"embedding in row {rows[bad[0]]} has norm {used[bad[0]]:g}, expected one "
            f"between {SMALLEST_NORM:g} and {LARGEST_NORM:g}: it has no cosine"
        )
    scale = (1 / used).astype(np.float32)
    return vectors[rows].astype(np.float32, copy=False) * scale[:, None]
