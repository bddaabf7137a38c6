"""Waveform encoders as fairseq and Microsoft name their tensors → transformers.

    feature_extractor.conv_layers.i.0      →  feature_extractor.conv_layers.i.conv
    feature_extractor.conv_layers.i.2[.1]  →  feature_extractor.conv_layers.i.layer_norm
    layer_norm, post_extract_proj          →  feature_projection.layer_norm, .projection
    encoder.pos_conv.0                     →  encoder.pos_conv_embed.conv
    encoder.layers.l.self_attn.X           →  encoder.layers.l.attention.X
        grep_linear, grep_a                →  gru_rel_pos_linear, gru_rel_pos_const
        relative_attention_bias            →  rel_attn_embed
        self_attn_layer_norm               →  layer_norm
        fc1, fc2            →  feed_forward.intermediate_dense, .output_dense

This is what WavLM (github.com/microsoft/unilm), HuBERT, wav2vec 2.0, XLSR and
UniSpeech-SAT files hold, and what s3prl keeps of them. Shapes tell the sizes; the
strides of the convolutions and, of encoders without WavLM's table of positions, the
number of heads are the published ones unless a configuration is given.
"""

import re

from speechbrain_ext.utils.errors import InputError

PRETRAINING = "of pre-training: masks, quantiser, prediction"
# Beginnings of the names of what only pre-training uses.
_PRETRAINING = (
    *("mask_emb", "final_proj", "label_embs_concat", "target_glu"),
    *("quantizer", "project_q", "project_inp", "input_quantizer", "spk_proj"),
    *("encoder.layer_norm_for_extract", "post_layer_norm"),
)
_RENAMED = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
        (r"^(feature_extractor\.conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
        (r"^layer_norm\.", "feature_projection.layer_norm."),
        (r"^post_extract_proj\.", "feature_projection.projection."),
        (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
        (r"(\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
        (r"(\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
        (r"\.self_attn_layer_norm\.", ".layer_norm."),
        (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
        (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
        (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
        (r"\.self_attn\.", ".attention."),
        (r"\.fc1\.", ".feed_forward.intermediate_dense."),
        (r"\.fc2\.", ".feed_forward.output_dense."),
    )
]
FAMILIES = ("wavlm", "hubert", "wav2vec2", "unispeech_sat")
_WAVLM = re.compile(r"\.(grep_linear|grep_a|relative_attention_bias)\b")
# Of all that are published with seven convolutions.
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_HEAD_DIM = 64
_CONV = "feature_extractor.conv_layers."
_POSITIONS = "encoder.pos_conv_embed.conv.parametrizations.weight.original1"


def is_fairseq_encoder(names):
    """Whether the names of an encoder's tensors are fairseq's."""
    return f"{_CONV}0.0.weight" in names and any(
        name.startswith("encoder.layers.0.") for name in names
    )


def renamed(tensors):
    """Tensors by fairseq's names → (by transformers' names, names of the left out)."""
    kept, left_out = {}, []
    for name, tensor in tensors.items():
        if name.startswith(_PRETRAINING):
            left_out.append(name)
            continue
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        kept[name] = tensor
    return kept, left_out


def family_of(names, chosen, path):
    """Name of the encoder's family → (family, whether the names tell it).

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
    return chosen or "wav2vec2", False


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


def derived_config(tensors, path):
    """Configuration values of transformers that these tensors show.

    Arguments
    ---------
    tensors : dict of str to torch.Tensor
        By transformers' names.
    path : str or Path
        For messages.

    Raises
    ------
    InputError
        Tensors that sizes are read from are missing or have none; sizes that shapes do
        not tell, and that are not the published ones.
    """

    def size(name, axis=0):
        shape = tensors[name].shape if name in tensors else ()
        if len(shape) <= axis or not shape[axis]:
            raise InputError(f"{path}: weights do not fit: missing or empty {name}")
        return shape[axis]

    hidden = size("encoder.layer_norm.weight")
    convs = _count(tensors, _CONV, path)
    layers = _count(tensors, "encoder.layers.", path)
    if convs != len(_STRIDES):
        raise InputError(
            f"{path}: {convs} convolutions, whose strides no tensor tells; expected "
            f"{len(_STRIDES)}, or the encoder configuration (encoder_config)"
        )
    table = "encoder.layers.0.attention.rel_attn_embed.weight"
    if table in tensors:
        heads = size(table, 1)
    elif hidden % _HEAD_DIM == 0:
        heads = hidden // _HEAD_DIM
    else:
        raise InputError(
            f"{path}: the number of heads is in no tensor, and the width {hidden} is "
            f"no multiple of {_HEAD_DIM}; expected the encoder configuration "
            "(encoder_config)"
        )
    layer_norm = f"{_CONV}1.layer_norm.weight" in tensors
    values = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": size(
            "encoder.layers.0.feed_forward.intermediate_dense.bias"
        ),
        "conv_dim": [size(f"{_CONV}{n}.conv.weight") for n in range(convs)],
        "conv_kernel": [size(f"{_CONV}{n}.conv.weight", 2) for n in range(convs)],
        "conv_stride": list(_STRIDES),
        "conv_bias": f"{_CONV}0.conv.bias" in tensors,
        "feat_extract_norm": "layer" if layer_norm else "group",
        # as published: LayerNorm in the convolutions, before attention too
        "do_stable_layer_norm": layer_norm,
        "num_conv_pos_embeddings": size(_POSITIONS, 2),
        "num_conv_pos_embedding_groups": max(1, hidden // size(_POSITIONS, 1)),
    }
    if table in tensors:
        values["num_buckets"] = size(table)
    return values


def _count(tensors, prefix, path):
    """How many numbered modules there are; InputError: none, or a gap."""
    numbers = {
        int(name[len(prefix) :].split(".")[0])
        for name in tensors
        if re.match(re.escape(prefix) + r"\d+\.", name)
    }
    if not numbers or numbers != set(range(len(numbers))):
        gap = next(n for n in range(len(numbers) + 1) if n not in numbers)
        raise InputError(f"{path}: weights do not fit: no tensors {prefix}{gap}.*")
    return len(numbers)
