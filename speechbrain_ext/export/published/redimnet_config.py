"""``model_config`` of ReDimNet and ReDimNet2 → arguments of our classes.

Every option is read, has one value that is supported, or acts in training alone. Sizes
that it does not say are read from the shapes of the tensors.
"""

import math
import re
from typing import NamedTuple

from speechbrain_ext.utils.errors import InputError

# Options of training alone, and those that leave the embedding as it is
_OF_TRAINING = (
    *("num_classes", "class_dropout", "head_activation", "return_all_outputs"),
)
_OF_SPEC_TRAINING = (
    *("do_spec_aug", "freq_start_bin", "num_apply_spec_aug"),
    *("freq_mask_width", "time_mask_width"),
)
_SPEC = (
    *("sample_rate", "n_fft", "win_length", "f_min", "f_max"),
    *("norm_signal", "do_preemph", "spec_norm", "eps"),
)
# Option → the values that are supported
_FIXED = {
    "pooling_func": ("ASTP",),
    "tf_optimized_arch": (False,),
    "causal": ("none", False, None),  # of the original False stops
    "spec_in_channels": (1,),
    "use_freq_pos_enc": (False,),
    "fm_weigthing_type": ("NC",),
    "before_pool_offset": (None, 0),
    "offset_fm_weights": (0,),
    "is_subnet": (False,),
}
_SIZES = ("stages_setup", "block_1d_type", "block_2d_type", "group_divisor")
_READ = (
    *(*_SIZES, "F", "C", "out_channels", "embed_dim", "hop_length", "feat_type"),
    *("global_context_att", "emb_bn", "spec_params", "feat_agg_dropout", "att_dos"),
)
_OF_SECOND = (
    *("compress_tconvs", "return_2d_output", "dual_agg", "agg_gnorm"),
    *("pad_right_samples",),
)


class Options(NamedTuple):
    """What a file says.

    Attributes
    ----------
    second : bool
        Whether it is ReDimNet2.
    encoder, head : dict
        Arguments of their classes.
    remarks : list of str
        For the log.
    """

    second: bool
    encoder: dict
    head: dict
    remarks: list


def read_options(config, sizes):
    """``model_config`` and :func:`sizes_of_tensors` → Options.

    InputError: an option that is unknown, or has a value that is not supported.
    """
    for name, value in config.items():
        known = {*_READ, *_OF_SECOND, *_OF_TRAINING, *_FIXED}
        if name not in known:
            raise InputError(
                f"model_config: {name} {value!r} is not known, expected some of "
                f"{', '.join(sorted(known))}"
            )
        if name in _FIXED and value not in _FIXED[name]:
            expected = " or ".join(map(repr, _FIXED[name]))
            raise InputError(f"model_config: {name} {value!r}, expected {expected}")
    second = sizes["second"]
    if "return_2d_output" not in sizes and "return_2d_output" not in config and second:
        raise InputError(
            "return_2d_output is in no tensor, expected a model_config (encoder_config)"
        )
    given = {**sizes, **config}
    encoder = {
        "bins": given["F"],
        "channels": given["C"],
        **{name: given[name] for name in _SIZES},
        "group_divisor": given["group_divisor"] or 0,
        "out_channels": given["out_channels"] or 0,
        "front_end": _front_end(given, second),
    }
    if second:
        for name in ("compress_tconvs", "return_2d_output", "dual_agg"):
            encoder[name] = given[name]
        encoder["agg_gnorm"] = given["agg_gnorm"] or False
    else:
        encoder["feat_agg_dropout"] = given.get("feat_agg_dropout", 0.0)
    _check_dropouts(given.get("att_dos") or {})
    head = {
        "embedding_size": given["embed_dim"],
        "hidden": sizes["hidden"],
        "context": given["global_context_att"],
        "embedding_norm": given["emb_bn"],
    }
    remarks = []
    if not config:
        remarks.append(
            "no model_config: sizes are those of the tensors, features the default "
            f"ones, {encoder['front_end']} (encoder_config says otherwise)"
        )
    return Options(second, encoder, head, remarks)


def _front_end(given, second):
    """Options of ReDimNetFeatures."""
    spec = given.get("spec_params")
    if spec is None:
        spec = {"norm_signal": True} if second else {}
    front_end = {"feat_type": given["feat_type"]}
    if "hop_length" in given:
        front_end["hop_length"] = given["hop_length"]
    if given.get("pad_right_samples"):
        front_end["pad_right"] = given["pad_right_samples"]
    for name, value in spec.items():
        if name in _SPEC:
            front_end[name] = value
        elif name not in _OF_SPEC_TRAINING:
            raise InputError(
                f"model_config: spec_params.{name} {value!r} is not known, expected "
                f"some of {', '.join((*_SPEC, *_OF_SPEC_TRAINING))}"
            )
    if "eps" in spec and not given["feat_type"].startswith("tf"):
        raise InputError(
            f"model_config: spec_params.eps {spec['eps']!r} with feat_type "
            f"{given['feat_type']!r}, expected 'tf'"
        )
    return front_end


def _check_dropouts(options):
    """Of attention layers: in training alone, all else changes what they compute."""
    for name, value in options.items():
        if name not in ("act_do", "att_do", "hid_do"):
            raise InputError(
                f"model_config: att_dos.{name} {value!r}, expected act_do, att_do or "
                "hid_do"
            )


# -- sizes of tensors ------------------------------------------------------------------


def sizes_of_tensors(tensors):
    """What shapes and names tell, by the options' names → dict.

    ``second``, whether it is ReDimNet2, and ``hidden``, of the pooling, are there too.

    InputError: a tensor without which there is no telling.
    """

    def shape(name, dims):
        found = tuple(tensors[name].shape) if name in tensors else ()
        if len(found) != dims or not all(found):
            raise InputError(
                f"weights do not fit: missing {name}, or of another shape: {found}"
            )
        return found

    def size(name):
        return shape(name, tensors[name].dim() if name in tensors else 1)[0]

    channels = shape("backbone.stem.0.weight", 4)[0]
    width = shape("backbone.fin_wght1d.w", 4)[2]
    first = "backbone.stage0_pre" if "backbone.stage0_pre.0.w" in tensors else ""
    first = first or "backbone.stage0"
    second = shape(f"{first}.0.w", 4)[2] > 1
    stages, kinds, groups, compressed, c, time = [], set(), [], None, channels, 1
    while True:
        place = f"backbone.stage{len(stages)}"
        before = f"{place}_pre" if f"{place}_pre.0.w" in tensors else place
        if f"{before}.0.w" not in tensors:
            break
        inner, own, of_bins, of_time = shape(f"{before}.2.weight", 4)
        if own != c:
            compressed = True
        elif math.gcd(c, inner) > 1:
            compressed = False
        c *= of_bins
        numbers = _numbers(tensors, rf"{re.escape(before)}\.(\d+)\.conv_block\.")
        kernels = [[3, 3]]
        for number in numbers:
            block = f"{before}.{number}.conv_block"
            if f"{block}.conv1.weight" in tensors:
                gated = f"{block}.se.squeeze.weight" in tensors
                kinds.add("basic_resnet_fwse" if gated else "basic_resnet")
                if f"{block}.conv1pw.weight" in tensors:
                    groups.append((inner, shape(f"{block}.conv1.weight", 4)[1]))
                continue
            kinds.add("convnext_like")
            convs = _numbers(tensors, rf"{re.escape(block)}\.dwconvs\.(\d+)\.weight")
            shapes = [shape(f"{block}.dwconvs.{n}.weight", 4) for n in convs]
            kernels = [list(found[2:]) for found in shapes]
            groups += [(inner, found[1]) for found in shapes]
        reduced = [
            name
            for name in tensors
            if re.fullmatch(rf"{place}(_1d|\.\d+)\.red_dim_conv\.0\.weight", name)
        ]
        stride = [of_bins, of_time // time] if second else of_bins
        expansion = inner / c
        expansion = int(expansion) if expansion.is_integer() else expansion
        reduction = width // size(reduced[0]) if reduced else None
        stages.append([stride, len(numbers), expansion, kernels, reduction])
        time = of_time
    if width % channels or len(kinds) > 1:
        raise InputError(
            f"weights do not fit: {width} channels of a sequence, {channels} of the "
            f"stem, blocks {' and '.join(sorted(kinds)) or 'none'}"
        )
    attended = shape("pool.linear1.weight", 3)
    sizes = {
        "F": width // channels,
        "C": channels,
        "stages_setup": stages,
        "block_1d_type": _time_kind(tensors),
        "block_2d_type": next(iter(kinds), "basic_resnet"),
        "group_divisor": _divisor(groups),
        "out_channels": None,
        "embed_dim": size("linear.weight"),
        "hidden": attended[0],
        "global_context_att": attended[1] == 3 * (size("pool.linear2.weight")),
        "emb_bn": "bn2.weight" in tensors,
        "feat_type": "pt",
        "second": second,
    }
    if not second:
        if "backbone.mfa.0.weight" in tensors:
            sizes["out_channels"] = size("backbone.mfa.0.weight")
        return sizes
    sizes["compress_tconvs"] = compressed is not False
    sizes["dual_agg"] = any("_pre." in name for name in tensors)
    sizes["agg_gnorm"] = "backbone.stem_gnorm.weight" in tensors
    if any(".real_kernel_pt" in n for n in tensors) or not any(
        n.startswith("spec.") for n in tensors
    ):
        sizes["feat_type"] = "tf"
    if "backbone.head.weight" in tensors:
        sizes["out_channels"] = size("backbone.head.weight")
        sizes["return_2d_output"] = tensors["backbone.head.weight"].dim() == 4
    return sizes


def _numbers(tensors, pattern):
    """The numbers that a pattern finds in names, in order."""
    found = (re.match(pattern, name) for name in tensors)
    return sorted({int(match[1]) for match in found if match})


def _divisor(groups):
    """The smallest divisor by which (channels, channels of a group) come; None: none.

    InputError: there is no such divisor.
    """
    if not groups:
        return None
    for divisor in range(1, max(channels for channels, _ in groups) + 1):
        if all(channels // divisor == channels // own for channels, own in groups):
            return divisor
    raise InputError(f"weights do not fit: groups of {sorted(set(groups))}")


def _time_kind(tensors):
    """``block_1d_type`` by the layers over time."""
    layers = {}
    for name in tensors:
        if match := re.search(r"\.tcm\.(\d+)\.(\w+)\.", name):
            layers.setdefault(int(match[1]), set()).add(match[2])
    if layers:
        if "attention" in layers[max(layers)]:
            return "att" if "conv" in layers.get(0, ()) else "conv+att"
        return {4: "conv", 3: "convx2"}.get(len(layers), "conv")
    plain = any(re.search(r"\.tcm\.\d+\.weight$", name) for name in tensors)
    return "fc" if plain else "conv+att"
