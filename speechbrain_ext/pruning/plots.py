"""Pictures of pruning: remaining units by layer, and how training reached them.

matplotlib is imported when a picture is drawn, as in
:mod:`speechbrain_ext.scoring.plots`.
"""

import numpy as np

from speechbrain_ext.pruning.surgery import structure
from speechbrain_ext.scoring.plots import new_figure, save_figure
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_json


def write_structure(folder, encoder):
    """Write ``pruning.json`` and ``structure.png``: remaining units by layer."""
    remaining = structure(encoder)
    write_json(folder / "pruning.json", remaining)
    plot_structure(folder / "structure.png", remaining)


def plot_structure(path, structure):
    """PNG of the share removed per layer and kind, with the remaining units in figures.

    ``structure`` is that of :func:`speechbrain_ext.pruning.structure`; InputError: no
    groups.
    """
    removed, kept, kinds = sparsity_table(structure)
    if not removed.size:
        raise InputError(f"{path}: no groups to draw, expected at least one")
    figure, axes = new_figure(1.6 + 1.1 * len(kinds), 1.6 + 0.27 * len(removed))
    image = axes.imshow(100 * removed, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for (layer, column), share in np.ndenumerate(removed):
        if not np.isnan(share):
            colour = "black" if share > 0.6 else "white"
            style = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(column, layer, str(kept[layer, column]), **style)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_yticks(range(len(removed)))
    axes.tick_params(labelsize=8)
    axes.set_ylabel("layer")
    axes.set_title(f"units left; {structure['parameters']:,} parameters", fontsize=9)
    figure.colorbar(image, ax=axes, label="removed (%)")
    save_figure(figure, path)


def sparsity_table(structure):
    """Layers × kinds of a structure.

    → share removed of the unpruned width, float, NaN where there is no such group;
    units kept, int; the kinds in the order in which a layer has them.
    """
    groups = structure["groups"]
    kinds = list(dict.fromkeys(group["kind"] for group in groups))
    layers = 1 + max((group["layer"] for group in groups), default=-1)
    removed = np.full((layers, len(kinds)), np.nan)
    kept = np.zeros(removed.shape, dtype=int)
    for group in groups:
        place = group["layer"], kinds.index(group["kind"])
        removed[place] = 1 - group["kept"] / group["full"]
        kept[place] = group["kept"]
    return removed, kept, kinds


def plot_progress(path, steps, sparsity, target, loss):
    """PNG of sparsity, its target, and the training loss over steps, [N] each.

    InputError: no step, or series of other lengths.
    """
    lengths = [len(series) for series in (steps, sparsity, target, loss)]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise InputError(
            f"{path}: series of {lengths} points, expected as many of each"
        )
    figure, axes = new_figure(6.4, 4.0)
    axes.plot(steps, 100 * np.asarray(sparsity), label="sparsity")
    axes.plot(steps, 100 * np.asarray(target), "--", label="target")
    axes.set(xlabel="training step", ylabel="sparsity (%)")
    others = axes.twinx()
    others.plot(steps, loss, color="tab:grey", linewidth=0.8, label="loss")
    others.set_ylabel("loss")
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    save_figure(figure, path)
