"""Reading and loading weights: strictly, and never as code.

transformers, SpeechBrain's Pretrainer and the published code go on with a warning
where keys do not match. Here every missing, unexpected or wrong-shaped tensor is an
error, unless its name was given beforehand.
"""

import json
import os
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import init
from torch.overrides import TorchFunctionMode

from speechbrain_ext.utils.errors import InputError

HUB_ID = re.compile(r"(?a:\w[\w.-]*/\w(?:[\w.-]*\w)?)")
FILE_SUFFIXES = (
    *(".bin", ".ckpt", ".json", ".model", ".nemo", ".npz", ".onnx", ".pt", ".pth"),
    *(".safetensors", ".tar", ".tgz", ".gz", ".yaml", ".yml", ".zip"),
)
SHOWN = 4
EXPECTED = "a folder with config.json and weights, a .json file"


def read_weights(path, file=None):
    """Read a flat dictionary of tensors from .safetensors or a torch file, on the CPU.

    ``file``: an open torch file inside of another; ``path`` is then its name alone.

    Torch files are read with ``weights_only``: a pickle that holds code is refused.
    InputError: a missing, truncated or hostile file, or something else than tensors
    inside.
    """
    path = Path(path)
    if file is None and not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        if file is None and path.suffix == ".safetensors":
            values = load_file(path)
        else:
            values = torch.load(file or path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError) as error:
        # torch's second sentence advises to load without this guard
        reason = str(error).split("\n")[0].split(". ")[0]
        raise InputError(f"{path}: refused as weights ({reason})") from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path}: cannot be read as weights ({reason})") from error
    if not isinstance(values, dict) or not all(
        isinstance(value, torch.Tensor) for value in values.values()
    ):
        raise InputError(f"{path}: expected a flat dictionary of tensors")
    return values


def save_weights(tensors, path):
    """Write a flat dictionary of tensors as safetensors, for :func:`read_weights`.

    InputError: it cannot be written, for a full disk among others.
    """
    path = Path(path)
    tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # safetensors' own is for the owner's eyes only
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise InputError(f"{path}: not written ({error})") from error
    path.chmod(mode)


def load_strictly(module, weights, source, ignore=(), allow_missing=(), assign=False):
    """Load ``weights`` into ``module``; any other mismatch is an error.

    Arguments
    ---------
    module : torch.nn.Module
    weights : dict of str to torch.Tensor
    source : str
        Where they come from, for the message.
    ignore : sequence of str
        Names (or their beginnings) of tensors in ``weights`` that are left aside.
    allow_missing : sequence of str
        Names (or their beginnings) of tensors in ``module`` that may stay as they are.
    assign : bool
        Take the given tensors themselves, in their dtype, in place of a copy into the
        module's own: the module may then be built without memory, on ``meta``.

    Raises
    ------
    InputError
        With the first names and shapes of every kind of mismatch. ``module`` is then
        as it was.
    """
    own = module.state_dict()
    # str.startswith takes a tuple, and an empty one matches nothing
    given = {k: v for k, v in weights.items() if not k.startswith(tuple(ignore))}
    missing = [k for k in own if k not in given]
    missing = [k for k in missing if not k.startswith(tuple(allow_missing))]
    unexpected = [k for k in given if k not in own]
    shapes = [
        f"{k} {tuple(given[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in given and given[k].shape != own[k].shape
    ]
    types = [
        f"{k} {given[k].dtype} instead of {own[k].dtype}"
        for k in own
        if k in given and own[k].is_floating_point() > given[k].is_floating_point()
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}"
        + (", …" if len(names) > SHOWN else "")
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", shapes),
            ("of the wrong type", types),
        )
        if names
    ]
    if problems:
        raise InputError(f"{source}: weights do not fit: {'; '.join(problems)}")
    bad = [k for k, v in given.items() if v.is_floating_point() and not _finite(v)]
    if bad:
        raise InputError(f"{source}: NaN or infinite weights in {bad[0]}")
    module.load_state_dict(given, strict=False, assign=assign)


class NoRandomValues(TorchFunctionMode):
    """New parameters are left as the memory was: every one of them is loaded.

    Drawing those of 580 M parameters takes longer than reading them.
    """

    _DRAWING = {
        *(torch.Tensor.uniform_, torch.Tensor.normal_),
        *(init.uniform_, init.normal_, init.trunc_normal_),
        *(init.xavier_uniform_, init.xavier_normal_),
        *(init.kaiming_uniform_, init.kaiming_normal_),
    }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self._DRAWING:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _finite(tensor):
    # one reduction without a mask of the tensor's size: NaN and inf survive a sum of
    # finite numbers unless it overflows, and then the exact test decides
    return bool(torch.isfinite(tensor.float().sum())) or bool(
        torch.isfinite(tensor).all()
    )


def read_source(source, config_class, savedir=None, prefix=""):
    """What an encoder of transformers starts from → (configuration, weights or None).

    Arguments
    ---------
    source : str, Path, dict or config_class
        A hub id, a local folder with ``config.json`` and weights (no network call), or
        a configuration alone, as an object, a dict or its JSON file.
    config_class : type
        A ``transformers.PretrainedConfig``.
    savedir : str
        Where downloads are kept; None takes the hub's own cache.
    prefix : str
        Taken off the names of the weights where a file has it, as ``wav2vec2_bert.``:
        a fine-tuned model saves its backbone under one.

    Raises
    ------
    InputError
        Where the source is none of these, or cannot be read or reached.
    """
    if isinstance(source, config_class):
        return source, None
    if isinstance(source, dict):
        return _config_of(source, config_class, "encoder configuration"), None
    if str(source).endswith(".json"):
        return read_configuration(source, config_class), None
    folder, weights = _read_pretrained_folder(source, savedir, prefix)
    return read_configuration(folder / "config.json", config_class), weights


def read_configuration(path, config_class):
    """Read a configuration of transformers from its JSON file."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, config_class, error) from error
    return _config_of(values, config_class, path)


def _config_of(values, config_class, name):
    try:
        if not values:  # all defaults would be another model, whose weights do not fit
            raise ValueError("it is empty")
        kind = values.get("model_type", config_class.model_type)
        if kind == config_class.model_type:
            return config_class.from_dict(values)
    except Exception as error:  # transformers checks types with errors of its own
        raise _unreadable(name, config_class, error) from error
    raise InputError(
        f"{name}: model_type {kind!r}, expected {config_class.model_type!r}"
    )


def _unreadable(name, config_class, error):
    kind = config_class.__name__.removesuffix("Config")
    reason = " ".join(str(error).split())
    return InputError(f"{name}: not a readable {kind} configuration ({reason})")


def pretrained_folder(source, savedir=None):
    """A transformers folder, or a hub id, which is fetched → Path of the folder.

    InputError: neither; no ``config.json`` in it.
    """
    # torch files only where there are no others: a repository may have both, and a
    # large one the same in another precision, as model.fp32-00001-of-00002.safetensors
    for name, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        weights = [f"{name}.{suffix}*", f"{name}-*.{suffix}"]
        patterns = ["config.json", "preprocessor_config.json", *weights]
        folder = find_or_fetch(source, patterns, EXPECTED, cache_dir=savedir)
        if any(path for pattern in weights for path in folder.glob(pattern)):
            break
    if not (folder / "config.json").is_file():
        raise InputError(f"{source}: no config.json in this folder")
    return folder


def _read_pretrained_folder(source, savedir=None, prefix=""):
    """A transformers folder or hub id → (folder, weights without the prefix)."""
    folder = pretrained_folder(source, savedir)
    weights = {}
    for file in weight_files(folder):
        weights.update(read_weights(file))
    if prefix and any(name.startswith(prefix) for name in weights):
        weights = {
            name[len(prefix) :]: value
            for name, value in weights.items()
            if name.startswith(prefix)
        }
    return folder, weights


def weight_files(folder):
    """Files of a folder's weights: safetensors, else of torch; one, or its parts."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            try:
                parts = set(json.loads(index.read_text())["weight_map"].values())
            except (ValueError, KeyError, AttributeError) as error:
                raise InputError(f"{index}: not an index of weights") from error
            return [folder / part for part in sorted(parts)]
    raise InputError(
        f"{folder}: no model.safetensors or pytorch_model.bin; for random weights give "
        "the configuration file itself"
    )


def is_hub_id(source):
    """Whether a name may be asked of the hub; all others are paths on this machine.

    An id is a text ``owner/name``: one slash, no backslash, letters, digits, ``_``,
    ``-`` and ``.`` in it, beginning with none of ``.``, ``~`` and ``/``. It is a path
    all the same where something of that name is here, where ``owner`` is a folder
    here, where it ends as files of models do (``.ckpt``, ``.json``, …), and where it
    is a Path object.
    """
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        return False
    here = os.path.lexists(source) or os.path.isdir(source.partition("/")[0])
    return not here and not source.lower().endswith(FILE_SUFFIXES)


def find_or_fetch(source, patterns, what, **options):
    """A folder on this machine, or an id on the hub, which is fetched first → Path.

    Arguments
    ---------
    source : str or Path
        Only what :func:`is_hub_id` says is asked of the hub. Without a network its
        cache is looked into, at once.
    patterns : list of str
        Files wanted from the hub.
    what : str
        What the folder should be, for the message: ``"a model's folder"``.
    **options
        Of ``huggingface_hub.snapshot_download``.

    Raises
    ------
    InputError
        Neither a folder nor an id; the hub, or its cache, does not give it.
    """
    folder = os.path.expanduser(source)  # pathlib's raises for a user who is not there
    if os.path.isdir(folder):
        return Path(folder)
    if not is_hub_id(source):
        there = "not a folder" if os.path.exists(folder) else "no such folder"
        raise InputError(
            f"{source}: {there}, and not a hub id, expected {what} or owner/name"
        )
    from huggingface_hub import HfApi, snapshot_download

    unreachable, revision = None, options.get("revision") or ""
    if re.fullmatch("[0-9a-f]{40}", revision):
        # of a commit snapshot_download asks six times, in 23 s, before it looks here
        try:
            HfApi().model_info(source, revision=revision, token=options.get("token"))
        except Exception as error:
            unreachable, options["local_files_only"] = error, True
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, **options))
    except Exception as error:  # its HTTP client has errors of its own
        error = unreachable or error
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{source}: no such folder, and the hub gave nothing "
            f"({type(error).__name__}: {reason}); expected {what}, by a path that "
            "exists from here, or owner/name on the hub, with a network"
        ) from error
