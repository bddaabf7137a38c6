"""Embedding files come back bit for bit; cosines agree with the definition."""

import math
import os
import tracemalloc

import numpy as np
import pytest

from speechbrain_ext.scoring.embeddings import (
    cosine_scores,
    load_embeddings,
    save_embeddings,
)
from speechbrain_ext.utils.errors import InputError

FORMATS = ["npz", "safetensors"]
ONES = np.ones((2, 3), dtype=np.float32)


@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip(tmp_path, suffix):
    random = np.random.default_rng(0)
    ids = ["id1/ä/00001", "id10/é-ß/2", "語", "x"]
    vectors = random.standard_normal((4, 7)).astype(np.float32)
    path = tmp_path / "new" / f"file.{suffix}"
    save_embeddings(path, ids, vectors)
    again = load_embeddings(path)
    assert again.ids.tolist() == ids
    assert again.vectors.dtype == np.float32
    assert np.array_equal(again.vectors, vectors)
    assert os.listdir(path.parent) == [path.name]


def _with(row, value):
    vectors = ONES.astype(np.float64)
    vectors[row, 1] = value
    return vectors


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a"], ONES, r"\[1\] IDs and vectors of shape \[2, 3\]"),
        (["a", "b"], ONES[:, None], r"shape \[2, 1, 3\], expected \[U\] and \[U, E\]"),
        (["a", "b"], ONES[:, :0], r"shape \[2, 0\]"),
        ([], ONES[:0], "no embeddings"),
        (["a", "a"], ONES, "ID 'a' in rows 0 and 1, expected each once"),
        (["a", ""], ONES, r"ID '' \(row 1\)"),
        (["a", "b c"], ONES, r"ID 'b c' \(row 1\), expected no white space"),
        (["a", "b\n"], ONES, "expected no white space"),
        ([1, 2], ONES, "type int64"),
        (["a", "b"], ONES.astype(int), "vectors of type int64"),
        (["a", "b"], _with(1, math.nan), r"embedding of 'b' \(row 1\)"),
        (["a", "b"], _with(0, math.inf), r"embedding of 'a' \(row 0\)"),
        (["a", "b"], _with(1, 1e300), "expected finite float32"),
    ],
)
def test_refused_before_anything_is_written(tmp_path, suffix, ids, vectors, message):
    path = tmp_path / f"file.{suffix}"
    with pytest.raises(InputError, match=message) as error:
        save_embeddings(path, ids, vectors)
    assert str(error.value).startswith(str(path))
    assert os.listdir(tmp_path) == []


def test_cosine_by_hand():
    # Angles of 0°, 90°, 180° and 45°, lengths that must not matter.
    vectors = np.array([[3, 0], [0, 5], [-0.1, 0], [1e15, 1e15]], dtype=np.float32)
    scores = cosine_scores(vectors, [0, 0, 0, 0], [0, 1, 2, 3])
    # a unit vector's values and a sum of two products: 3 roundings of 6e-8 each
    assert scores == pytest.approx([1, 0, -1, math.sqrt(0.5)], abs=5e-7)
    assert scores.dtype == np.float32
    assert cosine_scores(vectors, np.array([], int), np.array([], int)).shape == (0,)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_cosine_against_definition(dtype):
    random = np.random.default_rng(1)
    vectors = (random.standard_normal((50, 33)) * 7).astype(dtype)
    enrol, test = random.integers(0, 50, 500), random.integers(0, 50, 500)
    a, b = vectors[enrol].astype(np.float64), vectors[test].astype(np.float64)
    expected = [x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b)]
    scores = cosine_scores(vectors, enrol, test)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert np.abs(scores).max() <= 1


@pytest.mark.parametrize("block", [1, 7, 499, 500, 501])
def test_blocks_change_nothing(block):
    random = np.random.default_rng(2)
    vectors = random.standard_normal((40, 16)).astype(np.float32)
    enrol, test = random.integers(0, 40, (2, 500))
    whole = cosine_scores(vectors, enrol, test)
    parts = cosine_scores(vectors, enrol, test, block=block)
    # 16 products of size 1/16 or so, summed in float32 in an order that depends on T
    np.testing.assert_allclose(parts, whole, rtol=0, atol=4 * np.finfo(np.float32).eps)


def test_two_matrices():
    """Rows of either side count in their own matrix, and errors name the side."""
    enrol, test = ONES * [[1], [0]], np.eye(3, dtype=np.float32) - 1
    scores = cosine_scores(enrol, [0, 0], [0, 2], test_vectors=test)
    assert scores == pytest.approx([-2 / math.sqrt(6)] * 2)
    with pytest.raises(InputError, match="enrolment embedding in row 1 has norm 0"):
        cosine_scores(enrol, [1], [2], test_vectors=test)
    with pytest.raises(InputError, match="enrolment row 2 in trial 1"):
        cosine_scores(enrol, [2], [2], test_vectors=test)
    with pytest.raises(InputError, match="test row 3 in trial 1, expected 0 to 2"):
        cosine_scores(enrol, [0], [3], test_vectors=test)
    with pytest.raises(InputError, match="of 3 values and test embeddings of 2"):
        cosine_scores(enrol, [0], [0], test_vectors=test[:, :2])


def test_golden_cosine(shared):
    with np.load(shared / "golden" / "scoring" / "scores.npz") as golden:
        scores = cosine_scores(golden["emb"], golden["enrol"], golden["test"])
        assert scores == pytest.approx(golden["raw"], abs=1e-6)


@pytest.mark.parametrize(
    ("vectors", "enrol", "test", "message"),
    [
        (np.ones(3), [0], [0], r"shape \[3\], expected floats \[U, E\]"),
        (np.ones((2, 2), int), [0], [0], "type int64"),
        (ONES, [0, 1], [0], r"rows of shape \[2\] and test rows of shape \[1\]"),
        (ONES, [[0]], [[1]], r"shape \[1, 1\]"),
        (ONES, [0, 0], [1, 2], "row 2 in trial 2, expected 0 to 1"),
        (ONES, [0, -1], [1, 1], "row -1 in trial 2"),  # never the last row
        (ONES, [0.0], [1.0], "expected integers"),
        (ONES * [[1], [0]], [0, 0], [0, 1], "embedding in row 1 has norm 0"),
        (_with(1, math.nan), [0, 1], [0, 0], "embedding in row 1 has norm nan"),
        (_with(0, math.inf), [0], [1], "embedding in row 0 has norm inf"),
    ],
)
def test_cosine_refused(vectors, enrol, test, message):
    with pytest.raises(InputError, match=message):
        cosine_scores(vectors, enrol, test)


def test_unused_rows_may_be_silent():
    """A recording that no trial names does not stop the others."""
    vectors = np.array([[1, 0], [0, 0], [0, 2]], dtype=np.float32)
    assert cosine_scores(vectors, [0, 0], [2, 0]).tolist() == [0, 1]


def test_memory_is_bounded():
    """580,000 trials of 64 values are 297 MB at once; blocks stay far below."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal((5_000, 64)).astype(np.float32)
    enrol, test = random.integers(0, 5_000, (2, 580_000))
    tracemalloc.start()
    scores = cosine_scores(vectors, enrol, test, block=8192)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.shape == (580_000,)
    assert peak < 40e6, f"{peak / 1e6:.0f} MB"
