"""Small helpers for several processes."""

import torch
from speechbrain.utils.distributed import ddp_barrier, if_main_process


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


def rank_and_world():
    """This process's number and how many there are: (0, 1) where it is alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
