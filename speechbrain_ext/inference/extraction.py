"""Embeddings of files, and of the recordings of a manifest.

Both by the one engine (:mod:`speechbrain_ext.inference.engine`): a verifier decides
with the embeddings that an evaluation measured. Several processes share a manifest:
rank r takes every world-size-th job. Jobs are composed from the whole list, so that an
interrupted extraction, continued by however many processes, has the batches of an
unbroken one, and so its bits where every process computes alike: the same kind of CPU
or GPU, versions of libraries and number of threads. Elsewhere embeddings agree to some
1e-5 of their size.
"""

import logging
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.utils.distributed import ddp_broadcast, if_main_process
from tqdm import tqdm

from speechbrain_ext.data.audio import SAMPLE_RATE, parts_of
from speechbrain_ext.data.shards.members import is_member, parse_member
from speechbrain_ext.inference.audio_input import (
    ChunkingConfig,
    Recording,
    inspect_files,
)
from speechbrain_ext.inference.engine import Engine, encode, plan_jobs
from speechbrain_ext.inference.partial_results import PartialResults
from speechbrain_ext.inference.speech import SpeechDetector
from speechbrain_ext.scoring.embeddings import check_ids, check_suffix
from speechbrain_ext.utils.distributed import rank_and_world
from speechbrain_ext.utils.errors import InputError, NoSpeechError
from speechbrain_ext.utils.jobs import fingerprint, states_of

logger = logging.getLogger(__name__)

# Padded seconds of a batch. For a second of audio the small encoder takes 10.6 ms of a
# core where recordings of 1 s come alone, 5.8 ms for four in a batch; of 3 s 6.0 and
# 4.9 ms; of 10 s 5.8 ms alone and 7.0 ms in a batch.
CPU_BATCH_SECONDS, BATCH_SECONDS = 12.0, 120.0
# On a CPU speech is searched for in so many batches at once: the detector's recurrent
# steps take about as long for eight recordings as for one. Each thread has four turns
# at least, or they would not end together.
DETECTED_TOGETHER, TURNS = 8, 4


class Failure(NamedTuple):
    """A recording that was not embedded: its place in the list, its path, and why.

    Of one in memory ``path`` is what messages call it: ``recording 2 (array)``.
    """

    row: int
    path: str
    reason: str


class Embedded(NamedTuple):
    """``vectors`` float32 [N, E], ``seconds`` float64 [N]; NaN where there is none.

    Seconds are those that were embedded: of speech alone, where a detector was given.
    ``failures`` is a list of Failure in the order of the recordings, ``errors`` what
    each of them was.
    """

    vectors: np.ndarray
    seconds: np.ndarray
    failures: list
    errors: list

    def with_speech(self):
        """The same without recordings that hold no speech; a warning of each.

        Raises the first error of another kind; NoSpeechError where nothing is left;
        InputError where there was nothing.
        """
        if not len(self.vectors):
            raise InputError("no recordings to enrol from, expected at least one")
        for error in self.errors:
            if not isinstance(error, NoSpeechError):
                raise error
        if len(self.errors) == len(self.vectors):
            raise self.errors[0]
        for error in self.errors:
            logger.warning("%s: left out of %d recordings", error, len(self.vectors))
        heard = np.isfinite(self.seconds)
        return Embedded(self.vectors[heard], self.seconds[heard], [], [])


def embed_files(
    encode,
    width,
    sources,
    chunking,
    channel="mean",
    on_cpu=True,
    batch_size=64,
    max_batch_seconds=None,
    collect=False,
    progress=True,
    detector=None,
):
    """One embedding per recording, each different one being embedded once.

    On a CPU each of torch's threads has a batch of its own: long recordings gain
    nothing from a batch there, since the attention scores of one fill the cache and
    padding has to be masked; nor do two cores embed one recording in half the time.

    Arguments
    ---------
    encode : callable
        (wavs [B, T], wav_lens [B]) → tensor [B, 1, ``width``].
    sources : list of Source
        N recordings.
    channel : int or str
        As for :func:`~speechbrain_ext.inference.audio_input.inspect_file`.
    on_cpu : bool
        Whether ``encode`` computes there.
    batch_size, max_batch_seconds
        Of chunks and of padded audio in one batch, at most. As many batches as torch
        has threads, and two more, are held on a CPU, three else. None takes 12 s on a
        CPU and 120 s else.
    collect : bool
        Continue after a bad one, and list it; False raises its error.
    detector : SpeechDetector or None
        Where ``encode`` computes: speech alone is embedded. None embeds all.

    Returns
    -------
    Embedded
    """
    row_of, different = {}, []
    for source in sources:
        if row_of.setdefault(source.key, len(different)) == len(different):
            different.append(source)
    recordings = inspect_files(different, chunking.min_seconds, channel)
    errors = {}

    def fail(row, error):
        if not collect:
            raise error
        errors[row] = error

    for row, recording in enumerate(recordings):
        if isinstance(recording, InputError):
            fail(row, recording)
    good = np.array([r for r in range(len(different)) if r not in errors], dtype=int)
    seconds = np.full(len(different), np.nan)
    seconds[good] = [recordings[row].seconds for row in good]
    if max_batch_seconds is None:
        max_batch_seconds = CPU_BATCH_SECONDS if on_cpu else BATCH_SECONDS
    parallel, encode_seconds = torch.get_num_threads() if on_cpu else 1, None
    if detector is not None and on_cpu:
        encode_seconds = max_batch_seconds
        turn = np.nansum(seconds) / (TURNS * parallel)
        most = DETECTED_TOGETHER * max_batch_seconds
        max_batch_seconds = min(max(turn, max_batch_seconds), most)
    jobs = plan_jobs(seconds[good], chunking, max_batch_seconds, batch_size)
    engine = Engine(
        *(encode, recordings.__getitem__, chunking, max_batch_seconds, batch_size),
        encode_seconds=encode_seconds,
        parallel=parallel,
        detector=detector,
    )
    vectors = np.full((len(different), width), np.nan, dtype=np.float32)
    bar = _bar(seconds[good].sum(), hidden=None if progress else True)
    with bar, closing(engine.run([good[job] for job in jobs])) as results:
        for rows, embedded, failed in results:
            vectors[rows] = embedded
            for row, error in failed.items():
                fail(row, error)
            bar.update(seconds[[*rows, *failed]].sum())
    for row, spoken in engine.speech_seconds.items():
        seconds[row] = spoken
    rows = [row_of[source.key] for source in sources]
    seconds[list(errors)] = np.nan
    failures, reasons = [], []
    for place, (source, row) in enumerate(zip(sources, rows)):
        if row in errors:
            reasons.append(errors[row])
            reason = str(errors[row]).removeprefix(f"{different[row].name}: ")
            failures.append(Failure(place, source.name, reason))
    return Embedded(vectors[rows], seconds[rows], failures, reasons)


def extract_embeddings(
    model,
    manifest,
    device="cpu",
    max_batch_seconds=120.0,
    max_seconds=None,
    num_workers=0,
    precision=None,
    progress=True,
    parts=None,
    chunking=None,
    speech=None,
):
    """One embedding per recording of a manifest.

    Arguments
    ---------
    model : SpeakerEncoder
        (wavs [B, T], wav_lens [B]) → [B, 1, E]. Put into eval mode, and back.
    manifest : Manifest
        N recordings.
    device : str
        Where ``model`` is.
    max_batch_seconds : float
        Padded seconds in one batch: bounds the memory.
    max_seconds : float
        Longer recordings are cut to this much from their middle; None keeps all.
    num_workers : int
        Threads that read the next batches; 0 reads between batches.
    precision : torch.dtype
        Autocast type of the encoder; None computes in float32.
    progress : bool
        Show a bar.
    parts : PartialResults
        Where finished batches are kept; those that it has are not embedded again.
        None keeps all in the memory.
    chunking : ChunkingConfig or None
        Windows of long recordings; None: those of a model's folder without any. Its
        ``min_seconds`` is not used: a list decides what is in it, so the shortest
        recording is what the encoder takes.
    speech : SpeechConfig or None
        Embed speech alone, found so; None embeds recordings as they are.

    Returns
    -------
    np.ndarray
        [N, E] float32, in the manifest's order, the same on every rank. With
        ``parts`` on the main process only, None on the others.

    Raises
    ------
    InputError
        No recordings; one that cannot be read, is too short, silent, or gives no
        finite embedding. What was finished before it is in ``parts``.
    """
    if not len(manifest):
        raise InputError("no recordings to embed, expected at least one")
    if num_workers < 0:
        raise InputError(f"num_workers: {num_workers}, expected 0 or more")
    number = isinstance(max_seconds, (int, float)) and max_seconds > 0
    if max_seconds is not None and not number:
        raise InputError(f"max_seconds: {max_seconds}, expected a positive number")
    if speech is not None and max_seconds is not None:
        raise InputError(
            f"max_seconds: {max_seconds} with speech_detection, expected one of the two"
        )
    chunking = (chunking or ChunkingConfig())._replace(
        min_seconds=model.encoder.min_samples / SAMPLE_RATE
    )
    chunking = chunking.checked(model.encoder)
    store = _InMemory(len(manifest)) if parts is None else parts
    seconds = np.asarray(manifest.durations)
    if max_seconds is not None:
        seconds = seconds.clip(max=max_seconds)
    jobs = _own_share(plan_jobs(seconds, chunking, max_batch_seconds), store.done)
    engine = Engine(
        torch.no_grad()(partial(encode, model, device=device, precision=precision)),
        partial(_recording_of, manifest),
        *(chunking, max_batch_seconds),
        max_seconds=max_seconds,
        readers=num_workers,
        detector=None if speech is None else SpeechDetector(speech).to(device),
    )
    own, done = sum(seconds[job].sum() for job in jobs), seconds[store.done].sum()
    total = seconds.sum()
    bar = _bar(total, done, hidden=not (progress and if_main_process()))
    was_training = model.training
    model.eval()
    try:
        with bar, closing(engine.run(jobs)) as results:
            for rows, vectors, failed in results:
                for error in failed.values():
                    raise error
                spoken = [engine.speech_seconds.get(row) for row in rows.tolist()]
                store.add(rows, vectors, spoken)
                # the other ranks do as much in the same time
                bar.update(seconds[rows].sum() / own * (total - done))
    finally:
        model.train(was_training)
        store.save()
    return store.collect()


def embed_to_file(model, manifest, path, save_every=60.0, **options):
    """Embed a manifest into a file, continuing what an earlier run left unfinished.

    To be called on every rank, on a disk that all ranks share. While it runs, finished
    batches lie beside ``path``
    (:class:`~speechbrain_ext.inference.partial_results.PartialResults`). A file that
    the same model made from the same recordings is taken as it is; a recording whose
    size or time has changed is embedded anew.

    Arguments
    ---------
    model : SpeakerEncoder
        As for :func:`extract_embeddings`.
    manifest : Manifest
        N recordings.
    path : str or Path
        ``.npz`` or ``.safetensors``, for
        :func:`~speechbrain_ext.scoring.embeddings.load_embeddings`. With ``speech`` it
        has the seconds of speech, too, for
        :func:`~speechbrain_ext.scoring.embeddings.load_speech_seconds`.
    save_every : float
        Seconds between two savings: as much work may be lost.
    **options
        As for :func:`extract_embeddings`. ``max_seconds``, ``precision``, ``chunking``
        and ``speech`` must be those of the earlier run; everything else may change.

    Returns
    -------
    np.ndarray
        [N, E] float32 on the main process, None on the others.

    Raises
    ------
    InputError
        As :func:`extract_embeddings`; another suffix; an ID that the file cannot hold;
        a full disk.
    """
    check_suffix(Path(path))
    run, vectors, main = None, None, if_main_process()
    if main:
        check_ids(path, manifest.ids.tolist())
        names = ("max_seconds", "precision", "speech")
        settings = {name: options.get(name) for name in names}
        windows = (options.get("chunking") or ChunkingConfig())[1:]
        run = fingerprint(model, manifest, windows=windows, **settings)
        run = run, states_of(list(map(_files_of, manifest.paths.tolist())))
    run, states = ddp_broadcast(run)
    measured = options.get("speech") is not None
    parts = PartialResults(path, run, manifest.ids, save_every, states, measured)
    if main:
        vectors = parts.finished()
    if not ddp_broadcast(vectors is not None):
        vectors = extract_embeddings(model, manifest, parts=parts, **options)
        if main:
            parts.finish(vectors)
    if main:
        parts.remove()
    return vectors


def _files_of(path):
    """The files on the disk that a path of a manifest stands for."""
    files = [part.file for part in parts_of(path)]
    return [parse_member(f).shard if is_member(f) else f for f in files]


def _own_share(jobs, done):
    """This rank's share of the jobs, without recordings that are done."""
    remaining = [rest for job in jobs if len(rest := job[~done[job]])]
    rank, world = rank_and_world()
    return remaining[rank::world]


def _recording_of(manifest, row):
    """What a manifest says: its durations are those of 16 kHz."""
    frames = round(manifest.durations[row] * SAMPLE_RATE)
    return Recording(manifest.paths[row], frames)


def _bar(total, done=0.0, hidden=None):
    return tqdm(
        desc="embeddings",
        total=total * (1 + 1e-9),  # a sum of parts may be larger
        initial=done,
        disable=hidden,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio "
        "[{elapsed}<{remaining}]",
    )


class _InMemory:
    """Keeps in memory what PartialResults keeps on the disk; gathers it at the end."""

    def __init__(self, size):
        self.done = np.zeros(size, dtype=bool)
        self._rows, self._vectors = [], []

    def add(self, rows, vectors, seconds=None):
        self._rows.append(rows)
        self._vectors.append(vectors)

    def save(self):
        """Nothing: the memory ends with the process."""

    def collect(self):
        """[N, E] on every rank."""
        _, world = rank_and_world()
        shares = [(self._rows, self._vectors)]
        if world > 1:
            shares = [None] * world
            torch.distributed.all_gather_object(shares, (self._rows, self._vectors))
        rows = np.concatenate([row for share in shares for row in share[0]])
        vectors = np.concatenate([vector for share in shares for vector in share[1]])
        out = np.empty((len(self.done), vectors.shape[1]), dtype=np.float32)
        out[rows] = vectors
        return out
