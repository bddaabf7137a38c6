"""What gated units cost, in parameters or in multiply-adds, exactly.

    cost = rest + Σ_groups ( unit · E[units kept] + fixed · P(any is kept) )

``unit`` is what one unit owns (its rows, biases and columns), ``fixed`` what goes with
the last one (output bias, LayerNorm, distance embedding), ``rest`` what has no gate.
All three are read off the tensors themselves, so that hard gates give the number of
parameters of the pruned module, to the last one.
"""

from typing import NamedTuple

from speechbrain_ext.errors import InputError
from speechbrain_ext.pruning.gates import GroupGate
from speechbrain_ext.pruning.groups import PrunableGroup, gated_groups


class Account(NamedTuple):
    """One gated group, what one of its units costs, and what goes with the last."""

    group: PrunableGroup
    gate: GroupGate
    unit: int
    fixed: int


class Ledger:
    """Costs of a gated model.

    Arguments
    ---------
    accounts : list of Account
        Every gated group.
    rest : int
        Cost of what has no gate.
    what : str
        "parameters" or "multiply-adds", for messages.
    """

    def __init__(self, accounts, rest, what):
        self.accounts = accounts
        self.rest = rest
        self.what = what

    @property
    def full(self):
        """Cost with all units."""
        return self.rest + sum(a.unit * a.gate.size + a.fixed for a in self.accounts)

    @property
    def smallest(self):
        """Cost of what no gate can remove: the rest and the floors."""
        floors = [(a.gate.floor, a) for a in self.accounts]
        return self.rest + sum(n * a.unit + a.fixed * bool(n) for n, a in floors)

    def expected(self):
        """Expected cost, a float64 scalar with a gradient."""
        total = self.rest
        for _, gate, unit, fixed in self.accounts:
            units, alive = gate.expected()
            total = total + unit * units + fixed * alive
        return total

    def remaining(self):
        """Cost of what :func:`~speechbrain_ext.pruning.surgery.prune` leaves: int."""
        total = self.rest
        for _, gate, unit, fixed in self.accounts:
            units = int(gate.kept().sum())
            total += unit * units + fixed * bool(units)
        return total


def parameter_ledger(model):
    """Costs of a gated model in parameters; those of the gates do not count."""
    gates = gated_groups(model)
    inside = tuple(f"{group.name}.gate." for group, _ in gates)
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith(inside)
    }
    accounts = []
    for group, gate in gates:
        owned = [*group.rows, group.columns]
        unit = sum(sizes[name] for name in owned) // group.units
        gone = [n for n in sizes if group.goes_with_last(n) and n not in owned]
        accounts.append(Account(group, gate, unit, sum(sizes[name] for name in gone)))
    rest = sum(sizes.values())
    rest -= sum(a.unit * a.gate.size + a.fixed for a in accounts)
    return Ledger(accounts, rest, "parameters")


def macs_ledger(model, seconds=1.0):
    """Costs of a gated encoder in multiply-adds of one utterance.

    As :func:`speechbrain_ext.profiling.count_macs` counts them: matrix products,
    convolutions, attention.

    Raises
    ------
    InputError
        For a model that does not say how many frames ``seconds`` have.
    """
    if not hasattr(model, "fixed_macs"):
        raise InputError(
            f"{type(model).__name__}: says nothing on multiply-adds; give the encoder "
            "itself, or a budget in parameters"
        )
    frames = model.n_frames(seconds)
    tensors = dict(model.named_parameters())
    gates = {group.name: gate for group, gate in gated_groups(model)}
    accounts, rest = [], model.fixed_macs(frames)
    for group in model.prunable_groups():
        if not group.units:
            continue
        weights = [tensors[name] for name in (*group.rows, group.columns)]
        weights = sum(w.numel() for w in weights if w.dim() > 1) // group.units
        unit = frames * (weights + group.frame_macs + frames * group.pair_macs)
        if group.name in gates:
            accounts.append(Account(group, gates[group.name], unit, 0))
        else:
            rest += unit * group.units
    return Ledger(accounts, rest, "multiply-adds")
