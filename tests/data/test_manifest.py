"""Manifests: round trip, numbering, and every kind of damage named by line."""

import numpy as np
import pytest

from speechbrain_ext.data import manifest as manifest_module
from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.utils.errors import InputError

HEADER = "ID,duration,wav,spk_id\n"


def small():
    return Manifest(
        ["a/1", "b/1", "a/2", "c/1"],
        ["x/a 1.wav", 'x/"b",1.wav', "x/ä2.wav", "x/c1.wav"],
        [1.0, 1 / 3, 61.2345678901234, 2.5],
        ["zoe", "bo", "zoe", "ann"],
    )


def write(folder, text):
    path = folder / "train.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_round_trip_is_exact(tmp_path):
    before = small()
    write_manifest(tmp_path / "deep" / "m.csv", before)
    after = read_manifest(tmp_path / "deep" / "m.csv")
    for column in ("ids", "paths", "durations", "speakers"):
        assert np.array_equal(getattr(after, column), getattr(before, column))
    assert (tmp_path / "deep" / "m.csv").read_text(encoding="utf-8").startswith(HEADER)


def test_many_rows_keep_their_order(tmp_path):
    count = 50_001  # more than are read at once
    ids = [f"id{i:07d}" for i in range(count)]
    write_manifest(
        tmp_path / "m.csv", Manifest(ids, ids, np.arange(1.0, count + 1), ids)
    )
    manifest = read_manifest(tmp_path / "m.csv")
    assert manifest.ids.tolist() == ids
    assert np.array_equal(manifest.labels, np.arange(count))


def test_speakers_are_numbered_in_sorted_order():
    manifest = small()
    assert len(manifest) == 4
    assert manifest.speaker_names.tolist() == ["ann", "bo", "zoe"]
    assert manifest.labels.tolist() == [2, 1, 2, 0]
    assert manifest.labels.dtype == np.int64
    assert type(manifest.ids[0]) is str


@pytest.mark.parametrize("rows", [np.array([True, False, True, False]), [0, 2]])
def test_select_renumbers_the_speakers_left(rows):
    chosen = small().select(rows)
    assert chosen.ids.tolist() == ["a/1", "a/2"]
    assert chosen.durations.tolist() == [1.0, 61.2345678901234]
    assert chosen.labels.tolist() == [0, 0]
    assert len(small().select([])) == 0


def test_spreadsheet_bytes_and_blank_lines_are_read(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfID,duration,wav,spk_id\r\na,1,w,s\r\n\r\n")
    assert read_manifest(path).paths.tolist() == ["w"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1: header '', expected 'ID,duration,wav,spk_id'"),
        ("ID,wav,duration,spk_id\na,w,1,s\n", "line 1: header 'ID,wav,duration"),
        (HEADER, "no rows"),
        (HEADER + "a,1,w,s\nb,1,w\n", "line 3: 3 fields, expected 4"),
        (HEADER + "a,1,w,s\nb,1,w,s,t\n", "line 3: 5 fields, expected 4"),
        (HEADER + "a,1,w,s\nb,long,w,s\n", "line 3: duration 'long'"),
        (HEADER + "a,1,w,s\nb,0,w,s\n", "line 3: duration 0.0, expected a positive"),
        (HEADER + "a,1,w,s\nb,-2,w,s\n", "line 3: duration -2.0"),
        (HEADER + "a,1,w,s\n\nb,nan,w,s\n", "line 4: duration nan"),
        (HEADER + "a,1,w,s\nb,inf,w,s\n", "line 3: duration inf"),
        (HEADER + "a,1,w,s\nb,1,w,s\na,1,v,s\n", "line 4: ID 'a' seen before"),
        (HEADER + "a,1,w,s\nb,1,,s\n", "line 3: empty wav"),
        (HEADER + "a,1,w,\n", "line 2: empty spk_id"),
        (HEADER + ",1,w,s\n", "line 2: empty ID"),
        (HEADER + 'a,1,"w,s\n', "not valid CSV"),
        (HEADER.encode() + b"a,1,\xff\xfe,s\n", "is not UTF-8 text"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, text, expected):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: No such file"):
        read_manifest(tmp_path / "absent.csv")


def test_columns_of_different_length_are_refused():
    with pytest.raises(InputError, match=r"\[2, 1, 2, 2\]"):
        Manifest(["a", "b"], ["p"], [1.0, 2.0], ["s", "t"])


def test_a_bad_manifest_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "m.csv"
    write_manifest(path, small())
    before = path.read_bytes()
    twice = small().select([0, 1, 0])
    with pytest.raises(InputError, match="row 3: ID 'a/1' seen before"):
        write_manifest(path, twice)
    with pytest.raises(InputError, match="no rows"):
        write_manifest(path, small().select([]))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]


@pytest.mark.parametrize("name", ["m.csv", "m.arrow"])
def test_further_columns_stay_with_their_rows(tmp_path, name):
    columns = [getattr(small(), c) for c in ("ids", "paths", "durations", "speakers")]
    extra = {"label": ["spoof", "bonafide", "", "spoof"], "codec": list("abca")}
    write_manifest(tmp_path / name, Manifest(*columns, extra=extra))
    manifest = read_manifest(tmp_path / name)
    assert {k: v.tolist() for k, v in manifest.extra.items()} == extra
    some = manifest.select([3, 1])
    assert some.extra["label"].tolist() == ["spoof", "bonafide"]
    assert some.ids.tolist() == ["c/1", "b/1"]
    write_manifest(tmp_path / f"again-{name}", some)
    again = read_manifest(tmp_path / f"again-{name}")
    assert again.extra["codec"].tolist() == ["a", "b"]


def test_further_columns_have_names_and_as_many_rows(tmp_path):
    path = write(tmp_path, "ID,duration,wav,spk_id,wav\na,1,w,s,t\n")
    with pytest.raises(InputError, match="line 1: header 'ID,duration,wav,spk_id,wav'"):
        read_manifest(path)
    with pytest.raises(InputError, match=r"\[1, 1, 1, 1, 2\]"):
        Manifest(["a"], ["w"], [1.0], ["s"], extra={"label": ["x", "y"]})


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "a/1,1.5,x/ä 1.wav,zoë b\r\n\r\nc,61.2345678901234,|,bo",
        "\ufeff" + HEADER + "a, 1e-3 ,w, s\n\nb,0.1,v:1,\t\n",
        HEADER + "a,1_0,w,s\n",  # Python's number, not Arrow's
        HEADER[:-1] + ",label\na,1,w,s,\nb,2,v,t,x\n",
        HEADER + "".join(f"r{n},{1 / (n + 1)!r},w{n},s\n" for n in range(30_000)),
    ],
)
def test_both_readers_read_the_same(tmp_path, monkeypatch, text):
    path = write(tmp_path, text)
    fast = read_manifest(path)
    monkeypatch.setattr(manifest_module, "_read_plain", lambda path: None)
    slow = read_manifest(path)
    for column in ("ids", "paths", "durations", "speakers"):
        assert getattr(fast, column).tolist() == getattr(slow, column).tolist()
    assert {k: v.tolist() for k, v in fast.extra.items()} == {
        k: v.tolist() for k, v in slow.extra.items()
    }
