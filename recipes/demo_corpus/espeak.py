"""Speech from espeak-ng, bit for bit the same from run to run.

espeak-ng is a formant synthesiser: a voice is a table of formant shifts, pitch and
breath ("variant") laid over the phonemes of an accent. The shared library and its data
come with the wheel ``espeakng-loader``. espeak-ng is GPL-3, so that wheel is an
optional extra, and nothing here imports it before speech is asked for.

The library keeps state in static variables which outlive ``espeak_Terminate`` (the
phase of the flutter, the echo buffer, its random numbers): the same sentence in the
same voice sounds different after another one. Each :class:`Synthesiser` therefore
loads a private copy of the library, whose statics are fresh.

Interface: espeak-ng 1.52, ``speak_lib.h``.
"""

import contextlib
import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.utils.errors import InputError, how_to_install

ESPEAK_RATE = 22050  # Hz, the only rate of espeak-ng's own voices

_SYNCHRONOUS = 2  # espeak_Synth returns when all samples have been handed over
_DO_NOT_EXIT = 0x8000  # report missing data; the default ends the process
_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_QUIET = 30  # per cent; loud variants clip inside espeak-ng at its default of 100


class Voice(NamedTuple):
    """How one speaker sounds.

    accent : language of espeak-ng, for example ``"en-us"``
    variant : name of a file in its folder ``voices/!v``, for example ``"f2"``
    pitch, pitch_range : 0 to 100, where 50 is what the variant itself asks for
    words_per_minute : 80 to 450
    """

    accent: str
    variant: str
    pitch: int = 50
    pitch_range: int = 50
    words_per_minute: int = 165


def import_loader():
    """Import ``espeakng_loader``, or say what to install.

    Returns
    -------
    module

    Raises
    ------
    InputError
        Where the optional extra is not installed.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError(
            "espeakng_loader: not installed, expected for the synthetic voices of the "
            f"demonstration corpus: {how_to_install('demo')} (it carries espeak-ng, "
            "which is GPL-3)"
        ) from error
    return espeakng_loader


class Synthesiser:
    """One copy of espeak-ng with a state of its own.

    How it speaks depends on the seed and on what it has said before, and on nothing
    else in the process. Use it in a ``with`` block. Loading takes 10 ms; about 1 MB of
    library stays in memory until the process ends.

    Arguments
    ---------
    seed : int
        Seed of espeak-ng's random numbers (breath noise), 0 to 2^31 - 1.

    Raises
    ------
    InputError
        Where the optional extra is missing or the library does not load.
    """

    def __init__(self, seed=0):
        loader = import_loader()
        self._data = Path(loader.get_data_path())
        self._chunks = []
        # ctypes does not keep the callback alive: this attribute does.
        self._callback = _CALLBACK(self._collect)
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        try:
            self._library = _load_copy(loader.get_library_path(), self._folder.name)
            self._initialise(seed)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._library.espeak_Terminate()
        self._folder.cleanup()

    def say(self, text, voice):
        """Speak ``text``.

        Arguments
        ---------
        text : str
            One or more sentences.
        voice : Voice
            The speaker.

        Returns
        -------
        np.ndarray
            float32 in ±1, [T] at 22,050 Hz.

        Raises
        ------
        InputError
            For a voice that this espeak-ng does not have, or where it says nothing.
        """
        self._set_voice(voice)
        self._chunks.clear()
        encoded = text.encode()
        status = self._library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, _UTF8, None, None
        )
        pcm = np.frombuffer(b"".join(self._chunks), dtype=np.int16)
        if status or not pcm.any():
            raise InputError(
                f"espeak-ng: {pcm.size} samples and status {status} for {text!r} as "
                f"{voice.accent}+{voice.variant}, expected speech"
            )
        return pcm.astype(np.float32) / 32768

    def _set_voice(self, voice):
        # espeak-ng itself passes over an unknown variant without a word.
        if not (self._data / "voices" / "!v" / voice.variant).is_file():
            raise InputError(
                f"voice variant {voice.variant!r}: not in {self._data}, "
                f"expected a file of its folder voices/!v"
            )
        name = f"{voice.accent}+{voice.variant}"
        if self._library.espeak_SetVoiceByName(name.encode()):
            raise InputError(
                f"voice {name!r}: unknown to espeak-ng, expected an accent like en-us"
            )
        for parameter, value in (
            (_RATE, voice.words_per_minute),
            (_VOLUME, _QUIET),
            (_PITCH, voice.pitch),
            (_RANGE, voice.pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)

    def _initialise(self, seed):
        data = self._data
        # espeak-ng cannot hold a data path of more than about 150 characters, which a
        # virtual environment deep in a home folder has: offer it a short link instead.
        link = Path(self._folder.name) / "espeak-ng-data"
        with contextlib.suppress(OSError, NotImplementedError):
            os.symlink(data, link, target_is_directory=True)
            data = link
        rate = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, os.fsencode(data), _DO_NOT_EXIT
        )
        if rate != ESPEAK_RATE:
            raise InputError(
                f"{self._data}: espeak-ng starts at {rate} Hz, expected {ESPEAK_RATE}; "
                f"is its data complete, and the path of the temporary folder short?"
            )
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))

    def _collect(self, samples, count, events):
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def _load_copy(library, folder):
    # The loader hands out one and the same library for one and the same file; a copy
    # is a file of its own.
    try:
        return ctypes.CDLL(shutil.copy(library, folder))
    except OSError as error:
        raise InputError(
            f"{library}: a copy in {folder} cannot be loaded ({error}), expected "
            f"espeak-ng for this machine, and a TMPDIR which allows execution"
        ) from error
