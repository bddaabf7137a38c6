"""Small helpers for several processes."""

import torch
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    is_distributed_initialized,
)


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

    torchrun ends all where one fails, even in the moment of its exit. So nobody leaves
    while the main process still exports or scores, nor with connections open, whose
    threads may abort an exit.
    """
    if is_distributed_initialized():
        ddp_barrier()
        torch.distributed.destroy_process_group()


def rank_and_world():
    """This process's number and how many there are: (0, 1) where it is alone."""
    if is_distributed_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def max_over_ranks(value, device):
    """The largest of the ranks' integers."""
    if not is_distributed_initialized():
        return value
    tensor = torch.tensor(value, device=device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return int(tensor)


def mean_over_ranks(value, device):
    """The mean of the ranks' numbers, a float."""
    if not is_distributed_initialized():
        return float(value)
    tensor = torch.tensor(float(value), device=device, dtype=torch.float32)
    torch.distributed.all_reduce(tensor)
    return float(tensor) / torch.distributed.get_world_size()
