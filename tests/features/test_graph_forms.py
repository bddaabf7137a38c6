"""Features as one fixed graph, captured before anything was computed, and by rows."""

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
)
from speechbrain_ext.features import frames as frames_module

FEATURES = {
    "Kaldi": KaldiFbank,
    "NeMo": NemoFeatures,
    "ReDimNet": ReDimNetFeatures,
    "ReDimNet tf": lambda: ReDimNetFeatures("tf"),
    "SpeechBrain": SpeechBrainFbank,
    "VoxBlink2": VoxBlink2Features,
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
