"""Arrow manifests: the same as CSV, row by row; damage named in one line."""

import os

import numpy as np
import pyarrow as pa
import pytest
from tiny_training import on_a_full_disk

from speechbrain_ext.data.arrow_manifest import (
    concatenate,
    encode,
    manifest_of,
    read_table,
    table_of,
    write_table,
)
from speechbrain_ext.data.manifest import (
    EncodedText,
    JoinedText,
    Manifest,
    read_manifest,
    write_manifest,
)
from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.jobs import fingerprint

COLUMNS = ("ids", "paths", "durations", "speakers", "speaker_names", "labels")


def made_up(n_rows=400, n_speakers=30, seed=0):
    """Rows in random order, names of every shape that splitting could spoil."""
    random = np.random.default_rng(seed)
    speakers = [f"id{s:04d}" for s in random.integers(n_speakers, size=n_rows)]
    ids = [f"{name}/v-{r % 7}/{r:05d}" for r, name in enumerate(speakers)]
    paths = [f"/data/ä b/{name}.wav" for name in ids]
    ids[:5] = ["plain", "/root", "folder/", "a//b", "new\nline/x"]
    paths[:5] = ["x.wav", "/x.wav", "x/", "a|b/c.wav", "new\nline.wav"]
    return Manifest(ids, paths, random.uniform(0.5, 20, n_rows), speakers)


def assert_same(first, second):
    assert len(first) == len(second)
    for name in COLUMNS:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert first.n_perturbed == second.n_perturbed


@pytest.fixture
def arrow(tmp_path):
    """(A manifest in memory, the same read from an Arrow file)."""
    before = made_up()
    write_manifest(tmp_path / "deep" / "m.arrow", before)
    return before, read_manifest(tmp_path / "deep" / "m.arrow")


def test_round_trip_is_exact(arrow, tmp_path):
    before, after = arrow
    assert_same(before, after)
    for row in (0, 2, 4, 399, -1, np.int32(7)):
        for name in ("ids", "paths", "speakers"):
            text = getattr(after, name)[row]
            assert type(text) is str
            assert text == getattr(before, name)[row]
    assert after.ids[3:9].tolist() == before.ids[3:9].tolist()
    # once more, from columns that are encoded already, and to CSV
    write_manifest(tmp_path / "again.arrow", after)
    assert_same(before, read_manifest(tmp_path / "again.arrow"))
    tame = after.select(np.arange(5, 400))
    write_manifest(tmp_path / "m.csv", tame)
    assert_same(tame, read_manifest(tmp_path / "m.csv"))


@pytest.mark.parametrize("rows", [np.arange(400) % 3 == 0, [7, 3, 399, 3], []])
def test_select_is_that_of_the_manifest_in_memory(arrow, rows, tmp_path):
    before, after = (manifest.select(rows) for manifest in arrow)
    assert_same(before, after)
    if len(rows) == 400:
        write_manifest(tmp_path / "part.arrow", after)
        assert_same(before, read_manifest(tmp_path / "part.arrow"))
        n_names = len(read_table(tmp_path / "part.arrow")[0]["ID_tail"].unique())
        assert n_names == len({name.rpartition("/")[2] for name in before.ids})


def test_batches_and_fingerprint_are_those_of_csv(arrow):
    before, after = arrow
    for draws in (None, 120):
        orders = [
            list(CropBatchSampler(m.labels, 8, n_speeds=3, draws_per_epoch=draws))
            for m in arrow
        ]
        assert orders[0] == orders[1]
    model = __import__("torch").nn.Linear(1, 1)
    assert fingerprint(model, before) == fingerprint(model, after)


def test_nothing_is_copied_from_the_file(arrow):
    _, after = arrow
    assert isinstance(after.ids, JoinedText)
    assert isinstance(after.speakers, EncodedText)
    for numbers in (after.labels, after.durations, after.ids.heads.codes):
        assert not numbers.flags.owndata
        assert not numbers.flags.writeable
    assert after.labels is after.speakers.codes
    assert after.labels.dtype == np.int32


def test_an_arrow_program_can_read_it(arrow, tmp_path):
    table = pa.ipc.open_file(tmp_path / "deep" / "m.arrow").read_all()
    assert table.num_rows == 400
    assert table["spk_id"].to_pylist() == arrow[0].speakers.tolist()


def test_parts_joined_are_the_whole():
    whole = made_up(900)
    parts = [whole.select(np.arange(a, a + 300)) for a in (0, 300, 600)]
    columns = [
        (m.ids.tolist(), m.paths.tolist(), m.durations, m.speakers.tolist())
        for m in parts
    ]
    joined = manifest_of(concatenate([encode(*c) for c in columns]))
    assert_same(whole, joined)
    # speakers of the first table that keep their places, in front of all others
    last = parts[0].select(parts[0].labels >= 25)
    first = table_of(last)
    n_first = len(last.speaker_names)
    mixed = manifest_of(concatenate([first, table_of(parts[1])], n_first), n_first)
    names = mixed.speaker_names.tolist()
    assert names[:n_first] == sorted(names[:n_first]) == last.speaker_names.tolist()
    assert names[n_first:] == sorted(
        set(parts[1].speakers.tolist()) - set(names[:n_first])
    )
    assert np.array_equal(mixed.speaker_names[mixed.labels], mixed.speakers)


def test_perturbed_speakers_are_kept_through_file_and_selection(tmp_path):
    manifest = made_up()
    manifest = Manifest(*(getattr(manifest, c) for c in COLUMNS[:4]), 12)
    write_manifest(tmp_path / "m.arrow", manifest)
    after = read_manifest(tmp_path / "m.arrow")
    assert_same(manifest, after)
    some = after.select(after.labels % 3 == 0)  # 0, 3, 6, 9 of the first twelve
    assert some.n_perturbed == 4
    with pytest.raises(InputError, match=r"m.csv: 12 perturbed .* ending in .arrow"):
        write_manifest(tmp_path / "m.csv", manifest)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (0, "", "row 3: empty ID"),
        (1, "", "row 3: empty wav"),
        (3, "", "row 3: empty spk_id"),
        (2, 0.0, "row 3: duration 0.0"),
        (2, np.nan, "row 3: duration nan"),
        (2, np.inf, "row 3: duration inf"),
        (0, "b/1", "row 3: ID 'b/1' seen before"),
    ],
)
def test_bad_rows_leave_the_old_file_alone(tmp_path, column, value, expected):
    path = tmp_path / "m.arrow"
    rows = [["a/1", "b/1", "a/2", ""], ["x", "y", "z", "w"], [1.0] * 4, list("abad")]
    rows[0][3] = "c/1"
    write_manifest(path, Manifest(*rows))
    before = path.read_bytes()
    rows[column][2] = value
    with pytest.raises(InputError, match=f"m.arrow, {expected}"):
        write_manifest(path, Manifest(*rows))
    with pytest.raises(InputError, match="no rows"):
        write_manifest(path, Manifest([], [], [], []))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.arrow"]


def refused(path):
    """The one line with which a file is refused."""
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_files_that_are_no_manifests_are_refused(tmp_path):
    path = tmp_path / "m.arrow"
    assert "No such file" in refused(path)
    path.write_text("ID,duration,wav,spk_id\na,1,b,c\n")
    assert "expected a whole Arrow file" in refused(path)
    good = table_of(made_up())
    write_table(path, good.slice(0, 0), check=False)
    assert "no rows" in refused(path)
    write_table(path, encode(["a"], ["b"], [-1.0], ["c"]), check=False)
    assert "row 1: duration -1.0" in refused(path)
    write_table(path, good, n_perturbed=31)
    assert "31 perturbed speakers, expected at most 30" in refused(path)
    for table in (good.drop_columns("duration"), good.append_column("x", good[5])):
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
        assert "expected ID_head, ID_tail, wav_head" in refused(path)
    nothing = pa.array([None] * len(good), good["spk_id"].type)
    write_table(path, good.set_column(4, "spk_id", nothing), n_perturbed=0, check=False)
    assert "rows without spk_id" in refused(path)


def test_no_truncated_file_is_read(tmp_path):
    write_manifest(tmp_path / "whole.arrow", made_up())
    content, path = (tmp_path / "whole.arrow").read_bytes(), tmp_path / "m.arrow"
    for size in [*range(0, len(content), 499), len(content) - 1]:
        path.write_bytes(content[:size])
        assert "expected a whole Arrow file" in refused(path)


def test_a_damaged_file_is_refused_or_read_but_nothing_worse(tmp_path):
    write_manifest(tmp_path / "whole.arrow", made_up(40, 4))
    content, path = (tmp_path / "whole.arrow").read_bytes(), tmp_path / "m.arrow"
    n_refused = 0
    for place in range(0, len(content), 13):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            manifest = read_manifest(path)
        except InputError:
            n_refused += 1
            refused(path)
        else:
            for name in COLUMNS:
                getattr(manifest, name).tolist()
    assert n_refused > 30


def test_a_full_disk_leaves_the_older_file(tmp_path):
    path = tmp_path / "m.arrow"
    write_manifest(path, made_up(20))
    line = on_a_full_disk(4000, tmp_path / "err", write_manifest, path, made_up())
    assert line.startswith(f"error: {path}: ")
    assert sorted(os.listdir(tmp_path)) == ["err", "m.arrow"]
    assert_same(read_manifest(path), made_up(20))
