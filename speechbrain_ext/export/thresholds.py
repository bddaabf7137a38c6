"""Which trials a model's thresholds are measured on, and what verify.py left.

Trials of training speakers promise too much, and thresholds taken from the test list
would report that list's own error rates. So thresholds come from the calibration trials
of verify.py, where their speakers are in neither; or from scores that the user names;
otherwise there are none. The output folder of verify.py holds::

    results.json                     figures; whose, by which cohort and calibrator
    cohort.npz, calibration.json     unless results.json names files of an earlier run
    calibration_scores_SYSTEM.npz    beside the calibrator
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.evaluation.score_lists import read_lists
from speechbrain_ext.inference.thresholds import KINDS, Thresholds
from speechbrain_ext.scoring.backend import Backend, input_names
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.calibration.fusion import stack_scores
from speechbrain_ext.scoring.calibration.trials import calibration_scores_path
from speechbrain_ext.scoring.cohort import load_cohort
from speechbrain_ext.scoring.embeddings import SUFFIXES
from speechbrain_ext.scoring.enrolment import check_speakers, speaker_of, speakers_of
from speechbrain_ext.scoring.report import as_markdown
from speechbrain_ext.scoring.score_files import read_score_table, read_scores
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import read_json, sha256

logger = logging.getLogger(__name__)

KIND_OF_SYSTEM = {**{kind: kind for kind in KINDS}, "s_norm": "as_norm"}
LIST = "the trial list"  # among the systems; none of theirs is named so


class Measured(NamedTuple):
    """``thresholds`` by kind of score, and in words which trials they are ``from``.

    Without thresholds the words say why.
    """

    thresholds: dict
    source: str


def from_calibration(results, trained):
    """Thresholds of the speakers that verify.py calibrated on.

    Arguments
    ---------
    results : Results
        Of :func:`~speechbrain_ext.export.thresholds.read_results`.
    trained : collection of str
        Speakers of the training; where none are known, those of the cohort count.

    Returns
    -------
    Measured

    Raises
    ------
    InputError
        A damaged file of scores.
    """
    if results.calibration_folder is None:
        return Measured({}, f"{results.folder}: verify.py did not calibrate")
    tables = {}
    for system in results.systems:
        path = calibration_scores_path(results.calibration_folder, system)
        if not path.is_file():
            return Measured({}, f"{path} is not there: run verify.py again")
        tables[system] = read_score_table(path)
    trials, _ = tables[results.systems[0]]
    speakers, problem = _held_out(trials, results, trained)
    if problem:
        return Measured({}, problem)
    thresholds = _measure({s: (t.labels, scores) for s, (t, scores) in tables.items()})
    words = (
        f"{trials.n_target:,} target and {trials.n_nontarget:,} non-target trials of "
        f"{len(speakers)} speakers, held out of training and not among those of the "
        "results above"
    )
    return Measured(thresholds, words)


def from_files(words, trials=None, tested=()):
    """Thresholds of score files that the user chose.

    Arguments
    ---------
    words : sequence of str
        ``KIND=FILE`` or, where the file's name ends in ``_KIND``, ``FILE``: text
        (``enrol test score``) or table (.npz, .safetensors).
    trials : str, Path or None
        The trial list, for its labels; None takes those of the tables.
    tested : sequence of str
        File names of the lists whose figures are reported.

    Returns
    -------
    Measured

    Raises
    ------
    InputError
        A kind of score that is unknown, not given, or comes twice; files that cannot
        be read or do not fit the list; no labels.
    """
    labelled = None
    if trials is not None:
        (labelled,) = read_lists([trials]).values()
    columns, kinds = {}, {}
    for word in words:
        kind, path = _kind_and_file(word)
        if kind in columns:
            raise InputError(f"--thresholds_from {word}: a second file of {kind}")
        labels, scores = columns[kind] = _labels_and_scores(path, labelled)
        n_target = int(np.sum(labels))
        what = (
            f"{n_target:,} target and {len(scores) - n_target:,} non-target trials of "
            f"{Path(trials or path).name}"
        )
        kinds.setdefault(what, []).append(kind)
    source = "; ".join(f"{what} ({', '.join(of)})" for what, of in kinds.items())
    if trials is not None and Path(trials).name in tested:
        source += (
            ". This list is among those of the results above: there these thresholds "
            "keep what they promise by construction, elsewhere they may not"
        )
    return Measured(_measure(columns), source)


def _measure(columns):
    """{system: (labels, scores)} → {kind: Thresholds}; others have no kind."""
    curves = {}
    for system, (labels, scores) in columns.items():
        if kind := KIND_OF_SYSTEM.get(system):
            with naming(f"thresholds of {system}"):
                curves[kind] = Thresholds.from_scores(scores, labels)
    return curves


def _held_out(trials, results, trained):
    """(names of their speakers, what is wrong with these or None)."""
    known, path = None, results.about.get("calibration_manifest")
    if path and Path(path).is_file():
        manifest = read_manifest(path)
        known = dict(zip(manifest.ids.tolist(), manifest.speakers.tolist()))
    try:
        check_speakers(trials, speakers_of(trials.names, known))
    except InputError as error:
        return None, f"nobody knows whether its speakers were trained on: {error}"
    used = np.unique([trials.enrol, trials.test])
    speakers = _speakers(trials.names[used], known)
    cohort = results.backend.cohort
    if not trained and cohort is not None:
        trained = cohort.speakers.tolist()
    tested = set()
    for path in sorted(results.folder.glob("scores_*_cosine.npz")):
        tested.update(_speakers(read_score_table(path)[0].names))
    for others, what in ((trained, "trained on"), (tested, "tested")):
        if shared := sorted(speakers.intersection(others)):
            return speakers, (
                f"{len(shared)} speakers of the calibration were {what} too, first "
                f"{shared[0]}"
            )
    return speakers, None


def _speakers(names, known=None):
    """Names of recordings → the set of their speakers' names."""
    known = known or {}
    return {known.get(name) or speaker_of(name) for name in names.tolist()}


def _kind_and_file(word):
    kind, equals, path = word.partition("=")
    if not equals:
        path, stem = word, Path(word).stem
        kind = next((k for k in KIND_OF_SYSTEM if stem.endswith(f"_{k}")), "")
    if kind not in KIND_OF_SYSTEM or not path:
        raise InputError(
            f"--thresholds_from {word}: scores of which kind? expected KIND=FILE with "
            f"one of {', '.join(KINDS)}"
        )
    return KIND_OF_SYSTEM[kind], path


def _labels_and_scores(path, labelled):
    """A file of scores → (labels [T], scores [T]), in the order of the list if any."""
    read = read_score_table if Path(path).suffix.lower() in SUFFIXES else read_scores
    trials, scores = read(path)
    if labelled is not None:
        systems = {LIST: (labelled, labelled.labels), str(path): (trials, scores)}
        return labelled.labels, stack_scores(systems).values[:, 1]
    if trials.labels is None:
        raise InputError(f"{path}: no labels, expected --trials LIST for them")
    return trials.labels, scores


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
    def list_names(self):
        """File names of the trial lists, without folders."""
        return [Path(result["list"]).name for result in self.lists]

    @property
    def systems(self):
        """Names of the systems of the first list: ``cosine``, ``as_norm``, …"""
        return [row["system"] for row in self.lists[0]["systems"]]

    def check_model(self, weights):
        """InputError where the figures are of other weights than this file's."""
        tested = self.about.get("weights_sha256")
        if tested is None:
            logger.warning(
                "%s does not say which weights it is of: make sure that it is %s",
                *(self.folder / "results.json", weights),
            )
        elif tested != (digest := sha256(weights)):
            raise InputError(
                f"{self.folder / 'results.json'}: figures of other weights (SHA-256 "
                f"{tested[:12]}…, in {self.about.get('pretrained_folder')}), expected "
                f"those of {weights} ({digest[:12]}…)"
            )


def _is_figures(lists):
    """the figures of trial lists, as verify.py writes them"""
    return bool(as_markdown(lists))


_RESULTS = {
    "lists": _is_figures,
    "top_n?": (int, None),
    "weights_sha256?": str,
    **dict.fromkeys(
        ("cohort?", "calibrator?", "pretrained_folder?", "calibration_manifest?"),
        (str, None),
    ),
}


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
    about = read_json(path, _RESULTS, what="the results.json that verify.py writes")
    lists = about.pop("lists")
    cohort = calibrator = calibration_folder = None
    top_n = about.get("top_n", 300)
    if "cohort_speakers" in about:
        cohort = load_cohort(about.get("cohort") or folder / "cohort.npz")
    if "calibration_objective" in about:
        file = Path(about.get("calibrator") or folder / "calibration.json")
        names = input_names(True, cohort is not None, top_n)
        calibrator = QualityCalibrator.load(file, names)
        calibration_folder = file.parent
    with naming(path):
        backend = Backend(cohort, calibrator, top_n)
    return Results(folder, lists, about, backend, calibration_folder)
