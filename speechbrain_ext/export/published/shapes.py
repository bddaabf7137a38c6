"""What model a checkpoint holds, from the shapes of its tensors alone.

    hidden C       rows of feature_projection.projection
    head width d   columns of distance_embedding;   heads = rows of linear_q / d
    FFN, conv      rows of intermediate_dense, of depthwise_conv; kernel: its last axis

Each width is what most of the tensors that have it say, so that one of a wrong shape
is found by the strict loading that follows, and named there. What shapes cannot tell
(epsilon of the normalisations, how positions divide into left and right) is w2v-BERT
2.0's, unless a configuration is given.

Which head a checkpoint holds, from the names and shapes of its tensors alone.

adapter_layers             →  AdapterMFA, its hidden sizes from each layer
layer_weights, ecapa_tdnn  →  WeightedSumECAPA, its channels
pooling, bottleneck alone  →  MFA
"""

import re
from collections import Counter

from transformers import Wav2Vec2BertConfig

from speechbrain_ext.lobes.conformer import LayerShape
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.lobes.w2v_bert import full_shape, layer_shapes, with_layer_shapes
from speechbrain_ext.utils.errors import InputError

ENCODER = "front.encoder."
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(\w+?)(?:_layer_norm)?\.")
POSITIONS = 73  # 64 left, 8 right and its own
FEATURES = 160
# width of a LayerShape → the part of a layer that has it
PARTS = {
    "heads": "self_attn",
    "ffn1": "ffn1",
    "ffn2": "ffn2",
    "conv": "conv_module",
}
INTERMEDIATE = (
    "prune_dis.pth, which the published pruning writes between two of its stages and "
    "which still holds the dense model's tensors of parts that were removed"
)
_FFN = (
    ("intermediate_dense.weight", 0),
    ("intermediate_dense.bias", 0),
    ("output_dense.weight", 1),
)
_INNER = tuple(
    (f"linear_{which}.{kind}", 0) for which in "qkv" for kind in ("weight", "bias")
) + (("linear_out.weight", 1),)
_CONV = (
    ("depthwise_conv.weight", 0),
    ("depthwise_layer_norm.weight", 0),
    ("depthwise_layer_norm.bias", 0),
    ("pointwise_conv2.weight", 1),
)


class Shapes:
    """Shapes of a checkpoint's tensors by name; LoRA's own are left aside."""

    def __init__(self, weights, source):
        self.source = source
        self.by_name = {
            name.replace(".base_layer.", "."): tuple(tensor.shape)
            for name, tensor in weights.items()
            if ".lora_" not in name
        }

    def vote(self, prefix, places):
        """The size that most of these (name, axis) have; None where there is none."""
        sizes = [
            self.by_name[prefix + name][axis]
            for name, axis in places
            if len(self.by_name.get(prefix + name, ())) > axis
        ]
        return Counter(sizes).most_common(1)[0][0] if sizes else None

    def need(self, prefix, *places):
        """As :meth:`vote`; without any of these tensors, or with 0, an InputError."""
        size = self.vote(prefix, places)
        if not size:
            raise InputError(
                f"{self.source}: weights do not fit: missing or empty "
                f"{', '.join(prefix + name for name, _ in places)}"
            )
        return size

    def parts(self):
        """Layer number → the parts of which it has tensors."""
        found = {}
        for name in self.by_name:
            if match := LAYER.match(name.removeprefix(ENCODER)):
                found.setdefault(int(match[1]), set()).add(match[2])
        return found


def encoder_config(weights, source):
    """The configuration of the encoder that these weights are of.

    A part that a layer has no tensors of was pruned away if other widths show that
    the model was pruned; else its tensors are missing, and loading will say which.

    Arguments
    ---------
    weights : dict of str to torch.Tensor
        By their names in the published model.
    source : str
        For messages.

    Returns
    -------
    Wav2Vec2BertConfig

    Raises
    ------
    InputError
        Where a tensor without which no width is known is missing, or the shapes
        contradict each other or can be those of two models.
    """
    shapes = Shapes(weights, source)
    projection = f"{ENCODER}feature_projection.projection."
    hidden = shapes.need(projection, ("weight", 0), ("bias", 0))
    features = shapes.need(projection, ("weight", 1))
    if features != FEATURES:
        raise InputError(
            f"{source}: features of {features} dimensions, expected {FEATURES}"
        )
    parts = shapes.parts()
    if sorted(parts) != list(range(len(parts))) or not parts:
        gap = next(n for n in range(len(parts) + 1) if n not in parts)
        raise InputError(
            f"{source}: weights do not fit: no tensors {ENCODER}encoder.layers."
            f"{gap}.*, but {len(parts)} other layers"
        )
    head_dim = _attention_width(shapes, parts, hidden)
    layers = [_layer(shapes, n, parts[n], hidden, head_dim) for n in range(len(parts))]
    config = Wav2Vec2BertConfig(
        hidden_size=hidden,
        output_hidden_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=hidden // head_dim,
        intermediate_size=_full_ffn(layers, hidden),
        conv_depthwise_kernel_size=_kernel(shapes, parts),
    )
    full = full_shape(config)
    pruned = any(
        width not in (None, getattr(full, name))
        for layer in layers
        for name, width in layer._asdict().items()
    )
    if pruned:
        _check_nothing_left_over(layers, full, source)
    return with_layer_shapes(
        config, [_completed(layer, full, pruned) for layer in layers]
    )


def _attention_width(shapes, parts, hidden):
    """Width of a head; of w2v-BERT 2.0, or of a single head, where no layer attends."""
    places = [
        (f"{n}.self_attn.distance_embedding.weight", 1)
        for n in parts
        if "self_attn" in parts[n]
    ]
    if not places:
        return 64 if hidden % 64 == 0 else hidden
    prefix = f"{ENCODER}encoder.layers."
    width = shapes.need(prefix, *places)
    positions = shapes.need(prefix, *((name, 0) for name, _ in places))
    if positions != POSITIONS:
        raise InputError(
            f"{shapes.source}: {positions} relative positions, expected {POSITIONS}; "
            "how they divide into left and right stands in the encoder's configuration "
            "alone: give that"
        )
    if hidden % width:
        raise InputError(
            f"{shapes.source}: heads of width {width} in an encoder of width {hidden}, "
            "expected a divisor"
        )
    return width


def _layer(shapes, number, parts, hidden, head_dim):
    """Widths of one layer: None where a part is absent or says nothing."""
    prefix = f"{ENCODER}encoder.layers.{number}."
    inner = shapes.vote(f"{prefix}self_attn.", _INNER)
    if inner is not None and inner % head_dim:
        raise InputError(
            f"{shapes.source}: {prefix}self_attn is {inner} wide, expected a multiple "
            f"of its heads' width {head_dim}"
        )
    return LayerShape(
        hidden=hidden,
        head_dim=head_dim,
        heads=None if inner is None else inner // head_dim,
        ffn1=shapes.vote(f"{prefix}ffn1.", _FFN),
        ffn2=shapes.vote(f"{prefix}ffn2.", _FFN),
        conv=shapes.vote(f"{prefix}conv_module.", _CONV),
    )


def _completed(layer, full, pruned):
    """Without Nones: 0 where pruning took the part, else the full width."""
    return LayerShape(
        *(
            (0 if pruned else whole) if width is None else width
            for width, whole in zip(layer, full)
        )
    )


def _check_nothing_left_over(layers, full, source):
    """InputError where a pruned model may hold parts that were removed from it.

    The published code writes prune_dis.pth, the pruned encoder's tensors over those of
    the dense model: of a part that was removed the dense model's are left, in full
    size. Then no layer lacks a part. A part of which nothing was pruned looks the same.
    """
    if any(width is None for layer in layers for width in layer):
        return
    # a kind that is whole in every layer was never pruned
    pruned = [n for n in PARTS if {getattr(x, n) for x in layers} != {getattr(full, n)}]
    for number, layer in enumerate(layers):
        for name, part in ((name, PARTS[name]) for name in pruned):
            if getattr(layer, name) == getattr(full, name):
                raise InputError(
                    f"{source}: pruned, but {ENCODER}encoder.layers.{number}.{part} "
                    f"has its full size ({name}: {getattr(full, name)}), as in "
                    f"{INTERMEDIATE}; expected a checkpoint of the training after it, "
                    "or, where nothing of this part was pruned, the encoder "
                    "configuration with it (--encoder_config)"
                )


def left_over(weights, config, source):
    """Parts that a checkpoint has and its configuration says were removed → names."""
    parts, found = Shapes(weights, source).parts(), []
    for number, layer in enumerate(layer_shapes(config)):
        found += [
            f"{ENCODER}encoder.layers.{number}.{part}"
            for name, part in PARTS.items()
            if not getattr(layer, name) and part in parts.get(number, ())
        ]
    return found


def _full_ffn(layers, hidden):
    """Width of the feed-forward parts before any was pruned, as far as one can tell."""
    widths = {w for layer in layers for w in (layer.ffn1, layer.ffn2) if w is not None}
    return widths.pop() if len(widths) == 1 else max({4 * hidden, *widths})


def _kernel(shapes, parts):
    places = [
        (f"{n}.conv_module.depthwise_conv.weight", 2)
        for n in parts
        if "conv_module" in parts[n]
    ]
    return shapes.vote(f"{ENCODER}encoder.layers.", places) or 31


RES2NET_SCALE = 8


def head_for(weights, config, source):
    """The head that these weights are of, without values of its own yet.

    Arguments
    ---------
    weights, source
        As in :func:`~speechbrain_ext.export.published.shapes.encoder_config`.
    config : Wav2Vec2BertConfig
        Of the encoder.

    Returns
    -------
    AdapterMFA, MFA or WeightedSumECAPA

    Raises
    ------
    InputError
        Where it is none of these.
    """
    shapes = Shapes(weights, source)
    kinds = {name.split(".")[0] for name in shapes.by_name} - {"front"}
    sizes = {
        "input_size": config.hidden_size,
        "n_states": config.num_hidden_layers + 1,
    }
    if kinds & {"layer_weights", "ecapa_tdnn"}:
        fc = (("fc.conv.weight", 0), ("fc.conv.bias", 0))
        embedding = shapes.need("ecapa_tdnn.", *fc)
        channels = _ecapa_channels(shapes)
        return WeightedSumECAPA(**sizes, embedding_size=embedding, channels=channels)
    if not kinds & {"adapter_layers", "pooling", "bottleneck"}:
        raise InputError(
            f"{source}: no head among {sorted(kinds)}; expected adapter_layers "
            "(Adapter-MFA), layer_weights and ecapa_tdnn (weighted sum), or pooling "
            "alone (MFA)"
        )
    sizes["embedding_size"] = shapes.need("bottleneck.", ("weight", 0), ("bias", 0))
    if "adapter_layers" not in kinds:
        places = [(f"{n}.{kind}", 0) for n in (0, 2) for kind in ("weight", "bias")]
        pooling = shapes.need("pooling.attention.", *places)
        return MFA(**sizes, pooling_size=pooling)
    return AdapterMFA(**sizes, **_adapter_sizes(shapes, sizes["n_states"]))


def _adapter_sizes(shapes, n_states):
    outputs = [
        (f"{n}.3.{kind}", 0) for n in range(n_states) for kind in ("weight", "bias")
    ]
    adapter_size = shapes.need("adapter_layers.", *outputs)
    places = (
        *(("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0)),
        ("3.weight", 1),
    )
    hidden = [
        shapes.vote(f"adapter_layers.{n}.", places) or adapter_size
        for n in range(n_states)
    ]
    uneven = any(width != adapter_size for width in hidden)
    return {"adapter_size": adapter_size, "hidden_sizes": hidden if uneven else None}


def _ecapa_channels(shapes):
    """Of the first convolution, of three SE-Res2Net blocks, of the aggregation."""
    names = ["blocks.0", *(f"blocks.{n}.tdnn1" for n in (1, 2, 3)), "mfa"]
    channels = [
        shapes.need(
            f"ecapa_tdnn.{name}.", ("conv.conv.weight", 0), ("conv.conv.bias", 0)
        )
        for name in names
    ]
    if any(width % RES2NET_SCALE for width in channels[1:4]):
        raise InputError(
            f"{shapes.source}: ECAPA-TDNN of {channels} channels, expected multiples "
            f"of {RES2NET_SCALE}"
        )
    return channels
