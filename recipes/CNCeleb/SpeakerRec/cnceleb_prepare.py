"""Prepare CN-Celeb: manifests for training, validation and test, with no leak.

What must exist first: CN-Celeb and CN-Celeb2 (OpenSLR 82), unpacked, as flac or wav.

    python cnceleb_prepare.py --cnceleb1_folder /data/CN-Celeb_flac \\
        --cnceleb2_folder /data/CN-Celeb2_flac --save_folder data

One override: ``--join_seconds 0`` trains on the recordings one by one.

Written to ``save_folder``:

    train.csv         ID,duration,wav,spk_id: recordings of the speakers of dev.lst and
                      spk.lst, the short ones of a speaker and genre joined
    valid.csv         recordings of speakers held out of training, one by one
    valid_trials.txt  ``label enrol test``, trials made from them
    test.csv          every recording of trials.lst, enroll.map and enroll.lst
    bad_files.txt     recordings that were left out, and why
    prepare.json      written last: arguments, counts (of each genre, too), check sums

The genre of a row stands in its ID, ``id00010/interview-01-001``. Joined recordings are
not copied: such a row names all of them, and they are read one after the other. A
speaker of the trials is never trained on. Nothing is ever written among the recordings.
"""

import argparse
import logging

from speechbrain_ext.data.corpora.cnceleb import (
    ENROLMENT,
    LAYOUT,
    find_evaluation,
    find_training,
)
from speechbrain_ext.data.prepare.pipeline import PrepareOptions, prepare_corpus
from speechbrain_ext.utils.errors import command_line

PROTOCOLS = tuple(ENROLMENT)


def prepare_cnceleb(
    cnceleb1_folder,
    save_folder,
    cnceleb2_folder=None,
    join_seconds=5.0,
    enrolment=PROTOCOLS,
    exclude_speakers=(),
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
        convert_folder=None,
        seed=seed,
        enrol_maps=evaluation.enrol_maps.values(),
        join_seconds=join_seconds,
    )
    return prepare_corpus(options, LAYOUT, num_workers)


def prepare_cnceleb_test(
    cnceleb1_folder, save_folder, enrolment=PROTOCOLS, num_workers=16
):
    """Prepare ``test.csv`` alone: to verify with a model that was trained elsewhere.

    Arguments
    ---------
    cnceleb1_folder, save_folder, enrolment, num_workers
        As in :func:`prepare_cnceleb`.

    Returns
    -------
    Prepared
        Without training and validation.

    Raises
    ------
    InputError
        Anything wrong with an argument, a folder, a list or a recording.
    """
    found = find_evaluation(cnceleb1_folder, enrolment)
    options = PrepareOptions.for_test(
        save_folder, found.folders, found.trials, found.enrol_maps.values()
    )
    return prepare_corpus(options, LAYOUT, num_workers)


def _arguments():
    # Left out of the namespace where not given: each default stands once, above.
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name in ("cnceleb1_folder", "save_folder"):
        parser.add_argument(f"--{name}", required=True, metavar="PATH")
    parser.add_argument("--cnceleb2_folder", metavar="PATH")
    parser.add_argument("--enrolment", nargs="+", choices=PROTOCOLS)
    parser.add_argument("--exclude_speakers", nargs="+", metavar="SPEAKER")
    for name in ("n_valid_speakers", "n_valid_trials", "max_valid_utterances"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    for name in ("join_seconds", "min_seconds"):
        parser.add_argument(f"--{name}", type=float, metavar="SECONDS")
    for name in ("max_bad_files", "seed", "num_workers"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    return parser.parse_args()


@command_line
def main():
    """Prepare from the command line; what is found goes to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_cnceleb(**vars(_arguments()))


if __name__ == "__main__":
    main()
