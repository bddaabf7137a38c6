"""3D-Speaker's CAM++ and ERes2NetV2 and wespeaker's CAM++ → the same embeddings."""

import json
import re

import pytest
import torch
from golden_peers import GoldenPeer
from public_networks import (
    Tensors,
    campplus_tensors,
    eres2netv2_tensors,
    plain_campplus,
    plain_eres2netv2,
)
from released_checkpoints import embed, embed_batch, refused, save
from tiny_encoder import noise

from speechbrain_ext.inference import SpeakerVerifier, convert_released
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def utterances():
    """Of one segment and of more, and one that ends with digital silence."""
    wavs = [0.1 * noise(n, seed=n) for n in (8000, 51000, 34001)]
    wavs[2][-4000:] = 0
    return wavs


def converted(tmp_path, content, name="embedding_model.ckpt", **options):
    path = save(dict(content), tmp_path / name)
    return load_pretrained(convert_released(path, tmp_path / "out", **options))


def assert_equal(model, expected, wavs):
    expected = torch.stack(expected)
    assert expected.std(0).mean() > 1e-2  # not all the same, whatever is put in
    for embeddings in (embed(model, wavs), embed_batch(model, wavs)):
        torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=0)


def kind_of(tmp_path):
    kept = json.loads((tmp_path / "out" / "training.json").read_text())
    return kept["converted_from"]["kind"]


@pytest.mark.parametrize(
    "sizes", [{}, {"layers": (1, 1, 2), "channels": 10, "growth": 2, "n_mels": 24}]
)
def test_campplus(tmp_path, sizes):
    tensors, wavs = campplus_tensors(**sizes), utterances()
    model = converted(tmp_path, tensors, "campplus_cn_common.bin")
    assert kind_of(tmp_path) == "three_d_speaker"
    assert_equal(model, [plain_campplus(wav, tensors) for wav in wavs], wavs)


@pytest.mark.parametrize("averaged", [True, False])
def test_campplus_of_wespeaker(tmp_path, caplog, averaged):
    """With its classifier; without it, averaging made its counters floating point."""
    caplog.set_level("INFO")
    tensors, wavs = campplus_tensors(), utterances()
    content = {
        name: tensor.float() / 10 if averaged and "batches" in name else tensor
        for name, tensor in tensors.items()
    }
    if not averaged:
        content["projection.weight"] = noise(12, 5)
    model = converted(tmp_path, content, "model.pth")
    assert kind_of(tmp_path) == "wespeaker_campplus"
    expected = [plain_campplus(wav, tensors, "wespeaker") for wav in wavs]
    assert_equal(model, expected, wavs)
    assert ("classifier of training speakers" in caplog.text) is not averaged
    assert "features are wespeaker's, of 16 mel bins" in caplog.text


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"base": 24, "scale": 4, "expansion": 4},
        {"channels": 12, "base": 22, "second": True},
    ],
)
def test_eres2netv2(tmp_path, sizes):
    tensors, wavs = eres2netv2_tensors(**sizes), utterances()
    model = converted(tmp_path, tensors, "weights.pth")
    assert_equal(model, [plain_eres2netv2(wav, tensors) for wav in wavs], wavs)


@pytest.mark.parametrize("name", ["3dspeaker_campplus", "3dspeaker_eres2netv2"])
def test_golden(shared, tmp_path, name):
    folder = shared / "golden" / "peers" / name
    output = convert_released(folder / "weights.pth", tmp_path / "out")
    verifier = SpeakerVerifier.from_hparams(str(output))
    GoldenPeer(folder).assert_embeddings(verifier)


# -- whose it is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "beside", "kind"),
    [
        ("campplus_voxceleb.bin", None, "three_d_speaker"),
        ("campplus_cn_en_common.pt", None, "three_d_speaker"),
        ("speech_campplus_sv_zh_en/weights.pt", None, "three_d_speaker"),
        ("folder/model.pt", "configuration.json", "three_d_speaker"),
        ("folder/avg_model.pt", None, "wespeaker_campplus"),
        ("wespeaker-voxceleb-campplus-LM/model.pt", None, "wespeaker_campplus"),
        ("folder/model.pt", "config.yaml", "wespeaker_campplus"),
    ],
)
def test_names_tell(tmp_path_factory, name, beside, kind):
    """Where tensors do not: the classifier was taken away."""
    folder = tmp_path_factory.mktemp("whose")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if beside:
        (path.parent / beside).write_text("model_args:\n  embed_dim: 5\n")
    convert_released(save(dict(campplus_tensors()), path), folder / "out")
    assert kind_of(folder) == kind


def test_nothing_tells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whose")
    content, wavs = campplus_tensors(), utterances()
    match = "fit three_d_speaker and wespeaker_campplus; choose by kind"
    refused(folder, dict(content), match)
    for kind, style in (
        ("three_d_speaker", "3dspeaker"),
        ("wespeaker_campplus", "wespeaker"),
    ):
        model = converted(folder, content, "model.pth", kind=kind)
        expected = [plain_campplus(wav, content, style) for wav in wavs]
        assert_equal(model, expected, wavs)


# -- refused ---------------------------------------------------------------------------

LOCAL = "xvector.block2.tdnnd1.cam_layer.linear_local.weight"


@pytest.mark.parametrize(
    ("tensors", "change", "match"),
    [
        (campplus_tensors, {"head.bn2.bias": None}, "1 missing: head.bn2.bias"),
        (campplus_tensors, {"head.bn3.bias": noise(4)}, "unexpected: head.bn3.bias"),
        (campplus_tensors, {LOCAL: noise(4, 8, 5)}, re.escape(f"{LOCAL} (4, 8, 5)")),
        (campplus_tensors, {"head.conv1.weight": None}, "empty head.conv1.weight"),
        (campplus_tensors, {"head.conv1.weight": noise(3, 1, 3, 3)}, "conv1's 3"),
        (
            campplus_tensors,
            {"xvector.stats.linear1.weight": noise(3, 9, 1)},
            "unexpected: xvector.stats",
        ),
        (eres2netv2_tensors, {"fuse34.local_att.4.bias": None}, "fuse34.local_att.4."),
        (eres2netv2_tensors, {"layer5.0.bn1.bias": noise(9)}, "unexpected: layer5"),
        (
            eres2netv2_tensors,
            {"layer2.0.convs.0.weight": noise(9, 9, 3, 3)},
            "not the sizes of an ERes2NetV2",
        ),
        (eres2netv2_tensors, {"seg_1.weight": noise(5, 130)}, "130 numbers pooled"),
    ],
)
def test_strange_tensor(tmp_path, tensors, change, match):
    content = {k: w for k, w in {**tensors(), **change}.items() if w is not None}
    refused(tmp_path, save(content, tmp_path / "model.ckpt"), match)


def test_another_family(tmp_path):
    """A file of one family given as another."""
    path = save(dict(eres2netv2_tensors()), tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="are not of wespeaker_campplus"):
        convert_released(path, tmp_path / "out", kind="wespeaker_campplus")
    first = Tensors()  # ERes2Net has other fusions
    first.weight("layer1_downsample", 8, 4, 3, 3)
    first.weight("fuse_mode12.local_att.0", 4, 8, 1, 1)
    refused(tmp_path, dict(first), "are not of any known format")
