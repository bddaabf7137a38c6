"""A function as a command: options from its signature and its docstring."""

import pytest

from speechbrain_ext.data.corpora.cnceleb import prepare_cnceleb
from speechbrain_ext.data.corpora.voxblink2 import prepare_voxblink2
from speechbrain_ext.data.corpora.voxceleb import prepare_voxceleb
from speechbrain_ext.utils.command import make_parser, run_command
from speechbrain_ext.utils.errors import InputError


def measure(folders, save_folder, names=("a",), n=3, share=0.5, quick=False):
    """Measure.

    Arguments
    ---------
    folders : str, Path or list of them
        Where to look.
    save_folder : str or Path
        Where results go.
    names : list of str
        Who.
    n : int
        At most so many, 100 % of them.
    share : float
        Of all.
    quick : bool
        Or not.

    Returns
    -------
    dict
    """
    if n < 0:
        raise InputError(f"n={n}, expected more")
    return {
        "folders": folders,
        "save_folder": save_folder,
        "names": names,
        "n": n,
        "share": share,
        "quick": quick,
    }


def test_texts_become_what_the_docstring_says():
    words = "--folders x y --save_folder z --names b c --n 4 --share 1 --quick"
    assert run_command(measure, "", words.split()) == {
        "folders": ["x", "y"],
        "save_folder": "z",
        "names": ["b", "c"],
        "n": 4,
        "share": 1.0,
        "quick": True,
    }
    found = run_command(measure, "", ["--folders=x", "--save_folder=z"])
    assert found == measure(["x"], "z")  # defaults stand in the signature alone


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(measure, "What it is for.", ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for words in ("What it is for.", "At most so many, 100 % of them. Default: 3."):
        assert words in text


@pytest.mark.parametrize(
    ("words", "code", "culprit"),
    [
        (["--folders=x"], 1, "--save_folder"),
        (["--folders=x", "--save_folder=z", "--n=two"], 1, "--n"),
        (["--folders=x", "--save_folder=z", "--nam=b"], 1, "--nam"),
        (["--folders=x", "--save_folder=z", "--n=-1"], 1, "n=-1"),
    ],
)
def test_bad_words_are_named(capsys, words, code, culprit):
    with pytest.raises(SystemExit) as stop:
        run_command(measure, "", words)
    assert stop.value.code == code
    assert culprit in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "function", [prepare_voxceleb, prepare_cnceleb, prepare_voxblink2]
)
def test_every_preparation_is_a_command(function):
    assert "usage" in make_parser(function, "").format_help()
