"""Several recordings as one: written to a file, or joined in a row of a manifest.

Enrolment by concatenating (:func:`concatenate_enrolment`) writes a model's recordings
to one file. Its name holds a hash of their paths, sizes and times, and it appears by a
rename. So a file that exists is whole and is of the right recordings: a run that was
stopped continues, and a change of the map or of a recording makes another file.
Every sample stays as it is. Where all of them are multiples of 1/32768, as in wav and
flac of 16 bits, the file has 16 bits; otherwise 32 bit floats.

Short utterances are joined to long ones (:func:`join_short`) without a copy: a row of a
manifest may stand for several recordings (:mod:`speechbrain_ext.data.audio`). Its ID is
that of the first of them and how many follow: ``id10001/interview-01-001+1``. In the
order of the manifest one recording is added to the next until they last long enough,
first within a session; what remains of a session goes to its last row. Sessions that
are too short as a whole are joined to each other, within one group (CN-Celeb: speaker
and genre). No row holds two speakers, and only a group that is too short as a whole
leaves a short row.
"""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_ext.data.audio import SAMPLE_RATE, joined_path, read_audio, read_header
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.scoring.enrolment import speaker_of
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

_FULL_SCALE = 32768


def concatenate_enrolment(enrol_map, manifest, folder, num_workers=4):
    """Write one recording per model, ``folder/MODEL-HASH.wav``: its own, joined.

    → Manifest of the map's M models: names, files, durations. The speaker is that of
    the recordings in ``manifest`` or, where these are of several, the one that the
    model's name tells. InputError: a recording of the map that is not in ``manifest``
    (map, line, utterance), cannot be read, is empty or not 16 kHz mono (its path); a
    model whose name leads out of the folder.
    """
    rows = enrol_map.rows(manifest.ids, "the manifest")
    models = enrol_map.models.tolist()
    _check_names(enrol_map.path, models)
    sources = [manifest.paths[r].tolist() for r in rows]
    jobs = [
        (paths, Path(folder, f"{model}-{_hash(paths)}.wav"))
        for model, paths in zip(models, sources)
    ]
    is_new = parallel_map(
        _concatenate, jobs, num_workers, "concatenating", "model", chunk=1
    )
    logger.info(
        "%s: %d models concatenated in %s, %d of them before",
        enrol_map.path,
        len(models),
        folder,
        len(models) - sum(is_new),
    )
    files = [str(file) for _, file in jobs]
    seconds = [read_header(file).frames / SAMPLE_RATE for file in files]
    by_id = dict(zip(manifest.ids.tolist(), manifest.speakers.tolist()))
    speakers = enrol_map.speakers(by_id)
    named = [speakers.get(model) or speaker_of(model) for model in models]
    return Manifest(models, files, seconds, named)


def _check_names(path, models):
    for line, model in enumerate(models, 1):
        if {"", ".", ".."}.intersection(model.split("/")):
            raise InputError(
                f"{path}: line {line}: model '{model}', expected a name that can be a "
                "file's: its recordings are joined into MODEL-HASH.wav"
            )


def _hash(paths):
    """Eight hexadecimal digits of what the recordings are."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            state = os.stat(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}, expected sound") from error
        digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:8]


def _concatenate(job):
    """Write one file, or find it there → whether it was made now."""
    paths, file = job
    if file.is_file():
        return False
    wav = np.concatenate([read_audio(path) for path in paths])  # [T]
    subtype = "FLOAT"
    scaled = wav * np.float32(_FULL_SCALE)  # exact: a power of two
    in_range = scaled.min() >= -_FULL_SCALE and scaled.max() < _FULL_SCALE
    if in_range and np.array_equal(scaled, np.rint(scaled)):
        wav, subtype = scaled.astype(np.int16), "PCM_16"
    with write_atomically(file, "wb") as beside:
        soundfile.write(beside, wav, SAMPLE_RATE, subtype, format="WAV")
    return True


def join_short(manifest, sessions, groups, shortest):
    """Join recordings into rows of ``shortest`` seconds, where there is as much.

    Of N recordings with their sessions and groups: those of one session are joined
    first, beyond only those of one group. → Manifest of M <= N rows; every sample of
    every recording stands in one of them. InputError: a path with ``|`` in it.
    """
    frames = np.round(manifest.durations * SAMPLE_RATE).astype(np.int64).tolist()
    by_group = {}
    keys = zip(manifest.speakers.tolist(), groups, sessions)
    for row, (speaker, group, session) in enumerate(keys):
        of_group = by_group.setdefault((speaker, group), {})
        of_group.setdefault(session, []).append(row)
    least = shortest * SAMPLE_RATE
    rows = [r for g in by_group.values() for r in _join_group(g, frames, least)]
    return _joined_manifest(manifest, sorted(rows), frames)


def pack(rows, frames, least):
    """Rows → lists of ``least`` samples or more, and the rows that remain."""
    whole, rest, total = [], [], 0
    for row in rows:
        rest.append(row)
        total += frames[row]
        if total >= least:
            whole.append(rest)
            rest, total = [], 0
    return whole, rest


def _join_group(sessions, frames, least):
    """Session → rows, of one speaker and group → lists of rows to be joined."""
    joined, left = [], []
    for rows in sessions.values():
        whole, rest = pack(rows, frames, least)
        if whole:
            whole[-1] += rest
        else:
            left += rest
        joined += whole
    whole, rest = pack(left, frames, least)
    joined += whole
    if rest and joined:
        joined[-1] += rest
    elif rest:
        joined.append(rest)
    return joined


def _joined_manifest(manifest, lists, frames):
    ids, paths = manifest.ids.tolist(), manifest.paths.tolist()
    speakers = manifest.speakers.tolist()
    columns = [], [], [], []
    for rows in lists:
        first, lengths = rows[0], [frames[row] for row in rows]
        one = len(rows) == 1
        name = ids[first] if one else f"{ids[first]}+{len(rows) - 1}"
        path = paths[first] if one else joined_path([paths[r] for r in rows], lengths)
        seconds = sum(lengths) / SAMPLE_RATE
        for column, value in zip(columns, (name, path, seconds, speakers[first])):
            column.append(value)
    firsts = [rows[0] for rows in lists]
    extra = {name: column[firsts] for name, column in manifest.extra.items()}
    return Manifest(*columns, extra=extra)
