"""The arguments of a preparation, in one form whatever way they were given."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from speechbrain_ext.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PrepareOptions:
    """Every argument that shapes the result, checked, its paths resolved.

    Lists may be given as one value, several or None. The attributes are described
    where users meet them, in the recipes.
    """

    train_folders: list
    save_folder: Path
    test_folders: list
    trial_lists: list
    train_lists: list
    exclude_speakers: list
    n_valid_speakers: int
    n_valid_trials: int
    max_valid_utterances: int
    min_seconds: float
    max_bad_files: int
    convert_folder: Path | None
    seed: int
    enrol_maps: list = ()
    join_seconds: float = 0

    @classmethod
    def for_test(cls, save_folder, test_folders, trial_lists, enrol_maps=()):
        """Options of a preparation for test alone: nothing of training counts."""
        training = dict.fromkeys(
            ("train_folders", "train_lists", "exclude_speakers"), ()
        )
        numbers = dict.fromkeys(
            ("n_valid_speakers", "min_seconds", "max_bad_files", "seed"), 0
        )
        return cls(
            **training,
            **numbers,
            n_valid_trials=2,
            max_valid_utterances=2,
            convert_folder=None,
            save_folder=save_folder,
            test_folders=test_folders,
            trial_lists=trial_lists,
            enrol_maps=enrol_maps,
        )

    def __post_init__(self):
        for name in (
            *("train_folders", "test_folders", "trial_lists", "train_lists"),
            "enrol_maps",
        ):
            setattr(self, name, [resolve(p) for p in as_list(getattr(self, name))])
        self.exclude_speakers = sorted({str(s) for s in as_list(self.exclude_speakers)})
        self.save_folder = resolve(self.save_folder)
        folder = self.convert_folder
        self.convert_folder = resolve(folder) if folder else None
        if not self.train_folders and not (self.test_folders and self.trial_lists):
            raise InputError(
                "train_folders is empty, expected at least one folder, or test_folders "
                "and trial_lists, to prepare for test alone"
            )
        self._check_numbers()
        if self.test_folders and not self.trial_lists:
            logger.warning("test_folders is given but no trial_lists: it is not used")
        if self.enrol_maps and not self.trial_lists:
            raise InputError(
                f"enrol_map={self.enrol_maps[0]} without trial_lists, expected the "
                "lists whose enrol side names its models"
            )
        self.test_folders = self.test_folders or self.train_folders

    def _check_numbers(self):
        check_at_least("n_valid_speakers", self.n_valid_speakers, 0)
        if self.n_valid_speakers == 1:
            raise InputError(
                "n_valid_speakers=1, expected 0 or at least 2: trials compare speakers"
            )
        check_at_least("n_valid_trials", self.n_valid_trials, 2)
        check_at_least("max_valid_utterances", self.max_valid_utterances, 2)
        check_at_least("min_seconds", self.min_seconds, 0, whole=False)
        check_at_least("join_seconds", self.join_seconds, 0, whole=False)
        check_at_least("max_bad_files", self.max_bad_files, 0)
        check_at_least("seed", self.seed, 0)


def check_at_least(name, value, minimum, whole=True):
    """Refuse an argument that is no number or below ``minimum``."""
    kind = int if whole else (int, float)
    # bool is a kind of int; NaN compares false with everything.
    right = isinstance(value, kind) and not isinstance(value, bool)
    if not (right and value >= minimum):
        what = "a whole number" if whole else "a number"
        raise InputError(f"{name}={value!r}, expected {what} of at least {minimum}")


def resolve(path):
    """``~`` expanded, relative to the current folder, links followed."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"{path!r}, expected the name of a file or folder")
    return Path(path).expanduser().resolve()


def as_list(values):
    """A list from what YAML or a command line may give: nothing, one value, several."""
    if values is None:
        return []
    return [values] if isinstance(values, (str, os.PathLike)) else list(values)
