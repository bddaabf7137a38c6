"""The physical removal of units: slices of tensors, and a smaller module around them.

    W_in → rows of the kept units        W_out → w · W_out[:, kept] · diag(z[kept])
    b_in → the same rows                 b_out → w · b_out

z and w are the gates on units and on the whole module in eval mode. The smaller module
is built by the model itself from the widths, then loaded strictly, so what
:func:`prune` returns is what its configuration rebuilds.
"""

from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.pruning.ledger import parameter_ledger
from speechbrain_ext.weights import load_strictly


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
        ``parameters``: what is left; ``groups``: per group its ``name``, ``layer``,
        ``kind``, units ``kept`` and those of the unpruned model, ``full``.
    """
    gates = {group.name: gate for group, gate in gated_groups(model)}
    groups = []
    for group in model.prunable_groups():
        gate = gates.get(group.name)
        kept = group.units if gate is None else int(gate.kept().sum())
        row = {"name": group.name, "layer": group.layer, "kind": group.kind}
        groups.append({**row, "kept": kept, "full": group.full})
    return {"parameters": parameter_ledger(model).remaining(), "groups": groups}


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
    index = kept.nonzero().squeeze(1).to(state[group.columns].device)
    for name in group.rows:
        blocks = state[name].unflatten(0, (-1, group.units, group.unit_size))
        state[name] = blocks[:, index].flatten(0, 2)
    columns = state[group.columns]
    columns = columns.unflatten(1, (group.units, group.unit_size))[:, index]
    if units is not None:
        scale = units.detach()[index]
        columns = columns * scale.view(-1, *[1] * (columns.dim() - 2)).to(columns.dtype)
    if whole is not None:
        columns = columns * whole.detach().to(columns.dtype)
        if group.shift:
            state[group.shift] = state[group.shift] * whole.detach().to(columns.dtype)
    state[group.columns] = columns.flatten(1, 2)
    return len(index)
