"""Mean and standard deviation over time, then one linear map or two.

    e = W [μ; √(σ² + ε)] + b,     σ² unbiased

Snyder et al. 2018 (ICASSP), wespeaker's TSTP. Published:

    wespeaker's ResNets     ε = 1e-7
    CAM++                   no b, BatchNorm without γ and β on e; ε = 0, wespeaker 1e-7
    ERes2NetV2              ε = 1e-8
    with a second layer     W₂ BN(ReLU(e)) + b₂, BatchNorm without γ and β
"""

import torch
from torch import nn

from speechbrain_ext.lobes.encoder import Head, padding_mask
from speechbrain_ext.lobes.heads.pooling import moments
from speechbrain_ext.utils.errors import check_at_least
from speechbrain_ext.utils.precision import full_precision

FLOOR = 1e-14  # of a variance: keeps the gradient of its root finite at zero


class TSTP(Head):
    """Temporal statistics pooling of the last state.

    Arguments
    ---------
    input_size : int
        Width D of the state.
    n_states : int
        Of the encoder.
    embedding_size : int
        Width E.
    eps : float
        ε; below 1e-14 that is taken.
    bias : bool
        The linear map has b.
    embedding_norm : bool
        BatchNorm without γ and β on the embedding.
    second_layer : bool
        A second linear map.
    layers : list of int
        [first, last] of the states; the last one is read. None: all.

    Example
    -------
    >>> TSTP(64, embedding_size=8)([torch.rand(2, 50, 64)]).shape
    torch.Size([2, 1, 8])
    """

    def __init__(
        self,
        input_size,
        n_states=1,
        embedding_size=256,
        eps: float = 1e-7,
        bias: bool = True,
        embedding_norm: bool = False,
        second_layer: bool = False,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        check_at_least("eps", eps, 0, whole=False)
        self.read_states(n_states, layers)
        _, last, _ = self.states_read
        self.states_read = (last, last, n_states)
        self.eps = max(eps, FLOOR)
        self.bottleneck = nn.Linear(2 * input_size, embedding_size, bias=bias)
        self.embedding_norm = (
            nn.BatchNorm1d(embedding_size, affine=False)
            if embedding_norm
            else nn.Identity()
        )
        self.second = None
        if second_layer:
            self.second = nn.Sequential(
                nn.ReLU(),
                nn.BatchNorm1d(embedding_size, affine=False),
                nn.Linear(embedding_size, embedding_size),
            )

    def forward(self, states, lens=None):
        """States [B, T, D], lens [B] relative → [B, 1, E]."""
        (x,) = self.chosen(states)
        padding = padding_mask(x.shape[1], lens)
        with full_precision(x):
            mean, variance = moments(x.float().transpose(1, 2), padding)
            pooled = torch.cat([mean, (variance + self.eps).sqrt()], dim=-1)
        e = self.embedding_norm(
            self.bottleneck(pooled.to(self.bottleneck.weight.dtype))
        )
        return (e if self.second is None else self.second(e)).unsqueeze(1)
