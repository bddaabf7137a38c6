"""Gated models with random gates, and what tests ask about them."""

import torch
from tiny_encoder import tiny_encoder

from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.pruning import add_gates
from speechbrain_ext.pruning.groups import gated_groups

ENCODER_KINDS = ("ffn1", "heads", "conv", "ffn2")
# log α → ẑ: a mixture of 0, values between, and 1; 0 and 1 only; mostly 0
GATES = {
    "soft": lambda random: 2.5 * random,
    "hard": lambda random: 100 * random.sign(),
    "sparse": lambda random: 2 * random - 4,
}


def set_gates(model, how, seed=0):
    """Draw every log α anew, one way of GATES: in place; gives the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in log_alphas(model):
            parameter.copy_(
                GATES[how](torch.randn(len(parameter), generator=generator))
            )
    return model


def close(model, *names):
    """Close all gates on units of the named groups."""
    for group, gate in gated_groups(model):
        if group.name in names:
            gate.units.log_alpha.data.fill_(-100.0)
    return model


def log_alphas(model):
    """All parameters of gates."""
    return [p for name, p in model.named_parameters() if name.endswith("log_alpha")]


def gated_encoder(how="soft", config=None, seed=0, **options):
    """A tiny encoder in eval mode with random weights and gates, in float64."""
    encoder = add_gates(tiny_encoder(config).double(), **options)
    return set_gates(encoder, how, seed)


def speaker_encoder(states=4):
    """A tiny encoder and Adapter-MFA in eval mode."""
    head = AdapterMFA(48, states, adapter_size=6, embedding_size=7)
    return SpeakerEncoder(tiny_encoder(), head).eval()


def size_of(model):
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def relative_error(found, expected):
    """‖found − expected‖ / ‖expected‖, the largest over pairs of tensors."""
    return max(
        float((one - other).norm() / other.norm())
        for one, other in zip(found, expected, strict=True)
    )
