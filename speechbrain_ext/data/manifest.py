"""Columns of text that take four bytes a row, whatever the length of the text.

    text[i] = names[codes[i]]                     EncodedText
    text[i] = heads[i] + tails[i]                 JoinedText

Ten million paths differ in few ways: two million folders, a few hundred file names.
Kept as two numbers each they take 80 MB where Python's strings take 1 GB. The numbers
and the names may lie in a memory-mapped file: then all processes of a machine read the
same pages, and nothing in them changes when a process looks.

Manifests: which recordings there are, how long they are, who speaks in them.

A manifest is a CSV file with the columns of SpeechBrain's recipes:
``ID,duration,wav,spk_id``. In memory it is four arrays instead of a list of rows:
a million Python rows would be copied into every loader worker, page by page, as
their reference counts change; arrays are shared.

From some million recordings on, a file named ``.arrow`` holds the same, and its columns
stay in the file (:mod:`speechbrain_ext.data.arrow_manifest`).
"""

import csv
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically

TEXT = np.dtypes.StringDType()
_CODES_AT_ONCE = 1_000_000


class TextColumn:
    """What both kinds share: N texts, indexed and sliced as a numpy array is.

    A single row gives a str, anything else a column of the same kind over the same
    names.
    """

    def __array__(self, dtype=None, copy=None):
        return np.array(self.tolist(), dtype=TEXT if dtype is None else dtype)


class EncodedText(TextColumn):
    """Texts by number.

    Arguments
    ---------
    codes : np.ndarray
        [N] int32.
    names : pyarrow.StringArray
        Each text once.
    """

    def __init__(self, codes, names):
        self.codes = codes
        self.names = names

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, rows):
        codes = self.codes[rows]
        if isinstance(codes, np.ndarray):
            return EncodedText(codes, self.names)
        return self.names[int(codes)].as_py()

    def tolist(self):
        """All texts: [N] str."""
        return self.names.take(self.codes).to_pylist()

    def compact(self):
        """The same texts without the names that no row has; names keep their order."""
        used = np.zeros(len(self.names), dtype=bool)
        for start in range(0, len(self), _CODES_AT_ONCE):  # indices become int64
            used[self.codes[start : start + _CODES_AT_ONCE]] = True
        if used.all():
            return self
        numbers = (np.cumsum(used) - 1).astype(np.int32)
        return EncodedText(numbers[self.codes], self.names.filter(used))


class JoinedText(TextColumn):
    """Texts in two parts.

    Arguments
    ---------
    heads, tails : EncodedText
        [N] each. The head of a path ends in its last slash.
    """

    def __init__(self, heads, tails):
        self.heads = heads
        self.tails = tails

    def __len__(self):
        return len(self.heads)

    def __getitem__(self, rows):
        heads, tails = self.heads[rows], self.tails[rows]
        return heads + tails if isinstance(heads, str) else JoinedText(heads, tails)

    def tolist(self):
        """All texts: [N] str."""
        return [a + b for a, b in zip(self.heads.tolist(), self.tails.tolist())]

    def compact(self):
        """The same texts without the names that no row has."""
        return JoinedText(self.heads.compact(), self.tails.compact())


def _text(column):
    is_column = isinstance(column, TextColumn)
    return column if is_column else np.asarray(column, dtype=TEXT)


COLUMNS = ["ID", "duration", "wav", "spk_id"]
ARROW = ".arrow"

# TEXT is variable-width UTF-8. Fixed-width "<U" arrays spend four bytes per character
# of the longest path on every row.
_ROWS_AT_ONCE = 20_000  # larger chunks are slower to read


@dataclass(frozen=True, eq=False)
class Manifest:
    """A list of N recordings, column by column.

    Arguments
    ---------
    ids : np.ndarray
        [N] str, unique.
    paths : np.ndarray
        [N] str, the sound files.
    durations : np.ndarray
        [N] float64, seconds.
    speakers : np.ndarray
        [N] str, speaker names.
    n_perturbed : int, optional
        So many speakers, the first in ``speaker_names``, are also played at other
        speeds; None: all.
    extra : dict of str to sequence, optional
        More columns of text by name, [N] each.

    Any column of text may be a :class:`~speechbrain_ext.data.manifest.TextColumn`,
    which is indexed as an array is.

    Raises
    ------
    InputError
        Where the columns differ in length.
    """

    ids: np.ndarray
    paths: np.ndarray
    durations: np.ndarray
    speakers: np.ndarray
    n_perturbed: int | None = None
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("ids", "paths", "speakers"):
            object.__setattr__(self, name, _text(getattr(self, name)))
        extra = {name: _text(column) for name, column in self.extra.items()}
        object.__setattr__(self, "extra", extra)
        durations = np.asarray(self.durations, dtype=np.float64)
        object.__setattr__(self, "durations", durations)
        columns = (self.ids, self.paths, durations, self.speakers, *extra.values())
        lengths = [len(column) for column in columns]
        if len(set(lengths)) != 1:
            raise InputError(
                f"manifest: columns of {lengths} rows, expected the same number in each"
            )

    def __len__(self):
        return len(self.ids)

    @functools.cached_property
    def _named_and_numbered(self):
        if isinstance(self.speakers, EncodedText):
            speakers = self.speakers.compact()
            return np.array(speakers.names.to_pylist(), dtype=TEXT), speakers.codes
        return np.unique(self.speakers, return_inverse=True)

    @property
    def speaker_names(self):
        """The speakers, each once, [S] str: the perturbed ones first, each sorted."""
        return self._named_and_numbered[0]

    @property
    def labels(self):
        """Each recording's row number in ``speaker_names``: [N] int64, or int32."""
        return self._named_and_numbered[1]

    def select(self, rows):
        """Keep some recordings.

        Arguments
        ---------
        rows : np.ndarray
            A mask, [N] bool, or row numbers, [M] int.

        Returns
        -------
        Manifest
            Its labels count the remaining speakers only.
        """
        rows = np.asarray(rows)
        if not len(rows):
            rows = rows.astype(np.int64)
        perturbed = self.n_perturbed
        if perturbed is not None:
            perturbed = int(np.sum(np.unique(self.labels[rows]) < perturbed))
        columns = (self.ids, self.paths, self.durations, self.speakers)
        extra = {name: column[rows] for name, column in self.extra.items()}
        return Manifest(*(column[rows] for column in columns), perturbed, extra)


def read_manifest(path):
    """Read a manifest.

    Arguments
    ---------
    path : str or Path
        CSV file, UTF-8, with the header ``ID,duration,wav,spk_id``; or one of the same
        content whose name ends in ``.arrow``.

    Returns
    -------
    Manifest

    Raises
    ------
    InputError
        Names file and line: missing file, other header, malformed row, empty field,
        an ID seen before, a duration that is not a positive number, no rows.
    """
    path = Path(path)
    if path.suffix == ARROW:
        from speechbrain_ext.data.arrow_manifest import read_arrow

        return read_arrow(path)
    parts = [_columns(path, rows) for rows in _chunks(path)]
    if not parts:
        raise InputError(f"{path}: no rows below the header, expected recordings")
    manifest = Manifest(*(np.concatenate(column) for column in zip(*parts)))
    problem = _first_problem(manifest)
    if problem:
        row, message = problem
        raise InputError(f"{path}, line {_line_of(path, row)}: {message}")
    return manifest


def write_manifest(path, manifest):
    """Write a manifest, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The CSV file, or an Arrow file where the name ends in ``.arrow``.
    manifest : Manifest
        Durations are written with all their digits: reading gives them back exactly.

    Raises
    ------
    InputError
        Where :func:`read_manifest` would refuse the file, or a CSV file cannot tell
        which speakers are perturbed.
    """
    if Path(path).suffix == ARROW:
        from speechbrain_ext.data.arrow_manifest import write_arrow

        return write_arrow(path, manifest)
    if not len(manifest):
        raise InputError(f"{path}: nothing to write, expected at least one recording")
    if manifest.n_perturbed not in (None, len(manifest.speaker_names)):
        raise InputError(
            f"{path}: {manifest.n_perturbed} perturbed speakers and others, expected a "
            f"name ending in {ARROW}: CSV has no place for it"
        )
    problem = _first_problem(manifest)
    if problem:
        row, message = problem
        raise InputError(f"{path}, row {row + 1}: {message}")
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        columns = (
            manifest.ids,
            manifest.durations,
            manifest.paths,
            manifest.speakers,
        )
        for start in range(0, len(manifest), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            writer.writerows(zip(*(column[part].tolist() for column in columns)))


def _rows(path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every row; blank lines are passed over."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if header != COLUMNS:
                raise InputError(
                    f"{path}, line 1: header {','.join(header)!r}, "
                    f"expected {','.join(COLUMNS)!r}"
                )
            for row in reader:
                if len(row) == len(COLUMNS):
                    yield reader.line_num, row
                elif row:
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, "
                        f"expected {len(COLUMNS)}: {','.join(COLUMNS)}"
                    )
    except csv.Error as error:
        line = reader.line_num
        raise InputError(f"{path}, line {line}: not valid CSV ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a manifest") from error


def _chunks(path):
    rows = _rows(path)
    while chunk := list(itertools.islice(rows, _ROWS_AT_ONCE)):
        yield chunk


def _columns(path, rows):
    """A chunk of rows → (ids, paths, durations, speakers), each an array."""
    ids, durations, paths, speakers = zip(*(fields for _, fields in rows))
    try:
        seconds = np.array([float(text) for text in durations])
    except ValueError:
        line, text = next((n, f[1]) for n, f in rows if not _is_number(f[1]))
        raise InputError(
            f"{path}, line {line}: duration {text!r}, expected seconds as a number"
        ) from None
    return (
        np.array(ids, TEXT),
        np.array(paths, TEXT),
        seconds,
        np.array(speakers, TEXT),
    )


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_problem(manifest):
    """(row, what is wrong with it) for the first bad row, or None."""
    durations = manifest.durations
    bad = np.flatnonzero(~(np.isfinite(durations) & (durations > 0)))
    if len(bad):
        seen = durations[bad[0]]
        return int(bad[0]), f"duration {seen}, expected a positive number of seconds"
    for name, column in zip(
        ("ID", "wav", "spk_id"), (manifest.ids, manifest.paths, manifest.speakers)
    ):
        empty = np.flatnonzero(np.asarray(column) == "")
        if len(empty):
            return int(empty[0]), f"empty {name}, expected text"
    ids = manifest.ids.tolist()
    if len(set(ids)) < len(ids):
        seen = set()
        for row, name in enumerate(ids):
            if name in seen:
                return row, f"ID {name!r} seen before, expected each ID once"
            seen.add(name)
    return None


def _line_of(path, row):
    """The line of the file on which data row number ``row`` ends."""
    return next(itertools.islice(_rows(path), row, None))[0]
