"""WavLM's gated bias by distance, with all heads and with some of them."""

import pytest
import torch
from random_gates import relative_error
from test_wav2vec2 import LARGE, assert_equal, assert_golden, padded, stock
from tiny_encoder import BASE, noise, randomise, waveform_config
from transformers import WavLMConfig
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.wavlm import TABLE, WavLMEncoder, buckets
from speechbrain_ext.profiling import count_macs


@pytest.mark.parametrize("name", ["wavlm_base", "wavlm_large"])
def test_golden_states(name, shared):
    assert_golden(WavLMEncoder, name, shared)


@pytest.mark.parametrize(("count", "farthest"), [(320, 800), (32, 128), (10, 7)])
def test_buckets_are_those_of_transformers(count, farthest):
    attention = WavLMAttention(8, 2, num_buckets=count, max_distance=farthest)
    distance = torch.arange(-3000, 3001)
    expected = attention._relative_positions_bucket(distance)
    assert torch.equal(buckets(distance, count, farthest), expected)


@pytest.mark.parametrize("changes", [{}, BASE])
def test_other_buckets(changes, tmp_path):
    model = stock("wavlm", num_buckets=12, max_bucket_distance=20, **changes)
    model.save_pretrained(tmp_path)
    assert_equal(WavLMEncoder(tmp_path).eval(), model)


def test_some_heads_are_the_full_model_without_the_others(tmp_path):
    """The others' columns of the output map are 0; layer 0 has none of its own."""
    kept = {0: [], 1: [1, 3], 2: [0, 1, 2, 3]}
    model = stock("wavlm")
    for layer, heads in kept.items():
        attention = model.encoder.layers[layer].attention
        others = [h for h in range(4) if h not in heads]
        columns = attention.out_proj.weight.data.unflatten(1, (4, 12))
        columns[:, others] = 0
        if not heads:
            attention.out_proj.bias.data.zero_()
    model.save_pretrained(tmp_path)
    config = waveform_config("wavlm", num_attention_heads_group=[0, 2, 4])
    smaller = WavLMEncoder(config).eval()
    state = WavLMEncoder(tmp_path).state_dict()
    gone = ("encoder.layers.0.attention.", "encoder.layers.0.layer_norm.")
    state = {n: t for n, t in state.items() if not n.startswith(gone)}
    name = "encoder.layers.1.attention."
    for tensor in [t for t in state if t.startswith(name) and "gru" not in t]:
        if "out_proj" in tensor:
            continue
        if tensor.endswith("heads"):
            state[tensor] = torch.tensor(kept[1])
        else:
            state[tensor] = state[tensor].unflatten(0, (4, 12))[kept[1]].flatten(0, 1)
    state[f"{name}gru_rel_pos_const"] = state[f"{name}gru_rel_pos_const"][kept[1]]
    columns = state[f"{name}out_proj.weight"].unflatten(1, (4, 12))
    state[f"{name}out_proj.weight"] = columns[:, kept[1]].flatten(1, 2)
    smaller.load_state_dict(state)
    assert smaller.encoder.layers[0].attention is None
    assert_equal(smaller, model)


def test_both_ways_of_attention_are_one():
    """With gradients and without, over several blocks of queries."""
    encoder = randomise(WavLMEncoder(waveform_config("wavlm"))).eval()
    wavs, lens = padded(16000 * 14, 16000 * 9)
    with_gradient = [state.detach() for state in encoder(wavs, lens)[0]]
    with torch.no_grad():
        without = encoder(wavs, lens)[0]
    valid = without[0].shape[1] * 9 // 14 - 1
    for one, other in zip(with_gradient, without):
        assert relative_error([one[0]], [other[0]]) < 1e-5
        assert relative_error([one[1, :valid]], [other[1, :valid]]) < 1e-5


def test_the_table_is_outside_of_the_layers_and_learns():
    config = waveform_config("wavlm", num_attention_heads_group=[0, 2, 4])
    encoder = WavLMEncoder(config)
    encoder(0.1 * noise(1, 9000))[0][-1].square().sum().backward()
    table = dict(encoder.named_parameters())[TABLE]
    assert table.shape == (320, 4)
    assert (table.grad.abs().sum(0) > 0).all()


class LastState(torch.nn.Module):
    """A head without arithmetic."""

    def forward(self, states, lens):
        return states[-1]


def test_published_sizes():
    with torch.device("meta"):
        base = WavLMEncoder(WavLMConfig())
        large = WavLMEncoder(WavLMConfig(**LARGE))
    assert count_parameters(base).total == 94_381_936 - 768
    macs = count_macs(SpeakerEncoder(large, LastState()))
    assert macs == pytest.approx(17.82e9, abs=0.01e9)
    assert macs == macs_by_hand(frames=(3199, 1599, 799, 399, 199, 99, 49))


def macs_by_hand(frames, width=1024, heads=16, units=4096, layers=24):
    """Convolutions, projection, positions (one frame more), layers with their gates."""
    last, size = frames[-1], width // heads
    conv = frames[0] * 10 * 512
    conv += sum(t * k * 512**2 for t, k in zip(frames[1:], (3, 3, 3, 3, 2, 2)))
    layer = 4 * last * width**2 + 2 * last**2 * width + 2 * last * width * units
    layer += last * heads * size * 8
    positions = (last + 1) * 128 * width**2 // 16
    return conv + last * 512 * width + positions + layers * layer
