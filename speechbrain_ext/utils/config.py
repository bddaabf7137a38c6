"""YAML files and command lines of the recipes' scripts.

    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], train)
    train(**hparams)

The keyword parameters of ``train`` are the top-level keys that the script reads: one
without a default must be in the file, the others need not. A key that nothing reads is
an error. What ``--key=value`` may set:

    --lr=0.1              a top-level key of the file, or a parameter of the function
    --lr_schedule.peak=1  a key inside of another; of an object (``!new:``, ``!name:``,
                          ``!apply:``) also a parameter that the file does not set
    --batch_size=8        the parameter of the one object in the file that takes it

A value is what the file's own value (or the parameter's default) says it is: a text
stays as it was typed. SpeechBrain joins the overrides to one YAML text instead, which
cuts a value at its second ``=`` or at `` #``, and takes ``2026-11-21`` for a date.
"""

import contextlib
import difflib
import functools
import inspect
import logging
import pydoc
import re
from collections.abc import Mapping
from pathlib import Path

from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML, RoundTripRepresenter
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from speechbrain_ext.utils.errors import InputError, describe_os_error
from speechbrain_ext.utils.run_options import (
    RUN_OPTIONS,
    read_run_options,
    settle_run_options,
)

logger = logging.getLogger(__name__)

REFERENCE = re.compile(r"!(?:apply)?ref[^\n]*")
NAME_IN_REFERENCE = re.compile(r"<([A-Za-z_]\w*)")
OBJECT = re.compile(r"!(?:new|name|apply):(.+)")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
CONSTANTS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL", "None"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
YAML_BEGINS = ("[", "{", "!", '"', "'")
# What building the objects of a YAML file from wrong values may raise.
WRONG_VALUES = (
    *(ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(ArithmeticError, AssertionError),
)


class _Whole:
    """A mapping that replaces the file's value, where HyperPyYAML only merges."""

    def __init__(self, mapping):
        self.mapping = mapping


RoundTripRepresenter.add_representer(
    _Whole, lambda dumper, whole: dumper.represent_data(whole.mapping)
)


def load_run(argv, function):
    """Command line → (YAML file, run options, overrides, hparams), all checked.

    Arguments
    ---------
    argv : list of str
        ``[hparams.yaml, --key=value or --key value, …]``.
    function : callable
        What is to be called with ``hparams``: see the module's docstring. Parameters
        that are run options of SpeechBrain (``precision``) set their defaults. One
        that takes ``**options`` gets the file's other run options as well.

    Returns
    -------
    hparams_file : str
    run_opts : RunOptions
    overrides : dict
        For ``create_experiment_directory``.
    hparams : dict
        The function's arguments: what the file or the command line says.

    Raises
    ------
    InputError
        Missing file, malformed YAML, a key that is missing or that nothing reads, an
        unknown override or one of another kind than the file's value, a placeholder
        that was not filled, a device that this machine has not.
    """
    if not argv or argv[0].startswith("-"):
        raise InputError("no hyperparameter file; expected: SCRIPT.py hparams/x.yaml")
    path, *words = argv
    if not Path(path).is_file():
        raise InputError(f"{path}: no such hyperparameter file")
    options, texts = split_words(words)
    run_opts = read_run_options(path, options)
    text, tree = read_tree(path)
    parameters = keywords_of(function)
    overrides = parse_overrides(path, tree, texts, parameters)
    _check_keys(path, text, tree, overrides, parameters)
    hparams = load_yaml(path, overrides, new_keys=True)
    for name, value in hparams.items():
        check_arguments(f"{path}: {name}", value)
    settle_run_options(run_opts, hparams, parameters)
    wanted = set(parameters)
    if inspect.getfullargspec(function).varkw:
        wanted |= RUN_OPTIONS
    return path, run_opts, overrides, {k: v for k, v in hparams.items() if k in wanted}


def load_yaml(path, overrides=None, new_keys=False):
    """``load_hyperpyyaml`` whose complaints are one line.

    With ``new_keys``, overrides may have keys that the file has not.

    Raises
    ------
    InputError
        Naming the file, and the key or line at fault.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return load_hyperpyyaml(file, overrides, not new_keys)
    except InputError:
        raise
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(path):
            raise InputError(f"{path}: {describe_os_error(error)}") from error
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (YAMLError, *WRONG_VALUES) as error:
        raise InputError(f"{path}: {_why(error)}") from error
    except ImportError as error:
        raise InputError(f"{path}: names something not installed ({error})") from error


# ---- the command line ----------------------------------------------------------------


def split_words(words):
    """``--key=value``, ``--key value``, ``--flag`` → (run options, overrides by key).

    Of two overrides of a key the last one counts.

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


def parse_overrides(path, tree, texts, parameters=()):
    """Overrides as typed → values, nested as the file is.

    Arguments
    ---------
    path : str or Path
        The YAML file, for messages.
    tree : mapping
        Its content, with tags.
    texts : dict of str to str
        Key → value as typed. ``a.b`` is key b inside of a.
    parameters : mapping of str to inspect.Parameter
        Of the script's function.

    Raises
    ------
    InputError
        An unknown key, one that several objects take, malformed YAML, or a value of
        another kind than the file's.
    """
    values = {}
    for key, text in texts.items():
        *outer, last = _place(path, tree, key, parameters)
        inside, into = tree, values
        for name in outer:
            inside, into = inside[name], into.setdefault(name, {})
            if not isinstance(into, Mapping):  # --section=null --section.depth=1
                raise _unknown(path, tree, key, parameters)
        takes = parameters if inside is tree else _takes(inside)
        optional = last in takes and takes[last].default is None
        if optional and CONSTANTS.get(text.strip(), text) is None:
            into[last] = None
        else:
            into[last] = _value(key, text, inside.get(last, _default(takes, last)))
    return values


def _place(path, tree, key, parameters):
    """The names that lead to what ``--key`` sets, from the outermost on."""
    *outer, last = key.split(".")
    inside = tree
    for name in outer:
        inside = inside.get(name) if isinstance(inside, Mapping) else None
    takes = parameters if inside is tree else _takes(inside)
    if isinstance(inside, Mapping) and (last in inside or last in takes):
        return [*outer, last]
    places = [] if outer else list(_takers(tree, last))
    if len(places) > 1:
        names = " or ".join(f"--{'.'.join(place)}" for place in places)
        raise InputError(f"--{key}: several objects in {path} take it: {names}")
    if not places:
        raise _unknown(path, tree, key, parameters)
    return places[0]


def _unknown(path, tree, key, parameters):
    hint = _did_you_mean(key, [*_dotted_names(tree), *parameters])
    return InputError(f"--{key}: no such key in {path}{hint}")


def _takers(tree, name):
    """Where objects stand that take a parameter ``name``: lists of keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if name in _takes(value):
                yield [key, name]
            yield from ([key, *place] for place in _takers(value, name))


def check_arguments(name, value):
    """What a ``!name:`` of the file is called with, also inside of mappings and lists.

    Raises
    ------
    InputError
        An argument that the function does not take: now, and not when it is called.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_arguments(f"{name}.{key}", inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_arguments(name, inner)
    elif isinstance(value, functools.partial):
        kinds = [p.kind for p in _parameters(value.func).values()]
        takes = keywords_of(value.func)
        for key, inner in value.keywords.items():
            if key not in takes and inspect.Parameter.VAR_KEYWORD not in kinds:
                hint = _did_you_mean(key, takes)
                function = getattr(value.func, "__name__", value.func)
                raise InputError(f"{name}: {function} takes no {key!r}{hint}")
            check_arguments(f"{name}.{key}", inner)


def check_callables(**values):
    """Raise an InputError for a value, by its key, that a script cannot call."""
    for name, value in values.items():
        if not callable(value):
            raise InputError(
                f"{name}: {value!r}, expected an object: !new: or !name: in the file"
            )


def _takes(node):
    """Parameters of the class or function that a node of the file names."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    match = OBJECT.fullmatch(tag or "")
    with contextlib.suppress(ImportError, pydoc.ErrorDuringImport):
        return keywords_of(pydoc.locate(match[1])) if match else {}
    return {}  # loading the file will say what cannot be imported


def keywords_of(function):
    """Name → inspect.Parameter of what may be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = _parameters(function)
    return {name: p for name, p in parameters.items() if p.kind in kinds}


def _parameters(function):
    """Name → inspect.Parameter of all; none of what is no function."""
    with contextlib.suppress(ValueError, TypeError):  # of some builtins
        return inspect.signature(function).parameters
    return {}


def _default(parameters, name):
    """A parameter's default as a value of YAML would be; None where it says nothing."""
    default = parameters[name].default if name in parameters else None
    if isinstance(default, tuple):
        return list(default) or None
    return default if isinstance(default, (bool, int, float, str)) else None


def _did_you_mean(word, known):
    known = list(known)
    near = [name for name in known if name.split(".")[-1] == word]
    near += difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _dotted_names(tree, prefix=""):
    """All keys of a nested mapping: ``a``, ``a.b``, …"""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted_names(value, f"{prefix}{key}.")


def _value(key, text, own):
    """One value, of the kind of the file's ``own`` value."""
    word, stripped = f"--{key}={text}", text.strip()
    if stripped.startswith("!"):
        value = _parse(word, stripped)
        # HyperPyYAML would merge it into the file's node, and keep the file's tag
        return _Whole(value) if isinstance(value, Mapping) else value
    if stripped.startswith(YAML_BEGINS):
        value = _parse(word, stripped)
    elif type(own) is str:
        value = stripped or None
    elif stripped in CONSTANTS:
        value = CONSTANTS[stripped]
    elif NUMBER.fullmatch(stripped):
        value = (int if stripped.lstrip("+-").isdigit() else float)(stripped)
    else:
        value = stripped
    expected = _expected_instead(value, own)
    if expected:
        raise InputError(f"{word}: expected {expected}, as in the YAML file")
    if isinstance(value, Mapping) and not isinstance(own, Mapping):
        return _Whole(value)
    return value


def _parse(word, text):
    try:
        value = YAML().load(text)
    except YAMLError as error:
        raise InputError(f"{word}: not valid YAML: {_why(error)}") from error
    for name in value if isinstance(value, Mapping) else ():
        if value[name] is None and ":" in str(name):
            spaced = str(name).replace(":", ": ", 1)
            raise InputError(f"{word}: expected {spaced!r}, a space after the colon")
    return value


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


# ---- the file ------------------------------------------------------------------------


def read_tree(path):
    """The YAML file as text, and as a mapping with its tags."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = YAML().load(text)
    except DuplicateKeyError as error:
        raise InputError(f"{path}: {_why(error)}: each key once") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {_why(error)}") from error
    if not isinstance(tree, Mapping):
        raise InputError(f"{path}: not a list of `key: value`")
    return text, tree


def _check_keys(path, text, tree, overrides, parameters):
    """Every key is read by someone, none is missing, and nothing is unfilled."""
    referred = {
        name
        for reference in REFERENCE.findall(text)
        for name in NAME_IN_REFERENCE.findall(reference)
    }
    known = {*parameters, *RUN_OPTIONS}
    for key in tree:
        done_for_its_effect = str(key).startswith("__")  # as __set_seed
        if not done_for_its_effect and key not in known and key not in referred:
            hint = _did_you_mean(str(key), known)
            raise InputError(f"{path}: nothing reads the key {key!r}{hint}")
    if unfilled := _unfilled(tree, overrides):
        raise InputError(f"{path}: {unfilled} must be given: --{unfilled}=…")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in {*tree, *overrides}:
            raise InputError(f"{path}: no key {key!r}, expected one")


def _unfilled(tree, overrides):
    """Name of the first placeholder that no override fills, or None."""
    takes = _takes(tree)
    for key, value in tree.items():
        other = overrides.get(key)
        if getattr(getattr(value, "tag", None), "value", None) == "!PLACEHOLDER":
            optional = key in takes and takes[key].default is None
            if other is None and not (optional and key in overrides):
                return key
        elif isinstance(value, Mapping) and (key not in overrides or other is not None):
            other = other if isinstance(other, Mapping) else {}
            if unfilled := _unfilled(value, other):
                # the name alone identifies a parameter of an object
                return unfilled if unfilled in _takes(value) else f"{key}.{unfilled}"
    return None


def _why(error):
    """One line for an error of ruamel.yaml, with the line number."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())[:300]
