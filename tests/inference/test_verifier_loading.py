"""from_hparams: strict, without network, from folders whole, partial and hostile."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from speechbrain.utils.fetching import FetchConfig
from tiny_verifier import CPU, add_backend, load, make_folder, write_voice

from speechbrain_ext import pretrained
from speechbrain_ext.errors import InputError
from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.scoring.cohort import Cohort, save_cohort

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with everything; only to be read."""
    root = tmp_path_factory.mktemp("whole")
    folder = make_folder(root / "final")
    add_backend(folder, root / "wav")
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(whole, tmp_path / "final")


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
    assert tuple(verifier.rules) == (0.25, 60.0, 60.0)


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
    files = set(os.listdir(whole))
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


@pytest.mark.parametrize("source", ["absent", "a/b/c", "/absent/folder", "a b/c", ""])
def test_what_is_neither_folder_nor_hub_id(source, no_network, tmp_path, monkeypatch):
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(
        InputError, match=r"no such folder, and not a hub id|no hyperpar"
    ):
        load(source)


# ---- damaged, partial, hostile -------------------------------------------------------


class Malice:
    def __reduce__(self):
        return os.system, ("touch malice",)


def garbage(path):
    path.write_bytes(b"\x80\x00garbage")


def empty(path):
    path.write_bytes(b"")


def hostile(path):
    path.write_bytes(pickle.dumps(Malice(), protocol=2))


def hostile_array(path):
    with open(path, "wb") as file:
        np.savez(file, speakers=np.array([Malice()], dtype=object))


@pytest.mark.parametrize("damage", [garbage, empty, hostile, hostile_array])
@pytest.mark.parametrize(
    "name",
    [
        "speaker_encoder.safetensors",
        "speaker_encoder.ckpt",
        "encoder_config.json",
        "hyperparams.yaml",
        "calibration.json",
        "cohort.npz",
        "thresholds.json",
    ],
)
def test_a_damaged_file_is_one_line(folder, name, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.endswith(".ckpt"):
        (folder / "speaker_encoder.safetensors").unlink()
    damage(folder / name)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "malice").exists()


@pytest.mark.parametrize(
    "name", ["speaker_encoder.safetensors", "encoder_config.json", "hyperparams.yaml"]
)
def test_a_needed_file_that_is_missing_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        load(folder)


@pytest.mark.parametrize(
    ("absent", "kinds"),
    [
        (["calibration.json"], ["cosine", "as_norm"]),
        (["calibration.json", "cohort.npz"], ["cosine"]),
        (["thresholds.json"], ["cosine", "as_norm", "llr"]),
        (["training.json"], ["cosine", "as_norm", "llr"]),
    ],
)
def test_a_folder_without_its_optional_files_works(folder, absent, kinds, tmp_path):
    for name in absent:
        (folder / name).unlink()
    verifier = load(folder)
    assert verifier.kinds == kinds
    paths = [write_voice(tmp_path / f"{n}.wav", n) for n in range(2)]
    found = verifier.compare(*paths)
    assert (found.llr is None) == ("llr" not in kinds)
    assert found.score == kinds[-1]


def test_a_calibrator_without_its_cohort_is_refused(folder):
    (folder / "cohort.npz").unlink()
    with pytest.raises(
        InputError,
        match=r"calibration\.json: calibrates as_norm_4, .* expected cosine, .* "
        r"with cohort\.npz absent",
    ):
        load(folder)


def test_a_cohort_of_another_model_is_refused(folder):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((8, 9)).astype(np.float32)
    names = np.array([f"s{number}" for number in range(8)])
    save_cohort(folder / "cohort.npz", Cohort(names, vectors, vectors.mean(0)))
    with pytest.raises(InputError, match=r"cohort\.npz: the model: embeddings of 8"):
        load(folder)
    few = Cohort(names[:3], vectors[:3, :8], vectors[0, :8])
    save_cohort(folder / "cohort.npz", few)
    with pytest.raises(
        InputError, match=r"cohort\.npz: cohort of 3 speakers, expected"
    ):
        load(folder)


def test_weights_that_do_not_fit_are_an_error_with_the_keys(folder):
    path = folder / "encoder_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "num_hidden_layers": 3}))
    with pytest.raises(
        InputError, match=r"weights do not fit: \d+ missing: .*layers\.1"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"min_seconds": 0.01}, r"min_seconds is 0\.01, expected at least 0\.035"),
        ({"min_seconds": None}, "min_seconds is None, expected a number of seconds"),
        ({"window_seconds": 0.1}, r"window_seconds is 0\.1, expected at least min_sec"),
        ({"window_seconds": True}, "window_seconds is True, expected a number"),
        ({"hop_seconds": 61}, "hop_seconds is 61, expected above 0"),
        ({"sample_rate": 8000}, "sample_rate is 8000, expected 16000"),
        ({"nothing": 1}, "nothing"),
    ],
)
def test_rules_out_of_range_name_the_file(folder, overrides, expected):
    with pytest.raises(InputError, match=rf"hyperparams\.yaml: .*{expected}"):
        load(folder, overrides=overrides)


def test_a_module_of_another_kind_is_refused(folder):
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    start = text.index("speaker_encoder: !new")
    model = "speaker_encoder: !new:torch.nn.Identity\n"
    path.write_text(text[:start] + model)
    (folder / "speaker_encoder.safetensors").unlink()
    torch.save({}, folder / "speaker_encoder.ckpt")
    with pytest.raises(InputError, match="is a Identity, expected a SpeakerEncoder"):
        load(folder)


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
