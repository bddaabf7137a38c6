"""What gated units cost, in parameters or in multiply-adds, exactly.

    cost = rest + Σ_groups ( unit · E[units kept] + fixed · P(any is kept) )

``unit`` is what one unit owns (its rows, biases and columns), ``fixed`` what goes with
the last one (output bias, LayerNorm, distance embedding), ``rest`` what has no gate.
All three are read off the tensors themselves, so that hard gates give the number of
parameters of the pruned module, to the last one.

The size that gates are driven to, as a penalty.

    s = 1 − E[cost] / cost of the full model
    t(step) = s₀ + (t − s₀) · min(1, step / warm-up)
    penalty = λ₁ (s − t) + λ₂ (s − t)²

Wang et al. 2020 (arXiv 1910.04732, section 3.2); λ₁ and λ₂ start at 0 and ascend while
everything else descends. s₀ is the true sparsity of the initial gates, so that there is
no pressure before the first step.
"""

from typing import NamedTuple

import torch
from torch import nn

from speechbrain_ext.pruning.gates import GroupGate
from speechbrain_ext.pruning.groups import PrunableGroup, gated_groups
from speechbrain_ext.utils.errors import InputError


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


class Penalty(NamedTuple):
    """The penalty with its gradient; sparsity and its target now, without."""

    loss: torch.Tensor
    sparsity: torch.Tensor
    target: torch.Tensor


def expected_parameters(model):
    """Parameters that pruning is expected to leave, without those of the gates.

    Arguments
    ---------
    model : torch.nn.Module
        With gates.

    Returns
    -------
    torch.Tensor
        Float64 scalar with a gradient to every ``log_alpha``; the number of parameters
        of the pruned model itself where all gates are hard.
    """
    return _tensor(parameter_ledger(model).expected(), model)


def expected_macs(model, seconds=1.0):
    """As :func:`expected_parameters`, multiply-adds of one utterance of an encoder."""
    return _tensor(macs_ledger(model, seconds).expected(), model)


def remaining_parameters(model):
    """Parameters that :func:`prune` would leave if it were called now: an int."""
    return parameter_ledger(model).remaining()


class Budget(nn.Module):
    """Lagrangian penalty towards a size, with a linear warm-up of the target.

    Its parameters ``lambda1`` and ``lambda2`` are to be maximised:
    ``AdamW([..., {"params": budget.parameters(), "maximize": True}])``. They and s₀ are
    its state; the model's gates are not.

    Arguments
    ---------
    model : torch.nn.Module
        With gates, in the state that warm-up starts from.
    sparsity : float, optional
        Share of the parameters to remove, 0 … 1. Give exactly one of the three.
    parameters : int, optional
        Parameters to leave.
    macs : int, optional
        Multiply-adds to leave for an utterance of ``seconds``; an encoder only.
    warmup_steps : int
        Training steps in which the target moves from s₀ to its end.
    seconds : float
        Length of the utterance for ``macs``.

    Raises
    ------
    InputError
        No gates, none or several targets, or a target that no gates can reach.

    Example
    -------
    >>> from speechbrain_ext.lobes.heads import AdapterMFA
    >>> from speechbrain_ext.pruning import add_gates
    >>> head = add_gates(AdapterMFA(1024))
    >>> budget = Budget(head, sparsity=0.4, warmup_steps=100)
    >>> loss, sparsity, target = budget(step=50)
    >>> round(float(target), 2)
    0.2
    """

    def __init__(
        self,
        model,
        sparsity=None,
        parameters=None,
        macs=None,
        warmup_steps=10_000,
        seconds=1.0,
    ):
        super().__init__()
        targets = {"sparsity": sparsity, "parameters": parameters, "macs": macs}
        given = {k: value for k, value in targets.items() if value is not None}
        if len(given) != 1:
            raise InputError(
                f"Budget: {len(given)} targets, expected one of {list(targets)}"
            )
        ((name, value),) = given.items()
        if name == "macs":
            self.ledger = macs_ledger(model, seconds)
        else:
            self.ledger = parameter_ledger(model)
        if not self.ledger.accounts:
            raise InputError("Budget: this model has no gates; call add_gates first")
        full = self.ledger.full
        self.target_cost = full * (1 - value) if name == "sparsity" else value
        self.target = 1 - self.target_cost / full
        self._check_reachable(name, value)
        self.warmup_steps = warmup_steps
        self.lambda1 = nn.Parameter(torch.zeros(()))
        self.lambda2 = nn.Parameter(torch.zeros(()))
        self.register_buffer("initial_sparsity", self.sparsity().detach())

    def sparsity(self):
        """s, a float64 scalar with a gradient."""
        account = self.ledger.accounts[0]
        expected = self.ledger.expected()
        return _tensor(1 - expected / self.ledger.full, account.gate)

    def forward(self, step):
        """Penalty after ``step`` training steps (0 before the first).

        Arguments
        ---------
        step : int
            Training steps done; the caller counts, and so does its checkpoint.

        Returns
        -------
        Penalty
            ``loss`` float32, to be added to the training loss.
        """
        done = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        start = self.initial_sparsity
        target = start + (self.target - start) * done
        sparsity = self.sparsity()
        excess = (sparsity - target).float()
        loss = self.lambda1 * excess + self.lambda2 * excess.square()
        return Penalty(loss, sparsity.detach(), target)

    def _check_reachable(self, name, value):
        ledger = self.ledger
        if ledger.smallest <= self.target_cost <= ledger.full:
            return
        span = f"{ledger.smallest:,} to {ledger.full:,}"
        if name == "sparsity":
            span = f"0 to {1 - ledger.smallest / ledger.full:.4f}"
        raise InputError(
            f"Budget: {name} {value:,}, expected {span}: {ledger.smallest:,} of the "
            f"{ledger.full:,} {ledger.what} have no gate or are below a floor"
        )


def _tensor(value, module):
    """A float64 scalar where ``module`` is, also where nothing is random."""
    device = next(module.parameters()).device
    return torch.as_tensor(value, dtype=torch.float64, device=device)
