"""Devices that this machine can compute on, and precision: autocast, or none."""

import contextlib

import torch
from speechbrain.utils.autocast import AMPConfig
from torch import nn

from speechbrain_ext.utils.errors import InputError

PRODUCTS = nn.Linear, nn.Conv1d, nn.Conv2d  # layers that autocast rounds
PRECISIONS = ("fp32", "bf16", "fp16", "int8")  # of inference


def check_device(name=None):
    """The torch.device of a name, with its number where it is a GPU.

    None takes a GPU where there is one. InputError: an unknown name; a GPU that is not
    there; a device that torch cannot use here.
    """
    if name is None:
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device {name!r}, expected cpu, cuda or cuda:0") from error
    if device.type == "cpu":
        return device
    if device.type == "cuda":
        n_gpus = torch.cuda.device_count()
        if (device.index or 0) >= n_gpus:
            raise InputError(
                f"device {str(name)!r}, but this machine has {n_gpus} GPU(s)"
            )
        return torch.device("cuda", device.index or 0)
    try:
        usable, reason = torch.ones(1, device=device).cpu().item() == 1, "wrong values"
    except (RuntimeError, AssertionError, ImportError) as error:
        usable, reason = False, str(error).split("\n")[0]
    if not usable:
        raise InputError(
            f"device {str(name)!r}, which torch cannot use here ({reason}), expected "
            "cpu or cuda"
        )
    return device


def has_float64(device):
    """Whether a torch.device computes in float64; Apple's GPUs do not."""
    return device.type in ("cpu", "cuda")


def has_bf16(device):
    """Whether a torch.device multiplies in bf16: else such products are emulated.

    A CPU without the instructions takes a hundred times as long as in fp32; one with
    them trains in about 0.6 of the time.
    """
    if device.type == "cpu":
        cpu = torch.cpu
        return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(False)


def valid_counts(lens, total):
    """Relative lengths [B] on any device → round(lens · total), int64 [B], on the CPU.

    In float64: of a long row float32 would miss the whole number.
    """
    return torch.round(lens.cpu().double() * total).long()


def allow_tf32(allowed):
    """Whether products of float32 on a GPU may be of TF32, which has 10 bits, or not.

    SpeechBrain allows it when it is imported, to all of the process.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def _full_precision_on_gpu():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    try:
        with torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def full_precision(tensor):
    """A context without autocast on the device of ``tensor``, and without TF32.

    For margins, cosines, statistics and features. Where there is no autocast, as for
    meta tensors (and, before torch 2.5, on Apple's GPUs), nothing is to be done.
    """
    device = tensor.device.type
    if device == "cuda":
        return _full_precision_on_gpu()
    available = torch.amp.is_autocast_available(device)
    if not (available and torch.is_autocast_enabled(device)):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def round_for_autocast(model, device):
    """Let a frozen model keep products' weights in the type of autocast, if it is on.

    Autocast rounds them in every step anew: a copy, a launch and memory for each. The
    result is the same.

    Arguments
    ---------
    model : nn.Module
        Changed for good: its linear maps, and its convolutions of one group.
    device : str
        Type of the device that it is on.

    Raises
    ------
    InputError
        It was rounded for another type.
    """
    usable = torch.amp.is_autocast_available(device)
    on = usable and torch.is_autocast_enabled(device)
    wanted = torch.get_autocast_dtype(device) if on else None
    rounded = getattr(model, "rounded_to", None)
    if rounded is wanted:
        return
    if rounded is not None:
        raise InputError(
            f"teacher: rounded to {rounded} by an earlier training, expected this one "
            "in the same precision, or the teacher loaded anew"
        )
    model.rounded_to = wanted
    for layer in model.modules():
        if isinstance(layer, PRODUCTS) and getattr(layer, "groups", 1) == 1:
            layer.to(wanted)


def autocast_type(name):
    """SpeechBrain's ``fp32``, ``bf16``, ``fp16`` → torch type; None for ``fp32``.

    None for ``int8``, too: a model's layers are of that precision or not.
    """
    dtype = torch.float32 if name == "int8" else AMPConfig.from_name(name).dtype
    return None if dtype is torch.float32 else dtype
