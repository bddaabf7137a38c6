"""The words of a command line: SpeechBrain's run options, and overrides of a YAML.

SpeechBrain joins the overrides to one YAML text, which cuts a value at its second
``=`` or at `` #``, and takes ``2026-11-21`` for a date. Here a value is what the key's
own value in the YAML file says it is: a text stays as it was typed.
"""

import contextlib
import difflib
import re
from collections.abc import Mapping, MutableMapping
from io import StringIO

from ruamel.yaml import YAML, RoundTripRepresenter
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from speechbrain.core import RunOptions
from speechbrain.utils.run_opts import HELP_TEXTS

from speechbrain_ext.errors import InputError

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
