"""Keys and scores of spoofing detection, in the formats of the ASVspoof challenges.

A key file says of each recording who speaks and whether it is genuine. Published
protocols have no header; how many columns they have tells which one it is::

     5   2019 LA                LA_0039 LA_E_2834763 - A11 spoof
     6   5, first phase         T_4850 T_0000000000 F - A05 spoof
     8   2021 LA                LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval
    10   5                      E_1607 E_0009538969 M C05 2 E_0009486171 AC1 A26 spoof -
    13   2021 DF                LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim …

(Wang et al., "ASVspoof 5: crowdsourced speech data, deepfakes, and adversarial attacks
at scale", ASVspoof workshop 2024; Wang et al., Computer Speech & Language 64, 2020;
Yamagishi et al., ASVspoof workshop 2021).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.trials import read_columns, read_rows
from speechbrain_ext.utils.errors import InputError

BONAFIDE, SPOOF = "bonafide", "spoof"
NONE = "-"  # attack and codec of a recording that has none
_ALSO_NONE = (NONE, "none", "nocodec", BONAFIDE)


class _Layout(NamedTuple):
    """What the columns of a protocol hold, by number; None: it does not say."""

    expected: str
    key: int
    attack: int
    codec: int | None = None
    subset: int | None = None


LAYOUTS = {
    5: _Layout("'SPEAKER FILE - ATTACK KEY'", 4, 3),
    6: _Layout("'SPEAKER FILE GENDER CODEC ATTACK KEY'", 5, 4, 3),
    8: _Layout("'SPEAKER FILE CODEC CHANNEL ATTACK KEY TRIM SUBSET'", 5, 4, 2, 7),
    10: _Layout(
        "'SPEAKER FILE GENDER CODEC QUALITY SEED ADAPTATION ATTACK KEY -'", 8, 7, 3
    ),
    13: _Layout(
        "'SPEAKER FILE CODEC SOURCE ATTACK KEY TRIM SUBSET VOCODER' and four more",
        *(5, 4, 2, 7),
    ),
}


class Words(NamedTuple):
    """N texts by number: ``codes`` int32 [N] count in ``words``, each text once."""

    words: list
    codes: np.ndarray

    def tolist(self):
        """All texts: [N] str."""
        return list(map(self.words.__getitem__, self.codes.tolist()))

    def select(self, rows):
        """Some of them, by a mask [N] bool or row numbers."""
        return Words(self.words, self.codes[rows])


@dataclass(frozen=True, eq=False)
class Keys:
    """N recordings and what they are.

    Attributes
    ----------
    path : Path
        Where it was read.
    names : list of str
        [N], each once, without extension.
    is_bonafide : np.ndarray
        bool [N].
    speakers, attacks, codecs : Words or None
        [N]; ``-`` is no attack, or no codec. None where the file does not say.
    lines : np.ndarray
        int [N], where each recording is listed, from 1 on.
    """

    path: Path
    names: list
    is_bonafide: np.ndarray
    lines: np.ndarray
    speakers: Words | None = None
    attacks: Words | None = None
    codecs: Words | None = None

    def __len__(self):
        return len(self.names)


def width_of(path):
    """How many columns the first line of a file has; InputError as read_protocol."""
    return len(next(read_rows(path, "of an ASVspoof protocol", 1)))


def read_protocol(path, subset=None):
    """Read a protocol of ASVspoof 5, 2019 LA, 2021 LA or 2021 DF.

    Arguments
    ---------
    path : str or Path
    subset : str, optional
        Of the 2021 editions, the part to keep: ``progress``, ``eval`` or ``hidden``
        in the words of the file. None keeps all.

    Returns
    -------
    Keys
        In the order of the file.

    Raises
    ------
    InputError
        Names the file and, where there is one, the line: missing, empty or no text, a
        number of columns that no edition has or other than that of line 1, a label
        other than ``bonafide`` and ``spoof``, a recording that comes twice, a subset
        that there is not.
    """
    width = width_of(path)
    if width not in LAYOUTS:
        raise InputError(
            f"{path}: line 1: {width} columns, expected "
            f"{', '.join(map(str, LAYOUTS))} as the protocols of ASVspoof have"
        )
    layout = LAYOUTS[width]
    columns = [Words(*c) for c in read_columns(path, layout.expected, width)]
    keys = columns[layout.key]
    known = [word in (BONAFIDE, SPOOF) for word in keys.words]
    if not all(known):
        row = int(np.argmin(np.array(known)[keys.codes]))
        raise InputError(
            f"{path}: line {row + 1}: key {keys.words[keys.codes[row]]!r}, expected "
            f"{BONAFIDE} or {SPOOF} in column {layout.key + 1}"
        )
    check_once(path, columns[1])
    codec = None if layout.codec is None else _named(columns[layout.codec])
    found = Keys(
        Path(path),
        columns[1].tolist(),
        np.array([word == BONAFIDE for word in keys.words])[keys.codes],
        np.arange(1, len(keys.codes) + 1),
        columns[0],
        _named(columns[layout.attack]),
        codec,
    )
    if subset is None or layout.subset is None:
        return found
    return _subset(found, columns[layout.subset], subset)


def check_once(path, names, first_line=1):
    """InputError that names the line of a recording that a file lists twice."""
    if len(names.words) < len(names.codes):
        seen = np.zeros(len(names.words), dtype=bool)
        for row, code in enumerate(names.codes.tolist()):
            if seen[code]:
                before = int(np.argmax(names.codes == code))
                raise InputError(
                    f"{path}: line {row + first_line}: {names.words[code]!r} again, "
                    f"expected each recording once (also in line {before + first_line})"
                )
            seen[code] = True


def _named(column):
    """A column whose words for nothing are all ``-``."""
    words = list(
        dict.fromkeys(NONE if w.lower() in _ALSO_NONE else w for w in column.words)
    )
    number = {word: row for row, word in enumerate(words)}
    codes = [number.get(word, number.get(NONE)) for word in column.words]
    return Words(words, np.array(codes, dtype=np.int32)[column.codes])


def _subset(keys, column, subset):
    if subset not in column.words:
        raise InputError(
            f"{keys.path}: subset {subset!r}, expected one of "
            f"{', '.join(sorted(column.words))}"
        )
    rows = np.flatnonzero(column.codes == column.words.index(subset))
    names = keys.names
    return Keys(
        keys.path,
        [names[row] for row in rows.tolist()],
        keys.is_bonafide[rows],
        keys.lines[rows],
        *(c and c.select(rows) for c in (keys.speakers, keys.attacks, keys.codecs)),
    )
