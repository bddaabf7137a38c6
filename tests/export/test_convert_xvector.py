"""transformers' ForXVector folders → folders with the same embeddings."""

import json
import shutil

import pytest
import torch
from public_encoders import public_config, standardised
from released_checkpoints import (
    Hostile,
    embed,
    embed_batch,
    refused,
    save,
    utterances,
)
from safetensors.torch import load_file, save_file
from tiny_encoder import noise, randomise, tiny_config
from transformers import (
    UniSpeechSatForXVector,
    Wav2Vec2BertForXVector,
    Wav2Vec2ForXVector,
    WavLMForXVector,
)

from speechbrain_ext.export.published.fairseq_encoder import old_weight_norm
from speechbrain_ext.features import W2VBertFeatures
from speechbrain_ext.inference import convert_released
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {
    "wavlm": WavLMForXVector,
    "unispeech_sat": UniSpeechSatForXVector,
    "wav2vec2": Wav2Vec2ForXVector,
}
HEAD = {
    "use_weighted_layer_sum": True,
    "tdnn_dim": [12, 10, 14],
    "tdnn_kernel": [4, 3, 1],
    "tdnn_dilation": [1, 3, 1],
    "xvector_output_dim": 9,
    "num_labels": 5,
}


def public_model(family="wavlm", large=False, **changes):
    """A random model of transformers in eval mode."""
    config = public_config(family, large, **{**HEAD, **changes})
    return randomise(MODELS[family](config)).eval()


def write(model, folder, standardise=None):
    """Its folder; with a preprocessor's configuration where that says something."""
    model.save_pretrained(folder)
    if standardise is not None:
        values = {"do_normalize": standardise, "sampling_rate": 16000}
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(values))
    return folder


def reference(model, wavs, standardise=False):
    """Embeddings [N, E] of transformers, one by one."""
    if standardise:
        wavs = [standardised(wav, eps=1e-7) for wav in wavs]
    with torch.no_grad():
        return torch.cat([model(wav[None]).embeddings for wav in wavs])


def assert_equal(model, expected):
    for embeddings in (embed(model, utterances()), embed_batch(model, utterances())):
        torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("family", MODELS)
def test_converted_equals_transformers(tmp_path, family, large, summed):
    """In a padded batch too, where transformers counts too many frames as valid."""
    original = public_model(family, large, use_weighted_layer_sum=summed)
    folder = write(original, tmp_path / "hub", standardise=large)
    model = load_pretrained(convert_released(folder, tmp_path / "out"))
    assert_equal(model, reference(original, utterances(), large))
    kept = json.loads((tmp_path / "out" / "training.json").read_text())
    assert kept["converted_from"]["kind"] == "xvector"
    assert kept["converted_from"]["file"] == "hub"
    assert sum(kept["converted_from"]["left_out"].values()) == 3


def test_w2v_bert(tmp_path):
    values = {**HEAD, "layerdrop": 0.0}
    original = randomise(Wav2Vec2BertForXVector(tiny_config(**values))).eval()
    folder = write(original, tmp_path / "hub")
    model = load_pretrained(convert_released(folder, tmp_path / "out"))
    features = [W2VBertFeatures()(wav[None])[0][0] for wav in utterances()]
    assert_equal(model, reference(original, features))


@pytest.mark.parametrize(
    ("config", "option"),
    [({"tie_last_hidden_states": True}, None), ({}, "normalised")],
)
def test_last_state(tmp_path, config, option):
    """As transformers 4 had it: normalised before it is recorded."""
    original = public_model("unispeech_sat", True, **config)
    folder = write(original, tmp_path / "hub", standardise=False)
    model = convert_released(folder, tmp_path / "out", last_state=option)
    original.config.tie_last_hidden_states = True
    assert_equal(load_pretrained(model), reference(original, utterances()))


def test_files_of_torch(tmp_path):
    """With the names that a normalised weight had before torch 2."""
    original = public_model()
    folder = write(original, tmp_path / "hub")
    (folder / "model.safetensors").unlink()
    weights = {
        old_weight_norm(name): tensor.clone()
        for name, tensor in original.state_dict().items()
    }
    torch.save(weights, folder / "pytorch_model.bin")
    model = load_pretrained(convert_released(folder, tmp_path / "out"))
    assert_equal(model, reference(original, utterances()))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A whole folder, only to be read."""
    return write(public_model(), tmp_path_factory.mktemp("xvector") / "hub")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"projector.bias": None}, "1 missing: projector.bias"),
        ({"tdnn.2.kernel.bias": None}, "1 missing: tdnn.2.kernel.bias"),
        ({"layer_weights": None}, "1 missing: layer_weights"),
        (
            {"wavlm.encoder.layers.1.final_layer_norm.bias": None},
            r"missing: .*layers\.1",
        ),
        ({"tdnn.3.kernel.bias": noise(3)}, "1 unexpected: tdnn.3.kernel.bias"),
        ({"wavlm.encoder.layers.2.layer_norm.bias": noise(64)}, "1 unexpected: .*2"),
        ({"hubert.encoder.layer_norm.bias": noise(64)}, "unexpected: hubert.encoder"),
        ({"layer_weights": noise(13)}, r"layer_weights \(13,\) instead of \(3,\)"),
        ({"feature_extractor.weight": noise(9, 28) / 0}, "NaN or infinite"),
    ],
)
def test_other_tensors(tmp_path, written, change, match):
    folder = shutil.copytree(written, tmp_path / "hub")
    weights = {**load_file(folder / "model.safetensors"), **change}
    weights = {name: w for name, w in weights.items() if w is not None}
    save_file(weights, folder / "model.safetensors")
    refused(tmp_path, folder, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "hubert"}, "model_type 'hubert'.*wavlm"),
        ({"tdnn_kernel": [4, 3]}, "3 channels, 2 kernels"),
        ({"tdnn_dim": [12, 10, 15]}, r"tdnn.2.kernel.weight \(14, 10\)"),
        ({"num_hidden_layers": 3}, "missing: encoder.layers.2"),
        ({"xvector_output_dim": 0}, "embedding_size=0"),
    ],
)
def test_other_configurations(tmp_path, written, change, match):
    folder = shutil.copytree(written, tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    refused(tmp_path, folder, match)


def test_hostile_pickle_is_not_run(tmp_path, written):
    folder = shutil.copytree(written, tmp_path / "hub")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weights["classifier.bias"] = Hostile(tmp_path / "ran")
    save(weights, folder / "pytorch_model.bin")
    refused(tmp_path, folder, "refused as weights")
    assert not (tmp_path / "ran").exists()


def test_weights_alone(tmp_path, written):
    """The sizes of the convolutions are in the configuration."""
    weights = load_file(written / "model.safetensors")
    path = save(weights, tmp_path / "model.bin")
    refused(tmp_path, path, "model_type None.*expected a folder with config.json")


def test_what_is_converted_is_not_lost(tmp_path, written):
    folder = shutil.copytree(written, tmp_path / "hub")
    with pytest.raises(InputError, match="would be lost"):
        convert_released(folder, folder)
    assert (folder / "model.safetensors").is_file()
