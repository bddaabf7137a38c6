"""The published SV-Mixer encoder becomes a folder that its class takes as source."""

import json

import numpy as np
import pytest
import torch
from tiny_encoder import noise, randomise

from speechbrain_ext.export.published import sv_mixer
from speechbrain_ext.export.published.convert import convert_released
from speechbrain_ext.lobes.sv_mixer import SVMixerEncoder
from speechbrain_ext.utils.errors import InputError

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "group_size": 8, "frames": 12}


def published(encoder):
    """Its weights as the public code names and shapes them."""
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        name = sv_mixer._published(name)
        pointwise = ".fc" in name and name.endswith("weight") and tensor.dim() == 2
        tensors[name] = tensor.unsqueeze(2) if pointwise else tensor
    return tensors


@pytest.mark.parametrize("prefix", ["", "module.student."])
def test_it_computes_the_same(tmp_path, prefix):
    encoder = randomise(SVMixerEncoder({**SIZES, "conv_dim": [6] * 7})).eval()
    tensors = {f"{prefix}{name}": w for name, w in published(encoder).items()}
    tensors["ecapa.weight"] = torch.zeros(3)
    torch.save({"state_dict": tensors}, tmp_path / "student.pt")
    folder = convert_released(tmp_path / "student.pt", tmp_path / "out")
    loaded = SVMixerEncoder(folder).eval()
    wav = 0.1 * noise(1, 9000)
    with torch.no_grad():
        assert all(map(torch.equal, loaded(wav)[0], encoder(wav)[0]))
    conversion = json.loads((folder / "conversion.json").read_text())
    assert conversion["kind"] == "sv_mixer"
    assert list(conversion["left_out"].values()) == [1]


def test_golden_file(shared, tmp_path):
    golden = shared / "golden/peers/sv_mixer"
    folder = convert_released(golden / "weights.pth", tmp_path / "out")
    encoder, arrays = SVMixerEncoder(folder).eval(), np.load(golden / "outputs.npz")
    with torch.no_grad():
        states = encoder(torch.from_numpy(arrays["wav1"])[None, :16000])[0]
    found = torch.stack(states).squeeze(1)
    expected = torch.from_numpy(arrays["hidden1"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_does_not_fit_is_refused(tmp_path):
    tensors = published(SVMixerEncoder({**SIZES, "conv_dim": [6] * 7}))
    for name, message in (
        ("layers.1.channel_mixing.fc6.weight", "fc6.weight"),
        ("layers.0.channel_mixing.fc3.weight", "fc3.weight"),
    ):
        damaged = {key: w for key, w in tensors.items() if key != name}
        torch.save(damaged, tmp_path / "student.pt")
        with pytest.raises(InputError, match=message) as refused:
            convert_released(tmp_path / "student.pt", tmp_path / "out")
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "out").exists()
