"""The fingerprint of an extraction: equal for equal ones, other for any other."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.utils.jobs import fingerprint

PATHS = ["/x/a.wav", "/x/b.wav"]
LIST = Manifest(["a", "b"], PATHS, [1.0, 2.5], ["s", "s"])
SETTINGS = {"max_seconds": None, "precision": torch.bfloat16}


def model():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv1d(2, 2, 3, stride=2), nn.BatchNorm1d(2))
    inner.register_buffer("window", torch.ones(3), persistent=False)
    inner.heads = 4
    return inner


def changed(change):
    other = model()
    with torch.no_grad():
        change(other)
    return other


def test_equal_computations_have_equal_names():
    name = fingerprint(model(), LIST, **SETTINGS)
    assert len(name) == 64
    assert set(name) <= set("0123456789abcdef")
    again = fingerprint(copy.deepcopy(model()).eval(), LIST.select([0, 1]), **SETTINGS)
    assert again == name
    backwards = dict(reversed(SETTINGS.items()))
    assert fingerprint(model(), LIST, **backwards) == name
    same = Manifest(LIST.ids, PATHS, LIST.durations, ["other", "speakers"])
    assert fingerprint(model(), same, **SETTINGS) == name


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].bias.neg_(),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m.window.mul_(2),
        lambda m: m.bfloat16(),
        lambda m: m.append(nn.ReLU()),
        lambda m: setattr(m, "heads", 2),
        lambda m: setattr(m[0], "stride", (1,)),
    ],
)
def test_another_model_has_another_name(change):
    assert fingerprint(changed(change), LIST) != fingerprint(model(), LIST)


def test_one_bit_of_one_weight_counts():
    def flip(m):
        m[0].weight.view(torch.int32)[1, 1, 2] ^= 1

    assert fingerprint(changed(flip), LIST) != fingerprint(model(), LIST)


def test_modules_of_equal_attributes_differ_by_class():
    one, other = (nn.Sequential(kind()) for kind in (nn.ReLU, nn.SELU))
    assert fingerprint(one, LIST) != fingerprint(other, LIST)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_type_of_weights_has_a_name(dtype):
    assert fingerprint(model().to(dtype), LIST) != fingerprint(model(), LIST)


@pytest.mark.parametrize(
    "other",
    [
        LIST.select([1, 0]),
        LIST.select([0]),
        Manifest(["a", "c"], PATHS, [1.0, 2.5], ["s", "s"]),
        Manifest(["a", "b"], PATHS[::-1], [1.0, 2.5], ["s", "s"]),
        Manifest(["a", "b"], PATHS, [1.0, np.nextafter(2.5, 3)], ["s", "s"]),
    ],
)
def test_another_list_has_another_name(other):
    assert fingerprint(model(), other) != fingerprint(model(), LIST)


@pytest.mark.parametrize(
    "settings", [{}, {**SETTINGS, "precision": None}, {**SETTINGS, "max_seconds": 3.0}]
)
def test_other_settings_have_another_name(settings):
    name = fingerprint(model(), LIST, **SETTINGS)
    assert fingerprint(model(), LIST, **settings) != name


def test_a_long_list_counts_to_its_end():
    ids = [f"r{number}" for number in range(45_000)]
    long = Manifest(ids, ids, np.ones(len(ids)), ids)
    other = Manifest([*ids[:-1], "x"], ids, np.ones(len(ids)), ids)
    assert fingerprint(model(), long) != fingerprint(model(), other)
