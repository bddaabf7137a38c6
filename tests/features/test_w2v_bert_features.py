"""Features: the figures of transformers' extractor, in every length and batch."""

import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor

from speechbrain_ext.features.frames import sample_counts
from speechbrain_ext.features.kaldi import filterbank
from speechbrain_ext.features.w2v_bert import MIN_SAMPLES, W2VBertFeatures
from speechbrain_ext.utils.errors import InputError

RATE = 16000
FEATURES = W2VBertFeatures()
PEER = SeamlessM4TFeatureExtractor()  # a constructor's defaults: no download
# Every rest of the hop of 160, frame counts odd and even, and long ones.
LENGTHS = [*range(6400, 6400 + 640, 53), 16000, 48000, 160000, 480000, 960000]


def voice(samples, seed=0):
    """120 Hz harmonics that come and go four times a second, in a faint hiss."""
    time = np.arange(samples) / RATE
    tones = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 40))
    wav = 0.05 * (1 + np.sin(2 * np.pi * 4 * time)) * tones
    wav += 1e-4 * np.random.default_rng(seed).standard_normal(samples)
    return torch.tensor(wav, dtype=torch.float32)


def noise(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(samples, generator=generator)


def chirp(samples):
    """A tone that glides from 100 Hz to 7 kHz, as 16-bit samples, with an offset."""
    time = np.arange(samples) / RATE
    slope = 6900 * RATE / samples
    wav = 0.1 + 0.3 * np.sin(2 * np.pi * (100 + slope * time / 2) * time)
    return torch.tensor(np.round(wav * 2**15) / 2**15, dtype=torch.float32)


SIGNALS = {
    "noise": noise,
    "voice": voice,
    "chirp": chirp,
    "faint noise": lambda samples: 1e-3 * noise(samples),  # amplitude 1e-4
    "faint voice": lambda samples: 1e-3 * voice(samples),
    "half silent": lambda n: torch.where(torch.arange(n) < n // 3, noise(n), 0.0),
}


def peer_features(wav, **options):
    """What the extractor gives for one wav, valid frames only: [T', 160]."""
    batch = PEER(wav.numpy(), sampling_rate=RATE, return_tensors="pt", **options)
    return batch["input_features"][0][batch["attention_mask"][0].bool()]


def ours(wav):
    features, lens = FEATURES(wav[None])
    assert lens.tolist() == [1.0]
    return features[0]


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("samples", LENGTHS)
def test_equal_to_the_extractor(samples, signal):
    if samples > 48000 and signal not in ("noise", "voice"):
        samples //= 10  # lengths that end elsewhere, at a tenth of the time
    wav = SIGNALS[signal](samples)
    peer = peer_features(wav)
    features = ours(wav)
    assert features.shape == peer.shape == ((1 + (samples - 400) // 160) // 2, 160)
    assert features.dtype == torch.float32
    # the extractor's own normalisation rounds to about 1e-5
    torch.testing.assert_close(features, peer, atol=1e-4, rtol=0)


@pytest.mark.parametrize("frequency", [440, 1000, 5000])
def test_steady_tones_differ_by_rounding_alone(frequency):
    """A bin that hardly moves divides by its tiny deviation: 1/√(var + 1e−7).

    The extractor's last digit of float32, 2⁻¹⁹ at 16 to 32, then shows up to 3162
    times larger; what we add to it must stay below that.
    """
    wav = 0.3 * torch.sin(2 * torch.pi * frequency * torch.arange(16000) / RATE)
    raw = peer_features(wav, do_normalize_per_mel_bins=False).double().view(-1, 80)
    rounding = 4 * 2.0**-19 / (raw.var(0) + 1e-7).sqrt()
    difference = (ours(wav) - peer_features(wav)).abs().view(-1, 80).amax(0)
    assert (difference < 1e-3 + rounding).all()
    moving = raw.std(0) > 0.01
    assert moving.any()
    assert difference[moving].max() < 1e-3


def test_digital_silence_is_zero():
    """Every bin at the floor: the deviation is 0, and so are the features."""
    assert ours(torch.zeros(16000)).abs().max() == 0
    assert ours(torch.full((16000,), 0.25)).abs().max() == 0  # an offset alone
    padded, _ = FEATURES(torch.zeros(2, 16000), torch.tensor([1.0, 0.7]))
    assert padded.abs().max() == 0


def test_bins_that_hardly_move_are_the_same_in_a_padded_batch():
    """Log energies off by one digit: 1/√(var + 1e−7) shows it 3162 times larger."""
    generator = torch.Generator().manual_seed(0)
    digit = 2.0**-19  # of a float32 from 16 to 32
    log_mel = 20 + digit * torch.randint(0, 2, (2, 298, 80), generator=generator)
    frames = torch.tensor([298, 209])
    together = FEATURES.finished(log_mel, frames)[1, : 209 // 2]
    alone = FEATURES.finished(log_mel[1:, :209], None)[0]
    # less the first frame they are exact, and means of them right to float32's 1e−7;
    # the mean of the energies themselves is off by digits, that is by 0.006
    assert (together - alone).abs().max() < 1e-6
    assert alone.abs().max() > 0.002


def test_a_steady_tone_in_a_padded_batch():
    """A product of another shape may round each energy by a digit or two."""
    time = torch.arange(48000, dtype=torch.float64) / RATE
    tone = (0.3 * torch.sin(2 * torch.pi * 1000 * time)).float()  # whole periods a hop
    features, _ = FEATURES(torch.stack([noise(48000), tone]), torch.tensor([1.0, 0.7]))
    single = ours(tone[:33600])
    difference = (features[1, : len(single)] - single).abs().max()
    assert difference < 2 * 2.0**-19 / 1e-7**0.5  # 0.012


def test_padded_batch_equal_to_the_extractors():
    lengths = [16000, 6401, 48000, 7040, 16161]
    wavs = [voice(n, seed) for seed, n in enumerate(lengths)]
    peer = PEER([wav.numpy() for wav in wavs], sampling_rate=RATE, return_tensors="pt")
    features, lens = FEATURES(pad(wavs), relative(lengths))
    frames = torch.round(lens * features.shape[1]).long()
    assert frames.tolist() == peer["attention_mask"].sum(1).tolist()
    for row, (mine, theirs) in enumerate(zip(features, peer["input_features"])):
        n = frames[row]
        torch.testing.assert_close(mine[:n], theirs[:n], atol=1e-4, rtol=0)


def pad(wavs, value=0.0):
    return torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True, padding_value=value)


def relative(lengths):
    return torch.tensor(lengths) / max(lengths)


@pytest.mark.parametrize("garbage", [0.0, 7.0, -1e30, float("inf"), float("nan")])
def test_padded_equals_single_whatever_lies_in_the_padding(garbage):
    # neighbours that share a frame count but not a sample count, odd and even counts
    lengths = [48000, 6400, 6401, 6560, 6561, 6719, 16000, 47999, MIN_SAMPLES]
    wavs = [noise(n, seed) for seed, n in enumerate(lengths)]
    features, lens = FEATURES(pad(wavs, garbage), relative(lengths))
    for row, wav in enumerate(wavs):
        single = ours(wav)
        n = round(float(lens[row]) * features.shape[1])
        assert n == len(single)
        torch.testing.assert_close(features[row, :n], single, atol=1e-5, rtol=0)
        assert (features[row, n:] == 0).all()


def test_garbage_where_all_rows_have_the_same_frames():
    wavs = torch.stack([noise(16000, seed) for seed in range(3)])
    dirty = wavs.clone()
    dirty[:, 15920:] = float("nan")  # after the last of 98 frames
    lens = torch.full((3,), 15920 / 16000)
    torch.testing.assert_close(FEATURES(dirty, lens)[0], FEATURES(wavs[:, :15920])[0])


def test_relative_lengths_in_float32_find_every_sample():
    """Two minutes: one sample is 5e−7 of the length, float32 rounds to 6e−8."""
    total = 120 * RATE
    wavs = torch.zeros(1, 1).expand(1000, total)
    samples = torch.arange(total - 1000, total) + 1
    assert sample_counts(wavs, samples / total, MIN_SAMPLES) == samples.tolist()


def test_golden_features(shared):
    folder = shared / "golden" / "released"
    wavs = np.load(folder / "wavs.npz")
    for number, key in enumerate(wavs):
        golden = np.load(folder / f"wav{number}_input_features.npy")
        features = ours(torch.tensor(wavs[key]).float())
        torch.testing.assert_close(features, torch.tensor(golden), atol=1e-3, rtol=0)


def test_gradient_equals_finite_differences():
    wav = voice(2000).double()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 160, generator=generator)

    def loss(x):
        return (FEATURES(x[None])[0][0] * weight).sum()

    wav.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(wav), wav)
    direction = torch.randn(2000, generator=generator).double()
    direction /= direction.norm()
    step = 1e-4
    with torch.no_grad():
        slope = (loss(wav + step * direction) - loss(wav - step * direction)) / 2 / step
    # the differences are taken through float32 samples: 3 digits
    assert float(gradient @ direction) == pytest.approx(float(slope), rel=1e-2)


def test_gradient_stays_out_of_the_padding():
    wavs = pad([noise(8000), noise(6400)]).requires_grad_(True)
    FEATURES(wavs, relative([8000, 6400]))[0].square().sum().backward()
    assert torch.isfinite(wavs.grad).all()
    assert (wavs.grad[0] != 0).sum() > 7000
    assert (wavs.grad[1, 6400:] == 0).all()


def test_gradient_after_inference_mode():
    """Constants made in inference mode would refuse a later gradient."""
    filterbank.cache_clear()
    with torch.inference_mode():
        ours(noise(8000))
    wav = noise(8000).requires_grad_(True)
    ours(wav).sum().backward()
    assert torch.isfinite(wav.grad).all()


def test_no_state():
    assert W2VBertFeatures().state_dict() == {}
    assert list(W2VBertFeatures().parameters()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_around_it_changes_nothing(dtype):
    wavs = pad([voice(8000), voice(6400)])
    lens = relative([8000, 6400])
    expected, _ = FEATURES(wavs, lens)
    with torch.autocast("cpu", dtype=dtype):
        features, _ = FEATURES(wavs, lens)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)
    assert torch.equal(W2VBertFeatures().to(dtype)(wavs, lens)[0], expected)


def test_a_module_built_on_meta_still_works():
    with torch.device("meta"):
        module = W2VBertFeatures()
    wav = noise(8000)
    assert torch.equal(module.to_empty(device="cpu")(wav[None])[0][0], ours(wav))


@pytest.mark.parametrize(
    ("shape", "lens", "message"),
    [
        ((16000,), None, r"wavs: shape \(16000,\), expected \[batch, samples\]"),
        ((1, 1, 16000), None, r"wavs: shape \(1, 1, 16000\)"),
        ((2, 16000), [1.0], r"wav_lens: shape \(1,\), expected \[2\]"),
        ((2, 16000), [[1.0, 1.0]], r"wav_lens: shape \(1, 2\), expected \[2\]"),
        ((1, MIN_SAMPLES - 1), None, r"a row of 559 samples \(0.035 s\)"),
        ((2, 16000), [1.0, 0.03], "a row of 480 samples"),
        ((2, 16000), [1.0, float("nan")], "expected 560"),
        ((2, 16000), [0.5, 1.1], "a batch of 16000"),
        ((0, 16000), None, "a row of 0 samples"),
    ],
)
def test_bad_input(shape, lens, message):
    lens = None if lens is None else torch.tensor(lens)
    with pytest.raises(InputError, match=message):
        FEATURES(torch.zeros(shape), lens)


def test_shortest_row():
    features, lens = FEATURES(noise(MIN_SAMPLES)[None])
    assert features.shape == (1, 1, 160)
    assert lens.tolist() == [1.0]


def test_the_variance_may_stay_for_an_encoder_from_random_weights():
    wavs = torch.randn(2, 16000) * 0.1
    lens = torch.tensor([1.0, 0.6])
    with_variance, _ = W2VBertFeatures()(wavs, lens)
    without, _ = W2VBertFeatures(normalise_variance=False)(wavs, lens)
    for row, steps in ((0, 49), (1, 29)):
        frames = without[row, :steps].reshape(-1, 80)
        scale = (frames / with_variance[row, :steps].reshape(-1, 80)).median(0).values
        # one positive factor per mel bin, and it is not 1
        expected = with_variance[row, :steps].reshape(-1, 80) * scale
        assert torch.allclose(frames, expected, atol=1e-4)
        assert (scale > 0).all()
        assert (scale - 1).abs().max() > 0.1
    single, _ = W2VBertFeatures(normalise_variance=False)(wavs[1:, :9600])
    assert torch.allclose(single[0], without[1, :29], atol=1e-5)
