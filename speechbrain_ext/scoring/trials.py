"""Trial lists and score files.

One trial per line, ``label enrol test`` (VoxCeleb's format), label 1 or ``target``
where the speaker is the same, 0 or ``nontarget`` where not. T trials name only U << T
recordings, so a list is kept as U names and two columns of rows: one embedding per
name, and scores are array operations over the columns.

The published VoxCeleb1 lists (Nagrani et al., Interspeech 2017; 37,720 trials, cleaned
37,611) hold no line twice, but 338 (337) of their pairs come back with the two sides
swapped, under the same label. So swapped pairs are accepted, a line that comes twice
is refused unless allowed, and one pair under two labels is always refused.
"""

import logging
import math
import re
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechbrain_ext.errors import InputError, describe_os_error
from speechbrain_ext.files import write_atomically

logger = logging.getLogger(__name__)

LABELS = {"0": 0, "1": 1, "nontarget": 0, "target": 1}
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
        str [U], utterance IDs in order of first appearance.
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
        return None if self.labels is None else int(self.labels.sum())

    @property
    def n_nontarget(self):
        """How many trials hold different speakers; None without labels."""
        return None if self.labels is None else len(self) - self.n_target


def utterance_id(name):
    """Strip a sound file's extension, in any case: ``id1/a/1.wav`` → ``id1/a/1``.

    Lists, manifests and embedding files meet on this ID, whatever the file format.
    """
    return _EXTENSION.sub("", name)


def read_trials(path, labelled=True, allow_duplicates=False):
    """Read a trial list, checked in full.

    Arguments
    ---------
    path : str or Path
        Text, one trial per line: ``label enrol test``.
    labelled : bool
        False reads lines of two columns, ``enrol test``, and gives no labels.
    allow_duplicates : bool
        Keep and count a line that comes twice, with a warning, instead of refusing.

    Returns
    -------
    Trials

    Raises
    ------
    InputError
        Missing or empty file, wrong number of columns, unknown label, a line that
        comes twice, one pair under two labels; each names the file and line.
    """
    columns = ("label", "enrol", "test") if labelled else ("enrol", "test")
    parse = _parse_label if labelled else None
    values = array("b")
    names, enrol, test = _read_pairs(path, columns, parse, values)
    labels = np.frombuffer(values, dtype=np.int8).copy() if labelled else None
    trials = Trials(Path(path), names, enrol, test, labels)
    _check_repeats(trials, allow_duplicates)
    return trials


def rows_of(trials, known_ids, source):
    """Find each utterance of a trial list in an embedding file or manifest.

    Arguments
    ---------
    trials : Trials
        The list, U utterances.
    known_ids : sequence of str
        Utterance IDs of ``source``, in its own order, without extensions.
    source : str or Path
        Its name, for the message.

    Returns
    -------
    np.ndarray
        int64 [U]: row in ``known_ids`` of each of ``trials.names``. The rows of the
        trials are then ``rows[trials.enrol]`` and ``rows[trials.test]``.

    Raises
    ------
    InputError
        Names the list, the line and the utterance that is unknown.
    """
    known = {name: row for row, name in enumerate(np.asarray(known_ids).tolist())}
    rows = [known.get(name, -1) for name in trials.names.tolist()]
    rows = np.array(rows, dtype=np.int64)
    absent = rows < 0
    if absent.any():
        first = int(np.argmax(absent[trials.enrol] | absent[trials.test]))
        side = trials.enrol if absent[trials.enrol[first]] else trials.test
        raise InputError(
            f"{trials.path}: line {first + 1}: utterance "
            f"'{trials.names[side[first]]}' is not in {source}, expected all "
            f"{len(rows)} utterances of the list there ({int(absent.sum())} absent)"
        )
    return rows


def write_scores(path, trials, scores):
    """Write ``enrol test score`` lines in the order of the list, atomically.

    With as many digits as bring back the same float.

    Arguments
    ---------
    path : str or Path
        The file to write.
    trials : Trials
        The list, T trials.
    scores : np.ndarray
        float [T].

    Raises
    ------
    InputError
        Scores of another shape, or not finite.
    """
    scores = np.asarray(scores)
    if scores.shape != (len(trials),):
        raise InputError(
            f"{path}: scores of shape {list(scores.shape)}, expected [{len(trials)}] "
            f"as in {trials.path}"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise InputError(
            f"{path}: score {scores[bad[0]]} of trial {bad[0] + 1}, expected finite"
        )
    digits = 9 if scores.dtype == np.float32 else 17
    names = trials.names.tolist()
    rows = zip(trials.enrol.tolist(), trials.test.tolist(), scores.tolist())
    with write_atomically(path) as file:
        file.writelines(f"{names[a]} {names[b]} {s:.{digits}g}\n" for a, b, s in rows)


def read_scores(path):
    """Read a score file written by :func:`write_scores`.

    Arguments
    ---------
    path : str or Path
        Text, one trial per line: ``enrol test score``.

    Returns
    -------
    trials : Trials
        Without labels.
    scores : np.ndarray
        float64 [T].

    Raises
    ------
    InputError
        As :func:`read_trials`, and for a score that is no finite number.
    """
    columns = ("enrol", "test", "score")
    values = array("d")
    names, enrol, test = _read_pairs(path, columns, _parse_score, values)
    scores = np.frombuffer(values, dtype=np.float64).copy()
    return Trials(Path(path), names, enrol, test), scores


def _parse_label(text):
    try:
        return LABELS[text]
    except KeyError:
        expected = ", ".join(LABELS)
        raise ValueError(f"label '{text}', expected one of {expected}") from None


def _parse_score(text):
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"score '{text}', expected a finite number")
    return score


def _read_pairs(path, columns, parse, values):
    """Read ``enrol`` and ``test`` as rows of names; append the third column, parsed."""
    # One dict look-up per name, and 4 bytes per trial side: long lists stay small.
    index, enrol, test = {}, array("i"), array("i")
    for number, fields in _read_fields(path, columns):
        if parse is not None:
            value = fields.pop(0 if columns[0] == "label" else 2)
            try:
                values.append(parse(value))
            except ValueError as error:
                raise InputError(f"{path}: line {number}: {error}") from error
        enrol.append(index.setdefault(fields[0], len(index)))
        test.append(index.setdefault(fields[1], len(index)))
    if not enrol:
        raise InputError(f"{path}: empty, expected lines '{' '.join(columns)}'")
    names, row_of = _merge_names(index)
    return names, *(row_of[np.frombuffer(side, np.intc)] for side in (enrol, test))


def _read_fields(path, columns):
    expected = f"'{' '.join(columns)}'"
    blank = None  # blank lines may only end a file: within, a trial is missing
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                if not fields:
                    blank = blank or number
                elif blank or len(fields) != len(columns):
                    wrong, seen = (blank, 0) if blank else (number, len(fields))
                    raise InputError(
                        f"{path}: line {wrong}: {seen} columns, expected "
                        f"{len(columns)}: {expected}"
                    )
                else:
                    yield number, fields
    except OSError as error:
        reason = describe_os_error(error)
        raise InputError(f"{reason}, expected a file of lines {expected}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: expected UTF-8 text") from error


def _merge_names(index):
    """Names without extension, and where each name as written went, int32."""
    merged = {}
    rows = [merged.setdefault(utterance_id(name), len(merged)) for name in index]
    return np.array(list(merged)), np.array(rows, dtype=np.int32)


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
