"""wespeaker's models on SSL encoders → folders with the same embeddings."""

import json
import re

import numpy as np
import pytest
import torch
from public_encoders import (
    microsoft_names,
    pretraining_heads,
    public_config,
    public_encoder,
    public_states,
    standardised,
    write_public_config,
)
from public_heads import ecapa_tensors, mhfa_tensors, plain_ecapa, plain_mhfa
from released_checkpoints import embed, embed_batch, refused, save, utterances
from tiny_encoder import noise

from speechbrain_ext.inference import convert_released
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

S3PRL = "frontend.upstream.upstream.model."
PCM = 32768.0


def s3prl_file(model, head, family="wavlm"):
    """ECAPA-TDNN on s3prl's states: ``avg_model.pt``."""
    names = {**microsoft_names(model), **pretraining_heads(family)}
    names = {f"{S3PRL}{name}": tensor for name, tensor in names.items()}
    return {**head, **names, "projection.weight": noise(12, 10)}


def s3prl_head(model, context=True):
    head = ecapa_tensors("wespeaker", model.config.hidden_size, context=context)
    states = model.config.num_hidden_layers + 1
    return {**head, "frontend.featurizer.weights": noise(states)}


def s3prl_reference(model, head, wavs, context=True):
    """Embeddings [N, E]: sum of the states, last frame repeated, mean removed."""
    embeddings = []
    for wav in wavs:
        large = model.config.feat_extract_norm == "layer"
        states = public_states(model, standardised(wav) if large else wav)
        weights = head["frontend.featurizer.weights"].softmax(0)
        x = (weights[:, None, None, None] * torch.stack(states)).sum(0)
        missing = -(-len(wav) // 320) - x.shape[1]
        assert missing in (1, 2)
        x = torch.cat([x, x[:, -1:].expand(-1, missing, -1)], 1).transpose(1, 2)
        x = x - x.mean(2, keepdim=True)
        embeddings.append(plain_ecapa(x, head, "wespeaker", context))
    return torch.cat(embeddings)


def mhfa_file(model, head, classifier=12):
    """MHFA on Microsoft's WavLM."""
    names = microsoft_names(model)
    del names["mask_emb"]
    head = {f"back_end.{name}": tensor for name, tensor in head.items()}
    names = {f"model.{name}": tensor for name, tensor in names.items()}
    return {**names, **head, "projection.weight": noise(classifier, 10)}


def mhfa_reference(model, head, wavs, scale):
    """Embeddings [N, E]: neither the waveform nor the last state is normalised."""
    states = [public_states(model, scale * wav, normalised=False) for wav in wavs]
    return torch.cat([plain_mhfa(x, head) for x in states])


def converted(tmp_path, content, **options):
    path = save(content, tmp_path / "avg_model.pt")
    return load_pretrained(convert_released(path, tmp_path / "out", **options))


def assert_equal(model, expected, wavs):
    for embeddings in (embed(model, wavs), embed_batch(model, wavs)):
        torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize(
    ("family", "large"), [("wavlm", True), ("wavlm", False), ("hubert", True)]
)
def test_s3prl(tmp_path, family, large, context):
    """Of 1 and of 2 frames less than s3prl has, in one batch."""
    original = public_encoder(public_config(family, large))
    head = s3prl_head(original, context)
    wavs = [*utterances(), 0.1 * noise(6430, seed=1)]
    model = converted(tmp_path, s3prl_file(original, head, family))
    assert_equal(model, s3prl_reference(original, head, wavs, context), wavs)
    kept = json.loads((tmp_path / "out" / "training.json").read_text())
    assert kept["converted_from"]["kind"] == "wespeaker_ssl"


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("taps", [None, 3, 5])
def test_mhfa(tmp_path, caplog, taps, large):
    caplog.set_level("INFO")
    original = public_encoder(public_config("wavlm", large))
    head, wavs = mhfa_tensors(64, 3, taps), [0.03 * w for w in utterances()]
    scale = PCM if taps else 1.0
    model = converted(tmp_path, mhfa_file(original, head))
    assert type(model.head).__name__ == ("CAMHFA" if taps else "MHFA")
    assert_equal(model, mhfa_reference(original, head, wavs, scale), wavs)
    assert f"multiplied by {scale:g}" in caplog.text


@pytest.mark.parametrize("prefix", ["", "speaker_extractor."])
def test_input_scale(tmp_path, prefix):
    """MHFA was trained on both scales; the file does not tell which."""
    original = public_encoder(public_config("wavlm", num_hidden_layers=3))
    head, wavs = mhfa_tensors(64, 4, heads=8), [0.03 * w for w in utterances()]
    content = {f"{prefix}{k}": w for k, w in mhfa_file(original, head).items()}
    model = converted(tmp_path, content, input_scale=PCM)
    assert_equal(model, mhfa_reference(original, head, wavs, PCM), wavs)


def test_averaged_counters(tmp_path):
    """Averaging makes numbers of batches floating point; a BatchNorm at the end."""
    original = public_encoder(public_config("wavlm"))
    head = s3prl_head(original)
    for name in [name for name in head if name.startswith("bn.")]:
        head[f"bn2.{name[3:]}"] = head[name].flatten()[:10].clone()
    head["bn2.num_batches_tracked"] = torch.tensor(5)
    content = {
        name: tensor.float() + 0.5 if "num_batches" in name else tensor
        for name, tensor in s3prl_file(original, head).items()
    }
    model, wavs = converted(tmp_path, content), utterances()
    assert_equal(model, s3prl_reference(original, head, wavs), wavs)


def test_configuration(tmp_path):
    config = public_config("hubert", hidden_size=48, num_attention_heads=3)
    original = public_encoder(config)
    head, wavs = s3prl_head(original), utterances()
    content = s3prl_file(original, head, "hubert")
    refused(tmp_path, content, "number of heads is in no tensor")
    path = write_public_config(original, tmp_path)
    model = converted(tmp_path, content, encoder_config=path)
    assert_equal(model, s3prl_reference(original, head, wavs), wavs)


@pytest.mark.parametrize("name", ["mhfa", "ca_mhfa"])
def test_golden_mhfa(shared, tmp_path, name):
    folder = shared / "golden" / "peers" / name
    head = torch.load(folder / "weights.pth", weights_only=True)
    config = public_config(hidden_size=40, num_hidden_layers=4)
    model = converted(tmp_path, mhfa_file(public_encoder(config), head))
    with np.load(folder / "outputs.npz") as arrays:
        for number in range(3):
            states = torch.tensor(arrays[f"hidden{number}"]).unbind(1)
            with torch.no_grad():
                embedding = model.head([state[None] for state in states])
            golden = torch.tensor(arrays[f"emb{number}"])
            torch.testing.assert_close(embedding[0, 0], golden, atol=1e-4, rtol=0)


def test_golden_ecapa(shared, tmp_path):
    """Its head; the features that it was computed of stand in for the states."""
    folder = shared / "golden" / "peers" / "wespeaker_ecapa_glob"
    head = torch.load(folder / "weights.pth", weights_only=True)
    head["frontend.featurizer.weights"] = torch.zeros(3)
    model = public_encoder(public_config(hidden_size=80, num_attention_heads=2))
    model = converted(tmp_path, s3prl_file(model, head))
    with np.load(folder / "outputs.npz") as arrays:
        for number in range(3):
            states = [torch.tensor(arrays[f"feat{number}"])[None]] * 3
            with torch.no_grad():
                embedding = model.head(states)
            golden = torch.tensor(arrays[f"emb{number}"])
            torch.testing.assert_close(embedding[0, 0], golden, atol=1e-4, rtol=0)


# -- refused ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files():
    """Two whole files, whose dictionaries are copied before they are changed."""
    model = public_encoder(public_config())
    return {
        "s3prl": s3prl_file(model, s3prl_head(model)),
        "mhfa": mhfa_file(model, mhfa_tensors(64, 3)),
        "ca_mhfa": mhfa_file(model, mhfa_tensors(64, 3, 3)),
    }


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("s3prl", f"{S3PRL}post_extract_proj.bias"),
        ("s3prl", f"{S3PRL}encoder.layers.1.self_attn.k_proj.bias"),
        ("s3prl", "layer2.se_res2block.1.bns.3.running_var"),
        ("s3prl", "pool.linear1.weight"),
        ("s3prl", "frontend.featurizer.weights"),
        ("mhfa", "model.encoder.layers.0.fc1.bias"),
        ("mhfa", "back_end.pooling_fc.bias"),
        ("mhfa", "back_end.cmp_linear_v.weight"),
        ("ca_mhfa", "back_end.weights_v"),
    ],
)
def test_missing_tensor(tmp_path, files, kind, name):
    rest = {key: tensor for key, tensor in files[kind].items() if key != name}
    refused(tmp_path, rest, f"missing.*{re.escape(name)}")


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        ("s3prl", {"bn2.weight": noise(10)}, "3 missing: bn2.bias"),
        ("s3prl", {"bn3.weight": noise(10)}, "1 unexpected: bn3.weight"),
        ("s3prl", {"layer1.conv.weight": noise(16, 80, 5)}, r"\(16, 80, 5\) instead"),
        ("mhfa", {"back_end.weights_q": noise(3)}, "unexpected: back_end.weights_q"),
        ("mhfa", {"back_end.weights_k": noise(13)}, r"\(13,\) instead of \(3,\)"),
        ("mhfa", {"back_end.att_head.bias": None}, "missing: back_end.att_head.bias"),
        ("ca_mhfa", {"back_end.att_head.bias": noise(4)}, "unexpected: back_end.att_h"),
        (
            "ca_mhfa",
            {"back_end.att_head.weight": noise(4, 1, 4, 6)},
            "back_end.att_head.weight .*4 taps, expected an odd number",
        ),
        ("mhfa", {"back_end.att_head.weight": noise(4)}, "back_end.att_head.weight"),
        ("mhfa", {"other.weight": noise(4)}, "1 unexpected: other.weight"),
    ],
)
def test_strange_tensor(tmp_path, files, kind, change, match):
    content = {k: w for k, w in {**files[kind], **change}.items() if w is not None}
    refused(tmp_path, content, match)


def test_other_heads(tmp_path, files):
    """A head that is not supported on an encoder that is."""
    front = {k: w for k, w in files["s3prl"].items() if k.startswith("frontend.")}
    refused(tmp_path, front, "missing or empty layer1.conv.weight")
    resnet = {**front, "front.conv1.weight": noise(3), "pool.linear1.bias": noise(3)}
    refused(tmp_path, resnet, "missing or empty layer1.conv.weight")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale(tmp_path, files, scale):
    path = save(files["mhfa"], tmp_path / "avg_model.pt")
    with pytest.raises(InputError, match=r"input_scale.*above 0"):
        convert_released(path, tmp_path / "out", input_scale=scale)
