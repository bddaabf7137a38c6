"""The page's enrolled voices: in a file, or in memory while the server runs."""

import threading
from contextlib import contextmanager
from pathlib import Path

from speechbrain_ext.inference.voices import Voices
from speechbrain_ext.utils.errors import InputError

LONGEST_NAME = 80  # letters: names come from strangers


class Store:
    """Voices of one model, for several visitors at once.

    Arguments
    ---------
    verifier : SpeakerVerifier
    path : str, Path or None
        A file of ``enrol``, which other programs may change meanwhile; it is begun
        where there is none. None: memory.
    """

    def __init__(self, verifier, path=None):
        self.verifier = verifier
        # as errors name it, in which the page replaces it
        self.path = None if path is None else Path(path).resolve()
        self._lock, self._voices = threading.Lock(), Voices(verifier)
        if self.path is not None and self.path.exists():
            Voices.load(self.path, verifier)  # what does not fit is told at the start

    def read(self):
        """The voices of this moment."""
        if self.path is None or not self.path.exists():
            return self._voices
        return Voices.load(self.path, self.verifier)

    def add(self, name, speaker):
        """Enrol a SpeakerModel, or add it to a voice of this name."""
        name = (name or "").strip()
        if not name:
            raise InputError("no name, expected that of the voice")
        if len(name) > LONGEST_NAME:
            raise InputError(
                f"a name of {len(name)} letters, expected {LONGEST_NAME} at most"
            )
        with self._changed() as voices:
            voices.add(name, speaker)

    def remove(self, name):
        """Forget a voice."""
        with self._changed() as voices:
            voices.remove(name)

    @contextmanager
    def _changed(self):
        with self._lock:
            if self.path is None:
                yield self._voices
            else:
                with Voices.edit(self.path, self.verifier) as voices:
                    yield voices
