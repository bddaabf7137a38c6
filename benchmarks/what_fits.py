"""docs/gpu.md: what fits on 24, 40 and 80 GB, and how long it takes, for every recipe.

    python benchmarks/what_fits.py                        # measure what is new; write
    python benchmarks/what_fits.py --anew stage2_joint    # measure these again
    python benchmarks/what_fits.py --check stage2_joint   # at full size: within 5 %?

Memory is that of live tensors in a step on a GPU that is not there (:mod:`fake_step`).
A layer takes as much as the next, and an utterance as the next, so in each part of a
step, for an encoder of L layers and a batch of B,

    peak(L, B) = a + b L + B (c + d L)

of which four small steps give the four numbers; they are kept in what_fits.json. What
is chosen for a card is the fastest by :func:`seconds_of` of all batches that divide the
published global batch, with and without gradient checkpointing.
"""

import argparse
import json
import logging
import math
import sys
from functools import partial
from pathlib import Path

from fake_step import (
    DENSE,
    DEPTHS,
    FORMER,
    OTHER_ENCODER,
    RECIPES,
    SOURCES,
    VOXCELEB,
    fake_step,
)
from fake_step import leaves as leaves_of

from speechbrain_ext.utils.config import read_tree
from speechbrain_ext.utils.errors import InputError, command_line
from speechbrain_ext.utils.files import write_atomically, write_json

HERE = Path(__file__).resolve().parent
KEPT = HERE / "what_fits.json"
PAGE = HERE.parent / "docs/gpu.md"
BEGIN, END = "<!-- written by benchmarks/what_fits.py -->\n", "<!-- end -->\n"
ANTISPOOFING = RECIPES / "ASVspoof5/AntiSpoofing/hparams"
FILES = {
    **{
        name: VOXCELEB / f"{name}.yaml"
        for name in (
            *("stage1_adapter_mfa", "stage1_lora_adapter_mfa", "stage1_mfa"),
            *("stage1_weighted_ecapa", "stage2_joint", "stage3_lmft"),
            *("stage1_lora_voxblink2", "stage2_voxblink2"),
            *("prune1_distill", "prune2_distill", "stage1_pruned"),
            *("hybrid_wavlm_mhfa", "hybrid_w2v_bert_lora"),
        )
    },
    **{
        f"{folder}/{path.stem}": path
        for folder in ("svmixer", "fbank", "table1")
        for path in sorted((VOXCELEB / folder).glob("*.yaml"))
    },
    **{
        f"ASVspoof5/{path.stem}": path
        for path in sorted(ANTISPOOFING.glob("*.yaml"))
        if path.stem not in ("evaluate", "small")
    },
}
# Files that take what another one takes, or a little less: the encoder is alike, or has
# no bias by distance as WavLM.
ALIKE = {
    "table1/stage1_hubert_ecapa": "table1/stage1_wavlm_ecapa",
    "table1/stage1_xlsr_ecapa": "table1/stage1_wavlm_ecapa",
    "table1/stage1_unispeech_sat_ecapa": "table1/stage1_wavlm_ecapa",
    "table1/stage1_wavlm_camhfa": "table1/stage1_wavlm_mhfa",
    "table1/stage3_mhfa": "table1/stage2_mhfa",
}
LAYERS = 1, 3
TOLERANCE = 0.05
GIB = 2**30
# GB on the box, of which context, libraries' workspaces and fragments take 3
CARDS = {24: "RTX 4090", 40: "A100 40 GB", 80: "H100"}
LEFT = {24: 20.9, 40: 36.4, 80: 76.1}  # GiB for tensors
# Assumed, not measured: TFLOP/s in bf16 products (half of it in float32), TB/s
SPEED = {24: (120, 0.8), 40: (200, 1.3), 80: (500, 2.6)}
LAUNCH = 7e-6  # seconds of the host
NEAR = 1.05
GPUS = (1, 2, 4, 8)
# Recordings of an epoch: VoxCeleb2, with VoxBlink2 after cleaning, ASVspoof 5
UTTERANCES = {"voxblink2": 9_900_000 + 1_085_000, "ASVspoof5": 182_357, "": 1_085_000}


# -- measuring -------------------------------------------------------------------------


def depth_of(path):
    """Layers of a file's encoder, 0 where they are not to be chosen."""
    for name in _sources(path):
        found = SOURCES[name]
        values = (
            json.loads(found.read_text())
            if isinstance(found, Path)
            else found().to_dict()
        )
        return next((values[key] for key in DEPTHS if key in values), 0)
    return 0


def _sources(path):
    """Hub ids that a file names, of its encoder or of its former stage's."""
    if path.stem in OTHER_ENCODER:
        return [OTHER_ENCODER[path.stem]]
    leaves = list(leaves_of(read_tree(path)))
    named = [value for _, value, _ in leaves if value in SOURCES]
    folders = [
        k for k, _, empty in leaves if empty and k.endswith(("folder", "teacher"))
    ]
    starts = any("pretrained" in k or "teacher" in k for k in folders)
    if named or not starts:
        return named
    return _sources(VOXCELEB / f"{FORMER.get(path.stem, DENSE)}.yaml")


def checkpoints(path):
    """The word that turns gradient checkpointing on, or None."""
    tree = read_tree(path)
    for key, _, _ in leaves_of(tree):
        if key.endswith("gradient_checkpointing"):
            return f"--{key}=True"
    if "encoder_source" not in tree:
        return None
    trains = "lora" in tree or not tree["encoder"].get("frozen", False)
    return "--encoder.gradient_checkpointing=True" if trains else None


def measured(path):
    """Coefficients of a file's step: dict for what_fits.json."""
    depth, batch = depth_of(path), int(read_tree(path)["train_data"]["batch_size"])
    batches = max(1, batch // 2), batch  # near it: where a peak is depends on the size
    ways = {"plain": []}
    if depth and (word := checkpoints(path)):
        ways["checkpointing"] = [word]
    found = {"depth": depth}
    for way, words in ways.items():
        steps = {
            (layers, batch): fake_step(
                path, f"--batch_size={batch}", *words, layers=layers
            )
            for layers in (LAYERS if depth else (None,))
            for batch in batches
        }
        first = next(iter(steps.values()))
        values = {
            f"peak {phase}": lambda s, p=phase: s.peaks[p] for phase in first.peaks
        }
        for name in ("gradients", "trained", "flops", "moved", "kernels"):
            values[name] = partial(_attribute, name=name)
        found[way] = {
            name: _at_depth({k: value(s) for k, s in steps.items()}, depth, batches)
            for name, value in values.items()
        }
    return found


def _attribute(step, name):
    return getattr(step, name)


def _at_depth(values, depth, batches):
    """{(layers, batch): value} → [constant, per utterance] of all layers."""
    lines = []
    for batch in batches:
        if depth:
            low, high = (values[layers, batch] for layers in LAYERS)
            slope = (high - low) / (LAYERS[1] - LAYERS[0])
            lines.append(low + slope * (depth - LAYERS[0]))
        else:
            lines.append(values[None, batch])
    slope = (lines[1] - lines[0]) / (batches[1] - batches[0])
    return [lines[0] - slope * batches[0], slope]


# -- choosing --------------------------------------------------------------------------


def value_of(kept, name, batch):
    """A quantity of a way, at a batch."""
    constant, slope = kept[name]
    return constant + slope * batch


def peak_of(kept, batch, accumulation=1):
    """GiB. With accumulation the gradients are there from the first batch on."""
    peaks = [value_of(kept, name, batch) for name in kept if name.startswith("peak ")]
    extra = value_of(kept, "gradients", batch) if accumulation > 1 else 0
    return (max(peaks) + extra) / GIB


def seconds_of(kept, batch, accumulation, card):
    """Estimate of an optimiser step: products, then traffic, or launches if longer."""
    products, traffic = SPEED[card]
    flops, moved, kernels = (
        value_of(kept, k, batch) for k in ("flops", "moved", "kernels")
    )
    one = max(flops / products / 1e12 + moved / traffic / 1e12, kernels * LAUNCH)
    return accumulation * one


def settings(path):
    """Global batch, epochs, seconds of a crop of a file."""
    tree = read_tree(path)
    return (
        int(tree["global_batch"]),
        int(tree["number_of_epochs"]),
        float(tree["train_data"]["crop_seconds"][1]),
    )


def choice(kept, global_batch, gpus, card):
    """(seconds, batch, accumulation, way) of the best that fits; None: nothing does.

    The fastest, or the fewest batches a step of those within NEAR of it.
    """
    if global_batch % gpus:
        return None
    own = global_batch // gpus
    fitting = [
        (seconds_of(kept[way], batch, own // batch, card), batch, own // batch, way)
        for way in ("plain", "checkpointing")
        if way in kept
        for batch in range(1, own + 1)
        if own % batch == 0 and peak_of(kept[way], batch, own // batch) <= LEFT[card]
    ]
    fastest = min(fitting, default=(0.0,))[0]
    near = [option for option in fitting if option[0] <= NEAR * fastest]
    return min(near, key=lambda x: (x[2], x[3] != "plain"), default=None)


# -- the page --------------------------------------------------------------------------


def tables(kept):
    """Markdown: memory and arithmetic of the published batch; then a table per card."""
    lines = [
        "| file | batch × crop | trained | TFLOP | launches | peak, GiB | with "
        "checkpointing |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in kept.items():
        tree = read_tree(FILES[name])
        batch = int(tree["train_data"]["batch_size"])
        plain, other = found["plain"], found.get("checkpointing")
        cells = [
            f"{name}.yaml",
            f"{batch} × {settings(FILES[name])[2]:g} s",
            f"{value_of(plain, 'trained', 0) / 1e6:.1f} M",
            f"{value_of(plain, 'flops', batch) / 1e12:.1f}",
            f"{value_of(plain, 'kernels', batch):,.0f}",
            f"{peak_of(plain, batch):.1f}",
            f"{peak_of(other, batch):.1f}" if other else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for card, gpu in CARDS.items():
        lines += ["", f"### {card} GB (estimates for {gpu})", ""]
        lines += [
            f"| file | {' | '.join(f'{n} GPU' for n in GPUS)} | steps | ms | hours |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, found in kept.items():
            lines.append(f"| {' | '.join(row_of(name, found, card))} |")
    if missing := [f"{name}.yaml" for name in FILES if name not in kept]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def row_of(name, found, card):
    """Cells: what to set for 1, 2, 4, 8 GPUs; steps, ms and hours with the last."""
    global_batch, epochs, _ = settings(FILES[name])
    chosen = {n: choice(found, global_batch, n, card) for n in GPUS}
    utterances = next(v for k, v in UTTERANCES.items() if k in str(FILES[name]))
    steps = epochs * math.ceil(utterances / global_batch)
    cells = [f"{name}.yaml"]
    for option in chosen.values():
        cells.append("–" if option is None else _text(*option[1:]))
    best = next((n for n in reversed(GPUS) if chosen[n]), None)
    if best is None:
        return [*cells, f"{steps:,}", "–", "–"]
    seconds = chosen[best][0]
    hours = f"{steps * seconds / 3600:.1f} on {best}"
    return [*cells, f"{steps:,}", f"{1000 * seconds:.0f}", hours]


def _text(batch, accumulation, way):
    text = f"{batch}" if accumulation == 1 else f"{batch} × {accumulation}"
    return text + " c" * (way == "checkpointing")


def write_page(kept):
    """Put the tables between their marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    with write_atomically(PAGE) as file:
        file.write(before + BEGIN + "\n" + tables(kept) + "\n" + END)
        file.write(rest.split(END)[1])


def read_kept():
    """name → coefficients, in the order of FILES."""
    found = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    found |= {name: found[other] for name, other in ALIKE.items() if other in found}
    return {name: found[name] for name in FILES if name in found}


def check(name, layers=None):
    """(GiB by the table, GiB of a step of the published batch), all layers."""
    path, found = FILES[name], read_kept()[name]
    batch = int(read_tree(path)["train_data"]["batch_size"])
    return peak_of(found["plain"], batch), fake_step(path, layers=layers).peak / GIB


@command_line
def main(argv=None):
    """Measure, write, or check."""
    logging.disable()  # that other batches than the published ones are not those
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anew", nargs="+", choices=FILES, default=[], metavar="NAME")
    parser.add_argument("--check", nargs="+", choices=FILES, metavar="NAME")
    arguments = parser.parse_args(argv)
    if arguments.check:
        for name in arguments.check:
            table, step = check(name)
            print(f"{name}: {table:.2f} GiB in the table, {step:.2f} in a step")
            if abs(table - step) > TOLERANCE * step:
                raise InputError(f"{name}: the table is more than 5 % off")
        return
    kept = read_kept()
    for name, path in FILES.items():
        if name not in ALIKE and (name not in kept or name in arguments.anew):
            print(name, file=sys.stderr, flush=True)
            kept[name] = measured(path)
            write_json(KEPT, {k: v for k, v in kept.items() if k not in ALIKE})
    write_page(read_kept())


if __name__ == "__main__":
    main()
