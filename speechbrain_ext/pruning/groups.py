"""What an encoder says about its prunable parts, and which of them have gates.

A group is a set of like units in one module: heads, feed-forward units, channels. All
of them have the same anatomy,

    h = f(W_in x + b_in)          one block of rows of W_in and b_in per unit
    y = W_out (z ∘ h) + b_out     one block of columns of W_out per unit

with the gate z between (Wang et al. 2020, arXiv 1910.04732). So a group names tensors,
pruning slices them, and no file here knows what an encoder is. A module takes part if
it has

    prunable_groups()   list of PrunableGroup, with tensor names relative to itself
    resized(widths)     a new module of its class; widths: group name → units left
    n_frames(seconds), fixed_macs(frames)     for budgets in multiply-adds only

and, in each group's own module, ``self.gate = NoGate()`` that its forward consults.
"""

from typing import NamedTuple

from speechbrain_ext.pruning.gates import OPEN, GroupGate, NoGate
from speechbrain_ext.utils.errors import InputError


class PrunableGroup(NamedTuple):
    """Like units of one module, and the tensors that belong to them.

    Arguments
    ---------
    name : str
        Dotted name of the module that holds the gate.
    kind : str
        What the units are: floors, options and pictures go by it.
    units, full : int
        Units there are, and those of the unpruned model; 0 units: the module is gone.
    rows : tuple of str
        Tensors whose first dimension runs over the units. One that is a multiple
        longer holds blocks one after another: values and gates of a GLU.
    columns : str
        Weight whose second dimension runs over the units; takes up their gates.
    shift : str, optional
        The bias that is added behind it; takes up the gate on the whole module.
    unit_size : int
        Rows of a unit: 1, or the width of a head.
    vanishes : tuple of str
        Modules that go with the last unit; none: one unit always stays.
    frame_macs, pair_macs : int
        Multiply-adds of a unit, beyond its weights, per frame and pair of frames.
    layer : int
        For reports.
    """

    name: str
    kind: str
    units: int
    full: int
    rows: tuple
    columns: str
    shift: str | None = None
    unit_size: int = 1
    vanishes: tuple = ()
    frame_macs: int = 0
    pair_macs: int = 0
    layer: int = 0

    def within(self, parent, layer=None):
        """The same group as seen from a module that holds this one as ``parent``."""
        return self._replace(
            name=f"{parent}.{self.name}",
            rows=tuple(f"{parent}.{name}" for name in self.rows),
            columns=f"{parent}.{self.columns}",
            shift=self.shift and f"{parent}.{self.shift}",
            vanishes=tuple(f"{parent}.{name}" for name in self.vanishes),
            layer=self.layer if layer is None else layer,
        )

    def goes_with_last(self, tensor):
        """Whether the tensor of that name is removed with the last unit."""
        return tensor.startswith(tuple(f"{name}." for name in self.vanishes))


def add_gates(model, kinds=None, whole=(), floors=None, log_alpha=OPEN):
    """Put gates into ``model``, in place. In eval mode its outputs do not change.

    Arguments
    ---------
    model : torch.nn.Module
        An encoder, a head or both together, with ``prunable_groups()``.
    kinds : sequence of str, optional
        Kinds of units that get a gate each, as "heads", "ffn1", "conv"; None: all that
        the model declares.
    whole : sequence of str
        Kinds whose whole modules get one more gate each.
    floors : dict, optional
        Kind → units that every such module keeps, whatever their gates say.
    log_alpha : float
        Initial value: 4.6 means that a unit is kept with probability 0.998.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    InputError
        Gates are there already; nothing to gate; an unknown kind; a floor that is
        negative or contradicts a gate on the whole; LoRA not merged; a frozen encoder,
        which stays in eval mode, where gates do not train.
    """
    groups = [group for group in model.prunable_groups() if group.units]
    floors, known = floors or {}, {group.kind for group in groups}
    kinds = known if kinds is None else set(kinds)
    _check_options(model, groups, kinds, set(whole), floors)
    tensors = dict(model.named_parameters())
    for group in groups:
        for tensor in (*group.rows, group.columns, *filter(None, [group.shift])):
            if tensor not in tensors:
                raise InputError(
                    f"add_gates: no parameter {tensor}; merge LoRA before pruning"
                )
    for group in groups:
        if group.kind in kinds | set(whole):
            holder = model.get_submodule(group.name)
            gate = GroupGate(
                group.units,
                gate_units=group.kind in kinds,
                gate_whole=group.kind in whole,
                floor=floors.get(group.kind, 0),
                can_vanish=bool(group.vanishes),
                log_alpha=log_alpha,
            )
            device = tensors[group.columns].device
            holder.gate = gate.to(device).train(holder.training)
    return model


def remove_gates(model):
    """Take the gates out again, in place; weights are as if there had been none."""
    for group, _ in gated_groups(model):
        model.get_submodule(group.name).gate = NoGate()
    return model


def gated_groups(model):
    """Groups that have a gate → list of (PrunableGroup, GroupGate)."""
    groups = [group for group in model.prunable_groups() if group.units]
    pairs = [(group, model.get_submodule(group.name).gate) for group in groups]
    return [(group, gate) for group, gate in pairs if isinstance(gate, GroupGate)]


def _check_options(model, groups, kinds, whole, floors):
    if not groups:
        raise InputError("add_gates: this model has no units left to prune")
    if gated_groups(model):
        raise InputError("add_gates: this model has gates already")
    if any(getattr(module, "frozen", False) for module in model.modules()):
        raise InputError("add_gates: the encoder is frozen, expected frozen=False")
    known = sorted({group.kind for group in groups})
    for kind in [*kinds, *whole, *floors]:
        if kind not in known:
            raise InputError(
                f"add_gates: unknown kind {kind!r}, expected one of {known}"
            )
    if not kinds | whole:
        raise InputError(f"add_gates: no kinds to gate, expected some of {known}")
    for kind, floor in floors.items():
        if floor < 0 or kind not in kinds or (floor and kind in whole):
            raise InputError(
                f"add_gates: floor {floor} of {kind}, expected 0 or more, units with "
                "gates, and 0 where the whole module may go"
            )
    for group in groups:
        if group.kind in whole and not group.vanishes:
            raise InputError(f"add_gates: {group.kind} cannot go as a whole")
