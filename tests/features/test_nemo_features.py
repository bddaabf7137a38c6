"""NeMo's features against torch's own transform in float64, padded and as a graph."""

import pytest
import torch
from tiny_encoder import noise

from speechbrain_ext.features import NemoFeatures


def by_torch(wav, window, fft, guard, normalise, power):
    """Features of one utterance [T] by torch.stft, in float64."""
    wav = wav.double()
    wav = torch.cat([wav[:1], wav[1:] - 0.97 * wav[:-1]])
    spectrum = torch.stft(
        wav,
        fft,
        160,
        len(window),
        window.double(),
        pad_mode="constant",
        return_complex=True,
    )
    spectrum = spectrum[:, : len(wav) // 160]
    mel = NemoFeatures(n_fft=fft).constants(torch.device("cpu")).mel
    energies = mel.double().t() @ spectrum.abs() ** power
    logs = energies.clamp(min=guard).log() if guard else (energies + 2**-24).log()
    dims = {"per_feature": 1, "all_features": (0, 1)}.get(normalise)
    if dims is not None:
        logs = logs - logs.mean(dims, keepdim=True)
        logs = logs / (logs.std(dims, keepdim=True) + 1e-5)
    return logs.t().float()


HANN = torch.hann_window(400, periodic=False)


@pytest.mark.parametrize(
    ("options", "window", "guard"),
    [
        ({"n_fft": 512}, HANN, None),
        ({"window": None, "normalize": None, "n_fft": 512}, torch.ones(400), None),
        (
            {"window": "hamming", "n_fft": 1024, "normalize": "all_features"},
            torch.hamming_window(400, periodic=False),
            None,
        ),
        (
            {"log_zero_guard_type": "clamp", "log_zero_guard_value": 0.02},
            HANN,
            0.02,
        ),
        ({"mag_power": 1.0}, HANN, None),
    ],
)
def test_features_equal_torchs_own_transform(options, window, guard):
    features, samples = NemoFeatures(**options), (16000, 9840, 12345)
    fft, kind = options.get("n_fft", 512), options.get("normalize", "per_feature")
    power, wavs = options.get("mag_power", 2.0), 0.1 * noise(3, 16000)
    wavs[1, 9840:] = float("nan")
    found, lens = features(wavs, torch.tensor(samples) / 16000)
    for row, count in enumerate(samples):
        expected = by_torch(wavs[row, :count], window, fft, guard, kind, power)
        frames = count // 160
        assert round(float(lens[row]) * 100) == frames
        torch.testing.assert_close(found[row, :frames], expected, atol=1e-4, rtol=0)
        assert not found[row, frames:].any()
    graph, graph_lens = features.graph_form()(wavs, torch.tensor(samples) / 16000)
    torch.testing.assert_close(graph, found, atol=1e-4, rtol=0)
    torch.testing.assert_close(graph_lens, lens)
