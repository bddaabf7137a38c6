"""VoxCeleb, or any corpus of folders ``SPEAKER/SESSION/FILE``.

Nagrani et al., "VoxCeleb: a large-scale speaker identification dataset", Interspeech
2017; Chung et al., "VoxCeleb2: deep speaker recognition", Interspeech 2018.
"""

from functools import partial

from speechbrain_ext.data.prepare.folders import Layout, find_rows
from speechbrain_ext.data.prepare.pipeline import PrepareOptions, prepare

LAYOUT = Layout(folder_names=("wav", "flac", "aac", "m4a"), levels=2)


def prepare_voxceleb(
    train_folders,
    save_folder,
    test_folders=(),
    trial_lists=(),
    train_lists=(),
    exclude_speakers: list[str] | str | None = (),
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
    return prepare(options, partial(find_rows, LAYOUT), num_workers)


def prepare_voxceleb_test(
    test_folders,
    trial_lists,
    save_folder,
    convert_folder=None,
    num_workers=16,
    enrol_map=None,
):
    """``test.csv`` alone, to verify with a model that was trained elsewhere.

    Arguments and errors as in :func:`prepare_voxceleb` → Prepared, without the rest.
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
