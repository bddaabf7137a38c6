"""Finding the recordings that lists name, wherever below a folder that is.

:func:`~speechbrain_ext.data.scan.scan_corpus` finds what may be trained on, in the one
shape that a corpus has. A trial list names its recordings by path, and not every corpus
keeps them in that shape: CN-Celeb's are ``test/id00800-singing-01-001.wav`` below
``eval`` and ``id00800/singing-01-002.wav`` below ``data``. So only the folders that are
named are listed, at whatever depth.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

from speechbrain_ext.data.parallel import parallel_map
from speechbrain_ext.data.scan import (
    check_same_file,
    find_speaker_folders,
    list_recordings,
)

logger = logging.getLogger(__name__)


class Located(NamedTuple):
    """What was found.

    Attributes
    ----------
    paths : dict of str to str
        Utterance ID → path of its recording, sorted by ID.
    speaker_folders : list of Path
        The folders of speakers, resolved.
    """

    paths: dict
    speaker_folders: list


def find_recordings(names, roots, layout, num_workers=16, leave_out=()):
    """Find recordings by their names, in any format.

    A name is a path below a folder of speakers, as ``scan_corpus`` finds these, or
    else below the root itself.

    Arguments
    ---------
    names : list of str
        Utterance IDs.
    roots : list of str or Path
        Folders in which to look.
    layout : Layout
        With the names of folders of speakers; its depth does not matter.
    num_workers : int
        Threads.
    leave_out : list of Path
        Resolved folders that are no part of the corpus.

    Returns
    -------
    Located
        What is missing is not in it: whoever knows the list can say more about it.

    Raises
    ------
    InputError
        A root that is missing; two recordings of one name.
    """
    roots = list(map(Path, roots))
    holders = []
    for root in roots:
        holders += find_speaker_folders(root, layout, leave_out)[0]
    # A list that leads out of the folder would also lead copies out of theirs.
    inside = [n for n in names if not {"", ".", ".."}.intersection(n.split("/"))]
    found = {}
    for bases in (holders, [root for root in roots if root not in holders]):
        missing = [name for name in inside if name not in found]
        _look_up(missing, bases, num_workers, found)
    logger.info(
        "%s: %d of %d recordings of lists found",
        ", ".join(map(str, roots)),
        len(found),
        len(names),
    )
    return Located(dict(sorted(found.items())), [h.resolve() for h in holders])


def _look_up(names, bases, num_workers, found):
    """Add the paths of ``names`` below any of the folders ``bases`` to ``found``."""
    by_folder = {}
    for name in names:
        by_folder.setdefault(os.path.dirname(name), set()).add(name)
    jobs = [(base, folder) for base in bases for folder in by_folder]

    def list_folder(job):
        base, folder = job
        prefix = f"{folder}/" if folder else ""
        try:
            inside, _ = list_recordings(os.path.join(base, folder), prefix)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [item for item in inside if item[0] in by_folder[folder]]

    for inside in parallel_map(list_folder, jobs, num_workers, "looking up", "folder"):
        for name, path in inside:
            known = found.setdefault(name, path)
            if known is not path:
                check_same_file(name, known, path)
