"""w2v-BERT 2.0 at its full size, 580 M random weights: gated = pruned, counted = real.

About 5 GB of memory.
"""

import pytest
import torch
from random_gates import relative_error, set_gates, size_of
from tiny_encoder import noise
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pruning import (
    Budget,
    add_gates,
    expected_parameters,
    harden,
    prune,
)
from speechbrain_ext.pruning.groups import gated_groups

pytestmark = pytest.mark.slow
ENCODER = 580_492_096
KINDS = ("ffn1", "heads", "conv", "ffn2")


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


def test_target_of_eighty_percent(encoder, wavs):
    set_gates(encoder, "soft")
    cost = harden(Budget(encoder, sparsity=0.8))
    pruned = prune(encoder)
    assert size_of(pruned) == cost
    assert size_of(pruned) / ENCODER == pytest.approx(0.2, abs=0.005)
    error = relative_error(states_of(pruned, wavs), states_of(encoder, wavs))
    assert error < 1e-5
