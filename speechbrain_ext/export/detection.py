"""What evaluate.py left of a spoofing detector, for an export.

results.json                        figures; whose, by which calibrator
calibration.json, thresholds.json   of the development recordings
"""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult

from speechbrain_ext.export.thresholds import Measured, Results
from speechbrain_ext.inference.folder import CALIBRATION_FILE
from speechbrain_ext.inference.thresholds import THRESHOLDS_FILE, load_thresholds
from speechbrain_ext.scoring.backend import Backend
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.conditions import ERRORS_WANTED
from speechbrain_ext.scoring.detection import BONAFIDE, SPOOF
from speechbrain_ext.scoring.detection.report import LEGEND, as_markdown
from speechbrain_ext.utils.files import read_json

LLR = "llr"
TASK = {"task_type": "audio-classification", "task_name": "Spoofing detection"}


@dataclass(frozen=True, eq=False)
class DetectionResults(Results):
    """Results of evaluate.py, whose back-end has a calibrator alone.

    Attributes
    ----------
    thresholds : dict of str to Thresholds
        Of ``llr``; empty where dev was not scored.
    """

    thresholds: dict = field(default_factory=dict)

    def measured(self):
        """Thresholds, and in words which recordings they are of → Measured."""
        if not self.thresholds:
            return Measured({}, f"{self.folder}: evaluate.py did not score dev")
        curve = self.thresholds[LLR]
        words = (
            f"{curve.n_target:,} bona fide recordings and {curve.n_nontarget:,} spoofs "
            "of the development set"
        )
        return Measured(self.thresholds, words)


def _is_figures(lists):
    """the figures of detection, as evaluate.py writes them"""
    return bool(as_markdown({"lists": lists}))


_RESULTS = {
    "lists": _is_figures,
    "costs": {"c_miss": float, "c_fa": float, "p_spoof": float},
    "calibrator": (str, None),
    "weights_sha256?": str,
    "pretrained_folder?": (str, None),
}


def read_detection_results(folder):
    """Read the output folder of evaluate.py → DetectionResults.

    InputError: no results.json, another content, a calibrator or thresholds that are
    damaged.
    """
    folder = Path(folder)
    what = "the results.json that evaluate.py writes"
    about = read_json(folder / "results.json", _RESULTS, what=what)
    lists, calibrator = about.pop("lists"), None
    if about["calibrator"] is not None:
        calibrator = QualityCalibrator.load(folder / CALIBRATION_FILE, [LLR])
    path = folder / THRESHOLDS_FILE
    thresholds = load_thresholds(path) if path.is_file() else {}
    backend = Backend(calibrator=calibrator)
    return DetectionResults(folder, lists, about, backend, folder, thresholds)


def table_of(lists):
    """The figures of results.json as Markdown."""
    return as_markdown({"lists": lists})


def legend_of(costs):
    """What the figures of the table are; costs as in results.json."""
    return LEGEND.format(**costs, enough=ERRORS_WANTED)


def figures_of(lists):
    """Figures of every list and system, as the hub's model index has them."""
    for result in lists:
        for row in result["systems"]:
            of = row["pooled"]
            for kind, what, value in (
                ("min_dcf", "minDCF", of["min_dcf"]),
                ("act_dcf", "actDCF", of["actual_dcf"]),
                ("cllr", "Cllr", of["cllr"]),
                ("eer", "EER %", of["eer_percent"]),
            ):
                if value is not None:
                    yield EvalResult(
                        **TASK,
                        dataset_type=result["list"],
                        dataset_name=(
                            f"{result['list']}: {result[BONAFIDE]:,} bona fide, "
                            f"{result[SPOOF]:,} spoofs"
                        ),
                        metric_type=kind,
                        metric_name=f"{what}, {row['title']}",
                        metric_value=round(value, 4),
                    )
