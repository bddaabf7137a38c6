"""docs/gpu.md: what fits on 24, 40 and 80 GB, and how long it takes, for every recipe.

The README's table of what each published row needs is written from the same figures.

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

from speechbrain_ext.scoring.report import markdown_table
from speechbrain_ext.utils.config import read_tree
from speechbrain_ext.utils.errors import InputError, command_line
from speechbrain_ext.utils.files import write_atomically, write_json

HERE = Path(__file__).resolve().parent
KEPT = HERE / "what_fits.json"
PAGE, README = HERE.parent / "docs/gpu.md", HERE.parent / "README.md"
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
# Published row → its EER % on Vox1-O / E / H, its chain if there is one, its stages.
_LORA, _ADAPTER = "stage1_lora_adapter_mfa", "stage1_adapter_mfa"
_JOINT = "stage2_joint", "stage3_lmft"
_ECAPA, _LARGE_MARGIN = (
    ("table1/stage2_ecapa", "table1/stage3_ecapa"),
    "fbank/large_margin",
)
_PRUNING = "prune1_distill", "prune2_distill", "stage1_pruned"
ROWS = {
    "w2v-BERT 2.0, LoRA Adapter-MFA, VoxBlink2, AS-norm, QMF": (
        *("0.12 / 0.27 / 0.55", "paper_lora_voxblink2"),
        ("stage1_lora_voxblink2", "stage2_voxblink2", "stage3_lmft"),
    ),
    "the same, VoxCeleb2 alone, cosine": (
        *("0.23 / 0.46 / 1.03", "paper_table2"),
        (_LORA, *_JOINT),
    ),
    "Adapter-MFA": ("0.18 / 0.37 / 0.81", "paper_table2", (_ADAPTER, *_JOINT)),
    "pruned to a fifth": (
        *("0.18 / – / –", "paper_pruned"),
        (_LORA, "stage2_joint", *_PRUNING, *_JOINT),
    ),
    "WavLM Base+ + MHFA, hybrid pruning, 70 %": (
        *("0.73 / 0.84 / 1.61", "hybrid_sweep"),
        ("table1/stage1_wavlm_mhfa", "hybrid_wavlm_mhfa"),
    ),
    "SV-Mixer of WavLM Large": (
        *("1.52 / 1.64 / 2.98", "svmixer"),
        ("svmixer/svmixer_wavlm_large",),
    ),
    "SV-Mixer of WavLM Base+": (
        *("1.63 / 1.63 / 2.98", "svmixer"),
        ("svmixer/svmixer_wavlm_base_plus",),
    ),
    "HuBERT Large + ECAPA": (
        *("0.59 / 0.65 / 1.23", None),
        ("table1/stage1_hubert_ecapa", *_ECAPA),
    ),
    "XLSR-53 + ECAPA": (
        *("0.59 / 0.63 / 1.14", None),
        ("table1/stage1_xlsr_ecapa", *_ECAPA),
    ),
    "UniSpeech-SAT Large + ECAPA": (
        *("0.54 / 0.57 / 1.18", None),
        ("table1/stage1_unispeech_sat_ecapa", *_ECAPA),
    ),
    "WavLM Large + ECAPA": (
        *("0.38 / 0.48 / 0.99", None),
        ("table1/stage1_wavlm_ecapa", *_ECAPA),
    ),
    "WavLM Large + CA-MHFA": (
        *("0.42 / 0.48 / 0.96", None),
        ("table1/stage1_wavlm_camhfa", "table1/stage2_mhfa", "table1/stage3_mhfa"),
    ),
    "WavLM Large + LAP + ASTP": (
        *("0.37 / 0.50 / 1.01", None),
        ("table1/stage1_wavlm_lap", "table1/stage2_lap", "table1/stage3_lap"),
    ),
    "NeMo Conformer Large + MFA": (
        *("0.43 / 0.66 / 1.35", None),
        ("table1/stage1_nemo_mfa", *_JOINT),
    ),
    "ECAPA-TDNN": ("0.87 / 1.12 / 2.12", None, ("fbank/ecapa", _LARGE_MARGIN)),
    "CAM++": ("0.73 / 0.89 / 1.76", None, ("fbank/campplus", _LARGE_MARGIN)),
    "ERes2NetV2": ("0.61 / 0.76 / 1.45", None, ("fbank/eres2netv2", _LARGE_MARGIN)),
    "ResNet221": ("0.51 / 0.68 / 1.21", None, ("fbank/resnet", _LARGE_MARGIN)),
    "ReDimNet-B6": ("0.37 / 0.53 / 1.00", None, ("fbank/redimnet", _LARGE_MARGIN)),
    "ReDimNet2-B6": ("0.29 / 0.52 / 0.99", None, ("fbank/redimnet2", _LARGE_MARGIN)),
}
KEPT_CHECKPOINTS = 4  # at most at once, each of weights and AdamW's two moments
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
    if path.stem.endswith("whisper_pmfa"):
        return 0  # its head takes states 17 to 24, the layers behind are not run
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
    if word := checkpoints(path):
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
    head = ["file", "batch × crop", "trained", "TFLOP", "launches", "peak, GiB"]
    rows = []
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
        rows.append(cells)
    lines = [markdown_table([*head, "with checkpointing"], rows)]
    head = ["file", *(f"{n} GPU" for n in GPUS), "steps", "ms", "hours"]
    for card, gpu in CARDS.items():
        rows = [row_of(name, found, card) for name, found in kept.items()]
        lines += ["", f"### {card} GB (estimates for {gpu})", ""]
        lines.append(markdown_table(head, rows))
    if missing := [f"{name}.yaml" for name in FILES if name not in kept]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def row_of(name, found, card):
    """Cells: what to set for 1, 2, 4, 8 GPUs; steps, ms and hours with the last."""
    chosen, steps, best = plan_of(name, found, card)
    cells = [f"{name}.yaml"]
    for option in chosen.values():
        cells.append("–" if option is None else _text(*option[1:]))
    if best is None:
        return [*cells, f"{steps:,}", "–", "–"]
    seconds = chosen[best][0]
    hours = f"{steps * seconds / 3600:.1f} on {best}"
    return [*cells, f"{steps:,}", f"{1000 * seconds:.0f}", hours]


def plan_of(name, found, card):
    """({GPUs: choice}, steps, most GPUs on which it fits or None) of a file."""
    global_batch, epochs, _ = settings(FILES[name])
    chosen = {n: choice(found, global_batch, n, card) for n in GPUS}
    utterances = next(v for k, v in UTTERANCES.items() if k in str(FILES[name]))
    steps = epochs * math.ceil(utterances / global_batch)
    return chosen, steps, next((n for n in reversed(GPUS) if chosen[n]), None)


def needs(kept):
    """Markdown: stages, GPU hours on each card and disk of every row of ROWS."""
    head = [
        "row",
        "EER % there",
        "files",
        *(f"{card} GB" for card in CARDS),
        "disk, GB",
    ]
    rows = []
    for row, (published, chain, stages) in ROWS.items():
        hours = [
            _shown(sum_of(gpu_hours(name, kept.get(name), card) for name in stages))
            for card in CARDS
        ]
        disk = _shown(sum_of(disk_of(kept.get(name)) for name in stages))
        text = f"`{chain}`" if chain else ", ".join(f"`{name}`" for name in stages)
        rows.append((row, published, text, *hours, disk))
    return markdown_table(head, rows) + "\n"


def sum_of(values):
    """None if one of them is."""
    values = list(values)
    return None if None in values else sum(values)


def gpu_hours(name, found, card):
    """Of a file on as many GPUs as waste fewest; None: not known, no fit."""
    if found is None:
        return None
    chosen, steps, _ = plan_of(name, found, card)
    hours = (n * steps * c[0] / 3600 for n, c in chosen.items() if c)
    return min(hours, default=None)


def disk_of(found):
    """GB of checkpoints while a file trains."""
    return (
        found and KEPT_CHECKPOINTS * 12 * value_of(found["plain"], "trained", 0) / 1e9
    )


def _shown(value):
    return "–" if value is None else f"{value:,.0f}"


def _text(batch, accumulation, way):
    text = f"{batch}" if accumulation == 1 else f"{batch} × {accumulation}"
    return text + " c" * (way == "checkpointing")


def write_pages(kept):
    """Put the tables between their marks."""
    for page, text in ((PAGE, tables(kept)), (README, needs(kept))):
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        with write_atomically(page) as file:
            file.write(before + BEGIN + "\n" + text + "\n" + END)
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
    write_pages(read_kept())


if __name__ == "__main__":
    main()
