"""An ECAPA-TDNN of features and its head under the names of three public programs.

ours                          SpeechBrain, 3D-Speaker   wespeaker             VoxBlink2
encoder.blocks.0              blocks.0                  layer1                conv1, bn1
encoder.blocks.b              blocks.b                  layer(b + 1)          layer(b)
    tdnn1                     tdnn1                     se_res2block.0        conv1, bn1
    res2net_block.blocks.i    res2net_block.blocks.i    se_res2block.1.…      convs, bns
    tdnn2                     tdnn2                     se_res2block.2        conv3, bn3
    se_block.conv1, 2         se_block.conv1, 2         se_res2block.3.…      se.se.1, 3
encoder.mfa                   mfa                       conv                  layer4
head.pooling.attention        asp.tdnn, asp.conv        pool.linear1, 2       attention
head.norm, head.bottleneck    asp_bn, fc                bn, linear            bn5, fc6
head.embedding_norm           (none)                    bn2                   bn6

Sizes are those of the tensors. The chunk that Res2 passes is the first one here and in
SpeechBrain, the last one in the others: rows and columns are moved.
"""

import re
from typing import NamedTuple

import torch

from speechbrain_ext.export.published.checkpoint import UnderNames, as_weights, size_of
from speechbrain_ext.export.published.ecapa_head import with_counters
from speechbrain_ext.lobes.ecapa import ECAPA
from speechbrain_ext.lobes.heads import ECAPAPooling
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.utils.errors import naming
from speechbrain_ext.utils.weights import load_strictly


class Style(NamedTuple):
    """How a program names the parts, and what it does.

    Attributes
    ----------
    known : tuple of str
        Ends of two names that its files have.
    names : list of (str, str or callable)
        Patterns of our names and what stands in a file for them, in this order.
    flavour : str
        Of :class:`~speechbrain_ext.lobes.heads.ECAPAPooling`.
    block_sums : bool
        Of :class:`~speechbrain_ext.lobes.ecapa.ECAPA`.
    """

    known: tuple
    names: list
    flavour: str
    block_sums: bool = False


SPEECHBRAIN = Style(
    ("blocks.1.res2net_block.blocks.0.conv.conv.weight", "mfa.conv.conv.weight"),
    [
        (r"^encoder\.", ""),
        (r"^head\.pooling\.attention\.0", "asp.tdnn.conv.conv"),
        (r"^head\.pooling\.attention\.2", "asp.tdnn.norm.norm"),
        (r"^head\.pooling\.attention\.4", "asp.conv.conv"),
        (r"^head\.norm", "asp_bn.norm"),
        (r"^head\.bottleneck", "fc.conv"),
    ],
    "speechbrain",
)
WESPEAKER = Style(
    ("layer2.se_res2block.1.convs.0.weight", "pool.linear1.weight"),
    [
        (r"^encoder\.blocks\.(\d+)", lambda m: f"layer{int(m[1]) + 1}"),
        (r"(res2net_block)\.blocks\.(\d+)\.conv\.conv", r"se_res2block.1.convs.\2"),
        (r"(res2net_block)\.blocks\.(\d+)\.norm\.norm", r"se_res2block.1.bns.\2"),
        (r"tdnn(\d)", lambda m: f"se_res2block.{2 * int(m[1]) - 2}"),
        (r"se_block\.conv(\d)\.conv", r"se_res2block.3.linear\1"),
        (r"^encoder\.mfa\.conv\.conv", "conv"),
        (r"conv\.conv", "conv"),
        (r"norm\.norm", "bn"),
        (r"^head\.pooling\.attention\.0", "pool.linear1"),
        (r"^head\.pooling\.attention\.2", "pool.linear2"),
        (r"^head\.norm", "bn"),
        (r"^head\.bottleneck", "linear"),
        (r"^head\.embedding_norm", "bn2"),
    ],
    "wespeaker",
)
VOXBLINK2 = Style(
    ("layer1.convs.0.weight", "attention.0.weight"),
    [
        (r"^encoder\.blocks\.0\.conv\.conv", "conv1"),
        (r"^encoder\.blocks\.0\.norm\.norm", "bn1"),
        (r"^encoder\.blocks\.(\d+)", r"layer\1"),
        (r"res2net_block\.blocks\.(\d+)\.conv\.conv", r"convs.\1"),
        (r"res2net_block\.blocks\.(\d+)\.norm\.norm", r"bns.\1"),
        (r"tdnn(\d)\.conv\.conv", lambda m: f"conv{2 * int(m[1]) - 1}"),
        (r"tdnn(\d)\.norm\.norm", lambda m: f"bn{2 * int(m[1]) - 1}"),
        (r"se_block\.conv(\d)\.conv", lambda m: f"se.se.{2 * int(m[1]) - 1}"),
        (r"^encoder\.mfa\.conv\.conv", "layer4"),
        (r"^head\.pooling\.", ""),
        (r"^head\.norm", "bn5"),
        (r"^head\.bottleneck", "fc6"),
        (r"^head\.embedding_norm", "bn6"),
    ],
    "voxblink2",
    block_sums=True,
)


def place_of(tensors, style):
    """What stands before the names of that style, before all of a file.

    None: there are none, or they are the head of something else.
    """
    first, second = style.known
    for name, tensor in tensors.items():
        place = name.removesuffix(first)
        if place != name and tensor.dim() == 3 and f"{place}{second}" in tensors:
            alone = all(other.startswith(place) for other in tensors)
            return place if alone else None
    return None


def own_tensors(checkpoint, style, beside):
    """Sort tensors by names → (float32 weights, {beginning: tensors that are not}).

    ``beside``: beginnings of names of what is no part of the network.
    """
    place = place_of(checkpoint.tensors, style)
    own, others = {}, {beginning: {} for beginning in beside}
    for name, tensor in checkpoint.tensors.items():
        name = name.removeprefix(place)
        beginning = next((b for b in beside if name.startswith(b)), None)
        (own if beginning is None else others[beginning])[name] = tensor
    return as_weights(own, checkpoint.path), others


def build(weights, path, style, front_end, dilations=None, fbank=None):
    """The model of these tensors, strictly.

    Arguments
    ---------
    weights : dict of str to torch.Tensor
        Of the network alone, by their names in the file.
    path : str or Path
        For messages.
    style : Style
    front_end, fbank
        Of :class:`~speechbrain_ext.lobes.ecapa.ECAPA`.
    dilations : list of int, optional
        Of all layers; None: 1, then 2, 3, … of the blocks, then 1.

    Returns
    -------
    SpeakerEncoder
        In eval mode.

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape.
    """

    def size(name, axis=0):
        return size_of(weights, _name_in_file(name, style), path, axis)

    def has(name):
        return _name_in_file(name, style) in weights

    blocks = _count(has, "encoder.blocks.{}.tdnn2.conv.conv.weight", 1)
    inside = "res2net_block.blocks.{}.conv.conv.weight"
    places = [f"encoder.blocks.{number}" for number in range(1, blocks + 1)]
    first, last = "encoder.blocks.0.conv.conv.weight", "encoder.mfa.conv.conv.weight"
    scale = 1 + _count(has, f"{places[0]}.{inside}") if places else 0
    outputs = [size(f"{place}.tdnn2.conv.conv.weight") for place in places]
    widths = [size(f"{place}.{inside.format(0)}") for place in places]
    kernels = [size(f"{place}.{inside.format(0)}", 2) for place in places]
    bottlenecks = [size(f"{place}.se_block.conv1.conv.weight") for place in places]
    width, attention = size(last), "head.pooling.attention.0.weight"
    pruned = any(scale * n != output for n, output in zip(widths, outputs))
    narrowed = len(set(bottlenecks)) > 1
    with naming(path):
        encoder = ECAPA(
            [size(first), *outputs, width],
            [size(first, 2), *kernels, size(last, 2)],
            dilations or [1, *range(2, blocks + 2), 1],
            scale,
            max(bottlenecks, default=1),
            padding="reflect" if style is SPEECHBRAIN else "zeros",
            block_sums=style.block_sums,
            n_mels=size(first, 1),
            front_end=front_end,
            fbank=fbank,
            res2net_widths=widths if pruned else None,
            se_widths=bottlenecks if narrowed else None,
        )
        head = ECAPAPooling(
            width,
            embedding_size=size("head.bottleneck.weight"),
            attention_channels=size(attention),
            global_context=size(attention, 1) == 3 * width,
            flavour=style.flavour,
            embedding_norm=has("head.embedding_norm.weight"),
        )
    model = SpeakerEncoder(encoder, head).eval()
    named = UnderNames(model, lambda name: _name_in_file(name, style))
    if style is not SPEECHBRAIN:
        weights = _moved(weights, style, places, widths)
    weights = with_counters(named, _shaped(weights, named.state_dict()))
    load_strictly(named, weights, str(path))
    return model


def _name_in_file(name, style):
    """The name in the file of a tensor of ours."""
    for pattern, replacement in style.names:
        name = re.sub(pattern, replacement, name)
    return name


def _count(has, name, start=0):
    """How many of the names with a number from ``start`` on there are."""
    number = start
    while has(name.format(number)):
        number += 1
    return number - start


def _moved(weights, style, places, widths):
    """The chunk that passes Res2, the last of the file, becomes the first one."""
    weights = dict(weights)
    for place, width in zip(places, widths):
        rows = ("conv.conv.weight", "conv.conv.bias", "norm.norm.weight")
        rows += ("norm.norm.bias", "norm.norm.running_mean", "norm.norm.running_var")
        moves = [(f"tdnn1.{name}", 0) for name in rows]
        for name, dim in [*moves, ("tdnn2.conv.conv.weight", 1)]:
            name = _name_in_file(f"{place}.{name}", style)
            if name in weights and weights[name].dim() > dim:
                weights[name] = torch.roll(weights[name], width, dim)
    return weights


def _shaped(weights, own):
    """Maps over single frames are linear in one program, convolutions in another."""

    def bare(shape):
        return (*shape,)[: 2 if tuple(shape[2:]) == (1,) else None]

    return {
        name: tensor.reshape(own[name].shape)
        if name in own and bare(tensor.shape) == bare(own[name].shape)
        else tensor
        for name, tensor in weights.items()
    }
