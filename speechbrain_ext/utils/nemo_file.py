"""Models of NVIDIA NeMo: configuration and weights, without NeMo.

A ``.nemo`` file is a tar archive, plain or of gzip, of ``model_config.yaml``,
``model_weights.ckpt`` and what the tokenizer needs. Nothing is unpacked: the two
members are found by name, whatever else the archive holds, and read in memory; links
are not followed. Weights are read with ``weights_only``, YAML without constructors.
"""

import contextlib
import io
import json
import os
import re
import tarfile
import zlib
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import find_or_fetch, read_weights

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
CONFIG_BYTES = 2**24
# Weights hardly shrink in gzip: what claims to be far larger than its file is a bomb.
SMALL_BYTES, LARGEST_RATIO = 2**26, 8
EXPECTED = "a .nemo file, a folder with one, or a configuration (.yaml, .json)"
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def read_nemo(source, savedir=None):
    """What a model starts from → (configuration, weights or None).

    Arguments
    ---------
    source : str, Path or dict
        A ``.nemo`` file; a folder with one such file, or with its two members unpacked;
        a hub id of a repository with one such file; a configuration alone, as a dict or
        its YAML or JSON file.
    savedir : str
        Where downloads are kept; None takes the hub's own cache.

    Returns
    -------
    dict
        The sections of the model, references such as ``${model.sample_rate}`` in them
        resolved.
    dict or None
        All tensors, by name.

    Raises
    ------
    InputError
        Where the source is none of these, or damaged, or would run code.
    """
    if isinstance(source, dict):
        return _sections(source, "encoder configuration"), None
    path = Path(os.path.expanduser(source))
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return _read_config(path), None
    if path.suffix.lower() == ".nemo" and not path.is_dir():
        return _read_archive(path)
    folder = find_or_fetch(source, ["*.nemo"], EXPECTED, cache_dir=savedir)
    if (folder / CONFIG).is_file():
        return _read_config(folder / CONFIG), read_weights(folder / WEIGHTS)
    archives = sorted(folder.glob("*.nemo"))
    if len(archives) != 1:
        names = ", ".join(file.name for file in archives) or "none"
        raise InputError(f"{source}: .nemo files: {names}; expected one, or {CONFIG}")
    return _read_archive(archives[0])


def _read_config(path):
    try:
        if path.stat().st_size > CONFIG_BYTES:
            raise ValueError(f"it has more than {CONFIG_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not a readable configuration ({reason})") from error
    return _sections(_parsed(text, path), path)


def _parsed(text, name):
    try:
        if str(name).endswith(".json"):
            return json.loads(text)
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError, RecursionError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: not a readable configuration ({reason})") from error


def _read_archive(path):
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected {EXPECTED}")
    length = path.stat().st_size
    limit = max(SMALL_BYTES, LARGEST_RATIO * length)
    try:
        with contextlib.ExitStack() as stack:
            archive, packed = _opened(path, stack)
            members = _members(archive, path)
            text = _member(archive, members[CONFIG], path, CONFIG_BYTES).read().decode()
            file = _member(archive, members[WEIGHTS], path, limit)
            end = members[WEIGHTS].offset_data + members[WEIGHTS].size
            if not packed and end > length:
                raise EOFError(f"it ends inside {WEIGHTS}")
            # torch reads a file from its end: of a packed one that would begin anew
            weights = read_weights(
                f"{path}: {WEIGHTS}", io.BytesIO(file.read()) if packed else file
            )
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable .nemo file ({reason})") from error
    return _sections(_parsed(text, f"{path}: {CONFIG}"), f"{path}: {CONFIG}"), weights


def _opened(path, stack):
    """The archive, and whether it is packed."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    archive = tarfile.open(path, "r:gz" if packed else "r:")  # noqa: SIM115
    return stack.enter_context(archive), packed


def _members(archive, path):
    """The two members, by name."""
    found = {}
    for member in archive:
        name = member.name.removeprefix("./")
        if name in (CONFIG, WEIGHTS) and member.isreg() and not member.issparse():
            found.setdefault(name, member)
        if len(found) == 2:
            return found
    missing = " and ".join(name for name in (CONFIG, WEIGHTS) if name not in found)
    raise InputError(f"{path}: no {missing} in this archive, expected a .nemo file")


def _member(archive, member, path, limit):
    """An open member; InputError: more bytes than ``limit``."""
    if member.size > limit:
        raise InputError(
            f"{path}: {member.name} of {member.size:,} bytes, expected {limit:,} or "
            "fewer"
        )
    return archive.extractfile(member)


def _sections(values, name):
    """The model's sections, references in ``encoder`` and ``preprocessor`` resolved.

    The file of a recipe has them in a section ``model``; an encoder's section alone
    will do.
    """
    if isinstance(values, dict) and isinstance(values.get("model"), dict):
        values = values["model"]
    if isinstance(values, dict) and "d_model" in values:
        values = {"encoder": values}
    if not isinstance(values, dict) or not isinstance(values.get("encoder"), dict):
        raise InputError(f"{name}: no section encoder, expected a NeMo configuration")
    sections = dict(values)
    for section in ("encoder", "preprocessor"):
        own = values.get(section)
        if own is not None and not isinstance(own, dict):
            raise InputError(f"{name}: {section} {own!r}, expected a section")
        own = own or {}
        sections[section] = {k: _resolved(v, values, name) for k, v in own.items()}
    return sections


def _resolved(value, values, name, depth=0):
    """The value that ``${model.section.key}`` means, or ``value`` itself."""
    found = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return value
    target = values
    for key in found[1].removeprefix("model.").split("."):
        target = target.get(key) if isinstance(target, dict) else None
    if target is None or depth > 8:
        raise InputError(f"{name}: {value} refers to nothing here")
    return _resolved(target, values, name, depth + 1)
