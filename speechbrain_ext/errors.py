"""One clear line for bad input, exit code 1, no traceback.

Every check in this package raises :class:`InputError` with a message that names
the culprit, the value seen and the value expected. Command lines wrap their
``main`` in :func:`command_line`, which prints that line to stderr.
"""

import contextlib
import errno
import functools
import os
import sys


class InputError(Exception):
    """The user's input is wrong. The message is one line: culprit, seen, expected."""


@contextlib.contextmanager
def naming(culprit):
    """Begin the message of an InputError inside the block with ``culprit``."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{culprit}: {error}") from error


def command_line(main):
    """Turn errors a user can mend into one line on stderr and exit code 1.

    Programming errors keep their traceback: they are ours to mend, not the user's.

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

    return wrapped


def describe_os_error(error):
    """One line for an ``OSError``: which file, what went wrong, what to do."""
    name = getattr(error, "filename", None) or "(no file name)"
    if error.errno == errno.ENOSPC:
        return f"{name}: no space left on the device; free some and run again"
    return f"{name}: {error.strerror or error}"


def _die(message, code=1):
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr, flush=True)
    # Under torchrun the other ranks wait in a collective that this rank never joins;
    # leaving at once lets the launcher stop them.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)
    raise SystemExit(code)
