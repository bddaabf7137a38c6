"""Which recordings are tested, and which may then be trained on.

The one rule that keeps results honest: a speaker who occurs in any trial list is never
trained on.
"""

import logging

from speechbrain_ext.data.scan import speaker_of
from speechbrain_ext.data.speaker_lists import read_speaker_lists
from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.trials import read_trials, rows_of

logger = logging.getLogger(__name__)


def read_trial_lists(options, paths):
    """Read all trial lists, and look up every recording that they name.

    Arguments
    ---------
    options : PrepareOptions
        With ``trial_lists`` and ``test_folders``.
    paths : dict of str to str
        Utterance ID → recording, of all that were found below ``test_folders``.

    Returns
    -------
    test_ids : list of str
        Sorted, the union of all lists.
    lists : dict of str to dict
        Path of the list → how many target and nontarget trials.

    Raises
    ------
    InputError
        A malformed list, or an utterance that was not found: list, line, utterance.
    """
    source = f"the recordings below {join(options.test_folders)}"
    test_ids, lists = set(), {}
    for path in options.trial_lists:
        # A line that comes twice changes nothing here; scoring may refuse it.
        trials = read_trials(path, allow_duplicates=True)
        rows_of(trials, list(paths), source)
        test_ids.update(trials.names.tolist())
        lists[str(path)] = {"target": trials.n_target, "nontarget": trials.n_nontarget}
    return sorted(test_ids), lists


def choose_training(options, paths, test_ids):
    """Drop speakers of the trial lists, excluded speakers and what no list names.

    Arguments
    ---------
    options : PrepareOptions
        With ``train_folders``, ``train_lists`` and ``exclude_speakers``.
    paths : dict of str to str
        Utterance ID → recording, of all that were found below ``train_folders``.
    test_ids : list of str
        What the trial lists name.

    Returns
    -------
    chosen : list of str
        Sorted IDs that may be trained on.
    left_out : dict of str to int
        How many were dropped, and why.

    Raises
    ------
    InputError
        A malformed train list, or nothing left.
    """
    candidates = paths
    if options.train_lists:
        source = join(options.train_folders)
        candidates = read_speaker_lists(options.train_lists, paths, source)
    of_test = {speaker_of(name) for name in test_ids}
    excluded = set(options.exclude_speakers)
    speakers = {speaker_of(name) for name in paths}
    unknown = excluded - speakers - of_test
    if unknown:
        logger.warning(
            "exclude_speakers: %d of %d are in no folder, such as '%s'",
            len(unknown),
            len(excluded),
            min(unknown),
        )
    logger.info(
        "%d speakers of the trial lists and %d of exclude_speakers are not trained on",
        len(of_test),
        len(excluded),
    )
    never = of_test | excluded
    chosen = [name for name in sorted(candidates) if speaker_of(name) not in never]
    if not chosen:
        raise InputError(
            f"no training recording is left below {join(options.train_folders)}: all "
            f"{len(speakers)} speakers are in trial lists, in exclude_speakers or in "
            "no train list; expected at least 2 others"
        )
    left_out = {
        "trial_speakers": len(of_test & speakers),
        "excluded_speakers": len(excluded & speakers),
        "not_listed": len(paths) - len(candidates),
    }
    return chosen, left_out


def join(folders):
    """Folders in words."""
    return ", ".join(map(str, folders))
