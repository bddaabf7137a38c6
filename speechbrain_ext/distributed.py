"""Small helpers for several processes."""

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
