"""What other programs write of who speaks where: Kaldi's folders, NeMo's JSON, RTTM.

    Kaldi   folder of wav.scp, utt2spk and, of segments, segments
    NeMo    {"audio_filepath": "a.wav", "offset": 1.5, "duration": 3.2, "label": "anna"}
    RTTM    SPEAKER meeting 1 12.50 4.20 <NA> <NA> anna <NA> <NA>

Each reader yields an Entry for each recording or segment; times become samples at
16 kHz. :mod:`speechbrain_ext.data.corpora.csv_file` reads CSV and checks them all.
"""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.data.prepare.folders import Found, walk
from speechbrain_ext.scoring.trials import RECORDINGS, utterance_id
from speechbrain_ext.utils.errors import InputError

logger = logging.getLogger(__name__)

LONGEST = 1e9  # seconds, thirty years: what is longer would only overflow
WAVS, SPEAKERS, SEGMENTS = "wav.scp", "utt2spk", "segments"


class Entry(NamedTuple):
    """One recording, or a segment of it, as it is listed.

    Attributes
    ----------
    place : str
        File and line.
    id, speaker, wav : str
    session : str
        Empty where the listing has none.
    start, stop : int or None
        Samples at 16 kHz. Both None: the whole recording; one: from its beginning, or
        to its end.
    seconds : float or None
        The duration that is stated.
    """

    place: str
    id: str
    speaker: str
    wav: str
    session: str = ""
    start: int | None = None
    stop: int | None = None
    seconds: float | None = None


def _lines(path, expected):
    """(place, text) of the lines of a file, without the blank ones."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.strip()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected {expected}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text") from error


def _samples(place, what, value, least=0.0):
    """Seconds → samples; InputError for what is no number of at least ``least``."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not least <= seconds <= LONGEST:
        raise InputError(
            f"{place}: {what} {value!r}, expected seconds, {least:g} or more"
        )
    return round(seconds * SAMPLE_RATE)


def _columns(path, count, expected):
    """{first word: (place, the others)} of a file of Kaldi's, each first word once."""
    found = {}
    for place, line in _lines(path, f"lines {expected}"):
        words = line.split(None, count - 1)
        if len(words) != count:
            raise InputError(
                f"{place}: {len(words)} columns, expected {count}: {expected}"
            )
        if words[0] in found:
            raise InputError(f"{place}: {words[0]!r} again, expected each once")
        found[words[0]] = place, words[1:]
    return found


def kaldi_files(folder):
    """The files of a data folder of Kaldi's that are read: two, or three."""
    files = [folder / WAVS, folder / SPEAKERS]
    return [*files, folder / SEGMENTS] if (folder / SEGMENTS).exists() else files


def read_kaldi(folder, _data_folder=None):
    """Entries of such a folder, in the order of ``utt2spk``.

    InputError names file and line: a command instead of a file in ``wav.scp``, another
    number of columns, a name twice, an utterance that is in one file and not in the
    other, a time that is none.
    """
    wavs = _columns(folder / WAVS, 2, "'recording file'")
    for place, (wav,) in wavs.values():
        if wav.endswith("|"):
            raise InputError(
                f"{place}: a command, {wav!r}, expected a file: run the command, and "
                "name what it writes"
            )
    speakers = _columns(folder / SPEAKERS, 2, "'utterance speaker'")
    cut = (folder / SEGMENTS).exists()
    expected = "'utterance recording start stop'"
    segments = _columns(folder / SEGMENTS, 4, expected) if cut else wavs
    file = folder / (SEGMENTS if cut else WAVS)
    for name, (place, _) in segments.items():
        if name not in speakers:
            raise InputError(
                f"{place}: utterance {name!r} is not in {folder / SPEAKERS}, expected "
                "its speaker there"
            )
    for name, (place, (speaker,)) in speakers.items():
        if name not in segments:
            raise InputError(f"{place}: utterance {name!r} is not in {file}")
        where, fields = segments[name]
        if not cut:
            yield Entry(where, name, speaker, fields[0])
            continue
        recording, start, stop = fields
        if recording not in wavs:
            raise InputError(f"{where}: no recording {recording!r} in {folder / WAVS}")
        stop = None if float_or_none(stop) == -1 else _samples(where, "stop", stop)
        start = _samples(where, "start", start)
        wav = wavs[recording][1][0]
        yield Entry(where, name, speaker, wav, recording, start, stop)


def float_or_none(text):
    """A number, or None of what is none."""
    try:
        return float(text)
    except ValueError:
        return None


def read_nemo(path, _data_folder=None):
    """Entries of lines of JSON, in their order.

    The ID is the path without extension, and where several lines have this path,
    followed by ``/START-STOP`` in samples. InputError names the line: no JSON object,
    no path or speaker, times that are none.
    """
    entries, seen = [], {}
    for place, line in _lines(path, "lines of JSON"):
        entry = _nemo_entry(place, line)
        entries.append(entry)
        seen[entry.wav] = seen.get(entry.wav, 0) + 1
    for entry in entries:
        name = utterance_id("_".join(entry.wav.split())).lstrip("/")
        if seen[entry.wav] > 1:
            name += f"/{entry.start or 0}-{'' if entry.stop is None else entry.stop}"
        yield entry._replace(id=name)


def _nemo_entry(place, line):
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InputError(
            f"{place}: {line[:40]!r}, expected one JSON object on each line, with "
            "audio_filepath, duration and label"
        )
    wav = fields.get("audio_filepath")
    if not isinstance(wav, str) or not wav:
        raise InputError(
            f"{place}: audio_filepath {wav!r}, expected the name of a file"
        )
    speaker = fields.get("speaker")
    speaker = fields.get("label") if speaker is None else speaker
    if isinstance(speaker, bool) or not isinstance(speaker, (str, int)):
        raise InputError(f"{place}: label {speaker!r}, expected the speaker")
    start, stop = fields.get("offset"), fields.get("duration")
    if start is not None:
        start = _samples(place, "offset", start)
    if stop is not None:
        stop = (start or 0) + _samples(place, "duration", stop)
    return Entry(place, "", str(speaker), wav, start=start, stop=stop)


def read_rttm(path, data_folder):
    """Entries of the turns of an RTTM file, in its order.

    Recordings are those in or below ``data_folder`` that have the name that the file
    gives them, with any extension. The ID of a turn is SPEAKER/NAME/START-STOP, in
    samples. Turns of no length are left out, with one warning. InputError names the
    line: fewer columns, a channel other than 1, times that are none, no recording or
    several of this name.
    """
    found, empty = None, []
    for place, line in _lines(path, "lines of RTTM"):
        words = line.split()
        if words[0] != "SPEAKER":  # SPKR-INFO, NON-SPEECH, comments
            continue
        if len(words) < 8:
            raise InputError(
                f"{place}: {len(words)} columns, expected 'SPEAKER name 1 start "
                "duration <NA> <NA> speaker'"
            )
        name, channel, speaker = words[1], words[2], words[7]
        if channel not in ("1", "0", "<NA>"):  # Kaldi's scripts write 0
            raise InputError(f"{place}: channel {channel!r}, expected 1: mono")
        start = _samples(place, "start", words[3])
        stop = start + _samples(place, "duration", words[4])
        if start == stop:
            empty.append(place)
            continue
        found = _recordings_below(data_folder) if found is None else found
        wavs = found.get(utterance_id(name), ())
        if len(wavs) != 1:
            several = f"{len(wavs)} recordings {wavs[0]}, …" if wavs else "no recording"
            raise InputError(
                f"{place}: {several} called {name!r} in {data_folder}, expected one"
            )
        turn = f"{speaker}/{utterance_id(name)}/{start}-{stop}"
        yield Entry(place, turn, speaker, wavs[0], start=start, stop=stop)
    if empty:
        logger.warning(
            "%s: a turn of no length, left out (%d such turns)", empty[0], len(empty)
        )


def _recordings_below(root):
    """{name: paths} of all recordings below a folder, by their name and their path."""
    found, names = Found(), {}
    for folder, _, files in walk(root):
        for file in files:
            if file.lower().endswith(RECORDINGS) and not file.startswith("."):
                path = os.path.join(folder, file)
                found.add(utterance_id(Path(path).relative_to(root).as_posix()), path)
    found.warn()
    for name, path in found.paths.items():
        for key in {name, name.rsplit("/", 1)[-1]}:
            names.setdefault(key, []).append(path)
    return names
