"""Published checkpoints → pretrained folders: the embeddings stay the same."""

import json

import numpy as np
import pytest
import torch
from released_checkpoints import (
    HEADS,
    assert_same,
    convert,
    embed,
    embed_batch,
    merge_by_hand,
    published_names,
    random_model,
    utterances,
    with_lora,
    write_config,
)
from safetensors.torch import load_file

from speechbrain_ext.inference import convert_released
from speechbrain_ext.pretrained import load_pretrained

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
    ("rank", "layers", "alpha"),
    [
        (4, ("linear_q", "linear_v"), None),
        (3, ("linear_q", "linear_k", "linear_out", "output_dense"), 5.0),
    ],
)
def test_lora_is_merged(tmp_path, rank, layers, alpha):
    config = write_config(tmp_path)
    original = random_model(config)
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


def test_lora_of_a_pruned_model(tmp_path):
    original = random_model(write_config(tmp_path, **PRUNED))
    names = with_lora(published_names(original), 2)
    merge_by_hand(original, names, 2.0)
    assert_same(convert(tmp_path, names), original, 1e-5)


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
    found = model.state_dict()[f"encoder.{layer}weight"]
    torch.testing.assert_close(found, w + 2 * b @ a, atol=1e-6, rtol=0)


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
    for found in (embed(model, wavs), embed_batch(model, wavs)):
        torch.testing.assert_close(found, golden, atol=1e-5, rtol=0)
