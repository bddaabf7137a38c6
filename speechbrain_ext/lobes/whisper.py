"""The encoder of Whisper as a SpeechBrain lobe: waveform → all hidden states.

    h₀ = GELU(conv₂(GELU(conv₁ m))) + p          m log-mel, p sinusoids, 50 Hz
    h ← h + Attention(LN h)                      softmax(q·k/√d) v
    h ← h + W₂ GELU(W₁ LN h)                     each of the L layers

Radford et al. 2023 (arXiv 2212.04356, section 2.2), any size: mel bands, widths, heads
and layers are those of the configuration. Names of weights are those of transformers'
``WhisperEncoder``. A recording is not filled up to 30 s with silence: p is cut to the
frames that there are, and what lies behind the end of a row is zero before each
convolution, as where a recording ends.

The sinusoids are no parameters: transformers does not train them either. A layer drop
of the configuration is left out, because a layer that is skipped gives no state; its
dropouts are in force in training. The configuration of a pruned model lists its widths
under three more keys: ``num_attention_heads_group`` [L], ``ffn_dim_group`` [L] and
``conv1_channels``.
"""

import copy
import math
from typing import Literal, NamedTuple

import torch
from torch import nn
from transformers import WhisperConfig

from speechbrain_ext.features.whisper import HOP, WhisperFeatures
from speechbrain_ext.lobes.attention import fused
from speechbrain_ext.lobes.cpu_inference import Linear, activated, activation, gelu
from speechbrain_ext.lobes.encoder import (
    Encoder,
    PrunableGroup,
    padding_mask,
    shared_copy,
)
from speechbrain_ext.lobes.int8 import each
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import valid_counts
from speechbrain_ext.utils.weights import load_strictly, read_source

# Where a file has the encoder, the whole model's names first; and what else it has.
PREFIXES = ("model.encoder.", "encoder.")
UNUSED = (
    *("decoder.", "model.decoder.", "proj_out."),
    *("projector.", "classifier.", "layer_weights"),  # of a classifier of recordings
)
SIZES = (
    *("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
    *("num_mel_bins", "max_source_positions", "conv1_channels"),
)
STRIDE = 2  # mel frames of a state
LONGEST_WAVE = 10000  # of the sinusoids, in radians per 2π positions


class LayerShape(NamedTuple):
    """Widths of one layer; 0 leaves that part out."""

    heads: int
    ffn: int


class FeedForwardLinear(Linear):
    """fc1 and fc2, which a profile tells from the linear maps of the attention."""


class SelfAttention(nn.Module):
    """Multi-head self-attention; the keys have no bias, softmax would not see it."""

    def __init__(self, hidden, heads, head_dim, dropout=0.0):
        super().__init__()
        inner = heads * head_dim
        self.head_dim = head_dim
        self.dropout = dropout
        self.k_proj = Linear(hidden, inner, bias=False)
        self.v_proj = Linear(hidden, inner)
        self.q_proj = Linear(hidden, inner)
        self.out_proj = Linear(inner, hidden)

    def forward(self, x, padding=None):
        """[B, T, C] → [B, T, C]; ``padding`` [B, T] is True where to look away."""
        query, key, value = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, T, d]
            for y in each((self.q_proj, self.k_proj, self.v_proj), x)
        )
        dropout = self.dropout if self.training else 0.0
        # without a bias it is faster than blocks of scores, on CPUs too
        return self.out_proj(fused(query, key, value, padding, dropout))


class WhisperLayer(nn.Module):
    """One layer, normalised before its parts: [B, T, C] → [B, T, C]."""

    def __init__(self, config, shape):
        super().__init__()
        hidden = config.d_model
        self.shape, self.full = shape, full_shape(config)
        self.head_dim = hidden // self.full.heads
        self.dropout = nn.Dropout(config.dropout)
        self.self_attn = self.fc1 = None
        if shape.heads:
            self.self_attn = SelfAttention(
                hidden, shape.heads, self.head_dim, config.attention_dropout
            )
            self.self_attn_layer_norm = nn.LayerNorm(hidden)
        if shape.ffn:
            self.activation = activation(
                config.activation_function, "activation_function"
            )
            self.activation_dropout = nn.Dropout(config.activation_dropout)
            self.fc1 = FeedForwardLinear(hidden, shape.ffn)
            self.fc2 = FeedForwardLinear(shape.ffn, hidden)
            self.final_layer_norm = nn.LayerNorm(hidden)

    def forward(self, x, padding=None):
        """[B, T, C] → [B, T, C]; ``padding`` [B, T] is True in the padding."""
        if self.self_attn is not None:
            attended = self.self_attn(self.self_attn_layer_norm(x), padding)
            x = x + self.dropout(attended)
        if self.fc1 is not None:
            inner = activated(self.fc1, self.activation, self.final_layer_norm(x))
            x = x + self.dropout(self.fc2(self.activation_dropout(inner)))
        return x

    def prunable_groups(self):
        """What may be removed from this layer."""
        heads = PrunableGroup(
            name="self_attn",
            kind="heads",
            units=self.shape.heads,
            full=self.full.heads,
            unit_size=self.head_dim,
            input_weights=(
                *("self_attn.q_proj.weight", "self_attn.q_proj.bias"),
                "self_attn.k_proj.weight",
                *("self_attn.v_proj.weight", "self_attn.v_proj.bias"),
            ),
            output_weight="self_attn.out_proj.weight",
            output_bias="self_attn.out_proj.bias",
            removed_with_last=("self_attn", "self_attn_layer_norm"),
        )
        ffn = PrunableGroup(
            name="fc1",
            kind="ffn",
            units=self.shape.ffn,
            full=self.full.ffn,
            input_weights=("fc1.weight", "fc1.bias"),
            output_weight="fc2.weight",
            output_bias="fc2.bias",
            removed_with_last=("fc1", "fc2", "final_layer_norm"),
        )
        return [heads, ffn]


class Positions(nn.Module):
    """p [P, C]: sines in the first half of the channels, cosines in the second.

    Vaswani et al. 2017 (arXiv 1706.03762, section 3.5), wavelengths of 2π to 20000π.
    """

    def __init__(self, positions, channels):
        super().__init__()
        half = channels // 2
        rates = torch.arange(half) * (-math.log(LONGEST_WAVE) / max(1, half - 1))
        angles = torch.arange(positions).unsqueeze(1) * rates.exp()
        self.register_buffer("weight", torch.cat([angles.sin(), angles.cos()], dim=1))

    def forward(self, frames):
        """The first ``frames`` rows: [T', C]."""
        # not a slice: a graph with any number of frames would not take one
        return self.weight[torch.arange(frames, device=self.weight.device)]


class WhisperEncoder(Encoder):
    """Waveform → (L+1 hidden states, lengths).

    Its parameters are transformers' less the table of positions (``max_source_positions
    · d_model``, a buffer here), with ``last_state="raw"`` also less ``layer_norm``.

    Arguments
    ---------
    source : str, Path, WhisperConfig or dict
        A hub id (``openai/whisper-small``), a local folder with ``config.json`` and
        weights (no network call), or a configuration alone, as an object, a dict or
        its JSON file: random weights, no download. Weights are those of the encoder
        alone, or of a whole model, whose decoder is left aside.
    frozen : bool
        Parameters need no gradient, and the module stays in eval mode whatever
        ``.train()`` says. LoRA layers injected later train all the same.
    gradient_checkpointing : bool
        Recompute each layer in backward: less memory, about a third more time.
    savedir : str
        Where downloads from the hub are kept; None takes the hub's own cache.
    last_state : str
        "normalised": the last state is what the decoder hears, LN(h_L), as in
        transformers. "raw": it is h_L as the others are, and there is no LN.

    Example
    -------
    >>> config = WhisperConfig(
    ...     d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64
    ... )
    >>> states, lens = WhisperEncoder(config)(torch.rand(2, 16000) - 0.5)
    >>> len(states), states[-1].shape
    (3, torch.Size([2, 50, 32]))
    """

    title = "Whisper"
    lora_targets = ("q_proj", "v_proj")
    int8_layers = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

    def __init__(
        self,
        source,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
        savedir: str | None = None,
        *,
        last_state: Literal["raw", "normalised"] = "normalised",
    ):
        super().__init__(frozen, gradient_checkpointing)
        config, weights = read_source(source, WhisperConfig, savedir)
        if last_state not in ("raw", "normalised"):
            raise InputError(f"last_state: {last_state!r}, expected raw or normalised")
        check_config(config)
        self.config = config
        self.arguments["source"] = config.to_dict()
        self.features = WhisperFeatures(config.num_mel_bins)
        channels = conv1_channels(config)
        self.conv1 = nn.Conv1d(config.num_mel_bins, channels, 3, padding=1)
        self.conv2 = nn.Conv1d(channels, config.d_model, 3, STRIDE, padding=1)
        self.embed_positions = Positions(config.max_source_positions, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            WhisperLayer(config, shape) for shape in layer_shapes(config)
        )
        self.layer_norm = None
        if last_state == "normalised":
            self.layer_norm = nn.LayerNorm(config.d_model)
        if weights is not None:
            unused = UNUSED if self.layer_norm else (*UNUSED, "layer_norm.")
            load_strictly(self, _encoder_of(weights), str(source), ignore=unused)

    @property
    def hidden_size(self):
        """Width C of the hidden states."""
        return self.config.d_model

    @property
    def n_states(self):
        """L + 1: the input of the first layer and every layer's output."""
        return len(self.layers) + 1

    @property
    def max_samples(self):
        """Length of the longest input: as many frames as there are positions."""
        return self.config.max_source_positions * STRIDE * HOP

    def front_end(self, wavs, wav_lens=None):
        """[B, T] → log-mel [B, T', M] at 100 Hz, relative lengths [B]."""
        return self.features(wavs, wav_lens)

    def truncate(self, n_states):
        """Leave out the layers behind the first ``n_states`` states, in place."""
        config, layers = copy.deepcopy(self.config), n_states - 1
        shapes = layer_shapes(config)[:layers]
        config.encoder_layers = layers
        config.num_attention_heads_group = [shape.heads for shape in shapes]
        config.ffn_dim_group = [shape.ffn for shape in shapes]
        self.config, self.layer_norm = config, None  # LN is the last layer's
        self.arguments |= {"source": config.to_dict(), "last_state": "raw"}
        del self.layers[layers:]

    def same_front_end(self, other):
        """Whether another encoder takes the same features."""
        return isinstance(other, WhisperEncoder) and (
            self.config.num_mel_bins == other.config.num_mel_bins
        )

    def encode(self, x, lens=None):
        """Log-mel [B, T, M] and their lengths → L+1 states [B, ⌈T / 2⌉, C].

        InputError: more frames than there are positions.
        """
        self._check_frames(x.shape[1])
        padding = padding_mask(x.shape[1], lens)
        x = x.to(self.conv1.weight.dtype).transpose(1, 2)
        x = gelu(self.conv1(_zeroed(x, padding)))
        x = gelu(self.conv2(_zeroed(x, padding))).transpose(1, 2)
        if padding is not None:
            padding = padding[:, ::STRIDE]  # state t is centred on frame 2t
        x = x + self.embed_positions(x.shape[1])
        states = [x]
        x = self.dropout(x)
        for layer in self.layers:
            x = self.checkpointed(layer, x, padding)
            states.append(x)
        if self.layer_norm is not None:
            states[-1] = self.layer_norm(x)
        return states

    def output_lens(self, x, lens):
        """Of n frames there are ⌈n / 2⌉ states."""
        if lens is None:
            return None
        states = -(-valid_counts(lens, x.shape[1]) // STRIDE)
        return (states / -(-x.shape[1] // STRIDE)).to(lens)

    def _check_frames(self, frames):
        most = self.config.max_source_positions * STRIDE
        if not torch.compiler.is_compiling() and frames > most:
            second = self.sample_rate / HOP
            raise InputError(
                f"a recording of {frames / second:.2f} s, expected "
                f"{most / second:g} s or less: Whisper has no positions beyond"
            )

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        return {
            "features": WhisperFeatures,
            "convolution": nn.Conv1d,
            "attention": SelfAttention,
            "feed-forward": FeedForwardLinear,
        }

    def graph_form(self):
        """All frames in one product; else the steps are the same for any batch."""
        form = shared_copy(self)
        form.features = self.features.graph_form()
        return form

    def prunable_groups(self):
        """What may be removed → list of PrunableGroup, for ``pruning``."""
        conv = PrunableGroup(
            name="conv1",
            kind="conv",
            units=self.conv1.out_channels,
            full=self.config.d_model,
            input_weights=("conv1.weight", "conv1.bias"),
            output_weight="conv2.weight",
            unit_dim=1,
        )
        return [conv] + [
            group.within(f"layers.{number}", number)
            for number, layer in enumerate(self.layers)
            for group in layer.prunable_groups()
        ]

    def resized(self, widths):
        """A new encoder of other widths, with random weights.

        ``widths`` is name of every prunable group → its units; its ``config`` keeps
        them.
        """
        config, layers = copy.deepcopy(self.config), range(len(self.layers))
        config.conv1_channels = widths["conv1"]
        config.num_attention_heads_group = [
            widths[f"layers.{n}.self_attn"] for n in layers
        ]
        config.ffn_dim_group = [widths[f"layers.{n}.fc1"] for n in layers]
        options = {**self.arguments, "source": config}
        return type(self)(
            **options,
            frozen=self.frozen,
            gradient_checkpointing=self.gradient_checkpointing,
        )


def _zeroed(x, padding):
    """x [B, C, T], with zeros where ``padding`` [B, T] is True."""
    return x if padding is None else x.masked_fill(padding.unsqueeze(1), 0.0)


def _encoder_of(weights):
    """The same weights, the encoder's by their own names."""
    prefix = next((p for p in PREFIXES if f"{p}conv1.weight" in weights), "")
    return {name.removeprefix(prefix): value for name, value in weights.items()}


# -- widths, from a configuration ------------------------------------------------------


def full_shape(config):
    """LayerShape of an unpruned layer."""
    return LayerShape(config.encoder_attention_heads, config.encoder_ffn_dim)


def layer_shapes(config):
    """LayerShapes of all layers, from a configuration that was checked."""
    full, layers = full_shape(config), config.encoder_layers
    heads = getattr(config, "num_attention_heads_group", None) or [full.heads] * layers
    ffn = getattr(config, "ffn_dim_group", None) or [full.ffn] * layers
    return [LayerShape(*widths) for widths in zip(heads, ffn, strict=True)]


def conv1_channels(config):
    """Channels between the two convolutions."""
    return getattr(config, "conv1_channels", None) or config.d_model


def check_config(config):
    """InputError where no encoder can be built of a configuration."""

    def refuse(name, expected):
        value = getattr(config, name)
        raise InputError(
            f"encoder configuration: {name} {value!r}, expected {expected}"
        )

    for name in SIZES:
        value = getattr(config, name, None)
        optional = value is None and name == "conv1_channels"
        if not optional and not (type(value) is int and value > 0):
            refuse(name, "1 or more")
    heads, layers = config.encoder_attention_heads, config.encoder_layers
    if config.d_model % heads or config.d_model % 2:
        refuse("d_model", f"an even multiple of encoder_attention_heads, {heads}")
    for name in ("num_attention_heads_group", "ffn_dim_group"):
        value = getattr(config, name, None) or [0] * layers
        numbers = isinstance(value, list) and all(type(n) is int for n in value)
        if not numbers or len(value) != layers or min(value) < 0:
            refuse(name, f"encoder_layers = {layers} numbers, 0 or more")
