"""Finding the recordings of a corpus: folder names give speaker and session.

Speaker corpora come as ``ROOT/wav/SPEAKER/SESSION/FILE.wav``, and every copy of one
has been unpacked a little differently. The rule here is narrow on purpose. Folders
with one of a few names (``wav``, ``flac``, ...) are looked for down to two folders
below the root; below such a folder exactly SPEAKER/SESSION/FILE counts. Where there is
none, the root itself is taken as the folder of speakers. All else (noise corpora kept
beside the speech, licences, hidden files) is ignored, counted and logged.

The ID of an utterance is its path below the folder of speakers, without extension, so
that a trial list written for wav files serves a corpus kept as flac.

Finding the recordings that lists name, wherever below a folder that is.

:func:`~speechbrain_ext.data.prepare.folders.scan_corpus` finds what may be trained on,
in the one shape that a corpus has. A trial list names its recordings by path, and not
every corpus keeps them in that shape: CN-Celeb's are
``test/id00800-singing-01-001.wav`` below ``eval`` and ``id00800/singing-01-002.wav``
below ``data``. So only the folders that are named are listed, at whatever depth.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from speechbrain_ext.data.audio import SOUND_FILES
from speechbrain_ext.scoring.trials import utterance_id
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

NEEDS_CONVERSION = ".m4a"
_RECORDINGS = (*SOUND_FILES, NEEDS_CONVERSION)
_SEARCH_DEPTH = 2
# Users keep these beside their speech; pointsource_noises/*.wav would pass for speech.
_NOISE_CORPORA = ("musan", "rirs_noises")


def session_of(utterance):
    """The session of an utterance ID: its folder."""
    return utterance.rsplit("/", 1)[0]


class Layout(NamedTuple):
    """How a corpus lies on the disk, and what its names tell.

    Attributes
    ----------
    folder_names : tuple of str
        Names of folders that hold the speakers, ``("wav", "flac")``.
    levels : int
        Folders from there down to a recording: 2 for SPEAKER/SESSION/FILE, 1 for
        SPEAKER/FILE.
    session_of : callable
        Utterance ID → its session, unique over speakers; InputError for a name that
        is none of this corpus.
    genre_of : callable or None
        Utterance ID → what kind of speech it is; None where names do not tell.
    """

    folder_names: tuple
    levels: int
    session_of: Callable = session_of
    genre_of: Callable | None = None

    def describe(self):
        """The accepted layouts in words, for messages."""
        names = "|".join(self.folder_names)
        inside = "SPEAKER/" + "SESSION/" * (self.levels - 1) + "FILE"
        files = ", ".join(f"*{extension}" for extension in _RECORDINGS)
        return (
            f"FOLDER/{inside}, FOLDER/{names}/{inside} or FOLDER/ANY/{names}/{inside}, "
            f"FILE being one of {files}"
        )


class Scan(NamedTuple):
    """What was found below some roots.

    Attributes
    ----------
    paths : dict of str to str
        Utterance ID → path of its recording, sorted by ID.
    speaker_folders : list of Path
        The folders of speakers, resolved.
    ignored : int
        Files and folders that fit no layout.
    """

    paths: dict
    speaker_folders: list
    ignored: int


def scan_corpus(roots, layout, num_workers=16, leave_out=()):
    """Find all recordings below some roots.

    Arguments
    ---------
    roots : list of str or Path
        Folders in which to look.
    layout : Layout
        What to look for.
    num_workers : int
        Threads; listing folders waits for the disk.
    leave_out : list of Path
        Resolved folders that are no part of the corpus although they lie below a
        root, such as where an earlier run put its converted copies.

    Returns
    -------
    Scan

    Raises
    ------
    InputError
        A root that is missing or holds no recording; two recordings with one ID; a
        name that does not fit into lists separated by spaces.
    """
    paths, folders, total_ignored = {}, [], 0
    for root in map(Path, roots):
        holders, ignored = find_speaker_folders(root, layout, leave_out)
        found = 0
        for folder in holders:
            if folder.resolve() in folders:
                found += 1  # an earlier root reaches the same folder
                continue
            folders.append(folder.resolve())
            n_files, n_ignored = _scan_folder(folder, layout, num_workers, paths)
            found += n_files
            ignored += n_ignored
        if not found:
            raise InputError(
                f"{root}: no recording found, expected {layout.describe()}"
            )
        total_ignored += ignored
        inside = ", ".join(os.path.relpath(f, root) for f in holders)
        logger.info(
            "%s: speakers looked for in %s; %d files or folders that are no "
            "recordings of them ignored",
            root,
            "the folder itself" if inside == "." else inside,
            ignored,
        )
    return Scan(dict(sorted(paths.items())), folders, total_ignored)


def find_speaker_folders(root, layout, leave_out=()):
    """Find the folders of speakers below a root; the root itself where there are none.

    Arguments
    ---------
    root : Path
        A folder of the user's.
    layout : Layout
        With the names of folders of speakers.
    leave_out : list of Path
        Resolved folders that are none.

    Returns
    -------
    folders : list of Path
        As the user wrote them, not resolved.
    ignored : int
        Entries that lie beside them. What is ignored counts once, whatever it holds.

    Raises
    ------
    InputError
        There is no such root.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder, expected {layout.describe()}")
    folders, ignored = _speaker_folders(root, layout.folder_names)
    return [f for f in folders if f == root or f.resolve() not in leave_out], ignored


def check_outside(folder, speaker_folders, name):
    """Refuse an output folder that lies within the user's recordings.

    Arguments
    ---------
    folder : Path
        The resolved output folder.
    speaker_folders : list of Path
        As in :class:`Scan`.
    name : str
        What the user calls the output folder.
    """
    for audio in speaker_folders:
        if folder == audio or audio in folder.parents:
            raise InputError(
                f"{name} {folder} lies in the folder of recordings {audio}, expected "
                "a folder outside: nothing is ever written among recordings"
            )


def _speaker_folders(root, names):
    """Folders with one of ``names`` at depth 0 to 2, and how many entries lie beside.

    What lies beside counts once, whatever it holds: it is not opened any further.
    """
    if root.name.lower() in names:
        return [root], 0
    found, ignored, level = [], 0, [root]
    for depth in range(_SEARCH_DEPTH):
        below = []
        for folder in level:
            for entry in _list_if_allowed(folder):
                if entry.is_dir() and entry.name.lower() in names:
                    found.append(Path(entry.path))
                elif not entry.is_dir() or _is_ignored_folder(entry):
                    ignored += 1
                elif depth + 1 < _SEARCH_DEPTH:
                    below.append(entry.path)
        level = below
    # Without such a folder the root is walked as the folder of speakers, and counted.
    return (found, ignored) if found else ([root], 0)


def _list_if_allowed(folder):
    """Entries by name; none where reading is not allowed, as in lost+found."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError as error:
        logger.warning("%s: passed over (%s)", folder, error.strerror)
        return []


def _is_ignored_folder(entry):
    return entry.name.startswith(".") or entry.name.lower() in _NOISE_CORPORA


def _scan_folder(folder, layout, num_workers, paths):
    """Add the recordings of one folder of speakers to ``paths``."""
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda e: e.name)
    speakers = [e for e in entries if e.is_dir() and not _is_ignored_folder(e)]
    ignored, n_files = len(entries) - len(speakers), 0

    def walk_speaker(entry):
        return list_recordings(entry.path, f"{entry.name}/", layout.levels - 1)

    for found, more in parallel_map(
        walk_speaker, speakers, num_workers, f"listing {folder}", "speaker", chunk=8
    ):
        ignored += more
        n_files += len(found)
        for utterance, path in found:
            known = paths.setdefault(utterance, path)
            if known is not path:
                check_same_file(utterance, known, path)
    return n_files, ignored


def list_recordings(folder, prefix, levels=0):
    """Recordings exactly ``levels`` folders below: [(ID, path)]; entries ignored."""
    found, ignored = [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir()
            if entry.name.startswith(".") or is_folder == (levels == 0):
                ignored += 1
            elif is_folder:
                inside = f"{prefix}{entry.name}/"
                below, more = list_recordings(entry.path, inside, levels - 1)
                found += below
                ignored += more
            elif os.path.splitext(entry.name)[1].lower() in _RECORDINGS:
                utterance = prefix + utterance_id(entry.name)
                _check_name(utterance, entry.path)
                found.append((utterance, entry.path))
            else:
                ignored += 1
    return found, ignored


def _check_name(utterance, path):
    # isprintable() is false for line ends, tabs and bytes that are not UTF-8.
    if " " in utterance or not path.isprintable():
        shown = path.encode("unicode_escape", "backslashreplace").decode()
        raise InputError(
            f"{shown}: white space or unprintable characters in its name, expected "
            "none: lists separate names by spaces"
        )


def check_same_file(utterance, first, second):
    """One file reached twice, by a link, is fine; two files with one ID are not."""
    if not os.path.samefile(first, second):
        raise InputError(
            f"{second}: the same utterance ID as {first} ('{utterance}'), expected one "
            "recording for each ID: give only one of the folders that hold them"
        )


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
