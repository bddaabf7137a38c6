"""Lists of recordings to train on: lines ``speaker path``."""

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.speakers import speaker_of
from speechbrain_ext.scoring.trials import utterance_id


def read_speaker_lists(lists, known, source):
    """Read lists of utterances to train on, lines ``speaker path``.

    Arguments
    ---------
    lists : list of Path
        Text files; a path is relative to the folder of speakers.
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
        A malformed line, a speaker that is not the path's, an unknown utterance;
        names the list and the line.
    """
    listed = set()
    for path in lists:
        for number, line in _lines(path):
            fields = line.split()
            if not fields:
                continue
            listed.add(
                _listed_utterance(fields, known, source, f"{path}: line {number}")
            )
    return listed


def _listed_utterance(fields, known, source, place):
    if len(fields) != 2:
        raise InputError(f"{place}: {len(fields)} columns, expected 2: 'speaker path'")
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
            f"{path}: {error.strerror}, expected lines 'speaker path'"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: expected UTF-8 text") from error
