"""Manifests of many millions of recordings: an Arrow file, read where it lies.

    ID = ID_head + ID_tail, wav = wav_head + wav_tail      split after the last slash

Each part, and ``spk_id``, is a dictionary column: the texts once, and int32 numbers
that refer to them; ``duration`` is float64, seconds. Opening the file maps it into
memory. Nothing is copied: the training processes of a machine and all their loader
workers share one copy, in the system's cache of files, and start at once.

The dictionary of ``spk_id`` is in the order of the labels: the speakers that are
speed-perturbed, sorted, and then the others (:mod:`speechbrain_ext.data.classes`). The
file is an ordinary Arrow IPC file, which ``pyarrow.ipc.open_file`` and pandas'
``read_feather`` show.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechbrain_ext.data.arrow_checks import check_rows, check_unique, piece
from speechbrain_ext.data.columns import TEXT, EncodedText, JoinedText
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_atomically

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
