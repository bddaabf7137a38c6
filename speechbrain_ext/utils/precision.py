"""Where float32 is meant, whatever autocast says around it."""

import contextlib

import torch
from speechbrain.utils.autocast import AMPConfig


def full_precision(tensor):
    """A context without autocast on the device of ``tensor``.

    For margins, cosines, statistics and features. Meta tensors, which have no
    autocast, pass.
    """
    if tensor.device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def autocast_type(name):
    """SpeechBrain's ``fp32``, ``bf16``, ``fp16`` → torch type; None for ``fp32``."""
    dtype = AMPConfig.from_name(name).dtype
    return None if dtype is torch.float32 else dtype
