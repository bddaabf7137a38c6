"""What no manifest may hold: checks on the columns of an Arrow table, numbers first.

A text that is empty, or an ID that comes twice, is found among the numbers that stand
for texts: ten million IDs are compared without one of them being made.
"""

import numpy as np
import pyarrow.compute as pc

from speechbrain_ext.errors import InputError


def piece(table, name):
    """A column of a table in one piece, as an array."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else column.combine_chunks()


def check_rows(path, table):
    """Refuse empty texts and durations that are none; names the first row."""
    durations = piece(table, "duration").to_numpy(zero_copy_only=False)
    bad = ~((durations > 0) & (durations < np.inf))
    _refuse(path, bad, lambda row: f"duration {durations[row]}, expected seconds > 0")
    for name, parts in (
        ("ID", ("ID_head", "ID_tail")),
        ("wav", ("wav_head", "wav_tail")),
        ("spk_id", ("spk_id",)),
    ):
        if any(table.column(part).null_count for part in parts):
            raise InputError(f"{path}: rows without {name}, expected text in each")
        columns = [piece(table, part) for part in parts]
        empty = [pc.index(column.dictionary, "").as_py() for column in columns]
        if -1 not in empty:
            bad = [column.indices.to_numpy() == e for column, e in zip(columns, empty)]
            message = f"empty {name}, expected text"
            _refuse(path, np.logical_and.reduce(bad), lambda _, text=message: text)


def check_unique(path, table):
    """Refuse an ID that comes twice; names the second row."""
    heads, tails = piece(table, "ID_head"), piece(table, "ID_tail")
    keys = heads.indices.to_numpy() * np.int64(len(tails.dictionary))
    keys += tails.indices.to_numpy()
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        again = np.flatnonzero(np.isin(keys, twice))
        row = min(rows[1] for key in twice if len(rows := again[keys[again] == key]))
        name = heads[row].as_py() + tails[row].as_py()
        raise InputError(
            f"{path}, row {row + 1}: ID {name!r} seen before, expected each ID once"
        )


def _refuse(path, bad, message):
    rows = np.flatnonzero(bad)
    if len(rows):
        raise InputError(f"{path}, row {rows[0] + 1}: {message(rows[0])}")
