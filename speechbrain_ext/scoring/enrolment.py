"""Who speaks in the recordings of a trial list, and how speakers are enrolled.

Trials that share a speaker are not independent: intervals for an error rate come from
drawing speakers, not trials. A list tells no speakers, but the corpora write them into
their names:

    ======================================  ==============================
    ``id10270/x6uYqmx31kE/00001``           VoxCeleb: SPEAKER/SESSION/FILE
    ``id00800/singing-01-002``              CN-Celeb, ``enroll.map``
    ``id00800-enroll``                      CN-Celeb, a model
    ``test/id00800-singing-01-001``         CN-Celeb, below ``eval``
    ======================================  ==============================

Leading folders that name a part of a corpus (eval, enroll, test) are passed over. The
speaker is then the first folder or, without one, the file name up to its first hyphen.
A manifest that knows the recording is preferred to this rule. No rule fits every
corpus, so :func:`check_speakers` compares it with the labels: a trial is a target
exactly where both sides have one speaker.

An enrolment map has one line per model, ``model utterance [utterance ...]``; CN-Celeb's
``enroll.map`` and ``enroll.lst`` are such files (Fan et al., "CN-Celeb: a challenging
Chinese speaker recognition dataset", ICASSP 2020). A trial list then names models on
its enrol side. Two protocols follow, whose error rates differ:

* averaging: the model is the mean of its K embeddings, :math:`m = \\frac1K \\sum_k e_k`
  (:func:`average_enrolment`);
* concatenating: the model is the embedding of its recordings joined into one
  (:func:`speechbrain_ext.data.concatenated_audio.concatenate_enrolment`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechbrain_ext.scoring.trials import (
    in_either_form,
    numbered,
    read_rows,
    rows_of,
    utterance_id,
)
from speechbrain_ext.utils.errors import InputError

PARTS = frozenset({"eval", "enrol", "enroll", "test"})
_EXPECTED = "'model utterance [utterance ...]'"


def speaker_of(name):
    """The speaker that an utterance ID or the name of a model tells; see above."""
    *folders, file = name.split("/")
    while folders and folders[0] in PARTS:
        del folders[0]
    return folders[0] if folders else file.split("-", 1)[0]


def speakers_of(names, speaker_by_id=None):
    """Number the speakers of recordings or models, int64 [U].

    Numbers count the speakers' names in their order. ``speaker_by_id``, utterance ID →
    speaker as in a manifest, is preferred to :func:`speaker_of`.
    """
    known = in_either_form(speaker_by_id or {})
    names = np.asarray(names).tolist()
    speakers = [known.get(name) or speaker_of(name) for name in names]
    return np.unique(np.array(speakers, dtype=np.str_), return_inverse=True)[1]


def check_speakers(trials, speakers):
    """Compare the ``speakers`` int [U] of a list's names with its labels.

    InputError where there are no labels, or where the label of a trial and its speakers
    disagree: list, line, names. Then the speakers are wrong, or a label is.
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


@dataclass(frozen=True, eq=False)
class EnrolMap:
    """M models, the m-th in line m of ``path``, and what each is enrolled from.

    ``utterances``: model → tuple of its utterance IDs, in the order of the file.
    """

    path: Path
    utterances: dict

    def __len__(self):
        return len(self.utterances)

    @property
    def models(self):
        """Their names, str [M]."""
        return np.array(list(self.utterances))

    def rows(self, ids, source):
        """Rows of each model's recordings in ``ids``: M times int64 [K].

        ``source`` names the manifest or file that the IDs are from. InputError for an
        unknown utterance names the map, the line and the utterance.
        """
        known = numbered(ids)
        for line, (model, names) in enumerate(self.utterances.items(), 1):
            absent = [name for name in names if name not in known]
            if absent:
                raise InputError(
                    f"{self.path}: line {line}: utterance '{absent[0]}' of '{model}' "
                    f"is not in {source}, expected the recordings of all {len(self)} "
                    "models there"
                )
        return [np.array([known[n] for n in k]) for k in self.utterances.values()]

    def speakers(self, speaker_by_id):
        """Utterance ID → speaker, as in a manifest, to model → speaker.

        Models whose recordings are unknown, or of several speakers, are left out.
        """
        speaker_of_model, speaker_by_id = {}, in_either_form(speaker_by_id)
        for model, names in self.utterances.items():
            speakers = {speaker_by_id.get(name) for name in names}
            if len(speakers) == 1 and None not in speakers:
                speaker_of_model[model] = speakers.pop()
        return speaker_of_model


def read_enrol_map(path):
    """Read an enrolment map, lines ``model utterance [utterance ...]`` → EnrolMap.

    Names lose their extensions. InputError names file and line: missing or empty file,
    a line without utterances, a model twice, an utterance twice within one model.
    """
    utterances, lines = {}, {}
    for line, (name, *recordings) in enumerate(read_rows(path, _EXPECTED, 2), 1):
        model, ids = utterance_id(name), tuple(map(utterance_id, recordings))
        if model in utterances:
            raise InputError(
                f"{path}: line {line}: model '{model}' again, expected each once (it "
                f"is in line {lines[model]})"
            )
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise InputError(
                f"{path}: line {line}: utterance '{twice}' of '{model}' twice, "
                "expected each once"
            )
        utterances[model], lines[model] = ids, line
    return EnrolMap(Path(path), utterances)


def utterances_of(trials, enrol_map=None):
    """Utterance IDs that a trial list needs: of both sides, or of test side and map.

    Without an ``enrol_map`` the names of the enrol side are recordings. With one,
    InputError for a name there that is none of its models: list, line, name.
    """
    names = trials.names
    if enrol_map is None:
        return set(names.tolist())
    rows_of(trials, enrol_map.models, enrol_map.path, side="enrol")
    needed = set(names[np.unique(trials.test)].tolist())
    return needed.union(*enrol_map.utterances.values())


def average_enrolment(enrol_map, ids, vectors, source):
    """One embedding per model, the mean of its recordings': str [M], float32 [M, E].

    The mean, summed in float64, is taken of the embeddings as they are. They are not
    scaled to length 1 before, so a recording of larger magnitude, as long and clean
    ones tend to have, weighs more. Where cosines are taken of centred embeddings,
    centring before or after the mean is the same.

    ``ids`` [U] are of ``vectors`` float [U, E], ``source`` says where they are from.
    InputError: an utterance of the map without embedding (map, line, utterance), or IDs
    and vectors of different number.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise InputError(
            f"{source}: {len(ids)} IDs and embeddings of shape {list(vectors.shape)}, "
            "expected [U] and [U, E]"
        )
    rows = enrol_map.rows(ids, source)
    means = np.array([vectors[r].mean(axis=0, dtype=np.float64) for r in rows])
    return enrol_map.models, means.astype(np.float32)
