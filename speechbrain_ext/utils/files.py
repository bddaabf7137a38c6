"""Files: atomic writes, JSON checked against a schema, SHA-256, forms of names.

A file or folder is written beside its place, then renamed. JSON is read by
:func:`read_json`, which compares it with a schema.
"""

import contextlib
import hashlib
import json
import math
import os
import reprlib
import secrets
import shutil
import sys
import unicodedata
from pathlib import Path

from speechbrain_ext.utils.errors import InputError, describe_os_error

_WINDOWS = sys.platform == "win32"


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


def composed(name):
    """A name with each letter and its accents as one character (Unicode's NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def as_on_disk(folder, name):
    """Path of ``name`` below a folder, in the form of Unicode that the disk has.

    A disk of macOS may hold a letter and its accent as two characters where a list has
    one, or the other way round. What is not there is returned as it was written.
    """
    path = os.path.join(folder, name)
    if name.isascii() or os.path.exists(path):
        return path
    for part in name.split("/"):
        with contextlib.suppress(OSError):
            there = {composed(entry): entry for entry in os.listdir(folder or ".")}
            part = there.get(composed(part), part)
        folder = os.path.join(folder, part)
    return folder


def write_json(path, value):
    """Write ``value`` as indented JSON, atomically."""
    with write_atomically(path) as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write("\n")


_JSON_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "names and values",
    type(None): "null",
}


def read_json(path, schema, others=True, what="JSON"):
    """Read a JSON file of names and values, and check it.

    Arguments
    ---------
    path : str or Path
    schema : dict of str to object
        What each key must hold. A key that ends in ``?`` may be missing. A value is

        - a type; ``float`` takes whole numbers too, ``int`` takes no ``bool``;
        - a tuple: any of these types, ``None`` among them;
        - a list of one: a list whose items each fit it;
        - a dict: names and values, checked the same way;
        - a function: true of the value; its docstring says what is expected;
        - else the value itself.
    others : bool
        Whether the file may hold other keys, at any depth.
    what : str
        What the file should be, for the message: ``"a calibration"``.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        One line that names the file, and the key with the value seen and the one
        expected. A file that is missing, no UTF-8, truncated or nested too deeply, a
        key that stands twice, and NaN or infinity are errors too.

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.json"
    >>> write_json(path, {"epoch": 3, "costs": [0.5]})
    >>> read_json(path, {"epoch": int, "costs": [float], "stage?": str})["epoch"]
    3
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{describe_os_error(error)}, expected {what}") from error
    return parse_json(content, path, schema, others, what)


def parse_json(content, path, schema, others=True, what="JSON"):
    """As :func:`read_json`, of bytes or text that were found in the file ``path``."""
    try:
        if isinstance(content, bytes):
            content = content.decode()
        values = json.loads(
            content,
            object_pairs_hook=_without_duplicates,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as {what} ({error})") from error
    check_values(path, values, schema, others, what)
    return values


def check_values(path, values, schema, others=True, what="JSON"):
    """As :func:`read_json` does, of values that were read from the file ``path``."""
    _check_json(f"{path}: ", "", values, schema, others, what)


def _without_duplicates(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return values


def _finite(text):
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def _check_json(place, key, value, expected, others, what):
    """InputError unless ``value``, which stands at ``key``, is as ``expected``."""
    here = f"{place}{key or 'all of it'} is {reprlib.repr(value)}"
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            raise InputError(f"{here}, expected names and values ({what})")
        inside = f"{key}." if key else ""
        known = set()
        for name, wanted in expected.items():
            name, optional = name.removesuffix("?"), name.endswith("?")
            known.add(name)
            if name in value:
                _check_json(place, inside + name, value[name], wanted, others, what)
            elif not optional:
                raise InputError(f"{place}no {inside}{name}, expected {what}")
        if not others and (more := sorted(set(value) - known)):
            raise InputError(
                f"{place}{inside}{more[0]}, expected nothing but "
                f"{', '.join(sorted(known))} ({what})"
            )
    elif isinstance(expected, list):
        if not isinstance(value, list):
            raise InputError(f"{here}, expected a list")
        for number, item in enumerate(value):
            _check_json(place, f"{key}[{number}]", item, expected[0], others, what)
    elif isinstance(expected, type | tuple):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        kinds = [type(None) if kind is None else kind for kind in kinds]
        # JSON has one kind of number; a bool is none
        if type(value) not in kinds and not (type(value) is int and float in kinds):
            names = " or ".join(_JSON_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise InputError(f"{here}, expected {names}")
    elif callable(expected):
        try:
            fits = expected(value)
        except (TypeError, ValueError, LookupError, AttributeError):
            fits = False
        if not fits:
            words = (expected.__doc__ or expected.__name__).strip().split("\n")[0]
            raise InputError(f"{here}, expected {words.rstrip('.')}")
    elif type(value) is not type(expected) or value != expected:
        raise InputError(f"{here}, expected {expected!r}")


def sha256(path):
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder):
    """Have the files of a folder, one level deep, on the disk before going on.

    Without it, a machine that loses power after a rename may come back with the new
    name and empty files. Windows opens no folders, and syncs no file that was opened
    for reading alone.
    """
    paths, mode = [*Path(folder).iterdir(), Path(folder)], os.O_RDONLY
    if _WINDOWS:
        paths, mode = [path for path in paths if path.is_file()], os.O_RDWR
    for path in paths:
        descriptor = os.open(path, mode)
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
