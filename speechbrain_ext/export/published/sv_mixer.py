"""SV-Mixer's student encoder, as dayflys/SSRFNet and Jungwoo4021/SV-Mixer have it.

    conv_layers, feat_projection       feature_extractor, feature_projection
    layers.{l}.token_mixing            local_mix1, 2: local1, 2; linear1, 2: over_time
    layers.{l}.channel_mixing          fc1, 2: slow; fc3, 4: fast; fc5, 6: mix1, 2
    layer_norm                         encoder.layer_norm

Sizes are read from the shapes. What is converted is an encoder alone, which
``SVMixerEncoder(source=the folder)`` loads; weights of a head are left out.
"""

import re

from speechbrain_ext.export.published.checkpoint import (
    Converted,
    UnderNames,
    as_weights,
    size_of,
)
from speechbrain_ext.lobes.sv_mixer import SVMixerEncoder
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import load_strictly

TITLE = "SV-Mixer's student encoder: layers.*.token_mixing.*, channel_mixing.*"
LICENCE = (
    "licence not stated in the file; the repositories (dayflys/SSRFNet, "
    "Jungwoo4021/SV-Mixer) are MIT, its training data VoxCeleb2 has its own"
)

_FIRST = "layers.0.token_mixing.linear1.weight"
# Ours → theirs
_NAMES = {
    "feature_extractor.": "",
    "feature_projection.": "feat_projection.",
    "encoder.": "",
    "token_mixing.local1": "token_mixing.local_mix1",
    "token_mixing.local2": "token_mixing.local_mix2",
    "over_time.up": "linear1",
    "over_time.down": "linear2",
    "channel_mixing.norm": "channel_mixing.norm1",
    "slow.up": "fc1",
    "slow.down": "fc2",
    "fast.up": "fc3",
    "fast.down": "fc4",
    "channel_mixing.mix1": "channel_mixing.fc5",
    "channel_mixing.mix2": "channel_mixing.fc6",
}
_HEAD = "of a head, whose code the repositories' encoder does not have"


def detect(tensors):
    """Whether these are the tensors of such a file."""
    return _prefix(tensors) is not None


def convert(content):
    """Checkpoint → Converted, of an encoder."""
    path, prefix = content.path, _prefix(content.tensors)
    tensors = as_weights(content.tensors, path)
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    known = ("conv_layers.", "feat_projection.", "layers.", "layer_norm.")
    own = {name: w for name, w in inside.items() if name.startswith(known)}
    taken = {f"{prefix}{name}" for name in own}
    others = [name for name in tensors if name not in taken]
    config = _configuration(own, path)
    encoder = SVMixerEncoder(config)
    for name, weight in own.items():
        if re.search(r"\.fc[12346]\.weight$", name) and weight.dim() == 3:
            own[name] = weight.squeeze(2)
    load_strictly(UnderNames(encoder, _published), own, str(path))
    layers, frames = config["num_hidden_layers"], config["frames"]
    remarks = [f"{layers} layers, {frames} frames of training"]
    left_out = {_HEAD: others} if others else {}
    return Converted(encoder.eval(), None, left_out, {}, remarks)


def _prefix(tensors):
    """What stands before the names of the encoder; None where there is none."""
    ends = [name for name in tensors if name.endswith(_FIRST)]
    return ends[0].removesuffix(_FIRST) if len(ends) == 1 else None


def _published(name):
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _configuration(own, path):
    def size(name, axis=0):
        return size_of(own, name, path, axis)

    frames, channel = size(_FIRST, 1), "layers.0.channel_mixing.fc3.weight"
    units, width = size(_FIRST), size("feat_projection.projection.weight")
    if units % frames or size(channel) != units // frames * width:
        raise InputError(
            f"{path}: weights do not fit: {_FIRST} is {units} × {frames}, {channel} "
            f"has {size(channel)} rows; expected equal multiples of {frames} and "
            f"{width}"
        )
    convolutions = _count(own, r"conv_layers\.(\d+)\.conv\.weight")
    shape = [f"conv_layers.{i}.conv.weight" for i in range(convolutions)]
    strides = [5] + [2] * (convolutions - 1)  # the shapes do not tell
    return {
        "hidden_size": width,
        "num_hidden_layers": _count(own, r"layers\.(\d+)\.token_mixing\.norm\.weight"),
        "frames": frames,
        "expansion": units // frames,
        "group_size": size(channel, 1),
        "conv_dim": [size(name) for name in shape],
        "conv_kernel": [size(name, 2) for name in shape],
        "conv_stride": strides,
    }


def _count(own, pattern):
    return sum(re.fullmatch(pattern, name) is not None for name in own)
