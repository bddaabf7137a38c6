"""Preparing VoxBlink2: what is missing, damaged, repeated; stopped and continued."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_training import on_a_full_disk

from speechbrain_ext.data.corpora import voxblink2
from speechbrain_ext.data.corpora.voxblink2 import (
    find_duplicates,
    prepare_voxblink2,
    read_spk2videos,
)
from speechbrain_ext.data.dataset import TrainingSet
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.data.sampler import Draw
from speechbrain_ext.utils.errors import InputError

SPEAKERS, VIDEOS, CROPS = 6, ("-a_B", "xYz0"), 3


def noise(seed, seconds=0.5):
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(round(seconds * 16000))).astype(np.float32)


@pytest.fixture
def corpus(tmp_path):
    """6 speakers × 2 videos × 3 crops of 0.5 s, as the corpus's scripts leave them."""
    root = tmp_path / "vb2"
    (root / "audio").mkdir(parents=True)  # which cropper_audio.py leaves empty
    for speaker in range(SPEAKERS):
        for v, video in enumerate(VIDEOS):
            folder = root / f"id{speaker:06d}" / video
            folder.mkdir(parents=True)
            for crop in range(CROPS):
                wav = noise([speaker, v, crop])
                soundfile.write(folder / f"{crop:05d}.wav", wav, 16000)
    return root


def prepare(corpus, **changes):
    values = {"folders": corpus, "save_folder": corpus.parent / "save"}
    return prepare_voxblink2(**values | changes)


def lines_for(speakers, videos=VIDEOS):
    return "".join(f"id{s:06d} {' '.join(videos)}\n" for s in speakers)


def test_everything_found_is_in_the_manifest(corpus):
    prepared = prepare(corpus)
    manifest = read_manifest(prepared.train)
    expected = sorted(
        f"voxblink2-id{s:06d}/{video}/{crop:05d}"
        for s in range(SPEAKERS)
        for video in VIDEOS
        for crop in range(CROPS)
    )
    assert manifest.ids.tolist() == expected
    assert manifest.speaker_names.tolist() == [
        f"voxblink2-id{s:06d}" for s in range(SPEAKERS)
    ]
    for name, path, speaker in zip(
        manifest.ids.tolist(), manifest.paths.tolist(), manifest.speakers.tolist()
    ):
        assert path == f"{corpus}/{name.removeprefix('voxblink2-')}.wav"
        assert name.split("/")[0] == speaker
    assert set(manifest.durations.tolist()) == {0.5}
    assert prepared.counts["train"] == {
        "speakers": 6,
        "utterances": 36,
        "hours": pytest.approx(18 / 3600),
    }
    saved = sorted(path.name for path in (corpus.parent / "save").iterdir())
    assert saved == ["duplicates.txt", "prepare.json", "train.arrow"]


def test_missing_videos_are_counted_and_others_left_out(corpus):
    listing = corpus.parent / "spk2videos"
    # speaker 5 is not listed; 9 is gone; of 0 only one video is listed
    text = "id000000,-a_B\n\n" + lines_for(range(1, 5)) + lines_for([9], "pqr")
    listing.write_text(text)
    (corpus / "id000003/xYz0").rename(corpus.parent / "gone")
    prepared = prepare(corpus, spk2videos=listing)
    counts = prepared.counts
    assert counts["expected"] == {"speakers": 6, "videos": 1 + 8 + 3}
    assert counts["found"]["speakers"] == 5
    assert counts["found"]["videos"] == 1 + 8 - 1
    assert counts["found"]["utterances"] == counts["train"]["utterances"] == 24
    assert counts["left_out"]["unlisted"] == 3
    assert counts["left_out"]["unlisted_speakers"] == 1
    names = read_manifest(prepared.train).speaker_names.tolist()
    assert "voxblink2-id000005" not in names


def test_unusable_files_are_left_out_up_to_a_number(corpus):
    folder = corpus / "id000001" / VIDEOS[0]
    (folder / "00000.wav").write_bytes(b"")
    whole = (folder / "00001.wav").read_bytes()
    (folder / "00001.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "00002.wav", noise(1), 44100)
    soundfile.write(folder / "00003.wav", noise(1, 0.1), 16000)
    with pytest.raises(InputError, match="3 bad files, expected at most max_bad_files"):
        prepare(corpus, max_bad_files=2)
    bad = (corpus.parent / "save/bad_files.txt").read_text()
    assert "44100 Hz, expected 16000 Hz" in bad
    assert "truncated" in bad
    prepared = prepare(corpus, max_bad_files=3)
    assert prepared.counts["left_out"] == {
        "bad_files": 3,
        "too_short": 1,
        "duplicates": 0,
        "unlisted": 0,
        "unlisted_speakers": 0,
    }
    assert prepared.counts["train"]["utterances"] == 33


def test_channels_are_averaged_in_training(corpus):
    path = corpus / "id000000" / VIDEOS[0] / "00000.wav"
    left, right = noise(1), noise(2)
    soundfile.write(path, np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    prepared = prepare(corpus)
    assert prepared.counts["found"]["of_several_channels"] == 1
    manifest = read_manifest(prepared.train)
    item = TrainingSet(manifest, seed=0)[Draw(0, 0, 1, 8000, 0)]
    assert np.allclose(item["wav"], (left + right) / 2, atol=1e-7)


def test_duplicates_of_one_speaker_are_dropped_if_asked_for(corpus):
    first, second = (corpus / "id000002" / video for video in VIDEOS)
    wav, _ = soundfile.read(first / "00001.wav", dtype="int16")
    soundfile.write(second / "00002.wav", wav, 16000, subtype="PCM_24")  # other bytes
    soundfile.write(second / "00007.flac", wav, 16000)
    # of another speaker; almost the same; the same from another place
    soundfile.write(corpus / "id000003/xYz0/00009.flac", wav, 16000)
    almost = wav.copy()
    almost[-1] += 1
    soundfile.write(second / "00008.flac", almost, 16000)
    soundfile.write(second / "00009.flac", wav[:-1], 16000)
    assert prepare(corpus).counts["train"]["utterances"] == 40
    prepared = prepare(corpus, drop_duplicates=True)
    assert prepared.counts["left_out"]["duplicates"] == 2
    assert prepared.counts["train"]["utterances"] == 38
    kept = f"voxblink2-id000002/{VIDEOS[0]}/00001"
    assert (corpus.parent / "save/duplicates.txt").read_text().splitlines() == [
        f"voxblink2-id000002/{VIDEOS[1]}/{number}\t{kept}"
        for number in ("00002", "00007")
    ]
    assert kept in read_manifest(prepared.train).ids.tolist()


def test_only_recordings_of_equal_length_are_opened(tmp_path):
    paths = [str(tmp_path / f"{number}.wav") for number in range(4)]
    soundfile.write(paths[1], noise(1), 16000)
    soundfile.write(paths[3], noise(1), 16000)
    assert find_duplicates(paths, [10, 8000, 20, 8000]) == ({3: 1}, [])
    repeated, bad = find_duplicates(paths, [10, 8000, 8000, 8000])
    assert repeated == {3: 1}
    ((row, reason),) = bad
    assert row == 2
    assert reason.startswith("cannot be decoded")


def test_a_damaged_recording_is_found_while_looking_for_duplicates(corpus):
    folder = corpus / "id000001" / VIDEOS[0]
    for name in ("00000", "00001"):
        (folder / f"{name}.wav").unlink()
        soundfile.write(folder / f"{name}.flac", noise(7), 16000)
    content = bytearray((folder / "00000.flac").read_bytes())
    content[-4000:] = bytes(4000)
    (folder / "00000.flac").write_bytes(content)
    prepared = prepare(corpus, drop_duplicates=True)
    assert prepared.counts["left_out"]["bad_files"] == 1
    assert prepared.counts["train"]["utterances"] == 35
    assert "00000.flac\t" in (corpus.parent / "save/bad_files.txt").read_text()


@pytest.fixture
def counted(monkeypatch):
    """Speakers that are read, in parts of two; behind ``limit`` it is Ctrl-C."""

    class Counted(voxblink2.Corpus):
        limit, n_read = None, 0

        def read(self, speaker, videos=None):
            if Counted.n_read == Counted.limit:
                raise KeyboardInterrupt
            Counted.n_read += 1
            return super().read(speaker, videos)

    monkeypatch.setattr(voxblink2, "SPEAKERS_PER_PART", 2)
    monkeypatch.setattr(voxblink2, "Corpus", Counted)
    return Counted


def test_a_run_that_was_stopped_goes_on_where_it_was(corpus, counted):
    whole = prepare(corpus, save_folder=corpus.parent / "whole")
    counted.limit, counted.n_read = 5, 0
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, num_workers=1)
    parts = corpus.parent / "save/parts"
    names = [f"0000{n}.{kind}" for n in range(2) for kind in ("arrow", "json")]
    assert sorted(path.name for path in parts.iterdir()) == names
    # a part that a power failure damaged is read again
    part = parts / "00001.arrow"
    part.write_bytes(part.read_bytes()[:-100])
    counted.limit, counted.n_read = None, 0
    prepared = prepare(corpus)
    assert counted.n_read == 4
    assert prepared.train.read_bytes() == whole.train.read_bytes()
    assert prepared.counts == whole.counts
    counted.limit, counted.n_read = 0, 0
    assert prepare(corpus) == prepared._replace(skipped=True)


def test_parts_of_other_arguments_are_read_again(corpus, counted):
    (corpus / "id000000" / VIDEOS[0] / "00000.wav").write_bytes(b"")
    listing = corpus.parent / "spk2videos"
    listing.write_text(lines_for(range(SPEAKERS)))
    with pytest.raises(InputError, match="1 bad files"):
        prepare(corpus, max_bad_files=0, spk2videos=listing)
    listing.write_text(lines_for(range(4)) + lines_for([4, 5], VIDEOS[:1]))
    counted.n_read = 0
    prepared = prepare(corpus, max_bad_files=1, spk2videos=listing)
    assert counted.n_read == 2  # the part whose videos changed
    assert prepared.counts["train"]["utterances"] == 35 - 6
    counted.n_read = 0
    prepare(corpus, max_bad_files=1, spk2videos=listing, min_seconds=0.45)
    assert counted.n_read == SPEAKERS


def test_a_full_disk_leaves_nothing_half_written(corpus):
    line = on_a_full_disk(2000, corpus.parent / "err", prepare, corpus)
    assert "parts/00000.arrow" in line
    assert list((corpus.parent / "save/parts").iterdir()) == []
    assert prepare(corpus).counts["train"]["utterances"] == 36


def test_a_speaker_in_two_folders_is_one_speaker(corpus):
    second = corpus.parent / "disk2/audio/id000000"
    second.mkdir(parents=True)
    (corpus / "id000000" / VIDEOS[1]).rename(second / VIDEOS[1])
    both = [corpus, corpus.parent / "disk2"]
    assert prepare(corpus, folders=both).counts["train"] == {
        "speakers": 6,
        "utterances": 36,
        "hours": pytest.approx(0.005),
    }
    (second / VIDEOS[0]).mkdir()
    soundfile.write(second / VIDEOS[0] / "00000.flac", noise(0), 16000)
    with pytest.raises(InputError, match="the same utterance ID"):
        prepare(corpus, folders=both, min_seconds=0.3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"folders": []}, "folders is empty"),
        ({"folders": "absent"}, "absent: no such folder"),
        ({"folders": "."}, "no speakers, expected FOLDER/id000000"),
        ({"min_seconds": -1}, "min_seconds=-1"),
        ({"max_bad_files": 1.5}, "max_bad_files=1.5"),
        ({"drop_duplicates": "yes"}, "drop_duplicates='yes', expected True"),
        ({"min_seconds": 9}, "0 training speakers are left, expected at least 2"),
        ({"spk2videos": "absent"}, "absent: no such file"),
        ({"save_folder": "vb2/id000000/x"}, "lies in the folder of recordings"),
    ],
)
def test_wrong_arguments_are_named(corpus, monkeypatch, changes, expected):
    monkeypatch.chdir(corpus.parent)
    with pytest.raises(InputError, match=expected):
        prepare(corpus, **changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id000000 a\nspeaker b\n", "line 2: 'speaker', expected 'id000000"),
        ("id000000 a\nid000000 b\n", "line 2: 'id000000' seen before"),
        (b"id000000 \xff\n", "byte 9: expected UTF-8"),
    ],
)
def test_malformed_lists_are_named(tmp_path, text, expected):
    path = tmp_path / "spk2videos"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=expected):
        read_spk2videos(path)


def test_the_marker_says_what_was_done(corpus):
    prepared = prepare(corpus)
    marker = json.loads((Path(prepared.train).parent / "prepare.json").read_text())
    assert marker["counts"] == prepared.counts
    assert sorted(marker["files"]) == ["duplicates.txt", "train.arrow"]
