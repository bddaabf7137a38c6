"""One clear line for bad input, exit code 1, no traceback.

Every check in this package raises :class:`InputError` with a message that names
the culprit, the value seen and the value expected. Command lines wrap their
``main`` in :func:`command_line`, which prints that line to stderr.

Of several processes the one that failed says why and leaves at once; the others, which
notice by a connection that is closed, leave it the last word.
"""

import contextlib
import errno
import functools
import importlib.metadata
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path

from speechbrain_ext import __version__

# In the messages of torch's RuntimeErrors when another process is gone.
_CONNECTION = ("gloo/transport", "NCCL", "TCPStore")
# Longer than torchrun takes to notice one failure and to end the other processes.
_SECONDS_TO_BE_ENDED = 5


class InputError(Exception):
    """The user's input is wrong. The message is one line: culprit, seen, expected."""


class NoSpeechError(InputError):
    """A recording holds no speech, or too little: an answer of its own, no mistake."""


WHEEL = f"speechbrain_ext-{__version__}-py3-none-any.whl"


def repository():
    """The address of this package's repository, as setup.py says."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        about = importlib.metadata.metadata("speechbrain_ext")
        if about.get("Home-page"):
            return about["Home-page"]
    return "its repository"  # run without being installed


def how_to_install(extra):
    """The words for an optional part, ``app``: no index holds the package itself."""
    return (
        f"pip install '.[{extra}]' in a checkout of {repository()}, or pip install "
        f"'{WHEEL}[{extra}]'"
    )


@contextlib.contextmanager
def naming(culprit):
    """Begin the message of an InputError inside the block with ``culprit``."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{culprit}: {error}") from error


def check_at_least(name, value, minimum, whole=True):
    """Raise an InputError for what is no finite number, or below ``minimum``."""
    kind = int if whole else (int, float)
    # bool is a kind of int; NaN compares false with everything.
    right = isinstance(value, kind) and not isinstance(value, bool)
    if not (right and math.isfinite(value) and value >= minimum):
        what = "a whole number" if whole else "a number"
        raise InputError(f"{name}={value!r}, expected {what} of at least {minimum}")


def check_folder(path):
    """The Path of a folder, or InputError where there is none."""
    if not os.path.isdir(path):
        raise InputError(f"{path}: no such folder")
    return Path(path)


def command_line(main):
    """Turn errors a user can mend into one line on stderr and exit code 1.

    Programming errors keep their traceback: they are ours to mend, not the user's. In
    one of several processes they end in one line, too, with the rank.

    Arguments
    ---------
    main : callable
        The function that runs the command.

    Returns
    -------
    callable
        The same function, which exits with 1 where ``main`` met bad input, a full
        disk or a missing file, and with 130 where the user pressed Ctrl-C.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except InputError as error:
            _die(str(error))
        except OSError as error:
            _die(describe_os_error(error))
        except KeyboardInterrupt:
            _die("interrupted by the user", code=130)
        except Exception as error:
            if not _one_of_several():
                raise
            _die(_describe_failure(error))

    return wrapped


def describe_os_error(error):
    """One line for an ``OSError``: which file, what went wrong, what to do."""
    name = getattr(error, "filename", None) or "(no file name)"
    if error.errno == errno.ENOSPC:
        return f"{name}: no space left on the device; free some and run again"
    return f"{name}: {error.strerror or error}"


def lost_connection(error):
    """Whether torch says by this error that another process is gone."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(n in text for n in _CONNECTION)


def _one_of_several():
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _describe_failure(error):
    """One line, after the traceback, or after time for the culprit's own line."""
    if lost_connection(error):
        time.sleep(_SECONDS_TO_BE_ENDED)
        return f"lost the other processes; the one that ended first says why ({error})"
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def _die(message, code=1):
    line = " ".join(message.split())
    if not _one_of_several():
        print(f"error: {line}", file=sys.stderr, flush=True)
        raise SystemExit(code)
    line = f"rank {os.environ.get('RANK', '0')}: {line}"
    print(f"error: {line}", file=sys.stderr, flush=True)
    _tell_torchrun(line)
    # The other ranks wait in a collective that this rank never joins; leaving at once
    # lets the launcher stop them.
    os._exit(code)


def _tell_torchrun(line):
    """What its last words quote, in the form of its own ``record`` decorator."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        # In whole seconds, the earliest of all is the root cause. A second off, so that
        # processes which end because of this one do not seem to end with it.
        about = {"py_callstack": line, "timestamp": str(int(time.time()) - 1)}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": line, "extraInfo": about}}, file)
