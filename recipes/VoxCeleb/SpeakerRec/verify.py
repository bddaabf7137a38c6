#!/usr/bin/env python3
"""Verify: embeddings, cosine scores, EER and minDCF for every trial list.

    python verify.py hparams/verify.yaml --pretrained_folder=results/stage3_lmft/final \
        --test_folders=/data/VoxCeleb1 --trial_lists=/data/VoxCeleb1/veri_test2.txt

Written to ``output_folder``: embeddings.npz, scores of every list, results.json,
results.md, a DET curve and a score histogram of every list (PNG). The table also goes
to the standard output.
"""

import logging
import sys
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from voxceleb_prepare import prepare_voxceleb_test

from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.distributed import main_process_first
from speechbrain_ext.errors import InputError, command_line
from speechbrain_ext.extraction import extract_embeddings
from speechbrain_ext.files import write_atomically, write_json
from speechbrain_ext.hyper import call_with, load_run
from speechbrain_ext.precision import autocast_type
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.profiling import count_parameters
from speechbrain_ext.scoring.embeddings import cosine_scores, save_embeddings
from speechbrain_ext.scoring.metrics import equal_error_rate, min_dcf
from speechbrain_ext.scoring.plots import plot_det, plot_histogram
from speechbrain_ext.scoring.score_files import write_scores
from speechbrain_ext.scoring.trials import read_trials, rows_of

logger = logging.getLogger(__name__)

# Top-level keys of the YAML file that this script reads.
KEYS = (
    *("output_folder", "prepare", "allow_duplicates", "pretrained_folder"),
    *("max_batch_seconds", "max_seconds", "num_workers", "p_targets"),
)


def embed(hparams, run_opts, manifest):
    """One embedding per recording of the trial lists: [N, E]."""
    device = run_opts.device or sb.utils.distributed.infer_device()
    model = load_pretrained(hparams["pretrained_folder"]).to(device)
    logger.info(
        "%d parameters; %d recordings, %.1f h",
        *(count_parameters(model).total, len(manifest)),
        manifest.durations.sum() / 3600,
    )
    return extract_embeddings(
        model,
        manifest,
        device,
        hparams["max_batch_seconds"],
        hparams["max_seconds"],
        hparams["num_workers"],
        autocast_type(hparams["eval_precision"]),
        progress=not run_opts.noprogressbar,
    )


def read_lists(hparams):
    """Every trial list by the name its results get, before the long part begins."""
    paths = hparams["prepare"]["trial_lists"]
    paths = [paths] if isinstance(paths, str) else paths
    lists = {}
    for path in paths:
        name = Path(path).stem
        if name in lists:
            raise InputError(f"trial_lists: two of the name {name!r}, expected one")
        lists[name] = read_trials(path, allow_duplicates=hparams["allow_duplicates"])
    return lists


def score_list(name, trials, hparams, manifest, vectors):
    """Score one trial list, draw its pictures → its row of the table."""
    rows = rows_of(trials, manifest.ids, "test.csv")
    scores = cosine_scores(vectors, rows[trials.enrol], rows[trials.test])
    eer = equal_error_rate(scores, trials.labels)
    folder = Path(hparams["output_folder"])
    write_scores(folder / f"scores_{name}.txt", trials, scores)
    plot_det(folder / f"det_{name}.png", {name: (scores, trials.labels)})
    plot_histogram(folder / f"scores_{name}.png", scores, trials.labels, eer.threshold)
    return {
        "list": str(trials.path),
        "trials": len(trials),
        "targets": trials.n_target,
        "score": "cosine",
        "eer_percent": 100 * eer.eer,
        "eer_threshold": eer.threshold,
        "min_dcf": {
            str(p): min_dcf(scores, trials.labels, p).dcf for p in hparams["p_targets"]
        },
        "det": str(folder / f"det_{name}.png"),
        "histogram": str(folder / f"scores_{name}.png"),
    }


def as_markdown(rows):
    """The table that a user reads."""
    points = list(rows[0]["min_dcf"])
    head = ["list", "trials", "EER %", *(f"minDCF({p})" for p in points)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [
            Path(row["list"]).name,
            f"{row['trials']:,}",
            f"{row['eer_percent']:.2f}",
        ]
        cells += [f"{row['min_dcf'][p]:.3f}" for p in points]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@command_line
def main():
    """Prepare the test recordings, embed, score, report."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], KEYS)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    prepared = main_process_first(call_with, prepare_voxceleb_test, "prepare", hparams)

    manifest = read_manifest(prepared.test)
    lists = read_lists(hparams)
    vectors = embed(hparams, run_opts, manifest)
    if not if_main_process():
        return
    folder = Path(hparams["output_folder"])
    save_embeddings(folder / "embeddings.npz", manifest.ids, vectors)
    rows = [
        score_list(name, trials, hparams, manifest, vectors)
        for name, trials in lists.items()
    ]
    write_json(
        folder / "results.json", {"model": hparams["pretrained_folder"], "lists": rows}
    )
    with write_atomically(folder / "results.md") as file:
        file.write(as_markdown(rows) + "\n")
    print(as_markdown(rows))
    for row in rows:
        print(f"DET curve {row['det']}, scores {row['histogram']}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
