"""Scores of several systems meet trial by trial, in any order, or not at all."""

from pathlib import Path

import numpy as np
import pytest

from speechbrain_ext.scoring.calibration.fusion import stack_scores
from speechbrain_ext.scoring.trials import Trials
from speechbrain_ext.utils.errors import InputError


def system(path, *lines):
    """Trials and scores from (enrol, test, score)."""
    names = sorted({name for a, b, _ in lines for name in (a, b)})
    enrol, test = ([names.index(line[side]) for line in lines] for side in (0, 1))
    rows = [np.array(side, dtype=np.int32) for side in (enrol, test)]
    trials = Trials(Path(path), np.array(names), *rows)
    return trials, np.array([score for _, _, score in lines])


FIRST = system("a.txt", ("x", "y", 0.1), ("y", "x", 0.2), ("x", "z", 0.3))


def test_any_order():
    other = system("b.txt", ("x", "z", 3.0), ("x", "y", 1.0), ("y", "x", 2.0))
    names, values = stack_scores({"a": FIRST, "b": other, "again": FIRST})
    assert names == ["a", "b", "again"]
    assert values.dtype == np.float64
    assert values.tolist() == [[0.1, 1.0, 0.1], [0.2, 2.0, 0.2], [0.3, 3.0, 0.3]]
    names, values = stack_scores({"b": other})
    assert values.tolist() == [[3.0], [1.0], [2.0]]


def test_many_trials_against_a_dictionary():
    random = np.random.default_rng(0)
    pairs = [(f"u{i}", f"u{j}") for i in range(40) for j in range(40)]
    lines = [(*pair, float(random.random())) for pair in pairs]
    shuffled = [lines[row] for row in random.permutation(len(lines))]
    _, values = stack_scores({"a": system("a", *lines), "b": system("b", *shuffled)})
    assert np.array_equal(values[:, 0], values[:, 1])
    assert values[:, 0].tolist() == [score for *_, score in lines]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            [("x", "y", 1), ("y", "x", 2)],
            "'b' lacks 1 trials of system 'a', first 'x z' of a.txt",
        ),
        (
            [("x", "y", 1), ("y", "x", 2), ("x", "z", 3), ("z", "z", 4)],
            "'a' lacks 1 trials of system 'b', first 'z z' of b.txt",
        ),
        # The other side round is another trial.
        (
            [("x", "y", 1), ("y", "x", 2), ("z", "x", 3)],
            "'b' lacks 1 trials of system 'a', first 'x z'",
        ),
        ([("q", "r", 1)], "'b' lacks 3 trials of system 'a', first 'x y'"),
        (
            [("x", "y", 1), ("y", "x", 2), ("x", "z", 3), ("y", "x", 2)],
            "'b': trial 'y x' comes twice in b.txt",
        ),
    ],
)
def test_other_trials_refused(other, message):
    with pytest.raises(InputError, match=message):
        stack_scores({"a": FIRST, "b": system("b.txt", *other)})


def test_refused():
    with pytest.raises(InputError, match="no systems"):
        stack_scores({})
    with pytest.raises(InputError, match=r"'a': scores of shape \[2\], expected \[3\]"):
        stack_scores({"a": (FIRST[0], FIRST[1][:2])})
