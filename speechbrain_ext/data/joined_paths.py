"""Paths of a manifest that stand for several recordings, one after the other.

Such a path is theirs with their lengths in samples::

    /data/id10001/interview-01-001.flac:34560|/data/id10001/interview-01-002.flac:51200

:func:`~speechbrain_ext.data.audio.read_audio` reads it as one recording, and opens only
those parts that the wanted samples are in. The lengths are in the path so that a crop
is found without reading headers.
"""

from speechbrain_ext.errors import InputError

JOINT, LENGTH = "|", ":"


def is_joined(path):
    """Whether a path of a manifest stands for several recordings."""
    return JOINT in str(path)


def joined_path(paths, frames):
    """One path for several recordings, see above.

    Arguments
    ---------
    paths : list of str
        Two or more.
    frames : list of int
        Their lengths in samples.

    Returns
    -------
    str

    Raises
    ------
    InputError
        A path with ``|`` in it.
    """
    for path in paths:
        if is_joined(path):
            raise InputError(
                f"{path}: '{JOINT}' in its name, expected none: it stands between "
                "recordings that are joined"
            )
    return JOINT.join(f"{path}{LENGTH}{n}" for path, n in zip(paths, frames))


def parts_of(path):
    """The recordings that a path of a manifest stands for.

    Arguments
    ---------
    path : str

    Returns
    -------
    list of (str, int or None)
        Each recording and its length in samples, which a plain path does not tell.

    Raises
    ------
    InputError
        A part of a joined path that does not end in its length.
    """
    if not is_joined(path):
        return [(str(path), None)]
    parts = []
    for part in str(path).split(JOINT):
        name, _, frames = part.rpartition(LENGTH)
        if not name or not frames.isdecimal():
            raise InputError(
                f"{path}: part '{part}', expected PATH{LENGTH}SAMPLES of each of the "
                f"recordings that '{JOINT}' joins"
            )
        parts.append((name, int(frames)))
    return parts


def parts_between(path, start=0, frames=-1):
    """What to read for some samples of a joined path.

    Arguments
    ---------
    path : str
        Joined.
    start : int
        First sample.
    frames : int
        How many; -1 for all that follow.

    Returns
    -------
    list of (str, int, int)
        Recording, first sample in it and how many; none where ``start`` is beyond the
        end. Together they are fewer than ``frames`` where these reach beyond it.
    """
    wanted, begin = [], 0
    stop = float("inf") if frames < 0 else start + frames
    for name, length in parts_of(path):
        first, last = max(start, begin), min(stop, begin + length)
        if first < last:
            wanted.append((name, first - begin, last - first))
        begin += length
    return wanted
