"""Multi-head factorised attentive pooling, with and without context.

    K = W_k Σ_l softmax(w^k)_l h_l + b_k,   V = W_v Σ_l softmax(w^v)_l h_l + b_v
    A = softmax_t(q(K))                                      [T, H], H heads
    e = W [Σ_t A_t1 V_t; …; Σ_t A_tH V_t] + b

MHFA (Peng et al. 2023, arXiv 2210.01273) has q(K) = W_q K_t + b_q. CA-MHFA (Peng et al.
2025, arXiv 2409.15234) looks at neighbouring frames: q is a convolution over time of an
odd kernel, without bias, zeros beyond the ends of each utterance.
"""

import torch
from torch import nn

from speechbrain_ext.lobes.encoder import Head, padding_mask
from speechbrain_ext.lobes.heads.pooling import LastLinear, weighted_sum
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import full_precision


class MHFA(Head):
    """Keys say where each head looks, values what it sees; both sum all states.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1.
    embedding_size : int
        Width E of the embedding.
    heads : int
        H.
    compression_size : int
        Width of keys and values.
    layers : list of int
        [first, last] of the states that are read, inclusive; None: all.

    Example
    -------
    >>> sum(p.numel() for p in MHFA(1024).parameters())
    2368114
    """

    def __init__(
        self,
        input_size,
        n_states=25,
        embedding_size=256,
        heads=64,
        compression_size=128,
        layers: list[int] | None = None,
    ):
        super().__init__()
        check_at_least("embedding_size", embedding_size, 1)
        check_at_least("heads", heads, 1)
        check_at_least("compression_size", compression_size, 1)
        n_states = self.read_states(n_states, layers)
        self.key_weights = nn.Parameter(torch.ones(n_states))
        self.value_weights = nn.Parameter(torch.ones(n_states))
        self.keys = nn.Linear(input_size, compression_size)
        self.values = nn.Linear(input_size, compression_size)
        self.attention = self._query(compression_size, heads)
        self.bottleneck = LastLinear(heads * compression_size, embedding_size)

    def _query(self, size, heads):
        return nn.Linear(size, heads)

    def _scores(self, keys, padding):
        """Keys [B, T, D] → scores [B, T, H]."""
        return self.attention(keys)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        states = self.chosen(states)
        padding = padding_mask(states[0].shape[1], lens)
        keys = self.keys(weighted_sum(states, self.key_weights))
        values = self.values(weighted_sum(states, self.value_weights))
        scores = self._scores(keys, padding).float()
        with full_precision(values):
            values = values.float()
            if padding is not None:
                scores = scores.masked_fill(padding.unsqueeze(-1), float("-inf"))
                values = values.masked_fill(padding.unsqueeze(-1), 0.0)
            pooled = scores.softmax(1).transpose(1, 2) @ values  # [B, H, D]
        return self.bottleneck(pooled.flatten(1)).unsqueeze(1)


class CAMHFA(MHFA):
    """MHFA whose heads (the published groups G) see ``kernel`` frames of the keys.

    Arguments
    ---------
    input_size, n_states, embedding_size, heads, compression_size, layers
        As in :class:`MHFA`.
    kernel : int
        Frames that a query sees, odd: 1 more than the published R.

    Raises
    ------
    InputError
        An even kernel, which has no frame in its middle.

    Example
    -------
    >>> sum(p.numel() for p in CAMHFA(1024, kernel=5).parameters())
    2400818
    """

    def __init__(
        self,
        input_size,
        n_states=25,
        embedding_size=256,
        heads=64,
        compression_size=128,
        kernel=3,
        layers: list[int] | None = None,
    ):
        check_at_least("kernel", kernel, 1)
        if kernel % 2 == 0:
            raise InputError(f"kernel={kernel}, expected an odd number of frames")
        self.__dict__["kernel"] = kernel  # a module takes no attribute before it is one
        super().__init__(
            input_size, n_states, embedding_size, heads, compression_size, layers
        )

    def _query(self, size, heads):
        border = self.kernel // 2
        return nn.Conv1d(size, heads, self.kernel, padding=border, bias=False)

    def _scores(self, keys, padding):
        """Keys [B, T, D] → scores [B, T, H]."""
        if padding is not None:  # zeros, as beyond the end of an utterance alone
            keys = keys.masked_fill(padding.unsqueeze(-1), 0.0)
        return self.attention(keys.transpose(1, 2)).transpose(1, 2)
