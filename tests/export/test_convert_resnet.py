"""wespeaker's and VoxBlink2's ResNets → folders with the same embeddings."""

import json

import pytest
import torch
from golden_peers import GoldenPeer
from public_resnets import (
    plain_embedding,
    resnet_tensors,
    voxblink2_features,
    voxblink2_spectrum,
    wespeaker_features,
)
from released_checkpoints import embed, embed_batch, refused, save, utterances
from tiny_encoder import noise

from speechbrain_ext.inference import SpeakerVerifier, convert_released
from speechbrain_ext.pretrained import load_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")

WESPEAKER = {
    "bottleneck": {},
    "basic": {"bottleneck": False, "blocks": (2, 1, 1, 1)},
    "two layers": {"two_layers": True},
    "attention": {"pooling": "astp", "bottleneck": False},
    "context": {"pooling": "astp_context", "bottleneck": False},
    "other bins": {"frequencies": 5},
    "pruned": {"inner": 3},
    "simam": {"front": True, "bottleneck": False, "pooling": "asp"},
}
VOXBLINK2 = {
    "simam": ({"bottleneck": False, "pooling": "asp"}, "peak"),
    "bottleneck": ({"pooling": "tstp"}, "peak"),
    "basic": ({"bottleneck": False, "pooling": "gsp"}, "deviation"),
}


def converted(tmp_path, content, **options):
    path = save(content, tmp_path / "avg_model.pt")
    return load_pretrained(convert_released(path, tmp_path / "out", **options))


def assert_equal(model, expected, wavs):
    assert expected.std(0).mean() > 1e-2  # not all the same, whatever is put in
    for embeddings in (embed(model, wavs), embed_batch(model, wavs)):
        torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", WESPEAKER)
def test_wespeaker(tmp_path, name):
    options = WESPEAKER[name]
    tensors = resnet_tensors(**options)
    mels, pooling = 8 * options.get("frequencies", 10), options.get("pooling", "tstp")
    wavs = utterances()
    expected = torch.stack(
        [
            plain_embedding(
                tensors, wespeaker_features(wav, mels), pooling, name == "simam"
            )
            for wav in wavs
        ]
    )
    model = converted(tmp_path, {**tensors, "projection.weight": noise(12, 8)})
    assert_equal(model, expected, wavs)
    origin = json.loads((tmp_path / "out" / "training.json").read_text())
    assert origin["converted_from"]["kind"] == "wespeaker_resnet"
    assert "CC-BY-4.0" in origin["converted_from"]["licence"]


@pytest.mark.parametrize("with_constants", [True, False])
@pytest.mark.parametrize("name", VOXBLINK2)
def test_voxblink2(tmp_path, name, with_constants):
    options, normalise = VOXBLINK2[name]
    tensors, wavs = resnet_tensors(front=True, **options), utterances()
    pooling, simam = options["pooling"], name == "simam"
    expected = torch.stack(
        [
            plain_embedding(tensors, voxblink2_features(wav, normalise), pooling, simam)
            for wav in wavs
        ]
    )
    constants = {
        f"featCal.fbankCal.{name}": tensor
        for name, tensor in voxblink2_spectrum().state_dict().items()
    }
    if not with_constants:
        del constants["featCal.fbankCal.mel_scale.fb"]
    content = {f"module.{n}": tensor for n, tensor in {**tensors, **constants}.items()}
    model = converted(tmp_path, content)
    assert_equal(model, expected, wavs)
    origin = json.loads((tmp_path / "out" / "training.json").read_text())
    assert origin["converted_from"]["kind"] == "voxblink2_resnet"
    assert "NC-SA" in origin["converted_from"]["licence"]


def test_averaged_counters_and_a_prefix(tmp_path):
    """Averaging makes numbers of batches floating point."""
    tensors, wavs = resnet_tensors(), utterances()
    expected = embed(converted(tmp_path, tensors), wavs)
    content = {
        f"resnet.{name}": tensor.float() + 0.5 if "num_batches" in name else tensor
        for name, tensor in tensors.items()
    }
    torch.testing.assert_close(embed(converted(tmp_path, content), wavs), expected)


def test_golden_embeddings(shared, tmp_path):
    for folder in ("wespeaker_resnet", "wespeaker_simam_resnet34"):
        folder = shared / "golden" / "peers" / folder
        path = convert_released(folder / "weights.pth", tmp_path / folder.name)
        verifier = SpeakerVerifier.from_hparams(path, run_opts={"device": "cpu"})
        GoldenPeer(folder).assert_embeddings(verifier)


@pytest.mark.parametrize(
    ("options", "change", "match"),
    [
        ({}, {"layer2.1.bn2.weight": None}, r"missing.*layer2\.1\.bn2\.weight"),
        ({}, {"seg_1.weight": None}, "missing or empty seg_1.weight"),
        ({}, {"layer2.1.conv1.weight": None}, r"empty layer2\.1\.conv1\.weight"),
        ({}, {"fc.weight": noise(3, 3)}, r"unexpected.*fc\.weight"),
        ({}, {"layer1.0.se.fc.0.weight": noise(2, 4)}, r"unexpected.*layer1\.0\.se"),
        ({}, {"seg_1.weight": noise(8, 130)}, "takes 130 numbers, expected a multiple"),
        ({}, {"conv1.weight": noise(4, 3, 3, 3)}, r"conv1\.weight"),
        ({}, {"conv1.weight": None}, "empty conv1.weight"),
        ({}, {"layer4.0.conv2.weight": None}, r"empty layer4\.0\.conv2\.weight"),
        ({}, {"layer3.0.conv2.weight": None}, "not of any known format"),
        (
            {"front": True, "bottleneck": False, "pooling": "asp"},
            {"featCal.fbankCal.mel_scale.fb": noise(257, 80)},
            "mel_scale.fb .* is not that of 25 ms",
        ),
        (
            {"front": True, "bottleneck": False, "pooling": "asp"},
            {"featCal.other": noise(257)},
            "featCal.other .* is not of VoxBlink2's",
        ),
    ],
)
def test_refused(tmp_path, options, change, match):
    tensors = resnet_tensors(**options)
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    refused(tmp_path, tensors, match)
