"""Error rate against size: what several verified models gain by being larger.

results folders of verify.py → parameters, multiply-adds of 1 s, time, EER of every list
"""

import os
from pathlib import Path

import torch

from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.profiling import count_macs, seconds_per_second
from speechbrain_ext.scoring.plots import new_figure, save_figure
from speechbrain_ext.scoring.report import markdown_table
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import read_json, write_atomically, write_json

_RESULTS = {
    "pretrained_folder": str,
    "lists": [
        {
            "list": str,
            "systems": [{"system": str, "eer_percent": float, "intervals_95?": dict}],
        }
    ],
}


def error_by_size(folders, system=None, seconds=None):
    """Size and error rates of verified models.

    Arguments
    ---------
    folders : sequence of str or Path
        Of verify.py: each names its model, as it was given there.
    system : str, optional
        As "cosine", "as_norm", "llr". None: the last that all of them have.
    seconds : float, optional
        Length of an utterance that the models are timed on, in turns.

    Returns
    -------
    dict
        ``system`` and ``models``, the smallest first: ``results``, ``model`` (folders),
        ``encoder`` and ``head`` (parameters), ``macs`` of 1 s, and ``eer``: list →
        ``percent`` and, where it was measured, ``interval_95``, both in per cent.
        With ``seconds`` also ``seconds``, the utterance's and in each model what it
        took.

    Raises
    ------
    InputError
        No folder, one without results or model, models without a list or a system in
        common.
    """
    found = {}
    for folder in map(Path, folders):
        path = folder / "results.json"
        about = read_json(path, _RESULTS, what="the results.json that verify.py writes")
        found[folder] = about["pretrained_folder"], _rates(about["lists"])
    lists = _common([rates for _, rates in found.values()], "list")
    tables = [rates[name] for _, rates in found.values() for name in lists]
    systems = _common(tables, "system")
    if system is not None and system not in systems:
        raise InputError(f"system {system!r}, expected one of {', '.join(systems)}")
    system, rows, models = system or systems[-1], [], []
    for folder, (source, rates) in found.items():
        model = load_pretrained(source)
        models.append(model)
        rows.append(
            {
                "results": str(folder),
                "model": source,
                "encoder": count_parameters(model.encoder).total,
                "head": count_parameters(model.head).total,
                "macs": count_macs(model, 1.0),
                "eer": {name: rates[name][system] for name in lists},
            }
        )
    about = {"system": system, "models": rows}
    if seconds is not None:
        about["seconds"] = seconds
        for row, speed in zip(rows, seconds_per_second(models, seconds)):
            row["seconds"] = speed * seconds
    rows.sort(key=lambda row: row["encoder"] + row["head"])
    return about


def write_error_by_size(folder, found):
    """Write sizes.json, sizes.md and sizes.png → the table in Markdown.

    ``found`` is of :func:`error_by_size`.
    """
    folder, models = Path(folder), found["models"]
    lists = list(models[0]["eer"])
    head, timed = ["model", "encoder", "head", "G MACs of 1 s"], "seconds" in found
    head += [f"ms for {found['seconds']:g} s"] if timed else []
    head += [f"EER % on {name}" for name in lists]
    lines = []
    names = _short_names([row["model"] for row in models])
    for name, row in zip(names, models):
        sizes = f"{row['encoder']:,}", f"{row['head']:,}", f"{row['macs'] / 1e9:.4g}"
        took = [f"{1000 * row['seconds']:.1f}"] if timed else []
        lines.append([name, *sizes, *took, *map(_cell, row["eer"].values())])
    table = markdown_table(head, lines)
    note = f"Scores: {found['system']}; intervals of 95 %."
    if timed:
        note += f" Time: {torch.get_num_threads()} threads, one utterance, in turns."
    write_json(folder / "sizes.json", found)
    with write_atomically(folder / "sizes.md") as file:
        file.write(f"{table}\n\n{note}\n")
    plot_error_by_size(folder / "sizes.png", found)
    return table


def plot_error_by_size(path, found):
    """PNG: EER over millions of parameters, a line for each list."""
    figure, axes = new_figure(6.4, 4.4)
    models = found["models"]
    millions = [(row["encoder"] + row["head"]) / 1e6 for row in models]
    for number, name in enumerate(models[0]["eer"]):
        rates = [row["eer"][name] for row in models]
        percents = [rate["percent"] for rate in rates]
        style = {"color": f"C{number}", "marker": "o", "label": name}
        axes.plot(millions, percents, **style)
        if all("interval_95" in rate for rate in rates):
            bounds = zip(*(rate["interval_95"] for rate in rates))
            axes.fill_between(millions, *bounds, color=f"C{number}", alpha=0.15)
    axes.set(xlabel="parameters (millions)", ylabel=f"EER (%), {found['system']}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    save_figure(figure, path)


def _rates(lists):
    """Of results.json: list → system → its EER."""
    found = {}
    for result in lists:
        name, systems = Path(result["list"]).stem, {}
        for row in result["systems"]:
            systems[row["system"]] = rate = {"percent": row["eer_percent"]}
            if interval := row.get("intervals_95", {}).get("eer"):
                rate["interval_95"] = [100 * bound for bound in interval]
        # models that are enrolled in several ways have a result of each
        enrolment = result.get("enrolment")
        found[f"{name}, {enrolment}" if enrolment else name] = systems
    return found


def _common(tables, what):
    """Keys that all dictionaries have, in the order of the first."""
    if not tables:
        raise InputError("no results, expected at least one folder of verify.py")
    keys = [key for key in tables[0] if all(key in table for table in tables)]
    if not keys:
        raise InputError(
            f"results of {len(tables)} have no {what} in common, expected one"
        )
    return keys


def _short_names(folders):
    """Folders without what all of them are below."""
    common = os.path.commonpath(folders) if len({*folders}) > 1 else ""
    return [os.path.relpath(folder, common) if common else folder for folder in folders]


def _cell(rate):
    if "interval_95" not in rate:
        return f"{rate['percent']:.2f}"
    low, high = rate["interval_95"]
    return f"{rate['percent']:.2f} ({low:.2f}–{high:.2f})"
