"""Decisions are about speech: never a match without it, whatever lies around it."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly
from tiny_speech import RATE, VARIANTS, silence, sounds, spoken
from tiny_verifier import add_backend, load, make_folder

from speechbrain_ext.__main__ import main
from speechbrain_ext.inference import Segment
from speechbrain_ext.inference.audio_input import ChunkingConfig, windows_of
from speechbrain_ext.inference.decisions import comparison_report
from speechbrain_ext.inference.speech import speech_of
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.utils.errors import InputError, NoSpeechError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With everything, and with speech detection, as folders are."""
    root = tmp_path_factory.mktemp("speech")
    folder = make_folder(root / "final", inference={"speech_detection": True})
    add_backend(folder, root / "wav")
    return folder


@pytest.fixture(scope="module")
def verifier(model):
    return load(model)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two voices, one of them also with 27 s of silence; noise; silence."""
    folder = tmp_path_factory.mktemp("files")
    voice = np.r_[spoken("m1"), silence(0.5)]
    wavs = {
        "voice": voice,
        "padded": np.r_[voice, silence(27.0)],
        "room": np.r_[silence(9.0), voice, silence(18.0)]
        + silence(27.0 + len(voice) / RATE, 3e-4),
        "other": spoken("f2"),
        "noise": sounds(3.0, 1)["white0"],
        "music": sounds(3.0, 1)["chords0"],
        "silent": silence(3.0),
        "blip": np.r_[silence(1.0), spoken("m1")[: RATE // 8], silence(1.0)],
    }
    for name, wav in wavs.items():
        soundfile.write(folder / f"{name}.wav", wav, RATE, subtype="FLOAT")
    return {name: str(folder / f"{name}.wav") for name in wavs}


def plain(verifier, wav):
    """Embedding of a waveform as it is."""
    return verifier.encode_batch(torch.from_numpy(wav))[0, 0].numpy()


def read(path):
    return soundfile.read(path, dtype="float32")[0]


def close(found, expected, scale=1e-5):
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_allclose(found, expected, atol=scale * np.abs(expected).max())


# ---- what is embedded ----------------------------------------------------------------


def test_the_embedding_is_that_of_the_speech_alone(verifier, files):
    names = ["voice", "padded", "room", "other"]
    paths = [files[name] for name in names]
    found = verifier.encode_files(paths, speech_detection=True).numpy()
    for name, embedding in zip(names, found):
        wav = read(files[name])
        speech = speech_of(wav, verifier.detector.segments(wav))
        close(embedding, plain(verifier, speech))
        voice = verifier.enrol(files[name])
        close(voice.embedding, embedding)
        assert voice.seconds == len(speech) / RATE
    # of the silence nothing is left: the same samples
    wavs = [read(files[name]) for name in ("padded", "voice")]
    speech = [speech_of(wav, verifier.detector.segments(wav)) for wav in wavs]
    np.testing.assert_array_equal(*speech)
    close(found[1], found[0])
    assert (
        verifier.enrol(files["padded"]).seconds
        == verifier.enrol(files["voice"]).seconds
    )
    assert abs(verifier.enrol(files["room"]).seconds - len(spoken("m1")) / RATE) < 0.6


@pytest.mark.parametrize("window", [60, 1.5])
def test_speech_is_found_in_a_part_of_a_channel_of_what_is_in_memory(
    verifier, files, window
):
    """The voice is in the middle of one channel; windows are cut there too."""
    voice, other = spoken("m1"), spoken("f2")
    rest = np.zeros((RATE // 4, 2), np.float32)
    both = np.zeros((len(voice), 2), np.float32)
    both[:, 1] = voice
    call = np.concatenate([np.stack([other] * 2, 1), rest, both, rest])
    start = (len(other) + len(rest)) / RATE
    options = {"speech_detection": True, "window_seconds": window}
    alone = np.r_[voice, rest[:, 0]]
    expected = verifier.encode_files([alone], **options)
    part = Segment((call, RATE), start)
    for channel in ("right", "best"):
        close(verifier.encode_files([part], channel=channel, **options), expected)
    with pytest.raises(NoSpeechError, match=r"recording 1 \(array\):.* no speech"):
        verifier.encode_files([part], channel="left", **options)
    found = verifier.compare(part, alone, threshold=0, score="cosine", channel=1)
    assert found.decision is None


def test_a_true_pair_stays_one_with_27_s_of_silence(verifier, files):
    alone = verifier.compare(files["voice"], files["voice"])
    assert alone.cosine == pytest.approx(1.0)
    found = verifier.compare(files["voice"], files["padded"])
    assert found == alone
    assert verifier.compare(files["voice"], files["room"]).cosine > 0.99


def test_without_detection_files_are_embedded_as_they_are(verifier, files):
    paths = [files["voice"], files["noise"]]
    found = verifier.encode_files(paths).numpy()
    for path, embedding in zip(paths, found):
        close(embedding, plain(verifier, read(path)))
    options = {"speech_detection": False}
    assert verifier.enrol(files["padded"], **options).seconds > 27
    assert verifier.compare(*paths, **options).decision is not None
    score, _ = verifier.verify_files(*paths, **options)
    assert torch.isfinite(score).all()


def test_the_folder_s_key_decides_and_an_override_changes_it(model, files):
    off = load(model, overrides={"speech_detection": False})
    assert off.compare(files["voice"], files["noise"]).decision is not None
    assert off.enrol(files["padded"]).seconds > 27
    assert (
        off.compare(files["voice"], files["noise"], speech_detection=True).decision
        is None
    )
    wide = load(model, overrides={"speech_margin_seconds": 0.3})
    narrow = load(model, overrides={"speech_margin_seconds": 0.0})
    assert wide.enrol(files["room"]).seconds == pytest.approx(
        narrow.enrol(files["room"]).seconds + 0.6, abs=1e-3
    )
    with pytest.raises(InputError, match=r"hyperparams\.yaml: speech_threshold is 2"):
        load(model, overrides={"speech_threshold": 2})


# ---- long recordings -----------------------------------------------------------------


def conversation(seconds=40.0):
    """Talk of two with long pauses, in room noise."""
    parts = []
    while sum(map(len, parts)) < seconds * RATE:
        number = len(parts)
        parts += [spoken(VARIANTS[number % 4]), silence(0.2 + (number * 1.7) % 6)]
    wav = np.concatenate(parts)
    return wav + silence(len(wav) / RATE, 1e-3)[: len(wav)]


@pytest.mark.parametrize("window", [3.0, 1000.0])
def test_windows_are_cut_from_the_speech(verifier, tmp_path, window):
    wav = conversation()
    path = tmp_path / "long.wav"
    soundfile.write(path, wav, RATE, subtype="FLOAT")
    speech = speech_of(wav, verifier.detector.segments(wav))
    assert 0.3 < len(speech) / len(wav) < 0.9
    chunking = ChunkingConfig(window_seconds=window, hop_seconds=window)
    parts = [speech[a:b] for a, b in windows_of(len(speech), chunking, RATE)]
    expected = np.mean([plain(verifier, part) for part in parts], axis=0)
    options = {"window_seconds": window, "speech_detection": True}
    close(verifier.encode_files([path], **options)[0].numpy(), expected, 1e-4)
    soundfile.write(tmp_path / "long.flac", np.stack([wav, wav], 1), RATE)
    found = verifier.encode_files([tmp_path / "long.flac"], **options)[0].numpy()
    close(found, expected, 1e-2)  # 16 bits


def test_a_long_recording_at_another_rate_and_one_without_speech(verifier, tmp_path):
    wav = conversation(70.0)
    soundfile.write(tmp_path / "16.wav", wav, RATE, subtype="FLOAT")
    soundfile.write(
        tmp_path / "48.wav", resample_poly(wav, 3, 1), 3 * RATE, subtype="FLOAT"
    )
    noise = np.tile(sounds(3.0, 1)["rain0"], 30)
    soundfile.write(tmp_path / "noise.wav", noise, RATE, subtype="FLOAT")
    names = ["16.wav", "48.wav", "noise.wav"]
    found, failures = verifier.encode_files(
        [tmp_path / name for name in names],
        on_error="collect",
        speech_detection=True,
        window_seconds=10.0,
    )
    assert [(f.row, f.reason) for f in failures] == [(2, "no speech found")]
    cosine = torch.cosine_similarity(found[0], found[1], dim=0)
    assert cosine > 0.99
    one, other = (verifier.enrol(tmp_path / name).seconds for name in names[:2])
    assert other == pytest.approx(one, rel=0.05)


MEMORY = """
import resource, sys
from speechbrain_ext.inference import SpeakerVerifier
verifier = SpeakerVerifier.from_hparams(sys.argv[1], run_opts={"device": "cpu"})
verifier.detector
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = verifier.enrol(sys.argv[2]).seconds
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
def test_a_long_stereo_file_at_48_khz_is_read_in_bounded_memory(model, tmp_path):
    """15 minutes, which would fill 0.5 GiB; an hour takes no more than they."""
    talk = np.repeat(conversation(20.0), 3)  # 48 kHz, roughly
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 48000, 2) as file:
        for block in range(45):
            wav = talk if block % 20 == 0 else np.zeros_like(talk)
            file.write(np.stack([wav, wav], axis=1))
    command = [sys.executable, "-c", MEMORY, str(model), str(tmp_path / "long.wav")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, gib = map(float, done.stdout.split())
    assert 20 < seconds < 100
    assert gib < 0.35


# ---- no speech -----------------------------------------------------------------------


def test_no_speech_is_an_answer_of_its_own(verifier, files, caplog):
    for sides, lacking in (
        (("voice", "noise"), "noise"),
        (("music", "voice"), "music"),
        (("silent", "noise"), "silent"),
        (("voice", "blip"), "blip"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = verifier.compare(*(files[side] for side in sides))
        assert found.decision is found.cosine is found.as_norm is found.llr is None
        assert found.probability is None
        assert f"{files[lacking]}: no speech found: no decision" in caplog.text
        seconds = found.enrol_seconds, found.test_seconds
        assert [s > 0 for s in seconds] == [side == "voice" for side in sides]
        for kind in verifier.kinds:
            value, same = verifier.verify_files(
                *(files[side] for side in sides), score=kind, threshold=-1e9
            )
            assert value.isnan().tolist() == [True]
            assert same.tolist() == [False]
            assert value.dtype == torch.float32


def test_too_little_speech_says_how_much(model, files):
    strict = load(model, overrides={"min_seconds": 8.0})
    path = files["padded"]  # 27 s, of which some 4 are speech
    with pytest.raises(
        NoSpeechError, match=r"too little speech found: .* expected 8 s"
    ):
        strict.enrol(path)
    assert strict.compare(path, path).decision is None


def test_recordings_without_speech_are_left_out_of_several(verifier, files, caplog):
    some = [files[name] for name in ("noise", "voice", "silent")]
    with caplog.at_level(logging.WARNING):
        found = verifier.enrol(some)
    alone = verifier.enrol(files["voice"])
    assert found.seconds == alone.seconds
    np.testing.assert_array_equal(found.embedding, alone.embedding)
    assert f"{some[0]}: no speech found: left out of 3 recordings" in caplog.text
    with pytest.raises(NoSpeechError, match=f"{some[0]}: no speech found"):
        verifier.enrol([some[0], some[2]])
    with pytest.raises(InputError, match=r"absent\.wav"):
        verifier.enrol([some[0], "absent.wav"])


def test_files_without_speech_are_failures(verifier, files):
    paths = [files[name] for name in ("voice", "silent", "noise", "other", "blip")]
    found, failures = verifier.encode_files(
        paths, on_error="collect", speech_detection=True
    )
    assert [(f.row, f.path, f.reason) for f in failures] == [
        (row, paths[row], "no speech found") for row in (1, 2, 4)
    ]
    assert found.isnan().all(1).tolist() == [False, True, True, False, True]
    with pytest.raises(NoSpeechError, match="no speech found"):
        verifier.encode_files(paths, speech_detection=True)


def test_none_of_200_sounds_is_a_match_with_another_or_a_voice(
    verifier, tmp_path, files
):
    """Whatever the threshold: each of them alone is no voice."""
    paths = []
    for name, wav in sounds().items():
        paths.append(str(tmp_path / f"{name}.wav"))
        soundfile.write(paths[-1], wav, RATE, subtype="FLOAT")
    assert len(paths) == 200
    _, failures = verifier.encode_files(
        paths, on_error="collect", speech_detection=True
    )
    assert [failure.row for failure in failures] == [*range(200)]
    assert {failure.reason for failure in failures} == {"no speech found"}
    for first, second in zip(paths[::20], [files["voice"], *paths[7::20]]):
        found = verifier.compare(first, second, "cosine", threshold=-1)
        assert found.decision is None


# ---- on the command line -------------------------------------------------------------


def run(capsys, *words):
    """(exit code, stdout, stderr) of a command."""
    capsys.readouterr()
    code = 0
    try:
        main([*words, "--device", "cpu"])
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


def test_verify_exits_with_3_and_says_why(model, files, capsys):
    words = ("verify", files["voice"], files["noise"], "--source", str(model))
    code, out, err = run(capsys, *words)
    found = json.loads(out)
    assert code == 3
    assert found["same_speaker"] is None
    assert found["score"] is found["probability"] is None
    assert set(found["scores"].values()) == {None}
    assert found["test"]["seconds"] == 0
    assert found["enrol"]["seconds"] > 1
    warning = f"{files['noise']}: no speech found: no decision"
    assert found["warnings"] == [warning]
    assert warning in err
    code, out, _ = run(capsys, *words, "--no_speech_detection")
    assert code == 0
    assert json.loads(out)["same_speaker"] in (True, False)
    words = ("verify", files["voice"], files["padded"], "--source", str(model))
    code, out, _ = run(capsys, *words, "--score", "cosine")
    assert (code, json.loads(out)["same_speaker"]) == (0, True)


def test_help_names_the_exit_code(capsys):
    code, out, _ = run(capsys, "verify", "--help")
    assert code == 0
    assert "3 where no speech was found" in " ".join(out.split())


def test_embed_lists_what_has_no_speech(model, files, tmp_path, capsys):
    words = ("embed", *(files[n] for n in ("padded", "noise", "other")))
    words += ("--source", str(model), "--out", str(tmp_path / "e.npz"))
    code, out, _ = run(capsys, *words)
    counts = json.loads(out)
    assert (code, counts["embedded"], counts["failed"]) == (0, 2, 1)
    listed = (tmp_path / "e.npz.failures.txt").read_text()
    assert listed == f"{files['noise']}\tno speech found\n"
    cut = load_embeddings(tmp_path / "e.npz")
    # without detection it is another run, and the file is made anew
    code, out, _ = run(capsys, *words, "--no_speech_detection")
    assert (code, json.loads(out)["embedded"]) == (0, 3)
    assert not (tmp_path / "e.npz.failures.txt").exists()
    whole = load_embeddings(tmp_path / "e.npz")
    assert (cut.ids.tolist(), len(whole.ids)) == (["padded", "other"], 3)
    assert np.abs(whole.vectors[0] - cut.vectors[0]).max() > 1e-3


def test_a_program_gets_the_report_of_python(verifier, files):
    report = comparison_report(verifier, [files["noise"]], [files["voice"]])
    assert report["same_speaker"] is None
    json.dumps(report, allow_nan=False)
    off = comparison_report(
        verifier, [files["noise"]], [files["voice"]], speech_detection=False
    )
    assert off["same_speaker"] in (True, False)


def test_integers_in_a_float_file_are_one_warning(verifier, files, tmp_path, caplog):
    """With detection, in windows, and without; other scales are taken in silence."""
    wav, _ = soundfile.read(files["voice"])
    paths = []
    for name, scale in (("a", 32768), ("b", 32767), ("c", 2.5)):
        paths.append(tmp_path / f"{name}.wav")
        soundfile.write(paths[-1], wav * scale, RATE, subtype="FLOAT")
    peak = 32768 * np.abs(wav).max()
    for options in ({}, {"speech_detection": True}, {"window_seconds": 1.5}):
        caplog.clear()
        verifier.encode_files(paths, **options)
        (record,) = caplog.records
        assert record.getMessage() == (
            "2 of 3 recordings have samples far outside ±1, as of integers stored as "
            "floats; they are taken as they are, expected samples divided by 32768; "
            f"first {paths[0]}, peak {peak:.5g}"
        )
