"""Short utterances joined to long ones, without a copy of them.

A row of a manifest may stand for several recordings, one after the other (see
:mod:`~speechbrain_ext.data.joined_paths`). Its ID is that of the first of them and how
many follow: ``id10001/interview-01-001+1``.

In the order of the manifest one recording is added to the next until they last long
enough, first within a session; what a session has left over goes to its last row.
Sessions that are too short as a whole are joined to each other, within one group
(CN-Celeb: speaker and genre). No row holds two speakers, and only a group that is too
short as a whole leaves a short row.
"""

import numpy as np

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.data.joined_paths import joined_path
from speechbrain_ext.data.manifest import Manifest


def join_short(manifest, sessions, groups, shortest):
    """Join recordings until each row lasts long enough, see above.

    Arguments
    ---------
    manifest : Manifest
        N recordings.
    sessions : sequence of str
        [N]; those of one session are joined first.
    groups : sequence of str
        [N]; beyond, only those of one group are.
    shortest : float
        Seconds of a row, where there is as much.

    Returns
    -------
    Manifest
        M <= N rows; every sample of every recording stands in one of them.

    Raises
    ------
    InputError
        A path with ``|`` in it.
    """
    frames = np.round(manifest.durations * SAMPLE_RATE).astype(np.int64).tolist()
    by_group = {}
    keys = zip(manifest.speakers.tolist(), groups, sessions)
    for row, (speaker, group, session) in enumerate(keys):
        of_group = by_group.setdefault((speaker, group), {})
        of_group.setdefault(session, []).append(row)
    least = shortest * SAMPLE_RATE
    rows = [r for g in by_group.values() for r in _join_group(g, frames, least)]
    return _joined_manifest(manifest, sorted(rows), frames)


def pack(rows, frames, least):
    """Rows in their order → lists that last long enough, and what is left over.

    Arguments
    ---------
    rows : list of int
    frames : list of int
        Length by row.
    least : float
        Samples of a list.

    Returns
    -------
    whole : list of list of int
    rest : list of int
        Fewer than ``least`` samples, maybe none.
    """
    whole, rest, total = [], [], 0
    for row in rows:
        rest.append(row)
        total += frames[row]
        if total >= least:
            whole.append(rest)
            rest, total = [], 0
    return whole, rest


def _join_group(sessions, frames, least):
    """Session → rows, of one speaker and group → lists of rows to be joined."""
    joined, left = [], []
    for rows in sessions.values():
        whole, rest = pack(rows, frames, least)
        if whole:
            whole[-1] += rest
        else:
            left += rest
        joined += whole
    whole, rest = pack(left, frames, least)
    joined += whole
    if rest and joined:
        joined[-1] += rest
    elif rest:
        joined.append(rest)
    return joined


def _joined_manifest(manifest, lists, frames):
    ids, paths = manifest.ids.tolist(), manifest.paths.tolist()
    speakers = manifest.speakers.tolist()
    columns = [], [], [], []
    for rows in lists:
        first, lengths = rows[0], [frames[row] for row in rows]
        one = len(rows) == 1
        name = ids[first] if one else f"{ids[first]}+{len(rows) - 1}"
        path = paths[first] if one else joined_path([paths[r] for r in rows], lengths)
        seconds = sum(lengths) / SAMPLE_RATE
        for column, value in zip(columns, (name, path, seconds, speakers[first])):
            column.append(value)
    return Manifest(*columns)
