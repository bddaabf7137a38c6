"""Folders and files of people → enrolled voices.

people/NAME/…/FILE → {NAME: files} → embeddings → one file of voices
"""

import logging
import os

import numpy as np

from speechbrain_ext.data.prepare.folders import preference, warn_of_copies
from speechbrain_ext.inference.decisions import kept_warnings
from speechbrain_ext.inference.folders import recordings_below
from speechbrain_ext.inference.voices import Voices, checked_name, embed_recordings
from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)


def recordings_of_speakers(root):
    """The recordings of a folder that holds one folder per speaker.

    Arguments
    ---------
    root : str or Path
        ``SPEAKER/FILE``, or with any folders between.

    Returns
    -------
    dict of str to list of str
        Speaker, in Unicode's composed form → paths. What lies there in two formats
        counts once.

    Raises
    ------
    InputError
        No folder of a speaker with a recording.
    """
    pairs, _ = recordings_below(root)
    speakers, loose, copies = {}, [], []
    for name, path in sorted(pairs, key=lambda pair: (pair[0], preference(pair[1]))):
        speaker, below, _ = name.partition("/")
        if below:
            stem = os.path.splitext(path)[0]
            taken = speakers.setdefault(speaker, {}).setdefault(stem, path)
            if taken is not path:
                copies.append((taken, path))
        else:
            loose.append(path)
    if not speakers:
        raise InputError(
            f"{root}: {len(loose)} recordings and no folder of a speaker with any, "
            "expected SPEAKER/FILE"
        )
    if loose:
        logger.warning(
            "%s: %d recordings beside the speakers' folders are left out, first %s",
            *(root, len(loose), loose[0]),
        )
    warn_of_copies(copies)
    return {speaker: list(files.values()) for speaker, files in speakers.items()}


def enrol_inputs(verifier, store, recordings, replace=False, skip_bad=False, **options):
    """Enrol voices from files into a store.

    Everything is embedded before the store is locked, and the store is written once.

    Arguments
    ---------
    verifier : SpeakerVerifier
    store : str or Path
        File of voices; begun where there is none.
    recordings : dict of str to list of str
        Name → files.
    replace : bool
        Forget what these voices were enrolled from; False adds to it.
    skip_bad : bool
        Leave out a bad recording, or a name that no voice can have, and list it; False
        raises its error, unless a voice has other recordings than one without speech.
    **options
        ``speech_detection`` and ``channel``, as for ``SpeakerVerifier.enrol``.

    Returns
    -------
    dict
        ``voices`` (the file), ``enrolled`` (voice, recordings, seconds), ``n_voices``,
        ``failures`` (file, reason), ``model``, ``device``, ``warnings``.

    Raises
    ------
    InputError
        As the recordings and :class:`~speechbrain_ext.inference.voices.Voices`; no
        recording could be embedded. The store is then as it was.
    """
    if os.path.lexists(store):
        Voices.load(store, verifier)  # what is wrong with it, before the work
    paths, names, failures = [], [], []
    for name, files in recordings.items():
        try:
            name = checked_name(name)
        except InputError as error:
            if not skip_bad:
                raise
            failures += [(path, str(error)) for path in files]
        else:
            paths += files
            names += [name] * len(files)
    with kept_warnings() as warnings:
        found = embed_recordings(verifier, paths, **options)
        if not skip_bad:
            found.with_speech()  # raises what is not for want of it
    good = np.ones(len(paths), dtype=bool)
    good[[failure.row for failure in found.failures]] = False
    failures += [(failure.path, failure.reason) for failure in found.failures]
    if not good.any():
        path, reason = failures[0] if failures else (store, "no recordings")
        raise InputError(f"{path}: {reason} (nothing was enrolled)")
    names = np.array(names, dtype=object)
    enrolled = list(dict.fromkeys(names[good]))
    with Voices.edit(store, verifier) as voices:
        for name in enrolled:
            if replace and name in voices:
                voices.remove(name)
            rows = np.flatnonzero(good & (names == name))
            voices.add_embeddings(name, found.vectors[rows], found.seconds[rows])
    return {
        "voices": str(store),
        "enrolled": [v for v in voices.describe() if v["voice"] in set(enrolled)],
        "n_voices": len(voices),
        "failures": [{"file": path, "reason": reason} for path, reason in failures],
        "model": verifier.source,
        "device": str(verifier.device),
        "warnings": warnings,
    }
