"""VoxBlink2's mel spectrum against torchaudio's, padded and as a graph."""

import pytest
import torch
from public_resnets import voxblink2_features
from tiny_encoder import noise

from speechbrain_ext.features import VoxBlink2Features
from speechbrain_ext.utils.errors import InputError


@pytest.mark.parametrize("normalise", ["peak", "deviation"])
def test_equal_to_torchaudio_alone_padded_and_as_a_graph(normalise):
    lengths = (16000, 9841, 257)
    wavs = 0.02 + 0.1 * noise(3, 16000)
    wavs[1, 9841:] = float("nan")
    lens = torch.tensor(lengths) / 16000
    features = VoxBlink2Features(normalise=normalise)
    together, found_lens = features(wavs, lens)
    graph, graph_lens = features.graph_form()(wavs, lens)
    torch.testing.assert_close(graph_lens, found_lens)
    torch.testing.assert_close(graph, together, atol=1e-3, rtol=0)
    for row, count in enumerate(lengths):
        wav = wavs[row, :count]
        expected = voxblink2_features(wav, normalise)
        frames = round(float(found_lens[row]) * together.shape[1])
        assert frames == len(expected) == count // 160 + 1
        torch.testing.assert_close(
            features(wav[None])[0][0], expected, atol=1e-3, rtol=0
        )
        torch.testing.assert_close(together[row, :frames], expected, atol=1e-3, rtol=0)
        assert not together[row, frames:].any()


@pytest.mark.parametrize("normalise", ["peak", "deviation"])
def test_silence_is_zero(normalise):
    silence = torch.zeros(2, 4000)
    found, _ = VoxBlink2Features(normalise=normalise)(silence, torch.tensor([1.0, 0.5]))
    assert found.abs().max() < 1e-5


def test_bad_input():
    with pytest.raises(InputError, match="normalise='max', expected peak or deviation"):
        VoxBlink2Features(normalise="max")
    with pytest.raises(InputError, match=r"a row of 256 samples .* expected 257"):
        VoxBlink2Features()(torch.zeros(1, 256))
