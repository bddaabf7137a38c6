"""What a run is going to do, in steps; and warnings where that is not what was meant.

With more or fewer processes the same file makes other steps: see
:mod:`speechbrain_ext.global_batch`. Schedules that count epochs stretch with them;
those that count optimiser steps do not.
"""

import logging

from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.errors import InputError

logger = logging.getLogger(__name__)


def log_plan(batches, steps, epochs, wanted=None, warmup=None):
    """Log global batch and number of steps, on the main process.

    Arguments
    ---------
    batches : GlobalBatch
    steps : int
        Of an epoch.
    epochs : int
        Of the run.
    wanted : int, optional
        The global batch that the settings are meant for; another one is warned of.
    warmup : int, optional
        Optimiser steps of a schedule that counts those.

    Raises
    ------
    InputError
        A ``wanted`` that is no positive whole number.
    """
    if wanted is not None and not (isinstance(wanted, int) and wanted > 0):
        raise InputError(
            f"global_batch: {wanted}, expected utterances per optimiser step, or null"
        )
    if not if_main_process():
        return
    per_epoch = batches.optimiser_steps(steps)
    total = per_epoch * epochs
    logger.info(
        "global batch %s; optimiser steps: %d per epoch, %d in %d epoch(s)",
        *(batches, per_epoch, total, epochs),
    )
    if wanted is not None and wanted != batches.size:
        logger.warning(
            "learning rate and epochs are set for a global batch of %d, not %d; %s",
            *(wanted, batches.size, batches.advice(wanted)),
        )
    if warmup is None:
        return
    logger.info("warm-up of %d steps: %.2f epochs", warmup, warmup / per_epoch)
    if warmup > total:
        logger.warning(
            "warm-up of %d optimiser steps, but there are %d: its end is not reached",
            *(warmup, total),
        )
