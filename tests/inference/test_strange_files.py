"""Folders and names that a disk may hold: links, pipes, names of any bytes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from test_verifier_files import link_to_nothing, pipe
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.__main__ import main
from speechbrain_ext.inference.folders import embed_inputs
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
NO_TEXT = os.fsdecode(b"\xff.wav")  # a name that is not UTF-8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model") / "final")


@pytest.fixture(scope="module")
def verifier(folder):
    return load(folder)


def test_a_name_that_is_no_text(folder, tmp_path, monkeypatch, capfd):
    """It is read, and JSON can tell it."""
    monkeypatch.chdir(tmp_path)
    write_voice("a.wav")
    os.rename("a.wav", NO_TEXT)
    main(["verify", NO_TEXT, NO_TEXT, "--source", str(folder), "--device", "cpu"])
    found = json.loads(capfd.readouterr().out)
    assert found["enrol"]["files"] == [NO_TEXT]
    assert found["scores"]["cosine"] == pytest.approx(1, abs=1e-6)


def test_a_folder_of_them(verifier, tmp_path):
    wavs = tmp_path / "wav"
    wavs.mkdir()
    write_voice(wavs / "good.wav")
    write_voice(wavs / "no_text.wav")
    os.rename(wavs / "no_text.wav", wavs / NO_TEXT)
    link_to_nothing(wavs / "link.wav")
    pipe(wavs / "pipe.wav")
    (wavs / "up").symlink_to(wavs)  # without end, were it followed
    found = embed_inputs(verifier, [wavs], tmp_path / "e.npz")
    assert (found["embedded"], found["failed"]) == (1, 3)
    assert load_embeddings(tmp_path / "e.npz").ids.tolist() == ["good"]
    lines = (tmp_path / "e.npz.failures.txt").read_text().splitlines()
    reasons = dict(line.split("\t") for line in lines)
    assert len(lines) == len(reasons) == 3
    for name, reason in (
        ("link.wav", "No such file"),
        ("pipe.wav", "not a regular file"),
        (r"\udcff.wav", "characters that cannot be printed in its name"),
    ):
        assert reason in reasons[f"{wavs}/{name}"]


def test_an_output_that_is_a_folder(verifier, tmp_path):
    """Said before the work, not after it."""
    write_voice(tmp_path / "a.wav")
    (tmp_path / "e.npz").mkdir()
    with pytest.raises(InputError, match=r"e\.npz: a folder, expected the name of a"):
        embed_inputs(verifier, [tmp_path / "a.wav"], tmp_path / "e.npz")
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "e.npz"]


def test_a_model_in_a_folder_of_any_name(folder, tmp_path):
    for name in ("my model", "modèle ü", "a#b: {c}", "'q\"", "3/4", "!new", "$HOME"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(folder)
        assert load(tmp_path / name).embedding_size == 8
    (tmp_path / "a<b>").symlink_to(folder)
    with pytest.raises(InputError, match="a<b>: '<' in the path of a model"):
        load(tmp_path / "a<b>")


STOPPED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
from speechbrain_ext.__main__ import main
from speechbrain_ext.inference import folders
from speechbrain_ext.inference import verifier as embedder
folders.BLOCK, plain, calls = 2, embedder.SpeakerVerifier._encode, []
def encode(self, *args):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGINT)
    return plain(self, *args)
embedder.SpeakerVerifier._encode = encode
main(sys.argv[1:])
"""


def test_ctrl_c_leaves_what_was_done(folder, verifier, tmp_path):
    """One line, exit code 130, nothing half-written; the same command goes on."""
    wavs = tmp_path / "wav"
    wavs.mkdir()
    for number in range(9):
        write_voice(wavs / f"{number}.wav", number, 0.5 + 0.1 * number)
    out = tmp_path / "e.npz"
    words = ["embed", wavs, "--source", folder, "--out", out, "--device", "cpu"]
    words += ["--batch_seconds", "0.1"]  # a batch for each
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *map(str, words)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "error: interrupted by the user"
    assert "Traceback" not in done.stderr
    assert not out.exists()
    (parts,) = tmp_path.glob("e.npz.parts-*")
    before = sum(len(np.load(part)["rows"]) for part in parts.iterdir())
    assert 4 <= before < 9
    found = embed_inputs(verifier, [wavs], out, 0.1)
    assert (found["embedded"], found["failed"]) == (9, 0)
    ids, vectors = load_embeddings(out)
    expected = verifier.encode_files([wavs / f"{name}.wav" for name in ids])
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npz", "wav"]
