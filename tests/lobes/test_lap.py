"""Layer attentive pooling against all states stacked, values and gradients."""

import os

import pytest
import torch
import torch.nn.functional as F
from tiny_encoder import noise, randomise
from tiny_training import in_processes, saved

from speechbrain_ext.lobes.heads import lap
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
    y = x if module.projection is None else module.projection(x)
    y = y.unflatten(-1, (len(module.squeeze_bias), -1))  # [B, L+1, T, H, D]

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
@pytest.mark.parametrize(("heads", "block"), [(1, 128), (HEADS, 128), (HEADS, 21)])
def test_equals_stacked_states(mode, padded, heads, block, monkeypatch):
    monkeypatch.setattr(lap, "BLOCK", block)  # of three recordings: all frames, or 7
    module = randomise(LayerAttentivePooling(SIZE, STATES, heads, 0.4))
    module.norm.running_mean.copy_(noise(SIZE, seed=2))
    module.norm.running_var.copy_(0.5 + noise(SIZE, seed=3).abs())
    module.train(mode != "eval")
    dropped = None
    if mode == "dropout":
        ones = torch.ones(len(FRAMES), max(FRAMES), heads, STATES)
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


def aggregated(rows):
    """A step on these recordings of four → what it gave, and its gradients."""
    module = randomise(LayerAttentivePooling(SIZE, STATES, HEADS, 0.0)).train()
    padding = torch.arange(20) >= torch.tensor([20, 9, 14, 3])[rows].unsqueeze(1)
    states = [
        (2 * noise(4, 20, SIZE, seed=n)[rows] + n).requires_grad_()
        for n in range(STATES)
    ]
    out = module(states, padding).masked_fill(padding.unsqueeze(-1), 0.0)
    (out * noise(4, 20, SIZE, seed=9)[rows]).sum().backward()
    return {
        "out": out.detach(),
        "states": torch.stack([state.grad for state in states], 1),
        "parameters": [parameter.grad for parameter in module.parameters()],
        "statistics": [module.norm.running_mean, module.norm.running_var],
    }


def _on_one_rank(folder, parts):
    rank = int(os.environ["RANK"])
    torch.save(aggregated(parts[rank]), folder / f"rank{rank}")


def test_two_processes_equal_one_on_the_whole_batch(tmp_path):
    parts = [[0], [1, 2, 3]]
    assert in_processes(_on_one_rank, 2, tmp_path, parts) == [0, 0]
    one, two = (saved(tmp_path / f"rank{rank}") for rank in range(2))
    whole, limits = aggregated([0, 1, 2, 3]), {"atol": 1e-4, "rtol": 1e-4}
    for name in ("out", "states"):
        both = torch.cat([getattr(one, name), getattr(two, name)])
        torch.testing.assert_close(both, whole[name], **limits)
    for a, b, both in zip(one.parameters, two.parameters, whole["parameters"]):
        torch.testing.assert_close(a + b, both, **limits)
    for found in (one, two):
        torch.testing.assert_close(found.statistics, whole["statistics"])
