"""A ResNet of features and its head under the names of wespeaker and VoxBlink2.

ours                  wespeaker ResNet       wespeaker SimAM, VoxBlink2
encoder.X             X                      front.X  (downsample: shortcut)
head.bottleneck       seg_1                  bottleneck
head.norm, head.last  seg_bn_1, seg_2        (none)
head.pooling          pool.linear1, 2        pooling.attention

Sizes are those of the tensors. SimAM has no parameters: a ResNet of basic blocks under
``front`` has it where its pooling has attention, as all public ones.
"""

import re
from typing import NamedTuple

from speechbrain_ext.export.published.checkpoint import (
    OF_TRAINING,
    UnderNames,
    as_weights,
    size_of,
)
from speechbrain_ext.export.published.ecapa_head import with_counters
from speechbrain_ext.lobes.heads import ASP, TSTP
from speechbrain_ext.lobes.resnet import STAGES, ResNet, SimAMResNet
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.weights import load_strictly

_FIRST, _THIRD = "layer1.0.conv2.weight", "layer3.0.conv2.weight"
_FRONT = "front."
_CLASSIFIER = ("projection.", "classifier.")
FEATURES = "featCal."  # VoxBlink2's mel filters and window


class ResNetFile(NamedTuple):
    """Tensors of a ResNet by the names of the training code.

    Attributes
    ----------
    weights : dict of str to torch.Tensor
        Those of the network, float32.
    features : dict of str to torch.Tensor
        Constants of the features.
    classifier : list of str
        Names of what belongs to training alone.
    path : Path
    trunk : str
        What stands before the names of the encoder.
    """

    weights: dict
    features: dict
    classifier: list
    path: object
    trunk: str


def place_of(tensors):
    """What stands before ``layer1`` of a ResNet with four stages; None: there is none.

    Other networks have stages of these names too, but no second convolution in them, or
    two stages only.
    """
    for name, tensor in tensors.items():
        place = name.removesuffix(_FIRST)
        if place != name and tensor.dim() == 4 and f"{place}{_THIRD}" in tensors:
            return place
    return None


def has_features(tensors):
    """Whether the file holds VoxBlink2's mel filters or window."""
    return any(FEATURES in name for name in tensors)


def read_file(checkpoint):
    """Sort the tensors of a checkpoint → ResNetFile."""
    place = place_of(checkpoint.tensors)
    trunk = _FRONT if place.endswith(_FRONT) else ""
    before = place.removesuffix(trunk)
    own = {
        name.removeprefix(before): tensor for name, tensor in checkpoint.tensors.items()
    }
    classifier = [name for name in own if name.startswith(_CLASSIFIER)]
    features = {n: t for n, t in own.items() if n.startswith(FEATURES)}
    own = {n: t for n, t in own.items() if n not in features and n not in classifier}
    weights = as_weights(own, checkpoint.path)
    return ResNetFile(weights, features, classifier, checkpoint.path, trunk)


def build(file, front_end, n_mels=None):
    """The model of these tensors, strictly.

    Arguments
    ---------
    file : ResNetFile
    front_end : str
        Of :class:`~speechbrain_ext.lobes.resnet.ResNet`.
    n_mels : int, optional
        Frequencies of the features; None: eight times those that the head sees.

    Returns
    -------
    SpeakerEncoder
        In eval mode.

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape.
    """
    counts, bottleneck, widths = _blocks(file)
    width = _size(file, f"{file.trunk}conv1.weight")
    channels = width * 2 ** (STAGES - 1) * (4 if bottleneck else 1)
    frequencies, head, with_attention = _head(file, channels)
    if n_mels is None:
        n_mels = 8 * frequencies if frequencies else 80
    options = {"blocks": counts, "width": width, "n_mels": n_mels}
    options.update(front_end=front_end, block_widths=widths)
    with naming(file.path):
        if file.trunk and with_attention and not bottleneck:
            encoder = SimAMResNet(**options)
        else:
            encoder = ResNet(**options, bottleneck=bottleneck)
        model = SpeakerEncoder(encoder, head(encoder.hidden_size))
    shortcut = "shortcut"
    if any(".downsample." in name for name in file.weights):
        shortcut = "downsample"

    def name_in_file(name):
        part, _, rest = name.partition(".")
        if part == "encoder":
            return file.trunk + rest.replace("shortcut", shortcut)
        return rest if file.trunk else _wespeaker_name(rest)

    named = UnderNames(model, name_in_file)
    load_strictly(named, with_counters(named, file.weights), str(file.path))
    return model.eval()


def left_out(file, reason):
    """Reason → names, of what the model has no use for."""
    return {OF_TRAINING: file.classifier, reason: list(file.features)}


def _wespeaker_name(name):
    """Of a tensor of the head."""
    names = {
        "bottleneck": "seg_1",
        "norm": "seg_bn_1",
        "last": "seg_2",
        "pooling.attention.0": "pool.linear1",
        "pooling.attention.2": "pool.linear2",
    }
    module, _, tensor = name.rpartition(".")
    return f"{names[module]}.{tensor}"


def _size(file, name, axis=0):
    """That of a tensor that has to be there."""
    return size_of(file.weights, name, file.path, axis)


def _blocks(file):
    """(blocks of each stage, whether they are bottlenecks, channels inside them)."""
    bottleneck = f"{file.trunk}layer1.0.conv3.weight" in file.weights
    counts, widths = [], []
    for stage in range(1, STAGES + 1):
        pattern = re.compile(rf"{re.escape(file.trunk)}layer{stage}\.(\d+)\.")
        found = [pattern.match(name) for name in file.weights]
        numbers = {int(match[1]) for match in found if match}
        counts.append(max(numbers, default=0) + 1)
        for number in range(counts[-1]):
            block = f"{file.trunk}layer{stage}.{number}"
            inner = ("conv1", "conv2") if bottleneck else ("conv1",)
            widths.append([_size(file, f"{block}.{conv}.weight") for conv in inner])
    return counts, bottleneck, widths


def _head(file, channels):
    """(frequencies or None, input size → head, whether it has attention)."""
    last = "bottleneck" if file.trunk else "seg_1"
    size, pooled = (_size(file, f"{last}.weight", axis) for axis in (0, 1))
    first = "pooling.attention.0.weight" if file.trunk else "pool.linear1.weight"
    with_attention = first in file.weights
    over_all = bool(file.trunk) and not with_attention and pooled == 2 * channels
    frequencies, rest = divmod(pooled, 2 * channels)
    if rest or not frequencies:
        raise InputError(
            f"{file.path}: {last}.weight takes {pooled} numbers, expected a multiple "
            f"of {2 * channels}: mean and deviation of {channels} channels"
        )
    if over_all:
        options = {"channels": channels, "variance_eps": 0.0}
        return None, lambda width: TSTP(width, 1, size, **options), False
    if not with_attention:
        two = not file.trunk and "seg_2.weight" in file.weights
        head = lambda width: TSTP(width, 1, size, second_layer=two)  # noqa: E731
        return frequencies, head, False
    options = {"hidden": _size(file, first)}
    if not file.trunk:
        context = _size(file, first, 1) == 3 * channels * frequencies
        options.update(context=context, activation="tanh", variance_floor=1e-7)
        options.update(context_eps=1e-7)
    return frequencies, lambda width: ASP(width, 1, size, **options), True
