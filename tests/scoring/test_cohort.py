"""Speaker means against a plain loop; cohort files come back bit for bit."""

import math
import os
import tracemalloc

import numpy as np
import pytest

from speechbrain_ext.scoring import cohort as module
from speechbrain_ext.scoring.cohort import (
    Cohort,
    load_cohort,
    save_cohort,
    speaker_means,
)
from speechbrain_ext.utils.errors import InputError

FORMATS = ["npz", "safetensors"]
ONES = np.ones((2, 3), dtype=np.float32)
COHORT = Cohort(np.array(["id2", "ä/1"]), ONES * [[1], [-2]], ONES[0] / 2)


def test_means_by_hand():
    # Speaker b has three recordings, a one: the mean over speakers weighs them alike,
    # (1 + 4) / 2, where the mean over recordings would be 13 / 4.
    cohort = speaker_means([[3.0, 0], [1, 8], [4, 0], [5, 3]], ["b", "a", "b", "b"])
    assert cohort.speakers.tolist() == ["a", "b"]
    assert cohort.vectors.tolist() == [[1, 8], [4, 1]]
    assert cohort.mean.tolist() == [2.5, 4.5]
    assert cohort.vectors.dtype == cohort.mean.dtype == np.float32


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_means_against_plain_loop(monkeypatch, block):
    """Speakers cross the borders of blocks, whatever the order of the recordings."""
    monkeypatch.setattr(module, "BLOCK", block)
    random = np.random.default_rng(0)
    vectors = (random.standard_normal((500, 5)) + 3).astype(np.float32)
    speakers = [f"s{number}" for number in random.integers(0, 40, 500)]
    cohort = speaker_means(vectors, np.array(speakers, dtype=np.dtypes.StringDType()))
    assert cohort.speakers.tolist() == sorted(set(speakers))
    for name, vector in zip(cohort.speakers, cohort.vectors):
        own = [
            v for v, speaker in zip(vectors.astype(float), speakers) if speaker == name
        ]
        assert vector == pytest.approx(sum(own) / len(own), abs=1e-6)
    # a mean of 40 float32 values of about 3, summed in float32: some eps of the sum
    assert cohort.mean == pytest.approx(cohort.vectors.mean(axis=0), abs=5e-6)


@pytest.mark.parametrize("block", [1, 4096])
def test_sums_are_float64(monkeypatch, block):
    """In float32 the many small recordings after one large one would be lost."""
    monkeypatch.setattr(module, "BLOCK", block)
    vectors = np.full((3001, 1), 1, dtype=np.float32)
    vectors[0] = 2**25
    means = speaker_means(vectors, ["a"] * 3001).vectors
    assert means[0, 0] == np.float32((2**25 + 3000) / 3001)


def test_memory_is_bounded():
    """60,000 × 128 values are 61 MB in float64: held in blocks only."""
    vectors = np.ones((60_000, 128), dtype=np.float32)
    speakers = np.repeat([f"s{number:03d}" for number in range(600)], 100)
    tracemalloc.start()
    cohort = speaker_means(vectors, speakers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(cohort.vectors, np.ones((600, 128)))
    assert peak < 45e6, f"{peak / 1e6:.0f} MB"


@pytest.mark.parametrize(
    ("vectors", "speakers", "message"),
    [
        (ONES, ["a"], r"speakers of shape \[1\] and embeddings of shape \[2, 3\]"),
        (ONES[0], ["a"] * 3, r"shape \[3\], expected floats \[U, E\]"),
        (ONES[:0], [], "not empty"),
        (ONES[:, :0], ["a", "b"], "not empty"),
        (ONES.astype(int), ["a", "b"], "embeddings of type int64"),
        (ONES, [1, 2], "speakers of type int64, expected text"),
        (ONES, ["a", ""], r"cohort: ID '' \(row 0\)"),
        (ONES, ["a", "b c"], "ID 'b c'.*expected no white space"),
        (ONES * [[1], [math.nan]], ["b", "a"], r"of speaker 'a' \(row 1\)"),
        (ONES * [[math.inf], [1]], ["b", "a"], r"of speaker 'b' \(row 0\)"),
    ],
)
def test_means_refused(vectors, speakers, message):
    with pytest.raises(InputError, match=message):
        speaker_means(vectors, speakers)


def test_rows_of_speakers():
    rows = COHORT.rows_of_speakers(["ä/1", "nobody", "id2", "ä/1"])
    assert rows.tolist() == [1, -1, 0, 1]
    assert rows.dtype.kind == "i"
    assert COHORT.rows_of_speakers([]).shape == (0,)


@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip(tmp_path, suffix):
    path = tmp_path / "new" / f"file.{suffix}"
    save_cohort(path, COHORT)
    again = load_cohort(path)
    assert isinstance(again, Cohort)
    for mine, theirs in zip(again, COHORT):
        assert np.array_equal(mine, theirs)
    assert again.vectors.dtype == again.mean.dtype == np.float32
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speakers": np.array(["a"])}, r"\[1\] IDs and vectors of shape \[2, 3\]"),
        ({"speakers": np.array(["a", "a"])}, "ID 'a' in rows 0 and 1"),
        ({"speakers": np.array(["a", " b"])}, "expected no white space"),
        ({"vectors": ONES * math.nan}, "NaN or infinite embedding of 'id2'"),
        ({"mean": ONES[0, :2]}, r"mean of .*shape \[2\], expected floats \[3\]"),
        ({"mean": ONES[0].astype(int)}, "mean of type int64"),
        ({"mean": ONES[0] * math.inf}, "NaN or infinite mean"),
        ({"mean": ONES[0].astype(float) * 1e300}, "NaN or infinite mean"),
    ],
)
def test_refused_before_anything_is_written(tmp_path, suffix, changes, message):
    path = tmp_path / f"file.{suffix}"
    with pytest.raises(InputError, match=message) as error:
        save_cohort(path, COHORT._replace(**changes))
    assert str(error.value).startswith(str(path))
    assert os.listdir(tmp_path) == []
