"""ReDimNet's and ReDimNet2's published files → folders with the same embeddings."""

import json
import re

import pytest
import torch
from golden_peers import GoldenPeer
from public_redimnet import (
    first_config,
    plain_features,
    plain_redimnet,
    redimnet_tensors,
    second_config,
)
from released_checkpoints import embed, embed_batch, refused, save
from tiny_encoder import noise

from speechbrain_ext.features import ReDimNetFeatures
from speechbrain_ext.inference import SpeakerVerifier, convert_released
from speechbrain_ext.pretrained import load_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = {
    "plain": first_config(),
    "gated": first_config(block_2d_type="basic_resnet_fwse", block_1d_type="att"),
    "convnext": first_config(
        block_2d_type="convnext_like", block_1d_type="conv", out_channels=7
    ),
    "one group": first_config(
        group_divisor=None,
        block_1d_type="fc",
        global_context_att=False,
        emb_bn=True,
        feat_type="tf",
    ),
    "second": second_config(),
    "gnorm": second_config(agg_gnorm=True, block_2d_type="convnext_like"),
    "dual": second_config(agg_gnorm=6, dual_agg=True, block_1d_type="att"),
    "sequence": second_config(
        return_2d_output=False, compress_tconvs=False, feat_type="pt_mel", emb_bn=True
    ),
    "map": second_config(out_channels=None, dual_agg=True),
}


def constants(config):
    """Filters and windows that are in a published file."""
    pt = config["feat_type"].startswith("pt")
    features = ReDimNetFeatures(config["feat_type"], config["F"])
    _, mel, window = features.constants(torch.device("cpu"))
    kept = {"1.flipped_filter": torch.tensor([[[-0.97, 1.0]]])}
    if pt:
        kept["2.spectrogram.window"] = torch.hamming_window(400)
        kept["2.mel_scale.fb"] = mel.clone()
    else:
        kept["2.real_kernel_pt"], kept["2.image_kernel_pt"] = window.clone().chunk(2)
        kept["2.melbanks_pt"] = mel.t().unsqueeze(2).clone()
    return {f"spec.torchfbank.{name}": value.clone() for name, value in kept.items()}


def published(config, classes=0):
    state = {**constants(config), **redimnet_tensors(config, classes)}
    return {"model_config": config, "state_dict": state}


def utterances():
    return [0.1 * noise(n, seed=n) for n in (8000, 4800, 11200)]


def expected_of(content, wavs):
    config, tensors = content["model_config"], content["state_dict"]
    kind = config["feat_type"][:2]
    standardised = config["spec_params"].get("norm_signal", False)
    return torch.cat(
        [
            plain_redimnet(
                plain_features(wav, kind, config["F"], standardised), tensors, config
            )
            for wav in wavs
        ]
    )


def converted(tmp_path, content, **options):
    path = save(content, tmp_path / "b0-vox2-lm.pt")
    return load_pretrained(convert_released(path, tmp_path / "out", **options))


def assert_equal(model, expected, wavs):
    assert expected.std(0).mean() > 1e-3
    for embeddings in (embed(model, wavs), embed_batch(model, wavs)):
        torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings(tmp_path, name):
    content, wavs = published(CONFIGS[name]), utterances()
    model = converted(tmp_path, content)
    assert type(model.encoder).__name__ == (
        "ReDimNet2" if "causal" in CONFIGS[name] else "ReDimNet"
    )
    assert_equal(model, expected_of(content, wavs), wavs)
    kept = json.loads((tmp_path / "out" / "training.json").read_text())
    origin = kept["converted_from"]
    assert origin["kind"] == "redimnet"
    assert origin["published_figures"].endswith("1.04 / 1.16 / 1.97")


@pytest.mark.parametrize("name", ["plain", "gated", "gnorm", "sequence"])
def test_sizes_of_tensors_alone(tmp_path, name):
    """No ``model_config``: what shapes tell, and the features of the program."""
    changes = {"spec_params": {"norm_signal": True}} if name == "sequence" else {}
    content, wavs = published({**CONFIGS[name], **changes}), utterances()
    model = converted(tmp_path, content["state_dict"])
    assert_equal(model, expected_of(content, wavs), wavs)


def test_wespeakers_copy(tmp_path, caplog):
    """A flat file, its features outside the model, with a classifier."""
    caplog.set_level("INFO")
    content, wavs = published(CONFIGS["gnorm"]), utterances()
    flat = {
        f"frontend.{name}" if name.startswith("spec.") else name: tensor
        for name, tensor in content["state_dict"].items()
    }
    flat["projection.weight"] = noise(12, 10)
    assert_equal(converted(tmp_path, flat), expected_of(content, wavs), wavs)
    assert "no model_config: sizes are those of the tensors" in caplog.text


def test_features_that_nothing_tells(tmp_path):
    state = published(CONFIGS["gnorm"])["state_dict"]
    bare = {name: tensor for name, tensor in state.items() if "spec." not in name}
    refused(tmp_path, bare, "neither a model_config nor constants of features")


def test_a_configuration_beside_the_file(tmp_path):
    """Without a head the tensors do not tell whether it ends as a map."""
    content, wavs = published(CONFIGS["map"]), utterances()
    refused(tmp_path, content["state_dict"], "return_2d_output is in no tensor")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content["model_config"]))
    model = converted(tmp_path, content["state_dict"], encoder_config=path)
    assert_equal(model, expected_of(content, wavs), wavs)


def test_a_classifier_is_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    config = {**CONFIGS["plain"], "num_classes": 12, "class_dropout": 0.1}
    content, wavs = published(config, classes=12), utterances()
    model = converted(tmp_path, content)
    assert_equal(model, expected_of(content, wavs), wavs)
    assert "left out, classifier of training speakers" in caplog.text


@pytest.mark.parametrize("name", ["redimnet", "redimnet2", "redimnet2_aggnorm"])
def test_golden(shared, tmp_path, name):
    folder = shared / "golden" / "peers" / name
    config = json.loads((folder / "config.json").read_text())["arguments"]
    state = torch.load(folder / "weights.pth", weights_only=True)
    path = save({"model_config": config, "state_dict": state}, tmp_path / "b0.pt")
    folder_of_model = convert_released(path, tmp_path / "out")
    verifier = SpeakerVerifier.from_hparams(str(folder_of_model))
    GoldenPeer(folder, transposed=True).assert_embeddings(verifier)


# -- refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (
            "plain",
            {"tf_optimized_arch": True},
            "tf_optimized_arch True, expected False",
        ),
        ("plain", {"pooling_func": "TSTP"}, "pooling_func 'TSTP', expected 'ASTP'"),
        ("plain", {"feat_type": "tf_spec"}, "feat_type='tf_spec', expected"),
        ("plain", {"block_2d_type": "convnext_v9"}, "block_2d_type='convnext_v9'"),
        ("plain", {"novelty": 3}, "model_config: novelty 3 is not known"),
        ("plain", {"spec_params": {"spec_norm": "bn"}}, "spec_norm='bn', expected"),
        ("plain", {"spec_params": {"eps": 1e-3}}, "spec_params.eps 0.001 with feat"),
        ("plain", {"spec_params": {"odd": 1}}, "spec_params.odd 1 is not known"),
        ("plain", {"stages_setup": [[1, 2]]}, "stage 0 is .*, expected"),
        ("plain", {"C": 8}, "weights do not fit"),
        ("second", {"causal": "full"}, "causal 'full', expected 'none'"),
        ("second", {"use_freq_pos_enc": True}, "use_freq_pos_enc True, expected"),
        ("second", {"fm_weigthing_type": "N"}, "fm_weigthing_type 'N', expected 'NC'"),
        ("second", {"before_pool_offset": 4}, "before_pool_offset 4, expected"),
        ("second", {"block_1d_type": "v2_conv+att"}, "block_1d_type='v2_conv"),
        ("second", {"spec_in_channels": 2}, "spec_in_channels 2, expected 1"),
        ("second", {"att_dos": {"qk_norm": True}}, "att_dos.qk_norm True, expected"),
        ("second", {"agg_gnorm": 5}, "agg_gnorm=5, expected a divisor of 48"),
        ("second", {"dual_agg": True}, "weights do not fit"),
    ],
)
def test_options(tmp_path, name, change, match):
    content = published(CONFIGS[name])
    content["model_config"] = {**content["model_config"], **change}
    refused(tmp_path, content, match)


def test_training_options_are_read(tmp_path):
    """What changes nothing in an embedding."""
    change = {
        "att_dos": {"att_do": 0.1},
        "spec_params": {"norm_signal": True, "do_spec_aug": True, "time_mask_width": 9},
        "feat_agg_dropout": 0.1,
        "return_all_outputs": True,
    }
    content, wavs = published({**CONFIGS["second"], **change}), utterances()
    assert_equal(converted(tmp_path, content), expected_of(content, wavs), wavs)


@pytest.mark.parametrize("name", ["plain", "dual"])
def test_missing_tensor(tmp_path, name):
    content = published(CONFIGS[name])
    names = list(content["state_dict"])
    for missing in (names[1], names[7], names[len(names) // 2], names[-1]):
        state = {k: w for k, w in content["state_dict"].items() if k != missing}
        match = f"missing.*{re.escape(missing)}"
        if missing.endswith("num_batches_tracked"):
            continue
        refused(tmp_path, {**content, "state_dict": state}, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"backbone.extra.weight": noise(3)}, "1 unexpected: backbone.extra.weight"),
        ({"bn2.weight": noise(3)}, "unexpected: bn2.weight"),
        ({"linear.bias": noise(4)}, r"linear.bias \(4,\) instead of \(10,\)"),
        ({"backbone.stem.0.weight": noise(4, 3)}, "backbone.stem.0.weight"),
        (
            {"spec.torchfbank.2.mel_scale.fb": noise(257, 12)},
            "is not what model_config",
        ),
        ({"spec.torchfbank.1.flipped_filter": None}, "missing: spec.torchfbank.1.fl"),
        ({"spec.torchfbank.9.window": noise(3)}, "unexpected: spec.torchfbank.9.wind"),
        ({"backbone.inputs_weights.0": noise(1)}, "wespeaker's copy of ReDimNet"),
    ],
)
def test_strange_tensor(tmp_path, change, match):
    content = published(CONFIGS["plain"])
    state = {**content["state_dict"], **change}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    refused(tmp_path, {**content, "state_dict": state}, match)
