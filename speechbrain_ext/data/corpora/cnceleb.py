"""CN-Celeb on the disk, and what its names and lists mean.

Fan et al., "CN-Celeb: a challenging Chinese speaker recognition dataset", ICASSP 2020;
Li et al., "CN-Celeb: multi-genre speaker recognition", Speech Communication 137, 2022.
Both parts come unpacked as (OpenSLR 82)::

    CN-Celeb_flac/data/id00010/interview-01-001.flac    GENRE-SESSION-NUMBER
    CN-Celeb_flac/dev/dev.lst                           speakers to train on
    CN-Celeb_flac/eval/enroll/id00800-enroll.flac       a model's recordings, joined
    CN-Celeb_flac/eval/test/id00800-singing-01-001.flac
    CN-Celeb_flac/eval/lists/enroll.lst                 id00800-enroll enroll/….wav
    CN-Celeb_flac/eval/lists/enroll.map                 id00800-enroll id00800/….wav …
    CN-Celeb_flac/eval/lists/trials.lst                 id00800-enroll test/….wav 1
    CN-Celeb2_flac/data/id10001/live_broadcast-01-001.flac
    CN-Celeb2_flac/spk.lst                              its speakers

The lists name wav files whatever the recordings are.
"""

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

from speechbrain_ext.data.prepare.folders import Layout, find_rows
from speechbrain_ext.data.prepare.pipeline import PrepareOptions, prepare
from speechbrain_ext.scoring.conditions import conditions_of
from speechbrain_ext.utils.errors import InputError

TRIALS = "eval/lists/trials.lst"
# How a model is enrolled → the list that says from what.
ENROLMENT = {
    "average": "eval/lists/enroll.map",
    "concatenate": "eval/lists/enroll.lst",
}

# SPEAKER/GENRE-SESSION-NUMBER, below eval/test SPEAKER-GENRE-SESSION-NUMBER; +3 is the
# number of recordings that preparation joined to it
_NAME = re.compile(r"(?:^|/)(?:[^-/]+-)?([^-/]+)-\d+-\d+(?:\+\d+)?$")


def genre_of(name):
    """The genre that an utterance ID tells; None where it tells none."""
    match = _NAME.search(name)
    return match[1] if match else None


def genres_of(names, enrol_map=None):
    """Names of a trial list [U] → genre of each, str [U].

    A model has the genre of the recordings that ``enrol_map`` names, see
    :func:`~speechbrain_ext.scoring.conditions.conditions_of`.
    """
    return conditions_of(names, genre_of, enrol_map)


def session_of(utterance):
    """``id00010/interview-01-001`` → ``id00010/interview-01``, or InputError."""
    speaker, *file = utterance.split("/")
    if len(file) != 1 or file[0].count("-") != 2 or genre_of(file[0]) is None:
        raise InputError(
            f"recording '{utterance}': malformed name, expected "
            "SPEAKER/GENRE-SESSION-NUMBER as in id00010/interview-01-001"
        )
    return f"{speaker}/{file[0].rpartition('-')[0]}"


_find = partial(
    find_rows, Layout(("data",), levels=1), session_of=session_of, genre_of=genre_of
)


class Training(NamedTuple):
    """``folders``: of speakers; ``lists``: of those to train on. Paths."""

    folders: list
    lists: list


class Evaluation(NamedTuple):
    """``folders`` of the recordings, and lists.

    ``trials`` is the list, whose enrol side names models; ``enrol_maps`` is protocol →
    what they are enrolled from; ``enrol_map`` has their recordings one by one, which
    tell genres.
    """

    folders: list
    trials: Path
    enrol_maps: dict
    enrol_map: Path


def find_training(cnceleb1_folder, cnceleb2_folder=None):
    """Folders and speaker lists of the training; CN-Celeb2 may be None.

    InputError: a folder or list is missing, as where the two folders are exchanged.
    """
    folders = [_folder("cnceleb1_folder", cnceleb1_folder)]
    lists = [_list("cnceleb1_folder", folders[0] / "dev/dev.lst")]
    if cnceleb2_folder:
        folders.append(_folder("cnceleb2_folder", cnceleb2_folder))
        lists.append(_list("cnceleb2_folder", folders[1] / "spk.lst"))
    return Training([folder / "data" for folder in folders], lists)


def find_evaluation(cnceleb1_folder, enrolment=tuple(ENROLMENT)):
    """Where the recordings and lists of the evaluation are.

    InputError: a folder or list that is missing, a protocol that there is not.
    """
    folder = _folder("cnceleb1_folder", cnceleb1_folder)
    protocols = [enrolment] if isinstance(enrolment, str) else enrolment
    if not protocols or not set(protocols) <= set(ENROLMENT):
        raise InputError(
            f"enrolment: {enrolment!r}, expected some of {', '.join(ENROLMENT)}"
        )
    found = {
        name: _list("cnceleb1_folder", folder / name)
        for name in (TRIALS, *ENROLMENT.values())
    }
    return Evaluation(
        [folder / "eval", folder / "data"],
        found[TRIALS],
        {protocol: found[ENROLMENT[protocol]] for protocol in protocols},
        found[ENROLMENT["average"]],
    )


def _folder(name, folder):
    if not isinstance(folder, (str, Path)):
        raise InputError(f"{name}: {folder!r}, expected a folder")
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(f"{name}: {folder}: no such folder, expected CN-Celeb's")
    return folder


def _list(name, path):
    if not path.is_file():
        raise InputError(
            f"{name}: {path}: no such list, expected it as in "
            f"{'CN-Celeb2_flac' if path.name == 'spk.lst' else 'CN-Celeb_flac'}"
        )
    return path


def prepare_cnceleb(
    cnceleb1_folder,
    save_folder,
    cnceleb2_folder=None,
    join_seconds=5.0,
    enrolment=tuple(ENROLMENT),
    exclude_speakers: list[str] | str | None = (),
    n_valid_speakers=40,
    n_valid_trials=4000,
    max_valid_utterances=10,
    min_seconds=0.4,
    max_bad_files=0,
    seed=1986,
    num_workers=16,
):
    """Prepare CN-Celeb1 dev, CN-Celeb2 and CN-Celeb1's evaluation.

    A second call with the same arguments returns at once, unless a list or a written
    file has changed. Recordings added to the folders later are not noticed: delete
    ``prepare.json`` then. Under DDP call it through SpeechBrain's ``run_on_main``.

    Arguments
    ---------
    cnceleb1_folder : str or Path
        ``CN-Celeb_flac``: holds ``data``, ``dev/dev.lst`` and ``eval``.
    save_folder : str or Path
        Where the prepared files go.
    cnceleb2_folder : str, Path or None
        ``CN-Celeb2_flac``: holds ``data`` and ``spk.lst``. None trains on CN-Celeb1
        alone.
    join_seconds : float
        Recordings of a training speaker and genre are joined until they last so long,
        those of a session first; 0 joins none. Only what a speaker has too little of
        in a genre stays shorter.
    enrolment : str or list of str
        Protocols whose recordings are wanted: ``average`` (those of enroll.map),
        ``concatenate`` (those of enroll.lst).
    exclude_speakers : list of str
        More speakers never to train on.
    n_valid_speakers : int
        How many speakers to hold out of training; 0 for no validation.
    n_valid_trials : int
        At most so many validation trials, half of them target.
    max_valid_utterances : int
        At most so many recordings of each validation speaker.
    min_seconds : float
        Shorter recordings are neither trained on nor joined. Those of the test are
        all kept.
    max_bad_files : int
        So many unusable recordings may be left out; one more is an error.
    seed : int
        Of the validation speakers, recordings and trials.
    num_workers : int
        Threads. Does not change the result, nor the fingerprint.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        Anything wrong with an argument, a folder, a list or a recording.
    """
    training = find_training(cnceleb1_folder, cnceleb2_folder)
    evaluation = find_evaluation(cnceleb1_folder, enrolment)
    options = PrepareOptions(
        train_folders=training.folders,
        save_folder=save_folder,
        test_folders=evaluation.folders,
        trial_lists=evaluation.trials,
        train_lists=training.lists,
        exclude_speakers=exclude_speakers,
        n_valid_speakers=n_valid_speakers,
        n_valid_trials=n_valid_trials,
        max_valid_utterances=max_valid_utterances,
        min_seconds=min_seconds,
        max_bad_files=max_bad_files,
        seed=seed,
        enrol_maps=evaluation.enrol_maps.values(),
        join_seconds=join_seconds,
    )
    return prepare(options, _find, num_workers)


def prepare_cnceleb_test(
    cnceleb1_folder, save_folder, enrolment=tuple(ENROLMENT), num_workers=16
):
    """``test.csv`` alone, to verify with a model that was trained elsewhere.

    Arguments and errors as in :func:`prepare_cnceleb` → Prepared, without the rest.
    """
    evaluation = find_evaluation(cnceleb1_folder, enrolment)
    options = PrepareOptions(
        save_folder=save_folder,
        test_folders=evaluation.folders,
        trial_lists=evaluation.trials,
        enrol_maps=evaluation.enrol_maps.values(),
    )
    return prepare(options, _find, num_workers)
