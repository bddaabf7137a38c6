"""Prepare VoxCeleb: manifests for training, validation and test, with no leak.

What must exist first: the recordings, unpacked, as wav, flac or VoxCeleb2's own m4a
(then ffmpeg as well), and the trial lists one wants to report.

    python voxceleb_prepare.py --train_folders /data/vox2/dev --save_folder data \\
        --test_folders /data/vox1 --trial_lists vox1_o.txt vox1_e.txt vox1_h.txt

One override: ``--n_valid_speakers 0`` trains on every speaker, without validation.

Written to ``save_folder``:

    train.csv         ID,duration,wav,spk_id of the training recordings
    valid.csv         recordings of speakers held out of training
    valid_trials.txt  ``label enrol test``, trials made from them
    test.csv          every recording that some trial list names
    bad_files.txt     recordings that were left out, and why
    prepare.json      written last: arguments, counts, check sums

A speaker of a trial list is never trained on, whatever folder the recordings are in;
nor is a validation speaker. Nothing is ever written among the recordings.
"""

import argparse
import logging

from speechbrain_ext.data.prepare.folders import Layout
from speechbrain_ext.data.prepare.pipeline import PrepareOptions, prepare_corpus
from speechbrain_ext.utils.errors import command_line

LAYOUT = Layout(folder_names=("wav", "flac", "aac", "m4a"), levels=2)


def prepare_voxceleb(
    train_folders,
    save_folder,
    test_folders=(),
    trial_lists=(),
    train_lists=(),
    exclude_speakers=(),
    n_valid_speakers=40,
    n_valid_trials=4000,
    max_valid_utterances=10,
    min_seconds=0.4,
    max_bad_files=0,
    convert_folder=None,
    seed=1986,
    num_workers=16,
    enrol_map=None,
):
    """Prepare VoxCeleb, or any corpus of the same shape.

    A second call with the same arguments returns at once, unless a list or a written
    file has changed. Recordings added to the folders later are not noticed: delete
    ``prepare.json`` then. Under DDP call it through SpeechBrain's ``run_on_main``.

    Arguments
    ---------
    train_folders : str, Path or list of them
        Where the training recordings are: ``FOLDER/SPEAKER/SESSION/FILE``, the same
        below a folder named wav, flac, aac or m4a, or one folder deeper. None
        prepares for test alone.
    save_folder : str or Path
        Where the prepared files go.
    test_folders : str, Path or list of them
        Where the recordings of the trial lists are, as in ``train_folders``, or where
        a list says, below such a folder; none means ``train_folders``.
    trial_lists : str, Path or list of them
        Lines ``label enrol test`` or ``enrol test label``. Their speakers are never
        trained on.
    train_lists : str, Path or list of them
        Lines ``speaker path``: train on these recordings only.
    exclude_speakers : list of str
        More speakers never to train on.
    n_valid_speakers : int
        How many speakers to hold out of training; 0 for no validation.
    n_valid_trials : int
        At most so many validation trials, half of them target.
    max_valid_utterances : int
        At most so many recordings of each validation speaker.
    min_seconds : float
        Shorter recordings are not trained on. Test recordings are all kept.
    max_bad_files : int
        So many unusable recordings may be left out; one more is an error.
    convert_folder : str, Path or None
        Where flac copies of m4a recordings go.
    seed : int
        Of the validation speakers, recordings and trials.
    num_workers : int
        Threads. Does not change the result, nor the fingerprint.
    enrol_map : str, Path or None
        Lines ``model utterance [utterance ...]``: the enrol side of every trial list
        names models, and the map's recordings are tested.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        Anything wrong with an argument, a folder, a list or a recording.
    """
    options = PrepareOptions(
        train_folders=train_folders,
        save_folder=save_folder,
        test_folders=test_folders,
        trial_lists=trial_lists,
        train_lists=train_lists,
        exclude_speakers=exclude_speakers,
        n_valid_speakers=n_valid_speakers,
        n_valid_trials=n_valid_trials,
        max_valid_utterances=max_valid_utterances,
        min_seconds=min_seconds,
        max_bad_files=max_bad_files,
        convert_folder=convert_folder,
        seed=seed,
        enrol_maps=enrol_map,
    )
    return prepare_corpus(options, LAYOUT, num_workers)


def prepare_voxceleb_test(
    test_folders,
    trial_lists,
    save_folder,
    convert_folder=None,
    num_workers=16,
    enrol_map=None,
):
    """Prepare ``test.csv`` alone: to verify with a model that was trained elsewhere.

    Arguments
    ---------
    test_folders, trial_lists, save_folder, convert_folder, num_workers, enrol_map
        As in :func:`prepare_voxceleb`.

    Returns
    -------
    Prepared
        Without training and validation.

    Raises
    ------
    InputError
        Anything wrong with an argument, a folder, a list or a recording.
    """
    return prepare_voxceleb(
        train_folders=(),
        save_folder=save_folder,
        test_folders=test_folders,
        trial_lists=trial_lists,
        n_valid_speakers=0,
        convert_folder=convert_folder,
        num_workers=num_workers,
        enrol_map=enrol_map,
    )


def _arguments():
    # Left out of the namespace where not given: each default stands once, above.
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    several = {"nargs": "+", "metavar": "PATH"}
    parser.add_argument("--train_folders", required=True, **several)
    parser.add_argument("--save_folder", required=True, metavar="PATH")
    for name in ("test_folders", "trial_lists", "train_lists"):
        parser.add_argument(f"--{name}", **several)
    parser.add_argument("--exclude_speakers", nargs="+", metavar="SPEAKER")
    for name in ("n_valid_speakers", "n_valid_trials", "max_valid_utterances"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    parser.add_argument("--min_seconds", type=float, metavar="SECONDS")
    for name in ("convert_folder", "enrol_map"):
        parser.add_argument(f"--{name}", metavar="PATH")
    for name in ("max_bad_files", "seed", "num_workers"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    return parser.parse_args()


@command_line
def main():
    """Prepare from the command line; what is found goes to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_voxceleb(**vars(_arguments()))


if __name__ == "__main__":
    main()
