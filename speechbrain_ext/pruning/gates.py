"""Hard concrete gates: random switches with a gradient.

    s = σ((log u − log(1−u) + log α) / β),  u ~ U(0, 1)
    z = min(1, max(0, s (ζ − γ) + γ))                                    in training
    ẑ = min(1, max(0, σ(log α) (ζ − γ) + γ))                             in eval mode
    P(z > t) = σ(log α − β logit((t − γ) / (ζ − γ))),  0 ≤ t < 1

Louizos et al. 2018 (arXiv 1712.01312, equations 10 to 13), β = 2/3, γ = −0.1, ζ = 1.1
as in arXiv 2510.04213. P(z > 0) is what a budget counts.

A module with gates is defined so that its pruned form computes the same:

- z multiplies what enters the module's last linear map, so pruning folds it into the
  columns of that weight. Only there: before a LayerNorm or an activation it would not
  fold, and a gate near 0 would still let the LayerNorm's bias through. A training step
  folds it, too, where the weight is smaller than what enters: W (z ∘ h) = (W diag z) h,
  without a second copy of h for the backward pass.
- A LayerNorm across units takes mean and variance over the units with z > 0 alone, all
  with weight 1, as the pruned LayerNorm will. Weights z would make a smooth function
  of z that no plain LayerNorm equals while gates are soft. What is not smooth here is
  small, one part in the number of units, and has no gradient with respect to log α.
- A module without any unit left gives 0: its output bias and its LayerNorms go too.
  In training this holds sample by sample.

Gates are hooks. Each call of the module that holds them draws once; a hook before its
last linear map multiplies units, whole and bias, one behind a LayerNorm across units
puts the masked one in its place. So no forward knows of them.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
# log α of new gates (a unit is dropped with probability 0.2 %, ẑ is exactly 1), and of
# gates that are closed for good: z is exactly 0 and P(z > 0) counts as 0 in float64.
OPEN, CLOSED = math.log(99), -100.0
UNIFORM_MARGIN = 1e-6
MEAN_POINTS = 128


class HardConcrete(nn.Module):
    """``size`` independent gates.

    Arguments
    ---------
    size : int
        Number n of gates.
    log_alpha : float
        Their initial value.
    """

    def __init__(self, size, log_alpha=OPEN):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((size,), float(log_alpha)))

    def forward(self):
        """Values in [0, 1], [n]: drawn in training mode, fixed in eval mode."""
        return self.sample() if self.training else self.value()

    def sample(self):
        """z: one draw from torch's generator."""
        log_alpha = self._wide()
        u = torch.empty_like(log_alpha).uniform_(UNIFORM_MARGIN, 1 - UNIFORM_MARGIN)
        return _stretch(torch.sigmoid((torch.logit(u) + log_alpha) / BETA))

    def value(self):
        """ẑ: the gate without noise."""
        return _stretch(torch.sigmoid(self._wide()))

    def logit_above(self, threshold=0.0):
        """logit P(z > t) for 0 ≤ t < 1, in float64."""
        shift = math.log((threshold - GAMMA) / (ZETA - threshold))
        return self.log_alpha.double() - BETA * shift

    def mean(self):
        """E z = ∫ P(z > t) dt over 0 … 1, by the midpoint rule, in float64."""
        points = [(k + 0.5) / MEAN_POINTS for k in range(MEAN_POINTS)]
        return sum(self.logit_above(t).sigmoid() for t in points) / MEAN_POINTS

    def _wide(self):
        # gates of a half-precision model are computed in float32 all the same
        wide = torch.promote_types(self.log_alpha.dtype, torch.float32)
        return self.log_alpha.to(wide)

    def extra_repr(self):
        """Shown by ``print``."""
        return str(len(self.log_alpha))


def _stretch(s):
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def log_alpha_of(value):
    """The log α of a gate whose ẑ is ``value``, between 0 and 1 exclusive."""
    return torch.logit((value - GAMMA) / (ZETA - GAMMA))


class GateValues(NamedTuple):
    """One draw of a module's gates; None: there are none of this kind.

    ``units`` float [n], ``kept`` bool [n], ``whole`` float, a scalar.
    """

    units: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    whole: torch.Tensor | None = None


class _MaskedLayerNorm(torch.autograd.Function):
    """LayerNorm by weights w of the channels, which sum to 1; keeps x alone.

    x̂ = (x − Σ w x) r,  r = (Σ w (x − Σ w x)² + ε)^−½,  y = γ x̂ + β
    ∂x = r (g − w Σ g − w x̂ Σ g x̂),  g = γ ∂y
    """

    @staticmethod
    def forward(ctx, x, w, gamma, beta, eps):
        """[..., n], [n] three times → [..., n] of x's type."""
        wide = x.to(w.dtype)
        mean = (wide * w).sum(-1, keepdim=True)
        normal = wide - mean
        rate = torch.rsqrt((normal.square() * w).sum(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, w, gamma, mean, rate)
        return torch.addcmul(beta, normal.mul_(rate), gamma).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        """Of y → of x, γ and β."""
        x, w, gamma, mean, rate = ctx.saved_tensors
        gradient = gradient.to(w.dtype)
        normal = (x.to(w.dtype) - mean).mul_(rate)
        g = gradient * gamma
        of_x = g - w * (
            g.sum(-1, keepdim=True) + normal * (g * normal).sum(-1, keepdim=True)
        )
        rows = tuple(range(x.dim() - 1))
        of_gamma = (gradient * normal).sum(rows).to(gamma.dtype)
        of_beta = gradient.sum(rows).to(gamma.dtype)
        return of_x.mul_(rate).to(x.dtype), None, of_gamma, of_beta, None


def masked_layer_norm(x, kept, norm):
    """``norm`` of x [..., n], with mean and variance over ``kept``, bool [n].

    What is not kept comes out finite and means nothing. Computed in float32 at least.
    """
    weights = kept.to(torch.promote_types(x.dtype, torch.float32))
    weights = weights / weights.sum().clamp(min=1)
    return _MaskedLayerNorm.apply(x, weights, norm.weight, norm.bias, norm.eps)


class GroupGate(nn.Module):
    """The gates of one module: one per unit, one on the whole, or both.

    Arguments
    ---------
    size : int
        Number n of units.
    gate_units, gate_whole : bool
        Which gates there are.
    floor : int
        The ``floor`` units with the largest log α are never removed: they count with
        probability 1 and stay at pruning, even where their value is 0.
    can_vanish : bool
        Whether the module may go with its last unit; otherwise the floor is 1 at least.
    log_alpha : float
        Initial value.
    """

    def __init__(
        self,
        size,
        gate_units=True,
        gate_whole=False,
        floor=0,
        can_vanish=True,
        log_alpha=OPEN,
    ):
        super().__init__()
        self.size = size
        self.floor = min(size, max(floor, int(not can_vanish)))
        self.units = HardConcrete(size, log_alpha) if gate_units else None
        self.whole = HardConcrete(1, log_alpha) if gate_whole else None
        self.unit_dim, self.in_blocks = -1, False
        self.drawn = GateValues()

    def __getstate__(self):
        # a draw has a graph, which can neither be copied nor pickled
        return {**self.__dict__, "drawn": GateValues()}

    def attach(self, model, group):
        """Become ``gate`` of the module that ``group`` names, and hook its parts."""
        self.unit_dim, self.in_blocks = group.unit_dim, bool(group.inner_weights)
        holder = model.get_submodule(group.name)
        holder.gate = self
        drawn_at = model.get_submodule(group.drawn_at or group.name)
        drawn_at.register_forward_pre_hook(self._draw)
        inner = [(name, self._gate_inner) for name in group.inner_weights]
        for name, gate in (*inner, (group.output_weight, self._gate_last)):
            linear = model.get_submodule(name.rpartition(".")[0])
            linear.register_forward_pre_hook(gate)
            linear.register_forward_hook(self._give_back, always_call=True)
        for name in group.norms:
            model.get_submodule(name).register_forward_hook(self._mask_norm)
        return self

    def detach(self, model, group):
        """Take back what :meth:`attach` did."""
        del model.get_submodule(group.name).gate
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [k for k, hook in hooks.items() if self._owns(hook)]:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)

    def _owns(self, hook):
        return getattr(hook, "__self__", None) is self

    def _draw(self, module, inputs):
        self.drawn = self()

    def _gate_inner(self, module, inputs):
        return self._gated(module, inputs, self.drawn.units)

    def _gate_last(self, module, inputs):
        factors, _, whole = self.drawn
        if whole is not None:
            whole = whole.to(module.weight.dtype)
            factors = whole if factors is None else factors.to(whole.dtype) * whole
            if getattr(module, "bias", None) is not None:
                module.__dict__["bias"] = module.bias * whole
        return self._gated(module, inputs, factors)

    def _gated(self, module, inputs, factors):
        """Factors of the units into the weight or, if that is smaller, the input.

        Under autocast into the weight, whose half-precision copy is kept anyway.
        """
        x, weight = inputs[0], module.weight
        if factors is None:
            return None
        if x.dtype == weight.dtype and x.numel() < weight.numel():
            return (x * self._along(factors, x, self.unit_dim), *inputs[1:])
        # in front of the parameter, which stays what state dict and optimiser know
        module.__dict__["weight"] = weight * self._along(factors, weight, 1)
        return None

    def _along(self, factors, tensor, dim):
        """[n] as it multiplies the units along a dimension; a scalar as it is."""
        factors = factors.to(tensor.dtype)
        if not factors.dim():
            return factors
        times = tensor.shape[dim] // len(factors)
        spread = torch.Tensor.repeat if self.in_blocks else torch.repeat_interleave
        after = tensor.dim() - 1 - dim % tensor.dim()
        return spread(factors, times).view(-1, *[1] * after)

    def _give_back(self, module, inputs, output):
        """The parameters are the module's again, also after an error."""
        for name in ("weight", "bias"):
            module.__dict__.pop(name, None)

    def _mask_norm(self, module, inputs, output):
        kept = self.drawn.kept
        return None if kept is None else masked_layer_norm(inputs[0], kept, module)

    def forward(self):
        """GateValues: drawn in training mode, fixed in eval mode."""
        return self.values(noisy=self.training)

    def values(self, noisy=False):
        """GateValues with noise or without, whatever the mode."""
        units = kept = whole = None
        if self.units is not None:
            units = self.units.sample() if noisy else self.units.value()
            kept = units > 0
            if self.floor:
                kept = kept | self._protected()
            else:
                whole = kept.any().to(units.dtype)
        if self.whole is not None:
            gate = (self.whole.sample() if noisy else self.whole.value()).squeeze(0)
            whole = gate if whole is None else gate * whole
        return GateValues(units, kept, whole)

    def kept(self):
        """Units that pruning leaves → bool [n] on the CPU."""
        _, kept, whole = self.values()
        if whole is not None and not whole > 0:
            return torch.zeros(self.size, dtype=torch.bool)
        return torch.ones(self.size, dtype=torch.bool) if kept is None else kept.cpu()

    @property
    def kind(self):
        """Those of one kind can be computed with at once."""
        return self.size, self.floor, self.units is None, self.whole is None

    def removal_order(self):
        """Unit numbers, the smallest log α first; floors are the end of this list."""
        order = self.units.log_alpha.detach().argsort(descending=True, stable=True)
        return order.flip(0)

    def _protected(self):
        protected = torch.zeros(
            self.size, dtype=torch.bool, device=self.units.log_alpha.device
        )
        protected[self.removal_order()[self.size - self.floor :]] = True
        return protected


def expected_units(gates):
    """(E[units kept], P(any is kept)) of GroupGates of one ``kind``: float64 [n] each.

    Gates are independent: E = p_w Σ p_i and P = p_w (1 − Π (1 − p_i)). A GPU would take
    longer to be told of module after module than to compute.
    """
    size, floor, *_ = gates[0].kind
    logits = _stacked([gate.units or gate.whole for gate in gates])
    units, alive = logits.new_full((len(gates),), size), logits.new_ones(len(gates))
    if gates[0].units is not None:
        kept = logits.sigmoid()
        if floor:
            order = logits.detach().argsort(descending=True, stable=True)
            kept = kept.scatter(1, order[:, :floor], 1.0)
        else:
            alive = -torch.expm1(F.logsigmoid(-logits).sum(1))
        units = kept.sum(1)
    if gates[0].whole is not None:
        whole = _stacked([gate.whole for gate in gates]).sigmoid().squeeze(1)
        units, alive = units * whole, alive * whole
    return units, alive


def _stacked(gates):
    """Logits of P(z > 0): float64 [n, size]."""
    together = torch.stack([gate.log_alpha for gate in gates]).double()
    return together - BETA * math.log(-GAMMA / ZETA)
