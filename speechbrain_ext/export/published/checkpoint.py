"""A published checkpoint file → its tensors, by the names of the published model.

    {"modules": {"spk_model": state_dict, "classifier": {…}}, "epoch_idx": 7}

is what arXiv 2510.04213's training code saves. Wrappers around the model's own names
(``modules.spk_model``, ``module`` of DistributedDataParallel, ``_orig_mod`` of
torch.compile) are taken off, whichever there are. What is of no use for an embedding is
left out under a stated reason, and any other tensor is an error: nothing is lost
silently. Files are mapped into memory, not copied, and never run as code.
"""

import itertools
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import SHOWN

EXPECTED = "expected a published checkpoint, as model_lmft_0.14.pth"
CODE = re.compile(r"(?:GLOBAL|global|function|class) ([\w.]+\.[\w.]+)")
WRAPPERS = ("module", "_orig_mod")
FRONT = ("front", "encoder")

_CLASSIFIER = "classifier of training speakers, whose names the file does not hold"
_OPTIMISER = "state of the optimiser"
# Beginnings of a name's first part inside the model, of any part beside it.
LEFT_OUT = {
    "classifier": _CLASSIFIER,
    "projection": _CLASSIFIER,
    "lang_head": "classifier of languages, of training",
    "optim": _OPTIMISER,
    "sched": _OPTIMISER,
    "lr_sched": _OPTIMISER,
}
MASK = "masked_spec_embed"
# What other files begin with that are saved or downloaded under a checkpoint's name.
FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself (git lfs)"),
    (b"<", "a web page: download the file itself (on the hub: /resolve/, not /blob/)"),
    (b"{", "JSON text"),
)


class Released(NamedTuple):
    """The tensors of a checkpoint.

    ``weights``: name in the published model → float32 tensor; ``left_out``: reason →
    names in the file; ``epoch``: where training was, or None.
    """

    weights: dict
    left_out: dict
    epoch: int | None


def read_released(path):
    """Read a published checkpoint.

    Arguments
    ---------
    path : str or Path

    Returns
    -------
    Released

    Raises
    ------
    InputError
        Where it is no such file: missing, a folder, truncated, a pickle with code, an
        HTML page, an LFS pointer, another model's weights, more than one model.
    """
    path = Path(path)
    content = _load(path)
    tensors = _flat(content, path)
    prefix = _model_prefix(tensors, path)
    weights, left_out, storages = {}, {}, set()
    for name, tensor in tensors.items():
        own = name[len(prefix) :] if name.startswith(prefix) else None
        if reason := _reason_to_leave_out(name, own):
            left_out.setdefault(reason, []).append(name)
        elif own is None:
            raise InputError(
                f"{path}: tensor {name} is no part of the model {prefix}*, and nothing "
                "that is known to be left out"
            )
        else:
            weights[own] = _plain(tensor, name, path, storages)
    epoch = content.get("epoch_idx")
    return Released(weights, left_out, epoch if isinstance(epoch, int) else None)


def _load(path):
    if path.is_dir():
        raise InputError(f"{path}: a folder, {EXPECTED}")
    if not path.is_file():
        raise InputError(f"{path}: no such file, {EXPECTED}")
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise InputError(f"{path}: an empty file, {EXPECTED}")
    for beginning, what in FOREIGN:
        if head.lstrip().startswith(beginning):
            raise InputError(f"{path}: {what}; {EXPECTED}")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        raise InputError(f"{path}: a safetensors file, {EXPECTED} (written by torch)")
    try:
        # torch maps its zip files only; files of torch before 1.6 are read
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # of a damaged file: pickle raises errors of many kinds
        if asked := CODE.search(str(error)):
            raise InputError(
                f"{path}: refused, loading it would run {asked[1]}; {EXPECTED}, with "
                "tensors and plain numbers alone"
            ) from error
        # torch's own advice, after its first sentence, is to load without this guard
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise InputError(
            f"{path}: truncated or no torch file ({reason or type(error).__name__}), "
            f"{EXPECTED}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds a {type(content).__name__}, {EXPECTED}: a dictionary"
        )
    return content


def _flat(content, path):
    """Nested dictionaries and lists → dotted name without wrappers → tensor."""
    tensors = {}

    def visit(value, parts):
        if isinstance(value, torch.Tensor):
            name = ".".join(part for part in parts if part not in WRAPPERS)
            if name in tensors:
                raise InputError(f"{path}: two tensors called {name}")
            tensors[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(item, [*parts, *str(key).split(".")])
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                visit(item, [*parts, str(number)])

    try:
        visit(content, [])
    except RecursionError as error:
        raise InputError(f"{path}: a dictionary inside itself, {EXPECTED}") from error
    return tensors


def _model_prefix(tensors, path):
    """What stands before ``front.encoder`` in the names of the one model."""
    prefixes = set()
    for name in tensors:
        parts = name.split(".")
        pairs = list(itertools.pairwise(parts))
        if FRONT in pairs:
            prefixes.add(".".join([*parts[: pairs.index(FRONT)], ""]).lstrip("."))
    if len(prefixes) == 1:
        return prefixes.pop()
    if prefixes:
        raise InputError(
            f"{path}: {len(prefixes)} models, {', '.join(sorted(prefixes))}; expected 1"
        )
    if any("student_front" in name for name in tensors):
        raise InputError(
            f"{path}: a checkpoint of distillation (student_front.*), without a head; "
            "expected one of speaker training"
        )
    raise InputError(
        f"{path}: no tensors front.encoder.* among {len(tensors)}: "
        f"{', '.join(list(tensors)[:SHOWN]) or 'none'}; {EXPECTED}"
    )


def _reason_to_leave_out(name, own):
    """Why a tensor is of no use, or None; ``own``: its name inside the model."""
    parts = name.split(".") if own is None else own.split(".")[:1]
    for part in parts:
        for beginning, reason in LEFT_OUT.items():
            if part.startswith(beginning):
                return reason
    if name.rsplit(".", 1)[-1] == MASK:
        return "mask embedding of pre-training"
    return None


def _plain(tensor, name, path, storages):
    """A dense float32 tensor whose memory is its own; counters stay integers."""
    if not name.endswith("num_batches_tracked"):
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise InputError(
                f"{path}: {name} is {tensor.dtype}, {tensor.layout}; expected dense "
                "floating point numbers"
            )
        if tensor.is_meta:
            raise InputError(f"{path}: {name} was saved without its values")
        tensor = tensor.float().contiguous()
    tensor = tensor.detach()
    # safetensors takes no two tensors that share memory
    storage = tensor.untyped_storage().data_ptr()
    if storage in storages:
        return tensor.clone()
    storages.add(storage)
    return tensor
