"""From trained gates to a smaller module: which units go, and their removal.

:func:`harden` sorts all units of all groups by log α and removes the smallest one after
another for as long as the cost stays above the target. A unit whose removal would go
below it is passed over, so that finer units close the gap; the cheapest remaining
removal takes the last step. The delivered cost is below the target by less than one
unit.

:func:`prune` slices the tensors and builds a smaller module around them::

    W_in → rows of the kept units        W_out → w · W_out[:, kept] · diag(z[kept])
    b_in → the same rows                 b_out → w · b_out

z and w are the gates on units and on the whole module in eval mode. The model itself
builds the smaller module from the widths, which then loads strictly, so that its
configuration rebuilds what :func:`prune` returns.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_ext.pruning.costs import parameter_costs
from speechbrain_ext.pruning.gates import CLOSED, log_alpha_of
from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import load_strictly

# What stays has at least this value, however small the mean of its noise.
SMALLEST_VALUE = 1e-3


class _Removal(NamedTuple):
    """Something that may be removed: some units of a group, or the whole (None).

    Sorted by score; among equals, evenly from all groups.
    """

    score: float
    place: float
    group: int
    units: np.ndarray | None


def harden(budget, multiple=1):
    """Decide which units stay, such that the budget is met: gates change in place.

    What goes is closed for good. What stays has the value max(ẑ, E z), which is ẑ from
    log α = 0 up, and below it the mean of the noise that the weights were trained
    with; :func:`~speechbrain_ext.pruning.surgery.prune` folds it into the weights.

    Arguments
    ---------
    budget : Budget
        Of the gated model. Its target and the floors of its gates hold.
    multiple : int
        Every width that shrinks becomes a multiple of it, in rows of the weights (64
        for a head of w2v-BERT 2.0): 8 suits tensor cores.

    Returns
    -------
    int
        Remaining cost, in the budget's measure: at most its target.

    Raises
    ------
    InputError
        Where no allowed width makes the cost as small as that.
    """
    if multiple < 1:
        raise InputError(f"harden: multiple {multiple}, expected 1 or more")
    costs = budget.costs
    removed, cost = _select(costs, budget.target_cost, multiple)
    with torch.no_grad():
        for group in costs.groups:
            for gates in filter(None, (group.gate.units, group.gate.whole)):
                _lift(gates)
        for removal in removed:
            gate = costs.groups[removal.group].gate
            if removal.units is None:
                gate.whole.log_alpha.fill_(CLOSED)
            else:
                gate.units.log_alpha[torch.from_numpy(removal.units)] = CLOSED
    return cost


def _select(costs, target, multiple):
    """What to remove → (list of _Removal, cost that remains)."""
    removals = [
        removal
        for number, group in enumerate(costs.groups)
        for removal in _removals(number, group, multiple)
    ]
    cost, remaining = costs.full, [group.gate.size for group in costs.groups]
    removed, passed = [], []
    for removal in sorted(removals, key=lambda r: (r.score, r.place, r.group)):
        saving = _saving(removal, remaining, costs)
        if saving and cost - saving >= target:
            cost -= saving
            remaining[removal.group] -= _units(removal, remaining)
            removed.append(removal)
        else:
            passed.append(removal)
    if cost > target:
        last, saving = _last_step(passed, remaining, costs, cost, target)
        removed.append(last)
        cost -= saving
    return removed, cost


def _removals(number, cost, multiple):
    """What may be removed of one group, in the order in which it has to be."""
    group, gate = cost.group, cost.gate
    if gate.whole is not None:
        yield _Removal(gate.whole.log_alpha.item(), 0.5, number, None)
    if gate.units is None:
        return
    size = min(gate.size, multiple // math.gcd(multiple, group.unit_size))
    order = gate.removal_order().cpu().numpy()
    # the first cut takes what is above a multiple, so that the others keep one
    ends = np.arange(gate.size % size or size, gate.size + 1, size)
    starts = np.concatenate(([0], ends[:-1]))
    log_alpha = gate.units.log_alpha.detach().double().cpu().numpy()[order]
    scores = np.add.reduceat(log_alpha, starts) / (ends - starts)
    for score, start, end in zip(scores.tolist(), starts, ends):
        if gate.size - end >= gate.floor:
            yield _Removal(score, start / gate.size, number, order[start:end])


def _units(removal, remaining):
    """How many units go: none where the group has gone already."""
    units = remaining[removal.group]
    return units if removal.units is None else min(units, len(removal.units))


def _saving(removal, remaining, costs):
    """What the cost goes down by; 0 where the group has gone already."""
    cost, units = costs.groups[removal.group], remaining[removal.group]
    gone = _units(removal, remaining)
    unit = cost.unit
    for other, pair in cost.pairs:  # its own: n² − (n − gone)² less
        others = remaining[other]
        unit += pair * (2 * units - gone if other == removal.group else others)
    return gone * unit + cost.fixed * (gone == units > 0)


def _last_step(passed, remaining, costs, cost, target):
    """The cheapest removal that remains → (it, its saving)."""
    following = {}  # of each group, only the first in order may be removed
    for removal in passed:
        if _saving(removal, remaining, costs):
            following.setdefault((removal.group, removal.units is None), removal)
    savings = [
        (_saving(r, remaining, costs), number, r)
        for number, r in enumerate(following.values())
    ]
    enough = [entry for entry in savings if cost - entry[0] <= target]
    if not enough:
        raise InputError(
            f"harden: {cost:,} {costs.measure} remain and no smaller width is allowed, "
            f"expected {target:,.0f} or fewer; choose a smaller multiple"
        )
    saving, _, removal = min(enough)
    return removal, saving


def _lift(gates):
    """Give negative log α the value E z instead of ẑ: equal at 0, and never 0."""
    mean = gates.mean().clamp(min=SMALLEST_VALUE, max=0.5)
    lifted = log_alpha_of(mean).to(gates.log_alpha.dtype)
    gates.log_alpha.copy_(torch.where(gates.log_alpha < 0, lifted, gates.log_alpha))


def prune(model):
    """Build the smaller model that computes what ``model`` computes in eval mode.

    Arguments
    ---------
    model : torch.nn.Module
        With gates; it stays as it is.

    Returns
    -------
    torch.nn.Module
        Of the same class, on the same device, in the same mode, without gates. A
        module whose units are all removed is gone. May get gates and be pruned again.
    """
    state = model.state_dict()
    widths = {group.name: group.units for group in model.prunable_groups()}
    for group, gate in gated_groups(model):
        widths[group.name] = _cut(state, group, gate)
    like = next(model.parameters())
    smaller = model.resized(widths).to(like.device, like.dtype)
    load_strictly(smaller, state, "pruned weights")
    return smaller.train(model.training)


def structure(model):
    """What :func:`prune` would leave, as values that JSON can hold.

    Arguments
    ---------
    model : torch.nn.Module
        With gates or without, pruned before or not.

    Returns
    -------
    dict
        ``parameters``: what remains; ``groups``: per group its ``name``, ``layer``,
        ``kind``, units ``kept`` and those of the unpruned model, ``full``.
    """
    gates = {group.name: gate for group, gate in gated_groups(model)}
    groups = []
    for group in model.prunable_groups():
        gate = gates.get(group.name)
        kept = group.units if gate is None else int(gate.kept().sum())
        row = {"name": group.name, "layer": group.layer, "kind": group.kind}
        groups.append({**row, "kept": kept, "full": group.full})
    return {"parameters": parameter_costs(model).remaining(), "groups": groups}


def _cut(state, group, gate):
    """Take one group's removed units out of ``state``, in place → units kept."""
    for name in [n for n in state if n.startswith(f"{group.name}.gate.")]:
        del state[name]
    kept = gate.kept()
    if not kept.any():
        for name in [n for n in state if group.goes_with_last(n)]:
            del state[name]
        return 0
    units, _, whole = gate.values()
    index = kept.nonzero().squeeze(1).to(state[group.output_weight].device)
    for name in group.input_weights:
        # one row per unit, as a constant of every head, or all rows of every unit
        size = 1 if len(state[name]) == group.units else group.unit_size
        blocks = state[name].unflatten(0, (-1, group.units, size))
        state[name] = blocks[:, index].flatten(0, 2)
    for name in (*group.inner_weights, group.output_weight):
        columns = state[name].unflatten(1, (-1, group.units, group.unit_size))
        columns = columns[:, :, index]
        if units is not None:
            scale = units.detach()[index].to(columns.dtype)
            columns = columns * scale.view(-1, *[1] * (columns.dim() - 3))
        state[name] = columns.flatten(1, 3)
    if whole is not None:
        for name in filter(None, (group.output_weight, group.output_bias)):
            state[name] = state[name] * whole.detach().to(state[name].dtype)
    return len(index)
