"""Files of UniSpeech's speaker verification → folders with the same embeddings."""

import json
import re

import numpy as np
import pytest
import torch
from public_encoders import (
    CLASSES,
    microsoft_names,
    pretraining_heads,
    public_config,
    public_encoder,
    public_states,
    standardised,
    write_public_config,
)
from public_heads import ecapa_tensors, plain_ecapa
from released_checkpoints import (
    Hostile,
    embed,
    embed_batch,
    refused,
    save,
    utterances,
)
from tiny_encoder import noise

from speechbrain_ext.inference import convert_released
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODER = "feature_extract.model."


def published(model, head, family="wavlm", **options):
    """What the published code saves of an encoder of transformers and a head."""
    names = {**microsoft_names(model, **options), **pretraining_heads(family)}
    weight = noise(12, head["linear.bias"].numel())
    names = {f"{ENCODER}{name}": tensor for name, tensor in names.items()}
    return {"model": {**names, **head, "loss_calculator.projection.weight": weight}}


def random_head(model, **options):
    """Its tensors, the weights of the sum among them."""
    states = model.config.num_hidden_layers + 1
    head = ecapa_tensors("unispeech", model.config.hidden_size, **options)
    return {"feature_weight": noise(states), **head}


def reference(model, head, wavs):
    """Embeddings [N, E] as the published code computes them, one by one."""
    embeddings = []
    for wav in wavs:
        if model.config.feat_extract_norm == "layer":
            wav = standardised(wav)
        states = torch.stack(public_states(model, wav))
        weights = head["feature_weight"].softmax(0)
        x = (weights[:, None, None, None] * states).sum(0).transpose(1, 2) + 1e-6
        x = torch.nn.functional.instance_norm(x)
        embeddings.append(plain_ecapa(x, head, "unispeech"))
    return torch.cat(embeddings)


def converted(tmp_path, content, **options):
    path = save(content, tmp_path / "finetune.pth")
    return load_pretrained(convert_released(path, tmp_path / "out", **options))


def assert_equal(model, expected, wavs):
    for embeddings in (embed(model, wavs), embed_batch(model, wavs)):
        torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("family", CLASSES)
def test_converted_equals_published(tmp_path, family, large):
    original = public_encoder(public_config(family, large))
    head, wavs = random_head(original), utterances()
    model = converted(tmp_path, published(original, head, family))
    assert_equal(model, reference(original, head, wavs), wavs)
    name = type(original).__name__.removesuffix("Model")
    assert type(model.encoder).__name__ == f"{name}Encoder"
    kept = json.loads((tmp_path / "out" / "training.json").read_text())
    assert kept["converted_from"]["kind"] == "unispeech"
    assert sum(kept["converted_from"]["left_out"].values()) == 2 + len(
        pretraining_heads(family)
    )


def test_quiet_waveforms(tmp_path):
    """The published code adds 1e-5 to the variance of the waveform."""
    original = public_encoder(public_config("hubert"))
    head, wavs = random_head(original), [0.01 * wav for wav in utterances()]
    model = converted(tmp_path, published(original, head, "hubert"))
    assert_equal(model, reference(original, head, wavs), wavs)


@pytest.mark.parametrize("family", ["hubert", None])
def test_nothing_tells_the_family(tmp_path, caplog, family):
    """HuBERT, wav2vec 2.0 and UniSpeech-SAT compute the same; an option names it."""
    caplog.set_level("INFO")
    original = public_encoder(public_config("hubert"))
    head, wavs = random_head(original), utterances()
    model = converted(tmp_path, published(original, head), encoder=family)
    assert_equal(model, reference(original, head, wavs), wavs)
    expected = "HubertEncoder" if family else "Wav2Vec2Encoder"
    assert type(model.encoder).__name__ == expected
    assert ("no tensor tells" in caplog.text) == (family is None)


def test_other_sizes(tmp_path):
    """Another depth, and heads and strides that only a configuration tells."""
    config = public_config(
        "hubert",
        hidden_size=48,
        num_attention_heads=3,
        num_hidden_layers=3,
        conv_dim=[12, 20, 16],
        conv_kernel=[10, 4, 3],
        conv_stride=[5, 8, 4],
    )
    original = public_encoder(config)
    head = random_head(original, channels=24, last=40, embedding=7)
    content, wavs = published(original, head, old_weight_norm=False), utterances()
    refused(tmp_path, content, "3 convolutions, whose strides no tensor tells")
    path = write_public_config(original, tmp_path)
    model = converted(tmp_path, content, encoder_config=path, encoder="hubert")
    assert_equal(model, reference(original, head, wavs), wavs)


def test_golden_embeddings(shared, tmp_path):
    """The head's own figures, of hidden states that are given."""
    folder = shared / "golden" / "peers" / "unispeech_ecapa"
    head = torch.load(folder / "weights.pth", weights_only=True)
    config = public_config(hidden_size=40, num_hidden_layers=4)
    model = converted(tmp_path, published(public_encoder(config), head))
    with np.load(folder / "outputs.npz") as arrays:
        for number in range(3):
            states = torch.tensor(arrays[f"hidden{number}"]).unbind(1)
            with torch.no_grad():
                embedding = model.head([state[None] for state in states])
            golden = torch.tensor(arrays[f"emb{number}"])
            torch.testing.assert_close(embedding[0, 0], golden, atol=1e-4, rtol=0)


# -- refused ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content():
    """A whole file, whose dictionary is copied before it is changed."""
    model = public_encoder(public_config())
    return published(model, random_head(model))["model"]


@pytest.mark.parametrize(
    "name",
    [
        f"{ENCODER}feature_extractor.conv_layers.3.0.weight",
        f"{ENCODER}feature_extractor.conv_layers.3.2.1.bias",
        f"{ENCODER}post_extract_proj.weight",
        f"{ENCODER}encoder.pos_conv.0.weight_g",
        f"{ENCODER}encoder.layers.0.self_attn.relative_attention_bias.weight",
        f"{ENCODER}encoder.layers.1.self_attn.grep_a",
        f"{ENCODER}encoder.layers.1.fc2.bias",
        f"{ENCODER}encoder.layer_norm.weight",
        "feature_weight",
        "layer3.Res2Conv1dReluBn.convs.5.weight",
        "pooling.linear2.bias",
        "bn.running_var",
        "linear.weight",
    ],
)
def test_missing_tensor(tmp_path, content, name):
    rest = {key: tensor for key, tensor in content.items() if key != name}
    refused(tmp_path, {"model": rest}, f"missing.*{re.escape(name)}")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({f"{ENCODER}encoder.layers.2.fc1.bias": noise(40)}, "missing: .*layers.2"),
        ({f"{ENCODER}encoder.layers.9.fc1.bias": noise(40)}, r"layers\.2\.\*"),
        ({f"{ENCODER}adapter.weight": noise(3)}, "1 unexpected: .*adapter.weight"),
        ({"layer5.conv.weight": noise(3)}, "1 unexpected: layer5.conv.weight"),
        ({"layer1.conv.weight": noise(16, 60, 5)}, r"\(16, 60, 5\) instead of"),
        ({"feature_weight": noise(25)}, r"feature_weight \(25,\) instead of \(3,\)"),
        ({"linear.bias": noise(10) / 0}, "NaN or infinite"),
        ({"shortcut.weight": noise(3)}, "unexpected: shortcut.weight"),
    ],
)
def test_strange_tensor(tmp_path, content, change, match):
    refused(tmp_path, {"model": {**content, **change}}, match)


def test_hostile_pickle_is_not_run(tmp_path, content):
    ran = tmp_path / "ran"
    refused(tmp_path, {"model": content, "cfg": Hostile(ran)}, r"[a-z]+\.mkdir")
    assert not ran.exists()


def test_options(tmp_path, content):
    path = save({"model": content}, tmp_path / "finetune.pth")
    for options, match in (
        ({"encoder": "hubert"}, "encoder 'hubert', but its tensors are of wavlm"),
        ({"encoder": "bert"}, "encoder 'bert', expected one of wavlm, hubert"),
        ({"lora_alpha": 1.0}, "lora_alpha: no option of unispeech"),
        ({"kind": "w2v_bert"}, "are not of w2v_bert"),
    ):
        with pytest.raises(InputError, match=match):
            convert_released(path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_configuration_of_another_encoder(tmp_path, content):
    for changes, match in (
        ({"num_hidden_layers": 3}, "missing.*layers.2"),
        ({"intermediate_size": 44}, r"\(40, 64\) instead of \(44, 64\)"),
    ):
        model = public_encoder(public_config(**changes))
        path = write_public_config(model, tmp_path)
        refused(tmp_path, {"model": content}, match, encoder_config=path)
    other = write_public_config(public_encoder(public_config("hubert")), tmp_path)
    path = save({"model": content}, tmp_path / "finetune.pth")
    with pytest.raises(InputError, match=r"encoder.json: .*model_type 'hubert'"):
        convert_released(path, tmp_path / "out", other)
