"""What the benchmarks of encoders share."""

import torch

from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.profiling import count_macs

TOY = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}


class LastState(torch.nn.Module):
    """A head without arithmetic, so that the encoder alone is counted."""

    def forward(self, states, lens):
        return states[-1]


def macs_of(encoder, seconds=1.0):
    """Multiply-adds of an encoder alone."""
    return count_macs(SpeakerEncoder(encoder, LastState()), seconds)
