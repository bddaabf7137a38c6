"""Pictures: whole PNG files, and the table behind them."""

import numpy as np
import pytest
from matplotlib.image import imread
from random_gates import gated_encoder, set_gates, speaker_encoder

from speechbrain_ext.pruning import add_gates, structure
from speechbrain_ext.pruning.plots import (
    plot_progress,
    plot_structure,
    sparsity_table,
)
from speechbrain_ext.utils.errors import InputError


def test_table_is_the_structure():
    found = structure(gated_encoder())
    removed, left, kinds = sparsity_table(found)
    assert kinds == ["ffn1", "heads", "conv", "ffn2"]
    assert removed.shape == left.shape == (3, 4)
    for group in found["groups"]:
        place = group["layer"], kinds.index(group["kind"])
        assert left[place] == group["kept"]
        assert removed[place] == 1 - group["kept"] / group["full"]


def test_an_adapter_has_one_row_more():
    """Of the projected input, which belongs to no layer."""
    removed, _, kinds = sparsity_table(structure(add_gates(speaker_encoder())))
    assert removed.shape == (4, 5)
    assert np.isnan(removed[3, :4]).all()
    assert removed[3, kinds.index("adapter")] == 0


def test_heat_map(tmp_path):
    """Darker where less is removed."""
    light, dark = tmp_path / "much.png", tmp_path / "new" / "nothing.png"
    plot_structure(light, structure(gated_encoder("sparse")))
    plot_structure(dark, structure(add_gates(set_gates(speaker_encoder(), "soft"))))
    assert middle(light).mean() > middle(dark).mean() + 0.1
    with pytest.raises(InputError, match=r"x\.png: no groups to draw"):
        plot_structure(tmp_path / "x.png", {"parameters": 5, "groups": []})


def middle(path):
    pixels = imread(path)[..., :3]
    rows, columns = pixels.shape[:2]
    return pixels[rows // 4 : 3 * rows // 4, columns // 5 : 3 * columns // 5]


def test_progress(tmp_path):
    """The loss is drawn without the Lagrangian, whose multipliers move it."""
    n = np.arange(50)
    steps = {"step": n, "sparsity": n / 60, "target": n / 49, "loss": 5 - n / 32}
    steps |= {"lambda1": -n / 50, "lambda2": n / 100, "lagrangian": 0 * n}
    plot_progress(tmp_path / "a.png", steps)
    assert imread(tmp_path / "a.png").shape[0] > 300
    moved = {**steps, "loss": steps["loss"] + n, "lagrangian": n}
    plot_progress(tmp_path / "b.png", moved)
    pictures = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    assert pictures[0] == pictures[1]
    with pytest.raises(InputError, match=r"c\.png: no steps to draw"):
        plot_progress(tmp_path / "c.png", {name: [] for name in steps})
