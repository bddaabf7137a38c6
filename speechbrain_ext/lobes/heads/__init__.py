"""The Layer Adapter: one small network per hidden state.

    A h = W₂ ReLU(LN(W₁ h + b₁)) + b₂,      W₁ [H, C],  W₂ [D, H]

arXiv 2510.04213, section 2.1, with H = D = 128. Pruning may leave it fewer hidden units
H; its output keeps its width D, which the pooling expects.

Heads: all hidden states of an encoder → one embedding per utterance.

The three of arXiv 2510.04213, table 2, on states h₀ … h_L of width C:

    MFA            ASP([h₀; …; h_L]) → Linear
    Adapter-MFA    ASP([A₀ h₀; …; A_L h_L]) → Linear,   A_l = LayerAdapter
    weighted sum   ECAPA-TDNN(InstanceNorm(Σ_l softmax(w)_l h_l))

Each takes (states, lens) and gives [B, 1, E], as SpeechBrain's embedding models do;
``arguments`` are those of its constructor, from which a pretrained folder rebuilds it.
"""

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from torch import nn

from speechbrain_ext.lobes.w2v_bert import padding_mask
from speechbrain_ext.pruning.gates import NoGate
from speechbrain_ext.pruning.groups import PrunableGroup
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import full_precision


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


VARIANCE_FLOOR = 1e-5
# ECAPA-TDNN reflects up to 4 frames at either end, and must have them.
ECAPA_MIN_FRAMES = 5


class AttentiveStatisticsPooling(nn.Module):
    """Attention-weighted mean and standard deviation over time.

        α = softmax_t(W₂ BN(ReLU(W₁ x_t)))      one weight per channel and frame
        μ = Σ α x,   σ = √max(Σ α x² − μ², 1e−5)

    Okabe et al. 2018 (arXiv 1803.10963), channel-dependent as in ECAPA-TDNN, without
    its global context. Statistics are float32, also under autocast.

    Arguments
    ---------
    channels : int
        Width D of the input.
    hidden : int
        Width of the attention's bottleneck.
    """

    def __init__(self, channels, hidden):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv1d(channels, hidden, 1),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Conv1d(hidden, channels, 1),
        )

    def forward(self, x, padding=None):
        """x [B, T, D], padding [B, T] True in the padding → [B, 2D]."""
        scores = self.attention(x.transpose(1, 2)).float()  # [B, D, T]
        if padding is not None:
            scores = scores.masked_fill(padding.unsqueeze(1), float("-inf"))
        weights = scores.softmax(-1)
        with full_precision(x):
            frames = x.float().transpose(1, 2)
            if padding is not None:
                # 0 · NaN is NaN: what lies in the padding must not get through
                frames = frames.masked_fill(padding.unsqueeze(1), 0.0)
            mean = (weights * frames).sum(-1)
            power = (weights * frames.square()).sum(-1)
            std = (power - mean.square()).clamp(min=VARIANCE_FLOOR).sqrt()
            return torch.cat([mean, std], dim=-1)


class MFA(nn.Module):
    """All states concatenated, pooled, projected.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1.
    embedding_size : int
        Width E of the embedding.
    pooling_size : int
        Bottleneck of the attention; None takes C (the published 1024).
    normalise : bool
        BatchNorm on the pooled statistics, for training from random weights: their
        mean over utterances is then so large that all cosines begin near 1. The
        published model, which starts from a pretrained encoder, has none.
    """

    def __init__(
        self,
        input_size,
        n_states=25,
        embedding_size=256,
        pooling_size=None,
        normalise=False,
    ):
        super().__init__()
        self.arguments = {
            "input_size": input_size,
            "n_states": n_states,
            "embedding_size": embedding_size,
            "pooling_size": pooling_size,
            "normalise": normalise,
        }
        channels = input_size * n_states
        self.pooling = AttentiveStatisticsPooling(channels, pooling_size or input_size)
        self.norm = nn.BatchNorm1d(2 * channels) if normalise else nn.Identity()
        self.bottleneck = nn.Linear(2 * channels, embedding_size)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        x = torch.cat(list(states), dim=-1)
        pooled = self.pooling(x, padding_mask(x.shape[1], lens))
        return self.bottleneck(self.norm(pooled)).unsqueeze(1)


class AdapterMFA(nn.Module):
    """A small adapter on each state, then as :class:`MFA`.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1.
    adapter_size : int
        Width D of each adapter, also the attention's bottleneck.
    embedding_size : int
        Width E of the embedding.
    normalise : bool
        As in :class:`MFA`.
    hidden_sizes : list of int
        Hidden units of each adapter, where pruning left fewer than D.

    Example
    -------
    >>> head = AdapterMFA(1024)
    >>> sum(p.numel() for p in head.parameters())
    6160640
    """

    def __init__(
        self,
        input_size,
        n_states=25,
        adapter_size=128,
        embedding_size=256,
        normalise=False,
        hidden_sizes=None,
    ):
        super().__init__()
        self.arguments = {
            "input_size": input_size,
            "n_states": n_states,
            "adapter_size": adapter_size,
            "embedding_size": embedding_size,
            "normalise": normalise,
            "hidden_sizes": hidden_sizes,
        }
        hidden_sizes = hidden_sizes or [adapter_size] * n_states
        if len(hidden_sizes) != n_states:
            raise InputError(
                f"AdapterMFA: {len(hidden_sizes)} hidden_sizes, expected {n_states}"
            )
        self.adapter_layers = nn.ModuleList(
            LayerAdapter(input_size, hidden, adapter_size) for hidden in hidden_sizes
        )
        channels = adapter_size * n_states
        self.pooling = AttentiveStatisticsPooling(channels, adapter_size)
        self.norm = nn.BatchNorm1d(2 * channels) if normalise else nn.Identity()
        self.bottleneck = nn.Linear(2 * channels, embedding_size)

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        adapted = [
            adapter(state)
            for adapter, state in zip(self.adapter_layers, states, strict=True)
        ]
        x = torch.cat(adapted, dim=-1)
        pooled = self.pooling(x, padding_mask(x.shape[1], lens))
        return self.bottleneck(self.norm(pooled)).unsqueeze(1)

    def prunable_groups(self):
        """Hidden units of the adapters → list of PrunableGroup, for ``pruning``."""
        full = self.arguments["adapter_size"]
        return [
            adapter.prunable_group(f"adapter_layers.{number}", full)._replace(
                layer=number
            )
            for number, adapter in enumerate(self.adapter_layers)
        ]

    def resized(self, widths):
        """A new head with other hidden sizes: group name → units."""
        return type(self)(**{**self.arguments, "hidden_sizes": list(widths.values())})


class WeightedSumECAPA(nn.Module):
    """Softmax-weighted sum of the states, then SpeechBrain's ECAPA-TDNN.

    The sum is normalised to zero mean and unit variance over time, channel by channel,
    before it enters ECAPA-TDNN.

    Rows of different lengths run in groups of equal length: ECAPA's reflected borders
    and squeeze-excitation see the padding otherwise, and a padded batch would not
    equal its single utterances (SpeechBrain's own masking leaves the borders). A row
    needs five frames.

    Arguments
    ---------
    input_size : int
        Width C of the hidden states.
    n_states : int
        Their number, L + 1.
    embedding_size : int
        Width E of the embedding.
    channels : list of int
        Of ECAPA-TDNN; the paper's small one by default.
    """

    min_frames = ECAPA_MIN_FRAMES

    def __init__(
        self,
        input_size,
        n_states=25,
        embedding_size=256,
        channels=(512, 512, 512, 512, 1536),
    ):
        super().__init__()
        self.arguments = {
            "input_size": input_size,
            "n_states": n_states,
            "embedding_size": embedding_size,
            "channels": list(channels),
        }
        self.layer_weights = nn.Parameter(torch.zeros(n_states))
        self.ecapa_tdnn = ECAPA_TDNN(
            input_size, channels=list(channels), lin_neurons=embedding_size
        )

    def forward(self, states, lens=None):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        total = self.weighted_sum(states)
        if padding_mask(total.shape[1], lens) is None:
            return self._embed(total)
        frames = torch.round(lens.double() * total.shape[1]).long()
        out = None
        for length in frames.unique().tolist():
            rows = (frames == length).nonzero().squeeze(1)
            part = self._embed(total[rows, :length])
            out = part.new_zeros(len(frames), *part.shape[1:]) if out is None else out
            out = out.index_copy(0, rows, part)
        return out

    def weighted_sum(self, states):
        """L+1 states [B, T, C] → [B, T, C]."""
        weights = self.layer_weights.softmax(0)
        return sum(
            weight * state for weight, state in zip(weights, states, strict=True)
        )

    def _embed(self, x):
        """[B, T, C] without padding → [B, 1, E]."""
        if x.shape[1] < ECAPA_MIN_FRAMES:
            raise InputError(
                f"WeightedSumECAPA: a row of {x.shape[1]} frames, expected "
                f"{ECAPA_MIN_FRAMES} or more (0.115 s of w2v-BERT 2.0's input)"
            )
        normalised = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        return self.ecapa_tdnn(normalised)
