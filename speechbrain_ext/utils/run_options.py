"""SpeechBrain's run options: what a machine needs, and who says what they are.

Without a GPU the device is the CPU, and gloo joins the processes; without a terminal
there are no progress bars. A value comes from the command line, else from the YAML
file, else from the script's own default.
"""

import contextlib
import logging
import sys
from dataclasses import replace
from io import StringIO
from typing import get_args

import torch
from speechbrain.core import RunOptions
from speechbrain.utils.distributed import get_local_rank
from speechbrain.utils.run_opts import HELP_TEXTS

from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.precision import check_device, has_bf16

logger = logging.getLogger(__name__)

# What the command line may set of SpeechBrain's run options.
RUN_OPTIONS = frozenset(HELP_TEXTS) | {"jit_module_keys", "compile_module_keys"}
# These wrap whole modules: the weights in checkpoints would have other names, and every
# new length of a batch would be compiled for.
WRAPPING = ("jit", "jit_module_keys", "compile", "compile_module_keys")
PRECISIONS = ("precision", "eval_precision")
INT8 = "--eval_precision=int8"  # which SpeechBrain does not know
INTERVALS = ("ckpt_interval_steps", "ckpt_interval_minutes")


def read_run_options(path, options):
    """Words of a command line → RunOptions that suit this machine.

    Raises
    ------
    InputError
        A value that SpeechBrain refuses, a device that is not there or another
        process', half precision on a CPU that has no bf16 products.
    """
    # each process that torchrun starts has a GPU of its own, which SpeechBrain finds
    if get_local_rank() is not None:
        options = [option for option in options if option != "--device=cuda"]
    options = [*options, *_defaults_on_cpu(options)]
    if not sys.stderr.isatty():  # a bar would fill a log with lines
        options.append("--noprogressbar")
    run_opts = _parse_run_options(path, options)
    _check_device(run_opts)
    return run_opts


def _parse_run_options(path, options):
    """Run options → RunOptions; InputError for a value that SpeechBrain refuses."""
    known = [option for option in options if option != INT8]
    try:
        with contextlib.redirect_stderr(StringIO()) as output:
            run_opts = RunOptions.from_command_line_args([str(path), *known])[1]
    except SystemExit as error:  # argparse: the last line says why
        reason = output.getvalue().strip().rsplit("error: ", 1)[-1]
        raise InputError(f"command line: {reason}") from error
    if len(known) < len(options):
        named = run_opts.overridden_args | {"eval_precision"}
        run_opts = replace(run_opts, eval_precision="int8", overridden_args=named)
    return run_opts


def _defaults_on_cpu(options):
    """What a machine without a GPU needs: its device, and gloo."""
    names = {option.split("=")[0] for option in options}
    on_cpu = "--device=cpu" in options
    if "--device" not in names and not torch.cuda.is_available():
        on_cpu = True
        yield "--device=cpu"
    if on_cpu and "--distributed_backend" not in names:
        yield "--distributed_backend=gloo"


def _check_device(run_opts):
    with naming("--device"):
        device = check_device(run_opts.device or "cpu")
    if run_opts.device and device.type == "cpu":
        _check_precision(run_opts, device)
    local_rank, n_gpus = get_local_rank(), torch.cuda.device_count()
    if local_rank is not None and device.type == "cuda" and run_opts.device:
        raise InputError(
            f"--device={run_opts.device}: under torchrun each process takes the GPU of "
            "its own number; leave --device out (or --device=cpu)"
        )
    by_nccl = run_opts.distributed_backend == "nccl"
    if local_rank is not None and by_nccl and local_rank >= n_gpus:
        raise InputError(
            f"process {local_rank} of this machine has no GPU of its own: it has "
            f"{n_gpus}, expected at most as many processes (or --device=cpu)"
        )


def _check_precision(run_opts, cpu):
    asked = {key: run_opts[key] for key in PRECISIONS}
    asked |= {"auto_mix_prec": "fp16"} if run_opts.auto_mix_prec else {}
    asked |= {"bfloat16_mix_prec": "bf16"} if run_opts.bfloat16_mix_prec else {}
    for key, kind in asked.items():
        if kind == "fp16" or (kind == "bf16" and not has_bf16(cpu)):
            raise InputError(
                f"--{key}: {kind} needs a GPU: on this CPU it is far slower than fp32"
            )


def settle_run_options(run_opts, hparams, parameters):
    """Run options in ``hparams``: command line, else file, else function's default.

    InputError: whole modules are to be compiled; int8 for a function without it.
    """
    for key in WRAPPING:
        if run_opts[key] or hparams.get(key):
            raise InputError(f"{key}: not supported, expected False")
    takes = getattr(parameters.get("eval_precision"), "annotation", None)
    if run_opts.eval_precision == "int8" and "int8" not in get_args(takes):
        raise InputError(f"{INT8}: no precision to train with, expected fp32")
    for key in RUN_OPTIONS & set(parameters):
        hparams.setdefault(key, parameters[key].default)
    for key in PRECISIONS:
        if key in run_opts.overridden_args:
            hparams[key] = run_opts[key]
        elif hparams.get(key) in ("bf16", "fp16") and str(run_opts.device) == "cpu":
            logger.warning("%s: fp32 instead of %s on the CPU", key, hparams[key])
            hparams[key] = "fp32"
        gpu = str(run_opts.device) != "cpu" and torch.cuda.is_available()
        emulated = gpu and not has_bf16(torch.device("cuda"))
        if emulated and hparams.get(key) == "bf16":
            raise InputError(
                f"{key}: bf16, but this GPU has no such products, expected "
                f"--{key}=fp16 or --{key}=fp32"
            )
    every = {
        key: run_opts[key]
        if key in run_opts.overridden_args
        else hparams.get(key, run_opts[key])
        for key in INTERVALS
    }
    if all(value > 0 for value in every.values()):
        if "ckpt_interval_minutes" in run_opts.overridden_args:
            raise InputError(f"{every}: expected one of the two to be 0")
        hparams["ckpt_interval_minutes"] = 0
