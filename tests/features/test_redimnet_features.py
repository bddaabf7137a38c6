"""Features of ReDimNet and ReDimNet2 against their definition."""

import copy

import pytest
import torch
from golden_peers import GoldenPeer, assert_within, rounding
from public_redimnet import plain_features
from tiny_encoder import noise

from speechbrain_ext.features import ReDimNetFeatures
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = [
    {"feat_type": "pt"},
    {"feat_type": "pt_mel", "norm_signal": True, "spec_norm": "mvn"},
    {"feat_type": "pt", "do_preemph": False},
    {"feat_type": "tf"},
    {"feat_type": "tf_mel", "norm_signal": True},
]


def utterances():
    """Noise, with an offset, and with silence inside."""
    wavs = [0.1 * noise(n, seed=n) for n in (8011, 4800, 11200)]
    wavs[1] += 0.02
    wavs[2][4000:6000] = 0
    return wavs


def batch(wavs, fill=0.0):
    lengths = torch.tensor([len(wav) for wav in wavs])
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True, padding_value=fill)
    return padded, lengths / lengths.max()


@pytest.mark.parametrize("options", OPTIONS)
def test_definition(options):
    kind = options["feat_type"][:2]
    rest = {k: v for k, v in options.items() if k not in ("feat_type", "do_preemph")}
    features = ReDimNetFeatures(**options, n_mels=24)
    for wav in utterances():
        found, lens = features(wav[None])
        preemph = options.get("do_preemph", True)
        expected = plain_features(wav, kind, 24, preemph=preemph, **rest).t()
        assert lens.tolist() == [1.0]
        assert found.shape[1] == features.frames_of(len(wav)) == len(expected)
        torch.testing.assert_close(found[0], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("graph", [False, True])
def test_a_padded_batch_is_its_utterances_alone(options, graph):
    """Whatever lies in the padding, which is zero afterwards."""
    features = ReDimNetFeatures(**options)
    wavs = utterances()
    found, lens = (features.graph_form() if graph else features)(*batch(wavs, fill=3.0))
    for wav, row, length in zip(wavs, found, lens):
        expected = features(wav[None])[0][0]
        frames = len(expected)
        assert round(float(length) * len(row)) == frames
        # its transform is of float64; the floor of tf shows rounding
        bound = 1e-3 if graph else 1e-4
        torch.testing.assert_close(row[:frames], expected, atol=bound, rtol=0)
        assert not row[frames:].any()


def test_zeros_behind_a_row():
    """``pad_right`` is the same as zeros that are there."""
    wavs = utterances()
    longer = [torch.nn.functional.pad(wav, (0, 700)) for wav in wavs]
    for kind in ("pt", "tf"):
        options = {"feat_type": kind, "norm_signal": True}
        found, _ = ReDimNetFeatures(**options, pad_right=700)(*batch(wavs, fill=1.0))
        expected, _ = ReDimNetFeatures(**options)(*batch(longer))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["pt", "tf"])
def test_the_shortest_row(kind):
    for frames in (1, 4):
        features = ReDimNetFeatures(kind, min_frames=frames)
        shortest = features.min_samples
        assert features(noise(1, shortest))[0].shape[1] >= frames
        with pytest.raises(InputError, match=f"expected {shortest}"):
            features(noise(1, shortest - 1))


def test_gradients_reach_the_waveform():
    wavs, lens = batch(utterances())
    for options in OPTIONS:
        wavs = wavs.detach().clone().requires_grad_()
        ReDimNetFeatures(**options)(wavs, lens)[0].square().sum().backward()
        assert wavs.grad.isfinite().all()
        assert wavs.grad.any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"feat_type": "tf_spec"}, "feat_type='tf_spec', expected pt or"),
        ({"spec_norm": "bn"}, "spec_norm='bn', expected mn or mvn"),
        ({"feat_type": "tf", "spec_norm": "mvn"}, "with tf, expected 'mn'"),
        ({"n_fft": 256}, "n_fft=256, expected an even number of win_length=400"),
        ({"f_max": 9000}, "f_max=9000, expected a range of 0 to 8000 Hz"),
        ({"hop_length": 0}, "hop_length"),
    ],
)
def test_refused(options, match):
    with pytest.raises(InputError, match=match):
        ReDimNetFeatures(**options)


@pytest.mark.parametrize("name", ["redimnet", "redimnet2"])
def test_golden(shared, name):
    kind = {"redimnet": "pt", "redimnet2": "tf"}[name]
    features = ReDimNetFeatures(kind, norm_signal=kind == "tf")
    golden = GoldenPeer(shared / "golden" / "peers" / name, transposed=True)
    plain = copy.copy(features)
    plain._normalised = lambda log_mel, frames: log_mel
    for wav, expected in zip(golden.wavs, golden.features, strict=True):
        bound = rounding(plain(wav[None])[0][0].exp())
        bound = bound + bound.mean(0)  # of the mean that was taken off
        assert_within(features(wav[None])[0][0], expected, bound)
        assert bound.median() < 4e-4
