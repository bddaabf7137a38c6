"""Structured pruning that is exact: gates, their budget, and the physical removal.

add_gates(encoder)                  gates in place, trained with the weights
budget = Budget(encoder, …)         penalty that drives them to a size
harden(budget)                      which units go, so that the size is met
small = prune(encoder)              a smaller encoder with the same outputs
"""

from speechbrain_ext.lobes.encoder import PrunableGroup
from speechbrain_ext.pruning.budget import (
    Budget,
    expected_macs,
    expected_parameters,
    remaining_parameters,
)
from speechbrain_ext.pruning.gates import HardConcrete
from speechbrain_ext.pruning.groups import add_gates, remove_gates
from speechbrain_ext.pruning.surgery import harden, prune, structure

__all__ = [
    "Budget",
    "HardConcrete",
    "PrunableGroup",
    "add_gates",
    "expected_macs",
    "expected_parameters",
    "harden",
    "prune",
    "remaining_parameters",
    "remove_gates",
    "structure",
]
