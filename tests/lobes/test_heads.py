"""Pooling and ECAPA-TDNN by plain loops; the published embeddings."""

import json
import math

import numpy as np
import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import (
    AttentiveStatisticsPooling as SpeechBrainPooling,
)
from tiny_encoder import noise, randomise

from speechbrain_ext.adaptation import inject_lora, merge_lora
from speechbrain_ext.lobes.heads import (
    MFA,
    AdapterMFA,
    AttentiveStatisticsPooling,
    ConformerMFA,
    WeightedSumECAPA,
    pooling,
)
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import load_strictly

SIZE, STATES, EMBEDDING = 12, 4, 7
FRAMES = (40, 25, 25, 6)


def make_head():
    """A random weighted sum with ECAPA-TDNN in eval mode."""
    ecapa = (16, 16, 16, 16, 48)
    return randomise(WeightedSumECAPA(SIZE, STATES, EMBEDDING, ecapa)).eval()


def random_states():
    """Four states [4, 40, 12] and their relative lengths."""
    states = list(noise(STATES, len(FRAMES), max(FRAMES), SIZE))
    return states, torch.tensor(FRAMES) / max(FRAMES)


# -- pooling ---------------------------------------------------------------------------


def plain_pooling(module, x):
    """One utterance [T, D], frame by frame and channel by channel: [2D]."""
    first, _, norm, last = module.attention
    scores = []
    for frame in x:
        hidden = (first.weight[:, :, 0] @ frame + first.bias).clamp(min=0)
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        hidden = hidden * norm.weight + norm.bias
        scores.append(last.weight[:, :, 0] @ hidden + last.bias)
    scores = torch.stack(scores).detach()
    means, deviations = [], []
    for channel in range(x.shape[1]):
        weights = [math.exp(score) for score in scores[:, channel]]
        total = sum(weights)
        frames = list(zip(weights, x[:, channel].tolist()))
        mean = sum(w * value for w, value in frames) / total
        variance = sum(w * (value - mean) ** 2 for w, value in frames) / total
        means.append(mean)
        deviations.append(math.sqrt(max(variance, 1e-5)))
    return torch.tensor(means + deviations)


@pytest.fixture(params=[True, False], ids=["whole", "by parts"])
def ways(request, monkeypatch):
    """All channels at once, and four at a time as in inference on a CPU."""
    monkeypatch.setattr(pooling, "PART", 4)
    with torch.set_grad_enabled(request.param):
        yield


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("frames", [1, 2, 30])
def test_pooling_equals_a_plain_loop(frames):
    module = randomise(AttentiveStatisticsPooling(6, 4)).eval()
    norm = module.attention[2]
    norm.running_mean.copy_(noise(4))
    norm.running_var.copy_(0.5 + noise(4).abs())
    x = noise(3, frames, 6)
    expected = torch.stack([plain_pooling(module, row) for row in x])
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=0)


def test_pooling_by_parts_keeps_its_digits_over_a_minute():
    """Far from zero, where weights that do not sum to one would show."""
    module = randomise(AttentiveStatisticsPooling(64, 4)).eval()
    x = noise(1, 6000, 64) + 30
    with torch.no_grad():
        found = module(x)
        expected = module.double()(x.double())
    difference = (found - expected).abs()
    assert difference[:, :64].max() < 4e-5  # of 30; in float32 one by one: 1e-4
    assert difference[:, 64:].max() < 6e-4


@pytest.mark.usefixtures("ways")
def test_pooling_looks_at_valid_frames_only():
    module = randomise(AttentiveStatisticsPooling(6, 4)).eval()
    x, frames = noise(3, 20, 6), [20, 9, 1]
    padding = torch.arange(20) >= torch.tensor(frames)[:, None]
    for garbage in (1e4, float("nan"), float("inf")):
        dirty = x.masked_fill(padding.unsqueeze(-1), garbage)
        pooled = module(dirty, padding)
        for row, n in enumerate(frames):
            alone = module(x[row : row + 1, :n])[0]
            torch.testing.assert_close(pooled[row], alone, atol=1e-5, rtol=0)


def test_pooling_under_autocast_keeps_float32_statistics():
    module = randomise(AttentiveStatisticsPooling(6, 4)).eval()
    x = noise(2, 200, 6) + 30  # mean² is 900 times the variance: bf16 has 3 digits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = module(x)
    assert pooled.dtype == torch.float32
    assert pooled[:, 6:].min() > 0.7
    assert pooled[:, 6:].max() < 1.3


@pytest.mark.usefixtures("ways")
def test_pooling_with_context_is_speechbrains():
    peer = randomise(SpeechBrainPooling(6, 4, global_context=True)).eval()
    peer.tdnn.norm.norm.running_mean.copy_(0.1 * noise(4))
    own = ConformerMFA(3, 3, 2, 4).pooling.eval()
    own.load_state_dict(
        {
            "attention.0.weight": peer.tdnn.conv.conv.weight,
            "attention.0.bias": peer.tdnn.conv.conv.bias,
            "attention.4.weight": peer.conv.conv.weight,
            "attention.4.bias": peer.conv.conv.bias,
            **{
                f"attention.2.{name}": value
                for name, value in peer.tdnn.norm.norm.state_dict().items()
            },
        }
    )
    x, frames = noise(3, 20, 6), torch.tensor([20, 9, 2])
    padding = torch.arange(20) >= frames[:, None]
    expected = peer(x.transpose(1, 2), (frames - 0.5) / 20).squeeze(-1)
    x = x.masked_fill(padding.unsqueeze(-1), float("nan"))
    torch.testing.assert_close(own(x, padding), expected, atol=1e-5, rtol=1e-5)


# -- weighted sum and ECAPA-TDNN -------------------------------------------------------


def test_weighted_sum_starts_as_the_mean():
    head = make_head()
    head.layer_weights.data.zero_()
    states, _ = random_states()
    mean = torch.stack(states).mean(0)
    torch.testing.assert_close(head([mean] * STATES), head(states))


def test_weighted_sum_ignores_scale_and_offset_of_a_channel():
    """The sum is normalised over time, channel by channel."""
    head = make_head()
    states, _ = random_states()
    scale, offset = 0.5 + noise(SIZE).abs(), noise(SIZE, seed=1)
    moved = [state * scale + offset for state in states]
    torch.testing.assert_close(head(moved), head(states), atol=1e-3, rtol=0)


def test_ecapa_needs_five_frames():
    head = make_head()
    assert torch.isfinite(head([noise(2, 5, SIZE)] * STATES)).all()
    with pytest.raises(InputError, match="a row of 4 frames, expected 5 or more"):
        head([noise(2, 4, SIZE)] * STATES)
    with pytest.raises(InputError, match="a row of 2 frames"):
        head([noise(2, 20, SIZE)] * STATES, torch.tensor([1.0, 0.1]))


# -- the published code's embeddings ---------------------------------------------------


def split_released(path):
    """The published layout → (encoder's tensors, head's tensors) in our names."""
    state = torch.load(path, weights_only=True)["modules"]["spk_model"]
    front = "front.encoder."
    encoder = {
        name[len(front) :].replace("base_model.model.", ""): value
        for name, value in state.items()
        if name.startswith(front)
    }
    head = {n: value for n, value in state.items() if not n.startswith("front.")}
    return encoder, head


def released_model(folder, name):
    """A golden checkpoint in our classes, in eval mode."""
    meta = json.loads((folder / "meta.json").read_text())
    size, embedding = meta["hidden_size"], meta["embedding_dim"]
    encoder = W2VBertEncoder(folder / f"{name}_encoder_config.json")
    states = encoder.n_states
    if name.endswith("weighted_ecapa"):
        head = WeightedSumECAPA(size, states, embedding, meta["ecapa_channels"])
    elif name == "mfa":
        head = MFA(size, states, embedding)
    else:
        head = AdapterMFA(size, states, meta["adapter_dim"], embedding)
    if name == "lora_adapter_mfa":
        inject_lora(encoder, r=meta["lora_r"], alpha=meta["lora_alpha"])
    encoder_state, head_state = split_released(folder / f"{name}.pth")
    counters = [key for key in head.state_dict() if "num_batches_tracked" in key]
    load_strictly(encoder, encoder_state, name, ignore=["masked_spec_embed"])
    load_strictly(head, head_state, name, allow_missing=counters)
    return SpeakerEncoder(encoder, head).eval()


def golden_wavs(folder):
    with np.load(folder / "wavs.npz") as wavs:
        return [torch.tensor(wavs[key]).float() for key in wavs]


@pytest.mark.parametrize(
    "name",
    [
        "adapter_mfa",
        "mfa",
        "weighted_ecapa",
        "pruned_adapter_mfa",
        "lora_adapter_mfa",
        "lora_adapter_mfa_merged",
    ],
)
def test_golden_embeddings(shared, name):
    """One by one, and in one padded batch, which the published code cannot do."""
    folder = shared / "golden" / "released"
    model, wavs = released_model(folder, name), golden_wavs(folder)
    golden = torch.tensor(np.load(folder / f"{name}_embeddings.npy"))
    lengths = [len(wav) for wav in wavs]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    with torch.no_grad():
        single = torch.cat([model(wav[None])[:, 0] for wav in wavs])
        together = model(batch, torch.tensor(lengths) / max(lengths))[:, 0]
        if name == "lora_adapter_mfa":
            merge_lora(model.encoder)
            merged = torch.cat([model(wav[None])[:, 0] for wav in wavs])
            torch.testing.assert_close(merged, single, atol=1e-5, rtol=0)
    golden = golden.reshape(single.shape)
    torch.testing.assert_close(single, golden, atol=1e-4, rtol=0)
    torch.testing.assert_close(together, golden, atol=1e-4, rtol=0)


def test_golden_hidden_states(shared):
    folder = shared / "golden" / "released"
    encoder = released_model(folder, "adapter_mfa").encoder
    with np.load(folder / "adapter_mfa_wav0_internals.npz") as internals:
        golden = torch.tensor(internals["hidden_states"])
    with torch.no_grad():
        states, _ = encoder(golden_wavs(folder)[0][None])
    assert len(states) == len(golden)
    for state, expected in zip(states, golden):
        expected = expected.reshape(state.shape)
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=0)
