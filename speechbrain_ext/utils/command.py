"""A function as a command: each argument with its docstring becomes an option.

The function's numpy docstring says what a text on the command line stands for::

    int, float          one number
    str, Path           one text
    list of …           one or several of them
    bool                a flag, False where it is not given
"""

import argparse
import inspect
import logging
import re

from speechbrain_ext.utils.errors import InputError, command_line

# One argument, or several that share a type: "name, name : type", indented lines below.
_ARGUMENT = re.compile(r"^(\w[\w, ]*) : (.+)\n((?:[ ]{4}.*\n|\n)*)", re.MULTILINE)
_SECTION = re.compile(r"^Arguments\n-+\n(.*?)(?:\n\w+\n-+\n|\Z)", re.MULTILINE | re.S)


class Parser(argparse.ArgumentParser):
    """An ``argparse`` parser whose complaints are an InputError, as all others are."""

    def error(self, message):
        """Instead of the usage and exit code 2."""
        raise InputError(f"{message}; see {self.prog} --help")


@command_line
def run_command(function, description, words=None):
    """Call a function with what stands on the command line.

    Arguments
    ---------
    function : callable
        Each of its arguments is described in its docstring. Those without a default
        must be given.
    description : str
        What ``--help`` says above the options.
    words : list of str, optional
        The command line; None: of this process.

    Returns
    -------
    object
        What the function returns.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return function(**vars(make_parser(function, description).parse_args(words)))


def make_parser(function, description):
    """An ``argparse`` parser with an option for each argument of a function.

    It leaves out of its result what is not given: defaults stand in the signature.
    """
    parser = Parser(
        description=description,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    documented = _documented(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, text = documented[name]
        default = parameter.default
        required = default is parameter.empty
        if not required and default is not None and default is not False:
            several = isinstance(default, tuple)
            shown = " ".join(map(str, default)) if several else str(default)
            text += f" Default: {shown}." if shown else ""
        parser.add_argument(
            f"--{name}",
            required=required,
            help=text.replace("%", "%%"),
            **_conversion(kind),
        )
    return parser


def _documented(function):
    """Argument → (its type in words, its description)."""
    section = _SECTION.search(inspect.getdoc(function)).group(1) + "\n"
    found = {}
    for names, kind, text in _ARGUMENT.findall(section):
        for name in names.split(", "):
            found[name] = (kind, " ".join(text.split()).replace("``", ""))
    return found


def _conversion(kind):
    """Keywords of ``add_argument`` for a type in words."""
    if kind == "bool":
        return {"action": "store_true"}
    several = {"nargs": "+"} if "list of" in kind else {}
    for word, number in (("int", int), ("float", float)):
        if kind.startswith(word):
            return {"type": number, "metavar": word.upper(), **several}
    return {"metavar": "PATH" if "Path" in kind else "TEXT", **several}
