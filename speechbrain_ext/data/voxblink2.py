"""Preparing VoxBlink2: 111,284 speakers and 9.9 million recordings (Lin et al. 2024).

Videos disappear from YouTube, so that no copy is whole: what is missing is counted
against ``spk2videos``, and is no error. Its recordings have the channels of their
videos, often two; training takes their mean. Speakers and IDs begin with
``voxblink2-``: no name of another corpus does.

How it lies on the disk: :mod:`speechbrain_ext.data.voxblink2_corpus`.
"""

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.data.arrow_manifest import concatenate, write_table
from speechbrain_ext.data.headers import BAD_FILES, report_bad_files
from speechbrain_ext.data.marker import Marker
from speechbrain_ext.data.options import as_list, check_at_least, resolve
from speechbrain_ext.data.parallel import parallel_map
from speechbrain_ext.data.scan import check_outside
from speechbrain_ext.data.voxblink2_corpus import EXPECTED, Corpus, read_spk2videos
from speechbrain_ext.data.voxblink2_parts import Parts
from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_atomically

logger = logging.getLogger(__name__)

PREFIX = "voxblink2-"
TRAIN, DUPLICATES, PARTS = "train.arrow", "duplicates.txt", "parts"
# What decides on the content of a part. To allow more bad files, none is read again.
_OF_PARTS = ("folders", "drop_duplicates", "min_seconds")


@dataclass(kw_only=True)
class VoxBlink2Options:
    """Every argument that shapes the result, checked, its paths resolved.

    The attributes are described in the recipe, at ``prepare_voxblink2``.
    """

    folders: list
    save_folder: Path
    spk2videos: Path | None = None
    drop_duplicates: bool = False
    min_seconds: float = 0.4
    max_bad_files: int = 10_000

    def __post_init__(self):
        self.folders = [resolve(path) for path in as_list(self.folders)]
        self.save_folder = resolve(self.save_folder)
        self.spk2videos = resolve(self.spk2videos) if self.spk2videos else None
        if not self.folders:
            raise InputError(f"folders is empty, expected {EXPECTED}")
        if not isinstance(self.drop_duplicates, bool):
            raise InputError(
                f"drop_duplicates={self.drop_duplicates!r}, expected True or False"
            )
        check_at_least("min_seconds", self.min_seconds, 0, whole=False)
        check_at_least("max_bad_files", self.max_bad_files, 0)


class PreparedTraining(NamedTuple):
    """What a preparation left behind.

    Attributes
    ----------
    train : Path
        The manifest.
    counts : dict
        ``expected`` by ``spk2videos``, ``found`` on the disk, ``left_out`` and why,
        and what ``train`` has.
    skipped : bool
        All was there already.
    """

    train: Path
    counts: dict
    skipped: bool


def prepare_training(options, corpus=None, num_workers=16):
    """Prepare VoxBlink2, or return at once where that was done before.

    Arguments
    ---------
    options : VoxBlink2Options
    corpus : Corpus, optional
        Or something with its ``speakers`` and ``read``, in the place of the folders.
    num_workers : int
        Threads. Changes neither the result nor the fingerprint.

    Returns
    -------
    PreparedTraining

    Raises
    ------
    InputError
        Anything wrong with a folder or list; too many bad recordings; none left.
    OSError
        The disk is full. What was read up to then is kept for the next run.
    """
    check_at_least("num_workers", num_workers, 1)
    lists = [options.spk2videos] if options.spk2videos else []
    marker = Marker.of(options.save_folder, asdict(options), lists)
    counts = marker.load()
    skipped = counts is not None
    if not skipped:
        counts = _prepare(options, corpus, num_workers, marker)
    _log_counts(counts)
    return PreparedTraining(marker.folder / TRAIN, counts, skipped)


def _prepare(options, corpus, num_workers, marker):
    """Read all parts, join and write them → counts."""
    videos = read_spk2videos(options.spk2videos) if options.spk2videos else None
    if corpus is None:
        corpus = Corpus(options.folders)
        check_outside(options.save_folder, corpus.holders, "save_folder")
    settings = {name: getattr(options, name) for name in _OF_PARTS}
    parts = Parts(marker.folder / PARTS, corpus, settings, PREFIX, videos)
    known = parallel_map(
        parts.make, parts.numbers, num_workers, "reading speakers", "part", chunk=1
    )
    logger.info("%d of %d parts were read by an earlier run", sum(known), len(known))
    tables, details = zip(*parts.collect()) if parts.numbers else ((), ())
    bad = sorted(tuple(item) for part in details for item in part["bad"])
    report_bad_files(bad, marker.folder, options.max_bad_files)
    counts = _total(details, videos, parts.n_unlisted_speakers)
    table = concatenate(list(tables))
    counts["train"] = _count(table)
    if counts["train"]["speakers"] < 2:
        raise InputError(
            f"{options.folders[0]}: {counts['train']['speakers']} training speakers "
            f"are left, expected at least 2 (left out: {counts['left_out']})"
        )
    marker.remove()
    write_table(marker.folder / TRAIN, table)
    with write_atomically(marker.folder / DUPLICATES) as file:
        for part in details:
            file.writelines(f"{name}\t{first}\n" for name, first in part["duplicates"])
    marker.save([TRAIN, DUPLICATES] + [BAD_FILES] * bool(bad), counts)
    shutil.rmtree(parts.folder)
    return counts


def _count(table):
    speakers = table["spk_id"].chunk(0).dictionary if len(table) else ()
    return {
        "speakers": len(speakers),
        "utterances": len(table),
        "hours": float(np.sum(table["duration"].to_numpy()) / 3600),
    }


def _total(details, videos, n_unlisted_speakers):
    """Counts of all parts together."""
    counts = {"expected": {}, "found": {}, "left_out": {}}
    for part in details:
        for name in ("found", "left_out"):
            for what, number in part[name].items():
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
