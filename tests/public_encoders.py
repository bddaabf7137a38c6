"""Tiny random encoders of transformers, and their tensors by other programs' names.

The names are written down here once more, apart from the converter's.
"""

import json

import torch
from tiny_encoder import noise, randomise
from transformers import (
    HubertConfig,
    HubertModel,
    UniSpeechSatConfig,
    UniSpeechSatModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

CLASSES = {
    "wavlm": (WavLMConfig, WavLMModel),
    "hubert": (HubertConfig, HubertModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "unispeech_sat": (UniSpeechSatConfig, UniSpeechSatModel),
}


def public_config(family="wavlm", large=True, **changes):
    """A configuration of 2 layers, as the Large or the Base models are built."""
    values = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4 if family == "wavlm" else 1,
        "intermediate_size": 40,
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": "layer" if large else "group",
        "do_stable_layer_norm": large,
        "conv_bias": large and family in ("hubert", "wav2vec2"),
        "layerdrop": 0.0,
        "apply_spec_augment": False,
        "attn_implementation": "eager",
    }
    return CLASSES[family][0](**{**values, **changes})


def public_encoder(config, seed=0):
    """transformers' model of that configuration with random weights, in eval mode."""
    model = dict(CLASSES.values())[type(config)](config)
    return randomise(model, seed).eval()


def standardised(wav, eps=1e-5):
    """Zero mean, unit variance, as torch's layer_norm has it."""
    return torch.nn.functional.layer_norm(wav, wav.shape[-1:], eps=eps)


def public_states(model, wav, normalised=True):
    """L+1 states [1, T, C] of one waveform [T]; the last one normalised, or raw."""
    with torch.no_grad():
        output = model(wav[None], output_hidden_states=True)
    states = list(output.hidden_states)
    if normalised:
        states[-1] = output.last_hidden_state
    return states


_OTHERS = {
    "feature_projection.layer_norm": "layer_norm",
    "feature_projection.projection": "post_extract_proj",
    "encoder.layer_norm": "encoder.layer_norm",
    "encoder.pos_conv_embed.conv": "encoder.pos_conv.0",
}
_IN_LAYER = {
    "attention.gru_rel_pos_linear": "self_attn.grep_linear",
    "attention.gru_rel_pos_const": "self_attn.grep_a",
    "attention.rel_attn_embed": "self_attn.relative_attention_bias",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.q_proj": "self_attn.q_proj",
    "attention.out_proj": "self_attn.out_proj",
    "layer_norm": "self_attn_layer_norm",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "final_layer_norm": "final_layer_norm",
}
_WEIGHT_NORM = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def microsoft_names(model, old_weight_norm=True):
    """Tensors of a model of transformers as fairseq and Microsoft call them."""
    layer_norms = model.config.feat_extract_norm == "layer"
    named = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if name == "masked_spec_embed":
            new = "mask_emb"
        elif parts[0] == "feature_extractor":
            place = {"conv": "0", "layer_norm": "2.1" if layer_norms else "2"}
            new = ".".join([*parts[:3], place[parts[3]], parts[4]])
        elif parts[:2] == ["encoder", "layers"]:
            rest = ".".join(parts[3:])
            module = next(m for m in _IN_LAYER if rest.startswith(m))
            new = ".".join([*parts[:3], _IN_LAYER[module] + rest[len(module) :]])
        else:
            module = next(m for m in _OTHERS if name.startswith(f"{m}."))
            rest = name[len(module) + 1 :]
            if old_weight_norm:
                rest = _WEIGHT_NORM.get(rest, rest)
            new = f"{_OTHERS[module]}.{rest}"
        named[new] = tensor.detach().clone()
    return named


def torchaudio_names(model, old_weight_norm=False):
    """The same as torchaudio calls them, and with it DPHuBERT and DiariZen."""
    named = {"feature_extractor.dummy_weight": torch.ones(model.config.conv_dim[-1])}
    for name, tensor in model.state_dict().items():
        if name == "masked_spec_embed":
            continue
        if name.startswith("feature_projection."):
            name = f"encoder.{name}"
        elif name.startswith("encoder."):
            name = f"encoder.transformer.{name.removeprefix('encoder.')}"
        if old_weight_norm:
            for new, old in _WEIGHT_NORM.items():
                name = name.replace(new, old)
        named[name] = tensor.detach().clone()
    return named


def pretraining_heads(family):
    """Tensors that only pre-training uses, by which its family can be told."""
    names = {
        "wavlm": (),
        "hubert": ("label_embs_concat", "final_proj.weight"),
        "wav2vec2": ("quantizer.vars", "project_q.weight", "final_proj.bias"),
        "unispeech_sat": ("label_embs_concat", "quantizer.vars", "spk_proj.weight"),
    }
    return {name: noise(3, 2) for name in names[family]}


def write_public_config(model, folder):
    """config.json of a model of transformers → path."""
    path = folder / "encoder.json"
    path.write_text(json.dumps(model.config.to_dict()))
    return path
