"""Checkpoints of arXiv 2510.04213: w2v-BERT 2.0 with a head for speakers.

    {"modules": {"spk_model": state_dict, "classifier": {…}}, "epoch_idx": 7}

    front.encoder.X  →  encoder.X        (base_model.model. of peft taken off)
    X of the head    →  head.X
    W, A, B of LoRA  →  W + (α/r)·B·A

Names and shapes tell the rest:

    adapter_layers             →  AdapterMFA, its hidden sizes from each layer
    layer_weights, ecapa_tdnn  →  WeightedSumECAPA, its channels
    pooling, bottleneck alone  →  MFA
    hidden C       of feature_projection.projection
    head width d   columns of distance_embedding;   heads = width of linear_q / d
    FFN, conv      of intermediate_dense, of depthwise_layer_norm

Each size is read off one tensor; the strict loading that follows names those that
contradict it. What shapes cannot tell (epsilon of the normalisations, how positions
divide into left and right) is w2v-BERT 2.0's, unless a configuration is given.
"""

import itertools
import math
import re

import torch
from torch import nn
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.adaptation import inject_lora, merge_lora
from speechbrain_ext.export.published.checkpoint import (
    OF_TRAINING,
    Converted,
    as_weights,
)
from speechbrain_ext.lobes.conformer import LayerShape
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import (
    W2VBertEncoder,
    full_shape,
    layer_shapes,
    read_config,
    with_layer_shapes,
)
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.weights import load_strictly

TITLE = "w2v-BERT 2.0 of arXiv 2510.04213: tensors front.encoder.* and a head"
LICENCE = (
    "licence not stated in the file; the code published with it is CC BY-NC-SA 4.0"
)

_ENCODER = "front.encoder."
_LAYERS = f"{_ENCODER}encoder.layers."
_LAYER = re.compile(rf"{re.escape(_LAYERS)}(\d+)\.(\w+?)(?:_layer_norm)?\.")
_LORA = re.compile(r"\.lora_([AB])(?:\.\w+)?\.weight$")
# The published training configurations say r 64, α 128; no weight tells α.
_ALPHA_PER_RANK = 2
_RES2NET_SCALE = 8
_OPTIMISER = "state of the optimiser"
# Beginnings of a name's first part inside the model, of any part beside it.
_LEFT_OUT = {
    "classifier": OF_TRAINING,
    "projection": OF_TRAINING,
    "lang_head": "classifier of languages, of training",
    "optim": _OPTIMISER,
    "sched": _OPTIMISER,
    "lr_sched": _OPTIMISER,
}
# Width of a LayerShape → part of a layer, the tensor in it that is as wide.
_PARTS = {
    "heads": ("self_attn", "linear_q.bias"),
    "ffn1": ("ffn1", "intermediate_dense.bias"),
    "ffn2": ("ffn2", "intermediate_dense.bias"),
    "conv": ("conv_module", "depthwise_layer_norm.bias"),
}
_INTERMEDIATE = (
    "prune_dis.pth, which the published pruning writes between two of its stages and "
    "which still holds the dense model's tensors of parts that were removed"
)


def detect(tensors):
    """Whether some of the names hold ``front.encoder``."""
    return bool(_prefixes(tensors))


def convert(checkpoint, encoder_config=None, lora_alpha=None):
    """Convert, strictly: each tensor is used or left out for a reason.

    Arguments
    ---------
    checkpoint : Checkpoint
    encoder_config : str or Path, optional
        JSON of the encoder's configuration; None: widths from the shapes.
    lora_alpha : float, optional
        None takes 2 · rank.

    Returns
    -------
    Converted

    Raises
    ------
    InputError
        Two models in the file; tensors that are missing, left over, or of the wrong
        shape; a configuration of another model.
    """
    path = checkpoint.path
    own, left_out = _own_tensors(checkpoint)
    weights = {_without_peft(name): w for name, w in as_weights(own, path).items()}
    shapes = _Shapes(weights, path)
    with naming(encoder_config or path), torch.device("meta"):
        if encoder_config is None:
            config = _derived_config(shapes)
        else:
            config = _given_config(encoder_config)
        encoder = W2VBertEncoder(config)
    with torch.device("meta"):
        head = _head(shapes, encoder)
        lora = _inject_lora(encoder, weights, path, lora_alpha)
    try:
        _load(encoder, head, weights, path)
    except InputError as error:
        origin = (
            "widths were derived from the file: if the model was pruned, give its "
            "encoder configuration"
        )
        if encoder_config:
            origin = f"widths are those in {encoder_config}"
            if _removed_but_there(shapes, config):
                origin += f", which says that some were removed: as in {_INTERMEDIATE}"
        raise InputError(f"{error}; {origin}") from error
    if encoder_config is None:
        _check_nothing_left_over(layer_shapes(config), full_shape(config), path)
    if lora:
        merge_lora(encoder)
    epoch = checkpoint.values.get("epoch_idx")
    return Converted(
        SpeakerEncoder(encoder, head).eval(),
        epoch if isinstance(epoch, int) else None,
        left_out,
        {"lora": lora},
        list(_remarks(lora, config, encoder_config)),
    )


def _remarks(lora, config, encoder_config):
    if lora:
        yield (
            f"LoRA of rank {lora['rank']}, alpha {lora['alpha']:g}, on "
            f"{', '.join(lora['layers'])}: merged"
        )
    layers = layer_shapes(config)
    if any(layer != full_shape(config) for layer in layers):
        for name in _PARTS:
            yield f"pruned, {name} by layer: {[getattr(x, name) for x in layers]}"
        if encoder_config is None:
            yield (
                "no encoder configuration was given: these widths are what its tensors "
                "show"
            )


def _prefixes(tensors):
    """What stands before ``front.encoder`` in the names of every model."""
    prefixes = set()
    for name in tensors:
        parts = name.split(".")
        pairs = list(itertools.pairwise(parts))
        if ("front", "encoder") in pairs:
            before = parts[: pairs.index(("front", "encoder"))]
            prefixes.add(".".join([*before, ""]) if before else "")
    return sorted(prefixes)


def _own_tensors(checkpoint):
    """(name in the model → tensor, reason → names of the others)."""
    prefixes = _prefixes(checkpoint.tensors)
    if len(prefixes) > 1:
        raise InputError(
            f"{checkpoint.path}: {len(prefixes)} models, {', '.join(prefixes)}; "
            "expected 1"
        )
    own, left_out = {}, {}
    for name, tensor in checkpoint.tensors.items():
        inside = name.startswith(prefixes[0])
        short = name.removeprefix(prefixes[0])
        parts = short.split(".")[:1] if inside else name.split(".")
        reasons = [
            reason
            for beginning, reason in _LEFT_OUT.items()
            if any(part.startswith(beginning) for part in parts)
        ]
        if name.endswith(".masked_spec_embed"):
            reasons.append("mask embedding of pre-training")
        if reasons:
            left_out.setdefault(reasons[0], []).append(name)
        elif inside:
            own[short] = tensor
        else:
            raise InputError(
                f"{checkpoint.path}: tensor {name} is no part of the model "
                f"{prefixes[0]}*, and nothing that is known to be left out"
            )
    return own, left_out


def _without_peft(name):
    """Without what peft puts before and into names."""
    name = name.replace(f"{_ENCODER}base_model.model.", _ENCODER, 1)
    return _LORA.sub(r".lora_\1.default.weight", name)


class _Shapes(dict):
    """Name → shape of a model's tensors; LoRA's own are left aside."""

    def __init__(self, weights, path):
        super().__init__(
            (name.replace(".base_layer.", "."), tuple(tensor.shape))
            for name, tensor in weights.items()
            if ".lora_" not in name
        )
        self.path = path

    def size(self, name, axis=0):
        """Of one axis; InputError where the tensor is missing or has none."""
        shape = self.get(name, ())
        if len(shape) <= axis or not shape[axis]:
            raise InputError(
                f"{self.path}: weights do not fit: missing or empty {name}"
            )
        return shape[axis]

    def parts(self):
        """For each layer, the parts of which it has tensors."""
        found = {}
        for name in self:
            if match := _LAYER.match(name):
                found.setdefault(int(match[1]), set()).add(match[2])
        if not found or set(found) != set(range(len(found))):
            gap = next(n for n in range(len(found) + 1) if n not in found)
            raise InputError(
                f"{self.path}: weights do not fit: no tensors {_LAYERS}{gap}.*, but "
                f"{len(found)} other layers"
            )
        return [found[number] for number in range(len(found))]


def _given_config(path):
    config = read_config(path)
    try:
        layer_shapes(config)
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"widths of another form than the published lists per layer ({error})"
        ) from error
    return config


def _derived_config(shapes):
    """The configuration of the encoder that has these shapes.

    A part that a layer has no tensors of was pruned away if other widths show that the
    model was pruned; else its tensors are missing, and loading will say which.
    """
    hidden = shapes.size(f"{_ENCODER}feature_projection.projection.bias")
    parts = shapes.parts()
    with_attention = [n for n, found in enumerate(parts) if "self_attn" in found]
    # of w2v-BERT 2.0, or of a single head, where no layer attends
    head_dim = 64 if hidden % 64 == 0 else hidden
    if with_attention:
        name = f"{_LAYERS}{with_attention[0]}.self_attn.distance_embedding.weight"
        head_dim = min(hidden, shapes.size(name, 1))
    layers = [
        LayerShape(hidden, head_dim, **_widths(shapes, number, found, head_dim))
        for number, found in enumerate(parts)
    ]
    with_conv = [n for n, found in enumerate(parts) if "conv_module" in found]
    kernel = 31
    if with_conv:
        name = f"{_LAYERS}{with_conv[0]}.conv_module.depthwise_conv.weight"
        kernel = shapes.size(name, 2)
    # as far as one can tell: the width before any was pruned
    ffn = {w for layer in layers for w in (layer.ffn1, layer.ffn2) if w is not None}
    config = Wav2Vec2BertConfig(
        hidden_size=hidden,
        output_hidden_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=hidden // head_dim,
        intermediate_size=ffn.pop() if len(ffn) == 1 else max({4 * hidden, *ffn}),
        conv_depthwise_kernel_size=kernel,
    )
    full = full_shape(config)
    pruned = any(
        getattr(layer, name) not in (None, getattr(full, name))
        for layer in layers
        for name in _PARTS
    )
    absent = dict.fromkeys(_PARTS, 0) if pruned else full._asdict()
    return with_layer_shapes(
        config,
        [
            layer._replace(
                **{n: absent[n] for n in _PARTS if getattr(layer, n) is None}
            )
            for layer in layers
        ],
    )


def _widths(shapes, number, parts, head_dim):
    """Widths of a layer's parts, None where it has no tensors of one."""
    widths = {
        name: shapes.size(f"{_LAYERS}{number}.{part}.{tensor}")
        if part in parts
        else None
        for name, (part, tensor) in _PARTS.items()
    }
    if widths["heads"] is not None:
        widths["heads"] = max(1, widths["heads"] // head_dim)
    return widths


def _check_nothing_left_over(layers, full, path):
    """InputError where a pruned model may hold parts that were removed from it.

    The published code writes prune_dis.pth, the pruned encoder's tensors over those of
    the dense model: of a part that was removed the dense model's are left, in full
    size. Then no layer lacks a part. A part of which nothing was pruned looks the same.
    """
    if any(not getattr(layer, name) for layer in layers for name in _PARTS):
        return
    for name, (part, _) in _PARTS.items():
        whole = [getattr(layer, name) == getattr(full, name) for layer in layers]
        # a kind that is whole in every layer was never pruned
        if any(whole) and not all(whole):
            raise InputError(
                f"{path}: pruned, but {_LAYERS}{whole.index(True)}.{part} has its full "
                f"size ({name}: {getattr(full, name)}), as in {_INTERMEDIATE}; "
                "expected a checkpoint of the training after it, or, where nothing of "
                "this part was pruned, the encoder configuration with it "
                "(--encoder_config)"
            )


def _removed_but_there(shapes, config):
    """Whether the file has a part that its configuration says was removed."""
    return any(
        not getattr(layer, name) and part in found
        for layer, found in zip(layer_shapes(config), shapes.parts())
        for name, (part, _) in _PARTS.items()
    )


def _head(shapes, encoder):
    """The head that has these shapes, without values of its own yet."""
    kinds = {name.split(".")[0] for name in shapes} - {"front"}
    sizes = {"input_size": encoder.hidden_size, "n_states": encoder.n_states}
    if kinds & {"layer_weights", "ecapa_tdnn"}:
        names = ["blocks.0", *(f"blocks.{n}.tdnn1" for n in (1, 2, 3)), "mfa"]
        channels = [shapes.size(f"ecapa_tdnn.{n}.conv.conv.bias") for n in names]
        # what does not divide cannot be built; the loading then names its tensors
        for n in (1, 2, 3):
            channels[n] = max(_RES2NET_SCALE, channels[n] // _RES2NET_SCALE * 8)
        embedding = shapes.size("ecapa_tdnn.fc.conv.bias")
        return WeightedSumECAPA(**sizes, embedding_size=embedding, channels=channels)
    if not kinds & {"adapter_layers", "pooling", "bottleneck"}:
        raise InputError(
            f"{shapes.path}: no head among {sorted(kinds)}; expected adapter_layers "
            "(Adapter-MFA), layer_weights and ecapa_tdnn (weighted sum), or pooling "
            "alone (MFA)"
        )
    sizes["embedding_size"] = shapes.size("bottleneck.bias")
    if "adapter_layers" not in kinds:
        pooling = shapes.size("pooling.attention.0.bias")
        return MFA(**sizes, pooling_size=pooling)
    width = shapes.size("adapter_layers.0.3.bias")
    hidden = [
        shapes.size(f"adapter_layers.{n}.0.bias") for n in range(encoder.n_states)
    ]
    uneven = set(hidden) != {width}
    return AdapterMFA(
        **sizes, adapter_size=width, hidden_sizes=hidden if uneven else None
    )


def _inject_lora(encoder, weights, path, alpha):
    """LoRA where the file has it → its rank, alpha and layers, or None."""
    names = [name for name in weights if _LORA.search(name)]
    if not names:
        if alpha is not None:
            raise InputError(
                f"{path}: no LoRA tensors, expected some where lora_alpha is given"
            )
        return None
    axis = 1 if ".lora_B." in names[0] else 0
    shape = tuple(weights[names[0]].shape)
    if len(shape) != 2 or not shape[axis]:
        raise InputError(f"{path}: {names[0]} {shape}, expected a matrix of LoRA")
    rank = shape[axis]
    alpha = _ALPHA_PER_RANK * rank if alpha is None else alpha
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"lora_alpha: {alpha}, expected a number above 0")
    layers = sorted({_LORA.sub("", name).rsplit(".", 1)[-1] for name in names})
    inject_lora(encoder, rank, alpha, target_modules=layers)
    return {"rank": rank, "alpha": float(alpha), "layers": layers}


def _load(encoder, head, weights, path):
    """Both parts, by the names that the file has."""
    front = nn.Module()
    front.front = nn.Module()
    front.front.encoder = encoder
    for name in head.state_dict():
        if name.endswith("num_batches_tracked"):  # counts batches of training only
            weights.setdefault(name, torch.tensor(0))
    inside = {name: w for name, w in weights.items() if name.startswith(_ENCODER)}
    others = {name: w for name, w in weights.items() if name not in inside}
    load_strictly(front, inside, str(path), assign=True)
    load_strictly(head, others, str(path), assign=True)
