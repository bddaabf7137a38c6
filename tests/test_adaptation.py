"""LoRA: nothing at first, something once trained, the same when merged."""

import copy

import pytest
import torch
from tiny_encoder import noise, tiny_config, tiny_encoder

from speechbrain_ext.adaptation import inject_lora, merge_lora
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import load_strictly

FEATURES = noise(2, 60, 160)
LAYERS = 3


def last_state(encoder):
    with torch.no_grad():
        return encoder.encode(FEATURES)[-1]


def fill_b(encoder, seed=0):
    """Random B, as after training: in place."""
    for number, (name, parameter) in enumerate(encoder.named_parameters()):
        if "lora_B" in name:
            parameter.data.copy_(0.3 * noise(*parameter.shape, seed=seed + number))
    return encoder


def test_injecting_changes_nothing_yet():
    encoder = tiny_encoder()
    before = last_state(encoder)
    assert inject_lora(encoder, r=4, alpha=8) is encoder
    assert torch.equal(last_state(encoder), before)


def test_update_is_alpha_over_r_times_b_a():
    """On one layer, by the formula."""
    encoder = tiny_encoder()
    linear = encoder.encoder.layers[1].self_attn.linear_q
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    fill_b(inject_lora(encoder, r=4, alpha=12))
    layer = encoder.encoder.layers[1].self_attn.linear_q
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape == (4, 48)
    assert b.shape == (48, 4)
    x = noise(3, 48)
    expected = x @ (weight + 12 / 4 * b @ a).t() + bias
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    merge_lora(encoder)
    merged = encoder.encoder.layers[1].self_attn.linear_q
    torch.testing.assert_close(merged.weight, weight + 3 * b @ a)
    assert torch.equal(merged.bias, bias)


@pytest.mark.parametrize("frozen", [False, True])
def test_merging_keeps_the_outputs(frozen):
    encoder = tiny_encoder(frozen=frozen)
    untouched = last_state(encoder)
    names = list(encoder.state_dict())
    fill_b(inject_lora(encoder, r=4, alpha=8))
    adapted = last_state(encoder)
    assert (adapted - untouched).abs().max() > 1e-2
    assert merge_lora(encoder) is encoder
    torch.testing.assert_close(last_state(encoder), adapted, atol=1e-5, rtol=0)
    assert list(encoder.state_dict()) == names
    assert not hasattr(encoder, "peft_config")


def test_merged_weights_load_strictly_in_a_fresh_encoder():
    encoder = merge_lora(fill_b(inject_lora(tiny_encoder(), r=2)))
    fresh = W2VBertEncoder(tiny_config()).eval()
    load_strictly(fresh, encoder.state_dict(), "merged")
    assert torch.equal(last_state(fresh), last_state(encoder))


def test_unmerged_weights_load_strictly_in_an_injected_encoder():
    """As a resumed run does."""
    encoder = fill_b(inject_lora(tiny_encoder(), r=2, alpha=6))
    fresh = inject_lora(W2VBertEncoder(tiny_config()).eval(), r=2, alpha=6)
    load_strictly(fresh, encoder.state_dict(), "checkpoint")
    assert torch.equal(last_state(fresh), last_state(encoder))


def test_merged_encoder_takes_lora_again():
    encoder = merge_lora(fill_b(inject_lora(tiny_encoder(), r=2)))
    before = last_state(encoder)
    inject_lora(encoder, r=3)
    assert torch.equal(last_state(encoder), before)


def test_merging_without_lora_does_nothing():
    encoder = tiny_encoder()
    before = copy.deepcopy(encoder.state_dict())
    merge_lora(encoder)
    assert list(encoder.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize("frozen", [False, True])
def test_lora_alone_is_trained(frozen):
    encoder = inject_lora(tiny_encoder(frozen=frozen), r=4).train()
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == LAYERS * 2 * 2  # layers × (q, v) × (A, B)
    assert sum(p.numel() for p in trained.values()) == LAYERS * 2 * 4 * (48 + 48)
    encoder.encode(FEATURES)[-1].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name)
    # at the start A's gradient is zero, since B is; B's is not
    assert all((p.grad != 0).any() for name, p in trained.items() if "lora_B" in name)


def test_other_targets():
    encoder = inject_lora(
        tiny_encoder(), r=1, target_modules=["linear_out", "intermediate_dense"]
    )
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert len(trained) == LAYERS * 3 * 2  # linear_out, ffn1 and ffn2, each A and B
    assert all("linear_out" in n or "intermediate_dense" in n for n in trained)


@pytest.mark.parametrize("frozen", [False, True])
def test_dropout_of_lora_follows_train(frozen):
    """Also in a frozen encoder, whose own dropout stays off."""
    config = tiny_config(
        hidden_dropout=0.0, conformer_conv_dropout=0.0, attention_dropout=0.0
    )
    encoder = tiny_encoder(config, frozen=frozen)
    fill_b(inject_lora(encoder, r=4, dropout=0.5))
    parent = torch.nn.ModuleList([encoder])
    parent.eval()
    assert torch.equal(last_state(encoder), last_state(encoder))
    parent.train()
    assert not torch.equal(last_state(encoder), last_state(encoder))
    parent.eval()
    assert torch.equal(last_state(encoder), last_state(encoder))


def test_layers_without_attention_have_no_lora():
    """A pruned encoder: two of three layers attend."""
    config = tiny_config(num_attention_heads_group=[4, 0, 3])
    encoder = inject_lora(tiny_encoder(config), r=2)
    layers = {n.split(".")[2] for n, _ in encoder.named_parameters() if "lora_" in n}
    assert layers == {"0", "2"}


def test_lora_twice_is_an_error():
    encoder = inject_lora(tiny_encoder(), r=2)
    with pytest.raises(InputError, match="has LoRA layers already"):
        inject_lora(encoder, r=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"^inject_lora: r 0, expected 1 or more$"),
        ({"r": -3}, r"r -3, expected 1"),
        (
            {"target_modules": ["linear_q", "query"]},
            r"^inject_lora: no layers named \['query'\] in this encoder, expected",
        ),
        ({"target_modules": []}, r"no layers named \[\]"),
    ],
)
def test_bad_options(options, message):
    encoder = tiny_encoder()
    names = list(encoder.state_dict())
    with pytest.raises(InputError, match=message):
        inject_lora(encoder, **options)
    assert list(encoder.state_dict()) == names
    assert all(p.requires_grad for p in encoder.parameters())


def test_merging_nan_is_an_error():
    encoder = fill_b(inject_lora(tiny_encoder(), r=2))
    layer = encoder.encoder.layers[2].self_attn.linear_v
    layer.lora_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"merge_lora: .*layers.2.self_attn.linear_v"):
        merge_lora(encoder)
