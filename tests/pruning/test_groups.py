"""Gates into a model and out of it again; groups and the tensors they name."""

import pytest
import torch
from random_gates import (
    ENCODER_KINDS,
    log_alphas,
    relative_error,
    set_gates,
    speaker_encoder,
)
from tiny_encoder import noise, tiny_config, tiny_encoder

from speechbrain_ext.adaptation import inject_lora, merge_lora
from speechbrain_ext.lobes.heads import MFA
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pruning import add_gates, remove_gates
from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import load_strictly


@pytest.mark.parametrize("whole", [(), ENCODER_KINDS])
def test_new_gates_change_nothing_in_eval_mode(whole):
    encoder, wavs = tiny_encoder().double(), 0.1 * noise(2, 16000)
    with torch.no_grad():
        before, _ = encoder(wavs)
        assert add_gates(encoder, whole=whole) is encoder
        after, _ = encoder(wavs)
    assert relative_error(after, before) < 1e-12


def test_removed_gates_leave_nothing():
    encoder, wavs = tiny_encoder(), 0.1 * noise(2, 16000)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        states, _ = encoder(wavs)
        remove_gates(set_gates(add_gates(encoder), "soft"))
        again, _ = encoder(wavs)
    assert all(torch.equal(one, other) for one, other in zip(states, again))
    after = encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    add_gates(encoder)  # and they may come back


def test_state_dict_has_more_under_gates_alone():
    plain, gated = tiny_encoder(), add_gates(tiny_encoder(), whole=["heads"])
    more = set(gated.state_dict()) - set(plain.state_dict())
    assert all(".gate." in name for name in more)
    assert "encoder.layers.0.self_attn.gate.units.log_alpha" in more
    assert "encoder.layers.2.self_attn.gate.whole.log_alpha" in more
    assert len(more) == 3 * (4 + 1)
    set_gates(gated, "soft")
    again = add_gates(W2VBertEncoder(tiny_config()), whole=["heads"]).eval()
    load_strictly(again, gated.state_dict(), "gated")
    wavs = 0.1 * noise(1, 16000)
    assert torch.equal(again(wavs)[0][-1], gated(wavs)[0][-1])


def test_sizes_of_gates():
    config = tiny_config(
        num_attention_heads_group=[1, 0, 4], use_attention=[True, False, True]
    )
    encoder = add_gates(tiny_encoder(config), log_alpha=1.5)
    sizes = [(g.kind, g.layer, gate.size) for g, gate in gated_groups(encoder)]
    attention = [(layer, size) for kind, layer, size in sizes if kind == "heads"]
    assert attention == [(0, 1), (2, 4)]
    assert len(sizes) == 11
    assert ("conv", 1, 48) in sizes
    assert ("ffn2", 2, 80) in sizes
    assert all((p == 1.5).all() for p in log_alphas(encoder))


def test_some_kinds_alone():
    encoder = add_gates(tiny_encoder(), kinds=["conv"], whole=["ffn1"])
    gates = {(g.kind, gate.units is None) for g, gate in gated_groups(encoder)}
    assert gates == {("conv", False), ("ffn1", True)}
    only = add_gates(tiny_encoder(), kinds=[], whole=["heads"])
    assert {g.kind for g, _ in gated_groups(only)} == {"heads"}


def test_encoder_and_head_together():
    model = add_gates(speaker_encoder(), kinds=["heads", "adapter"])
    names = [group.name for group, _ in gated_groups(model)]
    assert names[0] == "encoder.encoder.layers.0.self_attn"
    assert names[-1] == "head.adapter_layers.3"
    assert len(names) == 3 + 4


@pytest.mark.parametrize("mode", [False, True])
def test_gates_are_in_the_mode_of_their_module(mode):
    encoder = add_gates(tiny_encoder().train(mode))
    assert all(gate.training == mode for _, gate in gated_groups(encoder))
    encoder.train(not mode)
    assert all(gate.training != mode for _, gate in gated_groups(encoder))


def test_every_named_tensor_is_there_and_has_the_units():
    """What rows, columns and shift name, in a model of uneven widths."""
    config = tiny_config(conv_group=[[48, 5], [48, 48], [48, 7]])
    model = speaker_encoder()
    model.encoder = tiny_encoder(config)
    tensors, seen = dict(model.named_parameters()), set()
    for group in model.prunable_groups():
        width = group.units * group.unit_size
        for name in group.input_weights:
            assert tensors[name].shape[0] % width == 0
        assert tensors[group.output_weight].shape[1] == width
        owned = {*group.input_weights, group.output_weight}
        owned |= {name for name in tensors if group.goes_with_last(name)}
        assert not owned & seen
        seen |= owned
        assert group.output_bias is None or group.output_bias in owned
    rest = {name.split(".", 1)[1] for name in set(tensors) - seen}
    rest = {name for name in rest if "final_layer_norm" not in name}
    assert all(
        name.startswith(("feature_projection", "pooling", "bottleneck"))
        or name.endswith(".3.bias")
        for name in rest
    )


def test_every_parameter_gets_a_gradient_from_the_outputs():
    """DistributedDataParallel stops at one that does not; all gates of a layer off."""
    encoder = add_gates(tiny_encoder(), whole=ENCODER_KINDS, log_alpha=0.0).train()
    for group, gate in gated_groups(encoder):
        gate.whole.log_alpha.data.fill_(100.0)
        if group.layer == 1:
            gate.units.log_alpha.data.fill_(-100.0)
    torch.manual_seed(0)
    states, _ = encoder(0.1 * noise(2, 16000))
    sum(state.square().mean() for state in states).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(
        p.grad.any()
        for name, p in encoder.named_parameters()
        if name.endswith("units.log_alpha") and ".layers.1." not in name
    )


def test_gradient_checkpointing_draws_the_same_gates_again():
    results = []
    for checkpointing in (False, True):
        encoder = tiny_encoder(gradient_checkpointing=checkpointing)
        encoder = set_gates(add_gates(encoder), "soft").train()
        torch.manual_seed(0)
        states = encoder.encode(noise(2, 40, 160))
        sum(state.square().mean() for state in states).backward()
        results.append([p.grad for p in encoder.parameters()])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_merged_lora_may_be_pruned_and_unmerged_not():
    encoder = inject_lora(tiny_encoder(), r=2)
    with pytest.raises(
        InputError, match=r"no parameter .*linear_q\.weight; merge LoRA"
    ):
        add_gates(encoder)
    add_gates(merge_lora(encoder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["head"]}, r"unknown kind 'head', expected one of \['conv', 'ffn1'"),
        ({"whole": ["layer"]}, "unknown kind 'layer'"),
        ({"floors": {"units": 2}}, "unknown kind 'units'"),
        ({"floors": {"heads": -1}}, "floor -1 of heads, expected 0 or more"),
        ({"floors": {"heads": 1}, "whole": ["heads"]}, "floor 1 of heads"),
        ({"floors": {"heads": 1}, "kinds": ["conv"]}, "floor 1 of heads"),
        ({"kinds": []}, "no kinds to gate"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        add_gates(tiny_encoder(), **options)


def test_models_that_take_no_gates():
    with pytest.raises(InputError, match="has gates already"):
        add_gates(add_gates(tiny_encoder()))
    with pytest.raises(InputError, match="frozen, expected frozen=False"):
        add_gates(tiny_encoder(frozen=True))
    with pytest.raises(InputError, match="adapter cannot go as a whole"):
        add_gates(speaker_encoder(), whole=["adapter"])
    model = speaker_encoder()
    model.head, model.encoder = MFA(48, 4), torch.nn.Identity()
    with pytest.raises(InputError, match="no units left to prune"):
        add_gates(model)
