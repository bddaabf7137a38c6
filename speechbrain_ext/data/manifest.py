"""Manifests: which recordings there are, how long they are, who speaks in them.

A manifest is a CSV file with the columns of SpeechBrain's recipes,
``ID,duration,wav,spk_id``, and any others behind them. In memory it is columns instead
of a list of rows: a million Python rows would be copied into every loader worker, page
by page, as their reference counts change; arrays are shared.

From some million recordings on, a file named ``.arrow`` holds the same, and its columns
stay in the file (:mod:`speechbrain_ext.data.arrow_manifest`). A column of text then
takes four or eight bytes a row, whatever the length of the text::

    text[i] = names[codes[i]]                     EncodedText
    text[i] = heads[i] + tails[i]                 JoinedText

Ten million paths differ in few ways: two million folders, a few hundred file names.
Kept as two numbers each they take 80 MB where Python's strings take 1 GB. The numbers
and the names lie in a memory-mapped file: all processes of a machine read the same
pages, and nothing in them changes when a process looks.
"""

import csv
import functools
import itertools
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically

# Variable-width UTF-8. Fixed-width "<U" arrays spend four bytes per character of the
# longest path on every row.
TEXT = np.dtypes.StringDType()
COLUMNS = ["ID", "duration", "wav", "spk_id"]
ARROW = ".arrow"
_CODES_AT_ONCE = 1_000_000
_ROWS_AT_ONCE = 20_000  # larger chunks are slower to read


class TextColumn:
    """N texts, indexed and sliced as a numpy array is.

    A single row gives a str, anything else a column of the same kind over the same
    names.
    """

    def __array__(self, dtype=None, copy=None):
        return np.array(self.tolist(), dtype=TEXT if dtype is None else dtype)


class EncodedText(TextColumn):
    """Texts by number: ``codes`` [N] int32 of ``names``, each text once (pyarrow)."""

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

    def is_empty(self):
        """Which texts are empty: bool [N]."""
        return self.codes == pc.index(self.names, "").as_py()


class JoinedText(TextColumn):
    """Texts in two parts, EncodedText [N] each; a path's head ends in a slash."""

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

    def is_empty(self):
        """Which texts are empty: bool [N]."""
        return self.heads.is_empty() & self.tails.is_empty()

    def first_repeat(self):
        """The first row whose text another row had before, or None."""
        keys = self.heads.codes * np.int64(len(self.tails.names))
        keys += self.tails.codes
        ordered = np.sort(keys)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(twice):
            return None
        again = np.flatnonzero(np.isin(keys, twice))
        return min(
            rows[1] for key in twice if len(rows := again[keys[again] == key]) > 1
        )


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
        """Some recordings, by a mask [N] bool or row numbers [M] → Manifest.

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


def _text(column):
    is_column = isinstance(column, TextColumn)
    return column if is_column else np.asarray(column, dtype=TEXT)


def check_manifest(path, manifest, place=None, unique=True):
    """Refuse what no manifest may hold, in either format.

    ``place`` makes a row a place in words; None: its number from 1 on. ``unique`` also
    looks for an ID that comes twice, which takes memory of the whole list. InputError
    names the first such row: an empty text, a duration that is no positive number, an
    ID seen before.
    """

    def refuse(row, message):
        where = place(row) if place else f"row {row + 1}"
        raise InputError(f"{path}, {where}: {message}")

    if not len(manifest):
        raise InputError(f"{path}: no rows, expected at least one recording")
    durations = manifest.durations
    bad = np.flatnonzero(~((durations > 0) & (durations < np.inf)))
    if len(bad):
        seconds = durations[bad[0]]
        refuse(bad[0], f"duration {seconds}, expected a positive number of seconds")
    for name, column in zip(
        ("ID", "wav", "spk_id"), (manifest.ids, manifest.paths, manifest.speakers)
    ):
        fast = hasattr(column, "is_empty")
        empty = np.flatnonzero(column.is_empty() if fast else np.asarray(column) == "")
        if len(empty):
            refuse(empty[0], f"empty {name}, expected text")
    again = _first_repeat(manifest.ids) if unique else None
    if again is not None:
        refuse(again, f"ID {manifest.ids[again]!r} seen before, expected each ID once")


def _first_repeat(column):
    if isinstance(column, JoinedText):
        return column.first_repeat()
    texts = column.tolist()
    if len(set(texts)) == len(texts):
        return None
    seen = set()
    return next(row for row, text in enumerate(texts) if text in seen or seen.add(text))


def read_manifest(path):
    """Read a manifest.

    Arguments
    ---------
    path : str or Path
        CSV file, UTF-8, with a header that begins with ``ID,duration,wav,spk_id``; or
        one of the same content whose name ends in ``.arrow``.

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
    manifest = _read_plain(path) or _read_rows(path)
    check_manifest(path, manifest, lambda row: f"line {_line_of(path, row)}")
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
    check_manifest(path, manifest)
    if manifest.n_perturbed not in (None, len(manifest.speaker_names)):
        raise InputError(
            f"{path}: {manifest.n_perturbed} perturbed speakers and others, expected a "
            f"name ending in {ARROW}: CSV has no place for it"
        )
    columns = [manifest.ids, manifest.durations, manifest.paths, manifest.speakers]
    columns += manifest.extra.values()
    with write_atomically(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *manifest.extra])
        for start in range(0, len(manifest), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            writer.writerows(zip(*(column[part].tolist() for column in columns)))


def read_csv(path, expected="a CSV file") -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the header and of every row; passes over blank lines.

    ``expected`` says what a missing file should have been. InputError names the line of
    a row that is no CSV or has not as many fields as the header.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            yield 1, header
            for row in reader:
                if len(row) == len(header):
                    yield reader.line_num, row
                elif row:
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, "
                        f"expected {len(header)}: {','.join(header)}"
                    )
    except csv.Error as error:
        line = reader.line_num
        raise InputError(f"{path}, line {line}: not valid CSV ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected {expected}") from error


def _read_plain(path):
    """A manifest without quotes, four times as fast; None where that does not read it.

    What is wrong with a file is then found, and named by its line, row by row.
    """
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(b'"') >= 0:
                return None
            header = content.readline().decode("utf-8-sig").rstrip("\r\n").split(",")
        if not _is_header(header):
            return None
        types = dict.fromkeys(header, pa.string())
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(use_threads=False),  # workers are forked
            parse_options=pa_csv.ParseOptions(quote_char=False),
            convert_options=pa_csv.ConvertOptions(column_types=types),
        )
        seconds = pc.cast(table["duration"], pa.float64()).to_numpy()
    except (pa.ArrowInvalid, OSError, ValueError):
        return None
    if not len(table):
        return None

    def texts(name):
        chunks = table[name].chunks  # one by one: all as Python's strings are many
        return np.concatenate([np.array(chunk.to_pylist(), TEXT) for chunk in chunks])

    extra = {name: texts(name) for name in header[len(COLUMNS) :]}
    return Manifest(*(texts("ID"), texts("wav"), seconds, texts("spk_id")), extra=extra)


def _read_rows(path):
    """A manifest row by row: InputError names the first line that is wrong."""
    rows = read_csv(path, "a manifest")
    _, header = next(rows)
    if not _is_header(header):
        raise InputError(
            f"{path}, line 1: header {','.join(header)!r}, expected "
            f"{','.join(COLUMNS)!r}"
        )
    chunks = iter(lambda: list(itertools.islice(rows, _ROWS_AT_ONCE)), [])
    parts = [_columns(path, chunk) for chunk in chunks]
    if not parts:
        return Manifest([], [], [], [])
    ids, seconds, paths, speakers, *extra = map(np.concatenate, zip(*parts))
    extra = dict(zip(header[len(COLUMNS) :], extra))
    return Manifest(ids, paths, seconds, speakers, extra=extra)


def _is_header(header):
    first = header[: len(COLUMNS)]
    return first == COLUMNS and "" not in header and len({*header}) == len(header)


def _columns(path, rows):
    """A chunk of (line, fields) → an array for each column."""
    ids, durations, *others = zip(*(fields for _, fields in rows))
    seconds = []
    for (line, _), text in zip(rows, durations):
        try:
            seconds.append(float(text))
        except ValueError:
            raise InputError(
                f"{path}, line {line}: duration {text!r}, expected seconds as a number"
            ) from None
    others = [np.array(column, TEXT) for column in others]
    return np.array(ids, TEXT), np.array(seconds), *others


def _line_of(path, row):
    """The line of the file on which data row number ``row`` ends."""
    return next(itertools.islice(read_csv(path), int(row) + 1, None))[0]
