"""Waveform encoders under the names of fairseq and Microsoft.

    ours                                        in the file
    feature_extractor.conv_layers.i
        conv                                    0
        layer_norm                              2.1; 2 where it is a GroupNorm
    feature_projection.layer_norm, projection   layer_norm, post_extract_proj
    encoder.pos_conv_embed.conv                 encoder.pos_conv.0
    encoder.rel_attn_embed                      layer 0's relative_attention_bias
    encoder.layers.l
        attention                               self_attn
            gru_rel_pos_linear, …_const             grep_linear, grep_a
        layer_norm                              self_attn_layer_norm
        feed_forward.intermediate_dense, …      fc1, fc2

This is what WavLM (github.com/microsoft/unilm), HuBERT, wav2vec 2.0, XLSR and
UniSpeech-SAT files hold, and what s3prl keeps of them. Shapes tell the sizes; the
strides of the convolutions and, of encoders without WavLM's table of positions, the
number of heads are the published ones unless a configuration is given.
"""

import re

import torch

from speechbrain_ext.export.published.checkpoint import UnderNames, size_of
from speechbrain_ext.lobes.wav2vec2 import (
    HubertEncoder,
    UniSpeechSatEncoder,
    Wav2Vec2Encoder,
)
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import read_json
from speechbrain_ext.utils.weights import load_strictly

PRETRAINING = "of pre-training: mask, quantiser, prediction"
VARIANCE_FLOOR = 1e-5  # of the standardised waveform: torch's layer_norm's
LAST_NORM = "LayerNorm behind the last layer, whose raw state the head takes"
# Beginnings of the names of what only pre-training uses.
_PRETRAINING = (
    *("mask_emb", "final_proj.", "label_embs_concat", "target_glu."),
    *("quantizer.", "project_q.", "project_inp.", "input_quantizer.", "spk_proj."),
    *("encoder.layer_norm_for_extract.", "post_layer_norm."),
)
_CONV = "feature_extractor.conv_layers."
_LAYERS = "encoder.layers."
# Ours → in the file; of a layer, what follows its number.
_MODULES = {
    "feature_projection.layer_norm": "layer_norm",
    "feature_projection.projection": "post_extract_proj",
    "encoder.pos_conv_embed.conv": "encoder.pos_conv.0",
    "encoder.rel_attn_embed": "encoder.layers.0.self_attn.relative_attention_bias",
}
_IN_LAYER = {
    "attention.gru_rel_pos_linear": "self_attn.grep_linear",
    "attention.gru_rel_pos_const": "self_attn.grep_a",
    "attention": "self_attn",
    "layer_norm": "self_attn_layer_norm",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
}
_POSITIONS = "encoder.pos_conv.0.weight_v"
_TABLE = f"{_LAYERS}0.self_attn.relative_attention_bias.weight"
FAMILIES = {
    "wavlm": WavLMEncoder,
    "hubert": HubertEncoder,
    "wav2vec2": Wav2Vec2Encoder,
    "unispeech_sat": UniSpeechSatEncoder,
}
_WAVLM = re.compile(r"\.(grep_linear|grep_a|relative_attention_bias)\b")
# Of all that are published, with seven convolutions.
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_HEAD_DIM = 64


def is_fairseq_encoder(names):
    """Whether these are fairseq's names of an encoder's tensors."""
    return f"{_CONV}0.0.weight" in names and f"{_LAYERS}0.fc1.weight" in names


def without_pretraining(tensors):
    """Tensors of an encoder's file → (those of the encoder, names of the others).

    Weight normalisation is called as it was before torch 2: ``weight_g``, ``weight_v``.
    """
    kept, left_out = {}, []
    for name, tensor in tensors.items():
        if name.startswith(_PRETRAINING):
            left_out.append(name)
        else:
            kept[old_weight_norm(name)] = tensor
    return kept, left_out


def old_weight_norm(name):
    """torch 2's names of a normalised weight → those before."""
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = name.replace(f"parametrizations.weight.{new}", old)
    return name


def fairseq_name(name, layer_norms):
    """The name in the file of an encoder's tensor.

    Arguments
    ---------
    name : str
        Of a tensor in the encoder.
    layer_norms : bool
        Whether its convolutions have LayerNorms, not one GroupNorm.
    """
    name = old_weight_norm(name)
    if name.startswith(_CONV):
        number, module, tensor = name[len(_CONV) :].split(".")
        place = {"conv": "0", "layer_norm": "2.1" if layer_norms else "2"}[module]
        return f"{_CONV}{number}.{place}.{tensor}"
    if name.startswith(_LAYERS):
        number, rest = name[len(_LAYERS) :].split(".", 1)
        return f"{_LAYERS}{number}.{_renamed(rest, _IN_LAYER)}"
    return _renamed(name, _MODULES)


def _renamed(name, modules):
    for module, other in modules.items():
        if name == module or name.startswith(f"{module}."):
            return other + name[len(module) :]
    return name


def family_of(names, chosen, path):
    """Name of the encoder's family → (family, whether anything tells it).

    HuBERT, wav2vec 2.0 and UniSpeech-SAT compute the same; where nothing of their
    pre-training is left, ``chosen`` names one of them, else it is wav2vec 2.0.

    Raises
    ------
    InputError
        ``chosen`` is none of :data:`FAMILIES`, or not the one that the names tell.
    """
    if chosen is not None and chosen not in FAMILIES:
        raise InputError(f"encoder {chosen!r}, expected one of {', '.join(FAMILIES)}")
    found = _told_family(names)
    if found and chosen not in (None, found):
        raise InputError(f"{path}: encoder {chosen!r}, but its tensors are of {found}")
    if found:
        return found, True
    if chosen == "wavlm":
        raise InputError(
            f"{path}: encoder 'wavlm', but no relative_attention_bias in the file"
        )
    return chosen or "wav2vec2", chosen is not None


def _told_family(names):
    """The family that names of tensors show, or None."""

    def has(*beginnings):
        return any(name.startswith(beginnings) for name in names)

    if any(_WAVLM.search(name) for name in names):
        return "wavlm"
    quantised = has("quantizer", "project_q", "input_quantizer")
    clustered = has("label_embs_concat")
    speakers = has("spk_proj", "encoder.layer_norm_for_extract")
    if speakers or (quantised and clustered):
        return "unispeech_sat"
    if quantised or clustered:
        return "wav2vec2" if quantised else "hubert"
    return None


def derived_config(tensors, path, prefix=""):
    """Configuration values of transformers that an encoder's tensors show.

    Arguments
    ---------
    tensors : dict of str to torch.Tensor
        Of :func:`without_pretraining`.
    path : str or Path
        For messages, with the prefix of the names in the file.
    prefix : str

    Raises
    ------
    InputError
        Tensors that sizes are read from are missing or have none; sizes that shapes do
        not tell, and that are not the published ones.
    """

    def size(name, axis=0):
        return size_of(tensors, name, path, axis, prefix)

    def count(modules):
        found = re.compile(re.escape(modules) + r"(\d+)\.")
        numbers = {int(m[1]) for m in map(found.match, tensors) if m}
        gap = next(n for n in range(len(numbers) + 1) if n not in numbers)
        if gap < len(numbers) or not numbers:
            raise InputError(
                f"{path}: weights do not fit: missing {prefix}{modules}{gap}.*"
            )
        return gap

    hidden, convs = size("encoder.layer_norm.weight"), count(_CONV)
    if convs != len(_STRIDES):
        raise InputError(
            f"{path}: {convs} convolutions, whose strides no tensor tells; expected "
            f"{len(_STRIDES)}, or the encoder configuration (encoder_config)"
        )
    if not (_TABLE in tensors or hidden % _HEAD_DIM == 0):
        raise InputError(
            f"{path}: the number of heads is in no tensor, and the width {hidden} is "
            f"no multiple of {_HEAD_DIM}; expected the encoder configuration "
            "(encoder_config)"
        )
    layer_norms = f"{_CONV}1.2.1.weight" in tensors
    values = {
        "hidden_size": hidden,
        "num_hidden_layers": count(_LAYERS),
        "num_attention_heads": hidden // _HEAD_DIM,
        "intermediate_size": size(f"{_LAYERS}0.fc1.bias"),
        "conv_dim": [size(f"{_CONV}{n}.0.weight") for n in range(convs)],
        "conv_kernel": [size(f"{_CONV}{n}.0.weight", 2) for n in range(convs)],
        "conv_stride": list(_STRIDES),
        "conv_bias": f"{_CONV}0.0.bias" in tensors,
        "feat_extract_norm": "layer" if layer_norms else "group",
        # as published: LayerNorm in the convolutions, and before attention too
        "do_stable_layer_norm": layer_norms,
        "num_conv_pos_embeddings": size(_POSITIONS, 2),
        "num_conv_pos_embedding_groups": max(1, hidden // size(_POSITIONS, 1)),
    }
    if _TABLE in tensors:
        values["num_buckets"] = size(_TABLE)
        values["num_attention_heads"] = size(_TABLE, 1)
    return values


def read_encoder(tensors, path, prefix, family, encoder_config, keys, options):
    """An encoder with these weights.

    Arguments
    ---------
    tensors : dict of str to torch.Tensor
        Of the encoder, without the prefix of their names.
    path : str or Path
        For messages, as is ``prefix``.
    prefix : str
    family : str or None
        As ``chosen`` of :func:`family_of`.
    encoder_config : str, Path or None
        JSON of transformers' configuration; None: as the shapes tell.
    keys : dict
        What its configuration is to say besides.
    options : dict
        Of the encoder's class.

    Returns
    -------
    encoder : Encoder
    left_out : dict of str to list
        Reason → names.
    remarks : list of str
    """
    family, told = family_of(tensors, family, path)
    kept, unused = without_pretraining(tensors)
    left_out = {PRETRAINING: [f"{prefix}{name}" for name in unused]}
    if encoder_config is None:
        config = derived_config(kept, path, prefix)
    else:
        config = read_json(encoder_config, {}, what="an encoder's configuration")
    config = {**config, "variance_floor": VARIANCE_FLOOR, **keys}
    with naming(encoder_config or path), torch.device("meta"):
        encoder = FAMILIES[family](config, **options)
    layer_norms = encoder.config.feat_extract_norm == "layer"
    if encoder.encoder.layer_norm is None:
        last = [name for name in kept if name.startswith("encoder.layer_norm.")]
        left_out[LAST_NORM] = [f"{prefix}{name}" for name in last]
        kept = {name: tensor for name, tensor in kept.items() if name not in last}
    kept = {f"{prefix}{name}": tensor for name, tensor in kept.items()}
    named = UnderNames(encoder, lambda n: prefix + fairseq_name(n, layer_norms))
    for name, own in named.own.items():
        if own.endswith(".attention.heads"):  # their numbers: all are there
            kept[name] = torch.arange(encoder.config.num_attention_heads)
        elif own.endswith(".gru_rel_pos_const") and name in kept:
            kept[name] = kept[name].flatten()
    try:
        load_strictly(named, kept, str(path), assign=True)
    except InputError as error:
        if encoder_config is None:
            raise
        raise InputError(f"{error}; widths are those in {encoder_config}") from error
    remarks = []
    if not told:
        remarks.append(
            "no tensor tells whether its encoder is HuBERT, wav2vec 2.0 or "
            f"UniSpeech-SAT, which compute the same: {family} (see --encoder)"
        )
    return encoder, left_out, remarks
