"""A chain's YAML file → stages, each with the words of its command, all checked.

    output_folder: results/paper # a folder below it for every stage
    overrides: {num_workers: 4} # for each stage whose file takes them
    stages:
        - name: stage1
          script: train.py # paths as seen from the recipe
          hparams: hparams/stage1.yaml
          overrides: {number_of_epochs: 15}
        - name: stage2
          script: train.py
          hparams: hparams/stage2.yaml
          overrides: {pretrained_folder: <stage1>/final}
        - name: verify2
          script: verify.py
          hparams: hparams/verify.yaml
          overrides: {pretrained_folder: <stage2>/final}
          published: {cosine: {Vox1-O: 0.14}} # EER %: score → list → figure
        - name: sizes
          command: [-m, speechbrain_ext, sizes, <verify2>, …] # without the launcher
          show: True # what it prints is shown at the end
    end: The model is in <stage2>. # said at the end

``<stage1>`` is the folder of an earlier stage or the own one, ``<recipe>`` that of the
scripts, ``<key>`` what the command line says for ``--key``. A stage may also have
``hours`` (of one GPU), ``seconds_per_step`` and ``utterances`` (of an epoch), from
which the plan counts, and ``gigabytes`` of checkpoints. What the command line says goes
to every stage whose file takes it, and counts more than what the chain says;
``--STAGE.key=…`` goes to one.
"""

import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from speechbrain_ext.utils.arguments import did_you_mean, keywords_of
from speechbrain_ext.utils.config import check_run, places_of, read_tree, split_words
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import check_values
from speechbrain_ext.utils.run_options import RUN_OPTIONS
from speechbrain_ext.utils.typed_values import why

REFERENCE = re.compile(r"<([\w-]+)>")
NAME = re.compile(r"[A-Za-z]\w*")
# What a key's last part ends in where its value is something to be there already.
EXISTING = re.compile(r"(folders?|lists?|manifest|_map|cohort|calibrator|spk2videos)$")
# Folders that a run makes, whose keys end so, too.
MADE = re.compile(r"(output|save|convert|mixed)_folder$")
# So much is in the chain's own folder: results.md, locks, logs.
RESERVED = ("recipe", "chain", "output_folder")


def _published(value):
    """{score: {list: EER %}}."""
    return all(
        type(rate) in (int, float)
        for rates in value.values()
        for rate in rates.values()
    )


_FIGURES = {
    "hours?": float,
    "seconds_per_step?": float,
    "utterances?": int,
    "gigabytes?": float,
}
_STAGE = {
    "name": str,
    "script?": str,
    "hparams?": str,
    "overrides?": dict,
    "command?": list,
    "published?": _published,
    "show?": bool,
    **_FIGURES,
}
_CHAIN = {
    "output_folder?": str,
    "overrides?": dict,
    "stages": [_STAGE],
    "end?": str,
    **_FIGURES,
}


class Stage(NamedTuple):
    """One command of a chain.

    Attributes
    ----------
    name : str
    words : list of str
        What python is given: the script and its arguments.
    folder : Path
        What it writes.
    launched : bool
        Whether the launcher starts it.
    hparams : Path or None
    overrides : dict of str to str or None
        As on its command line; None of a flag.
    needs : list of str
        Earlier stages whose folders it names.
    published : dict
        Score → list → EER %.
    figures : dict
        For the plan: ``hours`` and others, as in the file.
    show : bool
        Whether what it prints is shown at the chain's end.
    tree, values : mapping
        The hparams file and the overrides in its shape.
    """

    name: str
    words: list
    folder: Path
    launched: bool
    hparams: Path | None
    overrides: dict
    needs: list
    published: dict
    figures: dict
    show: bool = False
    tree: Mapping = {}
    values: Mapping = {}


class Chain(NamedTuple):
    """Stages in their order, the folder of all of them, and what is said at the end."""

    name: str
    folder: Path
    stages: list
    launcher: list
    end: str


def read_chain(path, words, recipe):
    """A chain's file and the command line → :class:`Chain`.

    Arguments
    ---------
    path : str or Path
        The YAML file.
    words : list of str
        ``--key=value`` and ``--STAGE.key=value``. ``--output_folder`` is the chain's,
        ``--launcher`` the words before a script: "torchrun --nproc_per_node=8".
    recipe : str or Path
        Folder from which the file names scripts and hparams files.

    Returns
    -------
    Chain

    Raises
    ------
    InputError
        Naming the stage, and what is missing or wrong: a key, a file, a folder, an
        option that no stage takes, a reference to no earlier stage.
    """
    about, recipe = _load(path), Path(recipe).absolute()
    options, texts = split_words(words)
    given = {**_flags(options), **texts}
    launcher = shlex.split(given.pop("launcher", ""))
    folder = given.pop("output_folder", None) or about.get("output_folder")
    folder = Path(folder or f"results/{Path(path).stem}").absolute()
    names = [stage["name"] for stage in about["stages"]]
    _check_names(path, names)
    own = {name: {} for name in names}
    for key in [key for key in given if key.split(".")[0] in own]:
        name, _, rest = key.partition(".")
        own[name][rest] = given.pop(key)
    places = {"recipe": str(recipe), "output_folder": str(folder)}
    stages, taken = [], set()
    common = {k: _text(v) for k, v in about.get("overrides", {}).items()}
    for entry in about["stages"]:
        name = entry["name"]
        with naming(f"{path}: {name}"):
            places[name] = str(folder / name)
            look_up = _Places(places, {**common, **given}, names)
            stage = _stage(entry, recipe, folder / name, look_up)
            if stage.hparams:
                stage = _with_overrides(stage, common, given, own[name], look_up)
                taken |= set(stage.overrides)
            elif own[name]:
                raise InputError(f"--{name}.{next(iter(own[name]))}: it has no YAML")
            taken |= look_up.used
            figures = {k.rstrip("?"): about.get(k.rstrip("?")) for k in _FIGURES}
            figures |= {k: v for k, v in stage.figures.items() if v is not None}
            stages.append(stage._replace(figures=figures, needs=look_up.stages(name)))
    for key in given:
        if key not in taken:
            known = {key for s in stages for key in (*s.tree, *s.overrides)} | taken
            raise InputError(f"--{key}: no stage takes it{did_you_mean(key, known)}")
    end = _Places(places, {**common, **given}, names)(about.get("end", ""))
    chain = Chain(Path(path).stem, folder, stages, launcher, end)
    for stage in stages:
        with naming(f"{path}: {stage.name}"):
            _check_paths(stage, chain)
    return chain


def _load(path):
    """The file as plain values, its keys checked."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        about = YAML(typ="safe", pure=True).load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: {reason}, expected a chain's YAML file") from error
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {why(error)}") from error
    check_values(path, about, _CHAIN, others=False, what="a chain")
    return about


def _check_names(path, names):
    for name in names:
        if not NAME.fullmatch(name) or name in RESERVED:
            raise InputError(
                f"{path}: stage {name!r}, expected letters, digits and _, and none of "
                f"{', '.join(RESERVED)}"
            )
        if names.count(name) > 1:
            raise InputError(f"{path}: stage {name!r} stands twice, expected once")


class _Places:
    """Replaces ``<name>`` in texts, and remembers which names were used."""

    def __init__(self, places, texts, names):
        self.places, self.texts, self.names = dict(places), texts, names
        self.used = set()

    def __call__(self, text):
        return REFERENCE.sub(lambda match: self._value(match[1]), text)

    def _value(self, name):
        self.used.add(name)
        if name in self.places:
            return self.places[name]
        if name in self.names:
            raise InputError(f"<{name}>: that stage comes later, expected an earlier")
        if self.texts.get(name) is None:
            hint = did_you_mean(name, self.places)
            raise InputError(f"<{name}>: must be given: --{name}=…{hint}")
        return self(self.texts[name])

    def several(self, word):
        """A word of a command: one that is ``<key>`` may stand for a list's items."""
        text = self(word)
        items = _items(text) if REFERENCE.fullmatch(word) else [text]
        return [item for item in items if item is not None]

    def stages(self, own):
        """Stages that were named, but for the own."""
        return [name for name in self.names if name in self.used and name != own]


def _stage(entry, recipe, folder, look_up):
    """Name, script and command of one entry of the file; no overrides yet."""
    name, command = entry["name"], entry.get("command")
    if (command is None) == (entry.get("script") is None):
        raise InputError("expected either a script or a command")
    figures = {key.rstrip("?"): entry.get(key.rstrip("?")) for key in _FIGURES}
    stage = Stage(
        *(name, [], folder, command is None, None, {}, [], entry.get("published", {})),
        *(figures, entry.get("show", False)),
    )
    if command is not None:
        words = [w for word in command for w in look_up.several(_text(word))]
        return stage._replace(words=_checked(words))
    if "hparams" not in entry:
        raise InputError("no hparams, expected the script's YAML file")
    return stage._replace(
        words=_checked([os.path.normpath(recipe / entry["script"])]),
        hparams=Path(os.path.normpath(recipe / entry["hparams"])),
        overrides={k: _text(v) for k, v in entry.get("overrides", {}).items()},
    )


def _checked(words):
    """The words, whose first is a script that exists, or ``-m`` for a module."""
    if not words or (words[0] != "-m" and not Path(words[0]).exists()):
        first = words[0] if words else "nothing"
        raise InputError(f"{first}: no such script")
    return words


def _with_overrides(stage, common, given, own, look_up):
    """The stage with its overrides: the command line's own before all others."""
    function, tree = script_function(stage.words[0]), read_tree(stage.hparams)
    parameters = keywords_of(function)

    def taken(overrides):
        return {
            key: text
            for key, text in overrides.items()
            if key in RUN_OPTIONS or places_of(tree, key, parameters)
        }

    overrides = {**taken(common), **stage.overrides, **taken(given), **own}
    overrides["output_folder"] = str(stage.folder)
    overrides = {k: t if t is None else look_up(t) for k, t in overrides.items()}
    texts = {k: t for k, t in overrides.items() if k not in RUN_OPTIONS}
    tree, values = check_run(stage.hparams, texts, function)
    words = [f"--{k}" if t is None else f"--{k}={t}" for k, t in overrides.items()]
    words = [*stage.words, str(stage.hparams), *words]
    return stage._replace(words=words, overrides=overrides, tree=tree, values=values)


@cache
def script_function(script):
    """The function that a script's YAML file is for: of the script's own name.

    A script that is a link to another, as distill_prune.py, has the other's.
    """
    path = Path(script).resolve()
    spec = importlib.util.spec_from_file_location(f"chained_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, path.stem, None)
    if not callable(function):
        raise InputError(f"{script}: no function {path.stem}, expected one")
    return function


def _check_paths(stage, chain):
    """Whatever is to be there before the first stage is there."""
    if not stage.hparams:
        return
    for key, text in stage.overrides.items():
        last = key.split(".")[-1]
        expected = EXISTING.search(last) and not MADE.search(last)
        for item in filter(None, _items(text or "")):
            is_file = last.endswith("_source") and item.endswith(".json")
            later = Path(item).is_relative_to(chain.folder)  # a stage makes it
            if (expected or is_file) and not later and not Path(item).exists():
                raise InputError(f"--{key}: {item}: no such file or folder")


def _items(text):
    """A path, or the items of a list of them; None of nothing."""
    stripped = text.strip()
    if stripped.startswith("[") and stripped.endswith("]"):
        return [item.strip().strip("'\"") for item in stripped[1:-1].split(",")]
    return [None if stripped in ("", "null", "None") else text]


def _flags(options):
    """``--key=value`` and ``--key`` → {key: value or None}."""
    pairs = [option[2:].partition("=") for option in options]
    return {key: value if equals else None for key, equals, value in pairs}


def _text(value):
    """A value of YAML as it is typed on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "True", False: "False"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)
