"""YAML files and command lines of the recipes' scripts.

    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], train)
    train(**hparams)

The keyword parameters of ``train`` are the top-level keys that the script reads: one
without a default must be in the file, the others need not. A key that nothing reads is
an error. What a parameter's annotation says is checked, also of the functions and
classes that the file names. What ``--key=value`` may set:

    --lr=0.1              a top-level key of the file, or a parameter of the function
    --lr_schedule.peak=1  a key inside of another; of an object (``!new:``, ``!name:``,
                          ``!apply:``) also a parameter that the file does not set
    --batch_size=8        the parameter of the one object in the file that takes it

A value is what the file's own value (or the parameter's default) says it is: a text
stays as it was typed, and so do those of a list of texts (``list[str]``), and ``0012``,
which is an ID and no number. SpeechBrain joins the overrides to one YAML text instead,
which cuts a value at its second ``=`` or at `` #``, and makes ``2026-11-21`` a date.
"""

import contextlib
import inspect
import pydoc
import re
from collections.abc import Mapping
from pathlib import Path

from hyperpyyaml import load_hyperpyyaml
from hyperpyyaml.core import _load_node
from ruamel.yaml import YAML, Loader, MappingNode, SequenceNode
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from speechbrain_ext.utils.arguments import (
    check_arguments,
    did_you_mean,
    keywords_of,
)
from speechbrain_ext.utils.errors import InputError, describe_os_error, naming
from speechbrain_ext.utils.run_options import (
    RUN_OPTIONS,
    RunOptions,
    read_run_options,
    settle_run_options,
)
from speechbrain_ext.utils.typed_values import (
    CONSTANTS,
    are_texts,
    read_value,
    takes_texts,
    why,
)

NAME_IN_REFERENCE = re.compile(r"<([A-Za-z_]\w*)")
OBJECT = re.compile(r"!(?:new|name|apply):(.+)")
# What building the objects of a YAML file from wrong values may raise.
WRONG_VALUES = (
    *(ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(ArithmeticError, AssertionError),
)


class _AtKey(InputError):
    """An InputError that names its key already."""


class _Loader(Loader):
    """Names the key of an object that cannot be made; checks its arguments before."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.keys = {}  # node → where it stands: a.b

    def construct_object(self, node, deep=True):
        """As HyperPyYAML's loader."""
        key = self.keys.get(node, "")
        if isinstance(node, MappingNode):
            for name, child in node.value:
                inner = f"{key}.{name.value}" if key else str(name.value)
                self.keys.setdefault(child, inner)
        elif isinstance(node, SequenceNode):
            for child in node.value:
                self.keys.setdefault(child, key)
        match = OBJECT.fullmatch(node.tag or "")
        if match is None or node in self.constructed_objects:
            return super().construct_object(node, deep)
        try:
            function = pydoc.locate(match[1])
            if callable(function):
                later = node.tag.startswith("!name:")
                check_arguments(key, function, *_load_node(self, node), later)
            return super().construct_object(node, deep)
        except _AtKey:
            raise
        except InputError as error:
            named = str(error).startswith(f"{key}.") or str(error).startswith(f"{key}:")
            raise _AtKey(str(error) if named else f"{key}: {error}") from error
        except WRONG_VALUES as error:
            raise _AtKey(f"{key}: {why(error)}") from error


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
    options, texts = split_words(words)
    run_opts = read_run_options(path, options)
    tree, overrides, parameters = _read(path, texts, function)
    hparams = load_yaml(path, overrides, new_keys=True)
    options = {k: v for k, v in hparams.items() if k in RUN_OPTIONS - set(parameters)}
    hparams = {k: v for k, v in hparams.items() if k in {*parameters, *options}}
    with naming(path):
        given = {k: v for k, v in hparams.items() if k in parameters}
        check_arguments("", function, kwargs=given, later=True)
        check_arguments("", RunOptions, kwargs=options, later=True)
        _check_unread(tree, parameters)
        settle_run_options(run_opts, hparams, parameters)
    if not inspect.getfullargspec(function).varkw:
        hparams = {k: v for k, v in hparams.items() if k in parameters}
    return path, run_opts, overrides, hparams


def check_run(path, texts, function):
    """What can be told of a run before anything of it is built or read.

    Arguments
    ---------
    path : str or Path
        The YAML file.
    texts : dict of str to str
        Overrides as typed, run options not among them.
    function : callable
        As for :func:`load_run`.

    Returns
    -------
    tree : mapping
        The file, with tags.
    overrides : dict
        Nested as the file is.

    Raises
    ------
    InputError
        As :func:`load_run`, but for values and devices.
    """
    tree, overrides, parameters = _read(path, texts, function)
    with naming(path):
        _check_unread(tree, parameters)
    return tree, overrides


def _read(path, texts, function):
    """The file, its overrides and the function's parameters, as far as keys go."""
    tree, parameters = read_tree(path), keywords_of(function)
    _check_missing(path, tree, texts, function)
    overrides = parse_overrides(path, tree, texts, parameters)
    _check_keys(path, tree, overrides, parameters)
    return tree, overrides, parameters


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
            return load_hyperpyyaml(file, overrides, not new_keys, _Loader)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        if error.filename is not None:  # of an object of the file, or itself
            raise InputError(describe_os_error(error)) from error
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (YAMLError, *WRONG_VALUES) as error:
        raise InputError(f"{path}: {why(error)}") from error
    except (ImportError, pydoc.ErrorDuringImport) as error:
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
        own, texts = inside.get(last, _default(takes, last)), False
        if isinstance(own, list) or own is None:
            texts = are_texts(own) or takes_texts(takes.get(last))
        optional = last in takes and takes[last].default is None
        if optional and CONSTANTS.get(text.strip(), text) is None:
            into[last] = None
        else:
            into[last] = read_value(key, text, own, texts)
    return values


def _place(path, tree, key, parameters):
    """The names that lead to what ``--key`` sets, from the outermost on."""
    places = places_of(tree, key, parameters)
    if len(places) > 1:
        names = " or ".join(f"--{'.'.join(place)}" for place in places)
        raise InputError(f"--{key}: several objects in {path} take it: {names}")
    if not places:
        raise _unknown(path, tree, key, parameters)
    return places[0]


def places_of(tree, key, parameters):
    """What ``--key`` may set in a file: lists of names, from the outermost on."""
    *outer, last = key.split(".")
    inside = tree
    for name in outer:
        inside = inside.get(name) if isinstance(inside, Mapping) else None
    takes = parameters if inside is tree else _takes(inside)
    if isinstance(inside, Mapping) and (last in inside or last in takes):
        return [[*outer, last]]
    return [] if outer else list(_takers(tree, last))


def _unknown(path, tree, key, parameters):
    first, _, rest = key.partition(".")
    if rest and first in parameters and first not in tree:
        return InputError(
            f"--{key}: {path} has no {first!r}, expected --{first}={{{rest}: …}}"
        )
    hint = did_you_mean(key, [*_dotted_names(tree), *parameters])
    return InputError(f"--{key}: no such key in {path}{hint}")


def _takers(tree, name):
    """Where objects stand that take a parameter ``name``: lists of keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if name in _takes(value):
                yield [key, name]
            yield from ([key, *place] for place in _takers(value, name))


def _tag(node):
    return getattr(getattr(node, "tag", None), "value", None) or ""


def _takes(node):
    """Parameters of the class or function that a node of the file names."""
    match = OBJECT.fullmatch(_tag(node))
    with contextlib.suppress(ImportError, pydoc.ErrorDuringImport):
        return keywords_of(pydoc.locate(match[1])) if match else {}
    return {}  # loading the file will say what cannot be imported


def _default(parameters, name):
    """A parameter's default as a value of YAML would be; None where it says nothing."""
    default = parameters[name].default if name in parameters else None
    if isinstance(default, tuple):
        return list(default) or None
    return default if isinstance(default, (bool, int, float, str)) else None


def _dotted_names(tree, prefix=""):
    """All keys of a nested mapping: ``a``, ``a.b``, …"""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted_names(value, f"{prefix}{key}.")


# ---- the file ------------------------------------------------------------------------


def read_tree(path):
    """The YAML file as a mapping with its tags."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such hyperparameter file")
    try:
        tree = YAML().load(Path(path).read_text(encoding="utf-8"))
    except DuplicateKeyError as error:
        raise InputError(f"{path}: {why(error)}: each key once") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {why(error)}") from error
    if not isinstance(tree, Mapping):
        raise InputError(f"{path}: not a list of `key: value`")
    return tree


def _check_missing(path, tree, texts, function):
    """Every key that the function must have is in the file or on the command line."""
    required = [n for n, p in keywords_of(function).items() if p.default is p.empty]
    for key in required:
        if key not in tree and key not in texts:
            raise InputError(
                f"{path}: no key {key!r}, expected a file for {function.__name__}: "
                f"{', '.join(required)}"
            )


def _check_keys(path, tree, overrides, parameters):
    """No reference is broken, and nothing is unfilled or empty."""
    referred = set(_references(tree))
    for name in sorted(referred - {*tree, *overrides}):
        hint = did_you_mean(name, tree)
        raise InputError(f"{path}: !ref <{name}>: no key {name!r}{hint}")
    if unfilled := _unfilled(tree, overrides):
        raise InputError(f"{path}: {unfilled} must be given: --{unfilled}=…")
    for key, parameter in parameters.items():
        value = overrides.get(key) if key in overrides else tree.get(key)
        empty = value is None or (value in ([], {}) and not _tag(value))
        if parameter.default is parameter.empty and empty:
            raise InputError(f"{path}: {key}: {value!r}, expected a value")


def _check_unread(tree, parameters):
    """Every key is read by the script, or by a reference."""
    referred = set(_references(tree))
    known = {*parameters, *RUN_OPTIONS}
    for key in tree:
        done_for_its_effect = str(key).startswith("__")  # as __set_seed
        if not done_for_its_effect and key not in known and key not in referred:
            hint = did_you_mean(str(key), known)
            raise InputError(f"nothing reads the key {key!r}{hint}")


def _references(node):
    """Top-level keys that references inside of a node name."""
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
    elif _tag(node).startswith(("!ref", "!copy", "!applyref")):
        yield from NAME_IN_REFERENCE.findall(str(node.value))


def _unfilled(tree, overrides):
    """Name of the first placeholder that no override fills, or None."""
    takes = _takes(tree)
    for key, value in tree.items():
        other = overrides.get(key)
        if _tag(value) == "!PLACEHOLDER":
            optional = key in takes and takes[key].default is None
            if other is None and not (optional and key in overrides):
                return key
        elif isinstance(value, Mapping) and (key not in overrides or other is not None):
            other = other if isinstance(other, Mapping) else {}
            if unfilled := _unfilled(value, other):
                # the name alone identifies a parameter of an object
                return unfilled if unfilled in _takes(value) else f"{key}.{unfilled}"
    return None
