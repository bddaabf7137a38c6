"""ReDimNet and ReDimNet2: a dictionary ``{model_config, state_dict}``.

    backbone.stem, stage{i}.0.w, .2, .{3 + b}.conv_block, …   encoder
    backbone.fin_wght1d, mfa or head                          encoder
    pool, bn, linear, bn2                                     head ECAPAPooling
    spec                                                      compared with the features
    cls_head                                                  left out

``b6-vox2-ft_lm.pt`` of github.com/IDRnD/ReDimNet and ``b6-vox2-lm.pt`` of
github.com/PalabraAI/redimnet2 are such files. What ``model_config`` does not say is
read from the shapes, so that wespeaker's copies of ReDimNet2, which have none and call
the features ``frontend.spec``, load.
"""

import functools

import torch

from speechbrain_ext.export.published.checkpoint import (
    OF_TRAINING,
    ON_VOX1,
    Converted,
    UnderNames,
    as_weights,
)
from speechbrain_ext.export.published.ecapa_head import with_counters
from speechbrain_ext.export.published.redimnet_config import (
    read_options,
    sizes_of_tensors,
)
from speechbrain_ext.features.redimnet import PREEMPHASIS
from speechbrain_ext.lobes.heads import ECAPAPooling
from speechbrain_ext.lobes.redimnet import ReDimNet, ReDimNet2
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import read_json
from speechbrain_ext.utils.weights import load_strictly

TITLE = "ReDimNet and ReDimNet2: model_config and state_dict; backbone.stem.*, pool.*"
LICENCE = (
    "licence not stated in the file; the repositories (IDRnD/ReDimNet, "
    "PalabraAI/redimnet2) are MIT, data such as VoxBlink2 have licences of their own"
)

# File → EER on Vox1-O / E / H in per cent, without score normalisation, as the READMEs
# of the two repositories publish it
_FIGURES = {
    **{
        f"b{size}-vox2-ft_lm": figures
        for size, figures in enumerate(
            (
                *("1.16 / 1.25 / 2.20", "0.85 / 0.97 / 1.73", "0.57 / 0.76 / 1.32"),
                *("0.50 / 0.73 / 1.33", "0.51 / 0.68 / 1.26", "0.43 / 0.61 / 1.08"),
                "0.40 / 0.55 / 1.05",
            )
        )
    },
    **{
        f"b{size}-vox2-lm": figures
        for size, figures in enumerate(
            (
                *("1.04 / 1.16 / 1.97", "0.78 / 0.96 / 1.72", "0.57 / 0.76 / 1.41"),
                *("0.42 / 0.66 / 1.22", "0.37 / 0.58 / 1.07", "0.33 / 0.56 / 1.07"),
                "0.29 / 0.52 / 0.99",
            )
        )
    },
    "b6-vb2+vox2_v0-lm": "0.23 / 0.35 / 0.67",
    "b6-vb2+vox2_v0-ptn": "0.29 / 0.50 / 0.94",
    "b3-vb2+vox2+cnc2_v0-lm": "0.51 / 0.60 / 1.14",
    "b3-vb2+vox2+cnc2_v0-ptn": "0.69 / 0.82 / 1.47",
    "b6-vb2+vox2+cnc2_v0-lm": "0.26 / 0.41 / 0.79",
    "b6-vb2+vox2+cnc2_v0-ptn": "0.42 / 0.58 / 1.07",
}
_FIRST = "backbone.stem.0.weight"
_CLASSIFIERS = ("cls_head.", "projection.")
_SPEC, _OUTSIDE = "spec.", "frontend."
_HEAD = {
    "pooling.attention.0": "pool.linear1",
    "pooling.attention.2": "pool.linear2",
    "norm": "bn",
    "bottleneck": "linear",
    "embedding_norm": "bn2",
}
_ENCODER = {
    "stem": "stem.0",
    "stem_norm": "stem.1",
    "stem_gnorm": "stem_gnorm",
    "aggregation.weight": "fin_wght1d.w",
}
_BLOCK = {
    "conv1": "conv1",
    "point1": "conv1pw",
    "norm1": "bn1",
    "conv2": "conv2",
    "point2": "conv2pw",
    "norm2": "bn2",
    "gate.squeeze": "se.squeeze",
    "gate.excite": "se.exitation",
    "convs": "dwconvs",
    "norm": "norm",
    "point": "pwconv1",
}
_TIME = {
    "reduce": "red_dim_conv.0",
    "norm": "red_dim_conv.1",
    "expand": "exp_dim_conv",
}
_TRANSFORMER = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "out": "attention.out_proj",
    "attention_norm": "layer_norm",
    "hidden": "feed_forward.intermediate_dense",
    "output": "feed_forward.output_dense",
    "norm": "final_layer_norm",
}


def detect(tensors):
    """Whether there is such a backbone."""
    return any(name.endswith(_FIRST) for name in tensors)


def convert(checkpoint, encoder_config=None):
    """Convert, strictly: each tensor is used, compared, or left out for a reason.

    Arguments
    ---------
    checkpoint : Checkpoint
    encoder_config : str or Path, optional
        JSON of ``model_config``, in the place of the file's own.

    Returns
    -------
    Converted

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape; an option that is
        not known, or not supported.
    """
    path = checkpoint.path
    place = next(n for n in checkpoint.tensors if n.endswith(_FIRST))[: -len(_FIRST)]
    strange = [n for n in checkpoint.tensors if not n.startswith(place)]
    if strange:
        raise InputError(
            f"{path}: weights do not fit: {len(strange)} unexpected: {strange[0]}"
        )
    tensors = {
        n.removeprefix(place).removeprefix(_OUTSIDE): w
        for n, w in checkpoint.tensors.items()
    }
    if any(name.startswith("backbone.inputs_weights.") for name in tensors):
        raise InputError(
            f"{path}: wespeaker's copy of ReDimNet (backbone.inputs_weights, Kaldi's "
            "features), expected a file of IDRnD/ReDimNet or PalabraAI/redimnet2"
        )
    classifier = [name for name in tensors if name.startswith(_CLASSIFIERS)]
    config = checkpoint.config
    if encoder_config is not None:
        config = read_json(encoder_config, {}, what="a model_config")
    if not config and not any(name.startswith(_SPEC) for name in tensors):
        raise InputError(
            f"{path}: neither a model_config nor constants of features "
            f"({_OUTSIDE}{_SPEC}* or {_SPEC}*), expected a model_config "
            "(encoder_config)"
        )
    weights = as_weights(
        {n: w for n, w in tensors.items() if n not in classifier}, path
    )
    with naming(path):
        options = read_options(config, sizes_of_tensors(weights))
        encoder = (ReDimNet2 if options.second else ReDimNet)(**options.encoder)
        head = ECAPAPooling(encoder.hidden_size, flavour="wespeaker", **options.head)
    constants = {n: w for n, w in weights.items() if n.startswith(_SPEC)}
    _check_features(constants, encoder.features, path)
    own = {n: w for n, w in weights.items() if n not in constants}
    model = SpeakerEncoder(encoder, head)
    named = UnderNames(model, functools.partial(_name_in_file, model))
    own = with_counters(named, own)
    shapes = {name: tensor.shape for name, tensor in named.state_dict().items()}
    own = {n: _as_ours(w, shapes.get(n, w.shape)) for n, w in own.items()}
    load_strictly(named, own, str(path))
    remarks = list(options.remarks)
    if constants:
        remarks.append(f"{len(constants)} constants of its features are as computed")
    details = {"front_end": options.encoder["front_end"]}
    if figures := _FIGURES.get(path.stem):
        details["published_figures"] = ON_VOX1 + figures
    return Converted(model.eval(), None, {OF_TRAINING: classifier}, details, remarks)


def _name_in_file(model, name):
    """The name in the file of a tensor of the model."""
    part, _, name = name.partition(".")
    if part == "head":
        return _renamed(_HEAD, name)
    encoder = model.encoder
    of_second = isinstance(encoder, ReDimNet2)
    if name.startswith("out"):
        names = {"out": "head"} if of_second else {"out": "mfa.0", "out_norm": "mfa.1"}
        return f"backbone.{_renamed(names, name)}"
    if not name.startswith("stages."):
        return f"backbone.{_renamed(_ENCODER, name)}"
    _, number, part, rest = name.split(".", 3)
    stage, place = encoder.stages[int(number)], f"backbone.stage{number}"
    before = f"{place}_pre" if stage.dual else place
    last = 3 + len(stage.blocks) + (stage.squeeze is not None)  # of the reshape
    if part == "aggregation":
        return f"{before}.0.w"
    if part == "resize":
        return f"{before}.2.{rest}"
    if part == "blocks":
        block, _, rest = rest.partition(".")
        return f"{before}.{3 + int(block)}.conv_block.{_renamed(_BLOCK, rest)}"
    if part == "squeeze":
        names = {"conv": "0", "norm": "1", "point": "3"}
        return f"{before}.{last - 1}.{_renamed(names, rest)}"
    if part == "norms":
        which, _, rest = rest.partition(".")
        if stage.dual:
            return f"{place}_up_{('2d', '1d')[int(which)]}.1.{rest}"
        return f"{place}.{last + 2 + (stage.context is not None)}.{rest}"
    place = f"{place}_1d" if stage.dual else f"{place}.{last + 1}"
    if not rest.startswith("layers."):
        return f"{place}.{_renamed(_TIME, rest)}"
    _, layer, rest = rest.split(".", 2)
    kind = encoder.block_1d_type
    if kind == "fc":
        return f"{place}.tcm.{rest}"
    names = _BLOCK
    if kind.endswith("att") and int(layer) == len(stage.context.layers) - 1:
        names = _TRANSFORMER
    elif kind == "att":
        names = {"conv": "conv", "norm": "norm"}
    return f"{place}.tcm.{layer}.{_renamed(names, rest)}"


def _renamed(names, name):
    """The longest beginning that there is in ``names``, replaced."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        first = ".".join(parts[:end])
        if first in names:
            return ".".join([names[first], *parts[end:]])
    return name


def _as_ours(tensor, shape):
    """Of the file → of our modules: frequency behind time, 1×1 kernels taken off."""
    if len(shape) == 4:
        return tensor.unsqueeze(2) if tensor.dim() == 3 else tensor.transpose(-1, -2)
    if len(shape) == 2 and tensor.dim() == 4 and tensor.shape[0] == 1:
        return tensor[0, ..., 0] if tensor.shape[3] == 1 else tensor
    if len(shape) == 2 and tensor.dim() > 2 and set(tensor.shape[2:]) == {1}:
        return tensor.flatten(1)
    return tensor


def _check_features(constants, features, path):
    """InputError where stored filters are not those of the configuration."""
    _, mel, window = features.constants(torch.device("cpu"))
    expected = {}
    if features.do_preemph:
        expected["1.flipped_filter"] = torch.tensor([-PREEMPHASIS, 1.0])
    if features.kind == "pt":
        left = (features.fft - features.frame) // 2
        expected["2.spectrogram.window"] = window[left : left + features.frame]
        expected["2.mel_scale.fb"] = mel
    else:
        real, imaginary = window.chunk(2)
        expected["2.real_kernel_pt"] = real
        expected["2.image_kernel_pt"] = imaginary
        expected["2.melbanks_pt"] = mel.t()
    expected = {f"{_SPEC}torchfbank.{n}": value for n, value in expected.items()}
    if not constants:  # wespeaker's copies have the features outside the model
        return
    names = sorted({*constants, *expected})
    for name in names:
        given, own = constants.get(name), expected.get(name)
        if given is None or own is None:
            which = "unexpected" if own is None else "missing"
            raise InputError(f"{path}: weights do not fit: {which}: {name}")
        fits = given.squeeze().shape == own.squeeze().shape
        if not fits or (given.squeeze() - own.squeeze()).abs().max() > 1e-4:
            raise InputError(
                f"{path}: {name} {tuple(given.shape)} is not what model_config "
                f"describes, {tuple(own.shape)}"
            )
