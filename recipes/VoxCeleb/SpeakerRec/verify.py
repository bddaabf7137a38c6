#!/usr/bin/env python3
"""Verify: embeddings, cosine, AS-norm, calibration, and a report of every trial list.

    python verify.py hparams/verify.yaml --pretrained_folder=results/stage3_lmft/final \
        --test_folders=/data/VoxCeleb1 --trial_lists=/data/VoxCeleb1/veri_test2.txt \
        --training_manifest=results/stage3_lmft/prepared/train.csv \
        --calibration_manifest=results/stage3_lmft/prepared/valid.csv

Without these manifests (and without ``cohort`` and ``calibrator``) it stops after the
cosine. What is wrong is found before anything is embedded, where that can be. Written
to ``output_folder``: embeddings.npz, cohort.npz, calibration.json, the scores of every
list and system as text and as a table, those of the calibration as a table,
results.json, results.md and pictures. The table also goes to the standard output.
Stopped, the same command continues; several GPUs:
``torchrun --nproc_per_node=8 verify.py …``.
"""

import logging
import sys
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from voxceleb_prepare import prepare_voxceleb_test

from speechbrain_ext.backend_plan import plan_backend
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.data.marker import sha256
from speechbrain_ext.distributed import main_process_first
from speechbrain_ext.errors import InputError, command_line
from speechbrain_ext.extraction import embed_to_file
from speechbrain_ext.hyper import call_with, load_run
from speechbrain_ext.precision import autocast_type
from speechbrain_ext.pretrained import MODEL_FILE, load_pretrained
from speechbrain_ext.profiling import count_parameters
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.scoring.enrolment import read_enrol_map
from speechbrain_ext.scoring.report import write_report
from speechbrain_ext.scoring.score_lists import read_lists, report_list, score_list
from speechbrain_ext.verification import checked_enrolments, embedded, enrolled

logger = logging.getLogger(__name__)

# Top-level keys of the YAML file that this script reads.
FILES = (
    *("enrol_map", "pretrained_folder", "embeddings", "training_manifest"),
    *("calibration_manifest", "cohort", "calibrator"),
)
BACKEND = (
    *("training_manifest", "calibration_manifest", "cohort", "calibrator"),
    *("max_utterances", "seed", "backend", "calibration"),
)
KEYS = (
    *FILES,
    *BACKEND,
    *("output_folder", "prepare", "trial_lists", "allow_duplicates", "enrolment"),
    *("max_batch_seconds", "max_seconds", "num_workers", "n_resamples"),
)


class Embedder:
    """The model, as a function (manifest, file) → embeddings [N, E].

    Attributes
    ----------
    size : int
        E.
    """

    def __init__(self, hparams, run_opts):
        self.device = run_opts.device or sb.utils.distributed.infer_device()
        self.model = load_pretrained(hparams["pretrained_folder"]).to(self.device)
        self.size = self.model.embedding_size
        self.options = {
            **{k: hparams[k] for k in ("max_batch_seconds", "max_seconds")},
            "num_workers": hparams["num_workers"],
            "precision": autocast_type(hparams["eval_precision"]),
            "progress": not run_opts.noprogressbar,
        }
        logger.info("%d parameters", count_parameters(self.model).total)

    def __call__(self, manifest, path):
        """On every process; None on others than the main one."""
        hours = manifest.durations.sum() / 3600
        logger.info("%s: %d recordings, %.1f h", path, len(manifest), hours)
        return embed_to_file(
            self.model, manifest, path, device=self.device, **self.options
        )


def check(hparams):
    """Settings that need no file."""
    for key in FILES:
        if not isinstance(hparams[key], (str, type(None))):
            raise InputError(f"{key}: {hparams[key]!r}, expected the name of a file")
    if hparams["n_resamples"] == 1 or hparams["n_resamples"] < 0:
        raise InputError(
            f"n_resamples: {hparams['n_resamples']}, expected 0 or at least 2"
        )
    protocols = checked_enrolments(hparams["enrolment"])
    joins = hparams["enrol_map"] is not None and "concatenate" in protocols
    if hparams["pretrained_folder"] is None and (joins or not hparams["embeddings"]):
        raise InputError(
            "pretrained_folder is not given, expected a model: --pretrained_folder=…, "
            "or --embeddings=… without concatenation"
        )


def check_sizes(hparams, plan, embed, given):
    """One size of embedding everywhere."""
    if embed is not None:
        plan.backend.check_width(embed.size, hparams["pretrained_folder"])
    elif plan.needs_embeddings:
        raise InputError(
            "pretrained_folder is not given, expected a model to embed the recordings "
            "of training_manifest or calibration_manifest"
        )
    if given is not None:
        size = given.vectors.shape[1]
        plan.backend.check_width(size, hparams["embeddings"])
        if embed is not None and size != embed.size:
            raise InputError(
                f"{hparams['embeddings']}: embeddings of {size} values, expected "
                f"{embed.size} as those of {hparams['pretrained_folder']}"
            )


def both_sides(hparams, manifest, models, embed, given):
    """The recordings of the test, and of the enrol side by protocol."""
    folder = Path(hparams["output_folder"])
    path = hparams["embeddings"] or folder / "embeddings.npz"
    test = embedded(manifest, embed, path, given)
    if models is None:
        return test, {None: test}
    return test, {
        protocol: enrolled(protocol, models, test, manifest, embed, folder)
        for protocol in checked_enrolments(hparams["enrolment"])
    }


def score(hparams, lists, backend, test, sides):
    """Every list with every enrolment → the parts of the report."""
    folder, results = Path(hparams["output_folder"]), []
    for name, trials in lists.items():
        for protocol, enrol in sides.items():
            label = f"{name}_{protocol}" if protocol else name
            systems = score_list(label, trials, backend, enrol, test, folder)
            speakers = {**test.speakers, **enrol.speakers}
            result = report_list(
                *(label, trials, systems, folder, hparams["n_resamples"], speakers)
            )
            results.append({**result, "enrolment": protocol})
    return results


def report(hparams, backend, results):
    """Write the report, and print its table."""
    folder = Path(hparams["output_folder"])
    about = {key: hparams[key] for key in FILES if hparams[key] is not None}
    if hparams["pretrained_folder"]:  # an export must know whose results these are
        weights = Path(hparams["pretrained_folder"]) / MODEL_FILE
        about["weights_sha256"] = sha256(weights)
    print(write_report(folder, results, {**about, **backend.describe()}))
    for result in results:
        print(f"DET curve {result['pictures']['det']}")
    print(f"report {folder / 'results.md'}")


@command_line
def main():
    """Read and check everything, prepare, embed, score, report."""
    hparams_file, run_opts, overrides, hparams = load_run(sys.argv[1:], KEYS)
    check(hparams)
    sb.utils.distributed.ddp_init_group(run_opts)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    # The log takes everything: hundreds of lines about fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)

    lists, path = {}, hparams["embeddings"]
    if if_main_process():  # the others never see a score
        lists = read_lists(hparams["trial_lists"], hparams["allow_duplicates"])
    given = load_embeddings(path) if path else None
    models = read_enrol_map(hparams["enrol_map"]) if hparams["enrol_map"] else None
    plan = plan_backend(**{key: hparams[key] for key in BACKEND})
    embed = Embedder(hparams, run_opts) if hparams["pretrained_folder"] else None
    check_sizes(hparams, plan, embed, given)
    prepared = main_process_first(call_with, prepare_voxceleb_test, "prepare", hparams)
    manifest = read_manifest(prepared.test)

    plan.warn_of(manifest.speakers)
    test, sides = both_sides(hparams, manifest, models, embed, given)
    backend = plan.carry_out(embed, Path(hparams["output_folder"]))
    if if_main_process():
        report(hparams, backend, score(hparams, lists, backend, test, sides))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
