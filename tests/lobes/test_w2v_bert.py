"""The encoder: transformers' hidden states, padding, freezing, memory."""

import itertools

import pytest
import speechbrain
import torch
from tiny_encoder import (
    LargestTensor,
    SavedForBackward,
    noise,
    stock_model,
    tiny_config,
    tiny_encoder,
)

from speechbrain_ext.adaptation import inject_lora
from speechbrain_ext.lobes.w2v_bert import UNUSED, W2VBertEncoder
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import load_strictly

CONFIGURATIONS = {
    "w2v-BERT's positions": {},
    "three heads of five": {"num_attention_heads": 3, "hidden_size": 15},
    "one head": {"num_attention_heads": 1, "num_hidden_layers": 1},
    "narrow positions": {
        "left_max_position_embeddings": 5,
        "right_max_position_embeddings": 3,
    },
    "right wider than left": {
        "left_max_position_embeddings": 0,
        "right_max_position_embeddings": 100,
    },
    "other kernel and epsilon": {
        "conv_depthwise_kernel_size": 5,
        "layer_norm_eps": 1e-3,
    },
    "wide feed-forward": {"intermediate_size": 301, "num_hidden_layers": 2},
}
DROPOUTS = (
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "feat_proj_dropout",
    "conformer_conv_dropout",
)
NO_DROPOUT = dict.fromkeys(DROPOUTS, 0.0)
LENGTHS = (48000, 16000, 31999, 9000)


def twins(**changes):
    """Our encoder and transformers' model with the same random weights."""
    stock = stock_model(tiny_config(**changes))
    encoder = W2VBertEncoder(tiny_config(**changes)).eval()
    load_strictly(encoder, stock.state_dict(), "transformers", ignore=UNUSED)
    return encoder, stock


def batch_of_noise():
    """Four rows of LENGTHS samples, padded with zeros, and their relative lengths."""
    wavs = 0.1 * noise(len(LENGTHS), max(LENGTHS))
    for row, samples in enumerate(LENGTHS):
        wavs[row, samples:] = 0
    return wavs, torch.tensor(LENGTHS) / max(LENGTHS)


BLOCKS = ("w2v-BERT's positions", 700)  # more than one block of queries


@pytest.mark.parametrize(
    ("name", "frames"), [*itertools.product(CONFIGURATIONS, [1, 2, 70, 149]), BLOCKS]
)
def test_hidden_states_equal_transformers(name, frames):
    encoder, stock = twins(**CONFIGURATIONS[name])
    features = noise(1 if frames == 700 else 2, frames, 160)
    with torch.no_grad():
        expected = stock(features, output_hidden_states=True).hidden_states
        states = encoder.encode(features)
    assert len(states) == len(expected) == encoder.n_states
    for state, peer in zip(states, expected):
        torch.testing.assert_close(state, peer, atol=1e-4, rtol=0)


def test_padded_hidden_states_equal_transformers():
    encoder, stock = twins()
    features, frames = noise(3, 90, 160), torch.tensor([90, 41, 7])
    mask = torch.arange(90) < frames[:, None]
    with torch.no_grad():
        peer = stock(features, mask.long(), output_hidden_states=True).hidden_states
        states = encoder.encode(features, frames / 90)
    for state, expected in zip(states, peer):
        torch.testing.assert_close(state[mask], expected[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan")])
def test_padded_equals_single_whatever_lies_in_the_padding(garbage):
    encoder = tiny_encoder()
    wavs, lens = batch_of_noise()
    dirty = wavs.clone()
    for row, samples in enumerate(LENGTHS):
        dirty[row, samples:] = garbage
    with torch.no_grad():
        states, out_lens = encoder(dirty, lens)
        for row, samples in enumerate(LENGTHS):
            single, _ = encoder(wavs[row : row + 1, :samples])
            frames = round(float(out_lens[row]) * states[0].shape[1])
            for state, alone in zip(states, single):
                assert alone.shape[1] == frames
                torch.testing.assert_close(
                    state[row, :frames], alone[0], atol=1e-4, rtol=0
                )


@pytest.mark.parametrize("training", [False, True])
def test_garbage_in_padded_features_does_not_leak(training):
    """Features from elsewhere: NaN beyond their lengths; nor into the gradients."""
    encoder = tiny_encoder(tiny_config(**NO_DROPOUT)).train(training)
    features, lens = noise(2, 60, 160), torch.tensor([1.0, 0.5])
    dirty = features.clone()
    dirty[1, 30:] = float("nan")
    for state in encoder.encode(dirty, lens)[1:]:
        assert torch.isfinite(state[1, :30]).all()
    clean = encoder.encode(features, lens)[-1]
    found = encoder.encode(dirty, lens)[-1]
    assert torch.equal(clean[1, :30], found[1, :30])
    clean[1, :30].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_no_large_tensor_for_long_recordings():
    """14 s, 700 frames: far below the 5,880,000 elements of [T, T, head_dim]."""
    encoder = tiny_encoder()
    with LargestTensor() as largest, torch.no_grad():
        encoder.encode(noise(1, 700, 160))
    assert largest.elements <= 4 * 512 * 700


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropouts_of_the_configuration_act_in_training_alone(name):
    encoder = tiny_encoder(tiny_config(**{**NO_DROPOUT, name: 0.5}))
    features = noise(1, 30, 160)
    still = encoder.encode(features)[-1]
    assert torch.equal(encoder.encode(features)[-1], still)
    encoder.train()
    assert not torch.equal(encoder.encode(features)[-1], still)


def test_gradients_equal_transformers():
    encoder, stock = twins(**NO_DROPOUT, layerdrop=0.0, mask_time_prob=0.0)
    features = noise(2, 80, 160)
    encoder.train().encode(features)[-1].square().mean().backward()
    stock.train()(features).last_hidden_state.square().mean().backward()
    expected = {name: p.grad for name, p in stock.named_parameters()}
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients(dropout):
    config = tiny_config(hidden_dropout=dropout, attention_dropout=dropout)
    wavs, lens = batch_of_noise()
    results = []
    for checkpointing in (False, True):
        encoder = tiny_encoder(config, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(0)  # recomputing must draw the same dropout again
        with SavedForBackward() as saved:
            states, _ = encoder(wavs, lens)
        sum(state[0].square().mean() for state in states).backward()
        results.append(([p.grad for p in encoder.parameters()], saved.bytes))
    (plain, all_bytes), (recomputed, few_bytes) = results
    for one, other in zip(plain, recomputed):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert few_bytes < all_bytes / 3


def test_gradient_checkpointing_of_a_frozen_encoder_with_lora():
    """It stays in eval mode, and yet has activations to save."""
    sizes = []
    for checkpointing in (False, True):
        encoder = tiny_encoder(frozen=True, gradient_checkpointing=checkpointing)
        inject_lora(encoder, r=2).train()
        with SavedForBackward() as saved:
            states = encoder.encode(noise(2, 100, 160))
        states[-1].sum().backward()
        sizes.append(saved.bytes)
    assert sizes[1] < sizes[0] / 3


def test_frozen_encoder_saves_nothing_for_backward():
    encoder = tiny_encoder(frozen=True)
    with SavedForBackward() as saved:
        encoder(0.1 * noise(1, 16000))
    assert saved.bytes == 0


@pytest.mark.parametrize("lora", [False, True])
def test_frozen_is_unchanged_by_a_step_of_brain_fit(lora):
    """Brain.fit calls .train() on all modules and steps the optimiser."""
    encoder = tiny_encoder(tiny_config(hidden_dropout=0.3), frozen=True)
    if lora:
        inject_lora(encoder, r=2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    seen = []

    class Brain(speechbrain.Brain):
        def compute_forward(self, batch, stage):
            seen.append([name for name, m in encoder.named_modules() if m.training])
            states, _ = self.modules.encoder(batch)
            return self.modules.head(states[-1].mean(1))

        def compute_objectives(self, predictions, batch, stage):
            return predictions.square().mean()

    modules = {"encoder": encoder, "head": torch.nn.Linear(48, 4)}
    brain = Brain(
        modules,
        opt_class=lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
        run_opts={"device": "cpu", "noprogressbar": True},
    )
    batches = [0.1 * noise(2, 16000), 0.1 * noise(2, 12000)]
    brain.fit(range(1), torch.utils.data.DataLoader(batches, batch_size=None))
    assert brain.optimizer_step == 2
    assert all("lora_dropout" in name for names in seen for name in names)
    changed = [
        name
        for name, value in encoder.state_dict().items()
        if not torch.equal(value, before[name])
    ]
    assert all("lora_" in name for name in changed)
    assert bool(changed) == lora


def test_half_weights_run_from_a_waveform():
    """As on a GPU without autocast: features in float32, the rest in bf16."""
    encoder = tiny_encoder(tiny_config(num_hidden_layers=1))
    wavs = 0.1 * noise(1, 8000)
    expected = encoder(wavs)[0][-1]
    state = encoder.to(torch.bfloat16)(wavs)[0][-1]
    assert state.dtype == torch.bfloat16
    likeness = torch.cosine_similarity(state.float().flatten(), expected.flatten(), 0)
    assert likeness > 0.99


def test_wrong_wavs_are_named():
    with pytest.raises(InputError, match=r"wavs: shape \(16000,\)"):
        tiny_encoder()(torch.zeros(16000))
