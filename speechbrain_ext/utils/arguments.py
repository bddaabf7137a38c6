"""Values of a YAML file against the annotations of what they are given to.

A function or class that a file names says in its signature what it takes, such as
``lr: float``, ``batch_size: PositiveInt``. What has no annotation is not checked.
pydantic does the work, in its strict mode: no text is a number, and neither is
True; NaN and infinity are none either.
"""

import difflib
import inspect

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from speechbrain_ext.utils.errors import InputError

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
WORDS = {
    "bool_type": "True or False",
    "callable_type": "an object (!new: or !name: in the file)",
    "dict_type": "{key: value}",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "string_type": "a text",
    "tuple_type": "a list",
}


def check_arguments(name, function, args=(), kwargs=None, later=False):
    """What a function or class is called with.

    Arguments
    ---------
    name : str
        The key of the call, for messages; empty at the top of a file.
    function : callable
    args : sequence
    kwargs : mapping
    later : bool
        Other arguments come with the call itself, as for a ``!name:``.

    Raises
    ------
    InputError
        An argument that it does not take, one that is missing, or one of another kind
        than its annotation says.
    """
    signature = _signature(function)
    if signature is None:
        return
    kwargs, takes = kwargs or {}, keywords_of(function)
    parameters = signature.parameters.values()
    title = getattr(function, "__name__", str(function))
    begin = f"{name}: {title}" if name else title
    for key in kwargs:
        if key not in takes and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise InputError(f"{begin} takes no {key!r}{did_you_mean(key, takes)}")
    try:
        bound = (signature.bind_partial if later else signature.bind)(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{begin}: {error}") from error
    for parameter in parameters:
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.name in bound.arguments and not variable:
            value = bound.arguments[parameter.name]
            place = f"{name}.{parameter.name}" if name else parameter.name
            _check_value(place, parameter, value)


def _check_value(name, parameter, value):
    annotation = parameter.annotation
    if annotation is parameter.empty or isinstance(annotation, str):
        return
    if value is None and parameter.default is None:
        return
    try:
        adapter = TypeAdapter(annotation, config=STRICT)
    except PydanticUserError:  # a type that it knows nothing of
        return
    errors = _errors(adapter, value)
    if errors and isinstance(value, (list, tuple)):  # to YAML they are the same
        other = _errors(adapter, tuple(value) if type(value) is list else list(value))
        if not other or (other[0]["loc"] and WORDS.get(other[0]["type"]) != "a list"):
            errors = other
    if not errors or any(  # inside of another value
        e["type"] == "tuple_type" and isinstance(e["input"], list) and e["loc"]
        for e in errors
    ):
        return
    # of one that is a list or something else: which of its items is wrong
    errors = [error for error in errors if len(error["loc"]) > 1][:1] or errors
    expected = [
        WORDS.get(e["type"], e["msg"].removeprefix("Input should be ")) for e in errors
    ]
    value = errors[0]["input"] if len(errors) == 1 else value
    raise InputError(
        f"{name}: {value!r}, expected {' or '.join(dict.fromkeys(expected))}"
    )


def _errors(adapter, value):
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def keywords_of(function):
    """Name → inspect.Parameter of what may be given by name."""
    signature = _signature(function)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = signature.parameters if signature else {}
    return {name: p for name, p in parameters.items() if p.kind in kinds}


def _signature(function):
    """Its inspect.Signature; None of what is no function, and of some builtins."""
    for evaluate in (True, False):
        try:
            return inspect.signature(function, eval_str=evaluate)
        except (NameError, AttributeError, SyntaxError, ValueError, TypeError):
            pass
    return None


def did_you_mean(word, known):
    """The end of a message: the known name that ``word`` is nearest to, if any is."""
    known = list(known)
    near = [name for name in known if name.split(".")[-1] == word]
    near += difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
