"""Attentive statistics pooling of one state, as wespeaker and ReDimNet have it.

    α = softmax_t(W₂ tanh(W₁ [x_t, mean, std]))
    e = W BN([Σ α x, √max(Σ α x² − (Σ α x)², 1e−7)])

Okabe et al. 2018 (arXiv 1803.10963), with the context of ECAPA-TDNN (arXiv 2005.07143).
"""

from torch import nn

from speechbrain_ext.lobes.encoder import Head, padding_mask
from speechbrain_ext.lobes.heads.pooling import AttentiveStatisticsPooling
from speechbrain_ext.utils.errors import check_at_least

FLOOR = 1e-7


class ASTP(Head):
    """Pooling of the last state that is read, then a linear map.

    Arguments
    ---------
    input_size : int
        Width C of the state.
    n_states : int
        Of the encoder; the last one is pooled.
    embedding_size : int
        Width E of the embedding.
    hidden : int
        Width of the attention's bottleneck.
    context : bool
        Mean and deviation over time enter the attention.
    norm, embedding_norm : bool
        BatchNorm of the pooled vector, and of the embedding.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all.

    Example
    -------
    >>> sum(p.numel() for p in ASTP(2304).parameters())
    2080832
    """

    def __init__(
        self,
        input_size,
        n_states=1,
        embedding_size=192,
        hidden: int = 128,
        context: bool = True,
        norm: bool = True,
        embedding_norm: bool = False,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        check_at_least("hidden", hidden, 1)
        self.read_states(n_states, layers)
        self.pooling = AttentiveStatisticsPooling(
            input_size,
            hidden,
            context=context,
            activation="tanh",
            variance_floor=FLOOR,
            context_eps=FLOOR,
        )
        self.norm = nn.BatchNorm1d(2 * input_size) if norm else nn.Identity()
        self.bottleneck = nn.Linear(2 * input_size, embedding_size)
        self.embedding_norm = nn.Identity()
        if embedding_norm:
            self.embedding_norm = nn.BatchNorm1d(embedding_size)

    def forward(self, states, lens=None):
        """States [B, T, C], lens [B] relative → [B, 1, E]."""
        x = self.chosen(states)[-1]
        pooled = self.pooling(x, padding_mask(x.shape[1], lens))
        embedding = self.bottleneck(self.norm(pooled))
        return self.embedding_norm(embedding).unsqueeze(1)
