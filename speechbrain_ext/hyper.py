"""A recipe's YAML file and command line, checked.

Nobody else tells a user of a key that nothing reads, of an override that is no key, or
of a placeholder that was not filled, before a model is built.
"""

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from speechbrain.utils.distributed import get_local_rank

from speechbrain_ext.errors import InputError, describe_os_error
from speechbrain_ext.overrides import (
    RUN_OPTIONS,
    did_you_mean,
    parse_overrides,
    parse_run_options,
    split_words,
    why,
)

logger = logging.getLogger(__name__)

PRECISIONS = ("precision", "eval_precision")
REFERENCE = re.compile(r"!(?:apply)?ref[^\n]*")
NAME_IN_REFERENCE = re.compile(r"<([A-Za-z_]\w*)")
# What building the objects of a YAML file from wrong values may raise.
WRONG_VALUES = (
    *(ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(ArithmeticError, AssertionError),
)


def load_run(argv, known_keys):
    """Command line → (YAML file, run options, overrides, hparams), all checked.

    Arguments
    ---------
    argv : list of str
        ``[hparams.yaml, --key=value or --key value, …]``.
    known_keys : collection of str
        Top-level keys that the script reads. Others must be referred to inside the
        YAML or be run options.

    Returns
    -------
    hparams_file : str
    run_opts : RunOptions
    overrides : dict
        For ``create_experiment_directory``.
    hparams : dict

    Raises
    ------
    InputError
        Missing file, malformed YAML, unknown override or one of another kind than the
        file's value, a key that nothing reads, a placeholder that was not filled, or a
        device that this machine has not.
    """
    if not argv or argv[0].startswith("-"):
        raise InputError("no hyperparameter file; expected: SCRIPT.py hparams/x.yaml")
    path, *words = argv
    if not Path(path).is_file():
        raise InputError(f"{path}: no such hyperparameter file")
    options, texts = split_words(words)
    options += list(_defaults_on_cpu(options))
    run_opts = parse_run_options(path, options)
    _check_device(run_opts)
    text, tree = _read_tree(path)
    overrides = parse_overrides(path, tree, texts)
    _check_names(path, text, tree, overrides, known_keys)
    hparams = load_yaml(path, overrides)
    _settle_options(run_opts, hparams)
    return path, run_opts, overrides, hparams


def load_yaml(path, overrides=None):
    """``load_hyperpyyaml`` whose complaints are one line.

    Raises
    ------
    InputError
        Naming the file, and the key or line at fault.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return load_hyperpyyaml(file, overrides)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {_why_os(error, path)}") from error
    except (YAMLError, *WRONG_VALUES) as error:
        raise InputError(f"{path}: {why(error)}") from error
    except ImportError as error:
        raise InputError(f"{path}: names something not installed ({error})") from error


def _why_os(error, path):
    """What the system says; of another file than ``path``, with that file's name."""
    if error.filename is not None and str(error.filename) != str(path):
        return describe_os_error(error)
    return error.strerror or str(error)


def call_with(function, section, hparams):
    """Call ``function`` with a section of the YAML file for its arguments.

    Arguments
    ---------
    function : callable
    section : str
        Key of the section in ``hparams``.
    hparams : dict

    Raises
    ------
    InputError
        Where the section is no mapping, or has other keys than the function takes.
    """
    values = hparams[section]
    try:
        inspect.signature(function).bind(**values)
    except TypeError as error:
        raise InputError(f"{section}: {values}: {error}") from error
    return function(**values)


def _defaults_on_cpu(options):
    """What a machine without a GPU needs: its device, and gloo.

    Raises
    ------
    InputError
        Where half precision was asked for: on a CPU it is over a hundred times slower.
    """
    given = {option.split("=")[0] for option in options}
    on_cpu = "--device=cpu" in options
    if "--device" not in given and not torch.cuda.is_available():
        on_cpu = True
        yield "--device=cpu"
    if on_cpu and "--distributed_backend" not in given:
        yield "--distributed_backend=gloo"
    half = [f"--{key}={kind}" for key in PRECISIONS for kind in ("bf16", "fp16")]
    half += ["--bfloat16_mix_prec", "--auto_mix_prec"]
    for option in set(half) & set(options) if on_cpu else ():
        raise InputError(f"{option} needs a GPU: on a CPU it is far slower than fp32")


def _check_device(run_opts):
    name, n_gpus = run_opts.device, torch.cuda.device_count()
    try:
        device = torch.device(name or "cpu")
    except RuntimeError as error:
        raise InputError(f"--device={name}: expected cpu, cuda or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise InputError(f"--device={name}: this machine has {n_gpus} GPU(s)")
    local_rank = get_local_rank()
    by_nccl = run_opts.distributed_backend == "nccl"
    if local_rank is not None and by_nccl and local_rank >= n_gpus:
        raise InputError(
            f"process {local_rank} of this machine has no GPU of its own: it has "
            f"{n_gpus}, expected at most as many processes (or --device=cpu)"
        )


def _read_tree(path):
    """The YAML file as text, and as a mapping with its tags."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = YAML().load(text)
    except DuplicateKeyError as error:
        raise InputError(f"{path}: {why(error)}: each key once") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {why(error)}") from error
    if not isinstance(tree, Mapping):
        raise InputError(f"{path}: not a list of `key: value`")
    return text, tree


def _check_names(path, text, tree, overrides, known_keys):
    """Every key is read by someone, and nothing is unfilled."""
    referred = {
        name
        for reference in REFERENCE.findall(text)
        for name in NAME_IN_REFERENCE.findall(reference)
    }
    known = set(known_keys) | RUN_OPTIONS
    for key, value in tree.items():
        done_for_its_effect = str(key).startswith("__")  # as __set_seed
        if not done_for_its_effect and key not in known and key not in referred:
            hint = did_you_mean(str(key), known)
            raise InputError(f"{path}: nothing reads the key {key!r}{hint}")
        tag = getattr(getattr(value, "tag", None), "value", None)
        if tag == "!PLACEHOLDER" and overrides.get(key) is None:
            raise InputError(f"{path}: {key} must be given: --{key}=…")


def _settle_options(run_opts, hparams):
    """Where file and command line differ, the command line wins."""
    for key in PRECISIONS:
        if key in run_opts.overridden_args:
            hparams[key] = run_opts[key]
        elif hparams.get(key, "fp32") != "fp32" and str(run_opts.device) == "cpu":
            logger.warning("%s: fp32 instead of %s on the CPU", key, hparams[key])
            hparams[key] = "fp32"
    every = {
        key: run_opts[key]
        if key in run_opts.overridden_args
        else hparams.get(key, run_opts[key])
        for key in ("ckpt_interval_steps", "ckpt_interval_minutes")
    }
    if all(value > 0 for value in every.values()):
        if "ckpt_interval_minutes" in run_opts.overridden_args:
            raise InputError(f"{every}: expected one of the two to be 0")
        hparams["ckpt_interval_minutes"] = 0
