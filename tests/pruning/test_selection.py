"""The delivered size: at the target, never above it, the best units kept."""

import numpy as np
import pytest
import torch
from random_gates import (
    ENCODER_KINDS,
    GATES,
    gated_encoder,
    set_gates,
    size_of,
    speaker_encoder,
)
from tiny_encoder import noise, tiny_config, tiny_encoder
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pruning import (
    Budget,
    add_gates,
    harden,
    prune,
    remaining_parameters,
)
from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.utils.errors import InputError

ENCODER = 580_492_096


def widths(encoder):
    """(layer, kind) → units kept."""
    return {
        (g.layer, g.kind): int(gate.kept().sum()) for g, gate in gated_groups(encoder)
    }


def scores(encoder):
    """(kept?, log α) of every unit gate, before it is hardened."""
    return [gate.units.log_alpha.detach().clone() for _, gate in gated_groups(encoder)]


def plainly(costs, target):
    """Which units stay, by walking through all and counting anew each time."""
    kept = [np.ones(account.gate.size, bool) for account in costs.groups]

    def cost():
        total = costs.rest
        for account, units in zip(costs.groups, kept):
            total += account.unit * units.sum() + account.fixed * units.any()
        return total

    everything = sorted(
        (float(alpha), group, unit)
        for group, account in enumerate(costs.groups)
        for unit, alpha in enumerate(account.gate.units.log_alpha.detach())
    )
    for _, group, unit in everything:
        kept[group][unit] = False
        if cost() < target:
            kept[group][unit] = True
    return kept, cost()


@pytest.mark.parametrize("how", ["soft", "sparse"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.92])
def test_the_target_is_met_and_the_largest_stay(sparsity, how):
    """As the plain walk, plus one last step below the target."""
    encoder = gated_encoder(how)
    budget = Budget(encoder, sparsity=sparsity)
    expected, above = plainly(budget.costs, budget.target_cost)
    cost = harden(budget)
    assert remaining_parameters(encoder) == cost == size_of(prune(encoder))
    full = budget.costs.full
    assert (1 - sparsity) * full - 1600 <= cost <= (1 - sparsity) * full
    kept = [account.gate.kept().numpy() for account in budget.costs.groups]
    fewer = sum(int(e.sum() - k.sum()) for e, k in zip(expected, kept))
    assert all((k <= e).all() for e, k in zip(expected, kept))
    # one step: a unit, or the few that were left of a group
    assert sum((k != e).any() for e, k in zip(expected, kept)) == (cost < above)
    assert 0 <= fewer <= 1


@pytest.mark.parametrize("how", GATES)
def test_same_gates_same_decision(how):
    first, second = gated_encoder(how), gated_encoder(how)
    assert harden(Budget(first, sparsity=0.6)) == harden(Budget(second, sparsity=0.6))
    assert widths(first) == widths(second)


def test_untrained_gates_are_removed_evenly():
    """Equal scores: no layer goes first."""
    encoder = add_gates(tiny_encoder())
    harden(Budget(encoder, sparsity=0.5))
    for (_, kind), units in widths(encoder).items():
        assert units == pytest.approx({"heads": 2, "conv": 24}.get(kind, 40), abs=3)


def test_values_of_what_stays():
    """ẑ above ½, the mean of the noise below: never 0, in the order of log α."""
    encoder = gated_encoder("sparse", kinds=["ffn1"])
    before = scores(encoder)
    means = [gate.units.mean() for _, gate in gated_groups(encoder)]
    plain = [gate.units.value() for _, gate in gated_groups(encoder)]
    harden(Budget(encoder, sparsity=0.05))
    for (_, gate), log_alpha, mean, value in zip(
        gated_groups(encoder), before, means, plain, strict=True
    ):
        kept = gate.kept()
        assert not kept.all()
        expected = torch.where(log_alpha < 0, mean.clamp(min=1e-3).float(), value)
        found = gate.units.value()
        torch.testing.assert_close(found[kept], expected[kept], atol=1e-5, rtol=0)
        assert (found[~kept] == 0).all()
        assert (found[kept] > 0).all()
        assert log_alpha[kept].min() >= log_alpha[~kept].max()


def test_values_far_below_zero_still_stay():
    """Training may drive log α below that of a gate which is closed for good."""
    encoder = add_gates(tiny_encoder(), log_alpha=-1000.0)
    cost = harden(Budget(encoder, sparsity=0.5))
    assert remaining_parameters(encoder) == cost == size_of(prune(encoder))


def test_gated_equals_pruned_after_hardening():
    encoder = gated_encoder("sparse", whole=ENCODER_KINDS)
    harden(Budget(encoder, sparsity=0.8))
    features = noise(1, 40, 160)
    with torch.no_grad():
        gated = encoder.encode(features)
        pruned = prune(encoder).encode(features)
    for one, other in zip(gated, pruned, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_gates_on_whole_modules(sparsity, seed):
    """A module is too large a step near the target: units close the gap."""
    encoder = gated_encoder("soft", seed=seed, whole=ENCODER_KINDS)
    budget = Budget(encoder, sparsity=sparsity)
    closed = [
        g.name for g, gate in gated_groups(encoder) if float(gate.whole.log_alpha) < -4
    ]
    cost = harden(budget)
    assert remaining_parameters(encoder) == cost == size_of(prune(encoder))
    assert 0 <= budget.target_cost - cost <= 1600
    left = {g.name: int(gate.kept().sum()) for g, gate in gated_groups(encoder)}
    if sparsity == 0.8:
        assert all(left[name] == 0 for name in closed)


def test_whole_modules_alone():
    encoder = set_gates(
        add_gates(tiny_encoder(), kinds=[], whole=ENCODER_KINDS), "soft"
    )
    cost = harden(Budget(encoder, sparsity=0.5))
    assert remaining_parameters(encoder) == cost == size_of(prune(encoder))
    assert cost <= 0.5 * size_of(tiny_encoder())


@pytest.mark.parametrize("floors", [{"heads": 1}, {"heads": 2, "ffn1": 20, "conv": 48}])
def test_floors_hold(floors):
    encoder = gated_encoder("sparse", floors=floors)
    budget = Budget(encoder, parameters=int(0.6 * size_of(tiny_encoder())))
    cost = harden(budget)
    assert remaining_parameters(encoder) == cost <= budget.target_cost
    for (_, kind), units in widths(encoder).items():
        assert units >= floors.get(kind, 0)


def test_the_smallest_target_leaves_the_floors_alone():
    encoder = gated_encoder("soft", floors={"heads": 2})
    budget = Budget(encoder, parameters=gated_smallest(encoder))
    assert harden(budget) == budget.target_cost
    for (_, kind), units in widths(encoder).items():
        assert units == (2 if kind == "heads" else 0)


def gated_smallest(encoder):
    return Budget(encoder, sparsity=0.1).costs.smallest


@pytest.mark.parametrize("multiple", [4, 8, 16])
def test_widths_are_multiples(multiple):
    """Of rows: a head of this encoder has 12, and 4 heads of them."""
    encoder = gated_encoder("sparse")
    budget = Budget(encoder, sparsity=0.6)
    cost = harden(budget, multiple=multiple)
    assert remaining_parameters(encoder) == cost <= budget.target_cost
    sizes = {"heads": 12}
    for (_, kind), units in widths(encoder).items():
        assert units * sizes.get(kind, 1) % multiple == 0
    assert len(set(widths(encoder).values())) > 3


def test_multiples_of_an_odd_width():
    """A model that was pruned to 45 channels goes on with 40, 32, …"""
    config = tiny_config(conv_group=[[48, 45], [48, 48], [48, 7]])
    encoder = set_gates(add_gates(tiny_encoder(config)), "sparse")
    harden(Budget(encoder, sparsity=0.4), multiple=8)
    found = widths(encoder)
    assert found[0, "conv"] in {40, 32, 24, 16, 8, 0}
    assert found[2, "conv"] in {7, 0}
    with pytest.raises(InputError, match="multiple 0, expected 1 or more"):
        harden(Budget(encoder, sparsity=0.4), multiple=0)


def test_floors_and_multiples_that_leave_no_way():
    encoder = add_gates(tiny_encoder(), floors={"ffn1": 41, "ffn2": 41})
    smallest = gated_smallest(encoder)
    with pytest.raises(InputError, match="no smaller width is allowed"):
        harden(Budget(encoder, parameters=smallest), multiple=8)


def test_a_budget_in_multiply_adds():
    encoder = gated_encoder("soft")
    budget = Budget(encoder, macs=1_500_000)
    cost = harden(budget)
    assert cost == budget.costs.remaining()
    assert 1_500_000 - 11_000 <= cost <= 1_500_000


def test_encoder_and_head_in_one_budget():
    model = set_gates(add_gates(speaker_encoder()), "sparse")
    budget = Budget(model, sparsity=0.7)
    cost = harden(budget)
    pruned = prune(model)
    assert size_of(pruned) == cost <= budget.target_cost
    assert min(pruned.head.arguments["hidden_sizes"]) >= 1


@pytest.mark.parametrize("multiple", [1, 8])
def test_full_size_target_within_half_a_percent(multiple):
    """w2v-BERT 2.0 at 0.8: 20 % ± 0.5 % of its 580,492,096 parameters.

    Weights on the meta device take no memory; the 222,000 gates are real.
    """
    with torch.device("meta"):
        encoder = add_gates(W2VBertEncoder(Wav2Vec2BertConfig()), whole=["heads"])
    generator = torch.Generator().manual_seed(0)
    for _, gate in gated_groups(encoder):
        gate.to_empty(device="cpu")
        for parameter in gate.parameters():
            parameter.data.copy_(torch.randn(len(parameter), generator=generator) - 1.5)
    budget = Budget(encoder, sparsity=0.8)
    cost = harden(budget, multiple=multiple)
    assert cost / ENCODER == pytest.approx(0.2, abs=0.005)
    assert 0 <= 0.2 * ENCODER - cost < 2049 * multiple
    assert remaining_parameters(encoder) == cost
