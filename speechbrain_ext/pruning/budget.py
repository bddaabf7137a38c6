"""The size that gates are driven to, as a penalty.

    s = 1 − E[cost] / cost of the full model
    t(step) = s₀ + (t − s₀) · r(p),  p = min(1, step / warm-up)
    penalty = λ₁ (s − t) + λ₂ (s − t)²

Wang et al. 2020 (arXiv 1910.04732, section 3.2); λ₁ and λ₂ start at 0 and ascend while
everything else descends. s₀ is the true sparsity of the initial gates, so that there is
no pressure before the first step. r is one of RAMPS, from 0 to exactly 1: linear as
there, the others as in the public code of hybrid pruning (arXiv 2508.16232).
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import nn

from speechbrain_ext.pruning.costs import mac_costs, parameter_costs
from speechbrain_ext.utils.errors import InputError, check_at_least

SLOPE = 10  # of the sigmoid


def _sigmoid_ramp(p):
    """σ(10 (p − ½)), stretched: the public one jumps by 0.0067 at both ends."""
    return 0.5 + math.tanh(SLOPE * (p - 0.5) / 2) / (2 * math.tanh(SLOPE / 4))


# Name → r: share p of the warm-up → share of the way from s₀ to the target.
RAMPS = {
    "linear": lambda p: p,
    "cosine": lambda p: (1 - math.cos(math.pi * p)) / 2,
    "exponential": lambda p: p**2,  # its public name
    "sigmoid": _sigmoid_ramp,
}


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
    return _tensor(parameter_costs(model).expected(), model)


def expected_macs(model, seconds=1.0):
    """As :func:`expected_parameters`, multiply-adds of one utterance of an encoder."""
    return _tensor(mac_costs(model, seconds).expected(), model)


def remaining_parameters(model):
    """Parameters that ``prune`` would leave if it were called now: an int."""
    return parameter_costs(model).remaining()


class Budget(nn.Module):
    """Lagrangian penalty towards a size, with a warm-up of the target.

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
    ramp : str
        How the target gets there, by p, the share of the warm-up that is done:
        "linear" p; "cosine" (1 − cos πp) / 2; "exponential" p²; "sigmoid"
        ½ + tanh(5 (p − ½)) / (2 tanh 2.5), which is σ(10 (p − ½)) stretched to 0 … 1.
    clamp : bool
        Keep λ₁ at 0 or above, as the public code of hybrid pruning does: while s < t
        only λ₂ presses. False leaves it the sign of an equality's multiplier, as in
        Wang et al., and the sparsity keeps closer to a target that rises.

    Raises
    ------
    InputError
        No gates, none or several targets, a target that no gates can reach, or an
        unknown ramp.

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
        sparsity: float | None = None,
        parameters: int | None = None,
        macs: int | None = None,
        warmup_steps: NonNegativeInt = 10_000,
        seconds: PositiveFloat = 1.0,
        ramp: Literal["linear", "cosine", "exponential", "sigmoid"] = "linear",
        clamp: bool = False,
    ):
        super().__init__()
        check_at_least("Budget: warmup_steps", warmup_steps, 0)
        if ramp not in RAMPS:
            raise InputError(f"Budget: ramp {ramp!r}, expected one of {list(RAMPS)}")
        targets = {"sparsity": sparsity, "parameters": parameters, "macs": macs}
        chosen = {k: value for k, value in targets.items() if value is not None}
        if len(chosen) != 1:
            raise InputError(
                f"Budget: {len(chosen)} targets, expected one of {list(targets)}"
            )
        ((name, value),) = chosen.items()
        if name == "macs":
            self.costs = mac_costs(model, seconds)
        else:
            self.costs = parameter_costs(model)
        if not self.costs.groups:
            raise InputError("Budget: this model has no gates; call add_gates first")
        full = self.costs.full
        self.target_cost = full * (1 - value) if name == "sparsity" else value
        self.target = 1 - self.target_cost / full
        self._check_reachable(name, value)
        self.warmup_steps = warmup_steps
        self.ramp, self.clamp = RAMPS[ramp], clamp
        self.lambda1 = nn.Parameter(torch.zeros(()))
        self.lambda2 = nn.Parameter(torch.zeros(()))
        self.register_buffer("initial_sparsity", self.sparsity().detach())

    def sparsity(self):
        """s, a float64 scalar with a gradient."""
        gate = self.costs.groups[0].gate
        expected = self.costs.expected()
        return _tensor(1 - expected / self.costs.full, gate)

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
        if self.clamp:
            with torch.no_grad():
                self.lambda1.clamp_(min=0)
        done = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        start = self.initial_sparsity  # both ends of the ramp are exact
        target = start.lerp(torch.full_like(start, self.target), self.ramp(done))
        sparsity = self.sparsity()
        excess = (sparsity - target).float()
        loss = self.lambda1 * excess + self.lambda2 * excess.square()
        return Penalty(loss, sparsity.detach(), target)

    def _check_reachable(self, name, value):
        costs = self.costs
        if costs.smallest <= self.target_cost <= costs.full:
            return
        span = f"{costs.smallest:,} to {costs.full:,}"
        if name == "sparsity":
            span = f"0 to {1 - costs.smallest / costs.full:.4f}"
        raise InputError(
            f"Budget: {name} {value:,}, expected {span}: {costs.smallest:,} of the "
            f"{costs.full:,} {costs.measure} have no gate or are below a floor"
        )


def _tensor(value, module):
    """A float64 scalar where ``module`` is, also where nothing is random."""
    device = next(module.parameters()).device
    return torch.as_tensor(value, dtype=torch.float64, device=device)
