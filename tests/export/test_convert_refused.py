"""Checkpoints that are damaged, hostile, partial or others: one line, no folder."""

import json
import re

import pytest
import torch
from released_checkpoints import (
    Hostile,
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
from safetensors.torch import save_file
from tiny_encoder import noise

from speechbrain_ext.__main__ import main
from speechbrain_ext.inference import convert_released
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODER = "front.encoder."
LAYER = f"{ENCODER}encoder.layers."
PRUNED = {"num_attention_heads_group": [3, 2], "conv_channels": [20, 9]}


# -- files -----------------------------------------------------------------------------


def test_hostile_pickle_is_not_run(tmp_path, names):
    ran = tmp_path / "ran"
    content = {**checkpoint(names), "epoch_idx": Hostile(ran)}
    refused(tmp_path, content, "[a-z]+.mkdir")
    assert not ran.exists()


def test_dictionary_inside_itself(tmp_path, names):
    content = checkpoint(names)
    content["modules"]["again"] = content
    refused(tmp_path, content, "inside itself")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, names, kept):
    path = save(checkpoint(names), tmp_path / "model.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refused(tmp_path, path, "truncated")


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "b''"),
        (b"<!DOCTYPE html>\n<html><head></head></html>", "<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs"),
        (b'{"error": "not found"}', "not found"),
        (b"PK\x03\x04" + bytes(100), "PK"),
        (bytes(1000), r"\\x00"),
    ],
)
def test_other_content(tmp_path, content, seen):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refused(tmp_path, path, f"no torch file, begins with .*{seen}")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_safetensors(tmp_path, names, name):
    save_file(names, tmp_path / name)
    refused(tmp_path, tmp_path / name, "safetensors")


def test_folder_and_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    refused(tmp_path, tmp_path / "model", "no config.json in this folder")
    refused(tmp_path, tmp_path / "absent.pth", "no such file")


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ([1, 2], "a list"),
        (noise(3), "a Tensor"),
        ({}, "0 tensors"),
        ({"epoch_idx": 3}, "0 tensors"),
        ({"feature_projection.weight": noise(3)}, "feature_projection.weight"),
        ({"student_front.encoder.weight": noise(3)}, "student_front.encoder.weight"),
    ],
)
def test_no_published_checkpoint(tmp_path, content, seen):
    refused(tmp_path, content, seen)


def test_kind(tmp_path, names):
    refused(tmp_path, {"a": noise(3)}, "not of w2v_bert", kind="w2v_bert")
    path = save(checkpoint(names), tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"kind 'other', expected one of .*w2v_bert"):
        convert_released(path, tmp_path / "out", kind="other")


def test_what_is_beside_the_model(tmp_path, names):
    content = checkpoint(names)
    content["modules"]["teacher"] = {"linear.weight": noise(3)}
    refused(tmp_path, content, "modules.teacher.linear.weight")
    refused(tmp_path, {"model": names, "ema": dict(names)}, "2 models, ema., model.")


# -- tensors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}1.ffn1.intermediate_dense.weight",
        f"{LAYER}0.self_attn.linear_q.bias",
        f"{LAYER}0.self_attn.distance_embedding.weight",
        f"{LAYER}1.conv_module.depthwise_conv.weight",
        f"{LAYER}0.final_layer_norm.bias",
        f"{ENCODER}feature_projection.layer_norm.weight",
        f"{ENCODER}feature_projection.projection.bias",
        "adapter_layers.2.3.weight",
        "pooling.attention.2.running_var",
        "bottleneck.bias",
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
        ("adapter_layers.1.", "missing.*adapter_layers.1.0"),
        ("pooling.", "missing: pooling.attention.0.weight"),
        (f"{ENCODER}feature_projection.", "missing.*feature_projection"),
        ("front.", "not of any known format"),
    ],
)
def test_missing_part(tmp_path, names, part, match):
    rest = {name: w for name, w in names.items() if not name.startswith(part)}
    refused(tmp_path, checkpoint(rest), match)


def test_missing_head(tmp_path, names):
    rest = {name: w for name, w in names.items() if name.startswith("front.")}
    refused(tmp_path, checkpoint(rest), "no head among")
    # without its adapters it looks like MFA, whose pooling is wider
    rest = {name: w for name, w in names.items() if not name.startswith("adapter")}
    match = r"wrong shape: pooling.attention.0.weight \(6, 18, 1\) instead of"
    refused(tmp_path, checkpoint(rest), match)


def test_layer_missing_from_a_pruned_model(tmp_path):
    """A part that is half there is not taken for a pruned one."""
    names = published_names(random_model(write_config(tmp_path, **PRUNED)))
    for name in ("self_attn.linear_q.weight", "self_attn_layer_norm.weight"):
        del names[f"{LAYER}1.{name}"]
    refused(tmp_path, checkpoint(names), r"2 missing: .*self_attn.*give its encoder")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (f"{LAYER}0.ffn2.output_dense.weight", (24, 39), (24, 40)),
        (f"{LAYER}0.ffn1.intermediate_dense.weight", (39, 24), (40, 24)),
        (f"{LAYER}1.self_attn.linear_v.weight", (24,), (24, 24)),
        (f"{LAYER}1.self_attn.linear_q.weight", (23, 24), (24, 24)),
        (f"{LAYER}1.self_attn.linear_v.bias", (), (24,)),
        (f"{LAYER}1.self_attn.distance_embedding.weight", (9, 6), (73, 6)),
        (f"{ENCODER}feature_projection.projection.weight", (24, 80), (24, 160)),
        ("adapter_layers.0.0.weight", (5, 24), (6, 24)),
        ("bottleneck.weight", (10, 35), (10, 36)),
        # a size is read off these: the line names what contradicts it beside it
        (f"{LAYER}0.self_attn.distance_embedding.weight", (73, 7), "(73, 8)"),
        (f"{LAYER}0.self_attn.distance_embedding.weight", (73, 0), "empty"),
        (f"{LAYER}0.self_attn.linear_q.bias", (9,), f"{LAYER}0.self_attn.linear_q"),
        (f"{LAYER}0.self_attn.linear_q.bias", (2,), f"{LAYER}0.self_attn.linear_q"),
        (f"{LAYER}0.ffn1.intermediate_dense.bias", (41,), f"{LAYER}0.ffn1"),
        (f"{LAYER}0.conv_module.depthwise_layer_norm.bias", (0,), "empty"),
        (f"{ENCODER}feature_projection.projection.bias", (25,), "hidden_size 25"),
        ("adapter_layers.0.3.bias", (7,), "adapter_layers.0.3.weight"),
        ("bottleneck.bias", (1,), "bottleneck.weight"),
    ],
)
def test_wrong_shape(tmp_path, names, name, shape, expected):
    names[name] = noise(*shape) if shape else torch.tensor(1.0)
    if isinstance(expected, tuple):
        expected = f"1 of the wrong shape: {name} {shape} instead of {expected}"
    refused(tmp_path, checkpoint(names), re.escape(expected))


def test_ecapa(tmp_path):
    names = published_names(random_model(write_config(tmp_path), "weighted_ecapa"))
    block = "ecapa_tdnn.blocks.3."
    rest = {name: w for name, w in names.items() if not name.startswith(block)}
    refused(tmp_path, checkpoint(rest), f"missing.*{block}tdnn1")
    for kind in ("weight", "bias"):  # channels that are no multiple of 8
        name = f"ecapa_tdnn.blocks.2.tdnn1.conv.conv.{kind}"
        names[name] = names[name][:12].clone()
    refused(tmp_path, checkpoint(names), r"ecapa_tdnn.blocks.2.tdnn1.* \(12,")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({f"{ENCODER}adapter.layers.0.bias": noise(3)}, "1 unexpected: .*adapter"),
        ({f"{LAYER}0.ffn1.hard_concrete.log_alpha": noise(40)}, "1 unexpected: .*log"),
        ({f"{LAYER}999999999.ffn1.a": noise(3)}, rf"no tensors {LAYER}2\."),
        ({"norm.weight": noise(36)}, "1 unexpected: norm.weight"),
        ({"bottleneck.bias": torch.full((10,), float("nan"))}, "NaN or infinite"),
        ({f"{LAYER}0.ffn1.output_dense.bias": torch.zeros(24) / 0}, "NaN or infinite"),
        ({"bottleneck.bias": torch.zeros(10, dtype=torch.int8)}, "bias is torch.int8"),
        ({"bottleneck.bias": torch.zeros(10).to_sparse()}, "bias is .*sparse_coo"),
        ({"bottleneck.bias": torch.zeros(10, device="meta")}, "bias is .*meta"),
        ({"bottleneck.bias": torch.zeros(1).expand(10**15)}, "bias is .*all of them"),
        ({"module.bottleneck.bias": torch.zeros(10)}, "two tensors called.*bottleneck"),
    ],
)
def test_strange_tensor(tmp_path, names, change, match):
    refused(tmp_path, checkpoint({**names, **change}), match)


def test_lora(tmp_path, names):
    wrapped = with_lora(names, 2)
    peft = ENCODER + "base_model.model."
    layer = f"{LAYER}1.self_attn.linear_v."
    name = f"{layer}lora_B.default.weight"
    rest = {k: w for k, w in wrapped.items() if k != name.replace(ENCODER, peft)}
    assert len(rest) == len(wrapped) - 1
    refused(tmp_path, checkpoint(rest), f"1 missing: {name}")
    name = f"{layer}lora_magnitude_vector.default.weight"
    more = {**wrapped, name: noise(24)}
    refused(tmp_path, checkpoint(more), f"1 unexpected: {name}")


@pytest.mark.parametrize("alpha", [0, -1, float("nan")])
def test_alpha(tmp_path, names, alpha):
    refused(tmp_path, checkpoint(names), "no LoRA tensors", lora_alpha=alpha)
    path = save(checkpoint(with_lora(names, 2)), tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"lora_alpha.*above 0"):
        convert_released(path, tmp_path / "out", lora_alpha=alpha)


# -- the encoder's configuration -------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"ffn": 44}, r"wrong shape: .*ffn1.* \(40, 24\) instead of \(44, 24\)"),
        ({"heads": 2}, r"distance_embedding.weight \(73, 6\) instead of \(73, 12\)"),
        ({"layers": 3}, "missing.*adapter_layers.3"),
        ({"layers": 1}, r"unexpected: front.encoder.encoder.layers.1"),
        ({"num_attention_heads_group": [4, 0]}, "11 unexpected: .*layers.1.self_attn"),
        ({"conv_channels": [24, 20]}, r"wrong shape: .*conv_module"),
    ],
)
def test_configuration_of_another_model(tmp_path, names, other, match):
    config = write_config(tmp_path, **other)
    refused(tmp_path, checkpoint(names), match, encoder_config=config)


def test_dense_configuration_of_a_pruned_model(tmp_path):
    original = random_model(write_config(tmp_path, **PRUNED))
    content = checkpoint(published_names(original))
    match = "wrong shape.*; widths are those in .*encoder_config.json"
    refused(tmp_path, content, match, encoder_config=write_config(tmp_path))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"conv_group": [1, 2]}, "another form than the published lists"),
        ({"intermediate_size_group": [[40], [40]]}, "another form"),
        ({"num_attention_heads_group": [4]}, "num_attention_heads_group"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
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
    says = rf"{LAYER}{part}, as in prune_dis\.pth, .*encoder_config"
    refused(tmp_path, checkpoint(names), says)
    says = r"unexpected: .*widths are those in .*removed: as in prune_dis\.pth"
    refused(tmp_path, checkpoint(names), says, encoder_config=config)


def test_a_part_of_which_nothing_was_pruned(tmp_path):
    """It looks the same, unless some part is absent, or none of its kind was pruned."""
    names, config = over_dense(tmp_path, num_attention_heads_group=[3, 4, 2])
    refused(tmp_path, checkpoint(names), r"1\.self_attn has its full size")
    for heads, given in (
        ([3, 4, 2], config),
        ([3, 4, 0], None),
        ([3, 1, 2], None),
    ):
        sizes = {"ffn": 96, "layers": 3, "num_attention_heads_group": heads}
        original = random_model(write_config(tmp_path, **sizes))
        names = published_names(original)
        assert_same(convert(tmp_path, names, encoder_config=given), original)


# -- the folder and the command --------------------------------------------------------


def test_what_is_converted_is_not_lost(tmp_path, names):
    """The folder is replaced as a whole; a checkpoint inside would go with it."""
    path = save(checkpoint(names), tmp_path / "model.pth")
    folder = convert_released(path, tmp_path / "out")
    inside = folder / "model.pth"
    inside.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"holds model\.pth, which would be lost"):
        convert_released(inside, folder)
    config = write_config(folder)
    with pytest.raises(InputError, match=r"holds encoder_config\.json"):
        convert_released(path, folder, config)
    assert inside.is_file()


def test_folder_of_something_else(tmp_path, names):
    path = save(checkpoint(names), tmp_path / "model.pth")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="other"):
        convert_released(path, other)
    assert (other / "thesis.txt").is_file()


def test_command_of_bad_input(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(tmp_path / "absent.pth"), "--output", str(tmp_path)])
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
