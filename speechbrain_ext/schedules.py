"""Learning rates and margins as plain functions of training progress.

``progress`` is counted in epochs and moves with every optimiser step: step 30 of 100
in the third epoch is 2.3. A schedule that remembers nothing needs no checkpoint.
"""

import math
from dataclasses import dataclass

from speechbrain_ext.utils.errors import InputError, check_at_least


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float

    def __post_init__(self):
        check_at_least("value", self.value, 0, whole=False)

    def __call__(self, progress):
        """Progress in epochs → value."""
        return self.value


@dataclass(frozen=True)
class WarmupStepDecay:
    """Linear warm-up, then × ``factor`` every ``every`` epochs.

    Stage 1 of arXiv 2510.04213, section 3.2: 5 epochs up to 1e-4, then a tenth every 5.

    Arguments
    ---------
    peak : float
        Learning rate at the end of the warm-up.
    warmup_epochs : float
        0 for none.
    every : float
        Epochs between two decays, counted from the end of the warm-up.
    factor : float
        Of each decay.
    """

    peak: float
    warmup_epochs: float = 5.0
    every: float = 5.0
    factor: float = 0.1

    def __post_init__(self):
        for name in ("peak", "warmup_epochs", "factor"):
            check_at_least(name, getattr(self, name), 0, whole=False)
        if not self.every > 0:
            raise InputError(f"every={self.every!r}, expected a number above 0")

    def __call__(self, progress):
        """Progress in epochs → learning rate."""
        if progress < self.warmup_epochs:
            return self.peak * progress / self.warmup_epochs
        decays = int((progress - self.warmup_epochs) / self.every + 1e-9)
        return self.peak * self.factor**decays


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine from ``peak`` to ``final``, then constant.

    Without warm-up: stages 2 and 3 of arXiv 2510.04213, 1e-5 → 5e-6.

    Arguments
    ---------
    peak, final : float
        Learning rates.
    decay_epochs : float
        Epoch at which ``final`` is reached, warm-up included.
    warmup_epochs : float
        0 for none.
    """

    peak: float
    final: float
    decay_epochs: float
    warmup_epochs: float = 0.0

    def __post_init__(self):
        for name in ("peak", "final", "decay_epochs", "warmup_epochs"):
            check_at_least(name, getattr(self, name), 0, whole=False)

    def __call__(self, progress):
        """Progress in epochs → learning rate."""
        if progress < self.warmup_epochs:
            return self.peak * progress / self.warmup_epochs
        span = max(self.decay_epochs - self.warmup_epochs, 1e-9)
        done = min((progress - self.warmup_epochs) / span, 1.0)
        return (
            self.final + (self.peak - self.final) * (1 + math.cos(math.pi * done)) / 2
        )


@dataclass(frozen=True)
class WarmupExponential:
    """From ``peak`` to ``final`` by an equal factor every step, then constant.

        peak · (final / peak)^(progress / decay_epochs) · min(1, progress / warm-up)

    The decay begins with the first step, under the linear warm-up, as in wespeaker's
    ExponentialDecrease, with which most peers in arXiv 2510.04213's table 1 trained.

    Arguments
    ---------
    peak, final : float
        Learning rates, above 0.
    decay_epochs : float
        Epoch at which ``final`` is reached, warm-up included.
    warmup_epochs : float
        0 for none.
    """

    peak: float
    final: float
    decay_epochs: float
    warmup_epochs: float = 0.0

    def __post_init__(self):
        for name in ("peak", "final", "decay_epochs"):
            value = getattr(self, name)
            check_at_least(name, value, 0, whole=False)
            if not value:
                raise InputError(f"{name}={value!r}, expected a number above 0")
        check_at_least("warmup_epochs", self.warmup_epochs, 0, whole=False)

    def __call__(self, progress):
        """Progress in epochs → learning rate."""
        done = min(progress / self.decay_epochs, 1.0)
        rate = self.peak * (self.final / self.peak) ** done
        return rate * min(
            1.0, progress / self.warmup_epochs if self.warmup_epochs else 1.0
        )


@dataclass(frozen=True)
class LinearRamp:
    """``initial`` until epoch ``begin``, linear to ``final`` at ``end``, then constant.

    For a margin that grows once the classes have formed.
    """

    initial: float
    final: float
    begin: float
    end: float

    def __post_init__(self):
        for name in ("initial", "final", "begin", "end"):
            check_at_least(name, getattr(self, name), -math.inf, whole=False)

    def __call__(self, progress):
        """Progress in epochs → value."""
        done = (progress - self.begin) / max(self.end - self.begin, 1e-9)
        return self.initial + (self.final - self.initial) * min(max(done, 0.0), 1.0)
