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


def plot_progress(path, steps):
    """PNG of how training went: sparsity, target and loss; below them λ₁ and λ₂.

    Arguments
    ---------
    path : Path
    steps : dict
        Name → values [N]: ``step``, ``sparsity``, ``target``, ``lambda1``, ``lambda2``,
        ``loss`` and what it has of the ``lagrangian``, which is drawn without it.

    Raises
    ------
    InputError
        No step.
    """
    if not len(steps["step"]):
        raise InputError(f"{path}: no steps to draw, expected at least one")
    figure, axes = new_figure(6.4, 5.4, rows=2)
    sizes, multipliers = axes
    sizes.plot(steps["step"], 100 * np.asarray(steps["sparsity"]), label="sparsity")
    sizes.plot(steps["step"], 100 * np.asarray(steps["target"]), "--", label="target")
    sizes.set_ylabel("sparsity (%)")
    others = sizes.twinx()
    loss = np.subtract(steps["loss"], steps["lagrangian"])  # it follows its multipliers
    others.plot(steps["step"], loss, color="tab:grey", linewidth=0.8, label="loss")
    others.set_ylabel("loss")
    for number, name in enumerate(("λ₁", "λ₂"), 1):
        values = steps[f"lambda{number}"]
        multipliers.plot(steps["step"], values, color=f"C{number + 1}", label=name)
    multipliers.set(xlabel="training step", ylabel="multipliers")
    figure.legend(loc="outside upper center", ncols=5, fontsize=9, frameon=False)
    save_figure(figure, path)
