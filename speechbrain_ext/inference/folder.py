"""A model's folder, or its name on the hub → all that a verifier is made of.

    hyperparams.yaml               needed: modules, and how recordings are treated
    encoder_config.json            needed
    speaker_encoder.safetensors    needed; or speaker_encoder.ckpt
    calibration.json               for log-likelihood ratios
    cohort.npz                     for AS-norm
    thresholds.json                for decisions

A folder is read where it lies: no network, no links, no copies. ``hyperparams.yaml``
is code, as everywhere in SpeechBrain: load folders of people you trust. The other files
are data and are read as such.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from speechbrain.utils.run_opts import RunOptions

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.inference.audio_input import ChunkingConfig
from speechbrain_ext.inference.speech import SpeechConfig
from speechbrain_ext.inference.thresholds import THRESHOLDS_FILE, load_thresholds
from speechbrain_ext.lobes.int8 import check_int8
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.pretrained import (
    ENCODER_CONFIG,
    HYPERPARAMS,
    INFERENCE,
    MODEL_CKPT,
    MODEL_FILE,
    TRAINING,
    load_hyperparams,
)
from speechbrain_ext.scoring.backend import Backend, check_top_n, input_names
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.cohort import load_cohort
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.precision import PRECISIONS, check_device, has_bf16
from speechbrain_ext.utils.weights import find_or_fetch, is_hub_id

logger = logging.getLogger(__name__)


CALIBRATION_FILE, COHORT_FILE = "calibration.json", "cohort.npz"
# The classifier and pictures of the model card stay where they are.
FETCHED = [
    *(HYPERPARAMS, ENCODER_CONFIG, MODEL_FILE, MODEL_CKPT, TRAINING),
    *(CALIBRATION_FILE, COHORT_FILE, THRESHOLDS_FILE),
]


def checked_run_opts(run_opts, precision=None):
    """SpeechBrain's run options → a dict of those given, fit for this machine.

    ``device`` is a GPU where there is one, and the CPU for int8. ``precision`` is that
    of the options unless it is given here; fp32 unless asked for, and in the place of
    bf16 or fp16 on a device that does not compute in it.

    Raises
    ------
    InputError
        No dict; an unknown option or precision; a device that is not there; int8 on a
        device, or a machine, that does not multiply in 8 bits.
    """
    if hasattr(run_opts, "overridden_args"):
        run_opts = {name: run_opts[name] for name in run_opts.overridden_args}
    if not isinstance(run_opts, Mapping | None):
        raise InputError(f"run_opts: {run_opts!r}, expected a dict or RunOptions")
    options, known = dict(run_opts or {}), RunOptions().as_dict()
    if unknown := [name for name in options if name not in known]:
        raise InputError(
            f"run_opts: {unknown[0]!r}, expected SpeechBrain's options, such as "
            "device, precision or noprogressbar"
        )
    if precision is not None:
        options["precision"] = precision
    precision = options.get("precision", "fp32")
    if precision not in PRECISIONS:
        expected = ", ".join(PRECISIONS)
        raise InputError(f"precision {precision!r}, expected one of {expected}")
    chosen = "cpu" if precision == "int8" else None
    device = check_device(options.get("device") or chosen)
    options["device"] = str(device)
    if precision == "int8":
        check_int8(device)
        return options
    fit = has_bf16(device) if precision == "bf16" else device.type != "cpu"
    if precision != "fp32" and not fit:
        logger.warning("precision fp32 instead of %s on %s", precision, device)
        options["precision"] = "fp32"
    return options


class Model(NamedTuple):
    """What is in a folder.

    ``hparams`` dict, ``chunking``, ``speech``, ``backend``, ``thresholds`` dict by kind
    of score.
    """

    hparams: dict
    chunking: ChunkingConfig
    backend: Backend
    thresholds: dict
    speech: SpeechConfig


def find_folder(source, savedir=None, fetch_config=None):
    """Where a model lies on this machine; one on the hub is fetched first.

    ``source`` is a folder, or a hub id, ``owner/name``, as
    :func:`~speechbrain_ext.utils.weights.is_hub_id` tells them apart.
    ``savedir`` gets the files from the hub; None leaves them in the hub's cache. Of a
    FetchConfig count ``revision``, ``token``, ``huggingface_cache_dir``, and
    ``allow_network``, without which only the cache is looked into. InputError: neither
    a folder nor a hub id; the hub, or the cache, does not give it.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"source: {source!r}, expected a model's folder or owner/name")
    options = {"local_dir": savedir}
    if fetch_config is not None:
        options |= {
            "revision": fetch_config.revision,
            "token": fetch_config.token or None,
            "cache_dir": fetch_config.huggingface_cache_dir,
            "local_files_only": not fetch_config.allow_network,
        }
    if savedir is not None and is_hub_id(source):
        _replace_links(Path(savedir))
    return find_or_fetch(source, FETCHED, "a model's folder", **options)


def _replace_links(savedir):
    """Put files in the place of links into the hub's cache, which SpeechBrain leaves.

    huggingface_hub copies from that cache, and a file cannot be copied onto itself.
    """
    for path in map(savedir.joinpath, FETCHED):
        if path.is_symlink():
            content = path.read_bytes() if path.exists() else None
            path.unlink()
            if content is not None:
                path.write_bytes(content)


def load_model(folder, overrides=None):
    """Read a model's folder, strictly → Model; ``overrides`` of ``hyperparams.yaml``.

    InputError names the file that is missing, damaged, or does not fit the others.
    """
    return complete_model(folder, load_hyperparams(folder, overrides))


def complete_model(folder, hparams):
    """What :func:`load_hyperparams` gave of a folder, and its other files → Model."""
    folder = Path(folder)
    chunking = checked_encoder(folder, hparams)
    top_n = hparams.get("as_norm_top_n", INFERENCE["as_norm_top_n"])
    with naming(folder / HYPERPARAMS):
        check_top_n(top_n, "as_norm_top_n", "null")
        speech = SpeechConfig.of(hparams).checked()
    width = hparams["speaker_encoder"].embedding_size
    backend = _load_backend(folder, width, top_n)
    path = folder / THRESHOLDS_FILE
    thresholds = load_thresholds(path) if is_there(path) else {}
    return Model(hparams, chunking, backend, thresholds, speech)


def load_encoder(folder, overrides=None, used_by="SpeakerVerifier"):
    """As :func:`load_model`, without what scores: (hparams, ChunkingConfig)."""
    hparams = load_hyperparams(folder, overrides)
    return hparams, checked_encoder(Path(folder), hparams, used_by)


def checked_encoder(folder, hparams, used_by="SpeakerVerifier"):
    """The ChunkingConfig of a folder, its model checked: one that ``used_by`` loads."""
    with naming(folder / HYPERPARAMS):
        model = hparams["speaker_encoder"]
        if not isinstance(model, SpeakerEncoder):
            raise InputError(
                f"speaker_encoder is a {type(model).__name__}, expected a "
                "SpeakerEncoder"
            )
        kind = getattr(model.head, "used_by", "SpeakerVerifier")
        if kind != used_by:
            raise InputError(
                f"the head is {type(model.head).__name__}, of a model for {kind}, "
                f"expected one for {used_by}"
            )
        if (rate := hparams.get("sample_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            raise InputError(f"sample_rate is {rate}, expected {SAMPLE_RATE}")
        return ChunkingConfig.of(hparams).checked(model.encoder)


def _load_backend(folder, width, top_n):
    """Cohort and calibrator of a folder, those that are there → Backend.

    ``width`` is that of the model's embeddings. ``top_n`` cohort members count; a
    calibrator knows its own number, a smaller cohort counts whole, and None takes all.
    """
    cohort = calibrator = None
    path = folder / CALIBRATION_FILE
    if is_there(path):
        calibrator = QualityCalibrator.load(path)
        with naming(path):
            top_n = _top_n_of(calibrator.names[0], top_n)
    if is_there(folder / COHORT_FILE):
        cohort = load_cohort(folder / COHORT_FILE)
        if calibrator is None and top_n is not None and top_n > len(cohort.speakers):
            logger.info(
                "%s: all %d speakers count in AS-norm, as_norm_top_n is %d",
                *(folder / COHORT_FILE, len(cohort.speakers), top_n),
            )
            top_n = len(cohort.speakers)
    with naming(folder / COHORT_FILE):
        backend = Backend(cohort, calibrator, top_n)
        backend.check_width(width, "the model")
    if calibrator is not None:
        with_durations = "duration_min" in calibrator.names
        expected = input_names(with_durations, cohort is not None, top_n)
        if calibrator.names != expected:
            raise InputError(
                f"{path}: calibrates {', '.join(calibrator.names)}, expected "
                f"{', '.join(expected)}, with {COHORT_FILE} "
                f"{'absent' if cohort is None else 'there'}"
            )
    return backend


def is_there(path):
    """Whether a folder has this file; a link to nothing is no file that was left out.

    The hub's cache is made of links: without this, half a download would be a model
    without AS-norm.
    """
    return os.path.lexists(path)


def _top_n_of(name, otherwise):
    """What a calibrator's score was normalised by: ``as_norm_300`` → 300."""
    if name == "s_norm":
        return None
    number = name.removeprefix("as_norm_")
    if name != "cosine" and not number.isdecimal():
        raise InputError(
            f"calibrates {name!r} first, expected a score: cosine, s_norm or as_norm_N"
        )
    return int(number) if number.isdecimal() else otherwise
