"""Checkpoints whose tensors are wrong or partial: one line, and nothing is written."""

import json

import pytest
import torch
from released_checkpoints import (
    assert_same,
    checkpoint,
    convert,
    published_names,
    random_model,
    refused,
    save,
    with_lora,
    write_config,
)
from tiny_encoder import noise

from speechbrain_ext.inference import convert_released
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

LAYER = "front.encoder.encoder.layers."
PRUNED = {"num_attention_heads_group": [3, 2], "conv_channels": [20, 9]}


# -- tensors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}1.ffn1.intermediate_dense.weight",
        f"{LAYER}0.self_attn.linear_q.bias",
        f"{LAYER}0.self_attn.distance_embedding.weight",
        f"{LAYER}1.conv_module.depthwise_conv.weight",
        f"{LAYER}0.final_layer_norm.bias",
        "front.encoder.feature_projection.layer_norm.weight",
        "front.encoder.feature_projection.projection.weight",
        "adapter_layers.2.3.weight",
        "pooling.attention.2.running_var",
        "bottleneck.weight",
    ],
)
def test_missing_tensor(tmp_path, names, name):
    del names[name]
    refused(tmp_path, checkpoint(names), rf"missing.*{name}")


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (f"{LAYER}1.ffn1", rf"6 missing: {LAYER}1\.ffn1_layer_norm.*were derived"),
        (f"{LAYER}0.self_attn", rf"11 missing: {LAYER}0\.self_attn_layer_norm"),
        (f"{LAYER}1.conv_module", rf"7 missing: {LAYER}1\.conv_module"),
        (f"{LAYER}0.", rf"no tensors {LAYER}0\.\*, but 1 other"),
        (f"{LAYER}1.", "6 unexpected: adapter_layers.2.0"),
        (LAYER, rf"no tensors {LAYER}0\.\*"),
        ("adapter_layers.1.", "6 missing: adapter_layers.1.0.weight"),
        ("pooling.", "missing: pooling.attention.0.weight"),
        ("front.encoder.feature_projection.", "missing or empty.*projection.weight"),
        ("front.", r"no tensors front.encoder.\* among"),
    ],
)
def test_missing_part(tmp_path, names, part, match):
    left = {name: w for name, w in names.items() if not name.startswith(part)}
    refused(tmp_path, checkpoint(left), match)


def test_no_head(tmp_path, names):
    left = {name: w for name, w in names.items() if name.startswith("front.")}
    refused(tmp_path, checkpoint(left), "no head among")


def test_adapters_lost(tmp_path, names):
    """Then it looks like MFA, whose pooling is wider."""
    left = {name: w for name, w in names.items() if not name.startswith("adapter")}
    match = r"wrong shape: pooling.attention.0.weight \(6, 18, 1\) instead of"
    refused(tmp_path, checkpoint(left), match)


def test_layer_missing_from_a_pruned_model(tmp_path):
    """A part that is half there is not taken for a pruned one."""
    names = published_names(random_model(write_config(tmp_path, **PRUNED)))
    for name in ("self_attn.linear_q.weight", "self_attn_layer_norm.weight"):
        del names[f"{LAYER}1.{name}"]
    refused(tmp_path, checkpoint(names), r"2 missing: .*self_attn.*give its encoder")


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        (f"{LAYER}0.ffn2.output_dense.weight", (24, 39), r"\(24, 39\).*\(24, 40\)"),
        (f"{LAYER}1.self_attn.linear_v.weight", (23, 24), r"\(23, 24\).*\(24, 24\)"),
        (f"{LAYER}1.self_attn.linear_v.weight", (24,), r"\(24,\).*\(24, 24\)"),
        (f"{LAYER}1.self_attn.linear_v.bias", (), r"\(\).*\(24,\)"),
        ("adapter_layers.0.0.weight", (5, 24), r"\(5, 24\).*\(6, 24\)"),
        ("bottleneck.weight", (10, 35), r"\(10, 35\).*\(10, 36\)"),
    ],
)
def test_wrong_shape(tmp_path, names, name, shape, match):
    names[name] = noise(*shape) if shape else torch.tensor(1.0)
    refused(tmp_path, checkpoint(names), f"1 of the wrong shape: {name} {match}")


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("feature_projection.projection.weight", (24, 80), "80 dimensions.*160"),
        ("encoder.layers.0.self_attn.distance_embedding.weight", (9, 6), "9 relative"),
        ("encoder.layers.0.self_attn.distance_embedding.weight", (73, 7), "divisor"),
    ],
)
def test_sizes_of_no_such_encoder(tmp_path, names, name, shape, match):
    del names[f"{LAYER}1.self_attn.distance_embedding.weight"]
    names[f"front.encoder.{name}"] = noise(*shape)
    refused(tmp_path, checkpoint(names), match)


def test_half_a_head(tmp_path, names):
    for which in "qkv":
        for kind, shape in (("weight", (9, 24)), ("bias", (9,))):
            names[f"{LAYER}1.self_attn.linear_{which}.{kind}"] = noise(*shape)
    refused(tmp_path, checkpoint(names), "is 9 wide, expected a multiple")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"front.encoder.adapter.layers.0.bias": noise(3)}, "1 unexpected: .*adapter"),
        ({f"{LAYER}0.ffn1.hard_concrete.log_alpha": noise(40)}, "1 unexpected: .*log"),
        ({"norm.weight": noise(36)}, "1 unexpected: norm.weight"),
        ({"bottleneck.bias": torch.full((10,), float("nan"))}, "NaN or infinite"),
        ({f"{LAYER}0.ffn1.output_dense.bias": torch.zeros(24) / 0}, "NaN or infinite"),
        ({"bottleneck.bias": torch.zeros(10, dtype=torch.int8)}, "bias is torch.int8"),
        ({"bottleneck.bias": torch.zeros(10).to_sparse()}, "torch.sparse_coo"),
        ({"bottleneck.bias": torch.zeros(10, device="meta")}, "without its values"),
        ({"module.bottleneck.bias": torch.zeros(10)}, "two tensors called.*bottleneck"),
    ],
)
def test_strange_tensor(tmp_path, names, change, match):
    refused(tmp_path, checkpoint({**names, **change}), match)


def test_partial_lora(tmp_path, names):
    wrapped = with_lora(names, 2)
    name = f"{LAYER}1.self_attn.linear_v.lora_B.default.weight"
    del wrapped[name.replace("encoder.", "encoder.base_model.model.", 1)]
    refused(tmp_path, checkpoint(wrapped), f"1 missing: {name}")


def test_other_lora(tmp_path, names):
    wrapped = with_lora(names, 2)
    name = f"{LAYER}1.self_attn.linear_v.lora_magnitude_vector.default.weight"
    wrapped[name] = noise(24)
    refused(tmp_path, checkpoint(wrapped), f"1 unexpected: {name}")


def test_what_is_beside_the_model(tmp_path, names):
    content = checkpoint(names)
    content["modules"]["teacher"] = {"linear.weight": noise(3)}
    refused(tmp_path, content, "modules.teacher.linear.weight is no part of the model")


def test_two_models(tmp_path, names):
    content = {"model": names, "ema": dict(names)}
    refused(tmp_path, content, "2 models, ema., model.; expected 1")


def test_checkpoint_of_distillation(tmp_path, names):
    content = {f"student_{k}": w for k, w in names.items() if k.startswith("front")}
    refused(tmp_path, checkpoint(content), "of distillation")


def test_backbone_alone(tmp_path, names):
    bare = {name.removeprefix("front.encoder."): w for name, w in names.items()}
    refused(tmp_path, bare, r"no tensors front.encoder.\* among \d+: feature_proj")


def test_ecapa_of_another_depth(tmp_path):
    original = random_model(write_config(tmp_path), "weighted_ecapa")
    names = published_names(original)
    for name in list(names):
        if name.startswith("ecapa_tdnn.blocks.3."):
            del names[name]
    refused(tmp_path, checkpoint(names), "missing or empty ecapa_tdnn.blocks.3.tdnn1")


def test_ecapa_of_odd_channels(tmp_path):
    names = published_names(random_model(write_config(tmp_path), "weighted_ecapa"))
    for kind in ("weight", "bias"):
        name = f"ecapa_tdnn.blocks.2.tdnn1.conv.conv.{kind}"
        names[name] = names[name][:12].clone()
    refused(tmp_path, checkpoint(names), r"\[16, 16, 12, 16, 48\].*multiples of 8")


# -- the encoder's configuration -------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"ffn": 44}, r"wrong shape: .*ffn1.* \(40, 24\) instead of \(44, 24\)"),
        ({"heads": 2}, r"distance_embedding.weight \(73, 6\) instead of \(73, 12\)"),
        ({"layers": 3}, r"missing: front.encoder.encoder.layers.2"),
        ({"layers": 1}, r"unexpected: front.encoder.encoder.layers.1"),
        ({"num_attention_heads_group": [4, 0]}, "11 unexpected: .*layers.1.self_attn"),
        ({"conv_channels": [24, 20]}, r"wrong shape: .*conv_module"),
    ],
)
def test_configuration_of_another_model(tmp_path, names, other, match):
    config = write_config(tmp_path, **other)
    match = f"{match}.*; widths are those in .*encoder_config.json"
    refused(tmp_path, checkpoint(names), match, encoder_config=config)


def test_dense_configuration_of_a_pruned_model(tmp_path):
    original = random_model(write_config(tmp_path, **PRUNED))
    content = checkpoint(published_names(original))
    config = write_config(tmp_path)
    refused(tmp_path, content, "wrong shape", encoder_config=config)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"conv_group": [1, 2]}, "another form than the published lists"),
        ({"intermediate_size_group": [[40], [40]]}, "another form"),
        ({"num_attention_heads_group": [4]}, "has 1 entries, expected .* 2"),
        ({"num_attention_heads": 5}, "no multiple"),
        ({"position_embeddings_type": "rotary"}, "position_embeddings_type 'rotary'"),
        ({"model_type": "wavlm"}, "model_type 'wavlm'"),
    ],
)
def test_bad_configuration(tmp_path, names, change, match):
    config = write_config(tmp_path)
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    path = save(checkpoint(names), tmp_path / "model.pth")
    with pytest.raises(InputError, match=match) as caught:
        convert_released(path, tmp_path / "out", config)
    assert str(config) in str(caught.value)


# -- what the published pruning writes between two stages ------------------------------


def over_dense(tmp_path, **pruned):
    """A pruned encoder's tensors over those of a dense model, and its configuration."""
    sizes = {"ffn": 96, "layers": 3}
    dense = published_names(random_model(write_config(tmp_path, **sizes), seed=1))
    config = write_config(tmp_path, **sizes, **pruned)
    encoder = published_names(random_model(config))
    over = {name: w for name, w in encoder.items() if name.startswith("front.")}
    return {**dense, **over}, config


@pytest.mark.parametrize(
    ("pruned", "part"),
    [
        ({"num_attention_heads_group": [3, 2, 0]}, r"2\.self_attn .*\(heads: 4\)"),
        (
            {"intermediate_size_group": [[9, 8], [7, 0], [6, 5]]},
            r"1\.ffn2 .*\(ffn2: 96\)",
        ),
        ({"conv_channels": [0, 9, 5]}, r"0\.conv_module .*\(conv: 24\)"),
    ],
)
def test_prune_dis(tmp_path, pruned, part):
    """A part that was removed is there in full: no other width tells that it is not."""
    names, config = over_dense(tmp_path, **pruned)
    says = rf"{LAYER}{part}, as in prune_dis\.pth, .*training after it.*encoder_config"
    refused(tmp_path, checkpoint(names), says)
    says = r"unexpected: .*widths are those in .*removed: this is as prune_dis\.pth"
    refused(tmp_path, checkpoint(names), says, encoder_config=config)


def test_a_part_of_which_nothing_was_pruned(tmp_path):
    """It looks the same, unless some part is absent, or none of its kind was pruned."""
    names, config = over_dense(tmp_path, num_attention_heads_group=[3, 4, 2])
    refused(tmp_path, checkpoint(names), r"1\.self_attn has its full size")
    for words in (
        {"num_attention_heads_group": [3, 4, 2], "encoder_config": config},
        {"num_attention_heads_group": [3, 4, 0]},
        {"num_attention_heads_group": [3, 1, 2]},
    ):
        given = words.pop("encoder_config", None)
        original = random_model(write_config(tmp_path, ffn=96, layers=3, **words))
        assert_same(
            convert(tmp_path, published_names(original), encoder_config=given), original
        )
