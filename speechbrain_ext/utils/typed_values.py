"""One value of the command line, of the kind of the YAML file's own value."""

import re
import typing
from collections.abc import Mapping

from ruamel.yaml import YAML, RoundTripRepresenter
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from speechbrain_ext.utils.errors import InputError

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
ZEROS = re.compile(r"(?<![\w.+-])0\d+(?![\w.])")  # an ID, no number
CONSTANTS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL", "None"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
YAML_BEGINS = ("[", "{", "!", '"', "'")


class _Whole(list):
    """[A mapping] that replaces the file's value, where HyperPyYAML would merge it.

    As a list, so that HyperPyYAML resolves the references inside.
    """


RoundTripRepresenter.add_representer(
    _Whole, lambda dumper, whole: dumper.represent_data(whole[0])
)


def are_texts(values):
    """Whether they are texts, and there are some."""
    return bool(values) and all(type(value) is str for value in values)


def takes_texts(parameter):
    """Whether its annotation, or one of several, is ``list[str]``."""
    annotation = getattr(parameter, "annotation", None)
    return list[str] in (annotation, *typing.get_args(annotation))


def read_value(key, text, own, texts=False):
    """One value, of the kind of the file's ``own`` value; ``texts``: a list of them."""
    word, stripped = f"--{key}={text}", text.strip()
    if stripped.startswith("!"):
        value = _parse(word, stripped)
        # HyperPyYAML would merge it into the file's node, and keep the file's tag
        return _Whole([value]) if isinstance(value, Mapping) else value
    if stripped.startswith(YAML_BEGINS):
        value = _parse(word, stripped)
        if "!" not in stripped and (texts or ZEROS.search(stripped)):
            value = _as_typed(value, YAML(typ="base").load(stripped), texts)
    elif type(own) is str:
        value = stripped or None
    elif stripped in CONSTANTS:
        value = CONSTANTS[stripped]
    elif texts or (ZEROS.fullmatch(stripped) and not _is_number(own)):
        value = stripped
    elif NUMBER.fullmatch(stripped):
        value = (int if stripped.lstrip("+-").isdigit() else float)(stripped)
    else:
        value = stripped
    expected = _expected_instead(value, own)
    if expected:
        raise InputError(f"{word}: expected {expected}, as in the YAML file")
    if isinstance(value, Mapping) and not isinstance(own, Mapping):
        return _Whole([value])
    return value


def _as_typed(value, typed, texts):
    """A value of YAML with IDs such as 0012, or all ``texts``, as they were typed."""
    if isinstance(value, list):
        return [_as_typed(*pair, texts) for pair in zip(value, typed, strict=True)]
    if isinstance(value, Mapping):
        pairs = zip(value.items(), typed.values(), strict=True)
        return {name: _as_typed(v, t, texts) for (name, v), t in pairs}
    zeros = _is_number(value, int) and ZEROS.fullmatch(typed)
    return typed if zeros or (texts and value is not None) else value


def _parse(word, text):
    try:
        value = YAML().load(text)
    except YAMLError as error:
        raise InputError(f"{word}: not valid YAML: {why(error)}") from error
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


def why(error):
    """One line for an error: of ruamel.yaml with the line number."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    reason = ": ".join(map(str, error.args)) or type(error).__name__
    return " ".join(reason.split())[:300]
