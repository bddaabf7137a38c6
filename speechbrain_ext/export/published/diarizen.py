"""Pruned encoders of DPHuBERT and DiariZen, under torchaudio's names.

    {"state_dict": {…}, "config": {…}}; or wavlm_model.X of a diarisation model

    ours (those of transformers)     in the file
    feature_extractor.X              feature_extractor.X
    feature_extractor.scale.weight   feature_extractor.dummy_weight
    feature_projection.X             encoder.feature_projection.X
    encoder.X                        encoder.transformer.X

Peng et al. 2023 (arXiv 2305.17651), github.com/pyf98/DPHuBERT; Han et al. 2025 (arXiv
2505.24111), github.com/BUTSpeechFIT/DiariZen. There is no head: the encoder alone is
written. Widths are those of the tensors. Which of WavLM's heads are left stands in the
configuration alone.

What the published code does, and so the converted encoder: the channels of the last
convolution are scaled (``dummy_weight``, the gates they were pruned with) before the
LayerNorm of the projection; LayerNorms see the channels that are left; a part that was
removed leaves no bias; without attention in layer 0, whose table of positions is then
gone, no layer has a position bias.
"""

import re

import torch

from speechbrain_ext.export.published.checkpoint import (
    Converted,
    UnderNames,
    as_weights,
    size_of,
)
from speechbrain_ext.export.published.fairseq_encoder import old_weight_norm
from speechbrain_ext.lobes.wav2vec2 import HubertEncoder
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import read_json
from speechbrain_ext.utils.weights import load_strictly

TITLE = "pruned encoders of DPHuBERT and DiariZen: encoder.transformer.layers.*"
LICENCE = (
    "licence not stated in the file; DiariZen's weights are CC BY-NC 4.0, the code of "
    "both is MIT"
)

_TRANSFORMER = "encoder.transformer."
_LAYERS = f"{_TRANSFORMER}layers."
_CONV = "feature_extractor.conv_layers."
_SCALE = "feature_extractor.dummy_weight"
_TABLE = f"{_LAYERS}0.attention.rel_attn_embed.weight"
_KNOWN = f"{_TRANSFORMER}pos_conv_embed.conv.bias"
# As published, where no configuration says others.
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_HEAD_DIM, _CHANNELS = 64, 512
_GROUPS = ("num_attention_heads_group", "intermediate_size_group")
_NORM_OF_A_PART = r"layers\.\d+\.(final_)?layer_norm\.(weight|bias)$"
# transformers' name → the published one.
_DROPOUTS = {
    "feat_proj_dropout": "encoder_projection_dropout",
    "attention_dropout": "encoder_attention_dropout",
    "activation_dropout": "encoder_ff_interm_dropout",
    "hidden_dropout": "encoder_dropout",
}
# Beginnings of names beside an encoder → why they are left out.
_LEFT_OUT = {
    "distill_linear_projs.": "projections of distillation",
    "teacher_model.": "teacher of distillation",
    "aux.": "output layer of speech recognition",
    **dict.fromkeys(
        ("weight_sum.", "proj.", "lnorm.", "conformer.", "classifier."),
        "of diarisation",
    ),
}


def detect(tensors):
    """Whether some names are those of torchaudio's encoder."""
    return any(name == _KNOWN or name.endswith(f".{_KNOWN}") for name in tensors)


def name_in_file(name):
    """The name in the file of an encoder's tensor."""
    name = old_weight_norm(name)
    if name == "feature_extractor.scale.weight":
        return _SCALE
    if name == "encoder.rel_attn_embed.weight":
        return _TABLE
    if name.startswith("feature_projection."):
        return f"encoder.{name}"
    if name.startswith("encoder."):
        return _TRANSFORMER + name.removeprefix("encoder.")
    return name


class _Encoder:
    """An encoder's tensors by names without prefix, and what they show.

    Arguments
    ---------
    checkpoint : Checkpoint
    """

    def __init__(self, checkpoint):
        self.path, self.left_out = checkpoint.path, {}
        known = [name for name in checkpoint.tensors if name.endswith(_KNOWN)]
        self.prefix = known[0].removesuffix(_KNOWN)
        if len(known) > 1:
            raise InputError(
                f"{self.path}: {len(known)} encoders, {', '.join(known)}; expected 1"
            )
        own = {}
        for name, tensor in checkpoint.tensors.items():
            inside = name.startswith(self.prefix)
            short = old_weight_norm(name.removeprefix(self.prefix))
            reasons = [r for b, r in _LEFT_OUT.items() if short.startswith(b)]
            if "hard_concrete" in name:
                raise InputError(
                    f"{self.path}: {name}: its gates are in place, expected a "
                    "checkpoint that was pruned"
                )
            if reasons:
                self.left_out.setdefault(reasons[0], []).append(name)
            elif inside:
                own[short] = tensor
            else:
                raise InputError(
                    f"{self.path}: tensor {name} is no part of the encoder "
                    f"{self.prefix}*, and nothing that is known to be left out"
                )
        self.tensors = as_weights(own, self.path)

    def size(self, name, axis=0):
        """Of one axis; InputError where the tensor is missing or has none."""
        return size_of(self.tensors, name, self.path, axis, self.prefix)

    def has(self, beginning):
        """Whether there is a tensor of a module."""
        return any(name.startswith(beginning) for name in self.tensors)

    def count(self, modules):
        """Numbered modules; InputError: none, or a gap."""
        found = re.compile(re.escape(modules) + r"(\d+)\.")
        numbers = {int(m[1]) for m in map(found.match, self.tensors) if m}
        gap = next(n for n in range(len(numbers) + 1) if n not in numbers)
        if gap < len(numbers) or not numbers:
            missing = f"{self.prefix}{modules}{gap}.*"
            raise InputError(f"{self.path}: weights do not fit: missing {missing}")
        return gap


class _Released:
    """The published configuration, checked against an encoder's tensors.

    Arguments
    ---------
    values : dict
        Empty where there is none.
    encoder : _Encoder
    origin : str or Path
        Of the values, for messages.
    """

    def __init__(self, values, encoder, origin):
        self.values, self.encoder, self.origin = values, encoder, origin
        self.layers = encoder.count(_LAYERS)
        self.hidden = encoder.size(f"{_TRANSFORMER}layer_norm.weight")
        self.layer_norms = f"{_CONV}1.layer_norm.weight" in encoder.tensors
        self.attends = self._parts("attention", "encoder_use_attention")
        self.feeds = self._parts("feed_forward", "encoder_use_feed_forward")
        self._check("encoder_num_layers", self.layers)
        self._check("encoder_embed_dim", self.hidden)

    def _parts(self, part, key):
        """For each layer, whether it has tensors of a part; as the values say."""
        there = [self.encoder.has(f"{_LAYERS}{n}.{part}.") for n in range(self.layers)]
        for layer, (seen, said) in enumerate(zip(there, self.of_layers(key, there))):
            if bool(said) != seen:
                raise InputError(
                    f"{self.origin}: {key} is {said} for layer {layer}, but tensors "
                    f"{self.encoder.prefix}{_LAYERS}{layer}.{part}.* are "
                    f"{'there' if seen else 'missing'}"
                )
        return there

    def _check(self, key, expected):
        if self.values.get(key, expected) != expected:
            raise self._error(key, f"{expected}, as the tensors show")

    def _error(self, key, expected):
        seen = str(self.values.get(key))[:80]
        return InputError(f"{self.origin}: {key} is {seen}, expected {expected}")

    def probability(self, key):
        """A number of 0 or more, below 1."""
        value = self.values[key]
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise self._error(key, "a number of 0 or more, below 1")
        return float(value)

    def of_layers(self, key, default):
        """A list of one value per layer."""
        value = self.values.get(key, default)
        if not isinstance(value, list | tuple) or len(value) != self.layers:
            raise self._error(key, f"a list of {self.layers}, one per layer")
        return value

    def convolutions(self):
        """(channels, kernels, strides); the strides are in no tensor."""
        count, key = self.encoder.count(_CONV), "extractor_conv_layer_config"
        names = [f"{_CONV}{n}.conv.weight" for n in range(count)]
        channels = [self.encoder.size(name) for name in names]
        kernels = [self.encoder.size(name, 2) for name in names]
        if key not in self.values:
            if count != len(_STRIDES):
                raise InputError(
                    f"{self.encoder.path}: {count} convolutions, whose strides no "
                    f"tensor tells; expected {len(_STRIDES)}, or the configuration "
                    "(encoder_config)"
                )
            return channels, kernels, list(_STRIDES)
        try:
            strides = [int(stride) for _, _, stride in self.values[key]]
            shapes = [(c, k) for c, k, _ in self.values[key]]
        except (TypeError, ValueError):
            strides = shapes = []
        if shapes != list(zip(channels, kernels)) or min(strides) < 1:
            shown = list(zip(channels, kernels))
            raise self._error(key, f"[channels, kernel, stride] of each of {shown}")
        return channels, kernels, strides

    def counted_heads(self):
        """The same of HuBERT and wav2vec 2.0, whose heads have no numbers."""
        width = self.values.get("encoder_head_dim", _HEAD_DIM)
        if type(width) is not int or width < 1 or self.hidden % width:
            raise self._error("encoder_head_dim", f"a divisor of {self.hidden}")
        names = [f"{_LAYERS}{n}.attention.q_proj.bias" for n in range(self.layers)]
        return self.hidden // width, [
            list(range(self.encoder.size(name) // width)) if attends else []
            for name, attends in zip(names, self.attends)
        ]

    def heads(self):
        """Heads of WavLM in the unpruned model, and the list left in every layer."""
        key = "encoder_remaining_heads"
        gates = [n for n in range(self.layers) if self.attends[n]]
        if not gates:
            totals = self.of_layers("encoder_total_num_heads", [1] * self.layers)
            return totals[0], [[]] * self.layers
        name = f"{_LAYERS}{gates[0]}.attention.gru_rel_pos_const"
        total = self.encoder.size(name, 1)
        totals = self.of_layers("encoder_total_num_heads", [total] * self.layers)
        if set(totals) != {total} or self.hidden % total:
            raise self._error(
                "encoder_total_num_heads",
                f"{total} in every layer, as {name} shows, which divide {self.hidden}",
            )
        width = self.hidden // total
        left = self.of_layers(key, [None] * self.layers)
        for layer in gates:
            name = f"{_LAYERS}{layer}.attention.q_proj.bias"
            there = self.encoder.size(name) // width
            if left[layer] is None and there != total:
                raise InputError(
                    f"{self.encoder.path}: {there} of {total} heads in layer {layer}, "
                    "and no tensor tells which heads are left: expected the "
                    "configuration (encoder_config), as pruned_config.json"
                )
            allowed = left[layer] is None or (
                isinstance(left[layer], list | tuple)
                and all(type(head) is int and 0 <= head < total for head in left[layer])
                and sorted(set(left[layer])) == list(left[layer])
            )
            if not allowed:
                raise self._error(
                    key, f"for each layer increasing numbers below {total}"
                )
        return total, [
            [] if not attends else list(range(total)) if kept is None else list(kept)
            for attends, kept in zip(self.attends, left)
        ]


def convert(checkpoint, encoder_config=None):
    """Convert, strictly: each tensor is used or left out for a reason.

    Arguments
    ---------
    checkpoint : Checkpoint
    encoder_config : str or Path, optional
        JSON of the published configuration (``pruned_config.json``); None: that of
        the file, if it has one.

    Returns
    -------
    Converted
        Its model is an encoder.

    Raises
    ------
    InputError
        Gates that are in place; tensors that are missing, left over, or of the wrong
        shape; a configuration of another model, or none where it is needed.
    """
    found = _Encoder(checkpoint)
    values, origin = checkpoint.config, encoder_config or found.path
    if encoder_config is not None:
        values = read_json(encoder_config, {}, what="the configuration of an encoder")
    released = _Released(values, found, origin)
    gated = "encoder_remaining_heads" in values or any(
        name.endswith(".gru_rel_pos_const") for name in found.tensors
    )
    if found.size(_SCALE) and bool((found.tensors[_SCALE] == 1).all()):
        del found.tensors[_SCALE]
        found.left_out["factors of channels, all of them 1"] = [found.prefix + _SCALE]
    config, heads = _configuration(released, gated)
    with naming(origin), torch.device("meta"):
        encoder = (WavLMEncoder if gated else HubertEncoder)(
            config,
            last_state="normalised",
            standardise=bool(values.get("normalize_waveform", released.layer_norms)),
        )
    named = UnderNames(encoder, lambda name: found.prefix + name_in_file(name))
    total = config["num_attention_heads"]
    tensors = _own_tensors(found, named, heads, total)
    load_strictly(named, tensors, str(found.path), assign=True)
    shapes = [f"{key} by layer: {config[key]}" for key in _GROUPS]
    remarks = [*shapes, f"channels of the convolutions: {config['conv_dim']}"]
    if gated and _TABLE not in found.tensors:
        remarks.append("layer 0 has no attention: no layer has a position bias")
    return Converted(encoder.eval(), None, found.left_out, {}, remarks)


def _configuration(released, gated):
    """Values for transformers' configuration, and the heads left in every layer."""
    found, hidden, values = released.encoder, released.hidden, released.values
    channels, kernels, strides = released.convolutions()
    if gated:
        total, left = released.heads()
    else:
        total, left = released.counted_heads()
    units = [
        found.size(f"{_LAYERS}{n}.feed_forward.intermediate_dense.bias") if feeds else 0
        for n, feeds in enumerate(released.feeds)
    ]
    positions = f"{_TRANSFORMER}pos_conv_embed.conv.weight_v"
    full = channels
    if len(set(channels)) > 1:
        full = [max(_CHANNELS, *channels)] * len(channels)
    config = {
        "hidden_size": hidden,
        "num_hidden_layers": released.layers,
        "num_attention_heads": total,
        "num_attention_heads_group": [len(kept) for kept in left],
        # as far as one can tell: the width before any was pruned
        "intermediate_size": units[0] if len(set(units)) == 1 else 4 * hidden,
        "intermediate_size_group": units,
        "conv_dim": channels,
        "full_conv_dim": full,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": f"{_CONV}0.conv.bias" in found.tensors,
        "conv_scale": _SCALE in found.tensors,
        "feat_extract_norm": "layer" if released.layer_norms else "group",
        "do_stable_layer_norm": bool(
            values.get("encoder_layer_norm_first", released.layer_norms)
        ),
        "num_conv_pos_embeddings": found.size(positions, 2),
        "num_conv_pos_embedding_groups": max(1, hidden // found.size(positions, 1)),
        "variance_floor": 1e-5,  # that of torch's layer_norm
        "layerdrop": 0.0,
    }
    for key, name in _DROPOUTS.items():
        if name in values:
            config[key] = released.probability(name)
    if gated:
        config["num_buckets"] = values.get("encoder_num_buckets", 320)
        if _TABLE in found.tensors:
            config["num_buckets"] = found.size(_TABLE)
        config["max_bucket_distance"] = values.get("encoder_max_distance", 800)
    return config, left


def _own_tensors(found, named, heads, total):
    """The tensors for an encoder, by their names in the file, with prefix.

    LayerNorms before parts that were removed have no effect, and are left out.
    """
    given = {f"{found.prefix}{name}": w for name, w in found.tensors.items()}
    idle = [
        name
        for name in given
        if name not in named.own and re.search(_NORM_OF_A_PART, name)
    ]
    if idle:
        found.left_out["LayerNorms before parts that were removed"] = idle
    tensors = {name: w for name, w in given.items() if name not in idle}
    own = named.state_dict()
    for name, kept in named.own.items():
        layer = re.search(r"layers\.(\d+)\.attention\.(heads|gru_rel_pos_const)$", kept)
        if kept == "encoder.rel_attn_embed.weight" and not heads[0]:
            tensors.setdefault(name, torch.zeros(own[name].shape))
        elif layer and layer[2] == "heads":
            tensors[name] = torch.tensor(heads[int(layer[1])])
        elif layer and name in tensors and tensors[name].numel() == total:
            tensors[name] = tensors[name].flatten()[heads[int(layer[1])]]
    return tensors
