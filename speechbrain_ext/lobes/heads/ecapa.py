"""ECAPA-TDNN's pooling and embedding, as three public programs have them.

    e = W BN([μ; σ]) + b,        μ, σ: attentive statistics of the last state

Desplanques et al. 2020 (arXiv 2005.07143):

                  attention           σ²                  std of the context
    SpeechBrain   conv-ReLU-BN-tanh   Σ α (x − μ)²        biased
    wespeaker     conv-tanh           Σ α x² − μ²         unbiased, + 1e−7
    VoxBlink2     conv-ReLU-BN-tanh   Σ α x² − μ²         unbiased, 1e−4 or more

and VoxBlink2 has a BatchNorm on the embedding.
"""

import torch
from torch import nn

from speechbrain_ext.lobes.cpu_inference import inference_on_cpu
from speechbrain_ext.lobes.encoder import Head, PrunableGroup, padding_mask
from speechbrain_ext.lobes.heads.pooling import (
    AttentiveStatisticsPooling,
    LastLinear,
)
from speechbrain_ext.lobes.heads.statistics import side_by_side
from speechbrain_ext.utils.errors import InputError, check_at_least

BOTTLENECK = 128  # of the attention
# Options of the attentive pooling
POOLINGS = {
    "speechbrain": {
        "activation": "relu+tanh",
        "variance_floor": 1e-12,
        "context_floor": 1e-12,
        "context_correction": 0,
        "centred": True,
    },
    "wespeaker": {"activation": "tanh", "variance_floor": 1e-7, "context_eps": 1e-7},
    "voxblink2": {
        "activation": "relu+tanh",
        "variance_floor": 1e-4,
        "context_floor": 1e-4,
    },
}


class ECAPAPooling(Head):
    """e = W BN(ASP(s)) + b, then perhaps BN: ECAPA-TDNN's pooling and embedding.

    Arguments
    ---------
    input_size : int
        Width D of the frames, the encoder's last state.
    n_states : int
        Of the encoder.
    embedding_size : int
        Width E.
    attention_channels : int
        Bottleneck of the attention.
    global_context : bool
        The attention sees mean and standard deviation over time.
    flavour : str
        Of the attention and its statistics, one of :data:`POOLINGS`.
    embedding_norm : bool
        BatchNorm on the embedding.
    attention_width : int, optional
        What pruning left of ``attention_channels``.
    layers : list of int
        [first, last] of the states that are read, side by side; None: the last one.

    Raises
    ------
    InputError
        An unknown flavour, a width below 1.
    """

    def __init__(
        self,
        input_size,
        n_states=1,
        embedding_size: int = 192,
        attention_channels: int = BOTTLENECK,
        global_context: bool = True,
        flavour: str = "speechbrain",
        embedding_norm: bool = False,
        attention_width: int | None = None,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        check_at_least("attention_channels", attention_channels, 1)
        if flavour not in POOLINGS:
            raise InputError(f"flavour={flavour!r}, expected {' or '.join(POOLINGS)}")
        input_size *= self.read_states(
            n_states, [n_states - 1] * 2 if layers is None else layers
        )
        self.pooling = AttentiveStatisticsPooling(
            input_size,
            attention_width or attention_channels,
            context=global_context,
            **POOLINGS[flavour],
        )
        self.norm = nn.BatchNorm1d(2 * input_size)
        self.bottleneck = LastLinear(2 * input_size, embedding_size)
        self.embedding_norm = (
            nn.BatchNorm1d(embedding_size) if embedding_norm else nn.Identity()
        )

    def forward(self, states, lens=None):
        """States [B, T, D], lens [B] → [B, 1, E]."""
        x = side_by_side(self.chosen(states))
        padding = padding_mask(x.shape[1], lens)
        if inference_on_cpu(x) and not self.training and len(x) > 1:
            # one row stays in the cache, and has no padding to be looked at
            counts = [x.shape[1]] * len(x)
            if padding is not None:
                counts = (~padding).sum(1).tolist()
            rows = [row[:count].unsqueeze(0) for row, count in zip(x, counts)]
            pooled = torch.cat([self.pooling(row) for row in rows])
        else:
            pooled = self.pooling(x, padding)
        return self.embedding_norm(self.bottleneck(self.norm(pooled))).unsqueeze(1)

    def prunable_groups(self):
        """The bottleneck of the attention → list of PrunableGroup, for ``pruning``."""
        first, *rest = self.pooling.attention
        place = "pooling.attention"
        tensors = [f"{place}.0.weight", f"{place}.0.bias"]
        for number, layer in enumerate(rest, 1):
            if isinstance(layer, nn.BatchNorm1d):
                names = ("weight", "bias", "running_mean", "running_var")
                tensors += [f"{place}.{number}.{name}" for name in names]
        return [
            PrunableGroup(
                name="pooling",
                kind="attention",
                units=first.out_channels,
                full=self.arguments["attention_channels"],
                input_weights=tuple(tensors),
                output_weight=f"{place}.{len(rest)}.weight",
                unit_dim=1,
            )
        ]

    def resized(self, widths):
        """A new head with another bottleneck: group name → units."""
        arguments = {**self.arguments, "attention_width": widths["pooling"]}
        return type(self)(**arguments)
