"""Published checkpoints: what may be around the tensors, what is written down."""

import hashlib
import json
import socket

import pytest
import torch
from released_checkpoints import (
    assert_same,
    checkpoint,
    convert,
    embed,
    published_names,
    random_model,
    save,
    utterances,
    with_lora,
    write_config,
)
from tiny_encoder import noise

from speechbrain_ext.export.published.convert import build_released
from speechbrain_ext.inference import SpeakerVerifier, convert_released
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def flat_views(names):
    """Every floating-point tensor a part of one vector; the counters as they are."""
    floating = {k: w for k, w in names.items() if w.is_floating_point()}
    if not floating:
        return names
    vector = torch.cat([tensor.flatten() for tensor in floating.values()])
    parts = vector.split([tensor.numel() for tensor in floating.values()])
    views = {k: part.view_as(names[k]) for k, part in zip(floating, parts)}
    return {**names, **views}


def wrappers(names):
    """The same tensors, as other programs save them."""
    flat = {f"modules.spk_model.{name}": tensor for name, tensor in names.items()}
    weight = noise(12, 10)
    optimizer = {"state": {0: {"exp_avg": noise(3)}}, "param_groups": [{"lr": 0.1}]}
    ddp = {f"module.{name}": tensor for name, tensor in names.items()}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in names.items()}
    return {
        "bare": names,
        "bare with classifier": {**names, "classifier.weight": weight},
        "bare with projection": {**names, "projection.weight": weight},
        "flat": {**flat, "modules.classifier.weight": weight},
        "distributed": {"modules": {"spk_model": ddp, "classifier": {"m": weight}}},
        "compiled": {"model_state_dict": compiled, "optimizer": optimizer, "step": 3},
        "optimiser's states": {"model": names, "optimizer_states": [optimizer]},
        "languages": {**names, "lang_head.0.weight": weight},
        "mask": {**names, "front.encoder.masked_spec_embed": noise(24)},
        "no counters": {
            name: tensor
            for name, tensor in names.items()
            if "num_batches_tracked" not in name
        },
        "views": flat_views(names),
        "parameters": {
            name: torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
            for name, tensor in names.items()
        },
        "shared": {
            **names,
            **{
                name.replace("ffn2", "ffn1"): names[name]
                for name in names
                if ".ffn2" in name
            },
        },
    }


@pytest.mark.parametrize("kind", wrappers({}))
def test_wrappers(tmp_path, kind):
    original = random_model(write_config(tmp_path))
    content = wrappers(published_names(original))[kind]
    if kind == "shared":
        for layer in original.encoder.encoder.layers:
            layer.ffn1.load_state_dict(layer.ffn2.state_dict())
            layer.ffn1_layer_norm.load_state_dict(layer.ffn2_layer_norm.state_dict())
    path = save(content, tmp_path / "model.pth")
    model = load_pretrained(convert_released(path, tmp_path / "out"))
    for name, tensor in original.state_dict().items():
        if kind != "no counters" or "num_batches" not in name:
            assert torch.equal(model.state_dict()[name], tensor)


def test_files_of_old_torch(tmp_path):
    """Written before torch 1.6: no zip file, which cannot be mapped."""
    original = random_model(write_config(tmp_path))
    path = tmp_path / "model.pth"
    torch.save(
        checkpoint(published_names(original)),
        path,
        _use_new_zipfile_serialization=False,
    )
    model = load_pretrained(convert_released(path, tmp_path / "out"))
    assert_same(model, original)


def test_tensors_are_not_copied(tmp_path):
    names = published_names(random_model(write_config(tmp_path)))
    model, _ = build_released(names, "names")
    for name, tensor in model.encoder.state_dict().items():
        assert tensor.data_ptr() == names[f"front.encoder.{name}"].data_ptr()


def test_what_is_written_down(tmp_path, caplog):
    names = published_names(random_model(write_config(tmp_path)))
    path = save(checkpoint(names), tmp_path / "model.pth")
    with caplog.at_level("INFO"):
        folder = convert_released(path, tmp_path / "out", licence="for this test")
    kept = json.loads((folder / "training.json").read_text())
    assert kept["epoch"] == 7
    assert kept["speakers"] == []
    assert kept["converted_from"] == {
        "file": "model.pth",
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "for this test",
        "encoder_config": None,
        "lora": None,
        "left_out": {
            "classifier of training speakers, whose names the file does not hold": 1
        },
    }
    assert not (folder / "classifier.safetensors").exists()
    assert "AdapterMFA, embeddings of 10" in caplog.text
    assert "2 layers of 24" in caplog.text
    assert "modules.classifier.weight" in caplog.text
    assert "LoRA" not in caplog.text
    assert "pruned" not in caplog.text
    assert "configuration" not in caplog.text


def test_no_network(tmp_path, monkeypatch):
    """Neither to convert nor for what users load, which gives the same embeddings."""
    original = random_model(write_config(tmp_path))
    path = save(checkpoint(published_names(original)), tmp_path / "model.pth")
    wavs = utterances()
    expected = embed(original, wavs)

    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    folder = convert_released(path, tmp_path / "out")
    verifier = SpeakerVerifier.from_hparams(folder, run_opts={"device": "cpu"})
    found = torch.cat([verifier.encode_batch(wav[None])[:, 0] for wav in wavs])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_folder_is_replaced(tmp_path):
    config = write_config(tmp_path)
    (tmp_path / "out").mkdir()  # empty
    convert(tmp_path, published_names(random_model(config, seed=1)))
    original = random_model(config, seed=2)
    assert_same(convert(tmp_path, published_names(original)), original)


def test_alpha_that_nothing_needs(tmp_path):
    names = published_names(random_model(write_config(tmp_path)))
    with pytest.raises(InputError, match="no LoRA tensors"):
        convert(tmp_path, names, lora_alpha=128)


@pytest.mark.parametrize("alpha", [0, -1, float("nan")])
def test_bad_alpha(tmp_path, alpha):
    names = with_lora(published_names(random_model(write_config(tmp_path))), 2)
    with pytest.raises(InputError, match=r"lora_alpha.*above 0"):
        convert(tmp_path, names, lora_alpha=alpha)
