"""from_hparams: strict, without network, from folders whole, partial and hostile."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from speechbrain.utils.fetching import FetchConfig
from tiny_verifier import CPU, load, make_folder, write_voice

from speechbrain_ext import pretrained
from speechbrain_ext.cli import main
from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_network(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket.socket, "connect_ex", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket, "create_connection", refused)


def wavs():
    return torch.randn(2, 8000, generator=torch.Generator().manual_seed(3))


# ---- local folders -------------------------------------------------------------------


def test_a_local_folder_needs_no_network_and_nothing_is_written(
    whole, no_network, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    paths = [write_voice(tmp_path / f"{n}.wav", n) for n in range(2)]
    before = {root: sorted(os.listdir(root)) for root in (whole, tmp_path)}
    verifier = SpeakerVerifier.from_hparams(source=str(whole), run_opts=CPU)
    verifier.compare(*paths)
    verifier.encode_files(paths)
    assert {root: sorted(os.listdir(root)) for root in (whole, tmp_path)} == before
    assert not any((whole / name).is_symlink() for name in os.listdir(whole))


def test_a_relative_folder_wins_over_the_hub(whole, no_network, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    found = load("owner/name", savedir="elsewhere").encode_batch(wavs())
    assert torch.equal(found, load(whole).encode_batch(wavs()))
    assert not (tmp_path / "elsewhere").exists()


def test_random_numbers_are_neither_drawn_nor_needed(whole):
    state = torch.random.get_rng_state()
    first = load(whole).encode_batch(wavs())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(load(whole).encode_batch(wavs()), first)


def test_another_folder_of_train_py_s_older_days_loads(folder):
    """One without the keys and files of inference: the defaults are in force."""
    path = folder / "hyperparams.yaml"
    kept, skip = [], False
    for line in path.read_text().splitlines():
        skip = line.startswith("modules:") or (skip and line.startswith(" "))
        if not skip and not line.startswith(tuple(pretrained.INFERENCE)):
            kept.append(line)
    path.write_text("\n".join(kept))
    for name in ("calibration.json", "cohort.npz", "thresholds.json"):
        (folder / name).unlink()
    verifier = load(folder)
    assert verifier.kinds == ["cosine"]
    assert tuple(verifier.chunking) == (0.25, 60.0, 60.0)


def test_weights_of_a_torch_file(folder):
    expected = load(folder).encode_batch(wavs())
    weights = folder / "speaker_encoder.safetensors"
    torch.save(load_file(weights), folder / "speaker_encoder.ckpt")
    weights.unlink()
    assert torch.equal(load(folder).encode_batch(wavs()), expected)


# ---- the hub -------------------------------------------------------------------------


def hub(monkeypatch, folder=None):
    """A hub that gives a folder, or nothing → list of what it was asked for."""
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        if folder is None:
            raise LocalEntryNotFoundError("offline")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_is_fetched_with_the_options_given(whole, tmp_path, monkeypatch):
    asked = hub(monkeypatch, whole)
    config = FetchConfig(
        revision="v2",
        token=True,
        huggingface_cache_dir="cache",
        allow_network=False,
    )
    saved = tmp_path / "saved"
    verifier = load("someone/model", savedir=saved, fetch_config=config)
    assert verifier.source == "someone/model"
    ((name, options),) = asked
    patterns = options.pop("allow_patterns")
    assert name == "someone/model"
    assert options == {
        "local_dir": saved,
        "revision": "v2",
        "token": True,
        "cache_dir": "cache",
        "local_files_only": True,
    }
    files = set(os.listdir(whole)) - {"custom_interface.py"}  # of foreign_class
    assert files <= set(patterns)
    assert "classifier.safetensors" not in patterns


def test_a_hub_id_by_its_name_alone(whole, monkeypatch):
    asked = hub(monkeypatch, whole)
    found = load("someone/model").encode_batch(wavs())
    assert torch.equal(found, load(whole).encode_batch(wavs()))
    assert asked[0][1].get("local_dir") is None


def test_a_hub_that_gives_nothing_is_one_line(monkeypatch):
    hub(monkeypatch)
    with pytest.raises(InputError, match=r"someone/model: no such folder, and the hub"):
        load("someone/model")


PATHS = ["absent", "a/b/c", "/absent/folder", "a b/c", "", "./model", "../model", "~/m"]
PATHS += [
    r"C:\models\mine",
    "C:/mine",
    r"a\b",
    ".a/b",
    "a/.b",
    "here/final",
    "a/b.ckpt",
]


@pytest.mark.parametrize("source", [*PATHS, Path("owner/name")])
def test_what_is_neither_folder_nor_hub_id(source, no_network, tmp_path, monkeypatch):
    folder = tmp_path / "empty"
    (folder / "here").mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(
        InputError, match=r"no such folder, and not a hub id|no hyperpar"
    ):
        load(source)


@pytest.mark.parametrize("command", ["verify a.wav b.wav", "embed a.wav --out a.npz"])
def test_on_the_command_line(command, no_network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--source", "./model"])
    assert stopped.value.code == 1
    line = "error: ./model: no such folder, and not a hub id, expected a model's folder"
    assert capsys.readouterr().err == f"{line} or owner/name\n"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("revision", [None, "v1.0", "0" * 40])
def test_without_network_the_hub_is_asked_once(revision, tmp_path, monkeypatch):
    """A path that looks like a hub id, from another folder than its own."""
    asked = []

    def refused(*args, **kwargs):
        asked.append(args)
        raise socket.gaierror(-2, "no network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.chdir(tmp_path)
    config = FetchConfig(revision=revision, huggingface_cache_dir=str(tmp_path))
    with pytest.raises(InputError) as caught:
        load("quickstart/model", fetch_config=config)
    message = str(caught.value)
    assert "quickstart/model: no such folder, and the hub gave nothing" in message
    assert "no network" in message
    assert "\n" not in message
    assert len(asked) == 1


def test_unknown_settings_are_not_written(tmp_path):
    with pytest.raises(
        InputError, match="inference: windows, expected some of min_sec"
    ):
        make_folder(tmp_path / "final", inference={"windows": 3})
    assert list(tmp_path.iterdir()) == []


def test_the_package_imports_nothing_it_does_not_need():
    """Neither a web page nor a graph is loaded with the verifier's module."""
    code = (
        "import sys, speechbrain_ext.inference as i; light = set(sys.modules);"
        "i.SpeakerVerifier; heavy = {'gradio', 'onnx', 'onnxruntime'};"
        "sys.exit(bool(heavy & set(sys.modules)) or 'torch' in light)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
