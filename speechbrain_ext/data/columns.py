"""Columns of text that take four bytes a row, whatever the length of the text.

    text[i] = names[codes[i]]                     EncodedText
    text[i] = heads[i] + tails[i]                 JoinedText

Ten million paths differ in few ways: two million folders, a few hundred file names.
Kept as two numbers each they take 80 MB where Python's strings take 1 GB. The numbers
and the names may lie in a memory-mapped file: then all processes of a machine read the
same pages, and nothing in them changes when a process looks.
"""

import numpy as np

TEXT = np.dtypes.StringDType()
_ROWS_AT_ONCE = 1_000_000


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
        for start in range(0, len(self), _ROWS_AT_ONCE):  # indices become int64
            used[self.codes[start : start + _ROWS_AT_ONCE]] = True
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
