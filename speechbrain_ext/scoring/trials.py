"""Trial lists, and text files of columns, such as lists and files of scores.

One trial per line: ``label enrol test`` (VoxCeleb) or ``enrol test label`` (CN-Celeb,
Kaldi), label 1 or ``target`` where the speaker is the same, 0 or ``nontarget`` where
not. T trials name only U << T recordings, so a list is kept as U names and two columns
of rows: one embedding per name, and scores are array operations over the columns.

The published VoxCeleb1 lists (Nagrani et al., Interspeech 2017; 37,720 trials, cleaned
37,611) hold no line twice, but 338 (337) of their pairs come back with the two sides
swapped, under the same label. So swapped pairs are accepted, a line that comes twice
is refused unless allowed, and one pair under two labels is always refused.

Columns are separated by any white space, and blank lines may only end a file, so item t
stands in line t + 1. pyarrow reads a file whose separators are single spaces, or single
tabs; any other is split line by line, which takes three times as long and names a wrong
line.
"""

import itertools
import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import csv

from speechbrain_ext.utils.errors import InputError, describe_os_error, naming
from speechbrain_ext.utils.files import composed

logger = logging.getLogger(__name__)

BLOCK = 1 << 22  # bytes that pyarrow parses at a time
LINES = 8192  # that are split at a time
LABELS = {"0": 0, "1": 1, "nontarget": 0, "target": 1}
LABEL_COLUMNS = {"first": 0, "last": 2}
_FORMATS = {"first": "'label enrol test'", "last": "'enrol test label'"}
# What is read: by libsndfile, and where PyAV or ffmpeg is there. Their first bytes tell
# what files hold; their suffixes, which files of a folder are recordings.
SOUND_FILES = (
    *(".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aiff", ".aif", ".aifc"),
    *(".au", ".caf", ".w64", ".sph"),
)
MEDIA_FILES = (
    *(".m4a", ".mp4", ".webm", ".aac", ".amr", ".mkv", ".mka", ".mov", ".3gp", ".m4b"),
    *(".wma", ".weba", ".avi"),
)
RECORDINGS = (*SOUND_FILES, *MEDIA_FILES)
# The look-behind keeps a name that is nothing but an extension as it is.
_EXTENSION = re.compile(rf"(?<=[^/])(?:{'|'.join(map(re.escape, RECORDINGS))})$", re.I)


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


def utterance_id(name):
    """Strip a sound file's extension, in any case: ``id1/a/1.wav`` → ``id1/a/1``.

    Lists, manifests and embedding files meet on this ID, whatever the file format, and
    whichever form of Unicode a disk has: a letter and its accent become one.
    """
    return composed(_EXTENSION.sub("", name))


def numbered(ids):
    """{ID: its row} of IDs [U], in either form of Unicode."""
    known = {name: row for row, name in enumerate(np.asarray(ids).tolist())}
    return in_either_form(known)


def in_either_form(known):
    """{ID: anything} where an ID of decomposed letters is found composed, too."""
    if all(map(str.isascii, known)):
        return known
    return {composed(name): value for name, value in known.items()} | known


def rows_among(ids, names):
    """Row of each of N names in the IDs [U]: int64 [N], -1 of one that is not there."""
    known, names = numbered(ids), np.asarray(names).tolist()
    rows = [known.get(name, -1) for name in names]
    for place, row in enumerate(rows):
        if row < 0:
            rows[place] = known.get(composed(names[place]), -1)
    return np.array(rows, dtype=np.int64)


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
    columns, labels = read_columns(path, expected, 3 if labelled else 2), None
    if labelled:
        ends = (words[codes[0]] for words, codes in columns[::2])
        label_column = label_column or _find_label_column(path, *ends)
        words, codes = columns.pop(LABEL_COLUMNS[label_column])
        labels = _parse_labels(path, words, codes, label_column)
    trials = Trials(Path(path), *number_names(*columns), labels)
    _check_repeats(trials, allow_duplicates)
    return trials


def rows_of(trials, known_ids, source, side=None):
    """Row of each of ``trials.names`` in an embedding file or manifest: int64 [U].

    ``known_ids`` are the utterance IDs of ``source``, without extensions; the rows of
    the trials are ``rows[trials.enrol]``. ``side``, enrol or test, looks up that one
    only: with an enrolment map the other names models, whose rows are -1. InputError
    names the list, the line and the utterance that is unknown.
    """
    rows = rows_among(known_ids, trials.names)
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


def read_columns(path, expected, width, number=None, header=False):
    """Read a text file of ``width`` columns separated by white space.

    Column ``number`` holds finite numbers and becomes float64 [T]; a column of words
    becomes a list of the different ones and int32 [T], which counts in them.
    ``expected`` says in messages what a line looks like: ``'label enrol test'``;
    ``header`` passes over the first line.

    InputError names the file and, where there is one, the line: a missing or empty
    file, no UTF-8, another number of columns, a blank line within, no finite number.
    """
    columns = _read_with_arrow(path, width, number, header)
    return columns or _read_by_line(path, expected, width, number, header)


def read_rows(path, expected, least, most=None):
    """Read a text file line by line: yields the words of each, ``least`` to ``most``.

    Arguments and errors as :func:`read_columns`; ``most`` None is without limit.
    """
    line, blank = 0, None
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                words = text.split()
                if not words:
                    blank = blank or line
                elif blank or not least <= len(words) <= (most or len(words)):
                    n_words = 0 if blank else len(words)
                    columns = f"{most}: {expected}" if most else expected
                    raise InputError(
                        f"{path}: line {blank or line}: {n_words} columns, expected "
                        f"{columns}"
                    )
                else:
                    yield words
    except OSError as error:
        reason = describe_os_error(error)
        raise InputError(f"{reason}, expected a file of lines {expected}") from error
    except UnicodeDecodeError as error:
        byte = _first_bad_byte(path)
        raise InputError(f"{path}: byte {byte}: expected UTF-8 text") from error
    if line == 0 or blank == 1:
        raise InputError(f"{path}: empty, expected lines {expected}")


def number_names(enrol, test):
    """Two columns of words with their codes → rows of one list of names.

    Names str [U] have no extension and stand in order of first appearance; the rows of
    either side are int32 [T].
    """
    words, first = [], []
    for side, (side_words, codes) in enumerate((enrol, test)):
        trial = np.full(len(side_words), len(codes), dtype=np.int32)
        np.minimum.at(trial, codes, np.arange(len(codes), dtype=np.int32))
        words += side_words
        first.append(2 * trial.astype(np.int64) + side)
    names, row_of = {}, np.empty(len(words), dtype=np.int32)
    for word in np.argsort(np.concatenate(first)).tolist():
        row_of[word] = names.setdefault(utterance_id(words[word]), len(names))
    n_enrol = len(enrol[0])
    return np.array(list(names)), row_of[:n_enrol][enrol[1]], row_of[n_enrol:][test[1]]


class _Words:
    """A column of words, block by block → the different ones, and codes [T]."""

    def __init__(self):
        self._index, self._codes = defaultdict(itertools.count().__next__), []

    def add(self, words, line=None):
        del line
        codes = map(self._index.__getitem__, words)
        self._codes.append(np.fromiter(codes, np.int32, len(words)))

    def add_array(self, array):
        """A block by pyarrow, with codes and words of its own."""
        self.add(array.dictionary.to_pylist())
        self._codes[-1] = self._codes[-1][array.indices.to_numpy()]

    def is_regular(self):
        """Whether there are words, and no white space is left in them."""
        return all(word.split() == [word] for word in self._index) and self._index

    def finish(self):
        return list(self._index), np.concatenate(self._codes)


class _Numbers:
    """A column of numbers, block by block → float64 [T]."""

    def __init__(self):
        self._blocks = []

    def add(self, words, line):
        """Words of the lines from ``line`` on."""
        self._blocks.append(np.array([_number(word) for word in words]))
        bad = np.flatnonzero(~np.isfinite(self._blocks[-1]))
        if len(bad):
            raise InputError(
                f"line {line + bad[0]}: score '{words[bad[0]]}', expected a finite "
                "number"
            )

    def add_array(self, array):
        self._blocks.append(array.to_numpy())

    def is_regular(self):
        return all(np.isfinite(block).all() for block in self._blocks)

    def finish(self):
        return np.concatenate(self._blocks)


def _number(word):
    try:
        return float(word)
    except ValueError:
        return np.nan


def _read_with_arrow(path, width, number, header):
    """The columns, or None of a file that is not regular or not right."""
    names = [str(column) for column in range(width)]
    types = dict.fromkeys(names, pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    columns = [_Words() for _ in names]
    if number is not None:
        types[names[number]], columns[number] = pyarrow.float64(), _Numbers()
    converting = csv.ConvertOptions(column_types=types, null_values=[])
    try:
        with open(path, "rb") as file:
            delimiter = "\t" if b"\t" in file.readline() else " "
            parsing = csv.ParseOptions(
                delimiter=delimiter, quote_char=False, ignore_empty_lines=False
            )
            if not header:
                file.seek(0)
            while block := file.read(BLOCK) + file.readline():
                reading = csv.ReadOptions(
                    column_names=names, block_size=len(block) + 1, use_threads=False
                )
                block = csv.read_csv(
                    pyarrow.py_buffer(block), reading, parsing, converting
                )
                for chunks, column in zip(block.columns, columns, strict=True):
                    for array in chunks.chunks:
                        column.add_array(array)
    except (OSError, pyarrow.ArrowInvalid):
        return None
    regular = all(column.is_regular() for column in columns)
    return [column.finish() for column in columns] if regular else None


def _read_by_line(path, expected, width, number, header):
    columns = [_Numbers() if c == number else _Words() for c in range(width)]
    rows, line = read_rows(path, expected, width, width), 1
    if header:
        next(rows)
        line += 1
    while block := list(itertools.islice(rows, LINES)):
        with naming(path):
            for words, column in zip(zip(*block), columns, strict=True):
                column.add(words, line)
        line += len(block)
    if line == 1 + header:
        raise InputError(f"{path}: empty but for line 1, expected lines {expected}")
    return [column.finish() for column in columns]


def _first_bad_byte(path):
    """Where in the file it stops being UTF-8."""
    try:
        Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _find_label_column(path, first, last):
    """Which of the two ends of line 1 is a label: "first" or "last"."""
    ends = [n for n, word in zip(LABEL_COLUMNS, (first, last)) if word in LABELS]
    if len(ends) == 2:
        raise InputError(
            f"{path}: line 1: '{first}' and '{last}' may both be the label, "
            "expected label_column='first' or 'last' to say which is"
        )
    if not ends:
        raise InputError(
            f"{path}: line 1: neither '{first}' nor '{last}' is a label, expected "
            f"one of {', '.join(LABELS)} in the first or the last column"
        )
    return ends[0]


def _parse_labels(path, words, codes, label_column):
    """int8 [T], the label of each trial."""
    labels = np.array([LABELS.get(word, -1) for word in words], dtype=np.int8)[codes]
    if (labels < 0).any():
        row = int(np.argmax(labels < 0))
        raise InputError(
            f"{path}: line {row + 1}: label '{words[codes[row]]}', expected one of "
            f"{', '.join(LABELS)} in the {label_column} column"
        )
    return labels


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
