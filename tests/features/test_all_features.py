"""What all features keep: one fixed graph, rows alone and together, gradients."""

import sys

import pytest
import torch
from tiny_encoder import noise

from speechbrain_ext.features import (
    KaldiFbank,
    NemoFeatures,
    ReDimNetFeatures,
    SpeechBrainFbank,
    VoxBlink2Features,
    W2VBertFeatures,
    WhisperFeatures,
)
from speechbrain_ext.features import frames as frames_module

FEATURES = {
    "Kaldi": KaldiFbank,
    "NeMo": NemoFeatures,
    "NeMo, roots": lambda: NemoFeatures(mag_power=1.0, normalize="all_features"),
    "ReDimNet": ReDimNetFeatures,
    "ReDimNet tf": lambda: ReDimNetFeatures("tf"),
    "ReDimNet, standardised": lambda: ReDimNetFeatures(
        norm_signal=True, spec_norm="mvn"
    ),
    "SpeechBrain": SpeechBrainFbank,
    "SpeechBrain, deviation": lambda: SpeechBrainFbank(std_norm=True),
    "VoxBlink2": VoxBlink2Features,
    "VoxBlink2, deviation": lambda: VoxBlink2Features(normalise="deviation"),
    "w2v-BERT": W2VBertFeatures,
    "Whisper": WhisperFeatures,
}
every_kind = pytest.mark.parametrize("make", FEATURES.values(), ids=FEATURES)


@pytest.fixture
def batch():
    """Seven rows of 2 to 0.5 s, of which two have the same length."""
    counts = torch.tensor([32000, 8000, 30000, 17001, 9000, 9000, 25000])
    wavs = 0.1 * noise(len(counts), 32000)
    for row, count in zip(wavs, counts):
        row[count:] = float("nan")
    return wavs, counts / 32000


def forget_constants():
    for name, module in list(sys.modules.items()):
        if name.startswith("speechbrain_ext.features"):
            for value in vars(module).values():
                getattr(value, "cache_clear", lambda: None)()


@every_kind
def test_a_graph_is_captured_before_anything_was_computed(make, batch):
    """Twice: constants that the first capture left would be of no use to the second."""
    forget_constants()
    features, (wavs, lens) = make(), batch
    for _ in range(2):
        program = torch.export.export(features.graph_form(), (wavs, lens), strict=False)
        found, found_lens = program.module()(wavs, lens)
    expected, expected_lens = features(wavs, lens)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found_lens, expected_lens)


@every_kind
def test_a_few_rows_at_a_time_are_all_rows(make, batch, monkeypatch):
    features = make()
    expected, lens = features(*batch)
    # two rows of 200 frames
    monkeypatch.setattr(frames_module, "CPU_CHUNK", 450 // torch.get_num_threads())
    found, found_lens = features(*batch)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(found_lens, lens)
    assert len(found) == 7


@every_kind
def test_rows_that_all_end_early_are_as_alone_with_their_gradient(make):
    """No frame more than the longest has; nothing of what lies behind a row."""
    features, counts = make(), (16000, 12345)
    wavs = 0.1 * noise(2, 32000)
    for row, count in zip(wavs, counts):
        row[count:] = float("inf")
    wavs.requires_grad_()
    found, lens = features(wavs, torch.tensor(counts) / 32000)
    weights = noise(*found.shape)
    (found * weights).sum().backward()
    for row, count in enumerate(counts):
        wav = wavs[row : row + 1, :count].detach().requires_grad_()
        expected = features(wav)[0][0]
        frames = round(float(lens[row]) * found.shape[1])
        assert frames == len(expected)
        torch.testing.assert_close(found[row, :frames], expected, atol=5e-3, rtol=0)
        assert not found[row, frames:].any()
        (expected * weights[row, :frames]).sum().backward()
        gradient = wavs.grad[row]
        scale = float(wav.grad.abs().max())
        torch.testing.assert_close(
            gradient[:count] / scale, wav.grad[0] / scale, atol=1e-2, rtol=0
        )
        assert not gradient[count:].any()
    assert found.shape[1] == len(features(wavs[:1, :16000].detach())[0][0])


@every_kind
@pytest.mark.parametrize("wav", ["zeros", "constant", "denormal", "quiet"])
def test_a_row_that_hardly_moves(make, wav):
    """Finite, with a finite gradient."""
    wavs = {
        "zeros": torch.zeros(1, 16000),
        "constant": torch.full((1, 16000), 0.3),
        "denormal": 1e-40 * noise(1, 16000),
        "quiet": 1e-24 * noise(1, 16000),
    }[wav].requires_grad_()
    found, _ = make()(wavs)
    (found * noise(*found.shape)).sum().backward()
    assert found.isfinite().all()
    assert wavs.grad.isfinite().all()
