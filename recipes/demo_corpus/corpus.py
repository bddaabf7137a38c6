"""The demonstration corpus on disk.

    voxceleb2/dev/wav/id20001/<session>/00001.wav      speakers for training
    voxceleb1/wav/id10001/<session>/00001.wav          speakers for testing
    voxceleb1/veri_test.txt                            trials
    musan/{noise/free-sound,music/fma,speech/librivox}
    RIRS_NOISES/simulated_rirs/{smallroom,mediumroom}/{rir_list,Room001/}
    RIRS_NOISES/real_rirs_isotropic_noises/{rir_list,RVB2014_type1_rir_*.wav}
    spoof/{flac_T,flac_D,flac_E_eval}, spoof/ASVspoof5.*.tsv     bona fide and spoofs
    README.txt, demo.json                              what it is, how it was made

The folder appears as a whole: it is built beside its place under another name,
``demo.json`` is written last, then the folder is renamed.
"""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from demo_corpus.content import BABBLERS, Size, cast, files
from demo_corpus.espeak import import_loader
from demo_corpus.spoofs import MOST_SPOOFS
from demo_corpus.voices import MOST_SPEAKERS
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically, write_json

MARKER = "demo.json"
VERSION = 2  # raise it whenever the same arguments make other bytes


class DemoCorpus(NamedTuple):
    """Where the parts of the corpus are (Path each)."""

    folder: Path
    voxceleb1: Path
    voxceleb2: Path
    trials: Path
    musan: Path
    rirs: Path
    spoof: Path | None  # None: without spoofs


def make_demo_corpus(
    folder,
    n_train_speakers=24,
    n_test_speakers=10,
    sessions=3,
    utterances=4,
    seed=7,
    spoofs=2,
):
    """Make a synthetic corpus laid out as VoxCeleb, MUSAN, RIRS_NOISES, ASVspoof 5.

    The same arguments give the same bytes, on one kind of machine with one set of
    library versions. A complete corpus made with the same arguments is used again.

    Arguments
    ---------
    folder : str or Path
        Where to put it. It must not exist, or be empty, or hold this very corpus.
    n_train_speakers : int
        Speakers in ``voxceleb2/dev``, at least 1; with spoofs at least 2, the last
        third of them for development.
    n_test_speakers : int
        Speakers in ``voxceleb1``, at least 2.
    sessions : int
        Sessions of each speaker, at least 2: target trials go across sessions.
    utterances : int
        Utterances of each session, 2 to 6 s each.
    seed : int
        Decides everything else; 0 or more.
    spoofs : int
        Spoofs of each bona fide recording in ``spoof``, 0 to 4. Every speaker has as
        many bona fide ones as utterances. 0: no ``spoof``, two thirds of the time.

    Returns
    -------
    DemoCorpus

    Raises
    ------
    InputError
        For arguments out of range, a folder which holds something else, a corpus
        with missing files, or where the optional extra is not installed.
    """
    size = Size(n_train_speakers, n_test_speakers, sessions, utterances, seed, spoofs)
    _check(size)
    folder = Path(folder)
    if not _already_there(folder, size):
        _build(folder, size)
    return DemoCorpus(
        folder,
        folder / "voxceleb1",
        folder / "voxceleb2",
        folder / "voxceleb1" / "veri_test.txt",
        folder / "musan",
        folder / "RIRS_NOISES",
        folder / "spoof" if spoofs else None,
    )


def _check(size):
    for name, least in (
        ("n_train_speakers", 1),
        ("n_test_speakers", 2),
        ("sessions", 2),
        ("utterances", 1),
        ("seed", 0),
        ("spoofs", 0),
    ):
        value = getattr(size, name)
        if not isinstance(value, int) or value < least:
            raise InputError(
                f"{name}: {value!r}, expected an integer of {least} or more"
            )
    if size.spoofs > MOST_SPOOFS:
        raise InputError(f"spoofs: {size.spoofs}, expected at most {MOST_SPOOFS}")
    if size.spoofs and size.n_train_speakers < 2:
        raise InputError(
            "n_train_speakers: 1, expected at least 2, for training and development "
            "have speakers of their own, or spoofs 0"
        )
    speakers = size.n_train_speakers + size.n_test_speakers
    if speakers > MOST_SPEAKERS - BABBLERS:
        raise InputError(
            f"n_train_speakers + n_test_speakers: {speakers}, expected at most "
            f"{MOST_SPEAKERS - BABBLERS}, for espeak-ng has no more distinct voices"
        )


def _already_there(folder, size):
    """Whether this corpus is complete; raises where something else is in its place."""
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected the name of a new folder")
    marker = folder / MARKER
    if not marker.is_file():
        if next(folder.iterdir(), None) is None:
            return False
        raise InputError(
            f"{folder}: has files but no {MARKER}, expected a new or empty folder, "
            f"or a complete demonstration corpus"
        )
    made = _read_marker(marker)
    expected = {"version": VERSION, **size._asdict()}
    seen = {name: made["arguments"].get(name) for name in expected}
    for name, value in expected.items():
        if seen[name] != value:
            raise InputError(
                f"{folder}: was made with {name} {seen[name]}, expected {value}; "
                f"choose another folder or remove this one"
            )
    for name, length in made["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != length:
            raise InputError(
                f"{path}: missing or changed, expected {length} bytes; "
                f"remove {folder} and run again"
            )
    return True


def _read_marker(marker):
    try:
        made = json.loads(marker.read_text(encoding="utf-8"))
        dict(made["arguments"]), dict(made["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{marker}: not readable ({error!r}), expected the record of a "
            f"demonstration corpus"
        ) from error
    return made


def _build(folder, size):
    import_loader()  # say what is missing before anything is written
    beside = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        beside.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(
            f"{beside}: left over from an interrupted run; remove it and run again"
        ) from error
    try:
        lengths = {}
        contents = files(size)
        for name, content in tqdm(
            *(contents, "demo corpus", size.files), unit="file", disable=None
        ):
            with write_atomically(beside / name, "wb") as file:
                file.write(content)
            lengths[name] = len(content)
        write_json(beside / MARKER, _record(size, lengths))
        _move(beside, folder, size)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _record(size, lengths):
    speakers = {
        name: {"sex": speaker.sex, **speaker.voice._asdict()}
        for name, speaker in cast(size).items()
    }
    arguments = {"version": VERSION, **size._asdict()}
    return {"arguments": arguments, "speakers": speakers, "files": lengths}


def _move(beside, folder, size):
    try:
        os.rename(beside, folder)
    except OSError:
        # Another process may have made the same corpus meanwhile: then it serves.
        if not _already_there(folder, size):
            raise
