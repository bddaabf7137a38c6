"""SpeechBrain's run options → those that fit this machine."""

import logging

import torch

from speechbrain_ext.errors import InputError

logger = logging.getLogger(__name__)


def checked_run_opts(run_opts):
    """SpeechBrain's run options → a dict of those given, fit for this machine.

    ``device`` is a GPU where there is one. ``precision`` is fp32 unless asked for, and
    on a CPU, or a GPU without bf16, whatever is asked for: a bf16 product takes a CPU
    a hundred times as long.

    Raises
    ------
    InputError
        An unknown option or precision, or a device that is not there.
    """
    if hasattr(run_opts, "overridden_args"):
        run_opts = {name: run_opts[name] for name in run_opts.overridden_args}
    given = dict(run_opts or {})
    name = given.get("device") or ("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}, expected cpu, cuda or cuda:0") from error
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(
                f"device {name!r}, but this machine has {torch.cuda.device_count()} "
                "GPU(s)"
            )
        device = torch.device("cuda", device.index or 0)
    elif device.type != "cpu":
        _check_usable(device)
    given["device"] = str(device)
    precision = given.get("precision", "fp32")
    if precision not in ("fp32", "bf16", "fp16"):
        raise InputError(f"precision {precision!r}, expected fp32, bf16 or fp16")
    unfit = device.type == "cpu" or (
        precision == "bf16" and not torch.cuda.is_bf16_supported(False)
    )
    if precision != "fp32" and unfit:
        logger.warning("precision fp32 instead of %s on %s", precision, device)
        given["precision"] = "fp32"
    return given


def _check_usable(device):
    """InputError where torch knows the name of a device, but cannot compute on it."""
    try:
        usable = torch.ones(1, device=device).cpu().item() == 1
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"device {str(device)!r}, which torch cannot use here ({reason}), expected "
            "cpu or cuda"
        ) from error
    if not usable:
        raise InputError(f"device {str(device)!r}, expected cpu or cuda")
