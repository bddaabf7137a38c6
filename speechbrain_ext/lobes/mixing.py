"""Blocks of students without attention, of which SV-Mixer's is the first.

    x ← x + Tokens(LN x)        along time, for each channel
    x ← x + Channels(LN x)      along channels, for each frame

    MLP-Mixer   Tokens:   W₂ GELU(W₁ x)                             T → 4T → T
                Channels: W₂ GELU(W₁ x)                             H → 4H → H
    SV-Mixer    Tokens:   that + DW₃(GELU(DW₇ x))                                   LGM
                Channels: y = fast(x) + up(slow(pool x))                            MSM
                          W₆ GELU(Conv₃ y), all but W₆ in G groups of 128           GCM
    ConvMixer   Tokens:   GELU(DW₉ x)
    CycleMLP    Tokens:   W x′,   channel c of x′ from frame t + (c mod 3) − 1

Heo et al. 2025 (arXiv 2509.14136), as the code of its authors has it: DW is a depthwise
convolution, ``fast`` and ``slow`` are MLPs like MLP-Mixer's, pool the mean of two
frames, up linear interpolation. Their drawing differs, and is the ``form`` "drawing":
one depthwise convolution of 3 before the time MLP, the two MLPs dense (MSM), behind
them a layer of its own for grouped ones (GCM). Tolstikhin et al. 2021 (2105.01601),
Trockman and Kolter 2022 (2201.09792), Chen et al. 2021 (2107.10224).

Weights of a layer less biases and norms, and multiply-adds of T frames:

    SV-Mixer    8T² + 10H + H² (16 + 3 + G) / G     8T²H + TH (10 + H (11 + G) / G)
                                                    + ⌊T/2⌋ 8H² / G
    MLP-Mixer   8T² + 8H²                           8T²H + 8TH²
    CycleMLP    9H²                                 9TH²

The time MLP has a fixed T; what it does with another number of frames is the rule of
:mod:`speechbrain_ext.lobes.any_length`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.conformer import depthwise
from speechbrain_ext.lobes.cpu_inference import (
    Linear,
    activated,
    gelu,
    linear,
    plain_on_cpu,
    watched,
)
from speechbrain_ext.lobes.encoder import PrunableGroup

# Taps of depthwise convolutions: SV-Mixer's two and that of its drawing, ConvMixer's
LOCAL, LOCAL_SECOND, LOCAL_DRAWN, CONV_MIXER = 7, 3, 3, 9
CYCLE = 3  # frames that CycleMLP's channels come from in turn
MIXED = 3  # taps of the grouped convolution behind the two scales

# Where in a layer the MLPs are, by their names in a configuration.
PLACES = {
    "token": "token_mixing.over_time",
    "slow": "channel_mixing.slow",
    "fast": "channel_mixing.fast",
    "groups": "group_mixing.fast",
}


# -- parts -----------------------------------------------------------------------------


class Depthwise(nn.Conv1d):
    """Every channel for itself, zeros around: [B, T, C] → [B, T, C]."""

    def __init__(self, channels, taps):
        super().__init__(channels, channels, taps, groups=channels)

    def forward(self, x):
        """[B, T, C] → the same."""
        around = self.kernel_size[0] // 2
        return depthwise(x, self.weight, self.bias, around, around)


# Frames from which a CPU computes one group after the other: of fewer, threads share
# out the groups, in down to half the time (docs/NOTES.md).
BY_GROUP = 400


class GroupedLinear(nn.Module):
    """A linear map for each of G groups: [G, N, in / G] → [G, N, out / G].

    ``weight`` [out, in / G] has the rows of one group after those of another.
    """

    def __init__(self, width_in, width_out, groups):
        super().__init__()
        like = nn.Conv1d(width_in, width_out, 1, groups=groups)
        self.weight = nn.Parameter(like.weight.detach().squeeze(-1))
        self.bias = nn.Parameter(like.bias.detach())
        self.groups = groups

    def forward(self, x):
        """[G, N, in / G] → [G, N, out / G]."""
        weight = self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return torch.baddbmm(self.bias.view(self.groups, 1, -1), x, weight)


class ChannelMLP(nn.Module):
    """W₂ GELU(W₁ x) of G groups of channels: [B, T, H] → [B, T, H].

    ``units`` is the hidden width of all groups together.
    """

    def __init__(self, width, units, groups):
        super().__init__()
        self.groups = groups
        kind = Linear if groups == 1 else lambda *size: GroupedLinear(*size, groups)
        self.up, self.down = kind(width, units), kind(units, width)

    def forward(self, x):
        """[B, T, H] → the same."""
        if self.groups == 1:
            return self.down(activated(self.up, gelu, x))
        shape = x.shape
        x = x.flatten(0, 1)
        layers = self.up, self.down
        one_by_one = len(x) >= BY_GROUP and plain_on_cpu(x, self.up.weight)
        if one_by_one and not any(map(watched, layers)):
            return self._by_group(x).view(shape)
        x = x.unflatten(1, (self.groups, -1)).transpose(0, 1)
        y = self.down(gelu(self.up(x)))  # [G, B T, H / G]
        return y.transpose(0, 1).reshape(shape)

    def _by_group(self, x):
        """[N, H] → the same, one group after the other, while it is in the cache."""
        parts = (
            layer.chunk(self.groups)
            for layer in (self.up.weight, self.up.bias, self.down.weight)
        )
        width = x.shape[1] // self.groups
        bias, y = self.down.bias.split(width), torch.empty_like(x)
        for group, (up, up_bias, down) in enumerate(zip(*parts)):
            place = slice(group * width, (group + 1) * width)
            inner = linear(x[:, place], up, up_bias, gelu)
            y[:, place] = linear(inner, down, bias[group])
        return y


class TimeMLP(nn.Module):
    """W₂ GELU(W₁ x) along W frames, the same for all channels: [N, W, C] → the same."""

    def __init__(self, frames, units):
        super().__init__()
        self.up, self.down = Linear(frames, units), Linear(units, frames)

    def forward(self, x):
        """[N, W, C] → the same."""
        x = x.transpose(1, 2).contiguous()
        return self.down(activated(self.up, gelu, x)).transpose(1, 2)


class CycleLinear(Linear):
    """CycleMLP's: channels come from the frame before, this one and the next in turn.

    [B, T, C] → [B, T, C], zeros before the first frame and behind the last.
    """

    def forward(self, x):
        """[B, T, C] → the same."""
        x = F.pad(x, (0, 0, CYCLE // 2, CYCLE // 2))
        before, here, behind = x[:, :-2], x[:, 1:-1], x[:, 2:]
        turn = torch.arange(x.shape[2], device=x.device) % CYCLE
        y = torch.where(turn == 0, before, torch.where(turn == 1, here, behind))
        return super().forward(y)


# -- along time ------------------------------------------------------------------------


class TokenMixing(nn.Module):
    """x + Tokens(LN x): [B, T, H] → [B, T, H].

    Arguments
    ---------
    config : MixerConfig
    units : int
        Hidden width of the time MLP; 0: there is none.
    """

    def __init__(self, config, units):
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.drawn = config.form == "drawing"
        self.kind = config.block
        if config.block == "cycle_mlp":
            self.cycle = CycleLinear(width, width)
        elif config.block == "conv_mixer":
            self.local1 = Depthwise(width, CONV_MIXER)
        elif config.local_global:
            self.local1 = Depthwise(width, LOCAL_DRAWN if self.drawn else LOCAL)
            if not self.drawn:
                self.local2 = Depthwise(width, LOCAL_SECOND)
        self.over_time = TimeMLP(config.frames, units) if units else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x, plan):
        """[B, T, H], FramePlan → [B, T, H]."""
        y = plan.cleared(self.norm(x))
        if self.kind == "cycle_mlp":
            return x + self.dropout(self.cycle(y))
        if self.kind == "conv_mixer":
            return x + self.dropout(gelu(self.local1(y)))
        if not hasattr(self, "local1"):  # MLP-Mixer
            return x + self.dropout(plan.applied(self.over_time, y))
        if self.drawn:
            return x + self.dropout(plan.applied(self.over_time, self.local1(y)))
        local = self.local2(plan.cleared(gelu(self.local1(y))))
        if self.over_time is not None:
            local = local + plan.applied(self.over_time, y)
        return x + self.dropout(local)


# -- along channels --------------------------------------------------------------------


class ChannelMixing(nn.Module):
    """x + Channels(LN x): [B, T, H] → [B, T, H].

    Arguments
    ---------
    config : MixerConfig
    slow, fast : int
        Hidden widths of the MLPs at half and at full rate; 0: there is none.
    groups : int
        G of both.
    fused : bool
        Whether the grouped convolution and the 1×1 one come behind their sum.
    dropout : float
    """

    def __init__(self, config, slow, fast, groups, fused, dropout):
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.slow = ChannelMLP(width, slow, groups) if slow else None
        self.fast = ChannelMLP(width, fast, groups)
        if fused:
            self.mix1 = nn.Conv1d(width, width, MIXED, padding=1, groups=groups)
            self.mix2 = Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, plan):
        """[B, T, H], FramePlan → [B, T, H]."""
        y = self.norm(x)
        mixed = self.fast(y)
        if self.slow is not None:
            mixed = mixed + plan.doubled(self.slow(plan.halved(y)))
        if hasattr(self, "mix1"):
            mixed = plan.cleared(mixed).transpose(1, 2)
            mixed = self.mix2(gelu(self.mix1(mixed).transpose(1, 2)))
        return x + self.dropout(mixed)


# -- a layer ---------------------------------------------------------------------------


class MixerLayer(nn.Module):
    """One block: [B, T, H] → [B, T, H].

    Arguments
    ---------
    config : MixerConfig
    units : dict
        Name of every MLP → its hidden width, of ``config.full_units()``.
    last : bool
        Of the last layer's channel mixing there is no dropout.
    """

    def __init__(self, config, units, last=False):
        super().__init__()
        self.units = units
        drawn = config.form == "drawing"
        dropout = 0.0 if last else config.hidden_dropout
        self.token_mixing = TokenMixing(config, units.get("token", 0))
        self.channel_mixing = ChannelMixing(
            config,
            units.get("slow", 0),
            units["fast"],
            config.groups_of("fast"),
            config.grouped and not drawn,
            dropout,
        )
        self.group_mixing = None
        if "groups" in units:
            grouped = (0, units["groups"], config.groups_of("groups"), False)
            self.group_mixing = ChannelMixing(config, *grouped, dropout)

    def forward(self, x, plan):
        """[B, T, H], FramePlan → [B, T, H]."""
        x = self.channel_mixing(self.token_mixing(x, plan), plan)
        return x if self.group_mixing is None else self.group_mixing(x, plan)

    def prunable_groups(self, config):
        """Hidden units of the MLPs; of a grouped one a unit is one in every group."""
        full, groups = config.full_units(), []
        for part, units in self.units.items():
            name, together = PLACES[part], config.groups_of(part)
            groups.append(
                PrunableGroup(
                    name=name,
                    kind="token" if part == "token" else "ffn",
                    units=units // together,
                    full=full[part] // together,
                    input_weights=(f"{name}.up.weight", f"{name}.up.bias"),
                    output_weight=f"{name}.down.weight",
                    output_bias=f"{name}.down.bias",
                    removed_with_last=(name,) if part in config.vanishing else (),
                )
            )
        return groups
