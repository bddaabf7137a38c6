"""The table of steps: written as it goes, cut back to where a run goes on."""

import pytest

from speechbrain_ext.training.brain import StepLog, read_steps
from speechbrain_ext.utils.errors import InputError


@pytest.fixture
def log(tmp_path):
    """A table of three steps."""
    log = StepLog(tmp_path / "steps.csv")
    log.drop_after(0)
    for step in (1, 2, 3):
        log.add(step, {"loss": -step / 3, "rate": 0.1 * step})
    return log


def test_rows_have_nine_digits_in_the_order_of_the_columns(log):
    assert log.path.read_text() == (
        "step,loss,rate\n1,-0.333333333,0.1\n2,-0.666666667,0.2\n3,-1,0.3\n"
    )
    assert read_steps(log.path) == {
        "step": [1.0, 2.0, 3.0],
        "loss": [-0.333333333, -0.666666667, -1.0],
        "rate": [0.1, 0.2, 0.3],
    }


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7])
def test_rows_after_the_step_are_dropped(log, step):
    again = StepLog(log.path)
    again.drop_after(step)
    again.add(step + 1, {"loss": 0.0, "rate": 0.0})
    kept = [n for n in (1.0, 2.0, 3.0) if n <= step]
    assert read_steps(log.path)["step"] == [*kept, step + 1]


@pytest.mark.parametrize("torn", ["4", "4,-1.3", "4,-1.3333333,0.4"])
def test_part_of_a_line_is_dropped(log, torn):
    before = log.path.read_text()
    with open(log.path, "a") as file:
        file.write(torn)
    StepLog(log.path).drop_after(9)
    assert log.path.read_text() == before


def test_a_file_that_is_gone_begins_anew(log):
    log.path.unlink()
    again = StepLog(log.path)
    again.drop_after(2)
    again.add(3, {"loss": 0.5})
    assert read_steps(log.path) == {"step": [3.0], "loss": [0.5]}


@pytest.mark.parametrize("text", ["step,loss\n1,2\n", "", "\n"])
def test_other_columns_are_refused(log, text):
    log.path.write_text(text)
    again = StepLog(log.path)
    again.drop_after(2)
    with pytest.raises(InputError, match=r"steps.csv: columns '.*', expected 'step,lo"):
        again.add(3, {"loss": 0.0, "rate": 0.0})
