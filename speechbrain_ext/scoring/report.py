"""The report of a verification: every figure of every system on every trial list.

Systems are the scores of one model after each step (cosine, AS-norm, calibrated), or
those of several models. Written to one folder:

    results.json                all figures with all digits, and the worst trials
    results.md                  the table that people read, and the worst trials
    det_LIST.png                DET curves of all systems
    scores_LIST_SYSTEM.png      score histograms
    calibration_LIST.png        cost against the prior, of likelihood ratios
    genres_LIST.png             error rates by genre, where names tell genres
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechbrain_ext.scoring.conditions import ERRORS_WANTED
from speechbrain_ext.scoring.intervals import bootstrap_intervals
from speechbrain_ext.scoring.metrics import (
    actual_dcf,
    cllr,
    equal_error_rate,
    min_cllr,
    min_dcf,
)
from speechbrain_ext.scoring.plots import plot_calibration, plot_det, plot_histogram
from speechbrain_ext.utils.errors import naming
from speechbrain_ext.utils.files import write_atomically, write_json

LEGEND = (
    "Intervals: 95 %, bootstrap over speakers. minDCF and actDCF: unit costs, prior in "
    "brackets, normalised. Cllr in bits; of scores that are not calibrated it says how "
    "wrong they would be as likelihood ratios."
)
P_TARGETS = (0.01, 0.05)
N_RESAMPLES = 200
N_WORST = 10


@dataclass(frozen=True, eq=False)
class System:
    """Scores of one system on one list.

    Attributes
    ----------
    name : str
        As in file names: ``as_norm``.
    title : str
        As people read it: ``AS-norm``.
    scores : np.ndarray
        float [T].
    as_norm, qmf : bool or None
        Whether they were normalised, and corrected for quality; None: not known.
    calibrated : bool
        Whether they are natural-log likelihood ratios, whose actual costs mean
        something.
    """

    name: str
    title: str
    scores: np.ndarray
    as_norm: bool | None = None
    qmf: bool | None = None
    calibrated: bool = False


def evaluate(trials, systems, speakers=None, n_resamples=N_RESAMPLES):
    """All figures of one trial list.

    Arguments
    ---------
    trials : Trials
        T trials with labels.
    systems : list of System
        Scores in the order of the list.
    speakers : np.ndarray or None
        int [U], the speaker of each of ``trials.names``; None leaves the bootstrap
        intervals out.
    n_resamples : int
        Of the bootstrap; 0 leaves the intervals out.

    Returns
    -------
    dict
        ``list``, ``trials``, ``targets``, ``nontargets``, and ``systems``: a list of
        dictionaries of figures, costs by prior.

    Raises
    ------
    InputError
        As the metrics; names the list and the system.
    """
    rows = []
    for system in systems:
        with naming(f"{trials.path}: {system.title}"):
            row = _figures(system, trials.labels)
            if speakers is not None and n_resamples:
                codes = speakers[trials.enrol], speakers[trials.test]
                row["intervals_95"] = bootstrap_intervals(
                    system.scores, trials.labels, *codes, n_resamples
                )
        row["worst"] = worst_trials(trials, system.scores)
        rows.append(row)
    return {
        "list": str(trials.path),
        "trials": len(trials),
        "targets": trials.n_target,
        "nontargets": trials.n_nontarget,
        "systems": rows,
    }


def worst_trials(trials, scores, n=N_WORST):
    """Up to ``n`` targets that score lowest and non-targets that score highest.

    ``targets`` and ``nontargets`` → lists of dictionaries ``line``, ``enrol``,
    ``test``, ``score``, the worst first; of equal scores, the first in the list.
    """
    return {
        name: [
            _trial_as_dict(trials, scores, row)
            for row in lowest_rows(sign * scores, trials.labels == label, n)
        ]
        for name, label, sign in (("targets", 1, 1), ("nontargets", 0, -1))
    }


def lowest_rows(scores, among, n=N_WORST):
    """Rows of the ``n`` lowest of those scores [T] that a mask bool [T] picks: list.

    The lowest first; of equal scores, the first in the list.
    """
    rows = np.flatnonzero(among)
    scores = scores[rows]
    if len(rows) > n:  # of a long list only the lowest few are sorted
        kept = scores <= np.partition(scores, n - 1)[n - 1]
        rows, scores = rows[kept], scores[kept]
    return rows[np.argsort(scores, kind="stable")[:n]].tolist()


def draw_pictures(folder, name, trials, systems):
    """Draw DET curves, histograms and the calibration of one list, called ``name``.

    Returns ``det``, ``histograms`` (by system) and, of likelihood ratios,
    ``calibration`` → path of the PNG in ``folder``.
    """
    folder, labels = Path(folder), trials.labels
    pictures = {"det": str(folder / f"det_{name}.png"), "histograms": {}}
    plot_det(pictures["det"], {s.title: (s.scores, labels) for s in systems})
    for system in systems:
        path = str(folder / f"scores_{name}_{system.name}.png")
        plot_histogram(path, system.scores, labels)
        pictures["histograms"][system.name] = path
    calibrated = {s.title: (s.scores, labels) for s in systems if s.calibrated}
    if calibrated:
        pictures["calibration"] = str(folder / f"calibration_{name}.png")
        plot_calibration(pictures["calibration"], calibrated)
    return pictures


def write_report(folder, results, about):
    """Write results.json and results.md.

    Figures that are not finite (the Cllr of scores such as 1e308) are null in the JSON
    file, which knows no other name for them.

    Arguments
    ---------
    folder : str or Path
    results : list of dict
        From :func:`evaluate`, a list each.
    about : dict
        What was verified, and how: goes into both files.

    Returns
    -------
    str
        The table in Markdown.
    """
    folder, table = Path(folder), as_markdown(results)
    notes = "\n".join(f"- {key}: {value}" for key, value in about.items())
    parts = [table, LEGEND, notes]
    for result in results:
        if "genres" in result:
            title = f"{_name_of(result)}, {result['systems'][-1]['title']}"
            parts.append(conditions_as_markdown(result["genres"], title))
    parts += map(_worst_as_markdown, results)
    write_json(folder / "results.json", without_nan({**about, "lists": results}))
    with write_atomically(folder / "results.md") as file:
        file.write("\n\n".join(parts) + "\n")
    return table


def as_markdown(results):
    """The table of :func:`evaluate`'s results: a row per list and system."""
    points = list(results[0]["systems"][0]["min_dcf"])
    head = ["list", "system", "AS-norm", "QMF", "EER % (95 %)"]
    head += [f"minDCF({p}) (95 %)" for p in points]
    head += [f"actDCF({p})" for p in points] + ["Cllr (95 %)", "minCllr"]
    return markdown_table(
        head,
        (
            [_name_of(result), *_figure_cells(row, points)]
            for result in results
            for row in result["systems"]
        ),
    )


def conditions_as_markdown(table, title):
    """A table of :func:`~speechbrain_ext.scoring.conditions.by_condition` as read.

    Rows are conditions of the enrolment, columns those of the test; ``title`` says of
    which list and system.
    """
    kind = table["kind"]
    keys = ("eer_percent", "targets", "enough")
    rows = (
        [name, *map(_condition_cell, *(table[key][row] for key in keys))]
        for row, name in enumerate(table["enrol"])
    )
    same, other = (
        _condition_cell(*(table[f"{which}_{kind}"][key] for key in keys))
        for which in ("same", "other")
    )
    cells = markdown_table([r"enrolment \ test", *table["test"]], rows)
    return (
        f"EER % (targets) by {kind} of {title}:\n\n{cells}\n\n"
        f"Enrolment and test of the same {kind} {same}, another {other}. Each cell has "
        f"its own threshold. *: fewer than {ERRORS_WANTED} misses or false alarms, too "
        "few to rely on; –: no targets or no non-targets."
    )


def _condition_cell(eer_percent, targets, enough):
    if eer_percent is None:
        return f"– ({targets:,})" if targets else "–"
    return f"{eer_percent:.2f}{'' if enough else '*'} ({targets:,})"


def _worst_as_markdown(result):
    """The worst trials of the last system, which is the one that a user would take."""
    row = result["systems"][-1]
    cells = (
        [what, str(t["line"]), t["enrol"], t["test"], f"{t['score']:.3f}"]
        for key, what in (("targets", "target"), ("nontargets", "non-target"))
        for t in row["worst"][key]
    )
    table = markdown_table(["", "line", "enrol", "test", "score"], cells)
    return f"Worst trials of {_name_of(result)}, {row['title']}:\n\n{table}"


def markdown_table(head, rows):
    """A table as Markdown has it, of a line of texts and further such lines."""
    lines = [head, ["---"] * len(head), *rows]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name_of(result):
    """The list's file name, its enrolment where that is not one recording, its size."""
    enrolment = result.get("enrolment")
    by = f", enrolment: {enrolment}" if enrolment else ""
    return f"{Path(result['list']).name} ({result['trials']:,}{by})"


def _figure_cells(row, points):
    intervals = row.get("intervals_95", {})
    percent = [100 * bound for bound in intervals.get("eer", ())]
    yes_or_no = {True: "yes", False: "no", None: "–"}
    cells = [row["title"], *(yes_or_no[row[key]] for key in ("as_norm", "qmf"))]
    cells.append(with_interval(row["eer_percent"], percent, 2))
    for p in points:
        interval = intervals.get(f"min_dcf_{p}", ())
        cells.append(with_interval(row["min_dcf"][p], interval, 3))
    actual = row.get("actual_dcf", {})
    cells += [f"{actual[p]:.3f}" if p in actual else "–" for p in points]
    cells.append(with_interval(row["cllr"], intervals.get("cllr", ()), 3))
    return [*cells, f"{row['min_cllr']:.3f}"]


def with_interval(value, interval, digits):
    """A figure and, in brackets, its (low, high); an empty interval is left out."""
    if not interval:
        return f"{value:.{digits}f}"
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def without_nan(value):
    """The same for JSON: None in place of floats that are not finite."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(system, labels):
    scores = system.scores
    eer = equal_error_rate(scores, labels)
    row = {
        "system": system.name,
        "title": system.title,
        "as_norm": system.as_norm,
        "qmf": system.qmf,
        "calibrated": system.calibrated,
        "eer_percent": 100 * eer.eer,
        "eer_threshold": eer.threshold,
        "min_dcf": {str(p): min_dcf(scores, labels, p).dcf for p in P_TARGETS},
        "cllr": cllr(scores, labels).cllr,
        "min_cllr": min_cllr(scores, labels).cllr,
    }
    if system.calibrated:
        row["actual_dcf"] = {
            str(p): actual_dcf(scores, labels, p).dcf for p in P_TARGETS
        }
    return row


def _trial_as_dict(trials, scores, row):
    return {
        "line": row + 1,
        "enrol": str(trials.names[trials.enrol[row]]),
        "test": str(trials.names[trials.test[row]]),
        "score": float(scores[row]),
    }
