"""Finding the recordings of a corpus whose folder names tell speaker and session.

Speaker corpora come as ``ROOT/wav/SPEAKER/SESSION/FILE.wav``, and every copy of one
has been unpacked a little differently. The rule here is narrow on purpose. Folders
with one of a few names (``wav``, ``flac``, ...) are looked for down to two folders
below the root; below such a folder exactly SPEAKER/SESSION/FILE counts. Where there is
none, the root itself is the folder of speakers. All else (noise corpora kept beside the
speech, licences, hidden files) is ignored, counted and logged.

The ID of an utterance is its path below the folder of speakers, without extension, so
that a trial list written for wav files serves a corpus kept as flac. Of files in one
folder that have one ID, ``1.m4a`` beside ``1.wav``, the format that comes first in
:data:`~speechbrain_ext.scoring.trials.RECORDINGS` is taken: wav, flac, then others that
libsndfile reads, then those that need a decoder. A file whose name fits into no list is
left out, unless a list names it.

That shape is asked of what is trained on. A trial list names its recordings by path, in
any shape: CN-Celeb's are ``test/id00800-singing-01-001.wav`` below ``eval``. Those are
looked up by name, and only the folders that a list names are read.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

from speechbrain_ext.data.prepare.pipeline import Row
from speechbrain_ext.scoring.enrolment import speaker_of
from speechbrain_ext.scoring.trials import RECORDINGS, utterance_id
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import as_on_disk, composed
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

_SEARCH_DEPTH = 2
# Users keep these beside their speech; pointsource_noises/*.wav would pass for speech.
_NOISE_CORPORA = ("musan", "rirs_noises")


class Layout(NamedTuple):
    """How a corpus lies on the disk.

    ``folder_names`` are names of folders that hold the speakers, ``("wav", "flac")``;
    ``levels`` counts folders from there down to a recording: 2 for
    SPEAKER/SESSION/FILE, 1 for SPEAKER/FILE.
    """

    folder_names: tuple
    levels: int

    def describe(self):
        """The accepted layouts in words, for messages."""
        names = "|".join(self.folder_names)
        inside = "SPEAKER/" + "SESSION/" * (self.levels - 1) + "FILE"
        files = ", ".join(f"*{extension}" for extension in RECORDINGS)
        return (
            f"FOLDER/{inside}, FOLDER/{names}/{inside} or FOLDER/ANY/{names}/{inside}, "
            f"FILE being one of {files}"
        )


def session_of(utterance):
    """The session of an utterance ID: its folder."""
    return utterance.rsplit("/", 1)[0]


def find_rows(
    layout, options, test_ids, num_workers, session_of=session_of, genre_of=None
):
    """Rows of what may be trained on and what is tested: ``find`` of ``prepare``.

    ``session_of`` makes an ID a session, unique over speakers, and may refuse a name
    that is none of this corpus; ``genre_of``, optional, makes it a genre or None. Rows
    are sorted by ID; what the lists name and nobody finds is missing.

    Raises
    ------
    InputError
        A folder that is missing or holds no recording; two folders with one ID; a
        name in a list that does not fit into one; an output folder among the
        recordings.
    """
    leave_out = [options.convert_folder] if options.convert_folder else []
    train, holders = {}, []
    if options.train_folders:
        train, holders, _ = scan_corpus(
            options.train_folders, layout, num_workers, leave_out
        )
    shared = options.test_folders == options.train_folders
    absent = [name for name in test_ids if not (shared and name in train)]
    test, more = {}, []
    if absent:
        test, more = find_recordings(
            absent, options.test_folders, layout, num_workers, leave_out
        )
    for name in ("save_folder", "convert_folder"):
        if getattr(options, name):
            check_outside(getattr(options, name), holders + more, name)

    def row(name, path, session, split):
        genre = genre_of(name) or "unknown" if genre_of else ""
        return Row(name, path, speaker_of(name), session, split, genre)

    of_train = None if shared else "train"
    rows = [row(n, p, session_of(n), of_train) for n, p in train.items()]
    return rows + [row(name, path, "", "test") for name, path in test.items()]


def scan_corpus(roots, layout, num_workers=16, leave_out=()):
    """Find all recordings of a layout below some roots.

    ``leave_out`` are resolved folders that are no part of the corpus although they lie
    below a root, such as those of converted copies. → {utterance ID: path}, sorted; the
    folders of speakers, resolved; how many files and folders fit no layout. InputError
    as :func:`find_rows`.
    """
    found, folders, total_ignored = Found(), [], 0
    for root in map(Path, roots):
        holders, ignored = _find_speaker_folders(root, layout, leave_out)
        n_found = 0
        for folder in holders:
            if folder.resolve() in folders:
                n_found += 1  # an earlier root reaches the same folder
                continue
            folders.append(folder.resolve())
            entries = _entries(folder)
            speakers = [e for e in entries if e.is_dir() and not _is_ignored(e)]
            jobs = [(e.path, f"{e.name}/", layout.levels - 1) for e in speakers]
            n_new, n_ignored = _list_all(jobs, num_workers, f"listing {folder}", found)
            n_found += n_new
            ignored += n_ignored + len(entries) - len(speakers)
        if not n_found:
            if found.strange:
                raise InputError(_strange(found.strange[0]))
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
    found.warn()
    return dict(sorted(found.paths.items())), folders, total_ignored


def find_recordings(names, roots, layout, num_workers=16, leave_out=()):
    """Find recordings by their names, in any format.

    A name is a path below a folder of speakers or, where it is not found there, below
    the root itself. → {utterance ID: path}, sorted, without those not found; the
    folders of speakers, resolved. InputError: a root that is missing; two folders with
    one name; a recording whose name does not fit into lists.
    """
    roots, holders = list(map(Path, roots)), []
    for root in roots:
        holders += _find_speaker_folders(root, layout, leave_out)[0]
    # A list that leads out of the folder would also lead copies out of theirs.
    inside = [n for n in names if not {"", ".", ".."}.intersection(n.split("/"))]
    found = Found(names)
    for bases in (holders, [root for root in roots if root not in holders]):
        absent = found.names = {name for name in inside if name not in found.paths}
        folders = dict.fromkeys(map(os.path.dirname, sorted(absent)))
        jobs = [
            (as_on_disk(base, folder), f"{folder}/" if folder else "", 0)
            for base in bases
            for folder in folders
        ]
        _list_all(jobs, num_workers, "looking up", found)
    found.warn()
    logger.info(
        "%s: %d of %d recordings of lists found",
        ", ".join(map(str, roots)),
        len(found.paths),
        len(names),
    )
    return dict(sorted(found.paths.items())), [holder.resolve() for holder in holders]


class Found:
    """Recordings as they are found: {ID: path}, one for each ID.

    Arguments
    ---------
    names : set of str, optional
        The only IDs that count, those of a list. None: all.

    Attributes
    ----------
    paths : dict of str to str
    beside : list of (str, str)
        An ID, and a file of it that is left out for another in the same folder.
    strange : list of str
        Files that are left out, since no list could name them.
    """

    def __init__(self, names=None):
        self.names = names
        self.paths, self.beside, self.strange = {}, [], []

    def add(self, name, path):
        """→ whether it counts. InputError: two folders with one ID; as ``names``."""
        if self.names is not None and name not in self.names:
            return False
        # isprintable() is false for line ends, tabs and bytes that are not UTF-8.
        if " " in name or not name.isprintable():
            if self.names is not None:
                raise InputError(_strange(path))
            self.strange.append(path)
            return False
        known = self.paths.setdefault(name, path)
        if known is not path:
            self._settle(name, known, path)
        return True

    def _settle(self, name, known, path):
        if os.path.dirname(known) != os.path.dirname(path):
            check_same_file(name, known, path)
        elif not os.path.samefile(known, path):
            taken, left_out = sorted((known, path), key=preference)
            self.paths[name] = taken
            self.beside.append((name, left_out))

    def warn(self):
        """One warning of all that was left out, for either reason."""
        # At the end: of three formats the first that was taken may be left out itself.
        warn_of_copies([(self.paths[name], path) for name, path in self.beside])
        if self.strange:
            logger.warning(
                "%s; left out (%d such files)",
                *(_strange(min(self.strange)), len(self.strange)),
            )


def walk(root, onerror=None):
    """``os.walk`` with linked folders, each folder once, in order of their names."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=onerror):
        here = os.path.realpath(folder)
        if here in seen:  # a link to a folder above itself has no end
            below.clear()
            continue
        seen.add(here)
        below.sort()
        yield folder, below, files


def warn_of_copies(pairs):
    """One warning of [(file that was taken, other format of it beside)], if any."""
    if pairs:
        logger.warning(
            "%s is taken, not %s: one utterance ID in one folder (%d such files); wav "
            "goes before flac, and these before other formats",
            *(*min(pairs), len(pairs)),
        )


def preference(path):
    """Sorts files of one ID: by format as in RECORDINGS, then by name."""
    return RECORDINGS.index(os.path.splitext(path)[1].lower()), path


def _list_all(jobs, num_workers, description, found):
    """Add the recordings of many folders to what was found.

    ``jobs`` are arguments of :func:`list_recordings`. → recordings, entries ignored
    """

    def run(job):
        try:
            return list_recordings(*job)
        except (FileNotFoundError, NotADirectoryError):
            return [], 0

    n_found = n_ignored = 0
    listed = parallel_map(run, jobs, num_workers, description, "folder", chunk=8)
    for recordings, ignored in listed:
        n_ignored += ignored
        n_found += sum(found.add(*recording) for recording in recordings)
    return n_found, n_ignored


def _find_speaker_folders(root, layout, leave_out):
    """Folders of speakers below a root, as the user wrote them, or the root itself.

    Also how many entries lie beside them: each counts once, whatever it holds.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder, expected {layout.describe()}")
    if not str(root).isprintable():
        raise InputError(_strange(str(root)))
    folders, ignored = _speaker_folders(root, layout.folder_names)
    return [f for f in folders if f == root or f.resolve() not in leave_out], ignored


def check_outside(folder, speaker_folders, name):
    """Refuse a resolved output folder, called ``name``, among the recordings."""
    for audio in speaker_folders:
        if folder == audio or audio in folder.parents:
            raise InputError(
                f"{name} {folder} lies in the folder of recordings {audio}, expected "
                "a folder outside: nothing is ever written among recordings"
            )


def _speaker_folders(root, names):
    """Folders with one of ``names`` at depth 0 to 2; number of entries beside them."""
    if root.name.lower() in names:
        return [root], 0
    found, ignored, level = [], 0, [root]
    for depth in range(_SEARCH_DEPTH):
        below = []
        for folder in level:
            for entry in _entries(folder, if_allowed=True):
                if entry.is_dir() and entry.name.lower() in names:
                    found.append(Path(entry.path))
                elif not entry.is_dir() or _is_ignored(entry):
                    ignored += 1
                elif depth + 1 < _SEARCH_DEPTH:
                    below.append(entry.path)
        level = below
    # Without such a folder the root is walked as the folder of speakers, and counted.
    return (found, ignored) if found else ([root], 0)


def _entries(folder, if_allowed=False):
    """Entries by name; ``if_allowed`` passes over lost+found and the like."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError as error:
        if not if_allowed:
            raise
        logger.warning("%s: passed over (%s)", folder, error.strerror)
        return []


def _is_ignored(entry):
    return entry.name.startswith(".") or entry.name.lower() in _NOISE_CORPORA


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
            elif os.path.splitext(entry.name)[1].lower() in RECORDINGS:
                utterance = composed(prefix + utterance_id(entry.name))
                found.append((utterance, entry.path))
            else:
                ignored += 1
    return found, ignored


def _strange(path):
    shown = path.encode("unicode_escape", "backslashreplace").decode()
    return (
        f"{shown}: white space or unprintable characters in its name, expected none: "
        "lists separate names by spaces"
    )


def check_same_file(utterance, first, second):
    """One file reached twice, by a link, is fine; two files with one ID are not."""
    if not os.path.samefile(first, second):
        raise InputError(
            f"{second}: the same utterance ID as {first} ('{utterance}'), expected one "
            "recording for each ID: give only one of the folders that hold them"
        )
