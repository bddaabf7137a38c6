"""Gates into a model and out of it again.

Which units there are, the model declares itself: ``prunable_groups()``, a list of
:class:`~speechbrain_ext.lobes.encoder.PrunableGroup`. So no file here knows what an
encoder is.
"""

from speechbrain_ext.pruning.gates import OPEN, GroupGate
from speechbrain_ext.utils.errors import InputError


def add_gates(
    model,
    kinds: list[str] | None = None,
    whole: list[str] = (),
    floors: dict | None = None,
    log_alpha: float = OPEN,
):
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
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for group in groups:
        outputs = (*group.inner_weights, group.output_weight, group.output_bias)
        for tensor in (*group.input_weights, *outputs):
            if tensor is not None and tensor not in tensors:
                raise InputError(
                    f"add_gates: no parameter {tensor}; merge LoRA before pruning"
                )
    for group in groups:
        if group.kind in kinds | set(whole):
            gate = GroupGate(
                group.units,
                gate_units=group.kind in kinds,
                gate_whole=group.kind in whole,
                floor=floors.get(group.kind, 0),
                can_vanish=bool(group.removed_with_last),
                log_alpha=log_alpha,
            )
            mode = model.get_submodule(group.name).training
            device = tensors[group.output_weight].device
            gate.to(device).train(mode).attach(model, group)
    return model


def remove_gates(model):
    """Take the gates out again, in place; weights are as if there had been none."""
    for group, gate in gated_groups(model):
        gate.detach(model, group)
    return model


def gated_groups(model):
    """Groups that have a gate → list of (PrunableGroup, GroupGate)."""
    groups = [group for group in model.prunable_groups() if group.units]
    gates = [getattr(model.get_submodule(g.name), "gate", None) for g in groups]
    return [(g, gate) for g, gate in zip(groups, gates) if isinstance(gate, GroupGate)]


def _check_options(model, groups, kinds, whole, floors):
    if not groups:
        raise InputError(
            f"add_gates: {type(model).__name__} has no units left to prune, expected "
            "a model that declares some"
        )
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
        if group.kind in whole and not group.removed_with_last:
            raise InputError(f"add_gates: {group.kind} cannot go as a whole")
