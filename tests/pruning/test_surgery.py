"""The pruned model computes what the gated one does, and is what its config says."""

import copy
import json

import pytest
import torch
from random_gates import (
    ENCODER_KINDS,
    GATES,
    close,
    gated_encoder,
    relative_error,
    set_gates,
    size_of,
    speaker_encoder,
)
from tiny_encoder import noise, randomise, tiny_config, tiny_encoder

from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pretrained import load_pretrained, save_pretrained
from speechbrain_ext.pruning import (
    add_gates,
    prune,
    remaining_parameters,
    structure,
)
from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.utils.weights import load_strictly

LAYER = "encoder.layers.{}.{}"
PARTS = {"ffn1": "ffn1", "heads": "self_attn", "conv": "conv_module", "ffn2": "ffn2"}
EMPTY = {
    "no heads in one layer": [(1, "heads")],
    "no first feed-forward": [(0, "ffn1")],
    "no second feed-forward": [(2, "ffn2")],
    "no channels": [(1, "conv")],
    "nothing in a layer": [(1, kind) for kind in PARTS],
    "nothing at all": [(layer, kind) for layer in range(3) for kind in PARTS],
}


def states_of(encoder, lens=None):
    """All hidden states of two rows of noise, where they are valid."""
    with torch.no_grad():
        states = encoder.encode(noise(2, 70, 160), lens)
    if lens is None:
        return states
    valid = torch.arange(70) < torch.round(lens * 70).unsqueeze(1)
    return [state[valid] for state in states]


def assert_same(gated, pruned):
    """All states in float64 to 1e-12 and in float32 to 1e-5, padded too."""
    assert relative_error(states_of(pruned), states_of(gated)) < 1e-12
    lens = torch.tensor([1.0, 0.5])
    assert relative_error(states_of(pruned, lens), states_of(gated, lens)) < 1e-12
    small = copy.deepcopy(pruned).float()
    assert relative_error(states_of(small), states_of(gated.float())) < 1e-5
    gated.double()


@pytest.mark.parametrize("whole", [(), ENCODER_KINDS], ids=["units", "units and whole"])
@pytest.mark.parametrize("how", GATES)
def test_gated_equals_pruned(how, whole):
    encoder = gated_encoder(how, whole=whole)
    pruned = prune(encoder)
    assert_same(encoder, pruned)
    dense = states_of(tiny_encoder().double())
    assert relative_error(states_of(pruned), dense) > 0.01  # and it was not idle
    assert size_of(pruned) == remaining_parameters(encoder) < 0.9 * size_of(encoder)
    assert structure(encoder)["parameters"] == size_of(pruned)


@pytest.mark.parametrize("kind", ENCODER_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_gated_equals_pruned_kind_by_kind(kind, seed):
    encoder = gated_encoder("soft", seed=seed, kinds=[kind])
    assert_same(encoder, prune(encoder))
    alone = gated_encoder("soft", seed=seed, kinds=[], whole=[kind])
    assert_same(alone, prune(alone))


@pytest.mark.parametrize("name", EMPTY)
def test_gated_equals_pruned_where_groups_are_empty(name):
    encoder = gated_encoder()
    gone = [LAYER.format(layer, PARTS[kind]) for layer, kind in EMPTY[name]]
    pruned = prune(close(encoder, *gone))
    assert_same(encoder, pruned)
    for layer, kind in EMPTY[name]:
        assert getattr(pruned.encoder.layers[layer], PARTS[kind]) is None
    left = pruned.state_dict()
    norms = [name + "_layer_norm" for name in gone]
    assert not any(tensor.startswith((*gone, *norms)) for tensor in left)
    assert size_of(pruned) == remaining_parameters(encoder)


def test_a_removed_unit_leaves_its_value_and_its_gate_row():
    """Published code kept value rows in the place of the GLU's gate rows."""
    encoder = add_gates(tiny_encoder(), kinds=["conv"])
    module = encoder.encoder.layers[0].conv_module
    module.gate.units.log_alpha.data[5] = -100.0
    pruned = prune(encoder).encoder.layers[0].conv_module
    kept = torch.arange(48) != 5
    both = torch.cat([kept, kept])
    for name, rows in (
        ("pointwise_conv1", both),
        ("depthwise_conv", kept),
        ("depthwise_layer_norm", kept),
    ):
        old, new = (getattr(m, name).weight for m in (module, pruned))
        assert torch.equal(new, old[rows])
    columns = module.pointwise_conv2.weight[:, kept]
    assert torch.equal(pruned.pointwise_conv2.weight, columns)


def test_configuration_rebuilds_the_pruned_model(tmp_path):
    """Through its JSON file, strictly, and layer_shapes agree with the tensors."""
    pruned = prune(close(gated_encoder(), LAYER.format(1, "self_attn")))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(pruned.config.to_dict()))
    again = W2VBertEncoder(path).double().eval()
    load_strictly(again, pruned.state_dict(), "pruned")
    assert all(torch.equal(*pair) for pair in zip(states_of(again), states_of(pruned)))
    assert pruned.config.use_attention[1] is False
    assert tiny_config().to_dict().keys() <= pruned.config.to_dict().keys()


def test_a_pretrained_folder_of_a_pruned_model(tmp_path):
    model = set_gates(add_gates(speaker_encoder()), "soft")
    wavs = 0.1 * noise(2, 16000)
    with torch.no_grad():
        expected = model(wavs)
        pruned = prune(model)
        save_pretrained(tmp_path / "folder", pruned)
        found = load_pretrained(tmp_path / "folder")(wavs)
    assert relative_error([found], [expected]) < 1e-5
    assert size_of(pruned) == remaining_parameters(model) < size_of(speaker_encoder())


def test_pruned_model_gets_gates_and_is_pruned_again():
    once = prune(gated_encoder("soft", seed=1))
    size = size_of(once)
    twice = set_gates(add_gates(once), "soft", seed=2)
    last = prune(twice)
    assert_same(twice, last)
    assert size_of(last) == remaining_parameters(twice) < size
    for before, after in zip(
        structure(once)["groups"], structure(last)["groups"], strict=True
    ):
        assert after["kept"] <= before["kept"] <= before["full"] == after["full"]


def test_pruning_leaves_the_gated_model_alone():
    encoder = gated_encoder()
    before = copy.deepcopy(encoder.state_dict())
    pruned = prune(encoder)
    after = encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not gated_groups(pruned)
    assert not pruned.training
    assert prune(encoder.train()).training


def test_pruning_without_gates_is_a_copy():
    encoder = tiny_encoder()
    again = prune(encoder)
    assert all(torch.equal(*pair) for pair in zip(states_of(again), states_of(encoder)))


def test_pruned_model_is_trainable():
    """No parameter of it is left without a gradient."""
    pruned = prune(close(gated_encoder(), LAYER.format(0, "conv_module"))).train()
    states = pruned.encode(noise(2, 30, 160))
    sum(state.square().mean() for state in states).backward()
    for name, parameter in pruned.named_parameters():
        assert parameter.grad is not None, name


def test_options_of_the_encoder_are_kept():
    config = tiny_config(normalise_variance=False)
    encoder = add_gates(tiny_encoder(config, gradient_checkpointing=True))
    pruned = prune(set_gates(encoder, "soft"))
    assert pruned.gradient_checkpointing
    wavs = 0.1 * noise(1, 16000)
    with torch.no_grad():
        expected, found = encoder.eval()(wavs)[0], pruned(wavs)[0]
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("how", ["soft", "sparse"])
def test_adapters_of_a_head(how):
    """At least one hidden unit stays in each, so that every state is heard."""
    head = set_gates(add_gates(randomise(AdapterMFA(24, 4, 6, 7)).eval()), how)
    states = list(noise(4, 3, 20, 24))
    lens = torch.tensor([1.0, 0.5, 0.7])
    pruned = prune(head)
    with torch.no_grad():
        assert relative_error([pruned(states, lens)], [head(states, lens)]) < 1e-5
    sizes = pruned.arguments["hidden_sizes"]
    assert min(sizes) >= 1
    assert sum(sizes) < 24
    assert size_of(pruned) == remaining_parameters(head)


def test_structure_is_json_and_complete():
    encoder = close(gated_encoder(), LAYER.format(1, "self_attn"))
    found = json.loads(json.dumps(structure(encoder)))
    assert found == structure(encoder)
    pruned = prune(encoder)
    assert structure(pruned) == found
    assert found["groups"][5] == {
        "name": "encoder.layers.1.self_attn",
        "layer": 1,
        "kind": "heads",
        "kept": 0,
        "full": 4,
    }
    assert len(found["groups"]) == 12


def test_golden_pruned_model_is_pruned_further(shared):
    """Uneven widths, a layer without attention, one without feed-forward."""
    folder = shared / "golden" / "released"
    encoder = randomise(
        W2VBertEncoder(folder / "pruned_adapter_mfa_encoder_config.json")
    )
    encoder = set_gates(add_gates(encoder.double().eval()), "soft")
    assert_same(encoder, prune(encoder))
