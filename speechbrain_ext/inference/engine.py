"""The one engine of verifier, verification and training: recordings → embeddings.

    recordings → jobs, the longest first → chunks → padded batches → embeddings

A job is finished at once. It has recordings of like length in one batch, or recordings
longer than the window, whose embedding is the mean of those of their K windows::

    e = 1/K Σ_k e_k

The windows' embeddings are not scaled to length 1 first. The magnitude of an embedding
tells how sure the model is, as a rule: a window of little speech counts less, and the
mean keeps a magnitude that the calibration knows. Enrolment averages recordings in the
same way (:func:`~speechbrain_ext.scoring.enrolment.average_enrolment`). Windows without
any sound are left out. A recording of one window or less is embedded whole.

With speech detection (:mod:`speechbrain_ext.inference.speech`) "recording" means its
speech: one of a window or less is read once, then its speech is cut out; in a longer
one the speech is found first, and the windows are cut from that.
"""

import contextlib
import itertools
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.data.dataset import length_batches
from speechbrain_ext.inference.audio_input import (
    SILENT,
    chunks_of,
    read_chunk,
    warn_of_conversions,
)
from speechbrain_ext.inference.onnx_runner import lack_of_speech
from speechbrain_ext.inference.speech import check_speech
from speechbrain_ext.utils.errors import InputError, NoSpeechError
from speechbrain_ext.utils.precision import valid_counts

AHEAD = 2  # batches that are read while others are computed
SAMPLES = 16 * 320  # 16 frames of most encoders


def encode(model, wavs, wav_lens, device, precision=None):
    """wavs [B, T] at 16 kHz, wav_lens [B] → float32 [B, 1, E] on the model's device.

    The encoder computes under autocast to ``precision``, if any, the head in float32.
    """
    if torch.device(device).type == "cuda":
        wavs, wav_lens = lengthened(wavs, wav_lens, model.encoder.max_samples)
    wavs, wav_lens = wavs.to(device), wav_lens.to(device)
    if precision is None:
        return model(wavs, wav_lens)
    with torch.autocast(torch.device(device).type, precision):
        states, lens = model.encoder(wavs, wav_lens)
    return model.head([state.float() for state in states], lens)


def lengthened(wavs, wav_lens, most=None):
    """A batch [B, T] and its lengths [B] with T up to a multiple of ``SAMPLES``.

    ``most`` bounds T; None does not. A GPU's libraries plan every shape that they have
    not met: a thousand of those in VoxCeleb1, or one in seven of them.
    """
    samples = wavs.shape[1]
    total = -(-samples // SAMPLES) * SAMPLES
    total = max(samples, min(total, most or total))
    counts = valid_counts(wav_lens, samples)
    wavs = torch.nn.functional.pad(wavs, (0, total - samples))
    return wavs, counts.double() / total


def plan_jobs(seconds, chunking, max_batch_seconds, batch_size=256):
    """Lengths [N] → jobs: arrays of row numbers, the longest recordings first.

    A batch has at most ``batch_size`` chunks and ``max_batch_seconds`` with padding; a
    longer chunk is a batch of its own.
    """
    window, hop = chunking.window_seconds, chunking.hop_seconds
    long = seconds > window
    rows, jobs = np.flatnonzero(long), []
    if len(rows):
        windows = 1 + np.ceil((seconds[rows] - window) / hop)
        groups = length_batches(windows * window, max_batch_seconds, batch_size)
        jobs = [rows[group] for group in groups]
    batches = length_batches(seconds, max_batch_seconds, batch_size)
    return jobs + [rest for batch in batches if len(rest := batch[~long[batch]])]


def _keep_loudest(converted, row, recording):
    """Of the windows of a recording, which differ by their peak alone."""
    known = converted.setdefault(row, recording)
    if (recording.peak or 0) > (known.peak or 0):
        converted[row] = recording


class _ReadBatch(NamedTuple):
    """What was read of a batch.

    ``rows`` and ``wavs`` [T] of its chunks that have sound; ``errors`` {row: error};
    ``converted`` {row: Recording} of those that do not fit;
    ``is_speech``: whether there is nothing else in ``wavs``.
    """

    rows: list
    wavs: list
    errors: dict
    converted: dict
    is_speech: bool


class Engine:
    """Runs jobs: reads their chunks, embeds them in batches, averages windows.

    Arguments
    ---------
    encode : callable
        (wavs [B, T], wav_lens [B]) → tensor [B, 1, E].
    recording_of : callable
        Row number → Recording.
    chunking : ChunkingConfig
    max_batch_seconds, batch_size
        As for :func:`plan_jobs`.
    encode_seconds : float or None
        Of padded audio that is embedded at once, where that is less than what is read
        and searched for speech at once; None: the same.
    max_seconds : float or None
        Longer recordings are cut to this much from their middle.
    parallel : int
        Threads that compute a batch each, with its share of torch's threads, while two
        more read; 1 computes in the caller's thread.
    readers : int
        Threads that read ahead where ``parallel`` is 1; 0 reads between batches.
    detector : SpeechDetector or None
        On the model's device; None embeds recordings as they are.

    Attributes
    ----------
    speech_seconds : dict of int to float
        Row → seconds of speech; with a detector only.
    """

    def __init__(
        self,
        encode,
        recording_of,
        chunking,
        max_batch_seconds,
        batch_size=256,
        encode_seconds=None,
        max_seconds=None,
        parallel=1,
        readers=AHEAD,
        detector=None,
    ):
        self.encode, self.recording_of, self.chunking = encode, recording_of, chunking
        self.max_batch_seconds, self.batch_size = max_batch_seconds, batch_size
        self.encode_seconds = encode_seconds
        self.max_seconds, self.parallel, self.readers = max_seconds, parallel, readers
        self.detector, self.speech_seconds, self._refused = detector, {}, {}

    def run(self, jobs):
        """Yield (rows [n], vectors [n, E], {row: InputError}) of each job, in order.

        Each row of a job is either in ``rows`` or has an error. At the end there is
        one warning of all conversions.
        """
        converted, windows, errors = {}, {}, {}
        with contextlib.closing(self._results(jobs)) as results:
            for job, is_last, (batch, vectors) in results:
                errors = {**batch.errors, **errors}
                for row, found in batch.converted.items():
                    _keep_loudest(converted, row, found)
                for row, vector in zip(batch.rows, vectors, strict=True):
                    windows.setdefault(row, []).append(vector)
                if is_last:
                    yield self._finish(job, windows, errors)
                    windows, errors = {}, {}
        warn_of_conversions(
            [converted[row] for row in sorted(converted)], sum(map(len, jobs))
        )

    def _batches(self, jobs):
        """(job, whether this is its last batch, chunks of the batch) of all jobs."""
        for job in jobs:
            chunks = []
            for row in job.tolist():
                chunks += self._chunks(row)
            longest = max((chunk.seconds for chunk in chunks), default=1.0)
            size = max(int(min(self.max_batch_seconds / longest, self.batch_size)), 1)
            for start in range(0, max(len(chunks), 1), size):
                yield job, start + size >= len(chunks), chunks[start : start + size]

    def _chunks(self, row):
        """What is read of a recording; nothing where its speech was not found."""
        recording = self.recording_of(row)
        if self.detector is None or recording.seconds <= self.chunking.window_seconds:
            return chunks_of(row, recording, self.chunking, self.max_seconds)
        try:
            found = self.detector.windows_of_speech(row, recording, self.chunking)
        except InputError as error:
            self._refused[row] = error
            return []
        chunks, self.speech_seconds[row] = found
        return chunks

    def _finish(self, job, windows, errors):
        """The mean of the windows of each recording, and what is wrong with others."""
        means = {}
        for row in job.tolist():
            if row in self._refused:
                errors[row] = self._refused.pop(row)
            elif row not in windows:
                errors.setdefault(row, self._silence(row))
            elif not np.isfinite(windows[row]).all():
                errors.setdefault(row, self._error(row, "its embedding is not finite"))
            if row not in errors:
                total = np.sum(windows[row], axis=0)
                means[row] = total / np.float32(len(windows[row]))
        vectors = np.array([*means.values()], dtype=np.float32)
        return (
            np.array([*means], dtype=np.int64),
            vectors.reshape(len(means), -1 if means else 1),
            errors,
        )

    def _silence(self, row):
        """The error of a recording without any sound."""
        if self.detector is None:
            return self._error(row, SILENT)
        return NoSpeechError(f"{self.recording_of(row).path}: {lack_of_speech(0)}")

    def _error(self, row, text):
        return InputError(f"{self.recording_of(row).path}: {text}")

    def _results(self, jobs):
        """(job, whether this is its last batch, what was computed) in order."""
        batches = self._batches(jobs)
        first = list(itertools.islice(batches, max(self.parallel, 2)))
        batches = itertools.chain(first, batches)
        parallel = min(self.parallel, len(first))
        readers = self.readers if self.parallel == 1 else AHEAD
        if len(first) < 2 or parallel + readers == 1:
            for job, is_last, chunks in batches:
                yield job, is_last, self._compute(self._read(chunks))
            return
        threads, turn = torch.get_num_threads(), threading.Semaphore(parallel)

        def read_and_compute(chunks):
            batch = self._read(chunks)
            with turn:
                return self._compute(batch)

        if parallel > 1:
            work, finish = read_and_compute, lambda result: result
            share = torch.set_num_threads, [threads // parallel]  # of the pool's thread
            pool = ThreadPoolExecutor(parallel + AHEAD, "", *share)
        else:
            work, finish = self._read, self._compute
            pool = ThreadPoolExecutor(readers)
        waiting = deque()
        try:
            for job, is_last, chunks in batches:
                waiting.append((job, is_last, pool.submit(work, chunks)))
                if len(waiting) >= parallel + readers:
                    job, is_last, future = waiting.popleft()
                    yield job, is_last, finish(future.result())
            for job, is_last, future in waiting:
                yield job, is_last, finish(future.result())
        finally:
            pool.shutdown(cancel_futures=True)
            if parallel > 1:
                torch.set_num_threads(threads)  # of threads that begin later

    def _read(self, chunks):
        batch = _ReadBatch([], [], {}, {}, any(chunk.pieces for chunk in chunks))
        for chunk in chunks:
            if chunk.row in batch.errors:
                continue
            recording = self.recording_of(chunk.row)
            try:
                wav, found = read_chunk(recording, chunk, self.chunking.min_seconds)
            except InputError as error:
                batch.errors[chunk.row] = error
                continue
            if not found.fits:
                _keep_loudest(batch.converted, chunk.row, found)
            if wav is not None:
                batch.rows.append(chunk.row)
                batch.wavs.append(wav)
        return batch

    def _compute(self, batch):
        """Waveforms [T] → embeddings [B, E] on the CPU."""
        if self.detector is not None and batch.wavs and not batch.is_speech:
            batch = self._cut_to_speech(batch)
        if not batch.wavs:
            return batch, ()
        if self.encode_seconds is None:
            return batch, self._encode(batch.wavs)
        seconds = np.array([len(wav) / SAMPLE_RATE for wav in batch.wavs])
        groups = length_batches(seconds, self.encode_seconds, self.batch_size)
        found = [self._encode([batch.wavs[place] for place in g]) for g in groups]
        return batch, np.concatenate(found)[np.argsort(np.concatenate(groups))]

    def _encode(self, wavs):
        """Waveforms [T] of one batch → embeddings [B, E] on the CPU."""
        lengths = torch.tensor([len(wav) for wav in wavs])
        padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        vectors = self.encode(padded, lengths / padded.shape[1])
        return vectors.squeeze(1).float().cpu().numpy()

    def _cut_to_speech(self, batch):
        """Whole recordings → their speech, where they have enough."""
        rows, wavs = [], []
        for row, wav in zip(batch.rows, self.detector.trimmed(batch.wavs)):
            seconds, path = len(wav) / SAMPLE_RATE, self.recording_of(row).path
            try:
                check_speech(path, seconds, self.chunking.min_seconds)
            except NoSpeechError as error:
                batch.errors[row] = error
            else:
                self.speech_seconds[row] = seconds
                rows.append(row)
                wavs.append(wav)
        return batch._replace(rows=rows, wavs=wavs)
