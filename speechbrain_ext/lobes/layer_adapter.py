"""The Layer Adapter: one small network per hidden state.

    A h = W₂ ReLU(LN(W₁ h + b₁)) + b₂,      W₁ [H, C],  W₂ [D, H]

arXiv 2510.04213, section 2.1, with H = D = 128. Pruning may leave it fewer hidden units
H; its output keeps its width D, which the pooling expects.
"""

from torch import nn

from speechbrain_ext.pruning.gates import NoGate
from speechbrain_ext.pruning.groups import PrunableGroup


class LayerAdapter(nn.Sequential):
    """[B, T, C] → [B, T, D].

    Arguments
    ---------
    input_size, hidden_size, output_size : int
        C, H and D.
    """

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__(
            nn.Linear(input_size, hidden_size),
            nn.LayerNorm(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, output_size),
        )
        self.gate = NoGate()

    def forward(self, x):
        """[B, T, C] → [B, T, D]."""
        gate = self.gate()
        first, norm, activation, last = (self[n] for n in range(4))
        x = activation(gate.layer_norm(first(x), norm))
        return last(gate.on_units(x))

    def prunable_group(self, name, full):
        """Its hidden units, seen from where it is called ``name``; ``full``: H once."""
        return PrunableGroup(
            name=name,
            kind="adapter",
            units=self[0].out_features,
            full=full,
            rows=(
                f"{name}.0.weight",
                f"{name}.0.bias",
                f"{name}.1.weight",
                f"{name}.1.bias",
            ),
            columns=f"{name}.3.weight",
        )
