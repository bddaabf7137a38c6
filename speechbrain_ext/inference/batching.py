"""Many files → embeddings: sorted by length, batched, read while others are computed.

    headers → pieces (windows of the long ones) → batches of like length
    a thread reads batch k + 1 and k + 2      while the model embeds batch k

What is held at a time are three batches and one embedding per file.
"""

import contextlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_ext.data.dataset import length_batches
from speechbrain_ext.errors import InputError
from speechbrain_ext.inference.recordings import (
    Recording,
    inspect_files,
    read_piece,
    warn_of_conversions,
)
from speechbrain_ext.inference.windows import Means, pieces_of

READERS = 2
AHEAD = 2  # batches that are read while one is computed


class Failure(NamedTuple):
    """A file that was not embedded: its place in the list, its path, and why."""

    row: int
    path: str
    reason: str


class Embedded(NamedTuple):
    """``vectors`` float32 [N, E], ``seconds`` float64 [N]; NaN where there is none.

    ``failures`` is a list of Failure in the order of the files.
    """

    vectors: np.ndarray
    seconds: np.ndarray
    failures: list


class Files:
    """The different files of a list, each to be read once, and what became of them.

    Arguments
    ---------
    paths : list of str
        Any number; several times the same is one file.
    min_seconds : float
        As for :func:`~speechbrain_ext.inference.recordings.inspect_files`.
    collect : bool
        Keep errors; False raises the first.
    """

    def __init__(self, paths, min_seconds, collect):
        self.paths, self.collect = paths, collect
        row_of = {path: row for row, path in enumerate(dict.fromkeys(paths))}
        self._rows = np.array([row_of[path] for path in paths], dtype=np.int64)
        self.recordings = inspect_files(list(row_of), min_seconds)
        self.errors = {}
        for row, found in enumerate(self.recordings):
            if isinstance(found, InputError):
                self.fail(row, found)

    def good(self):
        """(row, Recording) of those that have not failed."""
        return [(row, r) for row, r in enumerate(self.recordings) if not self.bad(row)]

    def bad(self, row):
        """Whether this one has failed."""
        return row in self.errors

    def fail(self, row, error):
        """Keep an error, or raise it."""
        if not self.collect:
            raise error
        self.errors.setdefault(row, error)

    def result(self, vectors):
        """Embeddings [U, E] of the different files → Embedded of the list."""
        seconds = np.array(
            [r.seconds if isinstance(r, Recording) else np.nan for r in self.recordings]
        )
        failed = list(self.errors)
        vectors[failed], seconds[failed] = np.nan, np.nan
        failures = [
            Failure(place, path, _reason(path, self.errors[row]))
            for place, (path, row) in enumerate(zip(self.paths, self._rows.tolist()))
            if self.bad(row)
        ]
        return Embedded(vectors[self._rows], seconds[self._rows], failures)


def embed_files(
    encode,
    width,
    paths,
    rules,
    batch_size=64,
    max_batch_seconds=120.0,
    collect=False,
    progress=True,
):
    """One embedding per file.

    Arguments
    ---------
    encode : callable
        (wavs [B, T], wav_lens [B]) → tensor [B, 1, E].
    width : int
        E.
    paths : list of str
        N files.
    rules : Rules
        Shortest recording, windows.
    batch_size : int
        Recordings (or windows) in one batch, at most.
    max_batch_seconds : float
        Padded seconds in one batch, at most: bounds the memory.
    collect : bool
        Go on after a bad file, and list it; False raises its error.
    progress : bool
        Show a bar on terminals.

    Returns
    -------
    Embedded

    Raises
    ------
    InputError
        A file that is missing, not sound, truncated, too short, silent, has samples
        that are not finite or an embedding that is not; a setting out of range.
    """
    files = Files(paths, rules.min_seconds, collect)
    good = files.good()
    warn_of_conversions([recording for _, recording in good])
    pieces = [piece for row, r in good for piece in pieces_of(row, r, rules)]
    seconds = np.array([piece.seconds for piece in pieces])
    batches = length_batches(seconds, max_batch_seconds, batch_size)
    means = Means(len(files.recordings), width)
    with _bar(seconds.sum(), progress) as bar:
        for batch, read in _read_ahead(files, pieces, batches):
            rows, wavs = _sorted_out(files, read)
            if rows:
                vectors = _encoded(encode, wavs)
                ok = _check_finite(files, rows, vectors)
                means.add(np.array(rows)[ok], vectors[ok])
            bar.update(seconds[batch].sum())
    for row in np.flatnonzero(~means.found()).tolist():
        if not files.bad(row):
            path = files.recordings[row].path
            files.fail(row, InputError(f"{path}: silent, expected speech"))
    return files.result(means.collect())


def _read_ahead(files, pieces, batches):
    """(batch, [(row, wav, None or error)]) of each batch, in order."""

    def read(batch):
        return [_read(files, pieces[number]) for number in batch]

    waiting, left = deque(), iter(batches)
    pool = ThreadPoolExecutor(READERS, "reader")
    try:
        for batch in left:
            waiting.append((batch, pool.submit(read, batch)))
            if len(waiting) > AHEAD:
                batch, future = waiting.popleft()
                yield batch, future.result()
        while waiting:
            batch, future = waiting.popleft()
            yield batch, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(files, piece):
    if files.bad(piece.row):
        return piece.row, None, None
    recording = files.recordings[piece.row]
    try:
        return piece.row, read_piece(recording, piece.start, piece.frames), None
    except InputError as error:
        return piece.row, None, error


def _sorted_out(files, read):
    """Rows and waveforms of what has sound; errors go to their files."""
    rows, wavs = [], []
    for row, wav, error in read:
        if error is not None:
            files.fail(row, error)
        elif wav is not None:
            rows.append(row)
            wavs.append(wav)
    return rows, wavs


def _encoded(encode, wavs):
    """Waveforms [T] → embeddings [B, E] on the CPU."""
    lengths = torch.tensor([len(wav) for wav in wavs])
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    with torch.no_grad():
        found = encode(padded, lengths / padded.shape[1])
    return found.squeeze(1).float().cpu().numpy()


def _check_finite(files, rows, vectors):
    finite = np.isfinite(vectors).all(axis=1)
    for row in np.array(rows)[~finite].tolist():
        path = files.recordings[row].path
        files.fail(row, InputError(f"{path}: its embedding is not finite"))
    return finite


def _reason(path, error):
    return str(error).removeprefix(f"{path}: ")


@contextlib.contextmanager
def _bar(total, progress):
    with tqdm(
        desc="embeddings",
        total=total,
        disable=None if progress else True,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio "
        "[{elapsed}<{remaining}]",
    ) as bar:
        yield bar
