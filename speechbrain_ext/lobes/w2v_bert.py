"""w2v-BERT 2.0 as a SpeechBrain lobe: waveform → all hidden states.

    h₀ = Linear(LN(features)),   h_l = ConformerLayer_l(h_{l−1}),   l = 1 … L

Seamless Communication 2023 (arXiv 2312.05187, section 3.1); the 25 states are what the
layer adapters aggregate (arXiv 2510.04213, section 2.1). Weights and configuration are
those of transformers' ``Wav2Vec2BertModel``, less ``masked_spec_embed``, which only
pre-training uses and which would break DistributedDataParallel. Layer drop is left out
for the same reason; the other dropouts of the configuration are in force in training.

The configuration of a pruned model lists the widths of its layers, in the published
format: ``num_attention_heads_group`` [L], ``intermediate_size_group`` [L][2] and
``conv_group`` [L][2] (hidden, channels), with ``use_attention`` [L] and
``use_feed_forward`` [L][2]. Without these keys every layer has the full widths.
"""

import copy
import functools
from pathlib import Path

from torch import nn
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.features.w2v_bert import MIN_SAMPLES, W2VBertFeatures
from speechbrain_ext.lobes.conformer import (
    ConformerLayer,
    ConvolutionModule,
    FeedForward,
    LayerShape,
    RelativeKeyAttention,
)
from speechbrain_ext.lobes.encoder import Encoder, padding_mask, shared_copy
from speechbrain_ext.lobes.relative_attention import fused
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import (
    load_strictly,
    read_configuration,
    read_source,
)

# In a transformers file, but not in the encoder that verification uses.
UNUSED = ("masked_spec_embed",)

# What a configuration may choose in transformers, but has no choice of here.
BUILT = (
    ("position_embeddings_type", ("relative_key",)),
    ("hidden_act", ("swish", "silu")),
)


class FeatureProjection(nn.Module):
    """LayerNorm → Linear: [B, T', 160] → [B, T', C]."""

    def __init__(self, config):
        super().__init__()
        width = config.feature_projection_input_dim
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, features):
        """[B, T', 160] → [B, T', C]."""
        return self.dropout(self.projection(self.layer_norm(features)))


class ConformerStack(nn.Module):
    """The layers alone; its name in the state dict is transformers' ``encoder``."""

    def __init__(self, config):
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            ConformerLayer(config, shape) for shape in layer_shapes(config)
        )


class W2VBertEncoder(Encoder):
    """Waveform → (L+1 hidden states, lengths).

    Arguments
    ---------
    source : str, Path, Wav2Vec2BertConfig or dict
        A hub id (``facebook/w2v-bert-2.0``), a local folder with ``config.json`` and
        weights (no network call), or a configuration alone, as an object, a dict or
        its JSON file: random weights, no download.
    frozen : bool
        Parameters need no gradient, and the module stays in eval mode whatever
        ``.train()`` says. LoRA layers injected later train all the same.
    gradient_checkpointing : bool
        Recompute each layer in backward: less memory, about a third more time.
    savedir : str
        Where downloads from the hub are kept; None takes the hub's own cache.

    Example
    -------
    >>> config = Wav2Vec2BertConfig(
    ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    ...     intermediate_size=64,
    ... )
    >>> states, lens = W2VBertEncoder(config)(torch.rand(2, 16000) - 0.5)
    >>> len(states), states[-1].shape
    (3, torch.Size([2, 49, 32]))
    """

    title = "w2v-BERT"
    min_samples = MIN_SAMPLES
    lora_targets = ("linear_q", "linear_v")
    int8_layers = (
        *("linear_q", "linear_k", "linear_v", "linear_out"),
        *("intermediate_dense", "output_dense", "pointwise_conv1", "pointwise_conv2"),
    )

    def __init__(
        self, source, frozen=False, gradient_checkpointing=False, savedir=None
    ):
        super().__init__(frozen, gradient_checkpointing)
        self.config, weights = _resolve(source, savedir)
        self.arguments["source"] = self.config.to_dict()
        # not a key of transformers: our configurations for random weights may have it
        self.features = W2VBertFeatures(
            getattr(self.config, "normalise_variance", True)
        )
        self.feature_projection = FeatureProjection(self.config)
        self.encoder = ConformerStack(self.config)
        if weights is not None:
            load_strictly(self, weights, str(source), ignore=UNUSED)

    @property
    def hidden_size(self):
        """Width C of the hidden states."""
        return self.config.hidden_size

    @property
    def n_states(self):
        """L + 1: the projected input and every layer's output."""
        return len(self.encoder.layers) + 1

    def front_end(self, wavs, wav_lens=None):
        """[B, T] → features [B, T', 160], relative lengths [B]."""
        return self.features(wavs, wav_lens)

    def encode(self, x, lens=None):
        """Features [B, T', 160] and their lengths → L+1 states [B, T', C]."""
        x = x.to(self.feature_projection.layer_norm.weight.dtype)
        padding = padding_mask(x.shape[1], lens)
        x = self.feature_projection(x)
        states = [x]
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        x = self.encoder.dropout(x)
        for layer in self.encoder.layers:
            x = self.checkpointed(layer, x, padding)
            states.append(x)
        return states

    def truncate(self, n_states):
        """Leave out the layers behind the first ``n_states`` states, in place."""
        layers = n_states - 1
        shapes = layer_shapes(self.config)[:layers]
        self.config = copy.deepcopy(self.config)
        self.config.num_hidden_layers = layers
        self.config = with_layer_shapes(self.config, shapes)
        self.arguments["source"] = self.config.to_dict()
        del self.encoder.layers[layers:]

    def same_front_end(self, other):
        """Whether another encoder takes the same features, as a student may."""
        features = getattr(other, "features", None)
        return (
            isinstance(features, W2VBertFeatures)
            and self.features.normalise_variance == features.normalise_variance
            and not getattr(other, "standardise", False)
        )

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        return {
            "features": W2VBertFeatures,
            "feed-forward": FeedForward,
            "attention": RelativeKeyAttention,
            "convolution": ConvolutionModule,
        }

    def graph_form(self):
        """All frames in one product, all queries in one block, always a mask."""
        form = shared_copy(self)
        form.features = self.features.graph_form()
        for module in form.modules():
            if isinstance(module, RelativeKeyAttention):
                # the number of blocks would be that of the example
                module.attend = functools.partial(fused, block=None)
        return form

    def prunable_groups(self):
        """What may be removed → list of PrunableGroup, for ``pruning``."""
        full = full_shape(self.config)
        return [
            group.within(f"encoder.layers.{number}", number)
            for number, layer in enumerate(self.encoder.layers)
            for group in layer.prunable_groups(full)
        ]

    def resized(self, widths):
        """A new encoder of other widths, with random weights.

        ``widths`` is name of every prunable group → its units; its ``config`` keeps
        them.
        """
        layers = (f"encoder.layers.{n}" for n in range(len(self.encoder.layers)))
        shapes = [
            full_shape(self.config)._replace(
                heads=widths[f"{layer}.self_attn"],
                ffn1=widths[f"{layer}.ffn1"],
                ffn2=widths[f"{layer}.ffn2"],
                conv=widths[f"{layer}.conv_module"],
            )
            for layer in layers
        ]
        return type(self)(
            with_layer_shapes(self.config, shapes),
            frozen=self.frozen,
            gradient_checkpointing=self.gradient_checkpointing,
        )


def _resolve(source, savedir):
    """Configuration and weights or None; InputError where it is no w2v-BERT 2.0."""
    prefix = "wav2vec2_bert."
    config, weights = read_source(source, Wav2Vec2BertConfig, savedir, prefix)
    kind = source if isinstance(source, str | Path) else "encoder configuration"
    for name, expected in BUILT:
        value = getattr(config, name)
        if value not in expected:
            raise InputError(f"{kind}: {name} {value!r}, expected {expected[0]!r}")
    return config, weights


def read_config(path):
    """Read a ``Wav2Vec2BertConfig`` from its JSON file."""
    return read_configuration(path, Wav2Vec2BertConfig)


# -- widths of the layers, from a configuration and back -------------------------------


def full_shape(config):
    """LayerShape of an unpruned layer; InputError: heads that do not divide C."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    if hidden % heads:
        raise InputError(
            f"encoder configuration: hidden_size {hidden} is no multiple of "
            f"num_attention_heads {heads}"
        )
    return LayerShape(
        hidden=hidden,
        head_dim=hidden // heads,
        heads=heads,
        ffn1=config.intermediate_size,
        ffn2=config.intermediate_size,
        conv=hidden,
    )


def layer_shapes(config):
    """LayerShapes of all layers; InputError: a list of another length."""
    full, layers = full_shape(config), config.num_hidden_layers

    def group(name, default):
        value = getattr(config, name, None)
        value = [default] * layers if value is None else value
        if len(value) != layers:
            raise InputError(
                f"encoder configuration: {name} has {len(value)} entries, expected "
                f"num_hidden_layers = {layers}"
            )
        return value

    rows = zip(
        group("num_attention_heads_group", full.heads),
        group("use_attention", True),
        group("intermediate_size_group", (full.ffn1, full.ffn2)),
        group("use_feed_forward", (True, True)),
        group("conv_group", (full.hidden, full.conv)),
    )
    return [
        full._replace(
            heads=n_heads * bool(attends),
            ffn1=ffn1 * bool(uses[0]),
            ffn2=ffn2 * bool(uses[1]),
            conv=conv[1],
        )
        for n_heads, attends, (ffn1, ffn2), uses, conv in rows
    ]


def with_layer_shapes(config, shapes):
    """A copy of ``config`` from which :func:`layer_shapes` gives ``shapes``."""
    config = copy.deepcopy(config)
    config.num_attention_heads_group = [shape.heads for shape in shapes]
    config.use_attention = [shape.heads > 0 for shape in shapes]
    config.intermediate_size_group = [[shape.ffn1, shape.ffn2] for shape in shapes]
    config.use_feed_forward = [[shape.ffn1 > 0, shape.ffn2 > 0] for shape in shapes]
    config.conv_group = [[shape.hidden, shape.conv] for shape in shapes]
    return config
