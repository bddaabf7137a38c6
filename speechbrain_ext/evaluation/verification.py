"""The steps of a verification, as the recipes' verify.py scripts take them.

    recordings → embeddings → cosine, AS-norm, likelihood ratios → report

Each step leaves its result in the output folder, so that it can be taken up again:
finished extractions are not done twice. Here are both sides of the trials; the cohort
and the calibrator are in :mod:`speechbrain_ext.evaluation.backend_plan`, scores and
report in :mod:`speechbrain_ext.evaluation.score_lists`.

What the recipes' verify.py scripts share: settings, the model, the report.

    settings checked → both sides embedded → scores of every list → results.json, .md

How a corpus names its lists and enrols its models is each recipe's; the steps between
embeddings and scores are in :mod:`speechbrain_ext.evaluation.verification`.
"""

import logging
from pathlib import Path

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process

from speechbrain_ext.data.concatenated_audio import concatenate_enrolment
from speechbrain_ext.evaluation.score_lists import (
    averaged,
    recordings_of,
    report_list,
    score_list,
)
from speechbrain_ext.inference.extraction import embed_to_file
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.pretrained import load_pretrained, weights_file
from speechbrain_ext.scoring.embeddings import select_vectors
from speechbrain_ext.scoring.report import write_report
from speechbrain_ext.utils.allocator import keep_freed_memory
from speechbrain_ext.utils.distributed import main_process_first
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.jobs import sha256
from speechbrain_ext.utils.precision import autocast_type

ENROLMENTS = ("average", "concatenate")


def embedded(manifest, embed, path, given=None):
    """Embed the test recordings, or take what a file of embeddings has of them.

    Arguments
    ---------
    manifest : Manifest
    embed : callable
        (manifest, path) → float32 [N, E] on the main process.
    path : Path
        Where the embeddings go, or where those ``given`` are from.
    given : Embeddings or None
        To use instead of ``embed``.

    Returns
    -------
    Recordings
        None on other processes than the main one.

    Raises
    ------
    InputError
        As ``embed``; a recording that is not among those given.
    """
    if given is not None:
        vectors = select_vectors(given, manifest.ids, path)
    else:
        vectors = embed(manifest, path)
    return recordings_of(manifest, vectors, path) if if_main_process() else None


def enrolled(protocol, models, test, manifest, embed, folder):
    """The enrol side of trial lists that name models.

    Arguments
    ---------
    protocol : str
        ``average`` (of the embeddings) or ``concatenate`` (of the recordings).
    models : EnrolMap
    test : Recordings
        With the recordings of the map; None on other processes than the main one.
    manifest : Manifest
        The same recordings' files.
    embed : callable
        As for :func:`embedded`.
    folder : Path
        Where joined recordings and their embeddings go.

    Returns
    -------
    Recordings
        The models; None on other processes than the main one.

    Raises
    ------
    InputError
        As the steps.
    """
    if protocol == "concatenate":
        joined = main_process_first(
            concatenate_enrolment, models, manifest, folder / "enrolment"
        )
        path = folder / "enrolment_embeddings.npz"
        vectors = embed(joined, path)
        return recordings_of(joined, vectors, path) if if_main_process() else None
    return averaged(models, test) if if_main_process() else None


def checked_enrolments(enrolment):
    """One protocol or several → a list of different ones, or InputError."""
    protocols = [enrolment] if isinstance(enrolment, str) else enrolment
    if (
        not isinstance(protocols, (list, tuple))
        or not protocols
        or not all(protocol in ENROLMENTS for protocol in protocols)
        or len(set(protocols)) < len(protocols)
    ):
        raise InputError(
            f"enrolment: {enrolment!r}, expected some of {', '.join(ENROLMENTS)}, each "
            "once"
        )
    return list(protocols)


logger = logging.getLogger(__name__)

# Top-level keys of a verification's YAML file that these functions read.
RUN_FILES = (
    *("pretrained_folder", "embeddings", "training_manifest"),
    *("calibration_manifest", "cohort", "calibrator"),
)
BACKEND = (
    *("training_manifest", "calibration_manifest", "cohort", "calibrator"),
    *("max_utterances", "seed", "backend", "calibration"),
)
RUN_KEYS = (
    *RUN_FILES,
    *BACKEND,
    *("output_folder", "prepare", "enrolment"),
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
        keep_freed_memory()
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


def check(hparams, files=RUN_FILES, joins=False):
    """Settings that need no file.

    Arguments
    ---------
    hparams : dict
    files : collection of str
        Keys that are names of files, or null.
    joins : bool
        Whether recordings are to be joined, and then embedded whatever is given.

    Raises
    ------
    InputError
        A file's name that is no text, a number out of range, neither a model nor
        embeddings.
    """
    for key in files:
        if not isinstance(hparams[key], (str, type(None))):
            raise InputError(f"{key}: {hparams[key]!r}, expected the name of a file")
    if hparams["n_resamples"] == 1 or hparams["n_resamples"] < 0:
        raise InputError(
            f"n_resamples: {hparams['n_resamples']}, expected 0 or at least 2"
        )
    if hparams["pretrained_folder"] is None and (joins or not hparams["embeddings"]):
        raise InputError(
            "pretrained_folder is not given, expected a model: --pretrained_folder=…, "
            "or --embeddings=…" + " without concatenation" * joins
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


def score(hparams, lists, backend, test, sides, genres_of=None):
    """Every list with every enrolment → the parts of the report.

    Arguments
    ---------
    hparams : dict
        Reads ``output_folder`` and ``n_resamples``.
    lists : dict
        Name → Trials.
    backend : Backend
    test : Recordings
    sides : dict
        Enrolment protocol, or None where trials are between recordings → Recordings.
    genres_of : callable or None
        Names of a list [U] → the genre of each, for error rates by genre.

    Returns
    -------
    list of dict
        As :func:`~speechbrain_ext.evaluation.score_lists.report_list`, and
        ``enrolment``.
    """
    folder, results = Path(hparams["output_folder"]), []
    for name, trials in lists.items():
        genres = genres_of(trials.names) if genres_of else None
        for protocol, enrol in sides.items():
            label = f"{name}_{protocol}" if protocol else name
            systems = score_list(label, trials, backend, enrol, test, folder)
            speakers = {**test.speakers, **enrol.speakers}
            options = hparams["n_resamples"], speakers, genres
            result = report_list(label, trials, systems, folder, *options)
            results.append({**result, "enrolment": protocol})
    return results


def report(hparams, backend, results, files=RUN_FILES):
    """Write the report, and print its table."""
    folder = Path(hparams["output_folder"])
    about = {key: hparams[key] for key in files if hparams[key] is not None}
    if hparams["pretrained_folder"]:  # an export must know whose results these are
        about["weights_sha256"] = sha256(weights_file(hparams["pretrained_folder"]))
    print(write_report(folder, results, {**about, **backend.describe()}))
    for result in results:
        print(f"DET curve {result['pictures']['det']}")
    print(f"report {folder / 'results.md'}")
