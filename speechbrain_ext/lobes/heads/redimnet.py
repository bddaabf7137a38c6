"""Weighted sum of the hidden states, then ReDimNet.

    ECAPAPooling(ReDimNet(W Σ_l softmax(w)_l h_l))            W: from width to bins

One of the back ends of SV-Mixer's paper (arXiv 2509.14136), which does not say how the
two are joined: here a linear map takes the place of ReDimNet's mel bins.
"""

import torch
from torch import nn

from speechbrain_ext.lobes.encoder import Head, shared_copy
from speechbrain_ext.lobes.heads.ecapa import ECAPAPooling
from speechbrain_ext.lobes.heads.pooling import weighted_sum
from speechbrain_ext.lobes.redimnet import ReDimNet
from speechbrain_ext.utils.precision import full_precision


class WeightedSumReDimNet(Head):
    """Softmax-weighted sum of the states, ReDimNet, pooling as of ECAPA-TDNN.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number.
    embedding_size : int
        Width E of the embedding.
    size : str
        Of :class:`~speechbrain_ext.lobes.redimnet.ReDimNet`.
    network : dict
        Its other arguments, as ``bins`` and ``stages_setup``.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all.
    """

    def __init__(
        self,
        input_size: int,
        n_states: int = 1,
        embedding_size: int = 192,
        size: str = "B0",
        network: dict | None = None,
        layers: list[int] | None = None,
    ):
        super().__init__()
        self.layer_weights = nn.Parameter(
            torch.zeros(self.read_states(n_states, layers))
        )
        self.network = ReDimNet(size, **(network or {}))
        self.projection = nn.Linear(input_size, self.network.bins)
        self.pooling = ECAPAPooling(self.network.hidden_size, 1, embedding_size)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        x = weighted_sum(self.chosen(states), self.layer_weights)
        with full_precision(x):  # its small maps gain nothing from less
            x = self.projection(x.to(self.projection.weight.dtype))
            states = self.network.encode(x, lens)
            return self.pooling(states, self.network.output_lens(x, lens))

    def graph_form(self):
        """With those of its parts."""
        form = shared_copy(self)
        form.network = self.network.graph_form()
        form.pooling = self.pooling.graph_form()
        return form
