"""wav2vec 2.0 (also XLSR, XLS-R), HuBERT and UniSpeech-SAT: waveform → hidden states.

    z = FeatureExtractor(waveform)                     convolutions, 50 frames a second
    x = Linear(LN(z)),   h₀ = x + PositionalConv(x)    in Base: h₀ = LN(…)
    Large (pre-norm):    h ← h + Attention(LN h);   h ← h + FFN(LN h)
    Base (post-norm):    h ← LN(h + Attention(h));  h ← LN(h + FFN(h))

Baevski et al. 2020 (arXiv 2006.11477), Hsu et al. 2021 (2106.07447), Chen et al. 2021
(2110.05752). Weights and configuration are those of transformers, less what only
pre-training uses and what would break DistributedDataParallel: ``masked_spec_embed``,
quantiser, layer drop. The other dropouts of the configuration are in force in training.

A pruned model's configuration lists what is left: ``conv_dim`` (``full_conv_dim`` is
what it was), ``num_attention_heads_group`` [L] and ``intermediate_size_group`` [L]. A
part of no units is not built; it adds nothing. Of encoders that other programs publish
it may have three keys more: with ``conv_scale`` each channel of the last convolution
has a factor, ``feature_extractor.scale``; ``variance_floor`` is added to the variance
of the waveform, 1e-5 in fairseq, s3prl and torchaudio; with ``repeat_last`` there are
as many frames as in s3prl, one for each hop (320 samples) begun.
"""

import copy
import functools
import json
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import HubertConfig, UniSpeechSatConfig, Wav2Vec2Config

from speechbrain_ext.lobes.attention import fused
from speechbrain_ext.lobes.encoder import Encoder, shared_copy
from speechbrain_ext.lobes.transformer import (
    Attention,
    FeatureProjection,
    FeedForward,
    TransformerStack,
)
from speechbrain_ext.lobes.waveform_convolutions import (
    FeatureExtractor,
    PositionalConvolution,
    hops,
    input_samples,
    output_frames,
    repeated,
)
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import full_precision, valid_counts
from speechbrain_ext.utils.weights import (
    find_or_fetch,
    load_strictly,
    read_source,
)

VARIANCE_FLOOR = 1e-7  # of the standardised waveform, in transformers

# In a transformers file, but not in the encoder that verification uses.
UNUSED = ("masked_spec_embed", "quantizer.", "project_q.", "project_hid.", "lm_head.")

# Of the positional weight since torch has parametrizations → in older files and here.
CONV = "encoder.pos_conv_embed.conv"
RENAMED = {
    f"{CONV}.parametrizations.weight.original0": f"{CONV}.weight_g",
    f"{CONV}.parametrizations.weight.original1": f"{CONV}.weight_v",
}

# What a configuration may choose in transformers, but has no choice of here.
BUILT = {"add_adapter": (False, None), "conv_pos_batch_norm": (False,)}


class WaveformEncoder(Encoder):
    """Waveform → (L+1 hidden states, lengths): what the family has in common.

    Arguments
    ---------
    source : str, Path, configuration of transformers or dict
        A hub id, a local folder with ``config.json`` and weights (no network call), or
        a configuration alone, as an object, a dict or its JSON file: random weights,
        no download.
    frozen : bool
        Parameters need no gradient, and the module stays in eval mode whatever
        ``.train()`` says. LoRA layers injected later train all the same.
    gradient_checkpointing : bool
        Recompute each layer in backward: less memory, about a third more time.
    savedir : str
        Where downloads from the hub are kept; None takes the hub's own cache.
    last_state : str
        Of pre-norm (Large) models: ``normalised`` is the last layer's output behind
        the encoder's LayerNorm, ``raw`` leaves this LayerNorm out. Post-norm models are
        the same either way.
    standardise : bool
        Whether a waveform has its mean taken off and is divided by its standard
        deviation, over its valid samples. None: as ``do_normalize`` of the source's
        ``preprocessor_config.json`` says; of a configuration alone, where
        ``feat_extract_norm`` is "layer".

    Attributes
    ----------
    config_class : type
        Of transformers.
    prefix : str
        Before the names of the weights in files of models with a head.
    widths_by_layer : tuple of str
        Keys of the configuration that have an entry for each layer, or None.
    """

    lora_targets = ("q_proj", "v_proj")
    int8_layers = (
        *("q_proj", "k_proj", "v_proj", "out_proj"),
        *("intermediate_dense", "output_dense"),
    )
    attention_class = Attention
    stack_class = TransformerStack
    widths_by_layer = ("num_attention_heads_group", "intermediate_size_group")

    def __init__(
        self,
        source,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
        savedir: str | None = None,
        *,
        last_state: Literal["raw", "normalised"] = "normalised",
        standardise: bool | None = None,
    ):
        super().__init__(frozen, gradient_checkpointing)
        if last_state not in ("raw", "normalised"):
            raise InputError(
                f"last_state: {last_state!r}, expected 'raw' or 'normalised'"
            )
        self.config, weights = read_source(
            source, self.config_class, savedir, self.prefix
        )
        self.check_config(source)
        if standardise is None:
            standardise = standardises(source, savedir, self.config, weights)
        self.standardise = standardise
        # not a key of transformers
        self.variance_floor = getattr(self.config, "variance_floor", VARIANCE_FLOOR)
        check_at_least("variance_floor", self.variance_floor, 0, whole=False)
        self.repeats = bool(getattr(self.config, "repeat_last", False))
        self.arguments.update(source=self.config.to_dict(), standardise=standardise)
        self.build_front_end()
        self.feature_projection = FeatureProjection(self.config)
        self.encoder = self.stack_class(
            self.config, self.attention_class, last_state == "normalised"
        )
        if weights is not None:
            ignore = UNUSED
            if self.encoder.layer_norm is None:
                ignore = (*UNUSED, "encoder.layer_norm.")
            load_strictly(self, self.own_names(weights), str(source), ignore=ignore)

    def build_front_end(self):
        """Make what is before the projection."""
        self.feature_extractor = FeatureExtractor(self.config)

    def check_config(self, source):
        """InputError: the configuration asks for what is not built here."""
        check_convolutions(self.config, source)
        check_transformer(self.config, source)

    def own_names(self, weights):
        """Tensors of transformers under the names that they have here."""
        for theirs, ours in RENAMED.items():
            if theirs in weights:
                weights[ours] = weights.pop(theirs)
        return weights

    @property
    def min_samples(self):
        """Samples of one frame."""
        return input_samples(1, self.config.conv_kernel, self.config.conv_stride)

    @property
    def hidden_size(self):
        """Width D of the hidden states."""
        return self.config.hidden_size

    @property
    def n_states(self):
        """L + 1: the first layer's input and every layer's output."""
        return len(self.encoder.layers) + 1

    def front_end(self, wavs, wav_lens=None):
        """The waveform [B, T], standardised or as it is; relative lengths [B].

        Raises
        ------
        InputError
            Not [B, T], or a row shorter than ``min_samples``.
        """
        if not torch.compiler.is_compiling():
            check_lengths(wavs, wav_lens, self.min_samples)
        if self.standardise:
            wavs = standardised(wavs, wav_lens, self.variance_floor)
        return super().front_end(wavs, wav_lens)

    def encode(self, x, lens=None):
        """Waveform [B, T] and its lengths → L+1 states [B, T', D]."""
        samples = x.shape[1]
        x, counts, padding = self.projected(x, lens)
        stack = self.encoder
        if stack.pos_conv_embed is not None:
            x = x + stack.pos_conv_embed(x)
        x = stack.dropout(x if stack.pre_norm else stack.layer_norm(x))
        states, positions = [x], stack.positions(x.shape[1])
        for layer in stack.layers:
            x = self.checkpointed(layer, x, padding, positions)
            states.append(x)
        if stack.pre_norm and stack.layer_norm is not None:
            states[-1] = stack.layer_norm(x)
        if self.repeats:
            shape = self.config.conv_kernel, self.config.conv_stride
            states = repeated(states, samples, counts, *shape)
        return states

    def projected(self, x, lens):
        """Waveform [B, T] → what the layers start from, [B, T', D], 0 in the padding.

        Also its valid samples [B] and a mask [B, T'] of the padding; None: all valid.
        """
        x = x.to(self.feature_projection.projection.weight.dtype)
        counts, padding = self._valid(x, lens)
        x = self.feature_projection(self.feature_extractor(x, counts))
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        return x, counts, padding

    def _valid(self, x, lens):
        """Valid samples [B], and a mask [B, T'] of the frames that are not; or None."""
        if lens is None:
            return None, None
        counts = valid_counts(lens, x.shape[1])
        compiling = torch.compiler.is_compiling()
        if not compiling and bool((counts >= x.shape[1]).all()):
            return None, None
        counts = counts.to(x.device)
        shape = self.config.conv_kernel, self.config.conv_stride
        frames, total = output_frames(counts, *shape), output_frames(x.shape[1], *shape)
        if not compiling and bool((frames >= total).all()):
            return counts, None
        places = torch.arange(total, device=x.device)
        return counts, places >= frames.unsqueeze(1)

    def output_lens(self, x, lens):
        """Whole frames of every row, relative to those of the longest possible."""
        if lens is None:
            return None
        shape = self.config.conv_kernel, self.config.conv_stride
        counts = valid_counts(lens, x.shape[1]).to(lens.device)
        if self.repeats:
            strides = self.config.conv_stride
            return hops(counts, strides) / hops(x.shape[1], strides)
        return output_frames(counts, *shape) / output_frames(x.shape[1], *shape)

    def truncate(self, n_states):
        """Leave out the layers behind the first ``n_states`` states, in place."""
        config, layers = copy.deepcopy(self.config), n_states - 1
        config.num_hidden_layers = layers
        for name in self.widths_by_layer:
            if (widths := getattr(config, name, None)) is not None:
                setattr(config, name, widths[:layers])
        self.config = config
        self.arguments |= {"source": config.to_dict(), "last_state": "raw"}
        if self.encoder.pre_norm:  # LN is the last layer's
            self.encoder.layer_norm = None
        del self.encoder.layers[layers:]

    def same_front_end(self, other):
        """Whether another encoder takes the same waveform."""
        if isinstance(other, WaveformEncoder):
            if getattr(other, "features", None) is not None:  # a student's
                return False
            return (self.standardise, self.variance_floor) == (
                other.standardise,
                other.variance_floor,
            )
        return not self.standardise and super().same_front_end(other)

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        return {
            "convolutions": FeatureExtractor,
            "positions": PositionalConvolution,
            "feed-forward": FeedForward,
            "attention": Attention,
        }

    def graph_form(self):
        """All queries in one block, always a mask."""
        form = shared_copy(self)
        for module in form.modules():
            if isinstance(module, Attention):
                # the number of blocks would be that of the example
                module.attend = functools.partial(fused, block=None)
        return form

    def prunable_groups(self):
        """What may be removed → list of PrunableGroup, for ``pruning``."""
        return self.convolution_groups() + [
            group.within(f"encoder.layers.{number}", number)
            for number, layer in enumerate(self.encoder.layers)
            for group in layer.prunable_groups(self.config)
        ]

    def convolution_groups(self):
        """Those of the convolutions."""
        extractor = self.feature_extractor
        full = getattr(self.config, "full_conv_dim", None) or self.config.conv_dim
        conv = [
            group.within("feature_extractor", group.layer)
            for group in extractor.prunable_groups(full)
        ]
        # the last one's gates multiply behind the projection's LayerNorm
        norms = ()
        if isinstance(self.feature_projection.layer_norm, nn.LayerNorm):
            norms = ("feature_projection.layer_norm",)
        conv[-1] = conv[-1]._replace(
            input_weights=(
                *conv[-1].input_weights,
                *(
                    f"{norm}.{tensor}"
                    for norm in norms
                    for tensor in ("weight", "bias")
                ),
            ),
            output_weight="feature_projection.projection.weight",
            norms=(*conv[-1].norms, *norms),
        )
        return conv

    def resized(self, widths):
        """A new encoder of other widths, with random weights.

        ``widths`` is name of every prunable group → its units; its ``config`` keeps
        them.
        """
        config = copy.deepcopy(self.config)
        self.resize_convolutions(config, widths)
        self.resize_layers(config, widths)
        return type(self)(
            config,
            frozen=self.frozen,
            gradient_checkpointing=self.gradient_checkpointing,
            last_state=self.arguments["last_state"],
            standardise=self.standardise,
        )

    def resize_convolutions(self, config, widths):
        """Set in ``config`` what :meth:`resized` was told of the convolutions."""
        config.full_conv_dim = list(
            getattr(config, "full_conv_dim", None) or config.conv_dim
        )
        config.conv_dim = [
            widths[f"feature_extractor.conv_layers.{i}"]
            for i in range(len(config.conv_dim))
        ]

    def resize_layers(self, config, widths):
        """Set in ``config`` what :meth:`resized` was told of the layers."""
        layers = [f"encoder.layers.{n}" for n in range(len(self.encoder.layers))]
        config.num_attention_heads_group = [widths[f"{n}.attention"] for n in layers]
        config.intermediate_size_group = [widths[f"{n}.feed_forward"] for n in layers]


class Wav2Vec2Encoder(WaveformEncoder):
    """wav2vec 2.0, XLSR-53 and XLS-R: see :class:`WaveformEncoder`.

    Example
    -------
    >>> config = Wav2Vec2Config(
    ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    ...     intermediate_size=64, conv_dim=[8] * 7,
    ... )
    >>> states, lens = Wav2Vec2Encoder(config)(torch.rand(2, 16000) - 0.5)
    >>> len(states), states[-1].shape
    (3, torch.Size([2, 49, 32]))
    """

    title = "wav2vec 2.0"
    config_class = Wav2Vec2Config
    prefix = "wav2vec2."


class HubertEncoder(WaveformEncoder):
    """HuBERT: see :class:`WaveformEncoder`."""

    title = "HuBERT"
    config_class = HubertConfig
    prefix = "hubert."


class UniSpeechSatEncoder(WaveformEncoder):
    """UniSpeech-SAT: see :class:`WaveformEncoder`."""

    title = "UniSpeech-SAT"
    config_class = UniSpeechSatConfig
    prefix = "unispeech_sat."


# -- waveform --------------------------------------------------------------------------


def check_lengths(wavs, wav_lens, min_samples):
    """InputError: not [B, T], or fewer valid samples than one frame takes."""
    if wavs.dim() != 2:
        raise InputError(f"waveforms: shape {tuple(wavs.shape)}, expected [B, T]")
    shortest = wavs.shape[1]
    if wav_lens is not None:
        shortest = int(valid_counts(wav_lens, wavs.shape[1]).min())
    if shortest < min_samples:
        raise InputError(
            f"waveform: {shortest} samples, expected {min_samples} or more"
        )


def standardised(wavs, wav_lens, floor=VARIANCE_FLOOR):
    """(x − mean) / √(var + floor) over the valid samples, 0 in the padding, if any."""
    with full_precision(wavs):
        wavs = wavs.to(torch.promote_types(wavs.dtype, torch.float32))
        counts = wavs.shape[1]
        if wav_lens is None:
            centred = wavs - wavs.sum(1, keepdim=True) / counts
        else:
            counts = valid_counts(wav_lens, counts).to(wavs.device).unsqueeze(1)
            valid = torch.arange(wavs.shape[1], device=wavs.device) < counts
            mean = wavs.where(valid, 0.0).sum(1, keepdim=True) / counts
            centred = (wavs - mean).where(valid, 0.0)
        variance = centred.square().sum(1, keepdim=True) / counts
        return centred * torch.rsqrt(variance + floor)


def standardises(source, savedir, config, weights):
    """What the source says of its waveforms: see :class:`WaveformEncoder`."""
    default = config.feat_extract_norm == "layer"
    if weights is None:
        return default
    file = "preprocessor_config.json"
    path = find_or_fetch(source, [file], "a model's folder", cache_dir=savedir) / file
    if not path.is_file():
        return default
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["do_normalize"])
    except KeyError:
        return default
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a readable JSON object") from error


# -- configuration ---------------------------------------------------------------------


def check_convolutions(config, source):
    """InputError: the configuration's front end is none that is built here."""
    expect = _expectation(config, source)
    norms = ("layer", "group")
    expect(config.feat_extract_norm in norms, "feat_extract_norm", "'layer' or 'group'")
    layers = len(config.conv_dim)
    for key in ("conv_kernel", "conv_stride"):
        fits = len(getattr(config, key)) == layers
        expect(fits, key, f"{layers} entries, as conv_dim has")


def check_transformer(config, source):
    """InputError: what is not built here; lists or widths that do not fit."""
    expect = _expectation(config, source)
    # a model of transformers writes what it chose itself into its configuration object
    chosen = ("eager", "sdpa") if isinstance(source, type(config)) else ()
    asked = config._attn_implementation
    expect(asked in (None, *chosen), "_attn_implementation", "none: there is one here")
    for key, values in BUILT.items():
        expect(getattr(config, key, values[0]) in values, key, values[0])
    expect(getattr(config, "adapter_attn_dim", None) is None, "adapter_attn_dim", None)
    heads, groups = config.num_attention_heads, config.num_conv_pos_embedding_groups
    for key, divisor in (
        ("num_attention_heads", heads),
        ("num_conv_pos_embedding_groups", groups),
    ):
        fits = divisor > 0 and config.hidden_size % divisor == 0
        expect(fits, key, f"a divisor of hidden_size {config.hidden_size}")
    for key in WaveformEncoder.widths_by_layer:
        value, layers = getattr(config, key, None), config.num_hidden_layers
        expect(value is None or len(value) == layers, key, f"{layers} entries")


def _expectation(config, source):
    name = source if isinstance(source, str | Path) else "encoder configuration"

    def expect(fits, key, expected):
        if not fits:
            value = getattr(config, key)
            raise InputError(f"{name}: {key} {value!r}, expected {expected}")

    return expect
