"""BatchNorm over two processes against torch's own on the whole batch."""

import os

import pytest
import torch
from tiny_training import in_processes, saved
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from speechbrain_ext.utils.distributed import (
    SynchronisedBatchNorm1d,
    synchronise_batch_norm,
)

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"rows": (7, 3), "frames": (7, 3, 5)}
SPLIT = 3  # rows of the first process; four are the other's


def network(**options):
    """BatchNorm between two layers, its own parameters not those it starts with."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, **options)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.double()


def batches(shape, steps=2):
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(steps, *shape, generator=generator, dtype=torch.float64)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return 3.0 + 2.0 * draw, weights  # a mean that is not small against the spread


def _on_one_rank(folder, shape, options):
    rank = int(os.environ["RANK"])
    mine = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    norm = synchronise_batch_norm(network(**options))
    steps, weights = batches(shape)
    for x in steps:
        norm.zero_grad()
        x = x[mine].clone().requires_grad_()
        out = norm(x)
        (out * weights[mine]).sum().backward()
    torch.save(
        {
            "out": out.detach(),
            "gradient": x.grad,
            "parameters": [p.grad for p in norm.parameters()],
            "statistics": dict(norm.named_buffers()),
        },
        folder / f"rank{rank}",
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False, "track_running_stats": False}]
)
def test_two_processes_equal_one_on_the_whole_batch(tmp_path, shape, options):
    assert in_processes(_on_one_rank, 2, tmp_path, shape, options) == [0, 0]
    one, two = (saved(tmp_path / f"rank{rank}") for rank in range(2))
    norm = network(**options)
    steps, weights = batches(shape)
    for x in steps:
        norm.zero_grad()
        x = x.clone().requires_grad_()
        out = norm(x)
        (out * weights).sum().backward()
    torch.testing.assert_close(torch.cat([one.out, two.out]), out.detach())
    torch.testing.assert_close(torch.cat([one.gradient, two.gradient]), x.grad)
    for a, b, whole in zip(one.parameters, two.parameters, norm.parameters()):
        torch.testing.assert_close(a + b, whole.grad)
    for found in (one.statistics, two.statistics):
        assert set(found) == {name for name, _ in norm.named_buffers()}
        for name, whole in norm.named_buffers():
            torch.testing.assert_close(found[name], whole)


def _refuse_one_row(folder):
    norm = synchronise_batch_norm(network())
    rank = int(os.environ["RANK"])
    message = ""
    try:
        norm(torch.zeros(1 - rank, 3, dtype=torch.float64))
    except ValueError as error:
        message = str(error)
    torch.save({"message": message}, folder / f"rank{rank}")


def test_one_row_over_all_processes_is_refused_by_all(tmp_path):
    assert in_processes(_refuse_one_row, 2, tmp_path) == [0, 0]
    for rank in range(2):
        message = saved(tmp_path / f"rank{rank}").message
        assert "more than 1 value per channel" in message


def test_alone_or_in_eval_mode_it_is_torchs_own():
    x = batches(SHAPES["frames"])[0][0]
    ours, theirs = synchronise_batch_norm(network()), network()
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_replaced_in_place_and_only_where_it_is_that_layer():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(2)))
    before = dict(model.named_parameters())
    found = synchronise_batch_norm(model)
    assert found is model
    assert type(model[0]) is SynchronisedBatchNorm1d
    assert type(model[1][0]) is nn.BatchNorm2d
    assert all(p is before[name] for name, p in model.named_parameters())


def _with_ddp(folder):
    rank = int(os.environ["RANK"])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    wrapped = DistributedDataParallel(synchronise_batch_norm(model))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)).double()
    wrapped(x[rank::2]).square().mean().backward()
    torch.save({"gradients": [p.grad for p in model.parameters()]}, folder / f"{rank}")


def test_gradients_under_ddp_are_those_of_the_global_batch(tmp_path):
    assert in_processes(_with_ddp, 2, tmp_path) == [0, 0]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)).double()
    model(x).square().mean().backward()
    for rank in range(2):
        for found, whole in zip(
            saved(tmp_path / f"{rank}").gradients, model.parameters()
        ):
            torch.testing.assert_close(found, whole.grad)
