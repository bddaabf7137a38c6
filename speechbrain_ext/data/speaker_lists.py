"""Lists of what to train on: lines ``speaker path``, or ``speaker`` for all of theirs.

CN-Celeb's ``dev.lst`` and ``spk.lst`` are lists of speakers.
"""

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.speakers import speaker_of
from speechbrain_ext.scoring.trials import utterance_id


def read_speaker_lists(lists, known, source):
    """Read lists of utterances to train on.

    Arguments
    ---------
    lists : list of Path
        Text files, lines ``speaker path`` or ``speaker``; a path is relative to the
        folder of speakers.
    known : collection of str
        The utterance IDs there are.
    source : str
        Where they are, for the message.

    Returns
    -------
    set of str
        Utterance IDs.

    Raises
    ------
    InputError
        A malformed line, a speaker that is not the path's, an unknown utterance, a
        speaker without any, or one who is listed twice; names the list and the line.
    """
    listed, whole, by_speaker = set(), {}, {}
    for name in known:
        by_speaker.setdefault(speaker_of(name), []).append(name)
    for path in lists:
        for number, line in _lines(path):
            fields, place = line.split(), f"{path}: line {number}"
            if len(fields) == 1:
                (speaker,) = fields
                _check_speaker(speaker, by_speaker, whole, source, place)
                whole[speaker] = place
                listed.update(by_speaker[speaker])
            elif fields:
                listed.add(_listed_utterance(fields, known, source, place))
    return listed


def _check_speaker(speaker, by_speaker, whole, source, place):
    if speaker not in by_speaker:
        raise InputError(
            f"{place}: speaker '{speaker}' has no recording, expected some below "
            f"{source}"
        )
    if speaker in whole:
        raise InputError(
            f"{place}: speaker '{speaker}' again, expected each once (listed in "
            f"{whole[speaker]})"
        )


def _listed_utterance(fields, known, source, place):
    if len(fields) != 2:
        raise InputError(
            f"{place}: {len(fields)} columns, expected 2: 'speaker path', or 1: "
            "'speaker'"
        )
    speaker, name = fields
    utterance = utterance_id(name)
    if speaker_of(utterance) != speaker:
        raise InputError(
            f"{place}: speaker '{speaker}' with path '{name}', expected a path that "
            f"begins with '{speaker}/'"
        )
    if utterance not in known:
        raise InputError(
            f"{place}: utterance '{utterance}' not found, expected it below {source}"
        )
    return utterance


def _lines(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from enumerate(file, 1)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}, expected lines 'speaker path' or 'speaker'"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: expected UTF-8 text") from error
