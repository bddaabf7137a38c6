"""ECAPA-TDNNs of features as four programs publish them → the same embeddings."""

import json
import re

import pytest
import torch
import torchaudio
from golden_peers import GoldenPeer
from public_ecapa import (
    HYPERPARAMS,
    clovaai_tensors,
    plain_clovaai,
    speechbrain_folder,
    speechbrain_model,
)
from public_heads import ecapa_tensors, plain_ecapa
from public_resnets import (
    voxblink2_features,
    voxblink2_spectrum,
    wespeaker_features,
)
from released_checkpoints import embed, embed_batch, refused, save, utterances
from tiny_encoder import noise

from speechbrain_ext.inference import SpeakerVerifier, convert_released
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def converted(path, tmp_path, **options):
    return load_pretrained(convert_released(path, tmp_path / "out", **options))


def assert_equal(model, expected, wavs):
    assert expected.std(0).mean() > 1e-2  # not all the same, whatever is put in
    for embeddings in (embed(model, wavs), embed_batch(model, wavs)):
        torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=1e-4)


def origin(tmp_path):
    text = (tmp_path / "out" / "training.json").read_text()
    return json.loads(text)["converted_from"]


# -- SpeechBrain -----------------------------------------------------------------------


@pytest.mark.parametrize("dilations", [(1, 2, 3, 4, 1), (1, 1, 2, 3, 1)])
def test_speechbrain_is_its_own_classifier(tmp_path, caplog, dilations):
    """A silent channel among those that are pooled, a silence in a recording."""
    from speechbrain.inference.classifiers import EncoderClassifier

    caplog.set_level("INFO")
    folder = tmp_path / "spkrec"
    model = speechbrain_folder(folder, dilations)
    with torch.no_grad():
        model.mfa.conv.conv.bias[3] = -150.0
    torch.save(model.state_dict(), folder / "embedding_model.ckpt")
    public = EncoderClassifier.from_hparams(
        source=str(folder), savedir=str(tmp_path / "cache")
    )
    wavs = utterances()
    wavs[0][2000:5000] = 0.0
    with torch.no_grad():
        expected = torch.cat([public.encode_batch(wav[None])[:, 0] for wav in wavs])
    assert_equal(converted(folder, tmp_path), expected, wavs)
    assert origin(tmp_path)["kind"] == "speechbrain_ecapa"
    assert "Apache-2.0" in origin(tmp_path)["licence"]
    assert "without normalize" in caplog.text
    verifier = SpeakerVerifier.from_hparams(
        tmp_path / "out", run_opts={"device": "cpu"}
    )
    found = verifier.encode_batch(wavs[0][None])[0]
    torch.testing.assert_close(found, expected[:1], atol=1e-4, rtol=1e-4)


def test_speechbrain_with_other_features(tmp_path):
    options = "    n_mels: !ref <n_mels>\n    f_max: 7600\n    n_fft: 512\n"
    text = HYPERPARAMS.replace("    n_mels: !ref <n_mels>\n", options, 1)
    text = text.replace("std_norm: False", "std_norm: True", 1)
    speechbrain_folder(tmp_path / "model", hyperparams=text)
    encoder = converted(tmp_path / "model", tmp_path).encoder
    assert encoder.arguments["fbank"] == {"f_max": 7600, "n_fft": 512, "std_norm": True}


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("norm_type: sentence", "norm_type: global", "norm_type 'global'"),
        ("n_mels: 20", "n_mels: 24", "n_mels 24, expected 20"),
        ("    n_mels: !ref <n_mels>", "    deltas: True", "deltas, which are not"),
        ("n_mels: !ref <n_mels>", "n_mels: !ref <n_mels> * 2", "expected a value or"),
        ("    lin_neurons: 10", "    groups: [1, 2, 1, 1, 1]", r"groups \[1, 2"),
        ("dilations:", "activation: !name:torch.nn.GELU\n    dilations:", "activation"),
        ("ECAPA_TDNN.ECAPA_TDNN", "Xvector.Xvector", "0 times an object"),
    ],
)
def test_hyperparams_that_say_otherwise(tmp_path, old, new, match):
    text = HYPERPARAMS.replace(old, new)
    speechbrain_folder(tmp_path / "spkrec", hyperparams=text)
    with pytest.raises(InputError, match=match) as caught:
        convert_released(tmp_path / "spkrec", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "hyperparams.yaml" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_hyperparams_are_never_run(tmp_path):
    trap = f"trap: !apply:os.mkdir [{tmp_path}/trap]\n"
    speechbrain_folder(tmp_path / "spkrec", hyperparams=HYPERPARAMS + trap)
    converted(tmp_path / "spkrec", tmp_path)
    assert not (tmp_path / "trap").exists()


# -- the same tensors, other features --------------------------------------------------


def povey_features(wav, mels):
    """3D-Speaker's, [T, M]."""
    features = torchaudio.compliance.kaldi.fbank(wav[None], num_mel_bins=mels)
    return features - features.mean(0)


def test_three_d_speaker(tmp_path):
    model, wavs = speechbrain_model(), utterances()
    path = save(model.state_dict(), tmp_path / "ecapa_tdnn.bin")
    with torch.no_grad():
        expected = [model(povey_features(wav, 20)[None])[:, 0] for wav in wavs]
    assert_equal(converted(path, tmp_path), torch.cat(expected), wavs)
    assert origin(tmp_path)["kind"] == "three_d_speaker_ecapa"


def test_whose_features_is_asked_where_nothing_tells(tmp_path):
    content = speechbrain_model().state_dict()
    refused(tmp_path, content, r"speechbrain_ecapa and three_d_speaker_ecapa; choose")
    path = save(content, tmp_path / "model.pt")
    for kind, front_end in (
        ("speechbrain_ecapa", "speechbrain"),
        ("three_d_speaker_ecapa", "3dspeaker"),
    ):
        model = converted(path, tmp_path, kind=kind)
        assert model.encoder.arguments["front_end"] == front_end
    path = save(content, tmp_path / "embedding_model.ckpt")
    converted(path, tmp_path)
    assert origin(tmp_path)["kind"] == "speechbrain_ecapa"


# -- zero padding ----------------------------------------------------------------------


@pytest.mark.parametrize("context", [True, False])
def test_wespeaker(tmp_path, context):
    tensors = ecapa_tensors("wespeaker", 80, context=context)
    wavs = utterances()
    expected = [
        plain_ecapa(wespeaker_features(wav).t()[None], tensors, "wespeaker", context)
        for wav in wavs
    ]
    content = {
        name: tensor.float() + 0.5 if "num_batches" in name else tensor
        for name, tensor in tensors.items()
    }
    path = save({**content, "projection.weight": noise(12, 10)}, tmp_path / "model.pt")
    assert_equal(converted(path, tmp_path), torch.cat(expected), wavs)
    assert origin(tmp_path)["kind"] == "wespeaker_ecapa"
    assert "CC-BY-4.0" in origin(tmp_path)["licence"]


def test_wespeaker_golden(shared, tmp_path):
    folder = shared / "golden" / "peers" / "wespeaker_ecapa_glob"
    path = convert_released(folder / "weights.pth", tmp_path / "out")
    verifier = SpeakerVerifier.from_hparams(path, run_opts={"device": "cpu"})
    GoldenPeer(folder).assert_embeddings(verifier)


@pytest.mark.parametrize("with_constants", [True, False])
def test_voxblink2(tmp_path, with_constants):
    tensors, wavs = clovaai_tensors(80), utterances()
    expected = [
        plain_clovaai(voxblink2_features(wav, "deviation").t()[None], tensors)
        for wav in wavs
    ]
    constants = voxblink2_spectrum().state_dict() if with_constants else {}
    constants = {f"featCal.fbankCal.{name}": w for name, w in constants.items()}
    content = {f"module.{name}": w for name, w in {**tensors, **constants}.items()}
    path = save(content, tmp_path / "model_pt.pt")
    assert_equal(converted(path, tmp_path), torch.cat(expected), wavs)
    assert origin(tmp_path)["kind"] == "voxblink2_ecapa"
    assert "NC-SA" in origin(tmp_path)["licence"]


# -- refused ---------------------------------------------------------------------------

FILES = {
    "speechbrain": lambda: speechbrain_model().state_dict(),
    "wespeaker": lambda: ecapa_tensors("wespeaker", 80, context=True),
    "voxblink2": lambda: clovaai_tensors(80),
}


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        ("speechbrain", {"mfa.norm.norm.bias": None}, "missing: mfa.norm.norm.bias"),
        ("speechbrain", {"asp.tdnn.conv.conv.weight": None}, "empty asp.tdnn.conv"),
        ("speechbrain", {"fc.conv.weight": noise(3)}, "empty fc.conv.weight|instead"),
        ("speechbrain", {"blocks.2.tdnn2.conv.conv.weight": None}, "blocks.2|mfa"),
        ("speechbrain", {"head.weight": noise(3)}, "unexpected: head.weight"),
        ("wespeaker", {"layer3.se_res2block.2.conv.bias": None}, "missing: layer3"),
        ("wespeaker", {"bn.weight": noise(47)}, r"\(47,\) instead of \(48,\)"),
        ("wespeaker", {"bn2.weight": noise(10)}, "missing: bn2.bias"),
        ("wespeaker", {"layer1.conv.weight": noise(16, 80, 4)}, "4, expected odd"),
        ("voxblink2", {"bn6.running_var": None}, "missing: bn6.running_var"),
        ("voxblink2", {"layer2.convs.3.weight": noise(3, 2, 3)}, "layer2.convs.3"),
        (
            "voxblink2",
            {"featCal.fbankCal.mel_scale.fb": noise(257, 80)},
            "mel_scale.fb .* is not that of 25 ms",
        ),
    ],
)
def test_strange_tensors(tmp_path, kind, change, match):
    content = {**FILES[kind](), **change}
    content = {name: w for name, w in content.items() if w is not None}
    names = {"speechbrain": "embedding_model.ckpt"}
    path = save(content, tmp_path / names.get(kind, "model.pt"))
    refused(tmp_path, path, match)


def test_of_another_family(tmp_path):
    path = save(FILES["wespeaker"](), tmp_path / "model.pt")
    for kind in ("voxblink2_ecapa", "speechbrain_ecapa", "wespeaker_resnet"):
        refused(tmp_path, path, re.escape(f"are not of {kind}"), kind=kind)
