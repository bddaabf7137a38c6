"""Kaldi's filterbank against torchaudio's, padded, in training and as a graph."""

import json
import math

import pytest
import torch
import torchaudio.compliance.kaldi as torchaudio_kaldi
from golden_peers import GoldenPeer, assert_within, rounding
from tiny_encoder import noise

from speechbrain_ext.features import KaldiFbank, W2VBertFeatures
from speechbrain_ext.features import frames as frames_module
from speechbrain_ext.utils.errors import InputError

# ours → torchaudio's options; the rest of both are their defaults
OPTIONS = {
    "3D-Speaker": ({}, {}),
    "wespeaker": ({"window": "hamming", "scale": 32768.0}, {"window_type": "hamming"}),
    "hanning": ({"window": "hanning"}, {"window_type": "hanning"}),
    "blackman": ({"window": "blackman", "n_mels": 72}, {"window_type": "blackman"}),
    "rectangular": (
        {"window": "rectangular", "preemphasis": 0.0},
        {"window_type": "rectangular", "preemphasis_coefficient": 0.0},
    ),
    "8 kHz": (
        {"sample_rate": 8000, "n_mels": 23, "low": 64, "high": -200},
        {"sample_frequency": 8000.0, "low_freq": 64.0, "high_freq": -200.0},
    ),
    "other frames": (
        {"frame_ms": 20, "hop_ms": 5, "high": 7600},
        {"frame_length": 20.0, "frame_shift": 5.0, "high_freq": 7600.0},
    ),
}


def voice(samples):
    """Harmonics with a constant, then zeros: quiet bins, offset and floor."""
    time = torch.arange(samples, dtype=torch.float64) / 16000
    tones = sum((2 * torch.pi * 150 * k * time).sin() / k for k in range(1, 20))
    wav = 0.01 + 0.1 * tones * (1 + (2 * torch.pi * 3 * time).sin())
    wav = torch.where((time > 0.3) & (time < 0.45), 0.0, wav)
    return (wav * 2**15).round().float() / 2**15


def peer(wav, ours, theirs, mean_removal=True):
    """One utterance [T] by torchaudio → [T', M]."""
    scaled = wav[None] * ours.get("scale", 1.0)
    mels = ours.get("n_mels", 80)
    features = torchaudio_kaldi.fbank(scaled, num_mel_bins=mels, **theirs)
    return features - features.mean(0) if mean_removal else features


@pytest.mark.parametrize("name", OPTIONS)
def test_equal_to_torchaudio(name):
    ours, theirs = OPTIONS[name]
    bound = 1e-3 if name == "blackman" else 1e-4  # torchaudio has cosines of its own
    for wav in (voice(16000), 0.1 * noise(1, 12345)[0]):
        for mean_removal in (True, False):
            fbank = KaldiFbank(**ours, mean_removal=mean_removal)
            features, lens = fbank(wav[None])
            expected = peer(wav, ours, theirs, mean_removal)
            torch.testing.assert_close(features[0], expected, atol=bound, rtol=0)
            assert lens.tolist() == [1.0]


def test_golden_features(shared):
    for folder in sorted((shared / "golden" / "peers").glob("*/config.json")):
        front_end = json.loads(folder.read_text()).get("front_end", {})
        if front_end.get("implementation") != "torchaudio.compliance.kaldi.fbank":
            continue
        window = front_end["window"].split()[0]  # "povey (Kaldi default)"
        scale = 32768.0 if "32768" in front_end["input"] else 1.0
        fbank = KaldiFbank(window=window, scale=scale)
        kept = KaldiFbank(window=window, scale=scale, mean_removal=False)
        golden = GoldenPeer(folder.parent)
        for wav, expected in zip(golden.wavs, golden.features, strict=True):
            bound = rounding(kept(wav[None])[0][0].exp())
            bound = bound + bound.mean(0)  # of the mean that was taken off
            assert_within(fbank(wav[None])[0][0], expected, bound)
            assert bound.median() < 4e-4


@pytest.mark.parametrize("mean_removal", [True, False])
def test_a_padded_batch_is_its_utterances_alone(mean_removal):
    fbank = KaldiFbank(window="hamming", mean_removal=mean_removal)
    lengths = (16000, 9841, 400)
    wavs = 0.1 * noise(3, 16000)
    wavs[1, 9841:] = float("nan")
    lens = torch.tensor(lengths) / 16000
    features, found_lens = fbank(wavs, lens)
    graph, graph_lens = fbank.graph_form()(wavs, lens)
    torch.testing.assert_close(graph_lens, found_lens)
    torch.testing.assert_close(graph, features, atol=1e-3, rtol=0)
    for row, count in enumerate(lengths):
        alone, _ = fbank(wavs[row : row + 1, :count])
        frames = round(float(found_lens[row]) * features.shape[1])
        assert frames == alone.shape[1] == 1 + (count - 400) // 160
        torch.testing.assert_close(features[row, :frames], alone[0], atol=1e-5, rtol=0)
        assert not features[row, frames:].any()


def test_long_recordings_are_taken_in_parts(monkeypatch):
    """The parts that fit in a cache are put together as if there were none."""
    monkeypatch.setattr(frames_module, "CPU_CHUNK", 300 // torch.get_num_threads())
    wav = 0.1 * noise(1, 16000 * 9)
    ours, theirs = OPTIONS["wespeaker"]
    features, _ = KaldiFbank(**ours)(wav)
    torch.testing.assert_close(
        features[0], peer(wav[0], ours, theirs), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("make", [KaldiFbank, W2VBertFeatures])
def test_samples_behind_the_last_frame_are_of_no_effect(make):
    wav = 0.1 * noise(1, 16000)
    expected, _ = make()(wav)
    wav[0, -1] = float("nan")  # of 98 frames the last ends 80 samples before it
    assert torch.equal(make()(wav)[0], expected)


def test_dither_is_of_training_alone_and_has_its_deviation():
    """On silence, log energies of the noise of deviation 1 in units of 16 bits."""
    fbank = KaldiFbank(scale=32768.0, dither=1.0, mean_removal=False).train()
    silence = torch.zeros(2, 16000)
    torch.manual_seed(0)
    dithered, _ = fbank(silence)
    torch.manual_seed(0)
    noisy = torch.randn(2, 16000) / 32768
    expected, _ = KaldiFbank(scale=32768.0, mean_removal=False)(noisy)
    torch.testing.assert_close(dithered, expected)
    floor = torch.full_like(dithered, -23 * math.log(2))
    torch.testing.assert_close(fbank.eval()(silence)[0], floor)


def test_gradient_is_torchaudios_and_stays_out_of_the_padding():
    ours, theirs = OPTIONS["wespeaker"]
    fbank = KaldiFbank(**ours)
    assert fbank.state_dict() == {}
    wavs = (0.1 * noise(2, 4000)).requires_grad_(True)
    weight = noise(2, 23, 80, seed=1)
    features, _ = fbank(wavs, torch.tensor([1.0, 0.5]))
    (features * weight).sum().backward()
    for row, count in enumerate((4000, 2000)):
        wav = wavs[row, :count].detach().requires_grad_(True)
        expected = peer(wav, ours, theirs)
        (expected * weight[row, : len(expected)]).sum().backward()
        difference = (wavs.grad[row, :count] - wav.grad).abs().max()
        assert difference < 1e-3 * wav.grad.abs().max()
        assert not wavs.grad[row, count:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "kaiser"}, "window 'kaiser', expected one of povey, hamming"),
        ({"low": 4000, "high": 3000}, "mel bins from 4000 to 3000 Hz, expected a"),
        ({"high": 9000}, "to 9000 Hz, expected a range of 0 to 8000"),
        ({"hop_ms": 0.01}, "frames of 25 ms every 0.01 ms at 16000 Hz"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        KaldiFbank(**options)


def test_bad_input():
    with pytest.raises(InputError, match=r"a row of 399 samples .* expected 400"):
        KaldiFbank()(torch.zeros(1, 399))
    with pytest.raises(InputError, match=r"199 samples \(0.025 s\).*200 \(25 ms\)"):
        KaldiFbank(sample_rate=8000)(torch.zeros(1, 199))
