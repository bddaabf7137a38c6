"""RESULTS.md and results.png from what the benchmarks found.

ratio = peer / ours. Both are written from results/NAME.json alone: see run_all.py.
"""

from pathlib import Path

from harness import LIMIT

from speechbrain_ext.scoring.plots import new_figure, save_figure
from speechbrain_ext.utils.files import write_atomically

HEAD = """# Measured: speed and memory

![{n} ratios, peer / ours]({picture})

Written by `make bench`; the figures of one table come from one run of its script. Both
sides take turns on the same input; figures are medians, ± half the range between the
quartiles. The ratio is peer / ours: above 1, ours is faster or smaller. Memory is the
peak above what was held before.
"""
COLUMNS = ("claim", "ours", "peer", "ratio", "promised", "peak memory, ours / peer")
OF_A_RUN = ("threads", "load")  # of the machine: the rest seldom changes
BAR, WIDTH = 0.24, 9.0  # inches
COLOURS = {None: "tab:blue", True: "tab:green", False: "tab:red"}
MEANINGS = {
    True: "promised ratio held",
    False: "promised ratio missed",
    None: "no ratio promised",
}


def write_results(folder, results):
    """Write the table and the picture of several scripts' results.

    Arguments
    ---------
    folder : str or Path
        Gets RESULTS.md and, where there is a ratio to draw, results.png.
    results : list of dict
        As ``run_all.run_script`` returns them.
    """
    folder = Path(folder)
    drawn = plot_ratios(folder / "results.png", results)
    with write_atomically(folder / "RESULTS.md") as file:
        file.write(table(results, drawn))


# -- table -----------------------------------------------------------------------------


def table(results, n_drawn):
    """The text of RESULTS.md."""
    head = HEAD.format(n=n_drawn, picture="results.png")
    if not n_drawn:
        head = "".join(line for line in head.splitlines(True) if line[0] != "!")
    machines = list(dict.fromkeys(machine_line(r) for r in results if r["machine"]))
    parts = [head, verdict(results), "\n".join(f"- {line}" for line in machines)]
    parts += [section(result) for result in results]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def verdict(results):
    """How many promises hold, which do not, which scripts failed."""
    marked = [
        (f"{result['name']}: {row['name']}", row["met"])
        for result in results
        for row in result["rows"]
        if row["mark"] is not None
    ]
    lines = [f"**{sum(met for _, met in marked)} of {len(marked)} promises hold.**"]
    if not marked:
        lines = ["No promise is checked at these sizes."]
    lines += [f"- not held: {name}" for name, met in marked if not met]
    lines += [f"- failed: {result['name']}" for result in results if result["error"]]
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def machine_line(result):
    """What the figures depend on, but for threads and load."""
    known = {k: v for k, v in result["machine"].items() if k not in OF_A_RUN}
    processor, cpus = known.pop("processor"), known.pop("cpus")
    memory, gpu = known.pop("memory_gib"), known.pop("gpu", None)
    parts = [f"{processor}, {cpus} cores, {memory} GiB"] + [gpu] * bool(gpu)
    return "; ".join([*parts, *(f"{k} {v}" for k, v in known.items())])


def section(result):
    """One script: what was run, when and on what, and its rows."""
    facts = [f"`{result['command']}`", result["date"], f"commit {result['commit']}"]
    if result["machine"]:
        facts += ["threads {threads}, load {load} at start".format(**result["machine"])]
    lines = [f"## {result['name']}", "", result["title"], "", " · ".join(facts), ""]
    if result["error"]:
        lines += [f"**Failed:** `{result['error']}`", ""]
    if result["rows"] or result["left_out"]:
        lines += [cells(COLUMNS), cells(["---"] * len(COLUMNS))]
        lines += [row_line(row) for row in result["rows"]]
        lines += [left_out_line(row) for row in result["left_out"]]
    notes = [f"- {note}" for note in result["notes"]]
    return "\n".join([*lines, *([""] * bool(notes)), *notes])


def row_line(row):
    """One comparison as a line of the table."""
    source = f" ({row['source']})" * bool(row["source"])
    promised = "–"
    if row["mark"] is not None:
        verdict = "held" if row["met"] else "**not held**"
        promised = f"≥ {row['mark']:.3g}, {verdict}"
    memory = "–"
    if row["ours_memory"] is not None:
        memory = f"{row['ours_memory']:,.4g} / {row['peer_memory']:,.4g} MiB"
    return cells(
        [
            row["name"],
            with_spread(row, "ours"),
            f"{row['peer_name']}{source}: {with_spread(row, 'peer')}",
            f"{row['ratio']:.3g}",
            promised,
            memory,
        ]
    )


def with_spread(row, side):
    spread = row[f"{side}_spread"]
    return f"{row[side]:.4g}{f' ± {spread:.2g}' * bool(spread)} {row['unit']}"


def left_out_line(row):
    reason = f"left out: {row['reason']}"
    return cells([row["name"], reason, row["peer_name"], "–", "–", "–"])


def cells(words):
    words = (str(word).replace("|", "\\|") for word in words)
    return f"| {' | '.join(words)} |"


# -- picture ---------------------------------------------------------------------------


def plot_ratios(path, results):
    """Draw a bar per ratio on a logarithmic axis, by script → how many.

    Rows beside a limit are left out: they compare with nothing.
    """
    entries = []  # one a line: the name of a script, or a row
    for result in results:
        rows = [row for row in result["rows"] if row["peer_name"] != LIMIT]
        entries += [result["name"], *rows] if rows else []
    bars = {n: row for n, row in enumerate(entries) if isinstance(row, dict)}
    if not bars:
        path.unlink(missing_ok=True)
        return 0
    figure, axes = new_figure(WIDTH, 1.4 + BAR * len(entries))
    for line, row in bars.items():
        draw_bar(axes, line, row)
    labels = [
        entry if n not in bars else entry["name"] for n, entry in enumerate(entries)
    ]
    axes.set_yticks(range(len(entries)), labels, fontsize=7)
    for line, label in enumerate(axes.get_yticklabels()):
        label.set_fontweight("normal" if line in bars else "bold")
    finish(axes, [row["ratio"] for row in bars.values()], len(entries))
    explain(figure, axes)
    save_figure(figure, path)
    return len(bars)


def explain(figure, axes):
    """What colours and strokes mean, above the axes."""
    from matplotlib.patches import Patch  # where nothing is drawn none is needed

    meanings = [Patch(color=COLOURS[met], label=MEANINGS[met]) for met in COLOURS]
    meanings += axes.plot([], [], "k|", markersize=9, label="promised")
    style = {"loc": "outside upper center", "ncols": 4, "fontsize": 8, "frameon": False}
    figure.legend(handles=meanings, **style)


def draw_bar(axes, line, row):
    """From 1 to the ratio, with the ratio and the peer's name beside."""
    ratio = row["ratio"]
    axes.barh(line, ratio - 1, left=1, height=0.7, color=COLOURS[row["met"]])
    if row["mark"] is not None:
        axes.plot(row["mark"], line, "k|", markersize=9)
    text = f" {ratio:.3g}× {row['peer_name']} "
    at = max(1, ratio, row["mark"] or 0)
    axes.text(at, line, text, va="center", fontsize=7)


def finish(axes, ratios, n_lines):
    """Axes: peer / ours, logarithmic, with room for the words."""
    axes.set_xscale("log")
    low, high = min(0.8, *ratios), max(10.0, *ratios)
    axes.set_xlim(low / 1.1, high * (high / low) ** 0.35)
    axes.set_ylim(n_lines - 0.3, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("peer / ours: how many times faster or smaller", fontsize=9)
    ticks = [10**n for n in range(-2, 6) if low / 1.1 <= 10**n <= high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.grid(True, axis="x", which="major", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
