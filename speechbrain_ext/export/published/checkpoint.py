"""A published checkpoint → its tensors by name. It is never run as code.

A checkpoint is a file of torch, or a folder, here or on the hub: of transformers with
``config.json``, or of SpeechBrain with ``embedding_model.ckpt``. Nested dictionaries
become dotted names; wrappers of training (``module`` of DistributedDataParallel,
``_orig_mod`` of torch.compile) are taken off. Files of torch are mapped into memory,
not copied.
"""

import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import read_json
from speechbrain_ext.utils.weights import (
    find_or_fetch,
    is_hub_id,
    pretrained_folder,
    read_weights,
    weight_files,
)

EXPECTED = "expected a published checkpoint, as model_lmft_0.14.pth"
# SpeechBrain's models of speakers are folders with this file
ECAPA_FILE = "embedding_model.ckpt"
# Why a classifier of training is left out
OF_TRAINING = "classifier of training speakers, whose names the file does not hold"
# What most READMEs publish
ON_VOX1 = "EER on Vox1-O / E / H in %: "
_CODE = re.compile(r"(?:GLOBAL|global|function|class) ([\w.]+\.[\w.]+)")
_WRAPPERS = ("module", "_orig_mod")


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    path : Path
        The file or the folder.
    tensors : dict of str to torch.Tensor
        By dotted name, without wrappers, as they were stored.
    values : dict of str to (int, float, str or bool)
        All else, by dotted name.
    config : dict
        The configuration that stands beside the tensors: the file's own ``config`` or
        ``model_config``, or the folder's ``config.json``; empty where there is none.
    files : tuple of Path
        Those that hold the tensors.
    """

    path: Path
    tensors: dict
    values: dict
    config: dict = {}
    files: tuple = ()


class Converted(NamedTuple):
    """What a format makes of a checkpoint.

    Attributes
    ----------
    model : SpeakerEncoder or Encoder
        In eval mode; read for its weights, sizes and arguments alone. An encoder, where
        the file holds no head.
    epoch : int or None
        Where its training was.
    left_out : dict of str to list
        Reason → names of the tensors that are of no use for an embedding, if any.
    details : dict
        For ``converted_from`` in training.json.
    remarks : list of str
        For the log.
    """

    model: torch.nn.Module
    epoch: int | None
    left_out: dict
    details: dict
    remarks: list


def read_checkpoint(path):
    """Read a file that ``torch.save`` wrote, or a folder with one or of transformers.

    Arguments
    ---------
    path : str or Path
        A file, a folder with ``config.json`` and weights or with SpeechBrain's
        ``embedding_model.ckpt``, or its id on the hub.

    Returns
    -------
    Checkpoint

    Raises
    ------
    InputError
        A file that is missing, damaged, of another kind or with code in it.
    """
    if Path(path).is_dir() or is_hub_id(path):
        return _read_folder(path)
    path = Path(path)
    content = _load(path)
    tensors, values = {}, {}

    def visit(value, parts):
        name = ".".join(part for part in parts if part not in _WRAPPERS)
        if isinstance(value, torch.Tensor):
            if name in tensors:
                raise InputError(f"{path}: two tensors called {name}")
            tensors[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(item, [*parts, *str(key).split(".")])
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                visit(item, [*parts, str(number)])
        elif isinstance(value, int | float | str):
            values[name] = value

    try:
        visit(content, [])
    except RecursionError as error:
        raise InputError(f"{path}: a dictionary inside itself, {EXPECTED}") from error
    config = content.get("config", content.get("model_config"))
    config = config if isinstance(config, dict) else {}
    return Checkpoint(path, tensors, values, config, (path,))


def _read_folder(source):
    files = [ECAPA_FILE, "hyperparams.yaml", "config.json"]
    folder = find_or_fetch(source, files, EXPECTED)
    if (folder / ECAPA_FILE).is_file():
        return read_checkpoint(folder / ECAPA_FILE)
    folder = pretrained_folder(source)
    config = read_json(folder / "config.json", {}, what="a configuration")
    files, tensors = weight_files(folder), {}
    for file in files:
        tensors.update(read_weights(file))
    return Checkpoint(folder, tensors, {}, config, tuple(files))


def _load(path):
    if not path.is_file():
        raise InputError(f"{path}: no such file, {EXPECTED}")
    with open(path, "rb") as file:
        beginning = file.read(64)
    if path.suffix == ".safetensors" or beginning[8:9] == b"{":
        raise InputError(f"{path}: a safetensors file, {EXPECTED} (written by torch)")
    try:
        # torch maps its zip files only; files of torch before 1.6 are read
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # of a damaged file: pickle raises errors of many kinds
        if code := _CODE.search(str(error)):
            raise InputError(
                f"{path}: refused, loading it would run {code[1]}; {EXPECTED}, with "
                "tensors and plain numbers alone"
            ) from error
        # its first bytes tell a web page or a Git LFS pointer from a truncated file;
        # torch's own advice, after its first sentence, is to load without this guard
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise InputError(
            f"{path}: truncated or no torch file, begins with {beginning!r} "
            f"({reason or type(error).__name__}), {EXPECTED}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds a {type(content).__name__}, {EXPECTED}: a dictionary"
        )
    return content


def as_weights(tensors, path):
    """Stored tensors → dense float32 ones, each with memory of its own.

    Counters of batches stay integers. What is float32 already stays mapped to the file.

    Raises
    ------
    InputError
        A tensor that is sparse, quantised, without values or of whole numbers.
    """
    weights, storages = {}, set()
    for name, tensor in tensors.items():
        dense = tensor.layout == torch.strided and not tensor.is_quantized
        if tensor.is_meta or not dense or _repeated(tensor):
            raise InputError(
                f"{path}: {name} is {tensor.dtype}, {tensor.layout}, on "
                f"{tensor.device}; expected dense numbers, all of them stored"
            )
        tensor = tensor.detach()
        if not name.endswith("num_batches_tracked"):
            if not tensor.is_floating_point():
                raise InputError(
                    f"{path}: {name} is {tensor.dtype}, expected floating point numbers"
                )
            tensor = tensor.float().contiguous()
        # safetensors takes no two tensors that share memory
        storage = tensor.untyped_storage().data_ptr()
        weights[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return weights


def size_of(tensors, name, path, axis=0, place=""):
    """Length of one axis of a tensor.

    ``place`` is what stands before its name in the file. InputError: there is no such
    tensor, or nothing in it.
    """
    shape = tensors[name].shape if name in tensors else ()
    if len(shape) <= axis or not shape[axis]:
        raise InputError(f"{path}: weights do not fit: missing or empty {place}{name}")
    return shape[axis]


def named_so(path, pattern, *files):
    """Whether the name of a file or its folder fits, or one of ``files`` is beside it.

    ``pattern`` is a compiled one, for small letters.
    """
    path = Path(os.path.abspath(path))  # where links of the hub's cache lead: no names
    says = any(pattern.search(name.lower()) for name in (path.name, path.parent.name))
    return says or any((path.parent / file).is_file() for file in files)


def details_of(model, figures, what=""):
    """Features of a model, and what is published of its like: for training.json.

    ``figures``: number of parameters → text, behind ``what`` it says.
    """
    details = {"front_end": model.encoder.arguments["front_end"]}
    size = count_parameters(model).total
    if size in figures:
        details["published_figures"] = what + figures[size]
    return details


class UnderNames:
    """A module whose tensors go by other names: for messages of ``load_strictly``.

    Arguments
    ---------
    module : torch.nn.Module
    name_in_file : callable
        Name of a tensor in the module → that in the file.
    """

    def __init__(self, module, name_in_file):
        self.module = module
        self.own = {name_in_file(name): name for name in module.state_dict()}

    def state_dict(self):
        """Tensors by their names in the file."""
        state = self.module.state_dict()
        return {name: state[own] for name, own in self.own.items()}

    def load_state_dict(self, tensors, **options):
        """Load by names in the file."""
        own = {self.own[name]: tensor for name, tensor in tensors.items()}
        self.module.load_state_dict(own, **options)


def _repeated(tensor):
    """Whether it stands for more numbers than it stores, which may be any number."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
