"""Several processes: order, sums over ranks, and BatchNorm over the global batch.

    y = (x − μ) / √(σ² + ε) · γ + β,    μ, σ² over the rows of every process

torch's SyncBatchNorm exists for GPUs only. :class:`SynchronisedBatchNorm1d` sums by
differentiable all-reduce on the CPU too, so that training on several processes equals
training one process on the whole global batch.
"""

import contextlib

import torch
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    is_distributed_initialized,
)
from torch import nn
from torch.distributed.nn.functional import all_reduce

from speechbrain_ext.utils.errors import InputError


def main_process_first(function, *arguments):
    """Run on the main process, then on the others, and return on all.

    For preparations: the others find the work done.

    Arguments
    ---------
    function : callable
    *arguments
        Passed on.

    Returns
    -------
    What ``function`` returns.
    """
    result = function(*arguments) if if_main_process() else None
    ddp_barrier()
    return result if if_main_process() else function(*arguments)


def leave_group():
    """Wait for all processes, then leave their group: the last line of a run.

    torchrun ends all where one fails, even in the moment of its exit. So no process
    leaves while the main process still exports or scores, nor with connections open,
    whose threads may abort an exit.
    """
    if is_distributed_initialized():
        ddp_barrier()
        torch.distributed.destroy_process_group()


def rank_and_world():
    """This process's number and how many there are: (0, 1) where it is alone."""
    if is_distributed_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def max_over_ranks(values, device):
    """Of a list of integers the largest of the ranks, each for itself."""
    if not is_distributed_initialized():
        return values
    tensor = torch.tensor(values, device=device, dtype=torch.int64)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor.cpu().tolist()


def mean_over_ranks(value, device):
    """The mean of the ranks' numbers, a float."""
    if not is_distributed_initialized():
        return float(value)
    tensor = torch.tensor(float(value), device=device, dtype=torch.float32)
    torch.distributed.all_reduce(tensor)
    return float(tensor) / torch.distributed.get_world_size()


class SynchronisedBatchNorm1d(nn.BatchNorm1d):
    """As ``nn.BatchNorm1d``: [B, C] or [B, C, T], B may differ between processes.

    In eval mode, and where there is one process only, it is that very layer.
    """

    def forward(self, x):
        """[B, C] or [B, C, T] → the same shape.

        Raises
        ------
        ValueError
            As torch's, where all processes together have one value per channel.
        """
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(x)
        self._check_input_dim(x)
        rows = [axis for axis in range(x.dim()) if axis != 1]
        count = sum_over_processes(x.new_tensor(x.numel() // x.shape[1]))
        if count <= 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, over all "
                "processes"
            )
        # the mean first, then squares about it: both in one sum would cancel
        mean = sum_over_processes(x.sum(rows)) / count
        centred = x - _per_channel(mean, x)
        variance = sum_over_processes(centred.square().sum(rows)) / count
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return centred * _per_channel(scale, x)
        scale = scale * self.weight
        return centred * _per_channel(scale, x) + _per_channel(self.bias, x)

    @torch.no_grad()
    def _follow(self, mean, variance):
        self.num_batches_tracked += 1
        rate = self.momentum
        if rate is None:  # a plain average of all batches
            rate = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


def synchronise_batch_norm(module):
    """Replace every ``nn.BatchNorm1d`` within by one over all processes → the module.

    In place: parameters and statistics stay the same tensors under the same names.
    """
    if type(module) is nn.BatchNorm1d:
        module.__class__ = SynchronisedBatchNorm1d
    for part in module.children():
        synchronise_batch_norm(part)
    return module


@contextlib.contextmanager
def batch_norm_explained():
    """BatchNorm cannot normalise one row; torch says so with its own shapes."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "a batch of one recording, expected at least two, since BatchNorm is "
            "trained: see batch_size"
        ) from error


def sum_over_processes(values):
    """A differentiable sum of every process's tensor; alone, the tensor itself."""
    return all_reduce(values) if is_distributed_initialized() else values


def _per_channel(values, x):
    """[C] → [C] or [C, 1], to go with x."""
    return values if x.dim() == 2 else values.unsqueeze(1)
