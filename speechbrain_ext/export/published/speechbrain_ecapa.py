"""SpeechBrain's ECAPA-TDNN: ``speechbrain/spkrec-ecapa-voxceleb`` and its like.

    embedding_model.ckpt        the network, a flat dictionary
    hyperparams.yaml            its features and dilations: read, never run
    mean_var_norm_emb.ckpt      the mean embedding: left out
    classifier.ckpt             left out

Ravanelli et al. 2021 (arXiv 2106.04624), recipes/VoxCeleb. Embeddings are those of
``EncoderClassifier.encode_batch`` and ``SpeakerRecognition``, which take no mean off.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechbrain_ext.export.published.checkpoint import Converted, details_of, named_so
from speechbrain_ext.export.published.ecapa_model import (
    SPEECHBRAIN,
    build,
    own_tensors,
    place_of,
)
from speechbrain_ext.pretrained import HYPERPARAMS
from speechbrain_ext.utils.config import read_tree
from speechbrain_ext.utils.errors import InputError, naming

TITLE = "SpeechBrain's ECAPA-TDNN: blocks, mfa, asp and fc, with hyperparams.yaml"
LICENCE = "Apache-2.0, as the card of speechbrain/spkrec-ecapa-voxceleb says"

# Parameters → what the card publishes
FIGURES = {20_767_552: "0.90; with s-norm: 0.80"}
_SAYS_SO = re.compile(r"speechbrain|spkrec|embedding_model")
# Options of SpeechBrain's Fbank: those that ours has, and their defaults there
_FBANK = {
    "sample_rate": 16000,
    "f_min": 0,
    "f_max": None,
    "n_fft": 400,
    "win_length": 25,
    "hop_length": 10,
    "filter_shape": "triangular",
}
_WITHOUT = ("deltas", "context", "requires_grad")
_NETWORK = (
    "input_size",
    "channels",
    "kernel_sizes",
    "lin_neurons",
    "dropout",
    "device",
)
_NETWORK += ("attention_channels", "res2net_scale", "se_channels", "global_context")


def detect(tensors):
    """Whether there are its blocks."""
    return place_of(tensors, SPEECHBRAIN) is not None


def said_beside(path):
    """Whether names of the file or its folder, or hyperparams.yaml there, say so."""
    return named_so(path, _SAYS_SO, HYPERPARAMS)


def convert(checkpoint):
    """Convert, strictly: each tensor is used.

    Arguments
    ---------
    checkpoint : Checkpoint

    Returns
    -------
    Converted

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape; features, or a
        network, of ``hyperparams.yaml`` that are not those of this format.
    """
    path = checkpoint.path
    weights, _ = own_tensors(checkpoint, SPEECHBRAIN, ())
    file = Path(path).parent / HYPERPARAMS
    fbank, dilations, found = {}, None, file.is_file()
    if found:
        with naming(file):
            fbank, dilations = _read_hyperparams(read_tree(file))
    n_mels = fbank.pop("n_mels", None)
    model = build(weights, path, SPEECHBRAIN, "speechbrain", dilations, fbank or None)
    arguments = model.encoder.arguments
    if n_mels not in (None, arguments["n_mels"]):
        raise InputError(
            f"{file}: n_mels {n_mels}, expected {arguments['n_mels']} as in {path}"
        )
    source = HYPERPARAMS if found else f"as there is no {HYPERPARAMS}"
    remarks = [
        f"SpeechBrain's Fbank of {arguments['n_mels']} mels, the mean of each "
        f"recording removed ({source})",
        "mean_var_norm_emb.ckpt and classifier.ckpt are not taken: an embedding is "
        "that of encode_batch without normalize",
    ]
    details = details_of(model, FIGURES, "EER on Vox1-O in %: ")
    return Converted(model, None, {}, details, remarks)


def _read_hyperparams(tree):
    """What a model's ``hyperparams.yaml`` says → (options of the features, dilations).

    Its objects are not built: a file that builds others may run anything.
    """
    network = _options_of(tree, "ECAPA_TDNN")
    fbank = _options_of(tree, "Fbank", {"n_mels": 40})
    norm = _options_of(tree, "InputNormalization", key="mean_var_norm")
    if (kind := norm.pop("norm_type", "global")) != "sentence":
        raise InputError(f"mean_var_norm: norm_type {kind!r}, expected 'sentence'")
    options = {"n_mels": fbank.pop("n_mels")}
    for name, default in _FBANK.items():
        if (value := fbank.pop(name, default)) != default:
            options[name] = value
    if norm.pop("std_norm", True):
        options["std_norm"] = True
    if not norm.pop("mean_norm", True):
        raise InputError("mean_var_norm: mean_norm False, expected True")
    for name in _WITHOUT:
        if fbank.pop(name, False):
            raise InputError(f"compute_features: {name}, which are not supported")
    dilations = network.pop("dilations", None)
    for name in _NETWORK:  # which the shapes tell, or training alone has
        network.pop(name, None)
    groups = network.pop("groups", [1])
    if not isinstance(groups, Sequence) or set(groups) != {1}:
        raise InputError(f"embedding_model: groups {groups}, expected 1 of each")
    unused = ("left_frames", "right_frames", "param_change_factor", "param_rand_factor")
    left = [*network, *(name for name in fbank if name not in unused)]
    if left:
        raise InputError(f"{left[0]}: an option that is not supported")
    return options, dilations


def _options_of(tree, kind, defaults=None, key=None):
    """Keyword arguments of the one object of that class in the file, as values."""
    found = [
        node
        for name, node in tree.items()
        if _tag(node).startswith("!new:")
        and _tag(node).endswith(f".{kind}")
        and key in (None, name)
    ]
    if len(found) != 1:
        what = f"{key} of class {kind}" if key else f"object of class {kind}"
        raise InputError(f"{len(found)} times an {what}, expected one")
    options = found[0] if isinstance(found[0], Mapping) else {}
    values = {
        name: _value(tree, value, name)
        for name, value in options.items()
        if _tag(value) != "!name:torch.nn.ReLU"  # the activation, as it is anyway
    }
    return {**(defaults or {}), **values}


def _tag(node):
    return str(getattr(getattr(node, "tag", None), "value", None) or "")


def _value(tree, node, name, depth=0):
    """A value of the file, references followed."""
    if _tag(node) == "!ref":
        reference = re.fullmatch(r"<(\w+)>", str(node.value).strip())
        if reference is None or reference[1] not in tree or depth > len(tree):
            raise InputError(f"{name}: {node.value}, expected a value or <key>")
        return _value(tree, tree[reference[1]], name, depth + 1)
    if _tag(node).startswith("!"):
        raise InputError(f"{name}: {_tag(node)}, expected a plain value")
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_value(tree, item, name, depth) for item in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    raise InputError(f"{name}: {node!r}, expected a plain value")
