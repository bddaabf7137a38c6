"""Options in every form users give them, and the parallel machinery."""

from pathlib import Path

import pytest

from speechbrain_ext.data.prepare.pipeline import PrepareOptions
from speechbrain_ext.utils.errors import InputError

GIVEN = {
    "train_folders": "train",
    "save_folder": "save",
    "test_folders": None,
    "trial_lists": (),
    "train_lists": None,
    "exclude_speakers": None,
    "n_valid_speakers": 40,
    "n_valid_trials": 4000,
    "max_valid_utterances": 10,
    "min_seconds": 0.4,
    "max_bad_files": 0,
    "convert_folder": None,
    "seed": 1986,
}


def test_one_form_whatever_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = PrepareOptions(
        **GIVEN | {"trial_lists": ["~/a.txt", Path("b.txt")], "exclude_speakers": "id7"}
    )
    assert options.train_folders == [tmp_path / "train"]
    assert options.test_folders == [tmp_path / "train"]
    assert options.save_folder == tmp_path / "save"
    assert options.trial_lists == [tmp_path / "home/a.txt", tmp_path / "b.txt"]
    assert options.train_lists == []
    assert options.exclude_speakers == ["id7"]
    assert options.convert_folder is None
    options = PrepareOptions(**GIVEN | {"exclude_speakers": ["b", "a", "b"]})
    assert options.exclude_speakers == ["a", "b"]
    assert PrepareOptions(**GIVEN | {"convert_folder": ""}).convert_folder is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("train_folders", [], "at least one folder, or test_folders and trial_lists"),
        ("n_valid_speakers", -1, "a whole number of at least 0"),
        ("n_valid_speakers", 1, "0 or at least 2"),
        ("n_valid_speakers", 2.5, "a whole number of at least 0"),
        ("n_valid_speakers", True, "a whole number of at least 0"),
        ("n_valid_trials", 1, "a whole number of at least 2"),
        ("max_valid_utterances", 1, "a whole number of at least 2"),
        ("min_seconds", -0.1, "a number of at least 0"),
        ("min_seconds", float("nan"), "a number of at least 0"),
        ("min_seconds", "0.4", "a number of at least 0"),
        ("max_bad_files", None, "a whole number of at least 0"),
        ("seed", -1, "a whole number of at least 0"),
    ],
)
def test_wrong_values_are_named(name, value, expected):
    with pytest.raises(InputError, match=f"^{name}.*expected {expected}"):
        PrepareOptions(**GIVEN | {name: value})
