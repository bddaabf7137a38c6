"""What people read of a report: its tables, in Markdown."""

from pathlib import Path

from speechbrain_ext.scoring.genres import genres_as_markdown

LEGEND = (
    "Intervals: 95 %, bootstrap over speakers. minDCF and actDCF: unit costs, prior in "
    "brackets, normalised. Cllr in bits; of scores that are not calibrated it says how "
    "wrong they would be as likelihood ratios."
)


def as_markdown(results):
    """The table: a row per list and system."""
    points = list(results[0]["systems"][0]["min_dcf"])
    head = ["list", "system", "AS-norm", "QMF", "EER % (95 %)"]
    head += [f"minDCF({p}) (95 %)" for p in points]
    head += [f"actDCF({p})" for p in points] + ["Cllr (95 %)", "minCllr"]
    lines = [_row(head), "|" + " --- |" * len(head)]
    for result in results:
        name = _name_of(result)
        lines += [_row([name, *_cells(row, points)]) for row in result["systems"]]
    return "\n".join(lines)


def _name_of(result):
    """The list's file name, its enrolment where that is not one recording, its size."""
    enrolment = result.get("enrolment")
    by = f", enrolment: {enrolment}" if enrolment else ""
    return f"{Path(result['list']).name} ({result['trials']:,}{by})"


def _cells(row, points):
    intervals = row.get("intervals_95", {})
    percent = [100 * bound for bound in intervals.get("eer", ())]
    known = {True: "yes", False: "no", None: "–"}
    cells = [row["title"], *(known[row[key]] for key in ("as_norm", "qmf"))]
    cells.append(_with_interval(row["eer_percent"], percent, 2))
    for p in points:
        interval = intervals.get(f"min_dcf_{p}", ())
        cells.append(_with_interval(row["min_dcf"][p], interval, 3))
    actual = row.get("actual_dcf", {})
    cells += [f"{actual[p]:.3f}" if p in actual else "–" for p in points]
    cells.append(_with_interval(row["cllr"], intervals.get("cllr", ()), 3))
    return [*cells, f"{row['min_cllr']:.3f}"]


def _with_interval(value, interval, digits):
    if not interval:
        return f"{value:.{digits}f}"
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def genres_table(result):
    """Error rates by genre of the last system."""
    title = f"{_name_of(result)}, {result['systems'][-1]['title']}"
    return genres_as_markdown(result["genres"], title)


def worst_as_markdown(result):
    """The worst trials of the last system, which is the one that a user would take."""
    row = result["systems"][-1]
    lines = [f"Worst trials of {_name_of(result)}, {row['title']}:", ""]
    lines += [_row(["", "line", "enrol", "test", "score"]), "|" + " --- |" * 5]
    for kind, trials in row["worst"].items():
        what = "target" if kind == "targets" else "non-target"
        for trial in trials:
            cells = [what, str(trial["line"]), trial["enrol"], trial["test"]]
            lines.append(_row([*cells, f"{trial['score']:.3f}"]))
    return "\n".join(lines)


def _row(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
