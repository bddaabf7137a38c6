"""The report of spoofing detection: every figure of every system on every list.

Written to one folder:

    results.md, results.csv, results.json   the figures, for people, tables, programs
    det_LIST.png                            DET curves of all systems
    calibration_LIST.png                    cost against the prior, of likelihood ratios
    scores_LIST_SYSTEM.png                  score histograms
    attacks_LIST.png, codecs_LIST.png       minDCF of each, with intervals
    attacks_by_codec_LIST.png               minDCF of each attack through each codec

The last three are of a list's last system, and drawn where the list tells.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ext.scoring.conditions import ERRORS_WANTED
from speechbrain_ext.scoring.detection import (
    ASVSPOOF5,
    BONAFIDE,
    SPOOF,
    Keys,
    detection_figures,
)
from speechbrain_ext.scoring.plots import (
    draw_heat_map,
    new_figure,
    plot_calibration,
    plot_det,
    plot_histogram,
    save_figure,
)
from speechbrain_ext.scoring.report import (
    N_RESAMPLES,
    lowest_rows,
    markdown_table,
    with_interval,
    without_nan,
)
from speechbrain_ext.utils.errors import naming
from speechbrain_ext.utils.files import write_atomically, write_json

POOLED = "pooled"
LEGEND = (
    "Intervals: 95 %, bootstrap over speakers. minDCF and actDCF: C_miss {c_miss:g}, "
    "C_fa {c_fa:g}, prior of a spoof {p_spoof:g}, normalised. Cllr in bits. actDCF and "
    "Cllr take scores as log-likelihood ratios: of others they say how wrong that "
    "would be. *: fewer than {enough} misses or false alarms at the EER, too few to "
    "rely on; –: one class alone."
)
_FIGURES = ("min_dcf", "actual_dcf", "cllr", "eer_percent")
_HEAD = ["minDCF (95 %)", "actDCF (95 %)", "Cllr (95 %)", "EER % (95 %)"]
_DIGITS = (4, 4, 4, 2)


class ScoredList(NamedTuple):
    """N recordings and their scores.

    Attributes
    ----------
    name : str
        As in file names: ``eval``.
    keys : Keys
    systems : list of System
        Of :mod:`speechbrain_ext.scoring.report`, scores in the order of the keys. The
        last is the one that counts.
    """

    name: str
    keys: Keys
    systems: list


class DetectionReport(NamedTuple):
    """``table`` in Markdown, ``results`` as in the JSON, ``pictures`` {name: path}."""

    table: str
    results: dict
    pictures: dict


def write_detection_report(
    folder, lists, about=None, costs=ASVSPOOF5, n_resamples=N_RESAMPLES
):
    """Write the figures of scored lists, and draw their pictures.

    Arguments
    ---------
    folder : str or Path
        Is created.
    lists : list of ScoredList
    about : dict, optional
        What was detected, and how: goes into results.md and results.json.
    costs : Costs
    n_resamples : int
        Of the bootstrap; 0 leaves intervals out.

    Returns
    -------
    DetectionReport

    Raises
    ------
    InputError
        As :func:`~speechbrain_ext.scoring.detection.detection_figures`; names the list
        and the system.
    """
    folder, about = Path(folder), about or {}
    results = {**about, "costs": costs._asdict(), "lists": []}
    pictures = {}
    for scored in lists:
        rows = [
            _evaluate(scored, system, costs, n_resamples) for system in scored.systems
        ]
        result = {
            "list": scored.name,
            "keys": str(scored.keys.path),
            BONAFIDE: int(np.count_nonzero(scored.keys.is_bonafide)),
            SPOOF: int(np.count_nonzero(~scored.keys.is_bonafide)),
            "systems": rows,
        }
        results["lists"].append(result)
        pictures |= _draw(folder, scored, rows[-1], costs)
    table = as_markdown(results)
    parts = [table, LEGEND.format(**costs._asdict(), enough=ERRORS_WANTED)]
    parts.append("\n".join(f"- {key}: {value}" for key, value in about.items()))
    for result in results["lists"]:
        parts += _parts_as_markdown(result["list"], result["systems"][-1])
    write_json(folder / "results.json", without_nan(results))
    with write_atomically(folder / "results.md") as file:
        file.write("\n\n".join(filter(None, parts)) + "\n")
    with write_atomically(folder / "results.csv") as file:
        csv.writer(file, lineterminator="\n").writerows(_csv_rows(results))
    return DetectionReport(table, results, pictures)


def _evaluate(scored, system, costs, n_resamples):
    """All figures of one system, and its worst recordings → dict."""
    keys, scores = scored.keys, np.asarray(system.scores)
    with naming(f"{scored.name}: {system.title}"):
        found = detection_figures(
            *(scores, keys.is_bonafide, keys.attacks, _told(keys.codecs)),
            *(keys.speakers, costs, n_resamples),
        )
    del found["costs"]
    worst = {
        what: [
            {"file": keys.names[row], "score": float(scores[row])}
            | ({} if keys.attacks is None else {"attack": _word(keys.attacks, row)})
            for row in lowest_rows(sign * scores, keys.is_bonafide == is_bonafide)
        ]
        for what, is_bonafide, sign in ((BONAFIDE, True, 1), (SPOOF, False, -1))
    }
    about = {"system": system.name, "title": system.title}
    return {**about, "calibrated": system.calibrated, **found, "worst": worst}


def _word(column, row):
    return column.words[column.codes[row]]


def _told(codecs):
    """None in place of a column that says the same of all recordings."""
    several = codecs is not None and len(np.unique(codecs.codes)) > 1
    return codecs if several else None


def _draw(folder, scored, row, costs):
    """Pictures of one list → {name: path}."""
    name, labels = scored.name, scored.keys.is_bonafide
    curves = {system.title: (system.scores, labels) for system in scored.systems}
    paths = {f"det_{name}": folder / f"det_{name}.png"}
    cost = (
        f"C_miss {costs.c_miss:g}, C_fa {costs.c_fa:g}, prior of a spoof "
        f"{costs.p_spoof:g}"
    )
    plot_det(paths[f"det_{name}"], curves, costs.p_target, cost)
    for system in scored.systems:
        key = f"scores_{name}_{system.name}"
        paths[key] = folder / f"{key}.png"
        plot_histogram(paths[key], system.scores, labels, None, ("spoof", "bona fide"))
    ratios = {s.title: curves[s.title] for s in scored.systems if s.calibrated}
    if ratios:
        paths[f"calibration_{name}"] = folder / f"calibration_{name}.png"
        plot_calibration(paths[f"calibration_{name}"], ratios)
    for kind in ("attacks", "codecs"):
        if row.get(kind):
            paths[f"{kind}_{name}"] = folder / f"{kind}_{name}.png"
            _plot_bars(paths[f"{kind}_{name}"], {**row[kind], POOLED: row[POOLED]})
    if row.get("attacks_by_codec"):
        paths[f"attacks_by_codec_{name}"] = folder / f"attacks_by_codec_{name}.png"
        _plot_cells(paths[f"attacks_by_codec_{name}"], row)
    return {key: str(path) for key, path in paths.items()}


def _plot_bars(path, figures):
    """PNG: minDCF of each condition as a bar, its interval, and the EER beside it."""
    figures = {name: f for name, f in figures.items() if f["min_dcf"] is not None}
    names = list(figures)[::-1]  # the first on top
    costs = np.array([figures[name]["min_dcf"] for name in names])
    figure, axes = new_figure(6.4, 1.2 + 0.28 * len(names))
    colours = ["tab:blue" if name != POOLED else "dimgrey" for name in names]
    axes.barh(range(len(names)), costs, color=colours, alpha=0.8)
    for row, name in enumerate(names):
        interval = figures[name].get("intervals_95", {}).get("min_dcf")
        end = costs[row]
        if interval:
            axes.plot(interval, (row, row), color="black", linewidth=1.2)
            end = max(end, interval[1])
        text = f" {costs[row]:.3f}, EER {figures[name]['eer_percent']:.2f} %"
        text += "" if figures[name]["enough"] else " *"
        axes.text(end, row, text, va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(0, 1.45 * max(costs.max(), 1e-3))
    axes.set_xlabel(f"minDCF; *: under {ERRORS_WANTED} errors")
    save_figure(figure, path)


def _cells(row):
    """Attacks and codecs, pooled last; figures of each pair, or None."""
    cells, codecs = row["attacks_by_codec"], list(row["codecs"])
    table = [
        [*(cells[attack].get(codec) for codec in codecs), row["attacks"][attack]]
        for attack in cells
    ]
    table.append([*row["codecs"].values(), row[POOLED]])
    return [*cells, POOLED], [*codecs, POOLED], table


def _plot_cells(path, row):
    attacks, codecs, table = _cells(row)
    values = [[cell and cell["min_dcf"] for cell in line] for line in table]
    enough = [[bool(cell and cell["enough"]) for cell in line] for line in table]
    figure, axes = draw_heat_map(values, enough, attacks, codecs, "minDCF")
    axes.set_xlabel(f"codec; in brackets: under {ERRORS_WANTED} errors")
    axes.set_ylabel("attack")
    save_figure(figure, path)


def as_markdown(results):
    """The table of pooled figures: a row for each list and system."""
    head = ["list", "system", "bona fide", "spoof", *_HEAD, "minCllr"]
    return markdown_table(
        head,
        (
            [
                *(result["list"], row["title"]),
                *(f"{result[key]:,}" for key in (BONAFIDE, SPOOF)),
                *_figure_cells(row[POOLED]),
                f"{row[POOLED]['min_cllr']:.4f}",
            ]
            for result in results["lists"]
            for row in result["systems"]
        ),
    )


def _figure_cells(figures):
    """minDCF, actDCF, Cllr and EER of one set of figures as texts."""
    if figures["min_dcf"] is None:
        return ["–"] * len(_FIGURES)
    intervals = dict(figures.get("intervals_95", {}))
    if intervals:
        intervals["eer_percent"] = [100 * bound for bound in intervals["eer"]]
    cells = [
        with_interval(figures[name], intervals.get(name, ()), digits)
        for name, digits in zip(_FIGURES, _DIGITS)
    ]
    if not figures["enough"]:
        cells[-1] += " *"
    return cells


def _parts_as_markdown(name, row):
    """Tables by attack, by codec, by both, and of the worst recordings, as they are."""
    title = f"{name}, {row['title']}"
    for kind, one in (("attacks", "attack"), ("codecs", "codec")):
        if row.get(kind):
            head = [one, "bona fide", "spoof", *_HEAD]
            lines = (
                [word, f"{f[BONAFIDE]:,}", f"{f[SPOOF]:,}", *_figure_cells(f)]
                for word, f in row[kind].items()
            )
            yield f"By {one}, {title}:\n\n{markdown_table(head, lines)}"
    if row.get("attacks_by_codec"):
        attacks, codecs, table = _cells(row)
        lines = ([attack, *map(_both, line)] for attack, line in zip(attacks, table))
        head = [r"attack \ codec", *codecs]
        yield (
            f"minDCF / EER % by attack and codec, {title}:\n\n"
            f"{markdown_table(head, lines)}"
        )
    lines = (
        [what, entry["file"], entry.get("attack", ""), f"{entry['score']:.3f}"]
        for what in (BONAFIDE, SPOOF)
        for entry in row["worst"][what]
    )
    head = ["", "file", "attack", "score"]
    yield f"Worst recordings of {title}:\n\n{markdown_table(head, lines)}"


def _both(figures):
    if not figures or figures["min_dcf"] is None:
        return "–"
    few = "" if figures["enough"] else "*"
    return f"{figures['min_dcf']:.3f} / {figures['eer_percent']:.2f}{few}"


def _csv_rows(results):
    """Header and a row for each list, system, attack and codec, pooled first."""
    yield [
        *("list", "system", "attack", "codec", BONAFIDE, SPOOF),
        *("min_dcf", "actual_dcf", "cllr", "eer_percent"),
        *(f"{n}_{e}" for n in _FIGURES for e in ("low", "high")),
    ]
    for result in results["lists"]:
        for row in result["systems"]:
            about = (result["list"], row["system"])
            yield [*about, POOLED, POOLED, *_csv_cells(row[POOLED])]
            for attack, figures in row.get("attacks", {}).items():
                yield [*about, attack, POOLED, *_csv_cells(figures)]
            for codec, figures in row.get("codecs", {}).items():
                yield [*about, POOLED, codec, *_csv_cells(figures)]
            for attack, cells in row.get("attacks_by_codec", {}).items():
                for codec, figures in cells.items():
                    if figures:
                        yield [*about, attack, codec, *_csv_cells(figures)]


def _csv_cells(figures):
    intervals = dict(figures.get("intervals_95", {}))
    if intervals:
        intervals["eer_percent"] = [100 * bound for bound in intervals["eer"]]
    bounds = [b for name in _FIGURES for b in intervals.get(name, ("", ""))]
    values = ["" if figures[n] is None else figures[n] for n in _FIGURES]
    return [figures[BONAFIDE], figures[SPOOF], *values, *bounds]
