"""Layer attentive pooling against all states stacked, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from tiny_encoder import noise, randomise

from speechbrain_ext.lobes.heads.lap import LayerAttentivePooling

SIZE, STATES, HEADS = 12, 5, 3
FRAMES = (20, 9, 14)


def stacked(module, states, padding, dropped=None):
    """The published way on a tensor [B, T, C, L+1] of all states, by autograd."""
    x = torch.stack([state.masked_fill(padding[..., None], 0.0) for state in states], 1)
    norm = module.norm
    mean, variance = norm.running_mean, norm.running_var
    if module.training:
        valid = torch.stack([state[~padding] for state in states])
        mean, variance = valid.mean((0, 1)), valid.var((0, 1), unbiased=False)
    x = (x - mean) * (variance + norm.eps).rsqrt() * norm.weight + norm.bias
    y = module.projection(x).unflatten(-1, (HEADS, -1))  # [B, L+1, T, H, D]

    def network(x):
        x = x.movedim(1, -1).unsqueeze(-2)
        x = F.relu(x @ module.squeeze_weight + module.squeeze_bias)
        return (x @ module.expand_weight + module.expand_bias).squeeze(-2)

    scores = (network(y.mean(-1)) + network(y.max(-1).values)).sigmoid()
    scores = scores if dropped is None else scores * dropped
    scored = y * scores.movedim(-1, 1).unsqueeze(-1)
    return scored.max(1).values.flatten(2)


@pytest.mark.parametrize("mode", ["train", "eval", "dropout"])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_stacked_states(mode, padded, monkeypatch):
    module = randomise(LayerAttentivePooling(SIZE, STATES, HEADS, 0.4))
    module.norm.running_mean.copy_(noise(SIZE, seed=2))
    module.norm.running_var.copy_(0.5 + noise(SIZE, seed=3).abs())
    module.train(mode != "eval")
    dropped = None
    if mode == "dropout":
        ones = torch.ones(len(FRAMES), max(FRAMES), HEADS, STATES)
        dropped = F.dropout(ones, 0.4)
    monkeypatch.setattr(module, "_dropped", lambda states: dropped)
    frames = torch.tensor(FRAMES if padded else [20, 20, 20])
    padding = torch.arange(20) >= frames.unsqueeze(1)
    states = [
        (2 * noise(3, 20, SIZE, seed=n) + n).requires_grad_() for n in range(STATES)
    ]
    inputs = [*states, *module.parameters()]
    direction = noise(3, 20, SIZE, seed=9).masked_fill(padding[..., None], 0.0)
    expected = stacked(module, states, padding, dropped)
    found = module(states, padding if padded else None)
    inside = ~padding
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-5, rtol=1e-5)
    for own, other in zip(
        torch.autograd.grad((found * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
    ):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_running_statistics_are_those_of_batch_norm():
    module = LayerAttentivePooling(SIZE, STATES, HEADS, 0.0)
    peer = torch.nn.BatchNorm2d(SIZE)
    torch.nn.init.xavier_uniform_(module.squeeze_weight)
    torch.nn.init.xavier_uniform_(module.expand_weight)
    for seed in range(2):
        states = [noise(3, 20, SIZE, seed=n + 10 * seed) + n for n in range(STATES)]
        module(states)
        peer(torch.stack(states, -1).transpose(1, 2))
    for name, tensor in peer.named_buffers():
        torch.testing.assert_close(module.norm.get_buffer(name), tensor)
