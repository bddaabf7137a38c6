"""Pruned encoders of DPHuBERT and DiariZen → folders that an encoder starts from."""

import json
import re

import pytest
import torch
from public_encoders import (
    public_config,
    public_encoder,
    public_states,
    standardised,
    torchaudio_names,
)
from released_checkpoints import Hostile, refused, save, utterances
from tiny_encoder import noise

from speechbrain_ext.inference import convert_released
from speechbrain_ext.lobes.wav2vec2 import HubertEncoder
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

LAYER = "encoder.transformer.layers."
CONV_DIM = [9, 12, 7, 10, 11, 16, 13]
# per layer: heads that stay (None: no attention), feed-forward units (0: none)
PRUNED = {
    "some": (([0, 3], 17), ([2], 40), ([0, 1, 2, 3], 5)),
    "parts": (([1, 2], 0), (None, 9), ([3], 12)),
    "layer 0": ((None, 11), ([0, 2], 8), ([1], 0)),
}


def pruned(kind="some", family="wavlm", large=True, scaled=True, **changes):
    """(model of transformers that computes the same, its tensors, configuration).

    In the model heads and units that are gone have zero weights behind them.
    """
    layers = PRUNED[kind]
    values = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": len(layers),
        "conv_dim": CONV_DIM,
        **changes,
    }
    model = public_encoder(public_config(family, large, **values))
    config, width = model.config, 64 // 4
    names = torchaudio_names(model)
    heads, units = [], []
    for number, (kept, count) in enumerate(layers):
        layer, module = f"{LAYER}{number}.", model.encoder.layers[number]
        columns = [h * width + n for h in kept or () for n in range(width)]
        heads.append(kept or [])
        units.append(count)
        for part in ("q_proj", "k_proj", "v_proj"):
            for tensor in ("weight", "bias"):
                name = f"{layer}attention.{part}.{tensor}"
                names[name] = names[name][columns]
        name = f"{layer}attention.out_proj.weight"
        names[name] = names[name][:, columns]
        for tensor in ("weight", "bias"):
            name = f"{layer}feed_forward.intermediate_dense.{tensor}"
            names[name] = names[name][:count]
        name = f"{layer}feed_forward.output_dense.weight"
        names[name] = names[name][:, :count]
        with torch.no_grad():
            gone = [n for n in range(64) if n not in columns]
            module.attention.out_proj.weight[:, gone] = 0
            module.feed_forward.output_dense.weight[:, count:] = 0
            if not kept:  # the released code leaves the bias out too
                module.attention.out_proj.bias.zero_()
                names = without(names, f"{layer}attention.")
            if not count:
                module.feed_forward.output_dense.bias.zero_()
                names = without(names, f"{layer}feed_forward.")
    if family == "wavlm" and not layers[0][0]:
        # without attention in layer 0 the released code has no table of positions
        model.encoder.layers[0].attention.rel_attn_embed.weight.data.zero_()
    if scaled:
        names["feature_extractor.dummy_weight"] = noise(CONV_DIM[-1], seed=3).sigmoid()
    scale = names["feature_extractor.dummy_weight"]
    model.feature_extractor.register_forward_hook(
        lambda module, inputs, output: output * scale[:, None]
    )
    return model, names, released_config(config, heads, units)


def without(names, beginning):
    return {k: w for k, w in names.items() if not k.startswith(beginning)}


def released_config(config, heads, units):
    """The configuration that the released code saves beside the tensors."""
    count = config.num_hidden_layers
    values = {
        "extractor_mode": f"{config.feat_extract_norm}_norm",
        "extractor_conv_layer_config": list(
            zip(config.conv_dim, config.conv_kernel, config.conv_stride)
        ),
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.hidden_size,
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": config.num_conv_pos_embeddings,
        "encoder_pos_conv_groups": config.num_conv_pos_embedding_groups,
        "encoder_num_layers": count,
        "encoder_use_attention": [bool(kept) for kept in heads],
        "encoder_use_feed_forward": [bool(n) for n in units],
        "encoder_attention_dropout": 0.1,
        # the released code appends nothing for a layer without one
        "encoder_ff_interm_features": [n for n in units if n],
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.1,
        "encoder_layer_norm_first": config.do_stable_layer_norm,
        "encoder_layer_drop": 0.05,
        "normalize_waveform": config.feat_extract_norm == "layer",
        "aux_num_out": None,
        "extractor_prune_conv_channels": False,
        "encoder_prune_attention_heads": False,
    }
    if config.model_type == "wavlm":
        values |= {
            "encoder_total_num_heads": [config.num_attention_heads] * count,
            "encoder_remaining_heads": heads,
            "encoder_num_buckets": config.num_buckets,
            "encoder_max_distance": config.max_bucket_distance,
            "use_layerwise_prune": False,
        }
    else:
        width = config.hidden_size // config.num_attention_heads
        values |= {
            "encoder_num_heads": [len(kept) for kept in heads],
            "encoder_head_dim": width,
        }
    return values


def converted(tmp_path, content, encoder_class=WavLMEncoder, **options):
    path = save(content, tmp_path / "pytorch_model.bin")
    folder = convert_released(path, tmp_path / "out", **options)
    return encoder_class(str(folder), last_state="raw").eval()


def assert_equal(encoder, model, wavs=None):
    """Every state of every waveform, one by one and in a padded batch."""
    wavs = wavs or utterances()
    lengths = torch.tensor([len(wav) for wav in wavs])
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    with torch.no_grad():
        together, _ = encoder(batch, lengths / lengths.max())
        for row, wav in enumerate(wavs):
            large = model.config.feat_extract_norm == "layer"
            expected = public_states(
                model, standardised(wav) if large else wav, normalised=False
            )
            alone, _ = encoder(wav[None])
            assert len(alone) == len(together) == len(expected)
            for one, many, state in zip(alone, together, expected):
                many = many[row : row + 1, : state.shape[1]]
                torch.testing.assert_close(one, state, atol=1e-4, rtol=0)
                torch.testing.assert_close(many, state, atol=1e-4, rtol=0)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("kind", PRUNED)
def test_converted_equals_released(tmp_path, kind, large):
    model, names, config = pruned(kind, large=large)
    content = {"state_dict": names, "config": config}
    encoder = converted(tmp_path, content)
    assert_equal(encoder, model)
    kept = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert kept["kind"] == "diarizen"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "conversion.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    # once more, from what was written
    again = type(encoder)(encoder.arguments["source"], last_state="raw")
    assert {k: w.shape for k, w in again.state_dict().items()} == {
        k: w.shape for k, w in encoder.state_dict().items()
    }


@pytest.mark.parametrize("kind", ["some", "parts"])
def test_hubert(tmp_path, kind):
    """DPHuBERT's; the released code counts its heads only."""
    model, names, config = pruned(kind, family="hubert", large=False)
    content = {"state_dict": names, "config": config, "distill_linear_projs": {}}
    assert_equal(converted(tmp_path, content, HubertEncoder), model)


def test_wavlm_of_a_diarisation_model(tmp_path, caplog):
    """Its configuration is not in the file, and no tensor tells which heads stay."""
    caplog.set_level("INFO")
    model, names, config = pruned()
    names = {f"wavlm_model.{name}": tensor for name, tensor in names.items()}
    others = {"weight_sum.weight": noise(1, 4), "conformer.layers.0.a.bias": noise(3)}
    content = {**names, **others}
    refused(tmp_path, content, "which heads are left.*encoder_config")
    path = tmp_path / "pruned_config.json"
    path.write_text(json.dumps(config))
    assert_equal(converted(tmp_path, content, encoder_config=path), model)
    assert "left out, of diarisation: weight_sum.weight and 1 more" in caplog.text


def test_nothing_pruned(tmp_path):
    """Neither a configuration nor a scale of channels is needed then."""
    model = public_encoder(public_config(num_hidden_layers=4))
    for old in (True, False):
        names = torchaudio_names(model, old_weight_norm=old)
        assert_equal(converted(tmp_path, {"state_dict": names}), model)


# -- refused ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released():
    """(tensors, configuration), to be copied before they are changed."""
    _, names, config = pruned("parts")
    return names, config


@pytest.mark.parametrize(
    "name",
    [
        "feature_extractor.dummy_weight",
        "feature_extractor.conv_layers.6.conv.weight",
        "feature_extractor.conv_layers.2.layer_norm.bias",
        "encoder.feature_projection.layer_norm.weight",
        "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder.transformer.layer_norm.bias",
        f"{LAYER}0.attention.rel_attn_embed.weight",
        f"{LAYER}0.attention.gru_rel_pos_const",
        f"{LAYER}2.attention.out_proj.bias",
        f"{LAYER}1.final_layer_norm.weight",
        f"{LAYER}1.feed_forward.output_dense.bias",
    ],
)
def test_missing_tensor(tmp_path, released, name):
    names, config = released
    rest = {key: tensor for key, tensor in names.items() if key != name}
    shown = name.replace("parametrizations.weight.original0", "weight_g")
    match = f"missing.*{re.escape(shown)}"
    refused(tmp_path, {"state_dict": rest, "config": config}, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {f"{LAYER}1.attention.q_proj.bias": noise(16)},
            "encoder_use_attention is False",
        ),
        ({f"{LAYER}0.attention.hard_concrete_for_heads.log_alpha": noise(4)}, "gates"),
        ({f"{LAYER}0.attention.k_proj.weight": noise(16, 64)}, r"\(16, 64\) instead"),
        ({"encoder.transformer.adapter.bias": noise(3)}, "unexpected: .*adapter"),
        ({"feature_extractor.dummy_weight": noise(16)}, r"\(16,\) instead of \(13,\)"),
        ({f"{LAYER}7.layer_norm.bias": noise(64)}, "layers"),
        ({f"{LAYER}0.attention.gru_rel_pos_const": noise(0, 4)}, "_const .*instead"),
    ],
)
def test_strange_tensor(tmp_path, released, change, match):
    names, config = released
    content = {"state_dict": {**names, **change}, "config": config}
    refused(tmp_path, content, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"encoder_remaining_heads": [[1, 2], [], [4]]}, "encoder_remaining_heads.*4"),
        ({"encoder_remaining_heads": [[1, 1], [], [3]]}, "encoder_remaining_heads"),
        ({"encoder_remaining_heads": [[1], [], [3]]}, r"_proj.* instead of \(16, 64\)"),
        ({"encoder_remaining_heads": [[1, 2]]}, "encoder_remaining_heads"),
        ({"encoder_remaining_heads": "all"}, "encoder_remaining_heads"),
        ({"encoder_total_num_heads": [4, 2, 4]}, "encoder_total_num_heads"),
        ({"encoder_embed_dim": 65}, "encoder_embed_dim"),
        ({"encoder_dropout": 1.5}, "encoder_dropout is 1.5, expected .* below 1"),
        ({"extractor_conv_layer_config": [[9, 10]]}, "extractor_conv_layer_config"),
        ({"encoder_num_layers": 2}, "encoder_num_layers is 2, expected 3"),
        ({"encoder_use_attention": [True, True, True]}, "encoder_use_attention"),
    ],
)
def test_strange_configuration(tmp_path, released, change, match):
    names, config = released
    refused(tmp_path, {"state_dict": names, "config": {**config, **change}}, match)


def test_hostile_configuration_is_not_run(tmp_path, released):
    names, config = released
    config = {**config, "extractor_mode": Hostile(tmp_path / "ran")}
    refused(tmp_path, {"state_dict": names, "config": config}, r"[a-z]+\.mkdir")
    assert not (tmp_path / "ran").exists()


def test_folder_of_something_else(tmp_path, released):
    names, config = released
    path = save({"state_dict": names, "config": config}, tmp_path / "model.bin")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not the folder of an encoder"):
        convert_released(path, tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").is_file()
    folder = convert_released(path, tmp_path / "out")
    assert convert_released(path, folder) == folder  # replaced
