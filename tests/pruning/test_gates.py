"""Hard concrete gates against their closed forms; gated modules against plain ones."""

import itertools
import math

import pytest
import torch
from random_gates import set_gates
from scipy.integrate import quad
from tiny_encoder import SavedForBackward, noise, randomise

from speechbrain_ext.lobes.conformer import (
    ConvolutionModule,
    FeedForward,
    LayerShape,
    RelativeKeyAttention,
)
from speechbrain_ext.lobes.encoder import PrunableGroup
from speechbrain_ext.lobes.heads import LayerAdapter
from speechbrain_ext.pruning.gates import (
    CLOSED,
    OPEN,
    GroupGate,
    HardConcrete,
    expected_units,
    log_alpha_of,
    masked_layer_norm,
)

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
DRAWS = 200_000
# five standard errors of a probability, or of a mean of values in [0, 1]
TOLERANCE = 5 * 0.5 / math.sqrt(DRAWS)


def stretched(u, log_alpha):
    """z of one uniform number, as Louizos et al. write it."""
    s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + log_alpha) / BETA))
    return min(1.0, max(0.0, s * (ZETA - GAMMA) + GAMMA))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture(params=[-4.0, -2.0, -0.3, 0.0, 1.0, 3.0, OPEN])
def log_alpha(request):
    return request.param


def test_distribution_of_samples(log_alpha):
    """P(0), P(1), mean, and the distribution function between, from 200,000 draws."""
    torch.manual_seed(0)
    z = HardConcrete(DRAWS, log_alpha).sample().detach().double()
    p_zero = 1 - sigmoid(log_alpha - BETA * math.log(0.1 / 1.1))
    p_one = sigmoid(log_alpha - BETA * math.log(1.1 / 0.1))
    mean = quad(stretched, 0, 1, args=(log_alpha,), limit=200)[0]
    assert float((z == 0).double().mean()) == pytest.approx(p_zero, abs=TOLERANCE)
    assert float((z == 1).double().mean()) == pytest.approx(p_one, abs=TOLERANCE)
    assert float(z.mean()) == pytest.approx(mean, abs=TOLERANCE)
    for t in (0.1, 0.5, 0.9):
        above = sigmoid(log_alpha - BETA * math.log((t + 0.1) / (1.1 - t)))
        assert float((z > t).double().mean()) == pytest.approx(above, abs=TOLERANCE)
    assert z.min() >= 0
    assert z.max() <= 1


def test_closed_forms_without_samples(log_alpha):
    gates = HardConcrete(3, log_alpha)
    kept = sigmoid(log_alpha + BETA * math.log(11))
    torch.testing.assert_close(
        gates.logit_above().sigmoid(), torch.full((3,), kept).double()
    )
    mean = quad(stretched, 0, 1, args=(log_alpha,), limit=200)[0]
    torch.testing.assert_close(
        gates.mean(), torch.full((3,), mean).double(), atol=1e-5, rtol=0
    )


def test_golden_figures():
    """By hand: 11^(2/3) = 4.9461, so P(z > 0) = 4.9461 / 5.9461 at log α = 0."""
    gates = HardConcrete(3, 0.0)
    assert gates.logit_above().sigmoid()[0].item() == pytest.approx(0.83182, abs=1e-5)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([math.log(11), 0.0, -math.log(11)]))
    expected = torch.tensor([1.0, 0.5, 0.0])
    torch.testing.assert_close(gates.value(), expected, atol=1e-6, rtol=0)


def test_open_and_closed_are_exact():
    for log_alpha, expected in ((OPEN, 1.0), (-CLOSED, 1.0), (CLOSED, 0.0)):
        assert (HardConcrete(5, log_alpha).value() == expected).all()
    assert (HardConcrete(9999, CLOSED).sample() == 0).all()
    assert (HardConcrete(9999, -CLOSED).sample() == 1).all()


def test_noise_in_training_mode_alone_and_from_torchs_generator():
    gates = HardConcrete(100, 0.5)
    torch.manual_seed(1)
    first, second = gates(), gates()
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(gates(), first)
    gates.eval()
    assert torch.equal(gates(), gates())
    assert torch.equal(gates(), gates.value())


def test_half_precision_gates_are_computed_in_float32():
    assert HardConcrete(4, 0.3).bfloat16().sample().dtype == torch.float32
    assert HardConcrete(4, 0.3).double().value().dtype == torch.float64


def test_log_alpha_of_a_value():
    values = torch.tensor([0.001, 0.3, 0.5, 0.99])
    gates = HardConcrete(4)
    gates.log_alpha.data.copy_(log_alpha_of(values))
    torch.testing.assert_close(gates.value(), values, atol=1e-6, rtol=0)


# -- the gates of one module -----------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("floor", [0, 1, 2, 4])
def test_expectation_is_that_of_all_outcomes(floor, whole):
    """Sum over the 2⁵ outcomes of four unit gates and the gate on the whole."""
    gate = GroupGate(4, gate_whole=whole, floor=floor)
    set_gates(gate, "soft")
    units = gate.units.logit_above().sigmoid().tolist()
    safe = set(sorted(range(4), key=lambda n: -units[n])[:floor])
    p_whole = float(gate.whole.logit_above().sigmoid()) if whole else 1.0
    wanted_units = wanted_alive = 0.0
    for outcome in itertools.product([True, False], repeat=4):
        p = math.prod(u if on else 1 - u for u, on in zip(units, outcome))
        kept = len({n for n, on in enumerate(outcome) if on} | safe)
        wanted_units += p * p_whole * kept
        wanted_alive += p * p_whole * (kept > 0)
    units, alive = (x.item() for x in expected_units([gate]))
    assert units == pytest.approx(wanted_units, rel=1e-12)
    assert alive == pytest.approx(wanted_alive, rel=1e-12)


def test_expectation_without_gates_on_units():
    gate = GroupGate(7, gate_units=False, gate_whole=True, log_alpha=0.0)
    units, alive = expected_units([gate])
    assert float(alive) == pytest.approx(0.83182, abs=1e-5)
    assert float(units) == pytest.approx(7 * 0.83182, abs=1e-4)
    assert gate.kept().tolist() == [True] * 7
    gate.whole.log_alpha.data.fill_(-3.0)
    assert gate.kept().tolist() == [False] * 7


def test_floor_keeps_the_largest():
    gate = GroupGate(4, floor=2)
    gate.units.log_alpha.data.copy_(torch.tensor([-90.0, -80.0, -99.0, -85.0]))
    assert gate.kept().tolist() == [False, True, False, True]
    assert [float(x) for x in expected_units([gate])] == [2.0, 1.0]
    assert gate.removal_order().tolist() == [2, 0, 3, 1]
    assert GroupGate(3, floor=9).floor == 3
    assert GroupGate(3, can_vanish=False).floor == 1


@pytest.mark.parametrize("log_alpha", [CLOSED, 0.0, -CLOSED])
def test_gradients_of_the_count_are_finite(log_alpha):
    gate = GroupGate(50, gate_whole=True, log_alpha=log_alpha)
    units, alive = expected_units([gate])
    (units + alive).backward()
    for parameter in gate.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert (parameter.grad > 0).any() == (log_alpha == 0.0)


# -- gated modules ---------------------------------------------------------------------


def test_masked_layer_norm_is_that_of_the_kept_channels():
    norm = randomise(torch.nn.LayerNorm(9)).double()
    kept = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0]).bool()
    small = torch.nn.LayerNorm(5).double()
    small.load_state_dict({k: v[kept] for k, v in norm.state_dict().items()})
    x = (5 + 3 * noise(2, 6, 9)).double()
    found = masked_layer_norm(x, kept, norm)[..., kept]
    torch.testing.assert_close(found, small(x[..., kept]), atol=1e-12, rtol=0)
    assert torch.isfinite(masked_layer_norm(x, kept & False, norm)).all()
    everything = masked_layer_norm(x, kept | True, norm)
    torch.testing.assert_close(everything, norm(x), atol=1e-12, rtol=0)


SHAPE = LayerShape(hidden=24, head_dim=6, heads=4, ffn1=10, ffn2=0, conv=10)
MODULES = {
    "ffn1": (lambda: FeedForward(24, 10), "output_dense", 10, ()),
    "heads": (lambda: RelativeKeyAttention(SHAPE), "linear_out", 4, ()),
    "conv": (
        lambda: ConvolutionModule(24, 10, 5),
        "pointwise_conv2",
        10,
        ("depthwise_layer_norm",),
    ),
    "adapter": (lambda: LayerAdapter(24, 10, 8), "3", 10, ("1",)),
}


def gated_module(kind, whole=False):
    """A random module in training mode with random gates; the group."""
    build, last, units, norms = MODULES[kind]
    module = randomise(build()).double()
    gate = GroupGate(units, gate_whole=whole, can_vanish=kind != "adapter")
    group = PrunableGroup("", kind, units, units, (), f"{last}.weight", norms=norms)
    set_gates(gate.double(), "soft", seed=3).attach(module, group)
    return module, group


@pytest.mark.parametrize("kind", MODULES)
def test_one_draw_per_forward_and_where_it_goes(kind):
    """The same noise drawn by hand and folded into the plain module: equal outputs.

    Channels of the convolution that are off hold large values, so that statistics
    that saw them would show.
    """
    module, group = gated_module(kind, whole=kind != "adapter")
    x = noise(2, 12, 24).double()
    torch.manual_seed(5)
    found = module(x)
    torch.manual_seed(5)
    gate = module.gate
    values = gate.values(noisy=True)
    assert 0 < int(values.kept.sum()) < gate.size
    after = torch.rand(1)
    torch.manual_seed(5)
    module(x)
    assert torch.equal(torch.rand(1), after)  # no further draw
    expected = plain_with(module, group, values, x)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert not torch.equal(module(x), found)


def plain_with(module, group, values, x):
    """The module without gates, removed units taken out of it one by one."""
    gate = module.gate
    gate.detach(module, group)
    last = module.get_submodule(group.output_weight.removesuffix(".weight"))
    scale = values.units.repeat_interleave(last.weight.shape[1] // gate.size)
    whole = 1.0 if values.whole is None else values.whole
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    with torch.no_grad():
        shape = (1, -1) + (1,) * (last.weight.dim() - 2)
        last.weight.mul_(scale.view(shape) * whole)
        if last.bias is not None:
            last.bias.mul_(whole)
        kept, hooks = values.kept, []
        for name in group.norms:
            hook = module.get_submodule(name).register_forward_hook(
                lambda self, inputs, output: masked_plainly(self, inputs[0], kept)
            )
            hooks.append(hook)
        out = module(x)
        for name, parameter in module.named_parameters():
            parameter.copy_(before[name])
    for hook in hooks:
        hook.remove()
    gate.attach(module, group)
    return out


def masked_plainly(norm, x, kept):
    """Frame by frame, the kept channels alone."""
    some = x[..., kept]
    mean = some.mean(-1, keepdim=True)
    std = (some.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return (x - mean) / std * norm.weight + norm.bias


@pytest.mark.parametrize("kind", ["ffn1", "heads", "conv"])
def test_a_module_without_units_gives_nothing_and_still_has_gradients(kind):
    """Its output bias goes as well; DistributedDataParallel misses no parameter."""
    module, _ = gated_module(kind)
    module.gate.units.log_alpha.data.fill_(CLOSED)
    out = module(noise(2, 12, 24).double())
    assert (out == 0).all()
    out.sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("kind", MODULES)
def test_gradients_equal_differences(kind):
    """Of the output with respect to log α and weights, where no gate is on an edge."""
    module, _ = gated_module(kind)
    module.gate.units.log_alpha.data.uniform_(-1.5, 1.5)
    module.eval()
    x = noise(1, 6, 24).double()
    parameters = [module.gate.units.log_alpha, *list(module.parameters())[:1]]
    names = ("gate.units.log_alpha", next(iter(dict(module.named_parameters()))))

    def run(*values):
        changed = dict(zip(names, values))
        return torch.func.functional_call(module, changed, (x,)).sum(0)

    inputs = [p.detach().clone().requires_grad_(True) for p in parameters]
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6)


def test_the_weight_or_the_input_takes_the_gates_whichever_is_smaller():
    """All frames at once are more than the weight, one alone is less: equal outputs."""
    module, _ = gated_module("ffn1", whole=True)
    module.gate.whole.log_alpha.data.fill_(0.4)
    module.eval()
    x, last = noise(4, 40, 24).double(), module.output_dense
    seen = []
    last.register_forward_pre_hook(lambda m, _: seen.append("weight" in vars(m)))
    together = module(x)
    apart = torch.stack(
        [torch.stack([module(x[b, t]) for t in range(40)]) for b in range(4)]
    )
    assert seen == [True] + 160 * [False]
    torch.testing.assert_close(together, apart, atol=1e-12, rtol=0)
    with pytest.raises(RuntimeError):
        last(noise(999, 3).double())  # the wrong width
    assert last.weight is dict(last.named_parameters())["weight"]
    assert not {"weight", "bias"} & set(vars(last))


def test_training_keeps_no_second_copy_of_what_is_gated():
    x = noise(64, 50, 24).double()
    kept = []
    for detached in (False, True):
        module, group = gated_module("ffn1", whole=True)
        if detached:
            module.gate.detach(module, group)
        with SavedForBackward() as saved:
            module.train()(x)
        kept.append(saved.bytes)
    assert kept[0] - kept[1] < x.nbytes / 20


@pytest.mark.parametrize("kind", MODULES)
def test_under_autocast(kind):
    module, _ = gated_module(kind)
    module.float().eval()
    x = noise(2, 12, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(x)
    likeness = torch.cosine_similarity(half.float(), module(x), dim=-1)
    assert likeness.min() > 0.99
