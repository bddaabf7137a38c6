"""Features against SpeechBrain's own classes, padded and as a graph."""

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import InputNormalization
from tiny_encoder import noise

from speechbrain_ext.features import SpeechBrainFbank
from speechbrain_ext.utils.errors import InputError

SAMPLES = (16000, 9840, 12345)


def by_speechbrain(wav, std_norm=False, **options):
    """Features of one utterance [T] → [T', M]."""
    features = Fbank(**{"n_mels": 80, **options})(wav[None])
    norm = InputNormalization(norm_type="sentence", std_norm=std_norm)
    return norm(features, torch.ones(1))[0]


def batch():
    """Fading noise with digital silence, so that the floor of 80 dB is reached."""
    wavs = noise(3, 16000) * torch.logspace(-6, -1, 16000)
    wavs[:, 3000:5000] = 0.0
    wavs[1, 9840:] = float("nan")  # which must not get through
    wavs[2, 12345:] = 1.0  # louder than the row itself
    return wavs, torch.tensor(SAMPLES) / 16000


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_mels": 23, "f_min": 100, "f_max": 7600, "n_fft": 512, "win_length": 30},
        {"std_norm": True, "hop_length": 12.5, "filter_shape": "gaussian"},
    ],
)
def test_features_equal_speechbrains_row_by_row(options):
    features, (wavs, lens) = SpeechBrainFbank(**options), batch()
    found, valid = features(wavs, lens)
    graph, _ = features.graph_form()(wavs, lens)
    for row, count in enumerate(SAMPLES):
        own = by_speechbrain(wavs[row, :count], **options)
        assert round(float(valid[row]) * found.shape[1]) == len(own)
        torch.testing.assert_close(found[row, : len(own)], own, atol=1e-4, rtol=0)
        assert not found[row, len(own) :].any()
        alone, _ = features(wavs[row : row + 1, :count])
        torch.testing.assert_close(alone[0], own, atol=1e-4, rtol=0)
    torch.testing.assert_close(graph, found, atol=1e-3, rtol=0)


def test_they_have_a_gradient_and_no_state():
    features, wav = SpeechBrainFbank(), noise(1, 1600).requires_grad_()
    features(wav)[0].square().sum().backward()
    assert wav.grad.abs().max() > 0
    assert not features.state_dict()
    with torch.inference_mode():
        SpeechBrainFbank(n_mels=31)(noise(1, 1600))
    features = SpeechBrainFbank(n_mels=31)
    features(noise(1, 1600).requires_grad_())[0].sum().backward()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_fft": 401}, "n_fft 401"),
        ({"win_length": 30}, "win_length 30 and"),
        ({"f_min": 4000, "f_max": 3000}, "f_min 4000, f_max 3000 Hz"),
        ({"f_max": 9000}, "below 8000"),
        ({"filter_shape": "square"}, "filter_shape 'square'"),
    ],
)
def test_what_is_no_filterbank(options, match):
    with pytest.raises(InputError, match=match):
        SpeechBrainFbank(**options)


def test_a_row_of_less_than_a_window():
    with pytest.raises(InputError, match="a row of 399 samples"):
        SpeechBrainFbank()(noise(2, 16000), torch.tensor([1.0, 399 / 16000]))
