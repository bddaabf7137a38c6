"""The words of a command line: SpeechBrain's run options, and overrides of a YAML.

SpeechBrain joins the overrides to one YAML text, which cuts a value at its second
``=`` or at `` #``, and takes ``2026-11-21`` for a date. Here a value is what the key's
own value in the YAML file says it is: a text stays as it was typed.

A recipe's YAML file and command line, checked.

Nobody else tells a user of a key that nothing reads, of an override that is no key, or
of a placeholder that was not filled, before a model is built.
"""

import contextlib
import difflib
import inspect
import logging
import re
from collections.abc import Mapping, MutableMapping
from io import StringIO
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML, RoundTripRepresenter
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from speechbrain.core import RunOptions
from speechbrain.utils.distributed import get_local_rank
from speechbrain.utils.run_opts import HELP_TEXTS

from speechbrain_ext.utils.errors import InputError, describe_os_error

# What the command line may set of SpeechBrain's run options.
RUN_OPTIONS = frozenset(HELP_TEXTS) | {"jit_module_keys", "compile_module_keys"}
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
CONSTANTS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL", "None"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
YAML_BEGINS = ("[", "{", "!", '"', "'")


class Whole:
    """A mapping in the place of a null or a text, where HyperPyYAML only merges."""

    def __init__(self, mapping):
        self.mapping = mapping


RoundTripRepresenter.add_representer(
    Whole, lambda dumper, whole: dumper.represent_data(whole.mapping)
)


def split_words(words):
    """Separate run options from overrides.

    Arguments
    ---------
    words : list of str
        ``--key=value``, ``--key value``, or ``--flag`` for a run option.

    Returns
    -------
    options : list of str
        Run options, as argparse takes them.
    overrides : dict of str to str
        All others as typed; the last one counts where a key comes twice.

    Raises
    ------
    InputError
        For a word that is neither ``--key=value`` nor follows a ``--key``.
    """
    options, overrides = [], {}
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise InputError(f"{word!r} on the command line, expected --key=value")
        key, equals, value = word[2:].partition("=")
        if not equals and words and not words[0].startswith("--"):
            value, equals = words.pop(0), "="
        if key in RUN_OPTIONS:
            options.append(f"--{key}={value}" if equals else f"--{key}")
        elif equals:
            overrides[key] = value
        else:
            raise InputError(f"--{key} on the command line has no value")
    return options, overrides


def parse_run_options(path, options):
    """Run options → RunOptions.

    Raises
    ------
    InputError
        For a value that SpeechBrain does not take.
    """
    try:
        with contextlib.redirect_stderr(StringIO()) as said:
            return RunOptions.from_command_line_args([str(path), *options])[1]
    except SystemExit as error:  # argparse: the last line says why
        reason = said.getvalue().strip().rsplit("error: ", 1)[-1]
        raise InputError(f"command line: {reason}") from error


def parse_overrides(path, tree, texts):
    """Overrides as typed → values, checked against the YAML file.

    Arguments
    ---------
    path : str or Path
        The YAML file, for messages.
    tree : mapping
        Its content.
    texts : dict of str to str
        Key → value as typed. ``a.b`` is key b inside of a.

    Returns
    -------
    dict
        Nested as the file is.

    Raises
    ------
    InputError
        An unknown key, malformed YAML, or a value of another kind than the file's.
    """
    values = {}
    for key, text in texts.items():
        *outer, last = key.split(".")
        inside, into = tree, values
        for name in outer:
            inside = inside.get(name)
            if not isinstance(inside, Mapping):
                break
            into = into.setdefault(name, {})
        if (
            not isinstance(inside, Mapping)
            or last not in inside
            or not isinstance(into, MutableMapping)
        ):
            hint = did_you_mean(key, dotted_names(tree))
            raise InputError(f"--{key}: no such key in {path}{hint}")
        into[last] = _value(key, text, inside[last])
    return values


def did_you_mean(word, known):
    """``; did you mean 'x'?``, or nothing."""
    known = list(known)
    near = [name for name in known if name.split(".")[-1] == word]
    near += difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def dotted_names(tree, prefix=""):
    """All keys of a nested mapping: ``a``, ``a.b``, …"""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted_names(value, f"{prefix}{key}.")


def why(error):
    """One line for an error of ruamel.yaml, with the line number."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())[:300]


def _value(key, text, own):
    """One value, of the kind of the file's ``own`` value."""
    given = f"--{key}={text}"
    stripped = text.strip()
    if stripped.startswith("!"):
        return _parse(given, stripped)
    if stripped.startswith(YAML_BEGINS):
        value = _parse(given, stripped)
    elif type(own) is str:
        value = stripped or None
    else:
        value = _scalar(stripped)
    expected = _expected_instead(value, own)
    if expected:
        raise InputError(f"{given}: expected {expected}, as in the YAML file")
    if isinstance(value, Mapping) and not isinstance(own, Mapping):
        return Whole(value)
    return value


def _parse(given, text):
    try:
        value = YAML().load(text)
    except YAMLError as error:
        raise InputError(f"{given}: not valid YAML: {why(error)}") from error
    for name in value if isinstance(value, Mapping) else ():
        if value[name] is None and ":" in str(name):
            spaced = str(name).replace(":", ": ", 1)
            raise InputError(f"{given}: expected {spaced!r}, a space after the colon")
    return value


def _scalar(text):
    if text in CONSTANTS:
        return CONSTANTS[text]
    if NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return text


def _expected_instead(value, own):
    """What the value should be, in words, where it is something else."""
    if isinstance(own, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(own, int):
        return "" if _is_number(value, int) else "a whole number"
    if isinstance(own, float):
        return "" if _is_number(value) else "a number"
    if type(own) is str:
        return "" if isinstance(value, str) else "a text"
    if value is None:
        return ""
    if isinstance(own, list) and own and all(_is_number(x) for x in own):
        right = isinstance(value, list) and all(_is_number(x) for x in value)
        return "" if right else "a list of numbers such as [1.0, 2.0]"
    if isinstance(own, Mapping):
        return "" if isinstance(value, Mapping) else "{key: value} or null"
    return ""


def _is_number(value, kind=(int, float)):
    return isinstance(value, kind) and not isinstance(value, bool)


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
