"""What a stage says while it runs: its log, and where it stands.

A stage writes to its log alone. On a terminal the log's last line is always shown; in a
file that would be thousands of lines, so there it is one a minute, where it is new.
"""

import os
import re
import sys
import time

LINE_EVERY = 60  # seconds, of progress where there is no terminal
# Of a script's own one line, or of the end of a traceback.
_ERROR = re.compile(r"error: |(?!.*ChildFailedError)[\w.]*(Error|Exception)\b")
BEGIN = "=== "  # of a line of the log: a stage starts
# "2026-11-29 12:00:00,000 - speechbrain.core - INFO - ", or "speechbrain.core - "
_PREFIX = re.compile(r"^(?:[\d:, -]+ - )?(?:[\w.]+ - )(?:[A-Z]+ - )?")


class Progress:
    """The last line of a stage's log: on a terminal always, else now and then."""

    def __init__(self, title, log):
        self.title, self.log, self.began = title, log, time.monotonic()
        self.shown, self.at = "", self.began
        self.live = sys.stdout.isatty()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.live:
            print("\r\033[K", end="", flush=True)

    def show(self):
        """A line, if it is time for one and there is something new to say."""
        now = time.monotonic()
        if now - self.at < (1 if self.live else LINE_EVERY):
            return
        self.at, line = now, last_line(self.log)[:200]
        text = f"{self.title} {clock(now - self.began)}  {line}"
        if self.live:
            width = os.get_terminal_size(sys.stdout.fileno()).columns
            print(f"\r\033[K{text[: width - 1]}", end="", flush=True)
        elif line != self.shown:
            print(text, flush=True)
        self.shown = line


def last_line(log):
    """What a log says last, without who says it when."""
    return lines_of(log, 4096)[-1]


def reason(log):
    """Why a stage failed: its last error, or the last line of its log.

    Under torchrun its own summary comes last, which says less.
    """
    lines = lines_of(log)
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines)[-1].removeprefix("error: ")


def lines_of(log, size=65536):
    """Lines of the log's end that the last start of the stage has written; or [""]."""
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - size))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    lines = [line.rstrip() for line in lines if line.strip()]
    begins = [n for n, line in enumerate(lines) if line.startswith(BEGIN)]
    lines = lines[begins[-1] + 1 :] if begins else lines
    return [_PREFIX.sub("", line) for line in lines] or [""]


def clock(seconds):
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    long = f"{hours}:{minutes:02d}:{seconds:02d}"
    return long if hours else f"{minutes}:{seconds:02d}"
