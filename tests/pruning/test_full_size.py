"""w2v-BERT 2.0 and WavLM at their full size: gated = pruned, counted = real.

The slow tests have 580 M random weights and take about 5 GB of memory. The others count
a pruned model in the published format from its configuration alone: the expected number
is a sum by hand over what a pruned layer consists of.
"""

import json
import random

import pytest
import torch
from random_gates import close, relative_error, set_gates, size_of
from tiny_encoder import noise
from transformers import Wav2Vec2BertConfig, WavLMConfig

from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.profiling import profile_model
from speechbrain_ext.pruning import (
    Budget,
    add_gates,
    expected_parameters,
    harden,
    prune,
)
from speechbrain_ext.pruning.groups import gated_groups

ENCODER = 580_492_096
KINDS = ("ffn1", "heads", "conv", "ffn2")
WAVLM_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
}


@pytest.fixture(scope="module")
def encoder():
    """Random weights about those of a trained model, and gates of every kind."""
    torch.manual_seed(0)
    encoder = W2VBertEncoder(Wav2Vec2BertConfig()).eval()
    for parameter in encoder.parameters():
        if parameter.dim() == 1:  # else no bias and no norm would matter
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return add_gates(encoder, whole=KINDS)


@pytest.fixture(scope="module")
def wavs():
    return 0.1 * noise(1, 16000)


def states_of(encoder, wavs):
    with torch.no_grad():
        return encoder(wavs)[0]


def close_some(encoder):
    """Groups without any unit, one of each kind."""
    for group, gate in gated_groups(encoder):
        if KINDS.index(group.kind) == group.layer % 6:
            gate.units.log_alpha.data.fill_(-100.0)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["soft", "hard"])
def test_gated_equals_pruned_and_counted_is_real(encoder, wavs, how):
    close_some(set_gates(encoder, how))
    pruned = prune(encoder)
    assert None in [layer.self_attn for layer in pruned.encoder.layers]
    found, gated = states_of(pruned, wavs), states_of(encoder, wavs)
    assert len(found) == 25
    assert relative_error(found, gated) < 1e-5
    if how == "hard":
        assert float(expected_parameters(encoder).detach()) == size_of(pruned)


@pytest.mark.slow
def test_target_of_eighty_percent(encoder, wavs):
    set_gates(encoder, "soft")
    cost = harden(Budget(encoder, sparsity=0.8))
    pruned = prune(encoder)
    assert size_of(pruned) == cost
    assert size_of(pruned) / ENCODER == pytest.approx(0.2, abs=0.005)
    error = relative_error(states_of(pruned, wavs), states_of(encoder, wavs))
    assert error < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("how", ["soft", "hard"])
def test_wavlm_gated_equals_pruned_and_counted_is_real(how, wavs):
    """WavLM Large; layer 0, whose heads all read the table, has none of its own."""
    torch.manual_seed(0)
    config = WavLMConfig(**WAVLM_LARGE)
    encoder = WavLMEncoder(config).eval()
    for parameter in encoder.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    set_gates(add_gates(encoder), how)
    close(encoder, *(f"encoder.layers.{n}.attention" for n in (0, 7)))
    close(encoder, *(f"encoder.layers.{n}.feed_forward" for n in (7, 23)))
    pruned = prune(encoder)
    assert pruned.encoder.layers[0].attention is None
    found, gated = states_of(pruned, wavs), states_of(encoder, wavs)
    assert len(found) == 25
    assert relative_error(found, gated) < 1e-5
    if how == "hard":
        assert float(expected_parameters(encoder).detach()) == size_of(pruned)


# -- the published format --------------------------------------------------------------

HIDDEN, HEAD, KERNEL, POSITIONS, LAYERS = 1024, 64, 31, 73, 24
NORM = 2 * HIDDEN


def published_configuration(path, seed):
    """Uneven widths, with parts that are gone → (file, its lists)."""
    draw = random.Random(seed)
    heads = [draw.choice([0, 1, 3, 7, 16]) for _ in range(LAYERS)]
    units = [[draw.randrange(1, 1200) for _ in range(2)] for _ in range(LAYERS)]
    uses = [[draw.random() < 0.8 for _ in range(2)] for _ in range(LAYERS)]
    conv = [draw.randrange(1, 1024) for _ in range(LAYERS)]
    lists = {
        "num_attention_heads_group": heads,
        "use_attention": [n > 0 for n in heads],
        "intermediate_size_group": [
            [n * kept for n, kept in zip(*pair)] for pair in zip(units, uses)
        ],
        "use_feed_forward": uses,
        "conv_group": [[HIDDEN, n] for n in conv],
    }
    values = {**Wav2Vec2BertConfig().to_dict(), **lists, "prune": False}
    path.write_text(json.dumps(values))
    return path, lists


def parameters_by_hand(lists):
    """Sum over the layers; a part of no units is not there at all."""
    # projection of 160 inputs with its norm, final norm of every layer
    total = 2 * 160 + 160 * HIDDEN + HIDDEN + LAYERS * NORM
    for heads, pair, (_, channels) in zip(
        lists["num_attention_heads_group"],
        lists["intermediate_size_group"],
        lists["conv_group"],
    ):
        inner = heads * HEAD
        if heads:
            # three projections in, one out, relative keys, norm
            total += 3 * (HIDDEN + 1) * inner + (inner + 1) * HIDDEN
            total += POSITIONS * HEAD + NORM
        for units in pair:
            if units:
                total += (HIDDEN + 1) * units + (units + 1) * HIDDEN + NORM
        # values and gates of the GLU, taps, norm, out, norm before
        total += 2 * HIDDEN * channels + KERNEL * channels + 2 * channels
        total += channels * HIDDEN + NORM
    return total


def test_the_sum_by_hand_is_that_of_the_dense_model():
    lists = {
        "num_attention_heads_group": [16] * LAYERS,
        "intermediate_size_group": [[4096, 4096]] * LAYERS,
        "conv_group": [[HIDDEN, HIDDEN]] * LAYERS,
    }
    assert parameters_by_hand(lists) == ENCODER


def test_totals_come_out_of_the_configuration(tmp_path):
    for seed in range(3):
        path, lists = published_configuration(tmp_path / f"{seed}.json", seed)
        with torch.device("meta"):
            encoder = W2VBertEncoder(path)
        expected = parameters_by_hand(lists)
        assert count_parameters(encoder).total == expected
        assert profile_model(path)["encoder"] == expected


def test_golden_structure_has_as_many_parameters_as_its_checkpoint(shared):
    golden = shared / "golden" / "released"
    checkpoint = torch.load(golden / "pruned_adapter_mfa.pth", weights_only=True)
    weights = checkpoint["modules"]["spk_model"]
    found = sum(
        weight.numel()
        for name, weight in weights.items()
        if name.startswith("front.encoder.") and "masked_spec_embed" not in name
    )
    config = golden / "pruned_adapter_mfa_encoder_config.json"
    assert profile_model(config)["encoder"] == found
