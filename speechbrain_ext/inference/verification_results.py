"""What verify.py left in its output folder, as an export wants it.

results.json                     figures; whose, and by which cohort and calibrator
cohort.npz, calibration.json     unless results.json names files of an earlier run
calibration_scores_SYSTEM.npz    beside the calibrator
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from speechbrain_ext.data.marker import sha256
from speechbrain_ext.errors import InputError, describe_os_error, naming
from speechbrain_ext.scoring.backend import Backend, input_names
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.cohort import load_cohort
from speechbrain_ext.scoring.report_tables import as_markdown

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Results:
    """A results folder, read and checked.

    Attributes
    ----------
    folder : Path
    lists : list of dict
        Figures of every trial list, as
        :func:`~speechbrain_ext.scoring.report.evaluate` gives them.
    about : dict
        The rest of results.json.
    backend : Backend
        Cohort and calibrator, where there are any.
    calibration_folder : Path or None
        Where the calibrator and its scores are; None without calibrator.
    """

    folder: Path
    lists: list
    about: dict
    backend: Backend
    calibration_folder: Path | None

    @property
    def table(self):
        """The figures as a table in Markdown."""
        return as_markdown(self.lists)

    @property
    def list_names(self):
        """File names of the trial lists, without folders."""
        return [Path(result["list"]).name for result in self.lists]

    @property
    def systems(self):
        """Names of the systems of the first list: ``cosine``, ``as_norm``, …"""
        return [row["system"] for row in self.lists[0]["systems"]]

    def check_model(self, weights):
        """Figures of another model have no place in a model's card.

        Arguments
        ---------
        weights : Path
            The model's file.

        Raises
        ------
        InputError
            They are of other weights.
        """
        tested = self.about.get("weights_sha256")
        if tested is None:
            logger.warning(
                "%s does not say which weights it is of: make sure that it is %s",
                *(self.folder / "results.json", weights),
            )
        elif tested != (found := sha256(weights)):
            raise InputError(
                f"{self.folder / 'results.json'}: figures of other weights (SHA-256 "
                f"{tested[:12]}…, in {self.about.get('pretrained_folder')}), expected "
                f"those of {weights} ({found[:12]}…)"
            )


def read_results(folder):
    """Read the output folder of verify.py.

    Arguments
    ---------
    folder : str or Path

    Returns
    -------
    Results

    Raises
    ------
    InputError
        No results.json, another content, a cohort or calibrator that is gone, damaged,
        or does not fit the other.
    """
    folder = Path(folder)
    path = folder / "results.json"
    about = _read(path)
    lists = about.pop("lists")
    cohort = calibrator = calibration_folder = None
    top_n = about.get("top_n", 300)
    if "cohort_speakers" in about:
        cohort = load_cohort(about.get("cohort") or folder / "cohort.npz")
    if "calibration_objective" in about:
        file = Path(about.get("calibrator") or folder / "calibration.json")
        names = input_names(True, cohort is not None, top_n)
        calibrator, calibration_folder = (
            QualityCalibrator.load(file, names),
            file.parent,
        )
    with naming(path):
        backend = Backend(cohort, calibrator, top_n)
    return Results(folder, lists, about, backend, calibration_folder)


def _read(path):
    expected = "expected the results.json that verify.py writes"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        as_markdown(values["lists"])
    except OSError as error:
        raise InputError(f"{describe_os_error(error)}, {expected}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: {type(error).__name__} ({error}), {expected}"
        ) from error
    return values
