"""Reading a folder of shards to the last byte, against its checksums."""

import hashlib
import json
import logging
import os
import zlib
from pathlib import Path

from tqdm import tqdm

from speechbrain_ext.data.shards.index import read_marker
from speechbrain_ext.data.shards.writer import ShardCounts
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.parallel import in_processes

logger = logging.getLogger(__name__)


def check_shards(folder, max_bad_files=0, num_workers=None):
    """Compare all shards with their SHA-256, and damaged ones utterance by utterance.

    Arguments
    ---------
    folder : str or Path
    max_bad_files : int
        So many damaged utterances are only logged.
    num_workers : int, optional
        Processes; None: one for each core.

    Returns
    -------
    ShardCounts
        ``bad``: how many utterances are damaged.

    Raises
    ------
    InputError
        More damaged utterances than stated; names shard and utterance of the first.
    """
    folder = Path(folder).resolve()
    shards = read_marker(folder)["shards"]
    jobs = ((folder, shard) for shard in shards)
    bad = []
    with tqdm(total=len(shards), desc="checking", unit="shard", disable=None) as bar:
        for found in in_processes(_check_one, jobs, num_workers):
            for reason in found:
                logger.warning("%s", reason)
            bad += found
            bar.update(1)
    if len(bad) > max_bad_files:
        raise InputError(
            f"{bad[0]} ({len(bad)} bad utterances, expected at most max_bad_files="
            f"{max_bad_files}); delete the shard and run the command that made it again"
        )
    counts = (sum(shard[name] for shard in shards) for name in ("utterances", "bytes"))
    return ShardCounts(len(shards), *counts, len(bad))


def _check_one(job):
    """What is wrong with one shard: a line for each utterance."""
    folder, shard = job
    path = folder / shard["name"]
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
            if digest.hexdigest() == shard["sha256"]:
                return []
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            bad = list(_damaged(file, record["samples"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        # nothing is known of its utterances: each counts
        reason = getattr(error, "strerror", None) or "its .json is damaged"
        return [f"{path}: {reason}"] * max(shard["utterances"], 1)
    return bad or [f"{path}: SHA-256 differs, but no recording in it is damaged"]


def _damaged(file, samples):
    size = file.seek(0, os.SEEK_END)
    for name, parts in samples:
        for offset, length, _, crc in parts:
            file.seek(offset)
            if zlib.crc32(file.read(length)) != crc:
                cut = offset + length > size
                reason = f"truncated at byte {size}" if cut else "damaged"
                yield f"{file.name}!{name}: {reason}"
                break
