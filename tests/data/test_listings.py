"""Segments of recordings, listed in CSV, by Kaldi, by NeMo or in RTTM: each becomes
a row of its samples, and what is wrong is named by its line."""

import json

import numpy as np
import pytest
import soundfile
from tiny_extraction import make_model
from tiny_training import voice

from speechbrain_ext.data.audio import parts_of, read_audio, segment_path
from speechbrain_ext.data.corpora.csv_file import prepare_own_corpus, read_listing
from speechbrain_ext.data.manifest import Manifest, read_manifest
from speechbrain_ext.data.shards.index import ShardIndex
from speechbrain_ext.data.shards.writer import make_shards
from speechbrain_ext.inference.extraction import extract_embeddings
from speechbrain_ext.utils.errors import InputError

RATE = 16000
SPEAKERS = ("anna", "bo", "cy")
# (speaker, recording, first second, last second): two recordings, three voices
TURNS = [
    (SPEAKERS[n % 3], f"day{n % 2}", round(0.75 * (n // 2), 2), 0.75 * (n // 2) + 0.5)
    for n in range(12)
]


@pytest.fixture
def folder(tmp_path):
    """Two recordings of 5 s that count their samples, in 16 bits."""
    for day in range(2):
        count = (np.arange(5 * RATE) % 30000 + day).astype(np.int16)
        path = tmp_path / f"audio/day{day}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, count, RATE)
    return tmp_path


def csv_of(folder):
    lines = [
        f"{who}{n},audio/{day}.flac,{who},{int(a * RATE)},{int(b * RATE)}"
        for n, (who, day, a, b) in enumerate(TURNS)
    ]
    return write(folder / "mine.csv", ["ID,wav,spk_id,start,stop", *lines])


def kaldi_of(folder):
    data = folder / "data"
    data.mkdir()
    write(data / "wav.scp", [f"day{n} {folder}/audio/day{n}.flac" for n in range(2)])
    write(data / "utt2spk", [f"{t[0]}{n} {t[0]}" for n, t in enumerate(TURNS)])
    lines = [f"{who}{n} {d} {a} {b}" for n, (who, d, a, b) in enumerate(TURNS)]
    write(data / "segments", lines)
    return data


def nemo_of(folder):
    lines = [
        {
            "audio_filepath": f"audio/{d}.flac",
            "offset": a,
            "duration": 0.5,
            "label": who,
        }
        for who, d, a, _ in TURNS
    ]
    return write(folder / "mine.jsonl", map(json.dumps, lines))


def rttm_of(folder):
    lines = [f"SPEAKER {d} 1 {a} 0.5 <NA> <NA> {w} <NA> <NA>" for w, d, a, _ in TURNS]
    return write(folder / "mine.rttm", [";; turns", *lines])


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


LISTINGS = [csv_of, kaldi_of, nemo_of, rttm_of]


@pytest.mark.parametrize("listing", LISTINGS)
def test_each_row_is_a_segment_of_its_recording(folder, listing):
    prepared = prepare_own_corpus(
        listing(folder), folder / "out", n_valid_speakers=0, num_workers=2
    )
    train = read_manifest(prepared.train)
    assert len(train) == len(TURNS)
    assert (train.durations == 0.5).all()
    assert train.speaker_names.tolist() == list(SPEAKERS)
    expected = {(f"{d}.flac", int(a * RATE)): who for who, d, a, _ in TURNS}
    for path, speaker in zip(train.paths.tolist(), train.speakers.tolist()):
        ((file, start, frames, is_cut),) = parts_of(path)
        assert is_cut
        assert expected.pop((file.rsplit("/", 1)[-1], start)) == speaker
        assert frames == RATE // 2
        whole = soundfile.read(file, dtype="float32")[0]
        assert np.array_equal(read_audio(path), whole[start : start + frames])
    assert not expected


@pytest.mark.parametrize("listing", LISTINGS)
def test_the_ids_are_those_that_a_trial_list_names(folder, listing):
    path, first, second = listing(folder), "anna0", "anna6"
    if listing is nemo_of:
        first, second = "audio/day0/0-8000", "audio/day0/36000-44000"
    elif listing is rttm_of:
        first, second = "anna/day0/0-8000", "anna/day0/36000-44000"
    trials = write(folder / "trials.txt", [f"1 {first} {second}"])
    prepared = prepare_own_corpus(
        path, folder / "out", trial_lists=trials, n_valid_speakers=0
    )
    assert read_manifest(prepared.test).ids.tolist() == sorted([first, second])
    assert read_manifest(prepared.train).speaker_names.tolist() == ["bo", "cy"]


def test_blank_fields_and_an_end_behind_the_recording(folder):
    rows = ["a,audio/day0.flac,anna,,,5", "b,audio/day1.flac,anna,72000,,0.5"]
    rows += ["c,audio/day1.flac,bo,,8000,0.5", "d,audio/day0.flac,bo,64000,87000,5"]
    rows += ["e,audio/day1.flac,bo,0,80000,"]
    path = write(folder / "m.csv", ["ID,wav,spk_id,start,stop,duration", *rows])
    prepared = prepare_own_corpus(path, folder / "out", n_valid_speakers=0)
    train = read_manifest(prepared.train)
    names = [name.removeprefix(f"{folder}/audio/") for name in train.paths.tolist()]
    assert names == [
        *("day0.flac", "day1.flac:72000-80000|", "day1.flac:0-8000|"),
        *("day0.flac:64000-80000|", "day1.flac"),
    ]
    assert train.durations.tolist() == [5.0, 0.5, 0.5, 1.0, 5.0]


def test_segments_of_one_recording_are_of_one_occasion(folder):
    sessions = {
        listing: {(row.speaker, row.session) for row in read_listing(listing(folder))}
        for listing in LISTINGS
    }
    assert {len(found) for found in sessions.values()} == {6}


def test_kaldi_without_segments_and_nemo_without_offsets_are_whole(folder):
    data = kaldi_of(folder)
    (data / "segments").unlink()
    write(data / "utt2spk", ["day0 anna", "day1 bo"])
    rows = read_listing(data)
    assert [(row.id, row.speaker, row.is_cut) for row in rows] == [
        *(("day0", "anna", False), ("day1", "bo", False)),
    ]
    lines = ['{"audio_filepath": "audio/day0.flac", "speaker": 7}']
    (row,) = read_listing(write(folder / "mine.manifest", lines))
    assert row[:3] == ("audio/day0", f"{folder}/audio/day0.flac", "7")
    assert not row.is_cut


def test_recordings_of_rttm_behind_a_link(folder):
    """As for embed; a link to a folder above itself has no end."""
    (folder / "lists/links").mkdir(parents=True)
    (folder / "lists/links/audio").symlink_to(folder / "audio")
    (folder / "lists/links/again").symlink_to(folder / "lists")
    (row,) = read_listing(write(folder / "lists/m.rttm", [turn(1, 2)]))
    assert (row.start, row.stop) == (RATE, 3 * RATE)
    assert (folder / "audio/day0.flac").samefile(row.path)


def test_a_speaker_that_is_null_is_the_label(folder):
    line = '{"audio_filepath": "day0.flac", "speaker": null, "label": 12}'
    (row,) = read_listing(write(folder / "m.json", [line]))
    assert row.speaker == "12"


def test_the_name_of_a_recording_in_another_form_of_unicode(folder):
    (folder / "audio/day0.flac").rename(folder / "audio/Zoe\u0301.flac")
    text = "ID,wav,spk_id\na,audio/Zo\u00e9.flac,Zo\u00e9\n"
    (folder / "m.csv").write_text(text, encoding="utf-8")
    (row,) = read_listing(folder / "m.csv")
    assert row.path == f"{folder}/audio/Zoe\u0301.flac"


def changed(name, line, text):
    """A change of one line of a file of Kaldi's."""

    def change(folder):
        path = kaldi_of(folder) / name
        lines = path.read_text().splitlines()
        lines[line - 1] = text
        write(path, lines)
        return path.parent

    return change


def listed(name, line):
    return lambda folder: write(folder / name, [line])


def turn(start, length, channel=1, name="day0"):
    return f"SPEAKER {name} {channel} {start} {length} <NA> <NA> anna <NA> <NA>"


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        (
            changed("wav.scp", 2, "day1 sox day1.flac -t wav - |"),
            "wav.scp, line 2: a command, 'sox day1.flac -t wav - |', expected a file",
        ),
        (changed("wav.scp", 1, "day0"), "wav.scp, line 1: 1 columns, expected 2"),
        (
            changed("utt2spk", 2, "bo99 bo"),
            "segments, line 2: utterance 'bo1' is",
        ),
        (changed("segments", 2, "bo9 day1 0 1"), "line 2: utterance 'bo9' is not in"),
        (changed("segments", 2, "anna0 day1 0 1"), "line 2: 'anna0' again, expected"),
        (changed("segments", 2, "bo1 day7 0 1"), "line 2: no recording 'day7' in"),
        (changed("segments", 2, "bo1 day1 x 1"), "line 2: start 'x', expected seconds"),
        (
            changed("segments", 2, "bo1 day1 2 1"),
            "line 2: stop 16000 is not after start",
        ),
        (
            changed("segments", 2, "bo1 day1 1 6"),
            "lasts 80000 samples, expected more for the segment of 16000 to 96000",
        ),
        (listed("m.jsonl", "[]"), "m.jsonl, line 1: '[]', expected one JSON object"),
        (listed("m.json", "[" * 200_000), "m.json, line 1: '[[[[[["),
        (
            listed("m.json", '{"audio_filepath": "a", "label": "b", "offset": 1e308}'),
            "line 1: offset 1e+308, expected seconds",
        ),
        (listed("m.rttm", turn(0, "1e308")), "line 1: duration '1e308', expected"),
        (
            changed("segments", 2, "bo1 day1 1e308 -1"),
            "line 2: start '1e308', expected",
        ),
        (listed("m.json", "{"), "m.json, line 1: '{', expected one JSON object"),
        (listed("m.json", '{"label": "a"}'), "line 1: audio_filepath None, expected"),
        (
            listed("m.json", '{"audio_filepath": "a.wav"}'),
            "line 1: label None, expected the speaker",
        ),
        (
            listed("m.json", '{"audio_filepath": "a", "label": "b", "offset": -1}'),
            "line 1: offset -1, expected seconds",
        ),
        (listed("m.rttm", "SPEAKER day0 1 0"), "line 1: 4 columns, expected 'SPEAKER"),
        (listed("m.rttm", turn("x", 1)), "line 1: start 'x', expected seconds"),
        (listed("m.rttm", turn(1, 1, channel=2)), "line 1: channel '2', expected 1"),
        (listed("m", turn(1, 1, name="x")), "m, line 1: no recording called 'x' in"),
        (listed("m.rttm", turn(1, 0)), "m.rttm: no rows, expected recordings"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(folder, listing, expected):
    with pytest.raises(InputError) as caught:
        prepare_own_corpus(listing(folder), folder / "out", n_valid_speakers=0)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "out/prepare.json").exists()


def test_a_folder_that_is_none_of_kaldi_s(folder):
    with pytest.raises(InputError, match=r"audio/wav.scp: No such file .*expected lin"):
        read_listing(folder / "audio")


def test_segments_are_embedded_as_the_files_that_are_cut_from_them(tmp_path):
    wav = voice(0, 6.0, np.random.default_rng(0))
    soundfile.write(tmp_path / "long.flac", wav, RATE)
    wav, _ = soundfile.read(tmp_path / "long.flac")
    rows, length = [], 9000
    for number, start in enumerate((0, 4000, 70000)):
        soundfile.write(
            tmp_path / f"{number}.wav", wav[start : start + length], RATE, "FLOAT"
        )
        path = segment_path(tmp_path / "long.flac", start, start + length)
        rows.append((str(number), path, str(tmp_path / f"{number}.wav")))
    ids, segments, files = zip(*rows)
    seconds, vectors = [length / RATE] * 3, []
    for paths in (segments, files):
        rows = Manifest(ids, paths, seconds, [""] * 3)
        vectors.append(extract_embeddings(make_model(), rows, progress=False))
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_shards_hold_the_samples_of_segments(folder):
    wav = 0.3 * np.random.default_rng(0).standard_normal(RATE)
    soundfile.write(folder / "float.wav", wav, RATE, subtype="FLOAT")
    rows = ["a,audio/day0.flac,anna,100,900", "b,float.wav,anna,50,950"]
    rows += ["c,audio/day1.flac,bo,,", "d,audio/day1.flac,bo,32000,"]
    path = write(folder / "m.csv", ["ID,wav,spk_id,start,stop", *rows])
    prepared = prepare_own_corpus(
        path, folder / "out", n_valid_speakers=0, min_seconds=0
    )
    train = read_manifest(prepared.train)
    make_shards([prepared.train], folder / "shards", num_workers=1)
    index = ShardIndex(folder / "shards", num_workers=1)
    first, frames = index.find(train.ids)
    assert frames.tolist() == [800, 900, 80000, 48000]
    for name, row, path in zip(train.ids.tolist(), first, train.paths.tolist()):
        found = read_audio(index.path_of(name, row))
        assert np.array_equal(found, read_audio(path))
