"""Manifests of many millions of recordings: an Arrow file, read where it lies.

    ID = ID_head + ID_tail, wav = wav_head + wav_tail      split after the last slash

Each part, ``spk_id`` and any further column is a dictionary column: texts once, and
int32 numbers that refer to them; ``duration`` is float64, seconds. Opening the file
maps it into memory. Nothing is copied: the training processes of a machine and all
their loader workers share one copy, in the system's cache of files, and start at once.

The dictionary of ``spk_id`` is in the order of the labels: the speakers that are
speed-perturbed, sorted, and then the others (:mod:`speechbrain_ext.data.labels`). The
file is an ordinary Arrow IPC file, which ``pyarrow.ipc.open_file`` and pandas'
``read_feather`` show.

Two corpora may share a manifest, one speed-perturbed, the other as it is
(:func:`mix_manifests`). Speed copies count as new speakers, and a corpus of 100,000
speakers needs none: VoxCeleb2 is trained on at three speeds, VoxBlink2 at true speed
only (arXiv 2510.04213).
"""

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
    check_manifest,
    read_manifest,
)
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_atomically
from speechbrain_ext.utils.jobs import Marker

logger = logging.getLogger(__name__)

MIXED = "train.arrow"
_FORMAT, _VERSION = b"speechbrain_ext.manifest", b"1"
_PERTURBED = b"n_perturbed"
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
_TEXTS = ("ID_head", "ID_tail", "wav_head", "wav_tail", "spk_id")
SCHEMA = pa.schema([*((name, _DICTIONARY) for name in _TEXTS), ("duration", "f8")])
_SPLIT = r"(?s)^(?P<head>.*/)?(?P<tail>[^/]*)$"
_ROWS_AT_ONCE = 200_000


def encode(ids, paths, durations, speakers):
    """Some rows, texts as lists and durations in seconds, as a table of ``SCHEMA``."""
    columns = [*_split(ids), *_split(paths), _encoded(pa.array(speakers, pa.string()))]
    durations = pa.array(np.asarray(durations, dtype=np.float64))
    return pa.table([*columns, durations], schema=SCHEMA)


def concatenate(tables, n_first=0):
    """Tables, one below the other, in one piece; speakers sorted.

    The ``n_first`` first speakers of the first table keep their places.
    """
    table = pa.concat_tables(tables or [SCHEMA.empty_table()])
    table = table.unify_dictionaries().combine_chunks()
    speakers = _piece(table, "spk_id")
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
    table = pa.table([*columns, pa.array(manifest.durations)], schema=SCHEMA)
    for name, texts in manifest.extra.items():
        if isinstance(texts, EncodedText):
            column = _dictionary_array(texts.codes, texts.names)
        else:
            column = _encoded(pa.array(texts.tolist(), pa.string()))
        table = table.append_column(name, column)
    return table


def manifest_of(table, n_perturbed=None):
    """A table in one piece as a manifest; no row is copied."""
    names = [name for name in table.column_names if name != "duration"]
    columns = (_piece(table, name) for name in names)
    texts = {
        name: EncodedText(column.indices.to_numpy(), column.dictionary)
        for name, column in zip(names, columns)
    }
    id_head, id_tail, wav_head, wav_tail, speakers = (texts.pop(n) for n in _TEXTS)
    return Manifest(
        JoinedText(id_head, id_tail),
        JoinedText(wav_head, wav_tail),
        _piece(table, "duration").to_numpy(),
        speakers,
        n_perturbed,
        texts,
    )


def write_arrow(path, manifest):
    """Write a manifest, whole or not at all; ``write_manifest`` calls this."""
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
    table, perturbed = read_table(path)
    for name in table.column_names:
        if table.column(name).null_count:
            name = name.removesuffix("_head").removesuffix("_tail")
            raise InputError(f"{path}: rows without {name}, expected text in each")
    manifest = manifest_of(table, perturbed)
    check_manifest(path, manifest, unique=False)
    n_speakers = len(manifest.speaker_names)
    if perturbed is not None and not 0 <= perturbed <= n_speakers:
        raise InputError(
            f"{path}: {perturbed} perturbed speakers, expected at most {n_speakers}"
        )
    return manifest


def write_table(path, table, n_perturbed=None, check=True):
    """Write a table in one piece, whole or not at all.

    ``check`` refuses what no manifest may hold. Parts of one are checked when they are
    joined.
    """
    if check:
        check_manifest(path, manifest_of(table, n_perturbed))
    metadata = {_FORMAT: _VERSION}
    if n_perturbed is not None:
        metadata[_PERTURBED] = str(n_perturbed).encode()
    table = table.replace_schema_metadata(metadata)
    with (
        write_atomically(path, "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)


def read_table(path):
    """Map what :func:`write_table` wrote: (table in one piece, n_perturbed).

    InputError: a file that is missing, truncated, damaged, or of other columns.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: No such file, expected a manifest")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        metadata = table.schema.metadata or {}
        columns = [(field.name, str(field.type)) for field in table.schema]
    except (pa.ArrowException, ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{path}: {_first_line(error)}; expected a whole Arrow file"
        ) from error
    expected = [(field.name, str(field.type)) for field in SCHEMA]
    known, extra = columns[: len(expected)], dict(columns[len(expected) :])
    as_expected = known == expected and {*extra.values()} <= {str(_DICTIONARY)}
    if not as_expected or metadata.get(_FORMAT) != _VERSION:
        raise InputError(
            f"{path}: columns {', '.join(name for name, _ in columns)}, expected "
            f"{', '.join(SCHEMA.names)} as write_manifest writes them"
        )
    try:
        table = table.combine_chunks()  # of one piece as we write it: nothing to do
        table.validate(full=True)
        perturbed = int(metadata[_PERTURBED]) if _PERTURBED in metadata else None
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{path}: damaged ({_first_line(error)})") from error
    return table, perturbed


def _piece(table, name):
    """A column of a table in one piece, as an array."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else column.combine_chunks()


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


def mix_manifests(perturbed, other, save_folder):
    """Write one ``train.arrow`` of two manifests, unless it is there → its path.

    Speakers of ``perturbed`` are played at all speeds, and their labels come first
    (their number is ``n_perturbed``); those of ``other`` at true speed only.
    InputError: a speaker or an ID that both have.
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
    tables = [table_of(m).select(SCHEMA.names) for m in (first, second)]
    table = concatenate(tables, len(names))
    write_table(path, table, n_perturbed=len(names))
    return {
        "perturbed_speakers": len(names),
        "other_speakers": len(others),
        "utterances": len(table),
    }
