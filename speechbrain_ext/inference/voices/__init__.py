"""Enrolled voices in one file: who is known, and by which embeddings.

    voices = Voices.load("voices.safetensors", verifier)
    voices.add("Zoë", ["monday.wav", "friday.wav"])
    voices.save("voices.safetensors")

A voice is the sum of its recordings' embeddings, in float64, and their number K, so
that recordings which are added later give the mean of all at once::

    s = Σ_k e_k    embedding = s / K

The file is one of safetensors: ``sums`` float64 [N, E], ``recordings`` int64 [N],
``seconds`` float64 [N], and in its metadata, under ``voices``, JSON with format,
version, fingerprint of the model and names. Embeddings of two models cannot be
compared, so the store of another model is refused.

A file is replaced by one rename. Whoever writes it holds a lock beside it
(``.NAME.lock``) and writes only over the file that it has read: two programs that add
voices at once do not lose one. Whoever holds the lock removes what a writer that was
killed has left (``.NAME.XXXXXXXX.tmp``).
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import safetensors.numpy

from speechbrain_ext.inference.verifier import SpeakerModel
from speechbrain_ext.scoring.backend import TrialSide
from speechbrain_ext.scoring.embeddings import (
    DAMAGE,
    LARGEST_NORM,
    SMALLEST_NORM,
    check_matrix,
    euclidean_norms,
)
from speechbrain_ext.utils.errors import InputError, describe_os_error, naming
from speechbrain_ext.utils.files import parse_json, write_atomically

WHAT = "a store of voices"
KEY = "voices"  # in the metadata
FORMAT, VERSION = "speechbrain_ext voices", 1
SCHEMA = {"format": FORMAT, "version": VERSION, "model": str, "names": [str]}
ARRAYS = {"sums": "f8", "recordings": "i8", "seconds": "f8"}
LOCK_SECONDS = 60  # a writer holds the lock for a fraction of one
JOINERS = "\u200c\u200d"  # without which Persian names and some emoji are others


class Voice(NamedTuple):
    """``sum`` of ``recordings`` embeddings, float64 [E]; ``seconds`` of audio."""

    sum: np.ndarray
    recordings: int
    seconds: float

    @property
    def embedding(self):
        """The mean, float32 [E], as ``SpeakerVerifier.enrol`` gives it."""
        return (self.sum / self.recordings).astype(np.float32)


class Voices:
    """Voices by name, of one model.

    ``len``, ``in`` and iteration over the names, in the order in which they were
    enrolled; ``voices[name]`` is a SpeakerModel, which ``compare`` takes.

    Arguments
    ---------
    verifier : SpeakerVerifier or None
        Whose embeddings they are. Without one, a store can be read, listed, and voices
        be removed.

    Attributes
    ----------
    model : str or None
        Fingerprint of the model.
    """

    def __init__(self, verifier=None):
        self._verifier = verifier
        self.model = None if verifier is None else verifier.fingerprint
        self._voices = {}
        self._files = {}  # path → SHA-256 of what was last read from or written to it
        self._prepared = None

    def __len__(self):
        return len(self._voices)

    def __iter__(self):
        return iter(self._voices)

    def __contains__(self, name):
        try:
            return checked_name(name) in self._voices
        except InputError:
            return False

    def __getitem__(self, name):
        voice = self._voices[self._known(name)]
        return SpeakerModel(voice.embedding, voice.seconds)

    @property
    def names(self):
        """Names [N]."""
        return list(self._voices)

    def describe(self):
        """N dictionaries: ``voice``, ``recordings``, ``seconds``."""
        return [
            {"voice": name, "recordings": v.recordings, "seconds": v.seconds}
            for name, v in self._voices.items()
        ]

    def add(self, name, recordings, **options):
        """Enrol a voice, or add recordings to one that is enrolled.

        A recording that is added twice counts twice.

        Arguments
        ---------
        name : str
            Any printable text; kept in Unicode's composed form (NFC), without white
            space around it.
        recordings : a recording or a list of them, or SpeakerModel
            As for ``SpeakerVerifier.enrol``, whose result counts as one recording.
            Those without speech are left out, with a warning.
        **options
            ``speech_detection`` and ``channel``, as for ``enrol``.

        Raises
        ------
        InputError
            As ``SpeakerVerifier.enrol``; another kind of name; a store without a
            verifier.
        """
        checked_name(name)  # before the work
        if isinstance(recordings, SpeakerModel):
            embedding, seconds = recordings
            self.add_embeddings(name, np.asarray(embedding)[None], [seconds])
            return
        if self._verifier is None:
            raise InputError("voices without a verifier, expected one to embed with")
        found = embed_recordings(self._verifier, recordings, **options)
        with naming(name):
            found = found.with_speech()
            self.add_embeddings(name, found.vectors, found.seconds)

    def add_embeddings(self, name, vectors, seconds):
        """As :meth:`add`, of embeddings by this model: [K, E], and their seconds [K].

        Raises
        ------
        InputError
            Another shape, or width than that of the other voices; a value that is not
            finite; a mean without direction; no embedding.
        """
        name, vectors = checked_name(name), check_matrix(vectors)
        seconds = np.atleast_1d(np.asarray(seconds, dtype=np.float64))
        if seconds.shape != vectors.shape[:1] or not len(vectors):
            raise InputError(
                f"embeddings of shape {list(vectors.shape)} and seconds of shape "
                f"{list(seconds.shape)}, expected [K, E] and [K], K at least 1"
            )
        before = self._voices.get(name)
        known = next(iter(self._voices.values()), None)
        if known is not None and len(known.sum) != vectors.shape[1]:
            raise InputError(
                f"embeddings of {vectors.shape[1]} values, expected {len(known.sum)} "
                "as those of the other voices"
            )
        sums = [] if before is None else [before.sum[None]]
        total = np.concatenate([*sums, vectors.astype(np.float64)]).sum(axis=0)
        voice = Voice(
            total,
            len(vectors) + (before.recordings if before else 0),
            float(seconds.sum() + (before.seconds if before else 0)),
        )
        _check_values([name], total[None], [voice.recordings], [voice.seconds])
        self._voices[name], self._prepared = voice, None

    def remove(self, name):
        """Forget a voice; InputError where it is not enrolled."""
        del self._voices[self._known(name)]
        self._prepared = None

    def prepared(self, backend, with_durations):
        """All voices as one side of trials: Prepared, made once for a back-end."""
        key = backend, with_durations
        if self._prepared is None or self._prepared[0] != key:
            vectors = np.array([voice.embedding for voice in self._voices.values()])
            seconds = np.array([voice.seconds for voice in self._voices.values()])
            side = TrialSide(vectors, seconds if with_durations else None)
            self._prepared = key, backend.prepare(side)
        return self._prepared[1]

    @classmethod
    def load(cls, path, verifier=None):
        """Read a store, checked in full.

        Arguments
        ---------
        path : str or Path
        verifier : SpeakerVerifier or None
            As for the class.

        Returns
        -------
        Voices

        Raises
        ------
        InputError
            Missing, damaged or foreign file; voices of another model.
        """
        voices = cls(verifier)
        content = _read(path)
        model, voices._voices = _parse(path, content)
        if verifier is not None:
            voices.check_model(model, path)
            width = next((len(v.sum) for v in voices._voices.values()), None)
            if width not in (None, verifier.embedding_size):
                raise InputError(
                    f"{path}: embeddings of {width} values, expected "
                    f"{verifier.embedding_size}, as {verifier.source} gives them"
                )
        voices.model = model
        voices._files[_place(path)] = hashlib.sha256(content).hexdigest()
        return voices

    def save(self, path):
        """Write the store, whole or not at all.

        Arguments
        ---------
        path : str or Path
            A new file, or the one that was read, unless it has changed since.

        Raises
        ------
        InputError
            Another program has written to the file since it was read here, or holds
            its lock: nothing is written, so that nobody's voices are lost.
        """
        with _locked(path):
            self._write(path)

    @classmethod
    @contextlib.contextmanager
    def edit(cls, path, verifier=None):
        """Lock a store, read it, and write it at the end of the block.

            with Voices.edit("voices.safetensors", verifier) as voices:
                voices.add("Zoë", "friday.wav")

        Where there is no such file a verifier begins one. An error in the block leaves
        the file as it was. Other programs wait: embed first what takes long.
        """
        with _locked(path):
            new = verifier is not None and not os.path.lexists(path)
            voices = cls(verifier) if new else cls.load(path, verifier)
            yield voices
            voices._write(path)

    def check_model(self, model, where=WHAT):
        """InputError unless these are voices of the model of this fingerprint."""
        if self.model != model:
            raise InputError(
                f"{where}: of another model ({(model or 'none')[:12]}), expected that "
                f"of {self._verifier.source if self._verifier else 'the voices'} "
                f"({(self.model or 'none')[:12]}): weights and windows must be the same"
            )

    def _known(self, name):
        found = checked_name(name)
        if found not in self._voices:
            raise InputError(
                f"no voice '{found}', expected one of {len(self)} that are enrolled"
                + (f": {', '.join(self.names[:5])}" if self._voices else "")
                + (", …" if len(self) > 5 else "")
            )
        return found

    def _write(self, path):
        """Replace the file, unless it is another than the one that was read."""
        there = None
        if os.path.lexists(path):
            there = hashlib.sha256(_read(path)).hexdigest()
        if there != self._files.get(_place(path)):
            raise InputError(
                f"{path}: changed since it was read here, by another program or "
                "another part of this one; expected the same file: read it again, or "
                "use Voices.edit"
            )
        if self.model is None:
            raise InputError(f"{path}: voices of no model, expected a verifier's")
        about = {"format": FORMAT, "version": VERSION, "model": self.model}
        metadata = {KEY: json.dumps({**about, "names": self.names})}
        voices = self._voices.values()
        width = len(next(iter(voices)).sum) if voices else 0
        arrays = {
            "sums": np.array([v.sum for v in voices]).reshape(len(voices), width),
            "recordings": np.array([v.recordings for v in voices], dtype=np.int64),
            "seconds": np.array([v.seconds for v in voices], dtype=np.float64),
        }
        content = safetensors.numpy.save(arrays, metadata)
        place = _place(path)
        _remove_leftovers(Path(place))
        with write_atomically(place, "wb") as file:
            if there is not None:  # voices that only their owner may read stay so
                shutil.copymode(place, file.name)
            file.write(content)
        self._files[place] = hashlib.sha256(content).hexdigest()


def embed_recordings(verifier, recordings, speech_detection=None, channel="mean"):
    """Recordings as they are embedded for a decision, in batches → Embedded."""
    options = speech_detection, channel
    return verifier._embed(recordings, verifier.chunking, *options, collect=True)


def checked_name(name):
    """A name as it is kept, in NFC; InputError for what is no printable text."""
    if not isinstance(name, str):
        raise InputError(f"name of a voice {name!r}, expected text")
    name = unicodedata.normalize("NFC", name).strip()
    bad = [c for c in name if not _is_printable(c)]
    if bad or not name:
        seen = f"with {bad[0]!r} in it" if bad else "without a letter"
        raise InputError(f"name of a voice {name!r} {seen}, expected printable text")
    return name


def _is_printable(letter):
    return (
        letter.isprintable()
        or letter in JOINERS
        or unicodedata.category(letter) == "Zs"  # the wide space of Japanese names
    )


def _place(path):
    return os.path.realpath(path)


@contextlib.contextmanager
def _locked(path):
    """Hold the lock of a file; it is given back when a process ends, however."""
    path = _checked_path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with filelock.FileLock(lock, timeout=LOCK_SECONDS):
            yield
    except filelock.Timeout as error:
        raise InputError(
            f"{path}: another program has held {lock.name} for {LOCK_SECONDS} s, "
            "expected it to finish"
        ) from error


def _remove_leftovers(path):
    """Temporary files of dead writers to ``path``: one that lives has the lock."""
    leftovers = f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"
    for leftover in path.parent.glob(leftovers):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _checked_path(path):
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"{path!r} is no path, expected that of {WHAT}")
    return Path(path)


def _read(path):
    """The bytes of a file; of a pipe or device they might have no end."""
    path = _checked_path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: no file, expected {WHAT}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{describe_os_error(error)}, expected {WHAT}") from error


def _parse(path, content):
    """Bytes of a store → fingerprint of the model, {name: Voice}."""
    try:
        arrays = safetensors.numpy.load(content)
        end = 8 + int.from_bytes(content[:8], "little")
        about = json.loads(content[8:end])["__metadata__"][KEY]
        columns = [arrays.pop(name) for name in ARRAYS]
    except KeyError as error:
        raise InputError(f"{path}: no {error.args[0]!r} in it, expected {WHAT}") from (
            error
        )
    except (*DAMAGE, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as {WHAT} ({error})") from error
    if arrays:
        raise InputError(f"{path}: {sorted(arrays)[0]!r} in it, expected {WHAT}")
    about = parse_json(about, path, SCHEMA, others=False, what=WHAT)
    names, (sums, recordings, seconds) = about["names"], columns
    for (name, kind), array in zip(ARRAYS.items(), columns):
        dimensions = 2 if name == "sums" else 1
        fits = array.ndim == dimensions and len(array) == len(names)
        if array.dtype != kind or not fits:
            raise InputError(
                f"{path}: {name} of type {array.dtype} and shape {list(array.shape)}, "
                f"expected {np.dtype(kind)} of {len(names)} voices"
            )
    with naming(path):
        for name in names:
            if checked_name(name) != name:
                raise InputError(f"name {name!r}, expected {checked_name(name)!r}")
        _check_values(names, sums, recordings, seconds)
        voices = map(Voice, sums, recordings.tolist(), seconds.tolist())
        found = dict(zip(names, voices))
        if len(found) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"voice '{twice}' twice, expected each once")
    return about["model"], found


def _check_values(names, sums, recordings, seconds):
    """InputError for a voice that could not be compared with anything."""
    recordings, seconds = np.asarray(recordings), np.asarray(seconds)
    with np.errstate(all="ignore"):
        norms = euclidean_norms(sums) / recordings
        wrong = {
            "recordings": ~(recordings > 0),
            "seconds": ~((seconds > 0) & (seconds < np.inf)),
            "norm of the embedding": ~(
                (norms > SMALLEST_NORM) & (norms < LARGEST_NORM)
            ),
        }
    for (what, bad), values in zip(wrong.items(), (recordings, seconds, norms)):
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"voice '{names[row]}': {what} {values[row]:g}, expected a finite "
                "number above 0"
            )
