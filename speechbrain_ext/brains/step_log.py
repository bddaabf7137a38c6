"""A table of one row per optimiser step, which a resumed run continues exactly.

Rows are written as training goes, checkpoints less often. A run that goes on from a
checkpoint first drops the rows of the steps that it will take again, so that the table
is the unbroken run's.
"""

from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_atomically


class StepLog:
    """A CSV file whose first column is ``step``.

    Arguments
    ---------
    path : str or Path
    columns : sequence of str
        The other columns.
    """

    def __init__(self, path, columns):
        self.path = path
        self.columns = list(columns)

    def go_on_from(self, step):
        """Keep the rows of the first ``step`` steps; begin the file where it is not.

        Raises
        ------
        InputError
            Where the file has other columns.
        """
        header = ",".join(["step", *self.columns]) + "\n"
        rows = []
        if step and self.path.is_file():
            found, *lines = self.path.read_text().splitlines(keepends=True) or [""]
            if found != header:
                raise InputError(
                    f"{self.path}: columns {found.strip()!r}, expected "
                    f"{header.strip()!r}; the file is of another run"
                )
            # a killed process may leave part of a line at the end
            whole = [line for line in lines if line.endswith("\n")]
            rows = [line for line in whole if int(line.split(",")[0]) <= step]
        with write_atomically(self.path) as file:
            file.writelines([header, *rows])

    def add(self, step, values):
        """Append one row; ``values`` has a number for every column."""
        numbers = [f"{values[name]:.9g}" for name in self.columns]
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(",".join([str(step), *numbers]) + "\n")


def read_steps(path):
    """A table of :class:`StepLog` → {column: list of float}, ``step`` included."""
    header, *lines = path.read_text().splitlines()
    columns = zip(*(map(float, line.split(",")) for line in lines))
    names = header.split(",")
    return dict(zip(names, map(list, columns))) if lines else {n: [] for n in names}
