"""A weighted sum and an ECAPA-TDNN under the names of UniSpeech and wespeaker.

ours                       UniSpeech             wespeaker
layer_weights              feature_weight        frontend.featurizer.weights
ecapa_tdnn.first           layer1                layer1
ecapa_tdnn.blocks.b        layer(b + 2)          layer(b + 2)
    first                  Conv1dReluBn1         se_res2block.0
    res2.i.conv, .norm     Res2Conv1dReluBn.convs.i, .bns.i    se_res2block.1.…
    last                   Conv1dReluBn2         se_res2block.2
    gate.0, gate.2         SE_Connect.linear1, 2               se_res2block.3.…
ecapa_tdnn.last            conv                  conv
….pooling.attention.0, 2   pooling.linear1, 2    pool.linear1, 2
….norm, ….bottleneck       bn, linear            bn, linear
….embedding_norm           (none)                bn2
"""

from typing import NamedTuple

from speechbrain_ext.export.published.checkpoint import UnderNames, size_of
from speechbrain_ext.lobes.heads import WeightedSumECAPA
from speechbrain_ext.utils.errors import naming
from speechbrain_ext.utils.weights import load_strictly


class Style(NamedTuple):
    """How a program names the parts, and what it does.

    Attributes
    ----------
    layer_weights : str
        The weights of the sum.
    block : tuple of str
        The four parts of a block.
    pooling : str
        The pooling.
    normalisation : str
        Of the sum, over time: of ``WeightedSumECAPA``.
    variance_floor : float
        Of the pooling.
    """

    layer_weights: str
    block: tuple
    pooling: str
    normalisation: str
    variance_floor: float


UNISPEECH = Style(
    "feature_weight",
    ("Conv1dReluBn1", "Res2Conv1dReluBn", "Conv1dReluBn2", "SE_Connect"),
    "pooling",
    "instance",
    1e-9,
)
WESPEAKER = Style(
    "frontend.featurizer.weights",
    tuple(f"se_res2block.{part}" for part in range(4)),
    "pool",
    "mean",
    1e-7,
)
_OUTSIDE = {
    "last": "conv",
    "norm": "bn",
    "bottleneck": "linear",
    "embedding_norm": "bn2",
}


def name_in_file(name, style):
    """The name in the file of a tensor of ``WeightedSumECAPA``."""
    if name == "layer_weights":
        return style.layer_weights
    part, *rest = name.removeprefix("ecapa_tdnn.").split(".")
    if part == "first":
        return f"layer1.{_normed(rest)}"
    if part == "pooling":  # attention.0 and attention.2
        number = 1 + int(rest[1]) // 2
        return f"{style.pooling}.linear{number}.{rest[2]}"
    if part != "blocks":
        return ".".join([_OUTSIDE[part], *rest])
    block, part, *rest = rest
    first, res2, last, gate = style.block
    layer = f"layer{int(block) + 2}"
    if part == "res2":
        place = {"conv": "convs", "norm": "bns"}[rest[1]]
        return ".".join([layer, res2, place, rest[0], *rest[2:]])
    if part == "gate":
        return f"{layer}.{gate}.linear{1 + int(rest[0]) // 2}.{rest[1]}"
    return f"{layer}.{first if part == 'first' else last}.{_normed(rest)}"


def _normed(parts):
    """``norm`` is called ``bn``."""
    return ".".join(["bn" if part == "norm" else part for part in parts])


def read_head(tensors, path, encoder, style):
    """A head of these tensors, strictly.

    Arguments
    ---------
    tensors : dict of str to torch.Tensor
        Of the head alone, by their names in the file.
    path : str or Path
        For messages.
    encoder : Encoder
    style : Style

    Returns
    -------
    WeightedSumECAPA

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape.
    """

    def size(name, axis=0):
        return size_of(tensors, name, path, axis)

    width, last = size("layer1.conv.weight"), size("conv.weight")
    with naming(path):
        head = WeightedSumECAPA(
            encoder.hidden_size,
            encoder.n_states,
            size("linear.weight"),
            channels=[*[width] * 4, last],
            normalisation=style.normalisation,
            padding="zeros",
            global_context=size(f"{style.pooling}.linear1.weight", 1) == 3 * last,
            variance_floor=style.variance_floor,
            embedding_norm="bn2.weight" in tensors,
        )
    named = UnderNames(head, lambda name: name_in_file(name, style))
    load_strictly(named, with_counters(named, tensors), str(path))
    return head


def with_counters(named, tensors):
    """The same with numbers of batches, which only training counts, as they are here.

    Files may lack them, or have their mean over checkpoints.
    """
    own = named.state_dict()
    counters = {name: own[name] for name in own if "num_batches_tracked" in name}
    return {**tensors, **counters}
