"""A user's own CSV file: every bad row named by its line; a split without a leak."""

import csv
import logging

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.corpora.csv_file import prepare_own_corpus, read_listing
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.data.prepare.pipeline import Row
from speechbrain_ext.scoring.trials import read_trials, rows_of
from speechbrain_ext.utils.errors import InputError

HEADER = "ID,duration,wav,spk_id\n"
CUT = "ID,wav,spk_id,start,stop\n"


def write(folder, text):
    path = folder / "mine.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_rows_are_as_they_stand(tmp_path):
    path = write(
        tmp_path,
        HEADER
        + "a/1,1.5,x/a 1.wav,zoë b\n\nc,, /abs/c.flac , bo \n"
        + '"d",2,"d,.wav",s',
    )
    a, c, d = read_listing(path)
    wav = f"{tmp_path}/x/a 1.wav"
    place = f"{path}, line 2"
    assert a == Row("a/1", wav, "zoë b", "a", seconds=1.5, place=place)
    assert c == Row("c", "/abs/c.flac", "bo", "c", place=f"{path}, line 4")
    assert d.path == f"{tmp_path}/d,.wav"
    assert read_listing(path, "/data")[0].path == "/data/x/a 1.wav"
    assert read_listing(path, "/data")[1].path == "/abs/c.flac"


def test_columns_in_any_order_and_others(tmp_path, caplog):
    text = (
        b"\xef\xbb\xbfspk_id, wav ,sex,session,ID,age\r\ns,w.wav,f,monday,a.WAV,7\r\n"
    )
    path = write(tmp_path, text + b"s,v.wav,m,,b/c.x,8\r\n")
    with caplog.at_level(logging.INFO):
        first, second = read_listing(path)
    assert first[:4] == ("a", f"{tmp_path}/w.wav", "s", "monday")
    assert second[:4] == ("b/c.x", f"{tmp_path}/v.wav", "s", "b")
    assert f"{path}: columns that are not read: sex, age" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ", line 1: no column 'ID' in '', expected 'ID,duration,wav,spk_id'"),
        ("ID,wav,speaker\n", ", line 1: no column 'spk_id' in 'ID,wav,speaker', exp"),
        ("ID;wav;spk_id\n", ", line 1: no column 'ID' in 'ID;wav;spk_id', expected"),
        ("ID,wav,spk_id,wav\n", ", line 1: 'wav' twice in 'ID,wav,spk_id,wav', exp"),
        (HEADER, ": no rows, expected recordings"),
        (CUT + "a,w,s,x,\n", ", line 2: start 'x', expected a number of samples, or n"),
        (CUT + "a,w,s,-5,\n", ", line 2: start '-5', expected a number of samples"),
        (CUT + "a,w,s,5,7.5\n", ", line 2: stop '7.5', expected a number of samples"),
        (CUT + "a,w,s,5,5\n", ", line 2: stop 5 is not after start 5, expected"),
        (CUT + "a,w,s,9,5\n", ", line 2: stop 5 is not after start 9, expected"),
        (
            CUT + "a,w,s,5,9\nb,w,s,5,10\nc,w,t,5,9\n",
            "/w 5-9' again, expected each once (also in line 2)",
        ),
        (HEADER + "a,1,w,s\nb,1,v\n", ", line 3: 3 fields, expected 4: ID,duration,"),
        (HEADER + "a,1,w,s\nb,1,v,s,t\n", ", line 3: 5 fields, expected 4"),
        (HEADER + "a,1,w, \n", ", line 2: empty spk_id, expected text"),
        (HEADER + "a,1,,s\n", ", line 2: empty wav, expected text"),
        (HEADER + ",1,w,s\n", ", line 2: empty ID, expected text"),
        (HEADER + "a,long,w,s\n", ", line 2: duration 'long', expected seconds, or"),
        (HEADER + "a,0,w,s\n", ", line 2: duration '0', expected seconds"),
        (HEADER + "a,-1,w,s\n", ", line 2: duration '-1', expected seconds"),
        (HEADER + "a,nan,w,s\n", ", line 2: duration 'nan', expected seconds"),
        (HEADER + "a,inf,w,s\n", ", line 2: duration 'inf', expected seconds"),
        (HEADER + "a b,1,w,s\n", ", line 2: white space in ID 'a b', expected none"),
        (HEADER + "a\x07,1,w,s\n", ", line 2: white space in ID 'a\\x07', expected"),
        (HEADER + "a,1,v|w,s\n", ", line 2: wav 'v|w', expected one file"),
        (HEADER + "a,1,x.tar!w@0+1,s\n", ", line 2: wav 'x.tar!w@0+1', expected one"),
        (
            HEADER + "a,1,w,s\nb,1,v,s\n\na.wav,1,x,t\n",
            ", line 5: ID 'a' again, expected each once (also in line 2)",
        ),
        (HEADER + 'a,1,"w,s\n', ": not valid CSV"),
        (HEADER.encode() + b"a,1,\xff\xfe,s\n", " is not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, text, expected):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_listing(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message


def test_one_recording_under_two_names(tmp_path):
    path = write(tmp_path, HEADER + f"a,1,w.wav,s\nb,1,{tmp_path}/w.wav,t\n")
    with pytest.raises(InputError, match=r"line 3: wav '.*w.wav' again, .*\(also in"):
        read_listing(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"mine\.csv: No such file .*expected a CSV"):
        read_listing(tmp_path / "mine.csv")


SPEAKERS = ("anna", "bo", "cy", "dora", "eve", "fay")
TAKES = 4
SECONDS = 0.5


def write_csv(folder, rows, header=("ID", "duration", "wav", "spk_id")):
    with open(folder / "mine.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def corpus(tmp_path):
    """Six speakers of four recordings, all in one folder; half without duration."""
    (tmp_path / "audio").mkdir()
    generator, rows = np.random.default_rng(0), []
    for speaker in SPEAKERS:
        for take in range(TAKES):
            wav = f"audio/{speaker}{take}.wav"
            noise = 0.1 * generator.standard_normal(round(SECONDS * 16000))
            soundfile.write(tmp_path / wav, noise, 16000)
            rows.append([f"{speaker}{take}", SECONDS if take % 2 else "", wav, speaker])
    write_csv(tmp_path, rows)
    return tmp_path


def prepare(corpus, **settings):
    settings = {"n_valid_speakers": 2, "num_workers": 2, **settings}
    return prepare_own_corpus(corpus / "mine.csv", corpus / "out", **settings)


def rows_of_csv(corpus):
    with open(corpus / "mine.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def test_speakers_are_held_out_and_durations_are_those_of_the_files(corpus):
    prepared = prepare(corpus)
    train, valid = map(read_manifest, prepared[:2])
    speakers = [set(m.speaker_names.tolist()) for m in (train, valid)]
    assert speakers[0] | speakers[1] == set(SPEAKERS)
    assert not speakers[0] & speakers[1]
    assert len(speakers[1]) == 2
    assert len(train) + len(valid) == len(SPEAKERS) * TAKES
    assert (train.durations == SECONDS).all()
    assert train.paths[0] == str(corpus / f"audio/{train.ids[0]}.wav")
    trials = read_trials(prepared.valid_trials)
    rows = rows_of(trials, valid.ids, "valid.csv")
    same = valid.labels[rows[trials.enrol]] == valid.labels[rows[trials.test]]
    assert (same == trials.labels).all()
    assert trials.n_target == trials.n_nontarget == 12
    assert prepared.test is None
    assert not any(prepared.counts["left_out"].values())


def test_sessions_decide_which_trials_are_drawn(corpus):
    soundfile.write(corpus / "audio/anna0.wav", np.full(5000, 0.1), 16000)  # too short
    rows = [[*row, "aabb"[n % 4]] for n, row in enumerate(rows_of_csv(corpus))]
    write_csv(corpus, rows, ("ID", "duration", "wav", "spk_id", "session"))
    session = {row[0]: row[4] for row in rows}
    trials = read_trials(prepare(corpus, n_valid_trials=16).valid_trials)
    pairs = zip(trials.enrol, trials.test, trials.labels)
    names = trials.names.tolist()
    targets = [(names[a], names[b]) for a, b, same in pairs if same]
    assert len(targets) == 8
    assert all(session[a] != session[b] for a, b in targets)


def test_speakers_of_trial_lists_are_never_trained_on(corpus):
    (corpus / "trials.txt").write_text("1 anna0.wav anna3.wav\n0 anna0 bo2\n")
    prepared = prepare(corpus, trial_lists=corpus / "trials.txt")
    train, valid, test = (
        read_manifest(p) for p in (prepared.train, prepared.valid, prepared.test)
    )
    assert test.ids.tolist() == ["anna0", "anna3", "bo2"]
    assert test.speakers.tolist() == ["anna", "anna", "bo"]
    found = {*train.speaker_names.tolist(), *valid.speaker_names.tolist()}
    assert found == set(SPEAKERS) - {"anna", "bo"}
    (corpus / "trials.txt").write_text("1 anna0 anna3\n0 anna0 zed\n")
    with pytest.raises(InputError, match=r"trials\.txt: line 2: utterance 'zed' is"):
        prepare(corpus, trial_lists=corpus / "trials.txt")


def test_it_is_made_again_where_the_file_changes(corpus, caplog):
    assert not prepare(corpus).skipped
    assert prepare(corpus).skipped
    write_csv(corpus, rows_of_csv(corpus)[:-1])
    with caplog.at_level(logging.INFO):
        assert not prepare(corpus).skipped
    assert "lists changed: all is made anew" in caplog.text


def test_it_is_made_again_where_a_recording_is_replaced(corpus, caplog):
    prepare(corpus)
    path = corpus / "audio/anna0.wav"  # without a stated duration
    soundfile.write(path, np.full(9600, 0.1), 16000)
    with caplog.at_level(logging.INFO):
        prepared = prepare(corpus)
    assert not prepared.skipped
    assert "recordings changed: all is made anew" in caplog.text
    rows = [read_manifest(file) for file in prepared[:2]]
    seconds = {n: s for m in rows for n, s in zip(m.ids.tolist(), m.durations.tolist())}
    assert seconds["anna0"] == 0.6
    assert prepare(corpus).skipped
    path.unlink()  # as where shards took the place of the files
    assert prepare(corpus).skipped


def test_relative_paths_begin_in_the_data_folder(corpus, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (corpus / "mine.csv").rename(elsewhere / "mine.csv")
    made = prepare_own_corpus(
        elsewhere / "mine.csv", elsewhere / "out", corpus, n_valid_speakers=0
    )
    assert len(read_manifest(made.train)) == len(SPEAKERS) * TAKES
    assert made.valid is None
    with pytest.raises(InputError, match=r"line 2: .*audio/anna0\.wav: no such file"):
        prepare_own_corpus(elsewhere / "mine.csv", elsewhere / "out")


def spoil(path, damage):
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("no sound")
    elif damage == "rate":
        soundfile.write(path, np.full(4000, 0.1), 8000)
    elif damage == "stereo":
        soundfile.write(path, np.full((8000, 2), 0.1), 16000)
    elif damage == "longer":
        soundfile.write(path, np.full(16100, 0.1), 16000)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("missing", "no such file"),
        ("text", "cannot be opened as sound"),
        ("rate", r"8000 Hz with 1 channel\(s\), expected 16000 Hz mono"),
        ("stereo", r"16000 Hz with 2 channel\(s\), expected 16000 Hz mono"),
        ("longer", r"lasts 1\.01 s, duration says 0\.5, expected them to agree"),
    ],
)
def test_a_bad_recording_is_named_with_its_line_or_left_out(corpus, damage, expected):
    spoil(corpus / "audio/bo3.wav", damage)  # line 9
    spoil(corpus / "audio/cy1.wav", damage)  # line 11, which sorts before
    with pytest.raises(InputError) as caught:
        prepare(corpus)
    message = str(caught.value)
    assert message.startswith(f"{corpus}/mine.csv, line 9: {corpus}/audio/bo3.wav: ")
    assert "2 bad files, expected at most max_bad_files=0" in message
    assert not (corpus / "out/train.csv").exists()
    with pytest.raises(InputError, match=expected):
        prepare(corpus)
    prepared = prepare(corpus, max_bad_files=2)
    assert prepared.counts["left_out"]["bad_files"] == 2
    known = {*read_manifest(prepared.train).ids.tolist()}
    known |= {*read_manifest(prepared.valid).ids.tolist()}
    assert known == {row[0] for row in rows_of_csv(corpus)} - {"bo3", "cy1"}
    listed = (corpus / "out/bad_files.txt").read_text().splitlines()
    assert ["line 9" in listed[0], "line 11" in listed[1]] == [True, True]


def test_a_bad_recording_of_a_trial_list_is_never_left_out(corpus):
    (corpus / "trials.txt").write_text("1 anna0 anna3\n0 anna0 bo2\n")
    spoil(corpus / "audio/bo2.wav", "rate")
    with pytest.raises(InputError, match=r"line 8: .*bo2\.wav: .* bad files of"):
        prepare(corpus, trial_lists=corpus / "trials.txt", max_bad_files=5)


@pytest.mark.parametrize(
    ("speakers", "settings", "expected"),
    [
        (1, {}, r"mine\.csv: 1 of 1 speakers .* \('anna'\), expected at least 2"),
        (3, {}, "n_valid_speakers=2 leaves 1 of 3 speakers for training, expected at"),
        (2, {}, "n_valid_speakers=2, expected fewer than the 2 training speakers"),
        (2, {"min_seconds": 0.6}, "0 training speakers are left, expected at least 2"),
        (2, {"min_seconds": -1}, "min_seconds=-1, expected a number of at least 0"),
        (2, {"num_workers": 0}, "num_workers=0, expected a whole number of at least 1"),
        (2, {"n_valid_speakers": 1}, "n_valid_speakers=1, expected 0 or at least 2"),
    ],
)
def test_too_little_of_something(corpus, speakers, settings, expected):
    write_csv(corpus, rows_of_csv(corpus)[: speakers * TAKES])
    with pytest.raises(InputError, match=expected):
        prepare(corpus, **settings)


def test_all_but_one_speaker_are_tested(corpus):
    lines = [f"{int(a == b)} {a}0 {b}1\n" for a in SPEAKERS[1:] for b in SPEAKERS[1:]]
    (corpus / "trials.txt").write_text("".join(lines))
    with pytest.raises(InputError, match=r"mine.csv: 1 of 6 .* \('anna'\)"):
        prepare(corpus, trial_lists=corpus / "trials.txt")


@pytest.mark.parametrize("manifest", [["a.csv", "b.csv"], None, 3])
def test_one_file_is_given(tmp_path, manifest):
    with pytest.raises(InputError, match="expected the name of a file or folder"):
        prepare_own_corpus(manifest, tmp_path)
