#!/usr/bin/env python3
"""Verify: embeddings, cosine, AS-norm, calibration, and a report of every trial list.

    python verify.py hparams/verify.yaml --pretrained_folder=results/stage3_lmft/final \
        --test_folders=/data/VoxCeleb1 --trial_lists=/data/VoxCeleb1/veri_test2.txt \
        --training_manifest=results/stage3_lmft/prepared/train.csv \
        --calibration_manifest=results/stage3_lmft/prepared/valid.csv

Without a training manifest (and without ``cohort`` and ``calibrator``) it stops after
the cosine. Written to ``output_folder``: embeddings.npz, cohort.npz, calibration.json,
the scores of every list and system as text and as a table, results.json, results.md
and pictures. The table also goes to the standard output. Stopped, the same command
continues; several GPUs: ``torchrun --nproc_per_node=8 verify.py …``.
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
from speechbrain_ext.extraction import embed_to_file
from speechbrain_ext.hyper import call_with, load_run
from speechbrain_ext.precision import autocast_type
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.profiling import count_parameters
from speechbrain_ext.scoring.report import write_report
from speechbrain_ext.scoring.score_lists import read_lists, score_list
from speechbrain_ext.verification import (
    add_calibrator,
    add_cohort,
    choose_training,
    embedded,
    enrolled,
    load_backend,
)

logger = logging.getLogger(__name__)

# Top-level keys of the YAML file that this script reads.
KEYS = (
    *("output_folder", "seed", "prepare", "trial_lists", "allow_duplicates"),
    *("enrol_map", "enrolment", "pretrained_folder", "embeddings"),
    *("max_batch_seconds", "max_seconds", "num_workers"),
    *("training_manifest", "calibration_manifest", "max_utterances"),
    *("cohort", "calibrator", "backend", "calibration", "n_resamples"),
)


def make_embedder(hparams, run_opts):
    """A function (manifest, file) → embeddings [N, E], on the main process."""
    device = run_opts.device or sb.utils.distributed.infer_device()
    model = load_pretrained(hparams["pretrained_folder"]).to(device)
    logger.info("%d parameters", count_parameters(model).total)

    def embed(manifest, path):
        hours = manifest.durations.sum() / 3600
        logger.info("%s: %d recordings, %.1f h", path, len(manifest), hours)
        return embed_to_file(
            *(model, manifest, path),
            device=device,
            max_batch_seconds=hparams["max_batch_seconds"],
            max_seconds=hparams["max_seconds"],
            num_workers=hparams["num_workers"],
            precision=autocast_type(hparams["eval_precision"]),
            progress=not run_opts.noprogressbar,
        )

    return embed


def make_backend(hparams, embed, folder):
    """Cohort and calibrator: given, or from recordings of other speakers."""
    backend = load_backend(
        hparams["cohort"], hparams["calibrator"], **hparams["backend"]
    )
    of_training = hparams["training_manifest"]
    of_calibration = hparams["calibration_manifest"] or of_training
    if of_training == of_calibration and of_training and hparams["calibration"]:
        logger.warning(
            "calibration on speakers that the model was trained on, if %s is what its "
            "name says: it will trust its scores too much; see calibration_manifest",
            of_training,
        )
    done = {}
    for path, wanted in (
        (of_training, backend.cohort is None),
        (of_calibration, backend.calibrator is None and hparams["calibration"]),
    ):
        if path and wanted and path not in done:
            chosen = choose_training(path, hparams["max_utterances"], hparams["seed"])
            file = folder / f"{Path(path).stem}_embeddings.npz"
            done[path] = chosen, embed(chosen, file)
    if not if_main_process():
        return None
    if of_training and backend.cohort is None:
        backend = add_cohort(backend, *done[of_training], folder)
    if of_calibration and hparams["calibration"] and backend.calibrator is None:
        options = hparams["calibration"]
        backend = add_calibrator(backend, *done[of_calibration], options, folder)
    return backend


def score(hparams, manifest, lists, embed, folder):
    """Everything after preparation → the report's parts, on the main process."""
    test = embedded(manifest, embed, folder / "embeddings.npz", hparams["embeddings"])
    sides = {None: test}
    if hparams["enrol_map"] is not None:
        sides = {
            protocol: enrolled(
                *(protocol, hparams["enrol_map"], test, manifest, embed, folder)
            )
            for protocol in hparams["enrolment"]
        }
    backend = make_backend(hparams, embed, folder)
    if not if_main_process():
        return None
    results = []
    for name, trials in lists.items():
        for protocol, enrol in sides.items():
            label = f"{name}_{protocol}" if protocol else name
            result = score_list(
                *(label, trials, backend, enrol, test, folder, hparams["n_resamples"])
            )
            results.append({**result, "enrolment": protocol})
    return results


def check_model(hparams):
    """A model, or nothing that needs one."""
    manifests = hparams["training_manifest"], hparams["calibration_manifest"]
    needs = hparams["embeddings"] is None or any(manifests)
    joins = hparams["enrol_map"] is not None and "concatenate" in hparams["enrolment"]
    if hparams["pretrained_folder"] is None and (needs or joins):
        raise InputError(
            "pretrained_folder is not given, expected a model: --pretrained_folder=…, "
            "or --embeddings=… without training_manifest and concatenation"
        )


@command_line
def main():
    """Prepare the test recordings, embed, score, report."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], KEYS)
    check_model(hparams)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    prepared = main_process_first(call_with, prepare_voxceleb_test, "prepare", hparams)

    folder, manifest = Path(hparams["output_folder"]), read_manifest(prepared.test)
    lists = read_lists(hparams["trial_lists"], hparams["allow_duplicates"])
    embed = make_embedder(hparams, run_opts) if hparams["pretrained_folder"] else None
    results = score(hparams, manifest, lists, embed, folder)
    if results is None:
        return
    about = {key: hparams[key] for key in ("pretrained_folder", "training_manifest")}
    print(write_report(folder, results, {**about, **hparams["backend"]}))
    for result in results:
        print(f"DET curve {result['pictures']['det']}")
    print(f"report {folder / 'results.md'}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
