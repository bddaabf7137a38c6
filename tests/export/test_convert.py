"""Published checkpoints → pretrained folders: the embeddings stay the same."""

import hashlib
import json
import socket
import sys

import numpy as np
import pytest
import torch
from released_checkpoints import (
    HEADS,
    assert_same,
    checkpoint,
    convert,
    embed,
    embed_batch,
    merge_by_hand,
    published_names,
    random_model,
    save,
    utterances,
    with_lora,
    write_config,
)
from safetensors.torch import load_file
from tiny_encoder import noise

from speechbrain_ext.__main__ import main
from speechbrain_ext.export import published
from speechbrain_ext.export.published import w2v_bert
from speechbrain_ext.export.published.checkpoint import Checkpoint
from speechbrain_ext.export.published.convert import formats
from speechbrain_ext.inference import SpeakerVerifier, convert_released
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "three layers": {"hidden": 24, "heads": 3, "ffn": 40, "layers": 3},
    "one layer, one head": {"hidden": 16, "heads": 1, "ffn": 24, "layers": 1},
}
PRUNED = {
    "hidden": 24,
    "heads": 4,
    "ffn": 40,
    "layers": 4,
    "num_attention_heads_group": [3, 0, 4, 1],
    "intermediate_size_group": [[40, 7], [13, 0], [0, 1], [0, 0]],
    "conv_channels": [24, 5, 0, 11],
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("head", HEADS)
def test_converted_equals_original(tmp_path, head, sizes):
    config = write_config(tmp_path, **SIZES[sizes])
    original = random_model(config, head)
    model = convert(tmp_path, published_names(original))
    assert_same(model, original)
    assert type(model.head) is type(original.head)
    # the configuration, where it is given, changes nothing
    given = convert(tmp_path, published_names(original), encoder_config=config)
    assert given.state_dict().keys() == model.state_dict().keys()
    for name, tensor in given.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    for key in ("num_attention_heads", "intermediate_size", "num_hidden_layers"):
        assert getattr(given.encoder.config, key) == getattr(model.encoder.config, key)


@pytest.mark.parametrize("with_config", [True, False])
def test_pruned(tmp_path, caplog, with_config):
    """Layers without attention, without either feed-forward, without convolution."""
    caplog.set_level("INFO")
    config = write_config(tmp_path, **PRUNED)
    original = random_model(config)
    model = convert(
        tmp_path,
        published_names(original),
        encoder_config=config if with_config else None,
    )
    assert_same(model, original)
    shapes = [layer.shape for layer in model.encoder.encoder.layers]
    assert [shape.heads for shape in shapes] == PRUNED["num_attention_heads_group"]
    assert [[s.ffn1, s.ffn2] for s in shapes] == PRUNED["intermediate_size_group"]
    assert [shape.conv for shape in shapes] == PRUNED["conv_channels"]
    assert "pruned, heads by layer: [3, 0, 4, 1]" in caplog.text
    assert ("no encoder configuration was given" in caplog.text) != with_config
    if with_config:
        assert model.encoder.config.intermediate_size == 40


def test_pruned_adapters_and_kernel(tmp_path):
    """Adapters of uneven hidden sizes, as our pruning leaves them; another kernel."""
    config = write_config(tmp_path)
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "conv_depthwise_kernel_size": 5}))
    original = random_model(config)
    widths = dict(zip(("0", "1", "2"), (4, 6, 1)))
    original.head = original.head.resized(widths).eval()
    assert_same(convert(tmp_path, published_names(original)), original)


@pytest.mark.parametrize(
    ("rank", "layers", "alpha", "sizes"),
    [
        (4, ("linear_q", "linear_v"), None, {}),
        (3, ("linear_q", "linear_k", "linear_out", "output_dense"), 5.0, {}),
        (2, ("linear_q", "linear_v"), None, PRUNED),
    ],
)
def test_lora_is_merged(tmp_path, rank, layers, alpha, sizes):
    original = random_model(write_config(tmp_path, **sizes))
    before = embed(original, utterances())
    names = with_lora(published_names(original), rank, layers)
    merge_by_hand(original, names, 2.0 if alpha is None else alpha / rank)
    assert (embed(original, utterances()) - before).abs().max() > 1e-2
    model = convert(tmp_path, names, lora_alpha=alpha)
    assert not any("lora" in name for name in model.state_dict())
    assert_same(model, original, 1e-5)
    kept = json.loads((tmp_path / "out" / "training.json").read_text())
    assert kept["converted_from"]["lora"] == {
        "rank": rank,
        "alpha": alpha or 2.0 * rank,
        "layers": sorted(layers),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(tmp_path, dtype):
    original = random_model(write_config(tmp_path))
    names = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in published_names(original).items()
    }
    model = convert(tmp_path, names)
    for name, tensor in model.state_dict().items():
        own = name.replace("encoder.", "front.encoder.", 1).removeprefix("head.")
        expected = names[own].float() if tensor.is_floating_point() else names[own]
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    stored = load_file(tmp_path / "out" / "speaker_encoder.safetensors")
    assert {w.dtype for w in stored.values()} == {torch.float32, torch.int64}


def test_lora_of_another_precision(tmp_path):
    """Merged in float32: bfloat16 keeps three digits of the sum."""
    original = random_model(write_config(tmp_path))
    names = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in with_lora(published_names(original), 3).items()
    }
    model = convert(tmp_path, names)
    layer = "encoder.layers.1.self_attn.linear_q."
    peft = f"front.encoder.base_model.model.{layer}"
    a, b, w = (
        names[f"{peft}{part}.weight"].float()
        for part in ("lora_A.default", "lora_B.default", "base_layer")
    )
    merged = model.state_dict()[f"encoder.{layer}weight"]
    torch.testing.assert_close(merged, w + 2 * b @ a, atol=1e-6, rtol=0)


# -- the published code's own embeddings -----------------------------------------------


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "adapter_mfa",
        "mfa",
        "weighted_ecapa",
        "pruned_adapter_mfa",
        "lora_adapter_mfa",
        "lora_adapter_mfa_merged",
    ],
)
def test_golden_embeddings_of_converted(shared, tmp_path, name, with_config):
    released = shared / "golden" / "released"
    config = released / f"{name}_encoder_config.json" if with_config else None
    folder = convert_released(released / f"{name}.pth", tmp_path / "out", config)
    model = load_pretrained(folder)
    with np.load(released / "wavs.npz") as file:
        wavs = [torch.tensor(file[key]).float() for key in file]
    golden = torch.tensor(np.load(released / f"{name}_embeddings.npy"))
    golden = golden.reshape(len(wavs), -1)
    for embeddings in (embed(model, wavs), embed_batch(model, wavs)):
        torch.testing.assert_close(embeddings, golden, atol=1e-5, rtol=0)


# -- what may be around the tensors ----------------------------------------------------


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
    model = w2v_bert.convert(Checkpoint("names", names, {})).model
    for name, tensor in model.encoder.state_dict().items():
        assert tensor.data_ptr() == names[f"front.encoder.{name}"].data_ptr()


TOY = """
from released_checkpoints import random_model
from speechbrain_ext.export.published.checkpoint import Converted

TITLE, LICENCE = "toy models", "free"

def detect(tensors):
    return "toy.weight" in tensors

def convert(checkpoint):
    assert checkpoint.values == {"config.name": "tiny"}
    model = random_model(checkpoint.path.with_name("encoder_config.json"))
    return Converted(model, 3, {"not needed": ["toy.weight"]}, {}, ["a toy"])
"""


def test_a_format_is_one_module(tmp_path, monkeypatch, caplog):
    """It is found beside the others, and a file says by its tensors which it is."""
    caplog.set_level("INFO")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "toy.py").write_text(TOY)
    folders = [*published.__path__, str(tmp_path / "more")]
    monkeypatch.setattr(published, "__path__", folders)
    monkeypatch.delitem(sys.modules, f"{published.__name__}.toy", raising=False)
    config = write_config(tmp_path)
    content = {"toy": {"weight": noise(3)}, "config": {"name": "tiny"}}
    path = save(content, tmp_path / "toy.pt")
    folder = convert_released(path, tmp_path / "out")
    assert_same(load_pretrained(folder), random_model(config))
    kept = json.loads((folder / "training.json").read_text())
    assert (kept["epoch"], kept["converted_from"]["kind"]) == (3, "toy")
    assert kept["converted_from"]["licence"] == "free"
    assert "toy.pt: a toy" in caplog.text
    for options, culprit in (
        ({"encoder_config": config}, "encoder_config: no option of toy"),
        ({"kind": "w2v_bert"}, "not of w2v_bert"),
    ):
        with pytest.raises(InputError, match=culprit):
            convert_released(path, tmp_path / "other", **options)
    both = {**published_names(random_model(config)), "toy.weight": noise(3)}
    with pytest.raises(InputError, match="w2v_bert and toy; choose by kind"):
        convert_released(save(both, path), tmp_path / "other")
    monkeypatch.delitem(sys.modules, f"{published.__name__}.toy")


def test_formats_are_listed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--formats"])
    assert not caught.value.code
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == sorted(formats())
    assert {"w2v_bert", "wespeaker_ssl", "wespeaker_resnet", "xvector"} < set(names)


# -- the folder and the command --------------------------------------------------------


def test_what_is_written_down(tmp_path, caplog):
    names = published_names(random_model(write_config(tmp_path)))
    path = save(checkpoint(names), tmp_path / "model.pth")
    with caplog.at_level("INFO"):
        folder = convert_released(path, tmp_path / "out", licence="for this test")
    kept = json.loads((folder / "training.json").read_text())
    assert kept["epoch"] == 7
    assert kept["speakers"] == []
    assert kept["converted_from"] == {
        "kind": "w2v_bert",
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
    for word in ("LoRA", "pruned", "configuration"):
        assert word not in caplog.text


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
    embeddings = torch.cat([verifier.encode_batch(wav[None])[:, 0] for wav in wavs])
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=0)


def test_folder_is_replaced(tmp_path):
    config = write_config(tmp_path)
    (tmp_path / "out").mkdir()  # empty
    convert(tmp_path, published_names(random_model(config, seed=1)))
    original = random_model(config, seed=2)
    assert_same(convert(tmp_path, published_names(original)), original)


def test_command(tmp_path, capfd):
    names = published_names(random_model(write_config(tmp_path)))
    path = save(checkpoint(with_lora(names, 2)), tmp_path / "model.pth")
    folder = tmp_path / "out"
    words = [
        *("convert", path, "--output", folder, "--kind", "w2v_bert"),
        *("--lora_alpha", "3", "--licence", "CC0"),
        *("--encoder_config", write_config(tmp_path)),
    ]
    main([str(word) for word in words])
    assert capfd.readouterr().out == f"{folder}\n"
    kept = json.loads((folder / "training.json").read_text())["converted_from"]
    assert kept["licence"] == "CC0"
    assert kept["lora"]["alpha"] == 3
    assert kept["encoder_config"] == "encoder_config.json"
    load_pretrained(folder)
