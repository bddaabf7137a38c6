"""Many files → embeddings: sorted by length, batched, several batches at a time.

    headers → pieces (windows of the long ones) → batches of like length
    on a CPU    every core reads and embeds batches of its own
    on a GPU    threads read the next batches while it embeds one

Long recordings gain nothing from a batch on a CPU: the attention scores of one fill the
cache, and padding has to be masked. Nor do two cores embed one recording in half the
time, but they embed two. So batches are small there, and each has a thread of its own.
"""

import contextlib
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_ext.data.dataset import length_batches
from speechbrain_ext.inference.audio_input import (
    Means,
    Recording,
    inspect_files,
    pieces_of,
    read_piece,
    warn_of_conversions,
)
from speechbrain_ext.utils.errors import InputError

AHEAD = 2  # batches that are read while others are computed
# Padded seconds of a batch. For a second of audio the small encoder takes 10.6 ms of a
# core where recordings of 1 s come alone, 5.8 ms for four in a batch; of 3 s 6.0 and
# 4.9 ms; of 10 s 5.8 ms alone and 7.0 ms in a batch.
CPU_BATCH_SECONDS, BATCH_SECONDS = 12.0, 120.0


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
        As for :func:`~speechbrain_ext.inference.audio_input.inspect_files`.
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
    on_cpu=True,
    batch_size=64,
    max_batch_seconds=None,
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
    on_cpu : bool
        Whether ``encode`` computes there.
    batch_size : int
        Recordings (or windows) in one batch, at most.
    max_batch_seconds : float or None
        Padded seconds in one batch, at most: bounds the memory. As many batches as
        torch has threads, and two more, are held on a CPU, three else. None takes 12 s
        on a CPU and 120 s else.
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
    if max_batch_seconds is None:
        max_batch_seconds = CPU_BATCH_SECONDS if on_cpu else BATCH_SECONDS
    batches = length_batches(seconds, max_batch_seconds, batch_size)
    means = Means(len(files.recordings), width)

    def embed(batch, turn):
        return _embed([pieces[number] for number in batch], files, encode, turn)

    work = _in_parallel(embed, batches, on_cpu)
    with contextlib.closing(work), _bar(seconds.sum(), progress) as bar:
        for batch, (rows, vectors, errors) in work:
            for row, error in errors:
                files.fail(row, error)
            means.add(rows, vectors)
            bar.update(seconds[batch].sum())
    for row in np.flatnonzero(~means.found()).tolist():
        if not files.bad(row):
            path = files.recordings[row].path
            files.fail(row, InputError(f"{path}: silent, expected speech"))
    return files.result(means.collect())


def _in_parallel(embed, batches, on_cpu):
    """(batch, what it gives) in order; ``embed`` takes it and a lock to compute in.

    On a CPU the threads that torch has for one operation are dealt out to batches.
    """
    threads = torch.get_num_threads()
    at_a_time = max(1, min(threads, len(batches))) if on_cpu else 1
    if len(batches) < 2:
        yield from ((batch, embed(batch, threading.Lock())) for batch in batches)
        return
    turn = threading.Semaphore(at_a_time)
    waiting = deque()
    pool = ThreadPoolExecutor(
        at_a_time + AHEAD,
        initializer=torch.set_num_threads,  # of the thread that calls it
        initargs=[threads // at_a_time],
    )
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(embed, batch, turn)))
            if len(waiting) >= at_a_time + AHEAD:
                batch, future = waiting.popleft()
                yield batch, future.result()
        while waiting:
            batch, future = waiting.popleft()
            yield batch, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what threads that begin later will have


def _embed(pieces, files, encode, turn):
    """Read and embed one batch → rows [b], vectors [b, E], [(row, error)]."""
    rows, wavs, errors = [], [], []
    for piece in pieces:
        if files.bad(piece.row):
            continue
        recording = files.recordings[piece.row]
        try:
            wav = read_piece(recording, piece.start, piece.frames)
        except InputError as error:
            errors.append((piece.row, error))
            continue
        if wav is not None:
            rows.append(piece.row)
            wavs.append(wav)
    if not rows:
        return np.empty(0, dtype=np.int64), np.empty((0, 1), dtype=np.float32), errors
    with turn:
        vectors = _encoded(encode, wavs)
    rows, finite = np.array(rows), np.isfinite(vectors).all(axis=1)
    for row in rows[~finite].tolist():
        path = files.recordings[row].path
        errors.append((row, InputError(f"{path}: its embedding is not finite")))
    return rows[finite], vectors[finite], errors


def _encoded(encode, wavs):
    """Waveforms [T] → embeddings [B, E] on the CPU."""
    lengths = torch.tensor([len(wav) for wav in wavs])
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    with torch.inference_mode():  # 8 % faster than no_grad
        found = encode(padded, lengths / padded.shape[1])
    return found.squeeze(1).float().cpu().numpy()


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
