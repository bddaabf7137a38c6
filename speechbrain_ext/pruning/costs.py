"""What gated units cost, in parameters or in multiply-adds, exactly.

    cost = rest + Σ_g ( unit_g · E[units kept] + fixed_g · P(any is kept) )
                + Σ_{g≤h} pair_gh · E[units kept]_g · E[units kept]_h

``unit`` is what one unit owns (its input weights and biases, its part of the output
weight), ``fixed`` what goes with the last one (output bias, LayerNorm, distance
embedding), ``pair`` what two neighbouring groups share (the weight from one
convolution's channels to those of the next) or the units of one with each other,
``rest`` what has no gate. All are read off the tensors, or off the operations
that torch counts, so that hard gates give the cost of the pruned module itself.
"""

import contextlib
import copy
from collections import Counter
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_ext.lobes.encoder import Encoder, PrunableGroup
from speechbrain_ext.pruning.gates import GroupGate, expected_units
from speechbrain_ext.pruning.groups import gated_groups, remove_gates
from speechbrain_ext.utils.errors import InputError


class GroupCost(NamedTuple):
    """What the units of a gated group cost.

    ``unit`` each, ``fixed`` all together; ``pairs``: (number of another group, or its
    own, cost of each pair of units).
    """

    group: PrunableGroup
    gate: GroupGate
    unit: int
    fixed: int
    pairs: tuple = ()


class CostModel:
    """Costs of a gated model.

    Arguments
    ---------
    groups : list of GroupCost
        Every gated group.
    rest : int
        Cost of what has no gate.
    measure : str
        "parameters" or "multiply-adds", for messages.
    """

    def __init__(self, groups, rest, measure):
        self.groups = groups
        self.rest = rest
        self.measure = measure
        alike = {}
        for number, cost in enumerate(groups):
            alike.setdefault(cost.gate.kind, []).append(number)
        self.alike = list(alike.values())  # numbers of groups whose gates are of a kind
        self.factors = None

    @property
    def full(self):
        """Cost with all units."""
        return self.of([cost.gate.size for cost in self.groups])

    @property
    def smallest(self):
        """Cost of what no gate can remove: the rest and the floors."""
        return self.of([cost.gate.floor for cost in self.groups])

    def remaining(self):
        """Cost of what :func:`~speechbrain_ext.pruning.surgery.prune` leaves: int."""
        return self.of([int(cost.gate.kept().sum()) for cost in self.groups])

    def expected(self):
        """Expected cost, a float64 scalar with a gradient."""
        if not self.groups:
            return self.rest
        gates = [[self.groups[n].gate for n in numbers] for numbers in self.alike]
        units, alive = map(torch.cat, zip(*map(expected_units, gates)))
        unit, fixed, pair, places = self._factors(units.device)
        total = self.rest + (unit * units + fixed * alive).sum()
        if len(pair):
            one, other = units[places]
            total = total + (pair * one * other).sum()
        return total

    def _factors(self, device):
        """Of groups in the order of ``alike``, and of pairs: tensors, made once."""
        if self.factors is None or self.factors[0].device != device:
            order = [number for numbers in self.alike for number in numbers]
            costs = [self.groups[number] for number in order]
            pairs = [
                (pair, order.index(number), order.index(other))
                for number, cost in enumerate(self.groups)
                for other, pair in cost.pairs
                if other <= number  # each pair once
            ]
            of_groups = [cost.unit for cost in costs], [cost.fixed for cost in costs]
            rows, places = [*of_groups, [p[0] for p in pairs]], [p[1:] for p in pairs]
            with torch.inference_mode(False):  # else they could never meet a gradient
                made = [torch.tensor(row, dtype=torch.float64) for row in rows]
                made.append(torch.tensor(places, dtype=torch.int64).t())
                self.factors = [tensor.to(device) for tensor in made]
        return self.factors

    def of(self, units):
        """Cost with so many units in each group: int."""
        total = self.rest
        for number, (cost, count) in enumerate(zip(self.groups, units)):
            total += cost.unit * count + cost.fixed * bool(count)
            for other, pair in cost.pairs:
                if other <= number:  # each pair once
                    total += pair * count * units[other]
        return total


def parameter_costs(model):
    """Costs of a gated model in parameters; those of the gates do not count."""
    gates = gated_groups(model)
    inside = tuple(f"{group.name}.gate." for group, _ in gates)
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith(inside)
    }
    owners = _owners(gates)
    shares = [(owners[name], size) for name, size in sizes.items() if name in owners]
    fixed = Counter()
    for number, (group, _) in enumerate(gates):
        gone = [n for n in sizes if group.goes_with_last(n) and n not in owners]
        fixed[number] = sum(sizes[name] for name in gone)
    return _cost_model(gates, shares, fixed, sum(sizes.values()), "parameters")


def mac_costs(model, seconds=1.0):
    """Costs of a gated encoder in multiply-adds of one utterance.

    Matrix products, convolutions and attention, as torch counts them in a pass on the
    meta device. A group costs what its weights' modules do, and what else the module
    that holds its gate does.

    Raises
    ------
    InputError
        For anything but an encoder; where ``seconds`` are too short for it.
    """
    if not isinstance(model, Encoder):
        raise InputError(
            f"{type(model).__name__}: multiply-adds are those of an encoder; give the "
            "encoder itself, or a budget in parameters"
        )
    gates = gated_groups(model)
    modules = {}  # of the weights: name → numbers of their groups
    for name, numbers in _owners(gates).items():
        modules.setdefault(name.rpartition(".")[0], numbers)
    holders = {group.name: number for number, (group, _) in enumerate(gates)}
    total, spent = _spent(model, {*modules, *holders}, seconds)
    for name, number in holders.items():
        modules.setdefault(name, (number,))
    shares = []
    for name, numbers in modules.items():
        within = sum(spent[m] for m in modules if m.startswith(f"{name}."))
        shares.append((numbers, spent[name] - within))
    return _cost_model(gates, shares, Counter(), total, "multiply-adds")


@contextlib.contextmanager
def counted_operations():
    """Count floating-point operations, two per multiply-add: a ``FlopCounterMode``."""
    # the fused attention of a CPU is unknown to the counter, plain products are not
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def _owners(gates):
    """Tensor → numbers of the gated groups whose units it has a dimension of."""
    owners = {}
    for number, (group, _) in enumerate(gates):
        columns = (*group.inner_weights, group.output_weight)
        for name in (*group.input_weights, *columns):
            owners[name] = (*owners.get(name, ()), number)
    return owners


def _cost_model(gates, shares, fixed, total, measure):
    """From (numbers of the groups, their cost with all units) to a CostModel."""
    units, pairs = Counter(), Counter()
    for numbers, size in shares:
        (pairs if len(numbers) > 1 else units)[numbers] += size
    costs = [
        GroupCost(group, gate, units[number,] // group.units, fixed[number])
        for number, (group, gate) in enumerate(gates)
    ]
    for (one, other), size in pairs.items():
        pair = size // (costs[one].group.units * costs[other].group.units)
        for a, b in {(one, other), (other, one)}:
            costs[a] = costs[a]._replace(pairs=(*costs[a].pairs, (b, pair)))
    model = CostModel(costs, 0, measure)
    model.rest = total - model.full
    return model


def _spent(encoder, names, seconds):
    """Multiply-adds of a pass → (all, Counter of those in the named modules)."""
    with torch.no_grad():
        encoder = remove_gates(on_meta(encoder)).eval()
        x, _ = encoder.example(seconds)
        spent, started = Counter(), {}
        with counted_operations() as counter:
            for name in names:

                def start(module, inputs, name=name):
                    started[name] = counter.get_total_flops()

                def stop(module, inputs, output, name=name):
                    spent[name] += (counter.get_total_flops() - started[name]) // 2

                module = encoder.get_submodule(name)
                module.register_forward_pre_hook(start)
                module.register_forward_hook(stop)
            encoder.encode(x)
    return counter.get_total_flops() // 2, spent


def on_meta(module):
    """A copy without memory: its operations are those of the plain way, on any device.

    What an encoder does faster on a CPU, as pieces that overlap, is not counted.
    """

    def empty(tensor):
        meta = torch.empty_like(tensor, device="meta")
        return nn.Parameter(meta) if isinstance(tensor, nn.Parameter) else meta

    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): empty(tensor) for tensor in tensors})
