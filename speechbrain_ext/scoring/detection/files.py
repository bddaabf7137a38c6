"""Keys and scores of spoofing detection, in the formats of the ASVspoof challenges.

A key file says of each recording whether it is genuine, and may say who speaks, by
which attack it was made and through which codec it went. Published protocols have no
header; how many columns they have tells which one it is::

     5   2019 LA                LA_0039 LA_E_2834763 - A11 spoof
     6   5, first phase         T_4850 T_0000000000 F - A05 spoof
     8   2021 LA                LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval
    10   5                      E_1607 E_0009538969 M C05 2 E_0009486171 AC1 A26 spoof -
    13   2021 DF                LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim …

The evaluation package of ASVspoof 5 reads key files with a header that names columns,
``filename`` and ``cm-label`` among them, and scores with the header ``filename
cm-score``, both separated by tabs. Scores of 2019 (``FILE ATTACK KEY SCORE``) and 2021
(``FILE SCORE``) have no header. A higher score is that of genuine speech.

(Wang et al., "ASVspoof 5: crowdsourced speech data, deepfakes, and adversarial attacks
at scale", ASVspoof workshop 2024; Wang et al., Computer Speech & Language 64, 2020;
Yamagishi et al., ASVspoof workshop 2021).
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow

from speechbrain_ext.scoring.trials import read_columns, read_rows, utterance_id
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically

BONAFIDE, SPOOF = "bonafide", "spoof"
NONE = "-"  # attack and codec of a recording that has none
_ALSO_NONE = (NONE, "none", "nocodec", BONAFIDE)
SCORE_HEADER, KEY_HEADER = ("filename", "cm-score"), ("filename", "cm-label")
# What columns of a key file with a header are called → the attribute of Keys.
_HEADERS = {
    "filename": "names",
    "trial_anon": "names",
    "cm-label": "key",
    "spk": "speakers",
    "spk_anon": "speakers",
    "tar_spk_anon": "speakers",
    "attack": "attacks",
    "attack_anon": "attacks",
    "codec": "codecs",
}
_SCORES = {2: "'FILE SCORE'", 4: "'FILE ATTACK KEY SCORE'"}  # by width, score last
_LINES_AT_ONCE = 4096


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


def words_of(texts):
    """Words of a column of texts [N], array_like."""
    texts = texts if isinstance(texts, list) else np.asarray(texts).tolist()
    encoded = pyarrow.array(texts, pyarrow.string()).dictionary_encode()
    return Words(encoded.dictionary.to_pylist(), encoded.indices.to_numpy())


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

    def part(self, column, word):
        """Those of which a column, Words [N], holds ``word`` → Keys."""
        if word not in column.words:
            raise InputError(
                f"{self.path}: subset {word!r}, expected one of "
                f"{', '.join(sorted(column.words))}"
            )
        rows = np.flatnonzero(column.codes == column.words.index(word))
        columns = (self.speakers, self.attacks, self.codecs)
        return Keys(
            self.path,
            [self.names[row] for row in rows.tolist()],
            self.is_bonafide[rows],
            self.lines[rows],
            *(column and column.select(rows) for column in columns),
        )


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
        other than ``bonafide`` and ``spoof``, a recording that comes twice, an attack
        of both labels, a subset that there is not.
    """
    width = width_of(path)
    if width not in LAYOUTS:
        raise InputError(
            f"{path}: line 1: {width} columns, expected "
            f"{', '.join(map(str, LAYOUTS))} as the protocols of ASVspoof have"
        )
    layout = LAYOUTS[width]
    columns = [Words(*c) for c in read_columns(path, layout.expected, width)]
    subsets = None if layout.subset is None else columns[layout.subset]
    found = keys_from(
        path,
        columns[1],
        columns[layout.key],
        columns[0],
        columns[layout.attack],
        None if layout.codec is None else columns[layout.codec],
    )
    return found if subset is None or subsets is None else found.part(subsets, subset)


def read_keys(path, subset=None):
    """Read a key file with a header, or a protocol as :func:`read_protocol` does.

    A header names columns, separated by tabs or spaces: ``filename`` (or
    ``trial_anon``) and ``cm-label``, and where there are ``spk``, ``attack`` (or
    ``attack_anon``) and ``codec``. Arguments, result and errors are those of
    :func:`read_protocol`.
    """
    header = _first_line(path)
    if not {"filename", "trial_anon"} & set(header):
        return read_protocol(path, subset)
    if "cm-label" not in header:
        raise InputError(
            f"{path}: line 1: no column 'cm-label' in {' '.join(header)!r}, expected "
            f"{' '.join(KEY_HEADER)!r}"
        )
    expected = repr(" ".join(header))
    for told in ("names", "key"):
        same = [name for name in header if _HEADERS.get(name) == told]
        if len(same) > 1:
            raise InputError(
                f"{path}: line 1: columns {' and '.join(map(repr, same))}, expected "
                "one of them"
            )
    columns = read_columns(path, expected, len(header), header=True)
    by_name = {
        _HEADERS[name]: Words(*column)
        for name, column in zip(header, columns)
        if name in _HEADERS
    }
    return keys_from(path, by_name.pop("names"), by_name.pop("key"), **by_name, first=2)


def keys_from(path, names, keys, speakers=None, attacks=None, codecs=None, first=1):
    """Keys of columns, Words [N], the first of them in line ``first`` of a file.

    InputError: a key other than ``bonafide`` and ``spoof``, a name that comes twice, an
    attack of both keys: a column that is none of attacks.
    """
    known = [word in (BONAFIDE, SPOOF) for word in keys.words]
    if not all(known):
        row = int(np.argmin(np.array(known)[keys.codes]))
        raise InputError(
            f"{path}: line {row + first}: key {keys.words[keys.codes[row]]!r}, "
            f"expected {BONAFIDE} or {SPOOF}"
        )
    is_bonafide = np.array([word == BONAFIDE for word in keys.words])[keys.codes]
    attacks, codecs = (column and _named(column) for column in (attacks, codecs))
    if attacks is not None:
        _check_attacks(path, attacks, is_bonafide, first)
    return Keys(
        Path(path),
        _unique(path, names, first),
        is_bonafide,
        np.arange(first, len(keys.codes) + first),
        *(speakers, attacks, codecs),
    )


def _check_attacks(path, attacks, is_bonafide, first):
    """InputError: bona fide speech by an attack that spoofs have, too."""
    size = len(attacks.words)
    of_both = np.bincount(attacks.codes[is_bonafide], minlength=size) > 0
    of_both &= np.bincount(attacks.codes[~is_bonafide], minlength=size) > 0
    wrong = of_both & (np.array(attacks.words) != NONE)
    rows = np.flatnonzero(wrong[attacks.codes] & is_bonafide)
    if len(rows):
        raise InputError(
            f"{path}: line {rows[0] + first}: {BONAFIDE} with the attack "
            f"{attacks.words[attacks.codes[rows[0]]]!r} of spoofs ({len(rows)} such "
            f"lines), expected {NONE} or {BONAFIDE}: are the columns in another order?"
        )


def _unique(path, names, first):
    """Names of recordings [N]; InputError names the line of one that comes again."""
    if any("." in word for word in names.words):
        words = list(map(utterance_id, names.words))
        number = {word: row for row, word in enumerate(dict.fromkeys(words))}
        codes = np.array([number[word] for word in words], dtype=np.int32)
        names = Words(list(number), codes[names.codes])
    if len(names.words) < len(names.codes):
        _, rows = np.unique(names.codes, return_index=True)
        again = np.setdiff1d(np.arange(len(names.codes)), rows)
        before = int(np.argmax(names.codes == names.codes[again[0]]))
        raise InputError(
            f"{path}: line {again[0] + first}: "
            f"{names.words[names.codes[again[0]]]!r} again, expected each recording "
            f"once (also in line {before + first}; {len(again)} such lines)"
        )
    return names.tolist()


def _named(column):
    """A column whose words for nothing are all ``-``."""
    words = list(
        dict.fromkeys(NONE if w.lower() in _ALSO_NONE else w for w in column.words)
    )
    number = {word: row for row, word in enumerate(words)}
    codes = [number.get(word, number.get(NONE)) for word in column.words]
    return Words(words, np.array(codes, dtype=np.int32)[column.codes])


def _first_line(path):
    return next(read_rows(path, f"{' '.join(KEY_HEADER)!r} or a protocol", 1))


def write_keys(path, keys):
    """Write Keys as the evaluation package of ASVspoof 5 reads them, atomically."""
    labels = np.where(keys.is_bonafide, BONAFIDE, SPOOF).tolist()
    _write(path, KEY_HEADER, "%s\t%s\n", keys.names, labels)


def write_scores(path, names, scores):
    """Write ``filename cm-score`` lines, with tabs and a header, atomically.

    Of names [N] and scores float [N], with as many digits as bring back the same float.
    InputError: scores of another shape, or not finite.
    """
    scores = _checked(path, names, scores)
    digits = 9 if scores.dtype == np.float32 else 17
    _write(path, SCORE_HEADER, f"%s\t%.{digits}g\n", names, scores.tolist())


def _write(path, header, line, *columns):
    rows = zip(*columns, strict=True)
    with write_atomically(path) as file:
        file.write("\t".join(header) + "\n")
        while part := list(itertools.islice(rows, _LINES_AT_ONCE)):
            file.writelines(map(line.__mod__, part))


def _checked(path, names, scores):
    """Scores as floats [N], or InputError that names the recording."""
    scores = np.asarray(scores)
    if scores.dtype.kind not in "fiu" or scores.shape != (len(names),):
        raise InputError(
            f"{path}: scores of type {scores.dtype} and shape {list(scores.shape)}, "
            f"expected real numbers [{len(names)}], one of each recording"
        )
    finite = np.isfinite(scores)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InputError(
            f"{path}: score {scores[row]} of {names[row]} ({int((~finite).sum())} "
            "such), expected finite numbers"
        )
    return scores if scores.dtype.kind == "f" else scores.astype(np.float64)


def read_scores(path):
    """Read a score file → names, list of str [N], and scores, float64 [N].

    With the header ``filename cm-score``, or as those of ASVspoof 2019 and 2021.
    InputError names file and line: missing or empty file, another number of columns, a
    score that is no finite number, a recording that comes twice.
    """
    first = _first_line(path)
    header = first[-1] == SCORE_HEADER[1] or first[0] == SCORE_HEADER[0]
    if len(first) not in _SCORES or (header and tuple(first) != SCORE_HEADER):
        raise InputError(
            f"{path}: line 1: {' '.join(first)!r}, expected "
            f"{' '.join(SCORE_HEADER)!r}, or {' or '.join(_SCORES.values())}"
        )
    width = len(first)
    columns = read_columns(path, _SCORES[width], width, width - 1, header)
    return _unique(path, Words(*columns[0]), 1 + header), columns[-1]


def scores_of(keys, names, scores, source="scores"):
    """Scores in the order of Keys, float [N].

    Arguments
    ---------
    keys : Keys
        N recordings.
    names : list of str
        [N], those that were scored, in any order.
    scores : array_like
        float [N].
    source : str or Path
        Where the scores are from, for messages.

    Raises
    ------
    InputError
        A recording that is not among the keys, or has no score, or two; a score that
        is not finite: names the first, and says how many.
    """
    scores = _checked(source, names, scores)
    if names == keys.names:
        return scores
    row_of = dict(zip(names, range(len(names))))
    if len(row_of) < len(names):
        again = next(name for row, name in enumerate(names) if row_of[name] != row)
        raise InputError(f"{source}: {again} has two scores, expected one")
    absent = [name for name in keys.names if name not in row_of]
    if absent:
        raise InputError(
            f"{source}: no score of {absent[0]} ({len(absent)} of {len(keys)} are "
            f"missing), expected one of each recording in {keys.path}"
        )
    if len(names) > len(keys):
        more = sorted(row_of.keys() - set(keys.names))
        raise InputError(
            f"{source}: {more[0]} is not in {keys.path} ({len(more)} such), expected "
            "scores of its recordings alone"
        )
    return scores[[row_of[name] for name in keys.names]]
