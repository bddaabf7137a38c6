"""3D-Speaker's CAM++ and ERes2NetV2: ``.bin`` or ``.ckpt``, a flat dictionary.

    head.conv1 … conv2                       CAM++     the stem
    xvector.tdnn, block{i}.tdnnd{j}, …                 the layers
    xvector.dense                                      head
    conv1, layer1 … layer4, layer3_ds, fuse34   ERes2NetV2
    seg_1, seg_bn_1, seg_2                             head

``campplus_voxceleb.bin``, ``campplus_cn_common.bin`` and ``pretrained_eres2netv2.ckpt``
of github.com/modelscope/3D-Speaker (Chen et al. 2024, arXiv 2403.19971) are such files.
Sizes are read from the shapes. wespeaker's CAM++ has the same tensors, other features
and another ε (:mod:`~speechbrain_ext.export.published.wespeaker_campplus`); its
files hold a classifier, and averaging has made floating point of its counters. Where
neither tells, the names of the file, of its folder and of what lies there do.
"""

import re

from speechbrain_ext.export.published.checkpoint import (
    OF_TRAINING,
    Converted,
    UnderNames,
    as_weights,
    details_of,
    named_so,
    size_of,
)
from speechbrain_ext.export.published.ecapa_head import with_counters
from speechbrain_ext.lobes.campplus import CAMPPlus
from speechbrain_ext.lobes.eres2net import ERes2NetV2
from speechbrain_ext.lobes.heads import TSTP
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.weights import load_strictly

TITLE = "3D-Speaker's CAM++ (xvector.*) and ERes2NetV2 (layer3_ds, fuse34, seg_1)"
LICENCE = (
    "licence not stated in the file; the repository it is published in "
    "(modelscope/3D-Speaker) is Apache-2.0"
)

# Parameters → what 3D-Speaker's README publishes
FIGURES = {
    7_176_224: "EER on Vox1-O in %: 0.73; large margin: 0.65",
    17_859_632: "EER on Vox1-O in %: 0.68; large margin: 0.61",
}

_CLASSIFIER = "projection."
_CAMPPLUS = "xvector.tdnn.linear.weight"
_ERES2NETV2 = "layer3_ds.weight"
_FUSION = "fuse34.local_att.0.weight"  # which ERes2Net has, too
_SAYS_SO = re.compile(r"3d-?speaker|modelscope|campplus_(cn|en|sv|voxc)|\.(bin|ckpt)$")

# Beginnings and parts of names here → those in the file, in this order.
_OF_CAMPPLUS = [
    (r"^stem\.(first|last)\.", lambda m: f"head.{_ORDER[m[1]]}."),
    (r"^head\.(\d)\.conv", r"head.conv\1"),
    (r"^head\.(\d)\.norm", r"head.bn\1"),
    (
        r"^stem\.blocks\.(\d)\.",
        lambda m: f"head.layer{int(m[1]) // 2 + 1}.{int(m[1]) % 2}.",
    ),
    (r"\.shortcut\.conv", ".shortcut.0"),
    (r"\.shortcut\.norm", ".shortcut.1"),
    (r"\.(first|last)\.conv", lambda m: f".conv{_ORDER[m[1]]}"),
    (r"\.(first|last)\.norm", lambda m: f".bn{_ORDER[m[1]]}"),
    (r"^tdnn\.conv", "xvector.tdnn.linear"),
    (r"^tdnn\.norm", "xvector.tdnn.nonlinear.batchnorm"),
    (
        r"^blocks\.(\d+)\.layers\.(\d+)\.",
        lambda m: f"xvector.block{int(m[1]) + 1}.tdnnd{int(m[2]) + 1}.",
    ),
    (r"^blocks\.(\d+)\.transit\.", lambda m: f"xvector.transit{int(m[1]) + 1}."),
    (r"(transit\d+)\.norm", r"\1.nonlinear.batchnorm"),
    (r"expand\.norm", "nonlinear1.batchnorm"),
    (r"expand\.linear", "linear1"),
    (r"expand\.output_norm", "nonlinear2.batchnorm"),
    (r"taps", "cam_layer.linear_local"),
    (r"squeeze", "cam_layer.linear1"),
    (r"excite", "cam_layer.linear2"),
    (r"^norm\.", "xvector.out_nonlinear.batchnorm."),
]
_OF_ERES2NETV2 = [
    (r"^first\.conv", "conv1"),
    (r"^first\.norm", "bn1"),
    (r"^stages\.(\d)", lambda m: f"layer{int(m[1]) + 1}"),
    (r"^downsampling\.conv", "layer3_ds"),
    (r"^fusion", "fuse34"),
    (r"\.fusions", ".fuse_models"),
    (r"\.shortcut\.conv", ".shortcut.0"),
    (r"\.shortcut\.norm", ".shortcut.1"),
    (r"squeeze\.conv", "local_att.0"),
    (r"squeeze\.norm", "local_att.1"),
    (r"excite\.conv", "local_att.3"),
    (r"excite\.norm", "local_att.4"),
    (r"chain\.(\d+)\.conv", r"convs.\1"),
    (r"chain\.(\d+)\.norm", r"bns.\1"),
    (r"first\.conv", "conv1"),
    (r"first\.norm", "bn1"),
    (r"last\.conv", "conv3"),
    (r"last\.norm", "bn3"),
]
_ORDER = {"first": 1, "last": 2}
_HEADS = {
    "campplus": {
        "bottleneck": "xvector.dense.linear",
        "embedding_norm": "xvector.dense.nonlinear.batchnorm",
    },
    "eres2netv2": {"bottleneck": "seg_1", "norm": "seg_bn_1", "last": "seg_2"},
}


def detect(tensors):
    """Whether there is such a network, and nothing says that wespeaker trained it."""
    return _is_eres2netv2(tensors) or (
        is_campplus(tensors) and not _says_wespeaker(tensors)
    )


def said_beside(path):
    """Whether names of the file, its folder or what lies there say that it is one."""
    return named_so(path, _SAYS_SO, "configuration.json")


def is_campplus(tensors):
    """Whether there are layers of CAM++."""
    return any(name.endswith(_CAMPPLUS) for name in tensors)


def _is_eres2netv2(tensors):
    """Whether there is ERes2NetV2's fusion of two stages."""
    return any(
        name.endswith(_ERES2NETV2)
        and f"{name.removesuffix(_ERES2NETV2)}{_FUSION}" in tensors
        for name in tensors
    )


def _says_wespeaker(tensors):
    """Whether there is a classifier of wespeaker's, or a mean of counters."""
    return any(
        name.endswith(f"{_CLASSIFIER}weight")
        or (name.endswith("num_batches_tracked") and tensor.is_floating_point())
        for name, tensor in tensors.items()
    )


def convert(checkpoint):
    """Convert, strictly: each tensor is used or left out for a reason.

    Arguments
    ---------
    checkpoint : Checkpoint

    Returns
    -------
    Converted

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape; sizes that make no
        such network.
    """
    if is_campplus(checkpoint.tensors):
        return campplus(checkpoint, "3dspeaker", 0.0, FIGURES)
    weights, left_out, path = _own_tensors(checkpoint, _ERES2NETV2)
    size = _Sizes(weights, path)
    channels = size("conv1.weight")
    outputs, pooled = size("layer1.0.conv3.weight"), size("seg_1.weight", 1)
    # of 64 channels it is the width of a chunk; of others that is rounded down
    widths = [size(f"layer{n}.0.convs.0.weight") for n in range(1, 5)]
    base = next(
        (
            base
            for base in range(1, 64 * (widths[0] + 1) + 1)
            if [(channels << n) * base // 64 for n in range(4)] == widths
        ),
        None,
    )
    if base is None or outputs % channels or pooled % (16 * outputs):
        raise InputError(
            f"{path}: {channels} channels, chunks of {widths}, {outputs} channels from "
            f"stage 1, {pooled} numbers pooled: not the sizes of an ERes2NetV2"
        )
    with naming(path):
        encoder = ERes2NetV2(
            [size.count(rf"layer{n}\.(\d+)\.conv1\.weight") for n in range(1, 5)],
            channels,
            base,
            size.count(r"layer1\.0\.convs\.(\d+)\.weight"),
            outputs // channels,
            pooled // (2 * outputs),
        )
        head = TSTP(
            encoder.hidden_size,
            embedding_size=size("seg_1.weight"),
            variance_eps=1e-8,
            second_layer="seg_2.weight" in weights,
        )
    return _loaded(encoder, head, "eres2netv2", weights, left_out, path, FIGURES)


def campplus(checkpoint, front_end, eps, figures):
    """CAM++ of these features and this ε of the pooling → Converted.

    ``figures``: number of parameters → what is published of such a network.
    """
    weights, left_out, path = _own_tensors(checkpoint, _CAMPPLUS)
    size = _Sizes(weights, path)
    stem = size("head.conv1.weight")
    local = "xvector.block1.tdnnd1.cam_layer.linear_local.weight"
    blocks = size.count(r"xvector\.block(\d+)\.tdnnd1\.linear1\.weight")
    if blocks != 3 or size(_CAMPPLUS, 1) % stem:
        raise InputError(
            f"{path}: {blocks} blocks of layers and {size(_CAMPPLUS, 1)} inputs of "
            f"xvector.tdnn, expected 3, and a multiple of head.conv1's {stem}"
        )
    with naming(path):
        encoder = CAMPPlus(
            [
                size.count(rf"xvector\.block{n}\.tdnnd(\d+)\.linear1\.weight")
                for n in range(1, 4)
            ],
            channels=size(_CAMPPLUS),
            growth=size(local),
            bottleneck=size(local, 1),
            stem_channels=stem,
            n_mels=8 * (size(_CAMPPLUS, 1) // stem),
            front_end=front_end,
        )
        head = TSTP(
            encoder.hidden_size,
            embedding_size=size("xvector.dense.linear.weight"),
            variance_eps=eps,
            bias=False,
            embedding_norm=True,
        )
    return _loaded(encoder, head, "campplus", weights, left_out, path, figures)


class _Sizes:
    """Sizes of tensors of a file, or an InputError that names what is missing."""

    def __init__(self, tensors, path):
        self.tensors, self.path = tensors, path

    def __call__(self, name, axis=0):
        """One size of a tensor, above 0."""
        return size_of(self.tensors, name, self.path, axis)

    def count(self, pattern):
        """How many tensors there are of such names."""
        return sum(bool(re.fullmatch(pattern, name)) for name in self.tensors)


def _own_tensors(checkpoint, known):
    """(weights by names without what stands before them, left out, path)."""
    place = next(n for n in checkpoint.tensors if n.endswith(known))[: -len(known)]
    tensors = {n.removeprefix(place): w for n, w in checkpoint.tensors.items()}
    classifier = [name for name in tensors if name.startswith(_CLASSIFIER)]
    own = {name: w for name, w in tensors.items() if name not in classifier}
    return as_weights(own, checkpoint.path), {OF_TRAINING: classifier}, checkpoint.path


def _loaded(encoder, head, kind, weights, left_out, path, figures):
    """Encoder and head with these weights, strictly → Converted."""
    model = SpeakerEncoder(encoder, head)

    def name_in_file(name):
        part, _, name = name.partition(".")
        if part == "head":
            for own, theirs in _HEADS[kind].items():
                name = re.sub(rf"^{own}\b", theirs, name)
            return name
        names = _OF_CAMPPLUS if kind == "campplus" else _OF_ERES2NETV2
        for own, theirs in names:
            name = re.sub(own, theirs, name)
        return name

    named = UnderNames(model, name_in_file)
    expected = {name: tensor.shape for name, tensor in named.state_dict().items()}
    weights = {
        name: _as_here(weight, expected.get(name)) for name, weight in weights.items()
    }
    load_strictly(named, with_counters(named, weights), str(path))
    front_end = encoder.arguments["front_end"]
    bins = encoder.arguments["n_mels"]
    remark = f"its features are {front_end}'s, of {bins} mel bins (--kind)"
    return Converted(model.eval(), None, left_out, details_of(model, figures), [remark])


def _as_here(weight, shape):
    """The same numbers as they are held here, where that is what the file has."""
    if shape is None or weight.shape == shape or weight.dim() != 3:
        return weight
    outputs, inputs, taps = weight.shape
    if shape == (outputs, inputs) and taps == 1:  # a convolution of one place
        return weight[..., 0]
    if shape == (taps * outputs, inputs):  # taps one after another
        return weight.permute(2, 0, 1).flatten(0, 1).contiguous()
    if len(shape) == 4 and shape.numel() == weight.numel():  # channels × mel bins
        return weight.view(shape)
    return weight
