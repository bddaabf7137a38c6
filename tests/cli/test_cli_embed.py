"""python -m speechbrain_ext embed: folders with bad files, stops, the way to score."""

import json
import os

import numpy as np
import pytest
import soundfile
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.__main__ import main
from speechbrain_ext.inference import folders
from speechbrain_ext.inference.folders import embed_inputs
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.scoring.score_files import read_scores
from speechbrain_ext.utils.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_folder(tmp_path_factory.mktemp("models") / "model"))


@pytest.fixture(scope="module")
def verifier(model):
    return load(model)


@pytest.fixture
def folder(tmp_path):
    """Six good recordings of two voices."""
    for number in range(6):
        path = tmp_path / f"wav/id{number % 2}/s/{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_voice(path, number % 2, 0.5 + 0.1 * number, number)
    return tmp_path / "wav"


def add_bad_files(folder):
    """Each with what its reason must say."""
    (folder / "id0/text.wav").write_text("no sound")
    soundfile.write(folder / "id0/silent.flac", np.zeros(16000), 16000)
    soundfile.write(folder / "id1/short.wav", np.ones(80), 16000)
    soundfile.write(folder / "id1/my voice.wav", np.ones(16000), 16000)
    (folder / "id1/talk.m4a").write_bytes(b"\0\0\0 ftypM4A ")
    (folder / "id1/empty.mp3").touch()
    return {
        "id0/text.wav": "cannot be opened as sound",
        "id0/silent.flac": "silent",
        "id1/short.wav": "expected at least 0.25 s",
        "id1/my voice.wav": "white space in its name",
        "id1/talk.m4a": "cannot be opened as sound",
        "id1/empty.mp3": "",
    }


def embed(capsys, folder, model, *options):
    capsys.readouterr()
    main(["embed", str(folder), "--source", model, "--device", "cpu", *options])
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_a_folder_with_bad_files(folder, model, verifier, capsys, monkeypatch):
    reasons = add_bad_files(folder)
    monkeypatch.chdir(folder.parent)
    found, err = embed(capsys, "wav", model, "--out", "e.npz")
    assert (found["embedded"], found["failed"]) == (6, len(reasons))
    assert (found["size"], found["out"]) == (8, "e.npz")
    assert f"6 recordings embedded, {len(reasons)} failed, listed in" in err
    lines = (folder.parent / found["failures"]).read_text().splitlines()
    seen = dict(line.split("\t") for line in lines)
    assert set(seen) == {f"wav/{name}" for name in reasons}
    for name, reason in reasons.items():
        assert reason in seen[f"wav/{name}"]
    ids, vectors = load_embeddings("e.npz")
    assert ids.tolist() == [f"id{n % 2}/s/{n}" for n in (0, 2, 4, 1, 3, 5)]
    expected = verifier.encode_files([f"wav/{name}.wav" for name in ids]).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert sorted(os.listdir()) == ["e.npz", "e.npz.failures.txt", "wav"]


def test_the_list_of_an_earlier_run_goes(folder, model, capsys, tmp_path):
    out = tmp_path / "e.safetensors"
    (tmp_path / "e.safetensors.failures.txt").write_text("old")
    found, _ = embed(capsys, folder, model, "--out", str(out))
    assert found["failures"] is None
    assert sorted(os.listdir(tmp_path)) == ["e.safetensors", "wav"]
    assert len(load_embeddings(out).ids) == 6


def test_a_recording_replaced_by_another_of_its_size(
    folder, model, verifier, capsys, tmp_path
):
    out = tmp_path / "e.npz"
    embed(capsys, folder, model, "--out", str(out))
    first, path = load_embeddings(out), folder / "id1/s/3.wav"
    size = path.stat().st_size
    wav, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, wav[::-1], rate)
    assert path.stat().st_size == size
    os.utime(path, ns=(0, 1))
    embed(capsys, folder, model, "--out", str(out))
    again = load_embeddings(out)
    changed = (again.vectors != first.vectors).any(axis=1)
    assert again.ids[changed].tolist() == ["id1/s/3"]
    expected = verifier.encode_files([str(path)]).numpy()
    np.testing.assert_allclose(again.vectors[changed], expected, atol=1e-6)


def test_straight_into_score(folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embed(capsys, "wav", model, "--out", "e.npz")
    (tmp_path / "t.txt").write_text(
        "1 id0/s/0.wav id0/s/2.wav\n0 id0/s/0.wav id1/s/1.wav\n"
    )
    main(["score", "--embeddings", "e.npz", "--trials", "t.txt", "--output", "out"])
    scores = read_scores("out/scores_t_cosine.txt")[1]
    verifier = load(model)
    expected = [
        verifier.compare("wav/id0/s/0.wav", f"wav/{other}.wav").cosine
        for other in ("id0/s/2", "id1/s/1")
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def ends(capsys, message, *words):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--device", "cpu"])
    assert caught.value.code == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_strict_is_an_error_after_the_work(folder, model, tmp_path, capsys):
    (folder / "bad.wav").write_text("no sound")
    out = str(tmp_path / "e.npz")
    words = ("embed", str(folder), "--source", model, "--out", out, "--strict")
    ends(capsys, "--strict: 1 failed, listed in", *words)
    assert len(load_embeddings(out).ids) == 6


def test_nothing_embedded_is_an_error_and_leaves_the_list(model, tmp_path, capsys):
    (tmp_path / "bad.wav").write_text("no sound")
    path, out = tmp_path / "bad.wav", tmp_path / "e.npz"
    words = ("embed", str(path), "--source", model, "--out", str(out))
    ends(capsys, f"{path}: cannot be opened as sound", *words)
    assert sorted(os.listdir(tmp_path)) == ["bad.wav", "e.npz.failures.txt"]


def test_only_names_that_no_list_can_hold(model, tmp_path, capsys):
    write_voice(tmp_path / "my voice.wav")
    out = str(tmp_path / "e.npz")
    words = ("embed", str(tmp_path), "--source", model, "--out", out)
    ends(capsys, "my voice.wav: white space in its name", *words)


def test_another_suffix(folder, verifier, tmp_path):
    with pytest.raises(InputError, match=r"e.txt: suffix '.txt'"):
        embed_inputs(verifier, [folder], tmp_path / "e.txt")


# ---- stopped and continued -----------------------------------------------------------


class Stopped(Exception):
    """What ends a run in the middle."""


@pytest.fixture
def counted(verifier, monkeypatch):
    """Blocks of two; what was embedded so far, and after how many blocks to stop."""
    monkeypatch.setattr(folders, "BLOCK", 2)
    state = {"paths": [], "stop_after": None}
    whole = verifier.encode_files

    def encode_files(paths, **options):
        if state["stop_after"] is not None and len(state["paths"]) >= (
            2 * state["stop_after"]
        ):
            raise Stopped
        state["paths"] += paths
        return whole(paths, **options)

    monkeypatch.setattr(verifier, "encode_files", encode_files)
    return state


def test_a_stopped_run_goes_on_from_its_parts(folder, verifier, counted, tmp_path):
    out = tmp_path / "e.npz"
    (folder / "bad.wav").write_text("no sound")  # the first of all
    counted["stop_after"] = 2
    with pytest.raises(Stopped):
        embed_inputs(verifier, [folder], out)
    assert not out.exists()
    first = list(counted["paths"])
    counted.update(paths=[], stop_after=None)
    found = embed_inputs(verifier, [folder], out)
    assert found["embedded"] == 6
    assert found["failed"] == 1
    again = set(first) & set(counted["paths"])
    assert again == {str(folder / "bad.wav")}  # a bad one is tried again
    assert len(first) + len(counted["paths"]) == 7 + 1
    assert not list(tmp_path.glob("*parts*"))
    ids, vectors = load_embeddings(out)
    expected = verifier.encode_files([str(folder / f"{name}.wav") for name in ids])
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-6)


def test_a_finished_run_is_taken_as_it_is(folder, verifier, counted, tmp_path):
    out = tmp_path / "e.npz"
    first = embed_inputs(verifier, [folder], out)
    before = out.read_bytes()
    counted["paths"].clear()
    assert embed_inputs(verifier, [folder], out) == first
    assert counted["paths"] == []
    assert out.read_bytes() == before


def test_a_changed_recording_is_embedded_anew(folder, verifier, counted, tmp_path):
    out = tmp_path / "e.npz"
    embed_inputs(verifier, [folder], out)
    before = load_embeddings(out).vectors
    write_voice(folder / "id0/s/0.wav", 5, 0.9)
    embed_inputs(verifier, [folder], out)
    changed = (load_embeddings(out).vectors != before).any(axis=1)
    assert changed[0]
