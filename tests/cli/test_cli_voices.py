"""python -m speechbrain_ext enrol, identify, voices, thresholds and verify --voice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_verifier import load, make_folder, make_whole, write_voice

from speechbrain_ext.__main__ import main
from speechbrain_ext.inference import Voices

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With everything."""
    return str(make_whole(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """SPEAKER/…/FILE of four speakers, three recordings each; one more is no sound."""
    root = tmp_path_factory.mktemp("corpus")
    for number, name in enumerate(("Anna", "Bo Li", "Zoë", "李雷")):
        for take in range(3):
            path = root / name / f"day{take % 2}" / f"{take}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_voice(path, 20 + number, 0.6 + 0.2 * take, 5 * number + take)
    (root / "Zoë" / "bad.wav").write_text("no sound")
    (root / "Anna" / "notes.txt").write_text("no recording")
    return root


@pytest.fixture
def store(model, corpus, tmp_path, capsys):
    """Everybody of the corpus."""
    path = str(tmp_path / "v.safetensors")
    run(capsys, "enrol", "--folder", corpus, "--voices", path, "--source", model)
    return path


def run(capsys, *words, code=0):
    words = [str(word) for word in words]
    capsys.readouterr()
    if "--source" in words:
        words += ["--device", "cpu"]
    if code:
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == code
    else:
        main(words)
    return json.loads(capsys.readouterr().out)


def refused(capsys, message, *words):
    capsys.readouterr()
    words = [str(word) for word in words]
    with pytest.raises(SystemExit) as caught:
        main([*words, *(["--device", "cpu"] if "--source" in words else [])])
    out, err = capsys.readouterr()
    assert caught.value.code == 1
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]


def takes(corpus, name):
    return sorted(corpus.glob(f"{name}/*/*.wav"), key=lambda path: path.name)


# -- enrol -----------------------------------------------------------------------------


def test_a_voice_by_its_recordings_and_more_of_them_later(
    model, corpus, tmp_path, capsys
):
    path, files = tmp_path / "new" / "v", takes(corpus, "Anna")
    words = ("--voices", path, "--source", model)
    found = run(capsys, "enrol", "Anna", *files[:2], *words)
    assert found["enrolled"] == [
        {"voice": "Anna", "recordings": 2, "seconds": pytest.approx(1.4)}
    ]
    assert (found["n_voices"], found["failures"], found["warnings"]) == (1, [], [])
    assert (found["voices"], found["model"]) == (str(path), model)
    found = run(capsys, "enrol", "Anna", files[2], *words)
    assert found["enrolled"][0]["recordings"] == 3
    expected = load(model).enrol([str(file) for file in files])
    voice = Voices.load(path)["Anna"]
    np.testing.assert_allclose(voice.embedding, expected.embedding, 1e-4, 1e-5)
    found = run(capsys, "enrol", "Anna", files[2], "--replace", *words)
    assert found["enrolled"][0]["recordings"] == 1


def test_everybody_of_a_folder(model, corpus, store, capsys):
    found = run(capsys, "voices", store)
    assert [v["voice"] for v in found["voices"]] == ["Anna", "Bo Li", "Zoë", "李雷"]
    assert {v["recordings"] for v in found["voices"]} == {3}
    assert found["model"] == load(model).fingerprint
    words = ("--voices", store, "--source", model, "--replace")
    found = run(capsys, "enrol", "--folder", corpus, *words)
    assert found["n_voices"] == 4
    assert {v["recordings"] for v in found["enrolled"]} == {3}
    assert len(found["failures"]) == 1
    assert found["failures"][0]["file"].endswith("bad.wav")
    assert "cannot be opened" in found["failures"][0]["reason"]


def test_a_name_that_no_voice_can_have_stops_no_other(model, corpus, tmp_path, capsys):
    shutil.copytree(corpus / "Anna", tmp_path / "all" / "Anna")
    shutil.copytree(corpus / "Bo Li", tmp_path / "all" / "Bo\nLi")
    shutil.copy(takes(corpus, "Anna")[0], tmp_path / "all" / "loose.wav")
    words = ("--voices", tmp_path / "v", "--source", model)
    found = run(capsys, "enrol", "--folder", tmp_path / "all", *words)
    assert [v["voice"] for v in found["enrolled"]] == ["Anna"]
    assert len(found["failures"]) == 3
    assert "printable" in found["failures"][0]["reason"]


def test_nothing_is_written_where_something_is_wrong(model, corpus, tmp_path, capsys):
    path, (file, *_) = tmp_path / "v", takes(corpus, "Anna")
    words = ("--voices", path, "--source", model)
    for message, more in (
        ("bad.wav: cannot be opened", ["Zoë", file, corpus / "Zoë" / "bad.wav"]),
        ("gone.wav", ["Zoë", tmp_path / "gone.wav"]),
        ("expected a name and its recordings", ["Zoë"]),
        ("expected a name and its recordings", []),
        ("expected a name and its recordings", ["Zoë", file, "--folder", corpus]),
        ("expected printable text", ["a\nb", file]),
        ("expected printable text", ["", file]),
        ("expected SPEAKER/FILE", ["--folder", corpus / "Zoë" / "day0"]),
        ("No such file", ["--folder", tmp_path / "gone"]),
    ):
        refused(capsys, message, "enrol", *more, *words)
        assert not path.exists()
    path.write_text("foreign")
    refused(capsys, f"{path}: cannot be read as a store", "enrol", "A", file, *words)
    assert path.read_text() == "foreign"


# -- identify --------------------------------------------------------------------------


def test_whose_voice_it_is(model, corpus, store, capsys):
    file = takes(corpus, "Zoë")[2]
    words = ("--voices", store, "--source", model)
    found = run(capsys, "identify", file, *words, "--top", 2)
    expected = load(model).identify(str(file), store, top=2)
    assert found["voice"] == expected.voice
    assert found["score_kind"] == expected.score == "llr"
    assert found["score"] == expected.candidates[0].llr
    assert found["candidates"] == [c._asdict() for c in expected.candidates]
    assert found["threshold"] == expected.threshold
    assert found["false_accept_rate"] == expected.false_accept_rate
    assert found["n_voices"] == 4
    assert found["test"] == {"files": [str(file)], "seconds": 1.0}
    assert "too few for a rate of 0.01" in found["warnings"][0]
    assert found["threshold_from"].startswith("the model's held-out trials")
    both = run(capsys, "identify", *takes(corpus, "Zoë")[:2], *words)
    assert both["test"]["seconds"] == pytest.approx(1.4)
    each = run(capsys, "identify", *takes(corpus, "Zoë")[:2], *words, "--each")
    assert [r["test"]["seconds"] for r in each["results"]] == pytest.approx([0.6, 0.8])


def test_unknown_is_an_answer(model, corpus, store, capsys):
    words = ("--voices", store, "--source", model, "--score", "cosine")
    file = takes(corpus, "Zoë")[2]
    found = run(capsys, "identify", file, *words, "--threshold", "1.5")
    assert found["voice"] is None
    assert found["candidates"][0]["cosine"] == found["score"] < found["threshold"]
    found = run(capsys, "identify", file, *words, "--threshold=-2")
    assert found["voice"] == found["candidates"][0]["voice"]


def test_no_speech_has_an_exit_code_of_its_own(model, corpus, tmp_path, capsys):
    """The same weights, looking for speech; the recordings are tones."""
    speech = make_folder(tmp_path / "model", inference={"speech_detection": True})
    words = ("--voices", tmp_path / "v", "--source", speech)
    files = takes(corpus, "Zoë")
    refused(capsys, "no speech", "enrol", "Zoë", *files, *words)
    assert not (tmp_path / "v").exists()
    run(capsys, "enrol", "Zoë", *files, *words, "--no_speech_detection")
    found = run(capsys, "identify", files[2], *words, code=3)
    assert found["voice"] is found["score"] is None
    assert found["candidates"] == []
    assert "no speech" in found["warnings"][-1]
    (each,) = run(capsys, "identify", files[2], *words, "--each", code=3)["results"]
    assert each["voice"] is None
    assert "no speech" in each["error"]
    found = run(capsys, "identify", files[2], *words, "--no_speech_detection")
    assert found["voice"] == "Zoë"


def test_a_channel_of_several(model, corpus, tmp_path, capsys):
    """A speaker on the left, another one on the right."""
    files = [takes(corpus, name)[2] for name in ("Anna", "Bo Li")]
    both = np.stack([soundfile.read(file)[0] for file in files], axis=1)
    soundfile.write(tmp_path / "call.wav", both, 16000)
    words = ("--voices", tmp_path / "v", "--source", model)
    for name, channel in (("left", "left"), ("right", "2")):
        run(capsys, "enrol", name, tmp_path / "call.wav", *words, "--channel", channel)
    for name, file in zip(("left", "right"), files):
        decision = ("--score", "cosine", "--threshold", 0.99999)
        assert run(capsys, "identify", file, *words, *decision)["voice"] == name


def test_bad_questions(model, corpus, store, tmp_path, capsys):
    file, other = takes(corpus, "Zoë")[2], make_folder(tmp_path / "other", seed=1)
    words = ("--voices", store, "--source", model)
    refused(capsys, "gone.wav", "identify", tmp_path / "gone.wav", *words)
    refused(
        *(capsys, "0.001 false accepts among 4 voices: false_accept_rate 0.00025"),
        *("identify", file, *words, "--false_accept_rate", "0.001"),
    )
    refused(capsys, "top is 0", "identify", file, *words, "--top", 0)
    other_words = ("--voices", store, "--source", other)
    refused(capsys, "of another model", "identify", file, *other_words)
    refused(capsys, "of another model", "enrol", "A", file, *other_words)
    assert len(Voices.load(store)) == 4


# -- list, remove, verify --------------------------------------------------------------


def test_list_and_remove_need_no_model(store, capsys):
    before = run(capsys, "voices", store, "list")
    after = run(capsys, "voices", store, "remove", "Bo Li", "李雷")
    assert after["n_voices"] == 2
    assert after["voices"] == [before["voices"][0], before["voices"][2]]
    assert run(capsys, "voices", store) == after
    refused(capsys, "no voice 'Cy'", "voices", store, "remove", "Anna", "Cy")
    refused(capsys, "voices remove with 0 names", "voices", store, "remove")
    refused(capsys, "voices list with 1 names", "voices", store, "list", "Anna")
    assert run(capsys, "voices", store) == after
    refused(capsys, "gone: No such file", "voices", store + "gone")
    refused(capsys, "gone: No such file", "voices", store + "gone", "remove", "Anna")
    assert not Path(store + "gone").exists()


def test_verify_against_an_enrolled_voice(model, corpus, store, capsys):
    file = takes(corpus, "Zoë")[2]
    words = ("--voices", store, "--source", model)
    found = run(capsys, "verify", file, "--voice", "Zoë", *words)
    verifier = load(model)
    expected = verifier.compare(Voices.load(store, verifier)["Zoë"], str(file))
    assert found["scores"]["llr"] == pytest.approx(expected.llr)
    assert found["same_speaker"] == expected.decision
    assert found["enrol"] == {
        "voice": "Zoë",
        "files": [],
        "seconds": pytest.approx(2.4),
    }
    assert found["test"]["files"] == [str(file)]
    both = run(capsys, "verify", "--test", file, file, "--voice", "Zoë", *words)
    assert both["test"]["seconds"] == 2.0
    refused(capsys, "no voice 'Cy'", "verify", file, "--voice", "Cy", *words)
    refused(capsys, "go together", "verify", file, file, *words)
    refused(capsys, "at least one", "verify", "--voice", "Zoë", *words)


# -- thresholds ------------------------------------------------------------------------


def test_thresholds_of_ones_own_as_a_table_and_as_json(model, corpus, tmp_path, capsys):
    words = ("--source", model, "--output", tmp_path / "own", "--device", "cpu")
    main([str(word) for word in ("thresholds", corpus, *words)])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["speakers"], found["recordings"]) == (4, 12)
    assert (found["targets"], found["nontargets"]) == (12, 54)
    assert list(found["scores"]) == ["cosine", "as_norm", "llr"]
    assert "| log-likelihood ratio | equal error | " in err
    assert "12 target and 54 non-target trials" in err
    assert "4 speakers: of log-likelihood ratio, the interval" in found["warnings"][-1]
    assert load(tmp_path / "own").thresholds["cosine"].n_nontarget == 54
    shutil.copytree(corpus / "Anna", tmp_path / "one" / "Anna")
    one = tmp_path / "one"
    refused(capsys, "recordings of 1 speakers", "thresholds", one, *words[:2])
