"""What a chain will do, before it does it: stages, steps, hours, disk.

    steps = ⌊utterances / (batch_size × processes)⌋ / accumulation × epochs
    hours = steps × accumulation × seconds_per_step / 3600, or hours / processes

``seconds_per_step`` is that of the hparams file's own batch size and grows with it.
What a chain's file says nothing of is left open.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from speechbrain_ext.utils.config import read_tree


class Cost(NamedTuple):
    """Of one stage; None of what is not known."""

    steps: int | None
    hours: float | None
    gigabytes: float | None


def processes_of(launcher):
    """How many processes a launcher starts: torchrun's nodes × processes of each."""
    text = " ".join(launcher)

    def number(option):
        match = re.search(rf"--{option}[= ](?:\d+:)?(\d+)", text)
        return int(match[1]) if match else 1

    return number("nproc[_-]per[_-]node") * number("nnodes")


def cost_of(stage, processes):
    """Steps, hours and disk of a stage → :class:`Cost`."""
    figures, steps, hours = stage.figures, None, None
    values = _merged(stage.tree, stage.values)
    epochs, batch = (_find(values, key) for key in ("number_of_epochs", "batch_size"))
    utterances = _find(values, "draws_per_epoch") or figures.get("utterances")
    accumulated = int(stage.overrides.get("grad_accumulation_factor") or 1)
    if all(isinstance(n, int) for n in (epochs, batch, utterances)):
        batches = max(1, utterances // (batch * processes))
        steps = -(-batches // accumulated) * epochs
        if seconds := figures.get("seconds_per_step"):
            usual = _find(read_tree(stage.hparams), "batch_size")
            hours = batches * epochs * seconds * batch / usual / 3600
    if hours is None and figures.get("hours") is not None:
        hours = figures["hours"] / (processes if stage.launched else 1)
    return Cost(steps, hours, figures.get("gigabytes"))


def describe(chain, states):
    """The plan as lines of text.

    Arguments
    ---------
    chain : Chain
    states : dict of str to str
        Stage → "done", "to do" or "begun".

    Returns
    -------
    list of str
    """
    processes = processes_of(chain.launcher)
    rows = [("", "stage", "runs", "starts from", "steps", "hours", "GB", "")]
    costs = [cost_of(stage, processes) for stage in chain.stages]
    for number, (stage, cost) in enumerate(zip(chain.stages, costs), start=1):
        rows.append(
            (
                str(number),
                stage.name,
                _runs(stage),
                _first(stage.needs),
                _shown(cost.steps, ",d"),
                _shown(cost.hours, ".2f"),
                _shown(cost.gigabytes, ".0f"),
                states[stage.name],
            )
        )
    lines = [f"{chain.name}: {len(chain.stages)} stages, in {chain.folder}"]
    lines += table(rows, right={0, 4, 5, 6})
    left = [c for s, c in zip(chain.stages, costs) if states[s.name] != "done"]
    hours = [cost.hours for cost in left if cost.hours is not None]
    if hours:
        lines.append(
            f"to do: about {sum(hours):.1f} hours on {processes} GPU(s), counted for "
            f"{len(hours)} of {len(left)} stages"
        )
    disk = sum(cost.gigabytes or 0 for cost in left)
    if disk:
        free = shutil.disk_usage(_existing(chain.folder)).free / 1e9
        lines.append(f"checkpoints: about {disk:.0f} GB, {free:.0f} GB are free")
        if free < disk:
            lines.append("warning: that is not enough; checkpoints are in */save")
    return lines


def table(rows, right=()):
    """Rows of texts → lines; columns ``right`` end, the others begin together."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            text.rjust(width) if place in right else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _runs(stage):
    if stage.hparams:
        return f"{Path(stage.words[0]).name} {stage.hparams.stem}"
    words = [word for word in stage.words if not word.startswith("-")]
    return " ".join(Path(word).name for word in words[:2])


def _first(names, most=3):
    """Names in a column that has no room for all of them."""
    more = f", … ({len(names)})" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "–"


def _shown(value, form):
    return "–" if value is None else format(value, form)


def _existing(folder):
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _merged(tree, values):
    """The file with overrides in their places, as plain mappings."""
    merged = dict(tree)
    for key, value in values.items():
        own = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(own, Mapping)
        merged[key] = _merged(own, value) if both else value
    return merged


def _find(tree, key):
    """The value of a key, wherever in the file it is; None where it is not."""
    if key in tree:
        return tree[key]
    inside = [_find(v, key) for v in tree.values() if isinstance(v, Mapping)]
    return next((value for value in inside if value is not None), None)
