"""What no manifest may hold: checks on the columns of an Arrow table, numbers first.

A text that is empty, or an ID that comes twice, is found among the numbers that stand
for texts: ten million IDs are compared without one of them being made.

Manifests of many millions of recordings: an Arrow file, read where it lies.

    ID = ID_head + ID_tail, wav = wav_head + wav_tail      split after the last slash

Each part, and ``spk_id``, is a dictionary column: the texts once, and int32 numbers
that refer to them; ``duration`` is float64, seconds. Opening the file maps it into
memory. Nothing is copied: the training processes of a machine and all their loader
workers share one copy, in the system's cache of files, and start at once.

The dictionary of ``spk_id`` is in the order of the labels: the speakers that are
speed-perturbed, sorted, and then the others (:mod:`speechbrain_ext.data.labels`). The
file is an ordinary Arrow IPC file, which ``pyarrow.ipc.open_file`` and pandas'
``read_feather`` show.

Two corpora in one manifest: one speed-perturbed, the other as it is.

Speed copies count as new speakers. A corpus of 100,000 speakers needs none: VoxCeleb2
is trained on at three speeds, VoxBlink2 at true speed only (arXiv 2510.04213).
"""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechbrain_ext.data.manifest import (
    TEXT,
    EncodedText,
    JoinedText,
    Manifest,
    read_manifest,
)
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.jobs import Marker


def piece(table, name):
    """A column of a table in one piece, as an array."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else column.combine_chunks()


def check_rows(path, table):
    """Refuse empty texts and durations that are none; names the first row."""
    durations = piece(table, "duration").to_numpy(zero_copy_only=False)
    bad = ~((durations > 0) & (durations < np.inf))
    _refuse(path, bad, lambda row: f"duration {durations[row]}, expected seconds > 0")
    for name, parts in (
        ("ID", ("ID_head", "ID_tail")),
        ("wav", ("wav_head", "wav_tail")),
        ("spk_id", ("spk_id",)),
    ):
        if any(table.column(part).null_count for part in parts):
            raise InputError(f"{path}: rows without {name}, expected text in each")
        columns = [piece(table, part) for part in parts]
        empty = [pc.index(column.dictionary, "").as_py() for column in columns]
        if -1 not in empty:
            bad = [column.indices.to_numpy() == e for column, e in zip(columns, empty)]
            message = f"empty {name}, expected text"
            _refuse(path, np.logical_and.reduce(bad), lambda _, text=message: text)


def check_unique(path, table):
    """Refuse an ID that comes twice; names the second row."""
    heads, tails = piece(table, "ID_head"), piece(table, "ID_tail")
    keys = heads.indices.to_numpy() * np.int64(len(tails.dictionary))
    keys += tails.indices.to_numpy()
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        again = np.flatnonzero(np.isin(keys, twice))
        row = min(rows[1] for key in twice if len(rows := again[keys[again] == key]))
        name = heads[row].as_py() + tails[row].as_py()
        raise InputError(
            f"{path}, row {row + 1}: ID {name!r} seen before, expected each ID once"
        )


def _refuse(path, bad, message):
    rows = np.flatnonzero(bad)
    if len(rows):
        raise InputError(f"{path}, row {rows[0] + 1}: {message(rows[0])}")


_FORMAT, _VERSION = b"speechbrain_ext.manifest", b"1"
_PERTURBED, _DETAILS = b"n_perturbed", b"details"
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
_TEXTS = ("ID_head", "ID_tail", "wav_head", "wav_tail", "spk_id")
SCHEMA = pa.schema([*((name, _DICTIONARY) for name in _TEXTS), ("duration", "f8")])
_SPLIT = r"(?s)^(?P<head>.*/)?(?P<tail>[^/]*)$"
_ROWS_AT_ONCE = 200_000


# -- tables ----------------------------------------------------------------------------


def encode(ids, paths, durations, speakers):
    """Some rows as a table.

    Arguments
    ---------
    ids, paths, speakers : list of str
        [N] each.
    durations : sequence of float
        [N], seconds.

    Returns
    -------
    pyarrow.Table
        Of ``SCHEMA``.
    """
    columns = [*_split(ids), *_split(paths), _encoded(pa.array(speakers, pa.string()))]
    durations = pa.array(np.asarray(durations, dtype=np.float64))
    return pa.table([*columns, durations], schema=SCHEMA)


def concatenate(tables, n_first=0):
    """Tables, one below the other; speakers sorted.

    Arguments
    ---------
    tables : list of pyarrow.Table
        Of ``SCHEMA``.
    n_first : int
        So many speakers, the first of the first table, keep their places.

    Returns
    -------
    pyarrow.Table
        In one piece: dictionaries are joined, rows are numbers into them.
    """
    table = pa.concat_tables(tables or [SCHEMA.empty_table()])
    table = table.unify_dictionaries().combine_chunks()
    speakers = piece(table, "spk_id")
    names = np.array(speakers.dictionary.to_pylist(), dtype=TEXT)
    order = np.arange(len(names))
    order[n_first:] = n_first + np.argsort(names[n_first:], kind="stable")
    if np.array_equal(order, np.arange(len(names))):
        return table
    number = np.empty(len(names), dtype=np.int32)
    number[order] = np.arange(len(names))
    codes = number[speakers.indices.to_numpy()]
    column = _dictionary_array(codes, speakers.dictionary.take(pa.array(order)))
    return table.set_column(_TEXTS.index("spk_id"), SCHEMA.field("spk_id"), column)


def table_of(manifest):
    """A manifest's rows as a table; its speakers in the order of its labels."""
    columns = [*_halves(manifest.ids), *_halves(manifest.paths)]
    names = pa.array(manifest.speaker_names.tolist(), pa.string())
    columns.append(_dictionary_array(manifest.labels.astype(np.int32), names))
    return pa.table([*columns, pa.array(manifest.durations)], schema=SCHEMA)


def manifest_of(table, n_perturbed=None):
    """A table in one piece as a manifest; no row is copied."""
    heads_and_tails = [
        EncodedText(column.indices.to_numpy(), column.dictionary)
        for column in (piece(table, name) for name in _TEXTS)
    ]
    id_head, id_tail, path_head, path_tail, speakers = heads_and_tails
    return Manifest(
        JoinedText(id_head, id_tail),
        JoinedText(path_head, path_tail),
        piece(table, "duration").to_numpy(),
        speakers,
        n_perturbed,
    )


# -- files -----------------------------------------------------------------------------


def write_arrow(path, manifest):
    """Write a manifest, whole or not at all; ``write_manifest`` calls this.

    Raises
    ------
    InputError
        No rows, an empty text, an ID seen before, a duration that is no positive
        number: names the row.
    """
    write_table(path, table_of(manifest), manifest.n_perturbed)


def read_arrow(path):
    """Open a manifest that :func:`write_arrow` wrote; ``read_manifest`` calls this.

    Every number, text and duration is checked, except that IDs differ, which writing
    has checked: that would cost as much memory again in each process.

    Raises
    ------
    InputError
        A file that is missing, truncated, damaged, of other columns, or without rows.
    """
    table, perturbed, _ = read_table(path)
    if not len(table):
        raise InputError(f"{path}: no rows, expected recordings")
    check_rows(path, table)
    manifest = manifest_of(table, perturbed)
    n_speakers = len(manifest.speaker_names)
    if perturbed is not None and not 0 <= perturbed <= n_speakers:
        raise InputError(
            f"{path}: {perturbed} perturbed speakers, expected at most {n_speakers}"
        )
    return manifest


def write_table(path, table, n_perturbed=None, details=None, check=True):
    """Write a table of ``SCHEMA``, whole or not at all.

    Arguments
    ---------
    path : str or Path
    table : pyarrow.Table
        In one piece.
    n_perturbed : int, optional
        As in a manifest.
    details : optional
        Whatever JSON can say of the rows.
    check : bool
        Refuse what no manifest may hold. Parts of one are checked when they are joined.

    Raises
    ------
    InputError
        As :func:`write_arrow`.
    OSError
        The disk is full.
    """
    if check:
        if not len(table):
            raise InputError(f"{path}: nothing to write, expected recordings")
        check_rows(path, table)
        check_unique(path, table)
    metadata = {_FORMAT: _VERSION, _DETAILS: json.dumps(details).encode()}
    if n_perturbed is not None:
        metadata[_PERTURBED] = str(n_perturbed).encode()
    schema = SCHEMA.with_metadata(metadata)
    with (
        write_atomically(path, "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        writer.write_table(table.replace_schema_metadata(metadata))


def read_table(path):
    """Map what :func:`write_table` wrote: (table in one piece, n_perturbed, details).

    Raises
    ------
    InputError
        A file that is missing, truncated, damaged, or of other columns.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: No such file, expected a manifest")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        metadata = table.schema.metadata or {}
        found = {field.name: str(field.type) for field in table.schema}
    except (pa.ArrowException, ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{path}: {_first_line(error)}; expected a whole Arrow file"
        ) from error
    expected = {field.name: str(field.type) for field in SCHEMA}
    if found != expected or metadata.get(_FORMAT) != _VERSION:
        raise InputError(
            f"{path}: columns {', '.join(found)}, expected {', '.join(expected)} as "
            "write_manifest writes them"
        )
    try:
        table = table.combine_chunks()  # of one piece as we write it: nothing to do
        table.validate(full=True)
        perturbed = int(metadata[_PERTURBED]) if _PERTURBED in metadata else None
        details = json.loads(metadata[_DETAILS])
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise InputError(f"{path}: damaged ({_first_line(error)})") from error
    return table, perturbed, details


# -- parts -----------------------------------------------------------------------------


def _split(texts):
    parts = pc.extract_regex(pa.array(texts, pa.string()), _SPLIT)
    return [_encoded(parts.field(name)) for name in ("head", "tail")]


def _encoded(texts):
    return texts.dictionary_encode().cast(_DICTIONARY)


def _halves(column):
    """A manifest's column of texts as two dictionary columns."""
    if isinstance(column, JoinedText):
        both = column.compact()
        return [_dictionary_array(c.codes, c.names) for c in (both.heads, both.tails)]
    chunks = [
        _split(column[start : start + _ROWS_AT_ONCE].tolist())
        for start in range(0, max(len(column), 1), _ROWS_AT_ONCE)
    ]
    halves = (pa.chunked_array(half).unify_dictionaries() for half in zip(*chunks))
    return [half.combine_chunks() for half in halves]


def _dictionary_array(codes, names):
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), names)


def _first_line(error):
    return str(error).splitlines()[0] if str(error) else type(error).__name__


logger = logging.getLogger(__name__)

MIXED = "train.arrow"


def mix_manifests(perturbed, other, save_folder):
    """Write one manifest of two, or return at once where that was done before.

    Arguments
    ---------
    perturbed : str or Path
        Manifest whose speakers are played at all speeds. Their labels come first.
    other : str or Path
        Manifest whose speakers are played at true speed only.
    save_folder : str or Path
        Where ``train.arrow`` goes.

    Returns
    -------
    Path
        The manifest; its ``n_perturbed`` is the number of speakers of ``perturbed``.

    Raises
    ------
    InputError
        A speaker or an ID that both have.
    """
    paths = [Path(perturbed).resolve(), Path(other).resolve()]
    arguments = dict(zip(("perturbed", "other"), paths))
    marker = Marker.of(Path(save_folder).resolve(), arguments, paths)
    if marker.load() is None:
        marker.remove()
        counts = _write(marker.folder / MIXED, *paths)
        marker.save([MIXED], counts)
        logger.info("%s: %s", marker.folder / MIXED, counts)
    return marker.folder / MIXED


def _write(path, perturbed, other):
    first, second = read_manifest(perturbed), read_manifest(other)
    names = first.speaker_names.tolist()
    others = second.speaker_names.tolist()
    both = sorted({*names} & {*others})
    if both:
        raise InputError(
            f"{other}: speaker {both[0]!r} is also in {perturbed}, expected other "
            f"names ({len(both)} such speakers)"
        )
    table = concatenate([table_of(first), table_of(second)], len(names))
    write_table(path, table, n_perturbed=len(names))
    return {
        "perturbed_speakers": len(names),
        "other_speakers": len(others),
        "utterances": len(table),
    }
