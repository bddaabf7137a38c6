"""Which recordings are tested, and which may then be trained on.

The one rule that keeps results honest: a speaker who occurs in any trial list is never
trained on. Further lists may name what to train on: lines ``speaker path``, or
``speaker`` for all of their recordings.
"""

import logging
from typing import NamedTuple

from speechbrain_ext.scoring.enrolment import read_enrol_map, utterances_of
from speechbrain_ext.scoring.trials import read_trials, rows_of, utterance_id
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import composed

logger = logging.getLogger(__name__)


def read_speaker_lists(lists, known, source):
    """Utterance IDs that train lists name: a set of str.

    Lines are ``speaker path``, the path below the folder of speakers, or ``speaker``.
    ``known`` is utterance ID → speaker of all recordings, ``source`` says where they
    are. InputError names list and line: a malformed one, a speaker that is not the
    path's, who has no recording or is listed twice, an unknown utterance.
    """
    listed, whole, by_speaker = set(), {}, {}
    for name, speaker in known.items():
        by_speaker.setdefault(speaker, []).append(name)
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
    if known.get(utterance, speaker) != speaker:
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
            yield from enumerate(map(composed, file), 1)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}, expected lines 'speaker path' or 'speaker'"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: expected UTF-8 text") from error


class TrialLists(NamedTuple):
    """All that is tested.

    ``lists`` of Trials in the order given; ``enrol_maps`` say what their enrol sides
    stand for, in one way or several, none where they name recordings; ``ids``, sorted,
    are the recordings that all of these need.
    """

    lists: list
    enrol_maps: list
    ids: list

    def check_found(self, ids, source):
        """Refuse a recording that is not among ``ids``: list, line, name."""
        for trials in self.lists:
            side = "test" if self.enrol_maps else None
            rows_of(trials, ids, source, side)
        for enrol_map in self.enrol_maps:
            enrol_map.rows(ids, source)

    def count(self):
        """{"lists": {path: how many target and nontarget trials}}, and of the map."""
        counts = {
            str(trials.path): {
                "target": trials.n_target,
                "nontarget": trials.n_nontarget,
            }
            for trials in self.lists
        }
        if not self.enrol_maps:
            return {"lists": counts}
        return {"lists": counts, "models": len(self.enrol_maps[0])}


def read_trial_lists(options):
    """Read ``trial_lists`` and ``enrol_maps`` of the options → TrialLists.

    InputError names file, line and name: of a malformed list or map, or of a trial
    whose enrol side is no model of the map.
    """
    enrol_maps, ids = [read_enrol_map(path) for path in options.enrol_maps], set()
    # A line that comes twice changes nothing here; scoring may refuse it.
    lists = [read_trials(path, allow_duplicates=True) for path in options.trial_lists]
    for trials in lists:
        for enrol_map in enrol_maps or [None]:
            ids |= utterances_of(trials, enrol_map)
    return TrialLists(lists, enrol_maps, sorted(ids))


def choose_training(rows, test_rows, train_lists, exclude_speakers, source):
    """Drop speakers of the trial lists, excluded speakers and what no list names.

    ``rows`` could all be trained on, ``test_rows`` are what the trial lists name;
    without ``train_lists`` all count; ``source`` says where the rows are from. → the
    rows chosen, in their order; how many were dropped, and why. InputError: a malformed
    train list, or fewer than two speakers left.
    """
    listed = rows
    if train_lists:
        known = {row.id: row.speaker for row in rows}
        ids = read_speaker_lists(train_lists, known, source)
        listed = [row for row in rows if row.id in ids]
    of_test = {row.speaker for row in test_rows}
    excluded = set(exclude_speakers)
    speakers = {row.speaker for row in rows}
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
    chosen = [row for row in listed if row.speaker not in never]
    remaining = sorted({row.speaker for row in chosen})
    if len(remaining) < 2:
        named = f" ({remaining[0]!r})" if remaining else ""
        raise InputError(
            f"{source}: {len(remaining)} of {len(speakers)} speakers remain to train "
            f"on{named}, expected at least 2: all others are in trial lists, in "
            "exclude_speakers or in no train list"
        )
    left_out = {
        "trial_speakers": len(of_test & speakers),
        "excluded_speakers": len(excluded & speakers),
        "not_listed": len(rows) - len(listed),
    }
    return chosen, left_out
