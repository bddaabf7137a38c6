"""Recordings joined into one per model: every sample, once, in order."""

import logging
import os

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.concatenated_audio import concatenate_enrolment
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.scoring.enrolment import read_enrol_map
from speechbrain_ext.utils.errors import InputError

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
