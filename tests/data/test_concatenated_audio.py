"""Recordings joined in one row, or copied into one file, sample by sample."""

import logging
import os

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.audio import (
    is_joined,
    joined_path,
    parts_between,
    parts_of,
    read_audio,
    read_header,
    segment_path,
)
from speechbrain_ext.data.concatenated_audio import (
    concatenate_enrolment,
    join_short,
    pack,
)
from speechbrain_ext.data.dataset import TrainingSet
from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.data.sampler import Draw
from speechbrain_ext.scoring.enrolment import read_enrol_map
from speechbrain_ext.utils.errors import InputError

LENGTHS = (1000, 700, 2500)
STARTS = np.cumsum((0, *LENGTHS))


@pytest.fixture
def ramp(tmp_path):
    """Three recordings that count on, and their joined path."""
    whole = np.arange(sum(LENGTHS), dtype=np.float32) / 8192  # exact in 16 bits
    paths = [str(tmp_path / f"{n}.flac") for n in range(len(LENGTHS))]
    for path, start, length in zip(paths, STARTS, LENGTHS):
        part = whole[start : start + length]
        soundfile.write(path, part, 16000, subtype="PCM_16")
    return whole, paths, joined_path(paths, LENGTHS)


# ---- paths ---------------------------------------------------------------------------


def test_a_joined_path_by_hand():
    path = joined_path(["/a b/1.flac", "/a:b/2.wav"], [10, 3])
    assert path == "/a b/1.flac:10|/a:b/2.wav:3"
    assert is_joined(path)
    assert parts_of(path) == [
        ("/a b/1.flac", 0, 10, False),
        ("/a:b/2.wav", 0, 3, False),
    ]
    assert not is_joined("/a:7")
    assert parts_of("/a:7") == [("/a:7", 0, None, False)]


def test_the_path_of_a_segment_by_hand():
    path = segment_path("/a:b/2-3.wav", 7, 12)
    assert path == "/a:b/2-3.wav:7-12|"
    assert is_joined(path)
    assert parts_of(path) == [("/a:b/2-3.wav", 7, 5, True)]
    assert parts_between(path) == [("/a:b/2-3.wav", 7, 5)]
    assert parts_between(path, 2, 9) == [("/a:b/2-3.wav", 9, 3)]
    assert parts_between(path, 5) == []
    assert not is_joined("/a:7-12")


@pytest.mark.parametrize(
    ("start", "frames", "expected"),
    [
        (0, -1, [("a", 0, 10), ("b", 0, 3), ("c", 0, 5)]),
        (0, 10, [("a", 0, 10)]),
        (9, 2, [("a", 9, 1), ("b", 0, 1)]),
        (10, 3, [("b", 0, 3)]),
        (4, 10, [("a", 4, 6), ("b", 0, 3), ("c", 0, 1)]),
        (17, 100, [("c", 4, 1)]),
        (18, 1, []),
        (18, -1, []),
    ],
)
def test_only_the_parts_that_are_wanted(start, frames, expected):
    assert parts_between("a:10|b:3|c:5", start, frames) == expected


def test_a_path_with_the_joint_in_its_name_is_refused():
    with pytest.raises(InputError, match=r"/a\|b: '\|' in its name, expected none"):
        joined_path(["/c", "/a|b"], [1, 2])


@pytest.mark.parametrize(
    "path", ["/a:1|/b", "/a|/b:3", "/a:1|:3", "/a:1|/b:-3", "|", "/a:3-3|"]
)
def test_a_part_without_its_length_is_refused(path):
    with pytest.raises(InputError, match="expected PATH:SAMPLES of each of the rec"):
        parts_of(path)


# ---- reading -------------------------------------------------------------------------


def test_every_crop_is_that_of_the_whole(ramp):
    whole, _, path = ramp
    assert np.array_equal(read_audio(path), whole)
    random = np.random.default_rng(0)
    for _ in range(50):
        start = int(random.integers(len(whole)))
        n = int(random.integers(1, len(whole) - start + 1))
        assert np.array_equal(read_audio(path, start, n), whole[start : start + n])
    assert np.array_equal(read_audio(path, 999), whole[999:])


def test_no_other_recording_is_opened(ramp):
    whole, paths, path = ramp
    for gone in (paths[0], paths[2]):
        open(gone, "w").close()
    assert np.array_equal(read_audio(path, 1000, 700), whole[1000:1700])
    with pytest.raises(InputError, match=f"^{paths[0]}: cannot be opened as sound"):
        read_audio(path, 999, 2)


def test_what_is_wrong_with_a_part_is_said_of_that_part(ramp):
    _, paths, path = ramp
    soundfile.write(paths[1], np.zeros(600), 16000)
    with pytest.raises(InputError, match=f"^{paths[1]}: 600 samples decoded from 0"):
        read_audio(path)
    soundfile.write(paths[1], np.zeros((700, 2)), 16000)
    with pytest.raises(InputError, match=f"^{paths[1]}: 16000 Hz with 2 channel"):
        read_audio(path)
    with pytest.raises(InputError, match="no samples from 4200 on, expected sound"):
        read_audio(path, 4200)
    with pytest.raises(InputError, match=r"1 samples decoded from 4199 on, expected 2"):
        read_audio(path, 4199, 2)


def test_a_joined_row_is_trained_on_and_embedded_as_one_recording(ramp, tmp_path):
    whole, _, path = ramp
    soundfile.write(tmp_path / "whole.flac", whole, 16000, subtype="PCM_16")
    seconds = len(whole) / 16000
    items = []
    for name in (path, str(tmp_path / "whole.flac")):
        manifest = Manifest(["a"], [name], [seconds], ["s"])
        write_manifest(tmp_path / "m.csv", manifest)
        manifest = read_manifest(tmp_path / "m.csv")
        dataset = TrainingSet(manifest, 0, speeds=(1.0, 0.9))
        draws = [Draw(0, p, 1, n, p % 2) for p, n in enumerate((800, 800, 9000, 3000))]
        wavs = [dataset[draw]["wav"].numpy() for draw in draws]
        items.append([*wavs, read_audio(name, 1300, 1600), read_audio(name)])
    for one, other in zip(*items, strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(items[0][-1], whole)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_segment_is_read_from_within_and_is_a_recording_of_its_own(tmp_path, suffix):
    wav = 0.1 * np.random.default_rng(1).standard_normal(40000)
    soundfile.write(tmp_path / f"long.{suffix}", wav, 16000)
    path = segment_path(tmp_path / f"long.{suffix}", 9000, 21000)
    expected = read_audio(tmp_path / f"long.{suffix}")[9000:21000]
    exact = {"atol": 0 if suffix in ("wav", "flac") else 1e-4}
    np.testing.assert_allclose(read_audio(path), expected, **exact)
    np.testing.assert_allclose(read_audio(path, 500, 700), expected[500:1200], **exact)
    assert read_header(path) == (12000, 16000, 1)
    with pytest.raises(InputError, match=r"700 samples decoded .* expected 800"):
        read_audio(path, 11300, 800)
    rows = Manifest(["a"], [path], [0.75], ["s"])
    write_manifest(tmp_path / "m.csv", rows)
    rows = read_manifest(tmp_path / "m.csv")
    draw = Draw(0, 3, 1, 4000, 0)
    wavs = []
    soundfile.write(tmp_path / "cut.wav", read_audio(path), 16000, subtype="FLOAT")
    cut = Manifest(["a"], [str(tmp_path / "cut.wav")], [0.75], ["s"])
    for manifest in (rows, cut):
        wavs.append(TrainingSet(manifest, 0, speeds=(1.0,))[draw]["wav"].numpy())
    np.testing.assert_allclose(*wavs, **exact)


# ---- grouping ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "whole", "rest"),
    [
        ([], [], []),
        ([5, 5], [[0], [1]], []),
        ([2, 2, 2, 2], [[0, 1, 2]], [3]),
        ([1, 9, 1], [[0, 1]], [2]),
        ([1, 1], [], [0, 1]),
    ],
)
def test_packing_by_hand(lengths, whole, rest):
    assert pack(range(len(lengths)), lengths, 5) == (whole, rest)


def manifest_of(names, seconds):
    """Names SPEAKER/GENRE-SESSION-NUMBER."""
    speakers = [name.split("/")[0] for name in names]
    return Manifest(names, [f"/{name}.wav" for name in names], seconds, speakers)


def joined(names, seconds, shortest=5):
    """As CN-Celeb's → {ID: (seconds, recordings)}."""
    manifest = manifest_of(names, seconds)
    sessions = [name.rsplit("-", 1)[0] for name in names]
    genres = [name.split("/")[1].split("-")[0] for name in names]
    rows = join_short(manifest, sessions, genres, shortest)
    return {
        name: (duration, [part.file for part in parts_of(path)])
        for name, duration, path in zip(
            rows.ids.tolist(), rows.durations.tolist(), rows.paths.tolist()
        )
    }


def test_within_a_session_first_and_what_is_left_over_to_its_last_row():
    names = [f"a/talk-01-{n}" for n in range(5)] + ["a/talk-02-0", "a/talk-02-1"]
    assert joined(names, [2, 3, 4, 2, 1, 6, 1]) == {
        "a/talk-01-0+1": (5, ["/a/talk-01-0.wav", "/a/talk-01-1.wav"]),
        "a/talk-01-2+2": (7, [f"/a/talk-01-{n}.wav" for n in (2, 3, 4)]),
        "a/talk-02-0+1": (7, ["/a/talk-02-0.wav", "/a/talk-02-1.wav"]),
    }


def test_short_sessions_are_joined_to_each_other_within_the_genre():
    names = ["a/talk-01-0", "a/talk-02-0", "a/talk-03-0", "a/sing-01-0", "b/talk-01-0"]
    assert joined(names, [2, 6, 3, 3, 3]) == {
        "a/talk-01-0+1": (5, ["/a/talk-01-0.wav", "/a/talk-03-0.wav"]),
        "a/talk-02-0": (6, ["/a/talk-02-0.wav"]),
        "a/sing-01-0": (3, ["/a/sing-01-0.wav"]),
        "b/talk-01-0": (3, ["/b/talk-01-0.wav"]),
    }
    # too short even together: to another row of the genre
    assert joined(names[:2], [2, 6]) == {
        "a/talk-02-0+1": (8, ["/a/talk-02-0.wav", "/a/talk-01-0.wav"])
    }


def test_a_genre_that_is_too_short_as_a_whole_is_one_row():
    assert joined(["a/talk-01-0", "a/talk-02-0"], [1, 2]) == {
        "a/talk-01-0+1": (3, ["/a/talk-01-0.wav", "/a/talk-02-0.wav"])
    }


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_and_nothing_crosses_a_border(seed):
    random = np.random.default_rng(seed)
    names = sorted(
        {
            f"id{s}/{g}-{t:02d}-{n:03d}"
            for s, g, t, n in zip(
                random.integers(0, 6, 400).tolist(),
                random.choice(["talk", "sing", "vlog"], 400).tolist(),
                random.integers(1, 5, 400).tolist(),
                random.integers(1, 30, 400).tolist(),
            )
        }
    )
    seconds = random.integers(1000, 160000, len(names)) / 16000
    rows = joined(names, seconds)
    parts = [part for _, found in rows.values() for part in found]
    assert sorted(parts) == sorted(f"/{name}.wav" for name in names)
    of_name = dict(zip(names, seconds.tolist()))
    total = {}
    for name, value in of_name.items():
        group = name.split("-")[0]
        total[group] = total.get(group, 0) + value
    for name, (duration, found) in rows.items():
        ids = [part[1:-4] for part in found]
        assert len({i.split("-")[0] for i in ids}) == 1  # speaker and genre
        assert duration == pytest.approx(sum(of_name[i] for i in ids), abs=1e-9)
        assert duration >= 5 or total[name.split("-")[0]] < 5
        assert ids[0] == name.split("+")[0]
        # as short as can be: every cut of it leaves a part too short, or mixes sessions
        assert len(ids) == 1 or duration - of_name[ids[-1]] < 15
    assert list(rows) == sorted(rows, key=lambda name: names.index(name.split("+")[0]))
    assert rows == joined(names, seconds)


EDGES = np.array([-32768, 32767, 0, -1], np.int16)


def write(path, wav, subtype="PCM_16", rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav, rate, subtype)


@pytest.fixture
def recordings(tmp_path):
    """Three recordings in three formats; a map of two models; their manifest."""
    noise = np.random.default_rng(0).integers(-30000, 30000, 800).astype(np.int16)
    write(tmp_path / "in/id1/a.wav", np.concatenate([EDGES, noise[:300]]))
    write(tmp_path / "in/id1/b.flac", noise[300:])
    write(tmp_path / "in/id2/c.wav", noise / np.float32(40000) * 1.7, "FLOAT")
    (tmp_path / "enroll.map").write_text(
        "id1-enroll id1/b.wav id1/a.wav\nid2-enroll id2/c id1/a\n"
    )
    names = ["id1/a.wav", "id1/b.flac", "id2/c.wav"]
    manifest = Manifest(
        [name.split(".")[0] for name in names],
        [str(tmp_path / "in" / name) for name in names],
        [1.0, 1.0, 1.0],
        ["one", "one", "two"],
    )
    return manifest, noise


def run(tmp_path, manifest, **options):
    enrol_map = read_enrol_map(tmp_path / "enroll.map")
    return concatenate_enrolment(enrol_map, manifest, tmp_path / "out", **options)


def test_every_sample_in_the_order_of_the_map(tmp_path, recordings):
    manifest, noise = recordings
    joined = run(tmp_path, manifest)
    assert joined.ids.tolist() == ["id1-enroll", "id2-enroll"]
    assert joined.durations.tolist() == [804 / 16000, 1104 / 16000]
    # The second model is of two speakers: its name tells one.
    assert joined.speakers.tolist() == ["one", "id2"]
    first, second = joined.paths
    assert soundfile.info(first).subtype == "PCM_16"
    wav, rate = soundfile.read(first, dtype="int16")
    expected = np.concatenate([noise[300:], EDGES, noise[:300]])
    assert rate == 16000
    assert np.array_equal(wav, expected)
    # One recording of floats beyond ±1 makes floats of all.
    assert soundfile.info(second).subtype == "FLOAT"
    wav, _ = soundfile.read(second, dtype="float32")
    floats = noise / np.float32(40000) * np.float32(1.7)
    whole = np.concatenate([EDGES, noise[:300]]) / np.float32(32768)
    assert np.abs(floats).max() > 1
    assert np.array_equal(wav, np.concatenate([floats, whole]))


@pytest.mark.parametrize(
    ("subtype", "value"),
    [("PCM_24", 1 / 65536), ("FLOAT", 1 / 65536), ("FLOAT", 1.0), ("FLOAT", -1.5)],
)
def test_what_16_bits_cannot_hold(tmp_path, recordings, subtype, value):
    """One sample between two steps, above the range or below."""
    manifest, _ = recordings
    wav = np.array([0, value, 0.5], np.float32)
    manifest.paths[1] = str(tmp_path / "in/b.wav")
    write(tmp_path / "in/b.wav", wav, subtype)
    joined = run(tmp_path, manifest)
    assert soundfile.info(joined.paths[0]).subtype == "FLOAT"
    again, _ = soundfile.read(joined.paths[0], dtype="float32")
    assert np.array_equal(again[:3], wav)


def test_complete_files_are_used_again(tmp_path, recordings, caplog):
    manifest, _ = recordings
    caplog.set_level(logging.INFO)
    first = run(tmp_path, manifest, num_workers=1)
    before = [os.stat(path) for path in first.paths]
    again = run(tmp_path, manifest, num_workers=3)
    assert again.paths.tolist() == first.paths.tolist()
    after = [os.stat(path) for path in again.paths]
    assert [s.st_ino for s in after] == [s.st_ino for s in before]
    assert [s.st_mtime_ns for s in after] == [s.st_mtime_ns for s in before]
    assert "0 of them before" in caplog.messages[0]
    assert "2 of them before" in caplog.messages[1]
    os.unlink(again.paths[1])
    run(tmp_path, manifest)
    assert "1 of them before" in caplog.messages[2]
    assert len(os.listdir(tmp_path / "out")) == 2


@pytest.mark.parametrize("change", ["map", "order", "recording"])
def test_other_recordings_make_other_files(tmp_path, recordings, change):
    manifest, noise = recordings
    first = run(tmp_path, manifest)
    if change == "map":
        (tmp_path / "enroll.map").write_text("id1-enroll id1/a\n")
        expected = np.concatenate([EDGES, noise[:300]])
    elif change == "order":
        (tmp_path / "enroll.map").write_text("id1-enroll id1/a id1/b\n")
        expected = np.concatenate([EDGES, noise])
    else:
        write(tmp_path / "in/id1/b.flac", noise[301:])
        expected = np.concatenate([noise[301:], EDGES, noise[:300]])
    again = run(tmp_path, manifest)
    assert again.paths[0] != first.paths[0]
    assert np.array_equal(soundfile.read(again.paths[0], dtype="int16")[0], expected)


def test_models_in_folders(tmp_path, recordings):
    (tmp_path / "enroll.map").write_text("x/id1 id1/a\nx/id2 id2/c\n")
    joined = run(tmp_path, recordings[0])
    assert {os.path.dirname(path) for path in joined.paths} == {str(tmp_path / "out/x")}
    assert joined.speakers.tolist() == ["one", "two"]


def missing(path):
    path.unlink()
    return "id1/b.flac: No such file"


def empty(path):
    path.write_bytes(b"")
    return "id1/b.flac: cannot be opened as sound"


def truncated(path):
    path.write_bytes(path.read_bytes()[:200])
    return "id1/b.flac: "


def other_rate(path):
    write(path, EDGES, rate=8000)
    return "id1/b.flac: 8000 Hz with 1 channel"


def stereo(path):
    write(path, np.zeros((9, 2), np.int16))
    return "id1/b.flac: 16000 Hz with 2 channel"


@pytest.mark.parametrize("damage", [missing, empty, truncated, other_rate, stereo])
def test_a_bad_recording_is_named_and_nothing_half_written(
    tmp_path, recordings, damage
):
    expected = damage(tmp_path / "in/id1/b.flac")
    with pytest.raises(InputError, match=expected):
        run(tmp_path, recordings[0])
    for folder in tmp_path.glob("out"):
        assert not [name for name in os.listdir(folder) if "id1-enroll" in name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "m id1/a\nn id1/a id9/x\n",
            "line 2: utterance 'id9/x' of 'n' is not in",
        ),
        ("m id1/a\n../n id1/a\n", r"line 2: model '\.\./n', expected a name that can"),
        ("/m id1/a\n", "line 1: model '/m'"),
    ],
)
def test_a_bad_map_is_named(tmp_path, recordings, text, message):
    (tmp_path / "enroll.map").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        run(tmp_path, recordings[0])
    assert str(error.value).startswith(str(tmp_path / "enroll.map"))
    assert not (tmp_path / "out").exists()
