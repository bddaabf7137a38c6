"""Whisper's log-mel: the figures of transformers' extractor, in every length."""

import math

import pytest
import torch
from golden_peers import GoldenPeer, assert_within, rounding
from transformers import WhisperFeatureExtractor

from speechbrain_ext.features.whisper import WhisperFeatures, whisper_filterbank
from speechbrain_ext.utils.errors import InputError

FEATURES = WhisperFeatures()
MIN_SAMPLES = FEATURES.min_samples
# every rest of the hop of 160, odd and even numbers of frames, and more than one chunk
LENGTHS = [MIN_SAMPLES, 400, *range(6400, 6720, 53), 16000, 320_123]


def noise(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(samples, generator=generator)


def loud_then_quiet(samples):
    """A tone a thousand times the hiss behind it: most bins lie at the floor."""
    time = torch.arange(samples, dtype=torch.float64) / 16000
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * time) * (time < 0.5 * time[-1])
    return (tone + 1e-4 * noise(samples)).float()


SIGNALS = {
    "noise": noise,
    "tone": loud_then_quiet,
    "faint": lambda samples: 1e-4 * noise(samples),
    "offset": lambda samples: 0.2 + noise(samples),
    "silence": torch.zeros,
}


def peer_features(wav, n_mels=80):
    """What the extractor gives for one wav without padding: [T', M]."""
    peer = WhisperFeatureExtractor(feature_size=n_mels)
    options = {"padding": False, "truncation": False, "return_tensors": "pt"}
    batch = peer(wav.numpy(), sampling_rate=16000, **options)
    return batch["input_features"][0].T


def pad(wavs, value=0.0):
    return torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True, padding_value=value)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("samples", LENGTHS)
def test_equal_to_the_extractor(samples, signal, n_mels):
    wav = SIGNALS[signal](samples)
    features, lens = WhisperFeatures(n_mels)(wav[None])
    assert lens.tolist() == [1.0]
    assert features.shape == (1, samples // 160, n_mels)
    assert features.dtype == torch.float32
    peer = peer_features(wav, n_mels)
    torch.testing.assert_close(features[0], peer, atol=1e-5, rtol=0)


def test_golden_features(shared):
    folder = shared / "golden/peers/hf_whisper_encoder"
    golden = GoldenPeer(folder, transposed=True)
    for wav, expected in zip(golden.wavs, golden.features, strict=True):
        found = FEATURES(wav[None])[0][0, : len(expected)]  # an odd last one is cut
        bound = rounding(10 ** (4 * expected - 4)) / (4 * math.log(10))
        assert_within(found, expected, bound)
        assert bound.median() < 2e-5


@pytest.mark.parametrize("garbage", [0.0, 7.0, -1e30, float("inf"), float("nan")])
def test_padded_equals_single_whatever_lies_in_the_padding(garbage):
    # rows that share a frame count but not a sample count, a loud and a faint one, and
    # ones whose mirrored end reaches up to the end of the batch, or not
    lengths = [16000, 6400, 6401, 6559, 15999, 15840, MIN_SAMPLES]
    wavs = [10.0 ** (seed - 3) * noise(n, seed) for seed, n in enumerate(lengths)]
    lens = torch.tensor(lengths) / max(lengths)
    for features in (FEATURES, FEATURES.graph_form()):
        together, out_lens = features(pad(wavs, garbage), lens)
        assert together.shape[1] == 100
        for row, wav in enumerate(wavs):
            single = FEATURES(wav[None])[0][0]
            n = round(float(out_lens[row]) * 100)
            assert n == len(single)
            torch.testing.assert_close(together[row, :n], single, atol=1e-4, rtol=0)
            assert (together[row, n:] == 0).all()


def test_gradient_equals_finite_differences():
    wav = noise(3000).double().requires_grad_(True)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(18, 80, generator=generator)

    def loss(x):
        return (FEATURES(x[None])[0][0] * weight).sum()

    (gradient,) = torch.autograd.grad(loss(wav), wav)
    direction = torch.randn(3000, generator=generator).double()
    direction /= direction.norm()
    step = 1e-2
    with torch.no_grad():
        slope = (loss(wav + step * direction) - loss(wav - step * direction)) / 2 / step
    # the differences are taken through float32 samples: 2 digits
    assert float(gradient @ direction) == pytest.approx(float(slope), rel=2e-2)


def test_gradient_stays_out_of_the_padding_and_follows_inference_mode():
    whisper_filterbank.cache_clear()
    with torch.inference_mode():
        FEATURES(noise(8000)[None])
    wavs = pad([noise(8000), noise(6400)]).requires_grad_(True)
    FEATURES(wavs, torch.tensor([1.0, 0.8]))[0].square().sum().backward()
    assert torch.isfinite(wavs.grad).all()
    assert (wavs.grad[0] != 0).sum() > 7000
    assert (wavs.grad[1, 6400:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_around_it_changes_nothing(dtype):
    wavs, lens = pad([noise(8000), noise(6400)]), torch.tensor([1.0, 0.8])
    expected, _ = FEATURES(wavs, lens)
    with torch.autocast("cpu", dtype=dtype):
        features, _ = FEATURES(wavs, lens)
    assert torch.equal(features, expected)
    assert torch.equal(WhisperFeatures().to(dtype)(wavs, lens)[0], expected)
    assert WhisperFeatures().state_dict() == {}


@pytest.mark.parametrize(
    ("shape", "lens", "message"),
    [
        ((16000,), None, r"wavs: shape \(16000,\), expected \[batch, samples\]"),
        ((2, 16000), [1.0], r"wav_lens: shape \(1,\), expected \[2\]"),
        ((1, 200), None, r"a row of 200 samples \(0.013 s\)"),
        ((2, 16000), [1.0, 0.01], "a row of 160 samples"),
    ],
)
def test_bad_input(shape, lens, message):
    lens = None if lens is None else torch.tensor(lens)
    with pytest.raises(InputError, match=message):
        FEATURES(torch.zeros(shape), lens)
