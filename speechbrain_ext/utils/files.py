"""Files and folders that are either whole or absent: write beside, then rename."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path


@contextlib.contextmanager
def write_atomically(path, mode="w"):
    """Open a temporary file beside ``path`` and rename it over ``path`` at the end.

    A process killed in between, or a full disk, leaves the old file untouched. The
    temporary name is random, so that two writers, on one machine or on two that share
    a disk, do not mix their bytes: the last one to finish wins with a whole file.

    Arguments
    ---------
    path : str or Path
        The file to write. Its folder is created.
    mode : str
        ``"w"`` (UTF-8 text) or ``"wb"``.

    Yields
    ------
    file object
        Write to it; an exception inside the block removes it again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    options = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(beside, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError) and error.filename in (None, beside, str(beside)):
            error.filename = str(path)  # the name that the user knows
        raise


def write_json(path, value):
    """Write ``value`` as indented JSON, atomically."""
    with write_atomically(path) as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write("\n")


def sha256(path):
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder):
    """Have the files of a folder, one level deep, on the disk before going on.

    Without it, a machine that loses power after a rename may come back with the new
    name and empty files.
    """
    for path in [*Path(folder).iterdir(), Path(folder)]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def write_folder_atomically(folder):
    """Make a new folder beside ``folder`` and put it in its place at the end.

    Whatever ends the process, one of the two is whole. What else ``folder`` held is
    gone with it: whether it may be replaced is the caller's to check.

    Arguments
    ---------
    folder : str or Path
        Its parent is created.

    Yields
    ------
    Path
        The new folder, empty; an exception inside the block removes it again.
    """
    folder = Path(folder)
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    try:
        beside.mkdir(parents=True)
        yield beside
        sync_folder(beside)
        _replace_folder(beside, folder)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is not None:
            known = str(error.filename).replace(str(beside), str(folder))
            error.filename = known  # the name that the user knows
        raise


def _replace_folder(new, folder):
    """Put ``new`` in the place of ``folder``: at any moment one of them is whole."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
