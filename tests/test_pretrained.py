"""Pretrained folders: what goes in comes out, whole, strictly, without any network."""

import os
import resource
import shutil
import signal
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pretrained import (
    DAMAGES,
    SPEAKERS,
    make_classifier,
    make_model,
    save_tiny,
    training,
)
from tiny_training import start

from speechbrain_ext.adaptation import inject_lora
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.pretrained import (
    load_hyperparams,
    load_pretrained,
    load_trainable,
    save_pretrained,
)
from speechbrain_ext.training.classifiers import load_classifier
from speechbrain_ext.utils import files
from speechbrain_ext.utils.errors import InputError, command_line

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = {
    *("hyperparams.yaml", "encoder_config.json", "training.json"),
    "custom_interface.py",
    *("speaker_encoder.safetensors", "classifier.safetensors"),
}


@pytest.fixture
def folder(tmp_path):
    """A saved model of 4 speakers at 3 speeds."""
    return save_tiny(tmp_path / "final")


def wavs():
    return torch.randn(3, 8000, generator=torch.Generator().manual_seed(5))


# ---- round trips ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (AdapterMFA, {"adapter_size": 8}),
        (MFA, {}),
        (MFA, {"pooling_size": 4}),
        (WeightedSumECAPA, {"channels": [16, 16, 16, 16, 48]}),
    ],
)
def test_outputs_after_a_round_trip_are_equal(tmp_path, head, options):
    model = make_model(head, **options)
    with torch.no_grad():  # running statistics of their own
        model.train()(wavs())
    model.eval()
    folder = save_pretrained(tmp_path / "final", model)
    loaded = load_pretrained(folder)
    assert not loaded.training
    assert torch.equal(loaded(wavs()), model(wavs()))
    lens = torch.tensor([1.0, 0.8, 0.9])
    assert torch.equal(loaded(wavs(), lens), model(wavs(), lens))
    assert loaded.head.arguments == model.head.arguments


def test_all_that_is_needed_is_in_the_folder(folder, tmp_path):
    assert {path.name for path in folder.iterdir()} == FILES
    moved = tmp_path / "else where, #1: [x]"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    assert torch.equal(load_pretrained(moved)(wavs()), make_model().eval()(wavs()))
    text = "".join((moved / name).read_text() for name in FILES if "saf" not in name)
    assert str(tmp_path) not in text


def test_a_relative_folder_loads_too(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    load_pretrained("final")
    monkeypatch.chdir(folder)
    load_pretrained(".")


def test_loading_reaches_no_network_and_draws_no_lasting_random_numbers(
    folder, monkeypatch
):
    def refused(*args, **kwargs):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    load_pretrained(folder)
    load_trainable(folder)
    load_classifier(folder, make_classifier(), SPEAKERS, 3)


def test_speechbrain_reads_the_folder(folder):
    from hyperpyyaml import load_hyperpyyaml

    with open(folder / "hyperparams.yaml") as file:
        found = load_hyperpyyaml(file, {"pretrained_path": str(folder)})
    assert found["sample_rate"] == 16000
    assert isinstance(found["speaker_encoder"], SpeakerEncoder)


def test_the_next_stage_trains_every_parameter(folder):
    model = load_trainable(folder, gradient_checkpointing=True)
    assert model.training
    assert model.encoder.training
    assert model.encoder.gradient_checkpointing
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(wavs()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_next_stage_may_leave_the_encoder_as_it_is(folder):
    model = load_trainable(folder, frozen_encoder=True)
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert not any(module.training for module in model.encoder.modules())
    assert all(p.requires_grad for p in model.head.parameters())
    assert all(module.training for module in model.head.modules())


# ---- whole or absent -----------------------------------------------------------------


def test_an_older_folder_is_replaced_with_all_its_files(folder):
    (folder / "notes.txt").write_text("of before")
    model = make_model(seed=9)
    save_pretrained(folder, model, None, training())
    names = {path.name for path in folder.iterdir()}
    assert names == FILES - {"classifier.safetensors"}
    assert torch.equal(load_pretrained(folder)(wavs()), model.eval()(wavs()))
    assert list(folder.parent.iterdir()) == [folder]


def test_something_else_is_not_overwritten(tmp_path):
    for name in ("file", "folder"):
        path = tmp_path / name
        path.mkdir() if name == "folder" else path.write_text("mine")
        (path / "mine.txt").write_text("x") if name == "folder" else None
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match="exists and is not a pretrained folder"):
            save_pretrained(path, make_model())
        assert sorted(tmp_path.rglob("*")) == before


def test_lora_must_be_merged_first(tmp_path):
    model = make_model()
    inject_lora(model.encoder, r=2)
    with pytest.raises(InputError, match="call merge_lora first"):
        save_pretrained(tmp_path / "final", model)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_older_folder(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError):
        save_pretrained(folder, make_model(seed=9), None, {"x": object()})
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


@command_line
def _save_on_a_full_disk(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    save_pretrained(folder, make_model(seed=9), make_classifier(), training())


def test_a_full_disk_leaves_the_older_folder(folder, tmp_path):
    process = start(_save_on_a_full_disk, folder, stderr=tmp_path / "err")
    process.join(300)
    assert process.exitcode == 1
    (line,) = (tmp_path / "err").read_text().splitlines()
    assert line.startswith("error: ")
    assert "speaker_encoder.safetensors: not written" in line
    assert {path.name for path in tmp_path.iterdir()} == {"final", "err"}
    assert torch.equal(load_pretrained(folder)(wavs()), make_model().eval()(wavs()))


def _save_and_be_killed(folder, step):
    calls = []

    def counted(function):
        def call(*args):
            calls.append(None)
            if len(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    os.replace = counted(os.replace)
    files.sync_folder = counted(files.sync_folder)
    save_pretrained(folder, make_model(seed=9), make_classifier(), training())


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_killed_at_any_moment_a_whole_model_is_left(folder, tmp_path, step):
    # configuration and training are renamed into place (1, 2); then sync, old, new
    process = start(_save_and_be_killed, folder, step)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    models = [path for path in tmp_path.iterdir() if {*os.listdir(path)} == FILES]
    assert models
    assert folder in models or step == 5
    save_pretrained(folder, make_model(), make_classifier(), training())
    assert list(tmp_path.iterdir()) == [folder]


# ---- damaged or hostile --------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["speaker_encoder.safetensors", "encoder_config.json", "hyperparams.yaml"]
)
def test_a_damaged_model_is_one_line(folder, name, damage, monkeypatch, tmp_path):
    damage(folder / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "malice").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("head.bottleneck.bias"), "1 missing: head.bottleneck.bias"),
        (lambda w: w.update(extra=torch.ones(1)), "1 unexpected: extra"),
        (
            lambda w: w.update({"head.bottleneck.bias": torch.ones(9)}),
            r"wrong shape: head\.bottleneck\.bias \(9,\) instead of \(8,\)",
        ),
        (
            lambda w: w.update({"head.bottleneck.bias": torch.full((8,), torch.nan)}),
            "NaN or infinite weights in head.bottleneck.bias",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, expected):
    path = folder / "speaker_encoder.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(InputError, match=expected):
        load_pretrained(folder)


def test_a_configuration_of_another_encoder_does_not_fit(folder):
    config, yaml = folder / "encoder_config.json", folder / "hyperparams.yaml"
    before = config.read_text(), yaml.read_text()
    for name, value, other, expected in (
        ("hidden_size", 16, 32, "wrong shape"),
        ("num_attention_heads", 2, 3, "no multiple"),
    ):
        config.write_text(before[0].replace(f'"{name}": {value}', f'"{name}": {other}'))
        with pytest.raises(InputError, match=f"{name} is {other}, expected {value} as"):
            load_pretrained(folder)
        yaml.write_text(before[1].replace(f" {name}: {value}", f" {name}: {other}"))
        with pytest.raises(InputError, match=expected):
            load_pretrained(folder)
        yaml.write_text(before[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\n", "pretrained_path"),
        ("pretrained_path: .\nspeaker_encoder: 3\n", "no module 'speaker_encoder'"),
        ("pretrained_path: .\nx: !new:no.such.Class\n", "not installed"),
        ("pretrained_path: .\nx: [\n", "line 3"),
    ],
)
def test_other_hyperparameters_are_refused(folder, text, expected):
    (folder / "hyperparams.yaml").write_text(text)
    with pytest.raises(InputError, match=expected):
        load_pretrained(folder)


def test_an_override_of_no_key_is_refused(folder):
    with pytest.raises(InputError, match=r"hyperparams\.yaml: .*top_m"):
        load_hyperparams(folder, {"top_m": 3})


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match="expected a folder written by train"):
        load_pretrained(tmp_path)
    with pytest.raises(InputError, match="absent: no such folder"):
        load_pretrained(tmp_path / "absent")
