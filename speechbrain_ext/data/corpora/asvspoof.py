"""ASVspoof on the disk: genuine speech, and speech that a machine made.

    ASVspoof 5   flac_T/ flac_D/ flac_E_eval/     T_0000000000.flac …
                 ASVspoof5.train.tsv ….dev.track_1.tsv ….eval.track_1.tsv
                 (the first phase: ASVspoof5.train.metadata.txt …, six columns)
    2019 LA      ASVspoof2019_LA_train/flac/ …    LA_T_1000137.flac …
                 ASVspoof2019.LA.cm.train.trn.txt ….dev.trl.txt ….eval.trl.txt
    2021 LA, DF  ASVspoof2021_LA_eval/flac/, ASVspoof2021_DF_eval_part00/…/flac/ …
                 keys/LA/CM/trial_metadata.txt, keys/DF/CM/trial_metadata.txt

Protocols may lie in any folder below, and the recordings in several, as archives in
parts unpack: what counts is the name of a protocol, and of one folder above a
recording. (Wang et al., ASVspoof workshop 2024; Wang et al., Computer Speech & Language
64, 2020; Liu et al., IEEE/ACM TASLP 31, 2023.)

A manifest has the columns ``ID,duration,wav,spk_id,key,attack,codec``.
"""

import filecmp
import logging
import os
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.data.audio import (
    BAD_FILES,
    read_durations,
    report_bad_files,
)
from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.data.prepare.folders import Found, check_outside, walk
from speechbrain_ext.data.prepare.pipeline import (
    as_list,
    resolve,
    states_of_manifests,
)
from speechbrain_ext.scoring.detection.files import (
    BONAFIDE,
    NONE,
    SPOOF,
    Words,
    keys_from,
    read_protocol,
    width_of,
    words_of,
)
from speechbrain_ext.scoring.trials import RECORDINGS, utterance_id
from speechbrain_ext.utils.errors import InputError, check_at_least, check_folder
from speechbrain_ext.utils.jobs import Marker

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "eval")
COLUMNS = ("key", "attack", "codec")  # beside those of every manifest


class Edition(NamedTuple):
    """How to tell an edition's files, by regular expressions.

    Attributes
    ----------
    protocols : dict of str to tuple of str
        Split → names of its protocol, the better first.
    folders : dict of str to str
        Split → name of a folder that holds its recordings, at any depth.
    names : str
        Of the protocols, in messages.
    width : int or None
        How many columns a protocol has, where its name does not tell.
    """

    protocols: dict
    folders: dict
    names: str
    width: int | None = None


EDITIONS = {
    "asvspoof5": Edition(
        {
            "train": (r"ASVspoof5\.train\.tsv", r"ASVspoof5\.train\.metadata\.txt"),
            "dev": (r"ASVspoof5\.dev\.track_1\.tsv", r"ASVspoof5\.dev\.metadata\.txt"),
            "eval": (r"ASVspoof5\.eval\.track_1\.tsv",),
        },
        # not flac_E_prog, whose recordings are others
        {
            "train": r"flac_T(_[a-z]{2})?(\.tar)?",
            "dev": r"flac_D(_[a-z]{2})?(\.tar)?",
            "eval": r"flac_E(_eval)?(_[a-z]{2})?(\.tar)?",
        },
        "ASVspoof5.train.tsv, ASVspoof5.dev.track_1.tsv, ASVspoof5.eval.track_1.tsv",
    ),
    "2019_la": Edition(
        {
            split: (rf"ASVspoof2019\.LA\.cm\.{split}\.(trn|trl)(\.txt)?",)
            for split in SPLITS
        },
        {split: rf"ASVspoof2019_LA_{split}" for split in SPLITS},
        "ASVspoof2019.LA.cm.train.trn.txt, ….dev.trl.txt, ….eval.trl.txt",
    ),
    "2021_la": Edition(
        {"eval": (r"trial_metadata\.txt",)},
        {"eval": r"ASVspoof2021_LA_eval(_part\d+)?"},
        "trial_metadata.txt of 8 columns",
        8,
    ),
    "2021_df": Edition(
        {"eval": (r"trial_metadata\.txt",)},
        {"eval": r"ASVspoof2021_DF_eval(_part\d+)?"},
        "trial_metadata.txt of 13 columns",
        13,
    ),
}


class PreparedDetection(NamedTuple):
    """What a preparation left behind.

    Attributes
    ----------
    train, dev, eval : Path or None
        The manifests; None of a split that is not there.
    counts : dict
        Of each split: ``speakers``, ``utterances``, ``hours``, ``bonafide``, ``spoof``,
        and ``attacks`` and ``codecs``, how many recordings each has.
    skipped : bool
        Whether all files were there already.
    """

    train: Path | None
    dev: Path | None
    eval: Path | None
    counts: dict
    skipped: bool


def prepare_asvspoof(
    folder,
    save_folder,
    edition=None,
    splits: list[str] | str | None = None,
    subset: str | None = "eval",
    max_bad_files=0,
    num_workers=16,
):
    """Prepare ASVspoof 5, 2019 LA, 2021 LA or 2021 DF, or a corpus of the same shape.

    A second call with the same arguments returns at once, unless a protocol, a
    recording or a written file has changed. Under DDP call it through SpeechBrain's
    ``run_on_main``.

    Arguments
    ---------
    folder : str or Path
        Holds protocols and recordings, at any depth.
    save_folder : str or Path
        Where ``train.csv``, ``dev.csv`` and ``eval.csv`` go.
    edition : str, optional
        ``asvspoof5``, ``2019_la``, ``2021_la`` or ``2021_df``; None: the one whose
        protocols are below ``folder``.
    splits : str or list of str, optional
        Those of ``train``, ``dev`` and ``eval`` that must be there. None: those of
        which a protocol and any recording are there.
    subset : str, optional
        Of the 2021 editions: ``eval``, by which results are published, ``progress``,
        ``hidden``; None: all of them.
    max_bad_files : int
        So many recordings may be missing or unusable; one more is an error.
    num_workers : int
        Threads. Changes neither the result nor the fingerprint.

    Returns
    -------
    PreparedDetection

    Raises
    ------
    InputError
        Anything wrong with an argument, a protocol or a recording: no or several
        editions, a protocol that
        :func:`~speechbrain_ext.scoring.detection.files.read_protocol` refuses, two
        files of one recording, a recording that is missing, of two splits or unusable,
        a split of one class.
    """
    if edition not in (None, *EDITIONS):
        raise InputError(f"edition: {edition!r}, expected one of {', '.join(EDITIONS)}")
    wanted = as_list(splits)
    if not set(wanted) <= set(SPLITS):
        raise InputError(f"splits: {splits!r}, expected some of {', '.join(SPLITS)}")
    check_at_least("max_bad_files", max_bad_files, 0)
    check_at_least("num_workers", num_workers, 1)
    root, save_folder = check_folder(resolve(folder)), resolve(save_folder)
    texts, audio = _look_through(root)
    edition, protocols = _find_protocols(root, texts, edition, wanted)
    arguments = {
        "folder": root,
        "save_folder": save_folder,
        "edition": edition,
        "splits": wanted,
        "subset": subset,
        "max_bad_files": max_bad_files,
    }
    marker = Marker.of(save_folder, arguments, list(protocols.values()))
    files = [save_folder / f"{split}.csv" for split in SPLITS]
    states = partial(states_of_manifests, files, num_workers)
    counts = marker.load(states)
    skipped = counts is not None
    if not skipped:
        keys = {split: read_protocol(p, subset) for split, p in protocols.items()}
        _check_keys(keys)
        found = _find_recordings(root, audio, EDITIONS[edition], keys, wanted)
        check_outside(save_folder, [Path(folder) for folder in audio], "save_folder")
        bad, manifests = _open(root, keys, found, num_workers)
        report_bad_files(bad, save_folder, max_bad_files)
        for split, manifest in manifests.items():
            is_bonafide = manifest.extra["key"] == BONAFIDE
            _check_classes(protocols[split], split, is_bonafide)
        counts = {split: _count(manifest) for split, manifest in manifests.items()}
        marker.remove()
        for split, file in zip(SPLITS, files):
            if split in manifests:
                write_manifest(file, manifests[split])
            else:
                file.unlink(missing_ok=True)
        listed = [BAD_FILES] if bad else []
        marker.save([f"{s}.csv" for s in manifests] + listed, counts, states())
    _log_counts(edition, counts)
    files = (file if file.is_file() else None for file in files)
    return PreparedDetection(*files, counts, skipped)


def _look_through(root):
    """Text files below a folder [path]; {folder: names of its recordings}."""
    texts, audio = [], {}
    for folder, _, files in walk(root):
        sounds = []
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in (".tsv", ".txt", ".trn", ".trl"):
                texts.append(Path(folder, name))
            elif suffix in RECORDINGS and not name.startswith("."):
                sounds.append(name)
        if sounds:
            audio[folder] = sounds
    return texts, audio


def _find_protocols(root, texts, edition, wanted):
    """The edition that is there, and {split: path} of its protocols."""
    found = {}
    for name in [edition] if edition else EDITIONS:
        of_name = EDITIONS[name]
        for split in of_name.protocols:
            path = _protocol(texts, of_name, split)
            if path is not None:
                found.setdefault(name, {})[split] = path
    if not found:
        expected = (EDITIONS[n].names for n in ([edition] if edition else EDITIONS))
        raise InputError(f"{root}: no protocol, expected {' or '.join(expected)}")
    if len(found) > 1:
        raise InputError(
            f"{root}: protocols of {', '.join(found)}, expected those of one edition, "
            f"or edition={next(iter(found))}"
        )
    ((edition, protocols),) = found.items()
    for split in wanted:
        if split not in protocols:
            raise InputError(
                f"{root}: no protocol of {split} of {edition}, expected "
                f"{EDITIONS[edition].names}"
            )
    kept = {s: p for s, p in protocols.items() if not wanted or s in wanted}
    return edition, kept


def _protocol(texts, edition, split):
    """The path of a split's protocol, or None; InputError where two differ."""
    for pattern in edition.protocols[split]:
        paths = [
            path
            for path in texts
            if re.fullmatch(pattern, path.name, re.I)
            and path.parent.name.lower() != "asv"  # the keys of verification
            and edition.width in (None, width_of(path))
        ]
        for path in paths[1:]:
            if not filecmp.cmp(paths[0], path, shallow=False):
                raise InputError(
                    f"{path}: another protocol of {split} than {paths[0]}, expected "
                    "one, or copies of it"
                )
        if paths:
            return min(paths, key=lambda path: (len(path.parts), path))
    return None


def _check_keys(keys):
    """InputError: one class alone, or a recording of two splits."""
    seen, speakers = {}, {}
    for split, of_split in keys.items():
        _check_classes(of_split.path, split, of_split.is_bonafide)
        for other, names in seen.items():
            both = names.intersection(of_split.names)
            if both:
                raise InputError(
                    f"{of_split.path}: {min(both)} is of {other}, too ({len(both)} "
                    "such recordings), expected each in one split"
                )
            shared = speakers[other].intersection(of_split.speakers.words)
            if shared:
                logger.warning(
                    "%s: %d speakers of %s, too, such as %s: figures will be too good",
                    *(of_split.path, len(shared), other, min(shared)),
                )
        seen[split] = set(of_split.names)
        speakers[split] = set(of_split.speakers.words)


def _check_classes(path, split, is_bonafide):
    n_bonafide = int(is_bonafide.sum())
    if n_bonafide in (0, len(is_bonafide)):
        raise InputError(
            f"{path}: {n_bonafide} {BONAFIDE} and {len(is_bonafide) - n_bonafide} "
            f"{SPOOF} in {split}, expected some of both"
        )


def _find_recordings(root, audio, edition, keys, wanted):
    """{split: {name: path}} of those recordings that are there.

    A split without any is left out, unless it is wanted.
    """
    found = {}
    for split, of_split in keys.items():
        pattern = edition.folders[split]
        named = [folder for folder in audio if _is_below(folder, pattern)]
        recordings = Found(set(of_split.names))
        for folder in named or audio:
            for name in audio[folder]:
                recordings.add(utterance_id(name), os.path.join(folder, name))
        recordings.warn()
        if recordings.paths or split in wanted:
            found[split] = recordings.paths
        else:
            logger.warning(
                "%s: no recording of it below %s: %s is left out",
                *(of_split.path, root, split),
            )
    if not found:
        first = next(iter(keys.values()))
        raise InputError(
            f"{root}: no recording of {first.path}, expected such as {first.names[0]}"
            ".flac"
        )
    return found


def _is_below(folder, pattern):
    return any(re.fullmatch(pattern, part, re.I) for part in Path(folder).parts)


def _open(root, keys, found, num_workers):
    """Open every recording → [(recording, what is wrong)], {split: Manifest}."""
    bad, manifests = [], {}
    for split, paths in found.items():
        of_split = keys[split]
        there = [name in paths for name in of_split.names]
        bad += [
            (f"{of_split.path}: line {line}: {name}", f"no such recording in {root}")
            for name, line, is_there in zip(
                of_split.names, of_split.lines.tolist(), there
            )
            if not is_there
        ]
        rows = np.flatnonzero(there)
        files = [paths[of_split.names[row]] for row in rows.tolist()]
        seconds, unreadable = read_durations(files, num_workers)
        bad += unreadable
        usable = np.isfinite(seconds)
        files = np.array(files, dtype=object)[usable]
        manifests[split] = manifest_of(of_split, rows[usable], files, seconds[usable])
    return bad, manifests


def manifest_of(keys, rows, paths, seconds):
    """Manifest of some rows of Keys: their paths and seconds [M]."""
    key = np.where(keys.is_bonafide[rows], BONAFIDE, SPOOF)
    columns = [
        [NONE] * len(rows) if column is None else column.select(rows).tolist()
        for column in (keys.speakers, keys.attacks, keys.codecs)
    ]
    names = np.array(keys.names, dtype=object)[rows]
    extra = dict(zip(COLUMNS, (key, *columns[1:])))
    return Manifest(names, paths, seconds, columns[0], extra=extra)


def _count(manifest):
    def numbers(name):
        names, counts = np.unique(manifest.extra[name], return_counts=True)
        return dict(zip(names.tolist(), counts.tolist()))

    keys = numbers("key")
    return {
        "speakers": len(manifest.speaker_names),
        "utterances": len(manifest),
        "hours": float(manifest.durations.sum() / 3600),
        BONAFIDE: keys.get(BONAFIDE, 0),
        SPOOF: keys.get(SPOOF, 0),
        "attacks": numbers("attack"),
        "codecs": numbers("codec"),
    }


def _log_counts(edition, counts):
    for split in filter(counts.get, SPLITS):
        seen = counts[split]
        logger.info(
            "%s, %s: %d speakers, %d utterances (%d bona fide, %d spoof), %.2f hours; "
            "%d attacks, %d codecs",
            *(edition, split, seen["speakers"], seen["utterances"]),
            *(seen[BONAFIDE], seen[SPOOF], seen["hours"]),
            *(len(set(seen[name]) - {NONE}) for name in ("attacks", "codecs")),
        )


def keys_of(path, manifest):
    """Keys of a detection manifest, which was read from ``path``.

    InputError: a manifest without the columns ``key``, ``attack`` and ``codec``, or
    with another key than ``bonafide`` and ``spoof``.
    """
    missing = [name for name in COLUMNS if name not in manifest.extra]
    if missing:
        raise InputError(
            f"{path}: no column {missing[0]!r}, expected ID,duration,wav,spk_id,"
            f"{','.join(COLUMNS)} as prepare_asvspoof writes them"
        )
    keys, attacks, codecs = (words_of(manifest.extra[name]) for name in COLUMNS)
    names = Words(manifest.ids.tolist(), np.arange(len(manifest)))
    return keys_from(path, names, keys, words_of(manifest.speakers), attacks, codecs, 2)
