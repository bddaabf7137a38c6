"""Text files of columns separated by white space: read in blocks, checked by line.

Lists of trials, enrolment maps and score files are such files. Blank lines may only end
one: within a list, a blank line is a trial that is missing. So line n is item n.

Splitting line by line would take most of the time of reading a long list. A block whose
separators are, in their order, space, space, newline, and again, no two of them side by
side, has three fields in each line, and one call splits it: 3.5 million trials are read
in 1.6 s in place of 2.9 s.

Trial lists.

One trial per line: ``label enrol test`` (VoxCeleb) or ``enrol test label`` (CN-Celeb,
Kaldi), label 1 or ``target`` where the speaker is the same, 0 or ``nontarget`` where
not. T trials name only U << T recordings, so a list is kept as U names and two columns
of rows: one embedding per name, and scores are array operations over the columns.

The published VoxCeleb1 lists (Nagrani et al., Interspeech 2017; 37,720 trials, cleaned
37,611) hold no line twice, but 338 (337) of their pairs come back with the two sides
swapped, under the same label. So swapped pairs are accepted, a line that comes twice
is refused unless allowed, and one pair under two labels is always refused.
"""

import codecs
import itertools
import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechbrain_ext.utils.errors import InputError, describe_os_error

BLOCK = 1 << 18  # bytes read at a time: their fields stay in the cache


def read_fields(path, expected, width):
    """Read a file of ``width`` columns, a block of lines at a time.

    Arguments
    ---------
    path : str or Path
        UTF-8 text, with or without a byte-order mark.
    expected : str
        What a line looks like, for messages: ``'label enrol test'``.
    width : int
        Columns of every line.

    Yields
    ------
    line : int
        Number of the block's first line, counted from 1.
    fields : list of str
        Those of all its lines, one after the other: [n · width].

    Raises
    ------
    InputError
        Missing or empty file, not UTF-8, another number of columns; names the file
        and the line.
    """
    for line, rows in _blocks(path, expected, width):
        if isinstance(rows, bytes):
            yield line, rows.decode().split()
        else:
            _check_widths(path, line, rows, expected, width, width)
            yield line, list(itertools.chain.from_iterable(rows))


def read_rows(path, expected, width):
    """Read a file of at least ``width`` columns, line by line.

    Arguments
    ---------
    path, expected, width
        As for :func:`read_fields`.

    Yields
    ------
    line : int
        Its number, counted from 1.
    fields : list of str
        ``width`` or more.

    Raises
    ------
    InputError
        As :func:`read_fields`.
    """
    for line, rows in _blocks(path, expected):
        _check_widths(path, line, rows, expected, width)
        yield from enumerate(rows, line)


def _blocks(path, expected, width=None):
    """(first line, rows or, where all lines have ``width`` fields, their bytes)."""
    line, blank = 1, None
    for start, block in _read(path, expected):
        if width and block.isascii() and _is_regular(block, width):
            rows, n_lines = block, block.count(b"\n")
        else:
            rows = _split(path, start, block)
            n_lines = len(rows)
            while rows and not rows[-1]:
                rows.pop()
        if rows and blank:
            raise _wrong_width(path, blank, 0, expected, width)
        if rows:
            yield line, rows
        if not isinstance(rows, bytes) and len(rows) < n_lines:
            blank = blank or line + len(rows)
        line += n_lines
    if line == 1 or blank == 1:
        raise InputError(f"{path}: empty, expected lines {expected}")


def _read(path, expected):
    """(offset, whole lines) that end in a newline, whatever ends them in the file."""
    start = 0
    try:
        with open(path, "rb") as file:
            if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                start = len(codecs.BOM_UTF8)
            file.seek(start)
            while block := file.read(BLOCK):
                block += file.readline()
                length = len(block)
                if b"\r" in block:
                    block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
                yield start, block if block.endswith(b"\n") else block + b"\n"
                start += length
    except OSError as error:
        reason = describe_os_error(error)
        raise InputError(f"{reason}, expected a file of lines {expected}") from error


def _is_regular(block, width):
    """Whether every line of an ASCII block is ``width`` fields with spaces between."""
    values = np.frombuffer(block, np.uint8)
    at = np.flatnonzero(values <= ord(" "))  # all ASCII white space, and more
    if len(at) % width or at[0] == 0 or not (np.diff(at) > 1).all():
        return False
    ends = [ord(" ")] * (width - 1) + [ord("\n")]
    return bool((values[at].reshape(-1, width) == ends).all())


def _split(path, start, block):
    try:
        text = block.decode()
    except UnicodeDecodeError as error:
        byte = start + error.start
        raise InputError(f"{path}: byte {byte}: expected UTF-8 text") from error
    return list(map(str.split, text.split("\n")[:-1]))


def _check_widths(path, line, rows, expected, least, most=None):
    widths = set(map(len, rows))
    if min(widths) < least or max(widths) > (most or max(widths)):
        wrong = {w for w in widths if w < least or w > (most or w)}
        row = next(row for row, fields in enumerate(rows) if len(fields) in wrong)
        raise _wrong_width(path, line + row, len(rows[row]), expected, most)


def _wrong_width(path, line, seen, expected, width):
    columns = f"{width}: {expected}" if width else expected
    return InputError(f"{path}: line {line}: {seen} columns, expected {columns}")


logger = logging.getLogger(__name__)

LABELS = {"0": 0, "1": 1, "nontarget": 0, "target": 1}
LABEL_COLUMNS = {"first": 0, "last": 2}
_FORMATS = {"first": "'label enrol test'", "last": "'enrol test label'"}
# The look-behind keeps a name that is nothing but an extension as it is.
_EXTENSION = re.compile(r"(?<=[^/])\.(?:wav|flac|m4a|ogg|mp3)$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Trials:
    """A trial list of T trials over U utterances.

    Attributes
    ----------
    path : Path
        Where it was read; trial t stands in line t + 1.
    names : np.ndarray
        str [U], utterance IDs in order of first appearance. The enrol side may hold
        names of models instead (:mod:`speechbrain_ext.scoring.enrolment`).
    enrol, test : np.ndarray
        int32 [T], rows of ``names``.
    labels : np.ndarray or None
        int8 [T], 1 = same speaker; None where the list has no labels.
    """

    path: Path
    names: np.ndarray
    enrol: np.ndarray
    test: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self):
        return len(self.enrol)

    @property
    def n_target(self):
        """How many trials hold the same speaker; None without labels."""
        return None if self.labels is None else int(self.labels.sum(dtype=np.int64))

    @property
    def n_nontarget(self):
        """How many trials hold different speakers; None without labels."""
        return None if self.labels is None else len(self) - self.n_target


class PairColumns:
    """The two sides of trials, as they are read → names and rows.

    One dictionary look-up per side and 4 bytes: long lists are read fast, stay small.
    """

    def __init__(self):
        self._index = defaultdict(itertools.count().__next__)
        self._rows = []

    def add(self, sides):
        """Add a list of names: enrol, test, enrol, test, …"""
        rows = map(self._index.__getitem__, sides)
        self._rows.append(np.fromiter(rows, np.int32, len(sides)))

    def finish(self):
        """→ names str [U], without extension; enrol, test int32 [T]."""
        merged = {}
        new = [merged.setdefault(utterance_id(n), len(merged)) for n in self._index]
        rows = np.array(new, dtype=np.int32)[np.concatenate(self._rows)]
        return np.array(list(merged)), rows[0::2].copy(), rows[1::2].copy()


def utterance_id(name):
    """Strip a sound file's extension, in any case: ``id1/a/1.wav`` → ``id1/a/1``.

    Lists, manifests and embedding files meet on this ID, whatever the file format.
    """
    return _EXTENSION.sub("", name)


def read_trials(path, labelled=True, allow_duplicates=False, label_column=None):
    """Read a trial list, checked in full.

    Arguments
    ---------
    path : str or Path
        Text, one trial per line: ``label enrol test`` or ``enrol test label``.
    labelled : bool
        False reads lines of two columns, ``enrol test``, and gives no labels.
    allow_duplicates : bool
        Keep and count a line that comes twice, with a warning, instead of refusing.
    label_column : "first", "last" or None
        Where the labels are. None looks at the first line.

    Returns
    -------
    Trials

    Raises
    ------
    InputError
        Missing or empty file, wrong number of columns, unknown label, a first line
        with labels at both ends, a line that comes twice, one pair under two labels;
        each names the file and line.
    """
    if label_column not in (None, *LABEL_COLUMNS):
        raise InputError(
            f"label_column={label_column!r}, expected 'first', 'last' or None"
        )
    formats = [_FORMATS[label_column]] if label_column else _FORMATS.values()
    expected = " or ".join(formats) if labelled else "'enrol test'"
    pairs, labels = PairColumns(), []
    for line, fields in read_fields(path, expected, 3 if labelled else 2):
        if labelled:
            label_column = label_column or _find_labels(path, *fields[:3:2])
            column = slice(LABEL_COLUMNS[label_column], None, 3)
            labels.append(_parse_labels(path, line, fields[column], label_column))
            del fields[column]
        pairs.add(fields)
    trials = Trials(
        Path(path), *pairs.finish(), np.concatenate(labels) if labelled else None
    )
    _check_repeats(trials, allow_duplicates)
    return trials


def rows_of(trials, known_ids, source, side=None):
    """Find each utterance of a trial list in an embedding file or manifest.

    Arguments
    ---------
    trials : Trials
        The list, U utterances.
    known_ids : sequence of str
        Utterance IDs of ``source``, in its own order, without extensions.
    source : str or Path
        Its name, for the message.
    side : "enrol", "test" or None
        Look up the names of one side only: with an enrolment map, one side names
        models and the other recordings.

    Returns
    -------
    np.ndarray
        int64 [U]: row in ``known_ids`` of each of ``trials.names``. The rows of the
        trials are then ``rows[trials.enrol]`` and ``rows[trials.test]``. With ``side``,
        -1 for a name that is neither known nor on that side.

    Raises
    ------
    InputError
        Names the list, the line and the utterance that is unknown.
    """
    known = {name: row for row, name in enumerate(np.asarray(known_ids).tolist())}
    rows = [known.get(name, -1) for name in trials.names.tolist()]
    rows = np.array(rows, dtype=np.int64)
    sides = [getattr(trials, name) for name in ([side] if side else ("enrol", "test"))]
    looked_up = np.zeros(len(rows), dtype=bool)
    for column in sides:
        looked_up[column] = True
    absent = (rows < 0) & looked_up
    if absent.any():
        first = min(int(np.argmax(absent[c])) for c in sides if absent[c].any())
        name = next(trials.names[c[first]] for c in sides if absent[c[first]])
        what = "enrol name" if side == "enrol" else "utterance"
        raise InputError(
            f"{trials.path}: line {first + 1}: {what} '{name}' is not in {source}, "
            f"expected all {int(looked_up.sum())} {what}s of the list there "
            f"({int(absent.sum())} absent)"
        )
    return rows


def _find_labels(path, first, last):
    """Which of the two ends of line 1 is a label: "first" or "last"."""
    found = [n for n, word in zip(LABEL_COLUMNS, (first, last)) if word in LABELS]
    if len(found) == 2:
        raise InputError(
            f"{path}: line 1: '{first}' and '{last}' may both be the label, "
            "expected label_column='first' or 'last' to say which is"
        )
    if not found:
        raise InputError(
            f"{path}: line 1: neither '{first}' nor '{last}' is a label, expected "
            f"one of {', '.join(LABELS)} in the first or the last column"
        )
    return found[0]


def _parse_labels(path, line, words, label_column):
    """int8 labels of a block that begins with ``line``."""
    try:
        return np.fromiter(map(LABELS.__getitem__, words), np.int8, len(words))
    except KeyError:
        row = next(row for row, word in enumerate(words) if word not in LABELS)
    raise InputError(
        f"{path}: line {line + row}: label '{words[row]}', expected one of "
        f"{', '.join(LABELS)} in the {label_column} column"
    )


def _check_repeats(trials, allow_duplicates):
    enrol, test, labels = trials.enrol.astype(np.int64), trials.test, trials.labels
    size = len(trials.names)
    if labels is not None:
        either_way = np.minimum(enrol, test) * size + np.maximum(enrol, test)
        before, line = _repeats(either_way)
        wrong = np.flatnonzero(labels[before] != labels[line])
        if len(wrong):
            before, line = before[wrong[0]], line[wrong[0]]
            raise InputError(
                f"{trials.path}: line {line + 1}: label {labels[line]} for "
                f"'{trials.names[enrol[line]]}' and '{trials.names[test[line]]}', "
                f"expected {labels[before]} as in line {before + 1}"
            )
    before, line = _repeats(enrol * size + test)
    if len(line):
        message = (
            f"{trials.path}: line {line[0] + 1}: the same trial as line "
            f"{before[0] + 1} ({len(line)} such lines)"
        )
        if not allow_duplicates:
            raise InputError(f"{message}, expected each trial once")
        logger.warning("%s: each counts", message)


def _repeats(key):
    """Trials with equal keys: (the one before, the repeat), repeats ascending."""
    order = np.argsort(key, kind="stable")
    same = key[order[1:]] == key[order[:-1]]
    before, repeat = order[:-1][same], order[1:][same]
    by_line = np.argsort(repeat)
    return before[by_line], repeat[by_line]
