"""What the benchmarks of training steps leave out, and what they refuse."""

from argparse import Namespace

import accumulation
import pytest
import training_step
from harness import LeftOut, Row

pytestmark = pytest.mark.slow


def test_without_a_compiler_a_line_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "absent")
    (*rows, compiled), notes = training_step.steps(training_step.TOY, toy=True)
    assert all(isinstance(row, Row) for row in rows)
    assert isinstance(compiled, LeftOut)
    assert compiled.name.endswith("torch.compile")
    assert compiled.reason == "no C++ compiler (absent not found)"
    assert notes == []


def test_ways_that_take_other_steps_are_refused():
    with accumulation.Pair(Namespace(toy=True, threads=1)) as pair:
        accumulation.check_equal(pair)
        step = pair.step

        def other(each_time, anew=False):
            # every other sample 1 % louder in the peer's, on this process alone
            pair.worker.wavs[..., ::2] *= 1.01 if each_time and anew else 1
            return step(each_time, anew)

        pair.step = other
        with pytest.raises(SystemExit, match=r"steps differ by .*, expected 1e-05"):
            accumulation.check_equal(pair)
