"""Enrolment by concatenating: each model's recordings joined into one.

A file's name holds a hash of the paths, sizes and times of the recordings that it was
made of, and it is written beside and renamed. So a file that exists is whole and is of
the right recordings: a run that was stopped goes on where it was, and a change of the
map or of a recording makes another file.

Every sample stays as it is. Where all of them are multiples of 1/32768, as in wav and
flac of 16 bits, the file has 16 bits; otherwise 32 bit floats.
"""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_ext.data.audio import SAMPLE_RATE, read_audio, read_header
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.data.parallel import parallel_map
from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_atomically
from speechbrain_ext.scoring.speakers import speaker_of

logger = logging.getLogger(__name__)

_FULL_SCALE = 32768


def concatenate_enrolment(enrol_map, manifest, folder, num_workers=4):
    """Write one recording per model: its recordings, one after the other.

    Arguments
    ---------
    enrol_map : EnrolMap
        M models.
    manifest : Manifest
        Where the recordings of the map are.
    folder : str or Path
        Where ``MODEL-HASH.wav`` go, 16 kHz mono.
    num_workers : int
        Threads; each holds the recordings of one model.

    Returns
    -------
    Manifest
        M rows in the order of the map: the models' names, files and durations. The
        speaker is that of the recordings or, where these are of several, the one that
        the model's name tells.

    Raises
    ------
    InputError
        A recording of the map that is not in ``manifest`` (map, line, utterance) or
        that cannot be read, is empty or not 16 kHz mono (its path); a model whose name
        leads out of the folder.
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
