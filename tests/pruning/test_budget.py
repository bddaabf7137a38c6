"""Counts against the real thing, the penalty against its formula."""

import math

import pytest
import torch
from random_gates import (
    ENCODER_KINDS,
    gated_encoder,
    log_alphas,
    set_gates,
    size_of,
    speaker_encoder,
)
from tiny_encoder import noise, tiny_config, tiny_encoder
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import (
    W2VBertEncoder,
    full_shape,
    layer_shapes,
    with_layer_shapes,
)
from speechbrain_ext.profiling import count_macs
from speechbrain_ext.pruning import (
    Budget,
    add_gates,
    expected_macs,
    expected_parameters,
    prune,
)
from speechbrain_ext.pruning.costs import (
    CostModel,
    GroupCost,
    mac_costs,
    parameter_costs,
)
from speechbrain_ext.pruning.gates import GroupGate
from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.utils.errors import InputError

ENCODER = 580_492_096


class NoHead(torch.nn.Module):
    """A head that computes nothing, to count an encoder alone."""

    def forward(self, states, lens=None):
        """The last state."""
        return states[-1]


def real_macs(encoder, seconds):
    return count_macs(SpeakerEncoder(encoder, NoHead()), seconds)


def value(tensor):
    return float(tensor.detach())


def full_model(config=None):
    """w2v-BERT 2.0 or a pruned form of it, without memory for its weights."""
    with torch.device("meta"):
        return W2VBertEncoder(config or Wav2Vec2BertConfig())


def random_shapes(config, seed=0):
    """Uneven widths for every layer, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    full = full_shape(config)

    def draw(width):
        share = torch.rand(1, generator=generator).item()
        return round(width * max(0.0, 1.3 * share - 0.3))

    return [
        full._replace(
            heads=draw(full.heads),
            ffn1=draw(full.ffn1),
            ffn2=draw(full.ffn2),
            conv=draw(full.conv),
        )
        for _ in range(config.num_hidden_layers)
    ]


# -- counted = real --------------------------------------------------------------------


@pytest.mark.parametrize("whole", [(), ENCODER_KINDS])
@pytest.mark.parametrize("seed", range(3))
def test_hard_gates_give_the_real_number_of_parameters(seed, whole):
    encoder = gated_encoder("hard", seed=seed, whole=whole)
    real = size_of(prune(encoder))
    assert value(expected_parameters(encoder)) == real
    assert real < 0.9 * size_of(tiny_encoder())


def test_hard_gates_on_encoder_and_head():
    model = set_gates(add_gates(speaker_encoder()), "hard")
    assert value(expected_parameters(model)) == size_of(prune(model))


@pytest.mark.parametrize("seconds", [0.1, 1.0, 12.0])
@pytest.mark.parametrize("kinds", [None, ["conv", "heads"]])
def test_hard_gates_give_the_real_multiply_adds(kinds, seconds):
    """12 s are more than one block of queries."""
    encoder = gated_encoder("hard", kinds=kinds)
    real = real_macs(prune(encoder), seconds)
    assert value(expected_macs(encoder, seconds)) == real
    costs = mac_costs(encoder, seconds)
    assert costs.remaining() == real < costs.full
    assert costs.full == real_macs(tiny_encoder(), seconds)


@pytest.mark.parametrize("seed", range(3))
def test_costs_at_full_size_are_real(seed):
    """Random structures of w2v-BERT 2.0: costs of the units against built models."""
    config = Wav2Vec2BertConfig()
    shapes = random_shapes(config, seed)
    pruned = full_model(with_layer_shapes(config, shapes))
    encoder = add_gates(full_model())
    for costs, full, real in (
        (parameter_costs(encoder), ENCODER, size_of(pruned)),
        (mac_costs(encoder), real_macs(full_model(), 1.0), real_macs(pruned, 1.0)),
    ):
        total = costs.rest
        for group, _, unit, fixed, _ in costs.groups:
            width = getattr(shapes[group.layer], group.kind)
            total += unit * width + fixed * bool(width)
        assert total == real < 0.7 * full
        assert costs.full == full


def test_costs_of_a_unit_by_hand():
    """FFN unit 2·1024 + 1; head 4·64·1024 + 3·64; channel 3·1024 + 31 + 2."""
    costs = parameter_costs(add_gates(full_model()))
    units = {a.group.kind: (a.unit, a.fixed) for a in costs.groups}
    assert units == {
        "ffn1": (2049, 3 * 1024),
        "heads": (262_336, 3 * 1024 + 73 * 64),
        "conv": (3105, 2 * 1024),
        "ffn2": (2049, 3 * 1024),
    }
    assert costs.rest == 320 + 160 * 1024 + 1024 + 24 * 2 * 1024


def test_shapes_and_configuration_are_inverse():
    config = tiny_config()
    for seed in range(5):
        shapes = random_shapes(config, seed)
        again = with_layer_shapes(config, shapes)
        assert layer_shapes(again) == shapes
        assert layer_shapes(type(again).from_dict(again.to_dict())) == shapes
    assert layer_shapes(config) == [full_shape(config)] * 3


def test_expectation_is_the_mean_of_hard_gates():
    """2,000 draws of all gates, each counted as what it would leave."""
    encoder = gated_encoder("sparse", whole=["heads"])
    expected = value(expected_parameters(encoder))
    costs, counts = parameter_costs(encoder), []
    torch.manual_seed(0)
    for _ in range(2000):
        total = costs.rest
        for _, gate, unit, fixed, _ in costs.groups:
            values = gate.values(noisy=True)
            units = int(values.kept.sum()) * bool(values.whole > 0)
            total += unit * units + fixed * bool(units)
        counts.append(float(total))
    counts = torch.tensor(counts)
    error = 5 * counts.std() / len(counts) ** 0.5
    assert value(counts.mean()) == pytest.approx(expected, abs=float(error))
    assert error < 0.01 * expected


def one_by_one(costs):
    """The expected cost by its formula, group after group."""
    units, alive = [], []
    for cost in costs.groups:
        gate, p = cost.gate, torch.ones(cost.gate.size, dtype=torch.float64)
        if gate.units is not None:
            p = gate.units.logit_above().sigmoid()
        safe = p.argsort(descending=True, stable=True)[: gate.floor]
        p = p.index_fill(0, safe, 1.0)
        whole = 1.0
        if gate.whole is not None:
            whole = gate.whole.logit_above().sigmoid().squeeze()
        units.append(whole * p.sum())
        alive.append(whole * (1 - (1 - p).prod()))
    total = costs.rest
    for number, cost in enumerate(costs.groups):
        total = total + cost.unit * units[number] + cost.fixed * alive[number]
        for other, pair in cost.pairs:
            if other <= number:
                total = total + pair * units[number] * units[other]
    return total


def mixed_gates():
    """Groups of several kinds, neighbours and not, that share costs in pairs."""
    options = [
        {"size": 5},
        {"size": 7, "floor": 2},
        {"size": 5, "gate_whole": True},
        {"size": 4, "gate_units": False, "gate_whole": True},
        {"size": 5, "can_vanish": False},
        {"size": 7, "floor": 2},
        {"size": 5},
    ]
    gates = [set_gates(GroupGate(**some), "soft", n) for n, some in enumerate(options)]
    pairs = {0: ((6, 11), (0, 3)), 2: ((1, 13),), 1: ((2, 13),), 6: ((0, 11),)}
    return CostModel(
        [
            GroupCost(None, gate, 100 + n, 10 * n, pairs.get(n, ()))
            for n, gate in enumerate(gates)
        ],
        rest=1234,
        measure="parameters",
    )


@pytest.mark.parametrize(
    "options", [{}, {"whole": ["heads", "ffn1"]}, {"floors": {"heads": 1, "conv": 3}}]
)
def test_all_gates_at_once_are_one_after_another(options):
    check_at_once(parameter_costs(gated_encoder(**options)))


def test_gates_of_all_kinds_at_once_are_one_after_another():
    check_at_once(mixed_gates())


def check_at_once(costs):
    parameters = [p for cost in costs.groups for p in cost.gate.parameters()]
    found, expected = costs.expected(), one_by_one(costs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(x, parameters) for x in (found, expected))
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_gates_do_not_count_and_new_ones_are_open():
    encoder = add_gates(tiny_encoder(), whole=ENCODER_KINDS)
    dense = size_of(tiny_encoder())
    assert size_of(encoder) > dense
    costs = parameter_costs(encoder)
    assert costs.full == dense
    assert 0.99 * dense < value(expected_parameters(encoder)) < dense


def test_gradient_of_the_count_equals_differences():
    encoder = gated_encoder("soft", whole=["heads", "ffn1"]).double()
    expected_parameters(encoder).backward()
    for parameter in log_alphas(encoder):
        gradient, step = parameter.grad[0].item(), 1e-4
        counts = []
        for change in (step, -2 * step):
            parameter.data[0] += change
            counts.append(value(expected_parameters(encoder)))
        parameter.data[0] += step
        difference = (counts[0] - counts[1]) / (2 * step)
        assert gradient == pytest.approx(difference, rel=1e-5, abs=1e-5)
        assert gradient > 0


# -- the penalty -----------------------------------------------------------------------


def test_penalty_is_its_formula():
    encoder = gated_encoder("soft")
    budget = Budget(encoder, sparsity=0.8, warmup_steps=100)
    start = value(budget.sparsity())
    budget.lambda1.data.fill_(0.7)
    budget.lambda2.data.fill_(3.0)
    set_gates(encoder, "sparse")
    now = 1 - value(expected_parameters(encoder)) / size_of(tiny_encoder())
    assert start != now
    for step, done in ((0, 0.0), (25, 0.25), (100, 1.0), (10_000, 1.0)):
        target = start + (0.8 - start) * done
        found = budget(step)
        excess = now - target
        expected = 0.7 * excess + 3.0 * excess**2
        assert value(found.loss) == pytest.approx(expected, rel=1e-5)
        assert float(found.target) == pytest.approx(target)
        assert float(found.sparsity) == pytest.approx(now)
        assert found.loss.dtype == torch.float32


CLOSED_FORMS = {
    "linear": lambda p: p,
    "cosine": lambda p: 0.5 * (1 + math.cos(math.pi * (1 - p))),
    "exponential": lambda p: p * p,
    "sigmoid": lambda p: (
        (logistic(10 * (p - 0.5)) - logistic(-5)) / (logistic(5) - logistic(-5))
    ),
}


def logistic(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("ramp", CLOSED_FORMS)
def test_the_target_rises_along_its_ramp_and_ends_exactly(ramp):
    budget = Budget(gated_encoder(), sparsity=0.8, warmup_steps=100, ramp=ramp)
    start, before = float(budget.initial_sparsity), 0.0
    for step in range(101):
        done = CLOSED_FORMS[ramp](step / 100)
        found = float(budget(step).target)
        assert found == pytest.approx(start + (0.8 - start) * done, abs=1e-12)
        assert found >= before
        before = found
    assert float(budget(0).target) == start
    assert all(float(budget(n).target) == budget.target for n in (100, 101, 10**6))


def test_a_clamped_multiplier_stays_at_zero_or_above():
    for clamp, expected in ((True, 0.0), (False, -0.5)):
        budget = Budget(gated_encoder(), sparsity=0.5, clamp=clamp)
        for value_before in (-0.5, 0.25):
            budget.lambda1.data.fill_(value_before)
            excess = budget(0).sparsity - budget(0).target
            budget(10**6).loss.backward()
            assert value(budget.lambda1) == max(value_before, expected)
        assert budget.lambda1.grad != 0  # it may rise again
        assert float(excess) == 0


def test_no_pressure_before_the_first_step():
    """The initial gates' own sparsity is where the target starts."""
    encoder = add_gates(tiny_encoder(), log_alpha=1.0)
    budget = Budget(encoder, sparsity=0.8)
    assert float(budget.initial_sparsity) > 0.03
    budget.lambda1.data.fill_(5.0)
    budget.lambda2.data.fill_(5.0)
    first = budget(step=0)
    assert value(first.loss) == 0
    assert (
        float(first.target) == float(first.sparsity) == float(budget.initial_sparsity)
    )


def test_no_warm_up():
    budget = Budget(gated_encoder(), sparsity=0.5, warmup_steps=0)
    assert float(budget(step=0).target) == pytest.approx(0.5)


def test_gradients_reach_gates_and_multipliers():
    """From the loss and from the count, in one backward."""
    encoder = add_gates(tiny_encoder(), log_alpha=0.5).train()
    budget = Budget(encoder, sparsity=0.5, warmup_steps=0)
    budget.lambda1.data.fill_(-1.0)
    torch.manual_seed(0)
    penalty = budget(step=0)
    penalty.loss.backward()
    from_count = [p.grad.clone() for p in log_alphas(encoder)]
    assert all((g > 0).all() for g in from_count)
    excess = float(penalty.sparsity - penalty.target)
    assert budget.lambda1.grad.item() == pytest.approx(excess, rel=1e-5)
    assert budget.lambda2.grad.item() == pytest.approx(excess**2, rel=1e-5)
    encoder.encode(noise(2, 30, 160))[-1].square().mean().backward()
    changed = set()
    for (group, gate), count in zip(gated_groups(encoder), from_count, strict=True):
        gradient = gate.units.log_alpha.grad
        assert torch.isfinite(gradient).all()
        changed |= {group.kind} if (gradient != count).any() else set()
    assert changed == set(ENCODER_KINDS)


@pytest.mark.parametrize("target", [{"sparsity": 0.7}, {"macs": 2_000_000}])
def test_training_meets_the_target(target):
    """Gates and multipliers alone, 400 steps: descent against ascent."""
    encoder = add_gates(tiny_encoder(tiny_config(num_hidden_layers=1)), log_alpha=2.0)
    budget = Budget(encoder, **target, warmup_steps=100)
    optimiser = torch.optim.Adam(
        [
            {"params": log_alphas(encoder), "lr": 0.05},
            {"params": list(budget.parameters()), "lr": 0.05, "maximize": True},
        ]
    )
    for step in range(400):
        optimiser.zero_grad()
        budget(step).loss.backward()
        optimiser.step()
    assert value(budget.sparsity()) == pytest.approx(budget.target, abs=0.02)
    assert budget.lambda2 > 0


def test_state_is_that_of_the_multipliers_and_the_start():
    budget = Budget(add_gates(tiny_encoder()), sparsity=0.8, warmup_steps=10)
    budget.lambda1.data.fill_(0.25)
    state = budget.state_dict()
    assert set(state) == {"lambda1", "lambda2", "initial_sparsity"}
    resumed = set_gates(add_gates(tiny_encoder()), "sparse")
    again = Budget(resumed, sparsity=0.8, warmup_steps=10)
    again.load_state_dict(state)
    assert float(again(step=3).target) == float(budget(step=3).target)
    assert value(again.lambda1) == 0.25


def test_targets_in_parameters_and_multiply_adds():
    encoder = gated_encoder()
    full = size_of(tiny_encoder())
    assert Budget(encoder, parameters=full // 4).target == pytest.approx(0.75, abs=1e-4)
    macs = real_macs(tiny_encoder(), 2.0)
    budget = Budget(encoder, macs=macs // 2, seconds=2.0)
    assert budget.target == pytest.approx(0.5, abs=1e-6)
    expected = 1 - value(expected_macs(encoder, 2.0)) / macs
    assert value(budget.sparsity()) == pytest.approx(expected)


def test_floors_count_as_kept():
    encoder = add_gates(
        tiny_encoder(), kinds=["heads", "ffn1"], floors={"heads": 2}, log_alpha=-100.0
    )
    kept = [int(gate.kept().sum()) for _, gate in gated_groups(encoder)]
    assert kept == [0, 2] * 3
    budget = Budget(encoder, sparsity=0.1)
    assert value(expected_parameters(encoder)) == size_of(prune(encoder))
    assert budget.costs.smallest == size_of(prune(encoder))


# -- what cannot be --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"sparsity": 1.2}, r"sparsity 1.2, expected 0 to 0\.9"),
        ({"sparsity": -0.1}, r"sparsity -0.1, expected 0 to 0\.9"),
        ({"sparsity": float("nan")}, "sparsity nan"),
        ({"sparsity": 0.95}, r"0.95, expected 0 to 0\.9260: 8,336 of the 112,676"),
        ({"parameters": 7000}, r"parameters 7,000, expected 8,336 to 112,676"),
        ({"parameters": 10**6}, "parameters 1,000,000, expected 8,336 to 112,676"),
        ({"macs": 5}, r"macs 5, expected 376,320 to .* multiply-adds have no gate"),
        ({}, "0 targets, expected one of"),
        ({"sparsity": 0.5, "macs": 5}, "2 targets"),
    ],
)
def test_targets_that_cannot_be_reached(target, message):
    with pytest.raises(InputError, match=message):
        Budget(add_gates(tiny_encoder()), **target)


def test_floors_above_the_target():
    encoder = add_gates(tiny_encoder(), floors={"ffn1": 80, "ffn2": 80})
    with pytest.raises(
        InputError, match=r"sparsity 0.8, expected 0 to 0\.\d+: .* floor"
    ):
        Budget(encoder, sparsity=0.8)
    Budget(encoder, sparsity=0.5)


def test_no_gates_and_no_multiply_adds():
    with pytest.raises(InputError, match=r"ramp 'log', expected one of \['linear'"):
        Budget(add_gates(tiny_encoder()), sparsity=0.5, ramp="log")
    with pytest.raises(InputError, match="no gates; call add_gates"):
        Budget(tiny_encoder(), sparsity=0.5)
    with pytest.raises(InputError, match=r"SpeakerEncoder: .* give the encoder"):
        Budget(add_gates(speaker_encoder()), macs=100)
