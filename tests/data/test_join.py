"""Short utterances joined: by hand, as one recording, and nothing lost."""

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.audio import (
    is_joined,
    joined_path,
    parts_between,
    parts_of,
    read_audio,
)
from speechbrain_ext.data.concatenated_audio import join_short, pack
from speechbrain_ext.data.dataset import EvaluationSet, TrainingSet
from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.data.sampler import Draw
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
    assert parts_of(path) == [("/a b/1.flac", 10), ("/a:b/2.wav", 3)]
    assert not is_joined("/a:7")
    assert parts_of("/a:7") == [("/a:7", None)]


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


@pytest.mark.parametrize("path", ["/a:1|/b", "/a|/b:3", "/a:1|:3", "/a:1|/b:-3", "|"])
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
        middle = EvaluationSet(manifest, max_seconds=0.1)[0][1].numpy()
        items.append([*wavs, middle, EvaluationSet(manifest)[0][1].numpy()])
    for one, other in zip(*items, strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(items[0][-1], whole)


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
        name: (duration, [part for part, _ in parts_of(path)])
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
