"""VoxBlink2: 111,284 speakers and 9.9 million recordings (Lin et al. 2024).

    FOLDER/id000000/VIDEO/00000.wav      speaker, YouTube video, crop
    spk2videos                           lines ``id000000 VIDEO VIDEO ...``, all of them

as the corpus's own scripts leave them (github.com/VoxBlink2/ScriptsForVoxBlink2).

Videos disappear from YouTube, so that no copy is whole: what is missing is counted
against ``spk2videos``, and is no error. Its recordings have the channels of their
videos, often two; training takes their mean. Speakers and IDs begin with
``voxblink2-``: no name of another corpus does.

The corpus is read in parts of some hundred speakers. Each part is kept as soon as it is
done (:class:`~speechbrain_ext.utils.jobs.Part`), and a run that was killed continues.

Some crops come twice. Compared is the decoded sound, as 16 bit samples, and not the
file: the same crop written twice differs in its header (ffmpeg's version, the date) or
in its format. Only recordings of a speaker that share their length are opened.
"""

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from speechbrain_ext.data.arrow_manifest import (
    concatenate,
    encode,
    mix_manifests,
    read_table,
    write_table,
)
from speechbrain_ext.data.audio import (
    BAD_FILES,
    SAMPLE_RATE,
    read_header,
    report_bad_files,
)
from speechbrain_ext.data.prepare.folders import (
    Found,
    check_outside,
    list_recordings,
)
from speechbrain_ext.data.prepare.pipeline import as_list, resolve
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.jobs import Marker, Part, digest_of
from speechbrain_ext.utils.parallel import parallel_map

logger = logging.getLogger(__name__)

EXPECTED = "FOLDER/id000000/VIDEO/00000.wav or FOLDER/audio/id000000/VIDEO/00000.wav"
PREFIX = "voxblink2-"
TRAIN, DUPLICATES, PARTS = "train.arrow", "duplicates.txt", "parts"
SPEAKERS_PER_PART = 500
_SPEAKER = re.compile(r"id\d+")
# Where speakers may lie. cropper_audio.py leaves an empty ``audio`` among the speakers.
_INSIDE = ("audio", "wav", "flac")
_FOUND = ("speakers", "videos", "utterances", "of_several_channels")
_LEFT_OUT = ("bad_files", "too_short", "duplicates", "unlisted")


class PreparedTraining(NamedTuple):
    """``train`` manifest, ``counts``, and whether it was all there: ``skipped``.

    Counts are ``expected`` by ``spk2videos``, ``found`` on the disk, ``left_out`` and
    why, and what ``train`` has.
    """

    train: Path
    counts: dict
    skipped: bool


def prepare_voxblink2(
    folders,
    save_folder,
    spk2videos=None,
    drop_duplicates=False,
    min_seconds=0.4,
    max_bad_files=10_000,
    num_workers=16,
):
    """Prepare VoxBlink2.

    A second call with the same arguments returns at once, unless the list or a written
    file has changed. Recordings added to the folders later are not noticed: delete
    ``prepare.json`` (and ``parts``, after a run that was stopped) then.

    Arguments
    ---------
    folders : str, Path or list of them
        Where the speakers' folders are, ``FOLDER/id000000`` or
        ``FOLDER/audio/id000000``.
    save_folder : str or Path
        Where the prepared files go.
    spk2videos : str, Path or None
        The corpus's list of videos. Others are left out, and what is missing is
        counted.
    drop_duplicates : bool
        Leave out recordings whose samples are those of another one of the speaker.
    min_seconds : float
        Shorter recordings are left out.
    max_bad_files : int
        So many unusable recordings may be left out; one more is an error.
    num_workers : int
        Threads. Does not change the result.

    Returns
    -------
    PreparedTraining

    Raises
    ------
    InputError
        Anything wrong with an argument, a folder, the list or too many recordings.
    """
    folders = [resolve(path) for path in as_list(folders)]
    save_folder = resolve(save_folder)
    spk2videos = resolve(spk2videos) if spk2videos else None
    if not folders:
        raise InputError(f"folders is empty, expected {EXPECTED}")
    if not isinstance(drop_duplicates, bool):
        raise InputError(f"drop_duplicates={drop_duplicates!r}, expected True or False")
    check_at_least("min_seconds", min_seconds, 0, whole=False)
    check_at_least("max_bad_files", max_bad_files, 0)
    check_at_least("num_workers", num_workers, 1)
    # What decides on a part. To allow more bad files, none is read again.
    settings = {
        "folders": folders,
        "drop_duplicates": drop_duplicates,
        "min_seconds": min_seconds,
    }
    arguments = settings | {
        "save_folder": save_folder,
        "spk2videos": spk2videos,
        "max_bad_files": max_bad_files,
    }
    marker = Marker.of(save_folder, arguments, [spk2videos] if spk2videos else [])
    counts = marker.load()
    skipped = counts is not None
    if not skipped:
        counts = _prepare(marker, settings, spk2videos, max_bad_files, num_workers)
    _log_counts(counts)
    return PreparedTraining(marker.folder / TRAIN, counts, skipped)


def prepare_voxceleb_voxblink2(voxceleb, voxblink2, mixed_folder):
    """Prepare two corpora and train on both: the first at all speeds → Prepared.

    ``voxceleb`` and ``voxblink2`` are the two preparations without arguments, such as
    partials. Validation and test are the former's; the latter's speakers are played at
    true speed only. InputError as those; a speaker or an ID that both have.
    """
    prepared, added = voxceleb(), voxblink2()
    mixed = mix_manifests(prepared.train, added.train, mixed_folder)
    return prepared._replace(train=mixed)


def _prepare(marker, settings, spk2videos, max_bad_files, num_workers):
    """Read all parts, join and write them → counts."""
    videos = read_spk2videos(spk2videos) if spk2videos else None
    corpus = Corpus(settings["folders"])
    check_outside(marker.folder, corpus.holders, "save_folder")
    everybody = corpus.speakers()
    speakers = [s for s in everybody if videos is None or s in videos]
    firsts = range(0, len(speakers), SPEAKERS_PER_PART)
    parts = [speakers[first : first + SPEAKERS_PER_PART] for first in firsts]

    def make(number):
        return _make_part(
            marker.folder / f"{PARTS}/{number:05d}.arrow",
            parts[number],
            *(corpus, videos, settings),
        )

    made = parallel_map(
        make, range(len(parts)), num_workers, "reading speakers", "part", chunk=1
    )
    records = [record for record, _ in made]
    n_before = sum(not is_new for _, is_new in made)
    logger.info("%d of %d parts were read by an earlier run", n_before, len(made))
    bad = sorted(tuple(item) for record in records for item in record["bad"])
    report_bad_files(bad, marker.folder, max_bad_files)
    counts = _total(records, videos, len(everybody) - len(speakers))
    files = [marker.folder / f"{PARTS}/{n:05d}.arrow" for n in range(len(parts))]
    table = concatenate([read_table(file)[0] for file in files])
    counts["train"] = _count(table)
    if counts["train"]["speakers"] < 2:
        raise InputError(
            f"{settings['folders'][0]}: {counts['train']['speakers']} training "
            f"speakers are left, expected at least 2 (left out: {counts['left_out']})"
        )
    marker.remove()
    write_table(marker.folder / TRAIN, table)
    with write_atomically(marker.folder / DUPLICATES) as file:
        for record in records:
            file.writelines(f"{name}\t{of}\n" for name, of in record["duplicates"])
    marker.save([TRAIN, DUPLICATES] + [BAD_FILES] * bool(bad), counts)
    shutil.rmtree(marker.folder / PARTS)
    return counts


def _make_part(file, speakers, corpus, videos, settings):
    """Read some speakers into an Arrow file → its record, whether it was made now."""
    lines = [videos[name] for name in speakers] if videos else None
    part = Part(file, digest_of(settings, speakers, lines))
    record = part.load()
    if record is not None:
        return record, False
    details = {"bad": [], "duplicates": []}
    details |= {"found": dict.fromkeys(_FOUND, 0)}
    details |= {"left_out": dict.fromkeys(_LEFT_OUT, 0)}
    columns = [], [], [], []
    for speaker in speakers:
        listed = set(videos[speaker].split()) if videos else None
        recordings = corpus.read(speaker, listed)
        rows = _rows_of(speaker, recordings, settings, details)
        for column, more in zip(columns, rows):
            column.extend(more)
    part.remove()
    # Checked when all are joined: a part may be empty.
    write_table(file, encode(*columns), check=False)
    return part.save(**details), True


def _rows_of(speaker, recordings, settings, details):
    """ids, paths, seconds, speakers of one speaker; counts into ``details``."""
    names, paths, frames = recordings[:3]
    found, left_out = details["found"], details["left_out"]
    found["speakers"] += bool(names)
    found["videos"] += len({name.split("/")[0] for name in names})
    found["utterances"] += len(names)
    found["of_several_channels"] += sum(n > 1 for n in recordings.channels)
    least = settings["min_seconds"] * SAMPLE_RATE
    rows = [row for row, length in enumerate(frames) if length >= least]
    left_out["too_short"] += len(names) - len(rows)
    left_out["unlisted"] += recordings.n_unlisted
    ids = [f"{PREFIX}{speaker}/{name}" for name in names]
    bad = list(recordings.bad)
    if settings["drop_duplicates"]:
        rows, repeated, damaged = _without_duplicates(rows, paths, frames)
        left_out["duplicates"] += len(repeated)
        details["duplicates"] += [(ids[row], ids[of]) for row, of in repeated]
        bad += damaged
    left_out["bad_files"] += len(bad)
    details["bad"] += bad
    return (
        [ids[row] for row in rows],
        [paths[row] for row in rows],
        (np.array([frames[row] for row in rows]) / SAMPLE_RATE).tolist(),
        [PREFIX + speaker] * len(rows),
    )


def _count(table):
    speakers = table["spk_id"].chunk(0).dictionary if len(table) else ()
    return {
        "speakers": len(speakers),
        "utterances": len(table),
        "hours": float(np.sum(table["duration"].to_numpy()) / 3600),
    }


def _total(records, videos, n_unlisted_speakers):
    """Counts of all parts together."""
    counts = {"expected": {}, "found": {}, "left_out": {}}
    for record in records:
        for name in ("found", "left_out"):
            for what, number in record[name].items():
                counts[name][what] = counts[name].get(what, 0) + number
    counts["left_out"]["unlisted_speakers"] = n_unlisted_speakers
    if videos is not None:
        n_videos = sum(len(line.split()) for line in videos.values())
        counts["expected"] = {"speakers": len(videos), "videos": n_videos}
    return counts


def _log_counts(counts):
    for what, found in counts["found"].items():
        expected = counts["expected"].get(what)
        of = f" of {expected} ({found / max(expected, 1):.1%})" if expected else ""
        logger.info("found: %d %s%s", found, what.replace("_", " "), of)
    logger.info("left out: %s", counts["left_out"])
    logger.info(
        "train: %(speakers)d speakers, %(utterances)d utterances, %(hours).2f hours",
        counts["train"],
    )


def _without_duplicates(rows, paths, frames):
    """Rows to keep, (row, row that it repeats), (path, reason) of damaged files."""
    again, damaged = find_duplicates(
        [paths[row] for row in rows], [frames[row] for row in rows]
    )
    dropped = {*again, *(place for place, _ in damaged)}
    kept = [row for place, row in enumerate(rows) if place not in dropped]
    repeated = [(rows[place], rows[of]) for place, of in again.items()]
    return kept, repeated, [(paths[rows[place]], why) for place, why in damaged]


def find_duplicates(paths, frames):
    """Which recordings of one speaker repeat an earlier one; ``frames``: samples.

    → {row: first row of equal sound}, [(row, why it cannot be decoded)]
    """
    by_length = {}
    for row, length in enumerate(frames):
        by_length.setdefault(length, []).append(row)
    first, repeated, bad = {}, {}, []
    for rows in by_length.values():
        for row in rows if len(rows) > 1 else ():
            try:
                known = first.setdefault(_sound_hash(paths[row]), row)
            except InputError as error:
                bad.append((row, str(error).removeprefix(f"{paths[row]}: ")))
                continue
            if known != row:
                repeated[row] = known
    return repeated, bad


def _sound_hash(path):
    """BLAKE2b, 128 bits, of a recording's channels, rate and 16 bit samples."""
    try:
        samples, rate = soundfile.read(str(path), dtype="int16", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be decoded ({error})") from error
    digest = hashlib.blake2b(f"{samples.shape} {rate}".encode(), digest_size=16)
    digest.update(samples.reshape(-1).data)
    return digest.digest()


class Recordings(NamedTuple):
    """Usable recordings of one speaker; a name is VIDEO/CROP, ``frames`` are samples.

    ``bad``: (path, reason) of those that cannot be used; ``n_unlisted``: how many
    others belong to videos that were not asked for.
    """

    names: list
    paths: list
    frames: list
    channels: list
    bad: list
    n_unlisted: int = 0


class Corpus:
    """Who speaks, and what there is of one speaker, who may be in several folders."""

    def __init__(self, folders):
        self._folders, self.holders = {}, []
        for root in folders:
            if not root.is_dir():
                raise InputError(f"{root}: no such folder, expected {EXPECTED}")
            before = len(self.holders)
            for holder in (root, *(root / name for name in _INSIDE)):
                self._add(holder)
            if len(self.holders) == before:
                raise InputError(f"{root}: no speakers, expected {EXPECTED}")

    def _add(self, holder):
        names = _speakers_in(holder) if holder.is_dir() else []
        if names and holder not in self.holders:
            self.holders.append(holder)
            for name in names:
                self._folders.setdefault(name, []).append(holder / name)

    def speakers(self):
        """Names of all speakers, sorted."""
        return sorted(self._folders)

    def read(self, speaker, videos=None):
        """List the recordings of a speaker, or of some videos; read their headers."""
        found, n_unlisted = Found(), 0
        for folder in self._folders[speaker]:
            for name, path in list_recordings(folder, "", levels=1)[0]:
                if videos is not None and name.split("/")[0] not in videos:
                    n_unlisted += 1
                else:
                    found.add(name, path)
        found.warn()
        return _read_headers(found.paths)._replace(n_unlisted=n_unlisted)


def read_spk2videos(path):
    """``spk2videos`` → {speaker: its videos, separated by spaces}.

    One text for each speaker takes a tenth of the memory of a set.
    """
    videos = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                speaker, *listed = line.replace(",", " ").split()
                place = f"{path}: line {number}: {speaker!r}"
                if not _SPEAKER.fullmatch(speaker):
                    raise InputError(f"{place}, expected 'id000000 VIDEO VIDEO ...'")
                if speaker in videos:
                    raise InputError(f"{place} seen before, expected each once")
                videos[speaker] = " ".join(listed)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: expected UTF-8 text") from error
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}, expected VoxBlink2's spk2videos"
        ) from error
    return videos


def _speakers_in(folder):
    with os.scandir(folder) as entries:
        return [e.name for e in entries if _SPEAKER.fullmatch(e.name) and e.is_dir()]


def _read_headers(paths):
    good, bad = [], []
    for name, path in sorted(paths.items()):
        try:
            frames, rate, channels = read_header(path)
        except InputError as error:
            bad.append((path, str(error).removeprefix(f"{path}: ")))
            continue
        if rate != SAMPLE_RATE:
            bad.append((path, f"{rate} Hz, expected {SAMPLE_RATE} Hz"))
        elif frames < 1:
            bad.append((path, "0 samples, expected sound"))
        else:
            good.append((name, path, frames, channels))
    columns = [list(column) for column in zip(*good)] or [[], [], [], []]
    return Recordings(*columns, bad)
