"""Students of large speech encoders: SV-Mixer and its peers, a small Transformer.

    x₀ = Linear(LN(FrontEnd(waveform)))          50 frames a second, no positions
    x_l = Block_l(x_{l−1}),   l = 1 … L
    states: x₀, …, x_{L−1}, LN(x_L)

Heo et al. 2025 (arXiv 2509.14136). Front ends, a CNN or mel features, a teacher's or
the student's own: :mod:`speechbrain_ext.lobes.student`; what the blocks do, and how
large they are: :mod:`speechbrain_ext.lobes.mixing`; recordings of any length:
:mod:`speechbrain_ext.lobes.any_length`. The Transformer that SV-Mixer is compared with
has 4H² + 2·H·2H = 8H² weights a layer and 8TH² multiply-adds beside its attention's
2T²H.
"""

import torch
from torch import nn
from transformers import PretrainedConfig, Wav2Vec2Config

from speechbrain_ext.lobes.any_length import RULES, FramePlan
from speechbrain_ext.lobes.mixing import (
    PLACES,
    ChannelMixing,
    MixerLayer,
    TokenMixing,
)
from speechbrain_ext.lobes.student import Student, check_keys
from speechbrain_ext.lobes.wav2vec2 import check_transformer
from speechbrain_ext.lobes.waveform_convolutions import input_samples
from speechbrain_ext.utils.errors import InputError, check_at_least

CHOICES = {
    "block": ("sv_mixer", "mlp_mixer", "conv_mixer", "cycle_mlp"),
    "form": ("code", "drawing"),
    "any_length": RULES,
}
SWITCHES = ("local_global", "multi_scale", "grouped")


class MixerConfig(PretrainedConfig):
    """Sizes and kind of a student without attention.

    Arguments
    ---------
    hidden_size : int
        H.
    num_hidden_layers : int
        L.
    block : str
        ``sv_mixer``, or ``mlp_mixer`` (the same with all three switches off),
        ``conv_mixer``, ``cycle_mlp``.
    local_global, multi_scale, grouped : bool
        The paper's ablation of SV-Mixer's block: LGM, MSM, GCM.
    form : str
        ``code``: the block as its authors published it; ``drawing``: as in the paper.
    frames : int
        T of the time MLP: those of a training crop, 149 of 3 s.
    any_length : str
        What is done with other lengths: ``windows`` or ``resampled``.
    expansion : int
        Hidden width of the MLPs, in widths of what they map.
    group_size : int
        Channels of a group.
    front_end, normalise_variance
        As of :class:`Student`.
    layer_units : list of dict
        Of a pruned model: hidden widths of the MLPs of each layer, by their names.
    """

    model_type = "sv_mixer"

    def __init__(
        self,
        hidden_size=1024,
        num_hidden_layers=12,
        block="sv_mixer",
        local_global=True,
        multi_scale=True,
        grouped=True,
        form="code",
        frames=149,
        any_length="windows",
        expansion=4,
        group_size=128,
        hidden_dropout=0.1,
        feat_proj_dropout=0.1,
        layer_norm_eps=1e-5,
        conv_dim=(512, 512, 512, 512, 512, 512, 512),
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_bias=False,
        feat_extract_norm="group",
        feat_extract_activation="gelu",
        front_end="convolutions",
        normalise_variance=True,
        layer_units=None,
        **others,
    ):
        own = {k: v for k, v in locals().items() if k not in ("self", "others")}
        own.pop("__class__", None)
        for name, value in own.items():
            setattr(self, name, list(value) if isinstance(value, tuple) else value)
        super().__init__(**others)
        if self.block != "sv_mixer":
            self.local_global = self.multi_scale = self.grouped = False

    def groups_of(self, name):
        """G of the MLP of that name."""
        dense = self.form == "drawing" and name != "groups"
        if name == "token" or dense or not self.grouped:
            return 1
        return self.hidden_size // self.group_size

    @property
    def vanishing(self):
        """Names of MLPs that pruning may take away: a norm serves others as well."""
        beside = self.local_global and self.form == "code"
        return ("slow", "token") if beside else ("slow",)

    def full_units(self):
        """Name → hidden width of every MLP of a layer, nothing pruned."""
        units = {}
        if self.block in ("sv_mixer", "mlp_mixer"):
            units["token"] = self.expansion * self.frames
        wide = self.expansion * self.hidden_size
        if self.multi_scale:
            units["slow"] = wide
        units["fast"] = wide
        if self.grouped and self.form == "drawing":
            units["groups"] = wide
        return units

    def units_by_layer(self):
        """Name → hidden width of every MLP, of each layer."""
        return self.layer_units or [self.full_units()] * self.num_hidden_layers

    def check(self):
        """InputError: an unknown key, or a value without a meaning."""
        check_keys(self)
        for name in ("hidden_size", "frames", "expansion", "group_size"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("num_hidden_layers", self.num_hidden_layers, 1)
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                expected = ", ".join(known)
                raise InputError(f"{name}: {value!r}, expected one of {expected}")
        for name in SWITCHES:
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name}: {value!r}, expected true or false")
        if self.grouped and self.hidden_size % self.group_size:
            raise InputError(
                f"group_size: {self.group_size}, expected a divisor of hidden_size "
                f"{self.hidden_size}"
            )
        if self.layer_units is not None:
            self._check_units()

    def _check_units(self):
        full = self.full_units()
        if len(self.layer_units) != self.num_hidden_layers:
            raise InputError(
                f"layer_units: {len(self.layer_units)} entries, expected "
                f"{self.num_hidden_layers}, num_hidden_layers"
            )
        for number, units in enumerate(self.layer_units):
            if set(units) != set(full):
                raise InputError(
                    f"layer_units: layer {number} has {sorted(units)}, expected "
                    f"{sorted(full)}"
                )
            for name, width in units.items():
                groups = self.groups_of(name)
                least = 0 if name in self.vanishing else groups
                fits = type(width) is int and least <= width <= full[name]
                if not fits or width % groups:
                    raise InputError(
                        f"layer_units: layer {number}, {name} {width!r}, expected a "
                        f"multiple of {groups}, {least} to {full[name]}"
                    )


class MixerStack(nn.Module):
    """The layers, and the LayerNorm behind them."""

    pre_norm = True

    def __init__(self, config, attention_class, normalised):
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            MixerLayer(config, units, number == config.num_hidden_layers - 1)
            for number, units in enumerate(config.units_by_layer())
        )
        self.layer_norm = None
        if normalised:
            self.layer_norm = nn.LayerNorm(
                config.hidden_size, eps=config.layer_norm_eps
            )


class SVMixerEncoder(Student):
    """SV-Mixer and the mixers that it was compared with.

    Arguments are those of :class:`~speechbrain_ext.lobes.student.Student`; of
    ``source`` the keys are those of :class:`MixerConfig`.

    Example
    -------
    >>> encoder = SVMixerEncoder({
    ...     "hidden_size": 32, "num_hidden_layers": 2, "group_size": 16, "frames": 49,
    ...     "conv_dim": [8] * 7,
    ... })
    >>> states, lens = encoder(torch.rand(2, 16000) - 0.5)
    >>> len(states), states[-1].shape
    (3, torch.Size([2, 49, 32]))
    """

    title = "SV-Mixer"
    config_class = MixerConfig
    prefix = "svmixer."
    lora_targets = int8_layers = ()
    stack_class = MixerStack
    widths_by_layer = ("layer_units",)

    def check_config(self, source):
        """InputError: a configuration that cannot be built."""
        self.check_front_end(source)
        self.config.check()

    @property
    def fitting_samples(self):
        """Fewest and most samples of the frames of the time MLP; None without one."""
        config = self.config
        if not any(units.get("token") for units in config.units_by_layer()):
            return None
        shape = config.conv_kernel, config.conv_stride
        fewest, more = (input_samples(config.frames + n, *shape) for n in (0, 1))
        return fewest, more - 1

    def encode(self, x, lens=None):
        """Waveform [B, T] and its lengths → L+1 states [B, T', D]."""
        x, _, padding = self.projected(x, lens)
        batch, total = x.shape[:2]
        if padding is None:
            counts = torch.full((batch,), total, device=x.device)
        else:
            counts = (~padding).sum(1)
        config, stack = self.config, self.encoder
        plan = FramePlan(counts, total, config.frames, config.any_length, padding)
        x = stack.dropout(x)
        states = [x]
        for layer in stack.layers:
            x = self.checkpointed(layer, x, plan)
            states.append(x)
        if stack.layer_norm is not None:
            states[-1] = stack.layer_norm(x)
        return states

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        kinds = {"token mixing": TokenMixing, "channel mixing": ChannelMixing}
        return {**self.front_end_kinds(), **kinds}

    def resize_layers(self, config, widths):
        """Set in ``config`` the hidden widths of every layer's MLPs."""
        config.layer_units = [
            {
                part: widths[f"encoder.layers.{number}.{PLACES[part]}"]
                * config.groups_of(part)
                for part in layer.units
            }
            for number, layer in enumerate(self.encoder.layers)
        ]


class TransformerStudentConfig(Wav2Vec2Config):
    """Of wav2vec 2.0, pre-norm, with the sizes of the paper's Transformer student.

    ``num_conv_pos_embeddings`` 0: no positions. ``front_end`` and
    ``normalise_variance``: see :class:`~speechbrain_ext.lobes.student.Student`.
    """

    model_type = "transformer_student"

    def __init__(self, **values):
        defaults = {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "intermediate_size": 2048,
            "do_stable_layer_norm": True,
            "feat_proj_dropout": 0.1,
            "front_end": "convolutions",
            "normalise_variance": True,
        }
        super().__init__(**{**defaults, **values})


class TransformerStudent(Student):
    """The student that SV-Mixer is compared with.

    A pre-norm Transformer behind the same front end, its feed-forward width twice H,
    with positions by convolution as its teachers have them. Arguments are those of
    :class:`~speechbrain_ext.lobes.student.Student`.
    """

    title = "Transformer student"
    config_class = TransformerStudentConfig
    prefix = "transformer_student."

    def check_config(self, source):
        """InputError: a configuration that cannot be built."""
        check_keys(self.config, *self.widths_by_layer, "repeat_last")
        self.check_front_end(source)
        check_transformer(self.config, source)

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        kinds = super().layer_kinds()
        del kinds["convolutions"]
        if self.encoder.pos_conv_embed is None:
            del kinds["positions"]
        return {**self.front_end_kinds(), **kinds}
