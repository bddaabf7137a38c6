"""Who speaks in the recordings of a trial list, told by their names.

Trials that share a speaker are not independent: intervals for an error rate come from
drawing speakers, not trials. A list tells no speakers, but the corpora write them into
their names:

    ======================================  ==============================
    ``id10270/x6uYqmx31kE/00001``           VoxCeleb: SPEAKER/SESSION/FILE
    ``id00800/singing-01-002``              CN-Celeb, ``enroll.map``
    ``id00800-enroll``                      CN-Celeb, a model
    ``test/id00800-singing-01-001``         CN-Celeb, below ``eval``
    ======================================  ==============================

The rule: leading folders that name a part of a corpus (eval, enroll, test) are passed
over. The speaker is then the first folder or, where no folder is left, the file name up
to its first hyphen. A manifest, where it knows the recording, goes before the rule.

No rule fits every corpus, so :func:`check_speakers` holds it against the labels: a
trial is a target exactly where both sides have one speaker.
"""

import numpy as np

from speechbrain_ext.errors import InputError

PARTS = frozenset({"eval", "enrol", "enroll", "test"})


def speaker_of(name):
    """The speaker that an utterance ID or the name of a model tells; see above."""
    *folders, file = name.split("/")
    while folders and folders[0] in PARTS:
        del folders[0]
    return folders[0] if folders else file.split("-", 1)[0]


def speakers_of(names, speaker_by_id=None):
    """Number the speakers of some recordings.

    Arguments
    ---------
    names : sequence of str
        Utterance IDs or names of models [U].
    speaker_by_id : dict of str to str, optional
        Utterance ID → speaker, as in a manifest; :func:`speaker_of` tells the others.

    Returns
    -------
    np.ndarray
        int64 [U], the same number for the same speaker, 0 to S - 1 in the order of
        their names.
    """
    known = speaker_by_id or {}
    names = np.asarray(names).tolist()
    speakers = [known.get(name) or speaker_of(name) for name in names]
    return np.unique(np.array(speakers, dtype=np.str_), return_inverse=True)[1]


def check_speakers(trials, speakers):
    """Hold speakers against the labels of a trial list.

    Arguments
    ---------
    trials : Trials
        T labelled trials over U names.
    speakers : np.ndarray
        int [U], the speaker of each name.

    Raises
    ------
    InputError
        No labels, or a trial whose label and speakers disagree: list, line, names. The
        speakers are then wrong, or a label is.
    """
    if trials.labels is None:
        raise InputError(f"{trials.path}: no labels, expected some to check speakers")
    same = speakers[trials.enrol] == speakers[trials.test]
    wrong = np.flatnonzero(same != trials.labels)
    if len(wrong):
        first = wrong[0]
        enrol, test = (trials.names[c[first]] for c in (trials.enrol, trials.test))
        seen = "one speaker" if same[first] else "two speakers"
        raise InputError(
            f"{trials.path}: line {first + 1}: label {trials.labels[first]} for {seen} "
            f"of '{enrol}' and '{test}', expected 1 exactly where both are of one "
            f"speaker ({len(wrong)} such lines)"
        )
