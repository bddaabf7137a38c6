r"""Speakers enrolled from several recordings.

A map has one line per model, ``model utterance [utterance ...]``; CN-Celeb's
``enroll.map`` and ``enroll.lst`` are such files (Fan et al., "CN-Celeb: a challenging
Chinese speaker recognition dataset", ICASSP 2020). A trial list then names models on
its enrol side. Two protocols follow, whose error rates differ:

* averaging: the model is the mean of its K embeddings, :math:`m = \frac1K \sum_k e_k`
  (:func:`average_enrolment`);
* concatenating: the model is the embedding of its recordings joined into one
  (:func:`speechbrain_ext.data.concatenate.concatenate_enrolment`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.lines import read_rows
from speechbrain_ext.scoring.trials import rows_of, utterance_id

_EXPECTED = "'model utterance [utterance ...]'"


@dataclass(frozen=True, eq=False)
class EnrolMap:
    """M models and the recordings that each is enrolled from.

    Attributes
    ----------
    path : Path
        Where it was read; the m-th model stands in line m.
    utterances : dict of str to tuple of str
        Model → its utterance IDs, one or more, in the order of the file.
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
        """Find the recordings of every model in a manifest or embedding file.

        Arguments
        ---------
        ids : sequence of str
            Utterance IDs of ``source``.
        source : str or Path
            Its name, for the message.

        Returns
        -------
        list of np.ndarray
            M times int64 [K], rows of ``ids``.

        Raises
        ------
        InputError
            Names the map, the line and the utterance that is unknown.
        """
        known = {name: row for row, name in enumerate(np.asarray(ids).tolist())}
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
        """Say who each model is: whoever speaks in all its recordings.

        Arguments
        ---------
        speaker_by_id : dict of str to str
            Utterance ID → speaker, as in a manifest.

        Returns
        -------
        dict of str to str
            Model → speaker; without the models whose recordings are unknown, or of
            several speakers.
        """
        found = {}
        for model, names in self.utterances.items():
            speakers = {speaker_by_id.get(name) for name in names}
            if len(speakers) == 1 and None not in speakers:
                found[model] = speakers.pop()
        return found


def read_enrol_map(path):
    """Read an enrolment map, checked in full.

    Arguments
    ---------
    path : str or Path
        Text, one model per line: ``model utterance [utterance ...]``.

    Returns
    -------
    EnrolMap
        Names are utterance IDs, without extensions.

    Raises
    ------
    InputError
        Missing or empty file, a line without utterances, a model that comes twice, an
        utterance that comes twice within one model; each names the file and line.
    """
    utterances, lines = {}, {}
    for line, (name, *recordings) in read_rows(path, _EXPECTED, 2):
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
    """Say which recordings a trial list needs.

    Arguments
    ---------
    trials : Trials
        The list.
    enrol_map : EnrolMap or None
        What the names of its enrol side stand for; None where they are recordings.

    Returns
    -------
    set of str
        Utterance IDs: of the test side and of the whole map, or of both sides.

    Raises
    ------
    InputError
        With a map, an enrol side that is none of its models: list, line, name.
    """
    names = trials.names
    if enrol_map is None:
        return set(names.tolist())
    rows_of(trials, enrol_map.models, enrol_map.path, side="enrol")
    needed = set(names[np.unique(trials.test)].tolist())
    return needed.union(*enrol_map.utterances.values())


def average_enrolment(enrol_map, ids, vectors, source):
    """Enrol by averaging: one embedding per model, the mean of its recordings'.

    The mean is taken of the embeddings as they are. They are not scaled to length 1
    before, so a recording of larger magnitude, as long and clean ones tend to have,
    weighs more. Where cosines are taken of centred embeddings, centring before or after
    the mean is the same.

    Arguments
    ---------
    enrol_map : EnrolMap
        M models.
    ids : sequence of str
        Utterance IDs [U] of the embeddings.
    vectors : np.ndarray
        float [U, E].
    source : str or Path
        Where the embeddings are from, for messages.

    Returns
    -------
    models : np.ndarray
        str [M], in the order of the map.
    means : np.ndarray
        float32 [M, E], summed in float64.

    Raises
    ------
    InputError
        An utterance of the map that has no embedding (map, line, utterance), or as many
        IDs as there are not embeddings.
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
