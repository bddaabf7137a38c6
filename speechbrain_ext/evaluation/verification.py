"""The steps of a verification, as the recipes' verify.py takes them.

    recordings → embeddings → cosine, AS-norm, likelihood ratios → report

Each step leaves its result in the output folder: finished extractions are not done
twice. The cohort and the calibrator are in
:mod:`speechbrain_ext.evaluation.backend_plan`, scores and report of one list in
:mod:`speechbrain_ext.evaluation.score_lists`.
"""

import logging
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from speechbrain.utils.distributed import if_main_process, infer_device

from speechbrain_ext.data.concatenated_audio import concatenate_enrolment
from speechbrain_ext.data.corpora.cnceleb import find_evaluation, genres_of
from speechbrain_ext.evaluation.score_lists import (
    averaged,
    read_lists,
    recordings_of,
    report_list,
    score_list,
)
from speechbrain_ext.inference.extraction import embed_to_file
from speechbrain_ext.inference.folder import load_encoder
from speechbrain_ext.inference.speech import SpeechConfig
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.int8 import in_int8
from speechbrain_ext.pretrained import weights_file
from speechbrain_ext.scoring.embeddings import load_speech_seconds, select_vectors
from speechbrain_ext.scoring.enrolment import read_enrol_map
from speechbrain_ext.scoring.report import write_report
from speechbrain_ext.scoring.trials import rows_among
from speechbrain_ext.utils.allocator import keep_freed_memory
from speechbrain_ext.utils.distributed import main_process_first
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import sha256
from speechbrain_ext.utils.precision import autocast_type

logger = logging.getLogger(__name__)

ENROLMENTS = ("average", "concatenate")


class Protocol(NamedTuple):
    """Which trial lists an evaluation has, and how its models are enrolled.

    Attributes
    ----------
    trial_lists : str, Path or list of them
    enrolments : dict
        Name → EnrolMap whose models the lists name; ``{None: None}`` where the lists
        name recordings on both sides.
    concatenated : bool
        Whether ``concatenate`` joins the recordings of its map to one; otherwise the
        embeddings of a map are always averaged.
    genres_of : callable or None
        Names of a list [U] → the genre of each, for error rates by genre.
    allow_duplicates : bool
        A trial that stands twice in a list is counted, instead of being an error.
    files : dict
        For the report: key → file.
    """

    trial_lists: object
    enrolments: dict
    concatenated: bool = False
    genres_of: object = None
    allow_duplicates: bool = False
    files: dict = {}

    @property
    def joins(self):
        """Whether recordings are joined, which must be embedded then."""
        return self.concatenated and "concatenate" in self.enrolments


def listed_trials(
    trial_lists,
    enrol_map: str | None = None,
    enrolment=("average",),
    allow_duplicates: bool = False,
):
    """Trial lists of recordings, or of models and recordings.

    Arguments
    ---------
    trial_lists : str, Path or list of them
        Lines ``label enrol test`` or ``enrol test label``.
    enrol_map : str or None
        Lines ``model utterance [utterance ...]``, where the lists name models.
    enrolment : str or list of str
        ``average`` of a model's embeddings, ``concatenate`` of its recordings.
    allow_duplicates : bool
        Count trials that stand twice in a list.

    Returns
    -------
    Protocol

    Raises
    ------
    InputError
        Another enrolment; a map that is missing or damaged.
    """
    names = _checked_enrolments(enrolment)
    enrolments, files = {None: None}, {}
    if enrol_map is not None:
        files = {"enrol_map": enrol_map}
        enrolments = dict.fromkeys(names, read_enrol_map(enrol_map))
    return Protocol(trial_lists, enrolments, True, None, allow_duplicates, files)


def cnceleb_trials(cnceleb1_folder, enrolment=ENROLMENTS):
    """CN-Celeb's evaluation: both enrolments, error rates by genre.

    A model is the mean embedding of its recordings (``average``, enroll.map), or the
    embedding of the file where CN-Celeb joined them (``concatenate``, enroll.lst).

    Arguments
    ---------
    cnceleb1_folder : str or Path
        ``CN-Celeb_flac``, with ``eval/lists``.
    enrolment : str or list of str

    Returns
    -------
    Protocol

    Raises
    ------
    InputError
        Another enrolment; a folder or list that is missing.
    """
    found = find_evaluation(cnceleb1_folder, _checked_enrolments(enrolment))
    # what enroll.map says of a model's genre goes for its file in enroll.lst, too
    genres = partial(genres_of, enrol_map=read_enrol_map(found.enrol_map))
    enrolments = {k: read_enrol_map(path) for k, path in found.enrol_maps.items()}
    return Protocol(found.trials, enrolments, genres_of=genres)


def _checked_enrolments(enrolment):
    """One protocol or several → a list of different ones, or InputError."""
    names = [enrolment] if isinstance(enrolment, str) else enrolment
    if (
        not isinstance(names, (list, tuple))
        or not names
        or not all(name in ENROLMENTS for name in names)
        or len(set(names)) < len(names)
    ):
        raise InputError(
            f"enrolment: {enrolment!r}, expected some of {', '.join(ENROLMENTS)}, each "
            "once"
        )
    return list(names)


class Embedder:
    """The model of a folder, as a function (manifest, file) → embeddings [N, size].

    Windows are those of the folder unless they are given, and so is what counts as
    speech, with ``speech_detection``: then the file has seconds of speech, which
    quality measures take in place of durations. ``used_by`` is the class of
    ``speechbrain_ext.inference`` whose folder it must be. ``options`` go to
    :func:`~speechbrain_ext.inference.extraction.extract_embeddings`.
    """

    def __init__(
        self,
        folder,
        run_opts,
        window_seconds=None,
        hop_seconds=None,
        eval_precision="fp32",
        speech_detection=False,
        used_by="SpeakerVerifier",
        **options,
    ):
        keep_freed_memory()
        self.folder = folder
        hparams, chunking = load_encoder(folder, used_by=used_by)
        int8 = eval_precision == "int8"
        device = run_opts.device or ("cpu" if int8 else infer_device())
        self.model = hparams["speaker_encoder"].to(device)
        if int8:
            in_int8(self.model)
        self.size, self.detects = self.model.embedding_size, speech_detection
        chunking = chunking.changed(window_seconds, hop_seconds)
        if not isinstance(speech_detection, bool):
            raise InputError(
                f"speech_detection: {speech_detection!r}, expected True or False"
            )
        with naming(folder):
            speech = SpeechConfig.of(hparams).checked()
        self.options = {
            **options,
            "device": device,
            "chunking": chunking.checked(self.model.encoder),
            "precision": autocast_type(eval_precision),
            "speech": speech if speech_detection else None,
            "progress": not run_opts.noprogressbar,
        }
        logger.info("%d parameters", count_parameters(self.model).total)

    def __call__(self, manifest, path):
        """On every process; None on others than the main one."""
        hours = manifest.durations.sum() / 3600
        logger.info("%s: %d recordings, %.1f h", path, len(manifest), hours)
        return embed_to_file(self.model, manifest, path, **self.options)


def check_sizes(plan, embed, given, source):
    """InputError unless model, cohort and the embeddings of ``source`` fit together.

    Recordings of the back-end that must be embedded want a model.
    """
    if embed is not None:
        plan.backend.check_width(embed.size, embed.folder)
    elif plan.needs_embeddings:
        raise InputError(
            "pretrained_folder is not given, expected a model to embed the recordings "
            "of training_manifest or calibration_manifest"
        )
    if given is not None:
        size = given.vectors.shape[1]
        plan.backend.check_width(size, source)
        if embed is not None and size != embed.size:
            raise InputError(
                f"{source}: embeddings of {size} values, expected {embed.size} as "
                f"those of {embed.folder}"
            )
        if embed is not None and (load_speech_seconds(source) is None) == embed.detects:
            has = "no seconds of speech" if embed.detects else "seconds of speech"
            raise InputError(
                f"{source}: has {has}, expected embeddings made with "
                f"speech_detection={embed.detects}, as the others of this run"
            )


def embedded(manifest, embed, path, given=None):
    """Embed recordings into the file ``path``, or take them from Embeddings of it.

    ``embed`` is called as an :class:`Embedder`. Where the file has seconds of speech,
    they are the durations. → Recordings on the main process, None on others.
    """
    if given is not None:
        vectors = select_vectors(given, manifest.ids, path)
    else:
        vectors = embed(manifest, path)
    if not if_main_process():
        return None
    seconds = load_speech_seconds(path)
    if seconds is not None:
        if given is not None:
            seconds = seconds[rows_among(given.ids, manifest.ids)]
        manifest = replace(manifest, durations=seconds)
    return recordings_of(manifest, vectors, path)


def enrolled(protocol, test, manifest, embed, folder):
    """The enrol side of trial lists: {enrolment: Recordings}, None on other processes.

    ``test`` has all recordings, those of enrolment maps too, and ``manifest`` their
    files; joined recordings and their embeddings go into ``folder``.
    """
    sides = {}
    for name, models in protocol.enrolments.items():
        if models is None:
            sides[name] = test
        elif protocol.concatenated and name == "concatenate":
            joined = main_process_first(
                concatenate_enrolment, models, manifest, folder / "enrolment"
            )
            path = folder / "enrolment_embeddings.npz"
            sides[name] = embedded(joined, embed, path)
        else:
            sides[name] = averaged(models, test) if if_main_process() else None
    return sides


def read_trials_of(protocol):
    """Name → Trials of every list; nothing on other processes than the main one."""
    if not if_main_process():  # they never see a score
        return {}
    return read_lists(protocol.trial_lists, protocol.allow_duplicates)


def score_and_report(
    folder, protocol, lists, backend, test, sides, n_resamples, files, model=None
):
    """Score every list with every enrolment, write the report, print its table.

    ``files`` (key → file) are what the results depend on. Of a pretrained folder
    ``model`` the report has a hash of the weights: an export asks whose results it has.
    """
    results = []
    for name, trials in lists.items():
        genres = protocol.genres_of(trials.names) if protocol.genres_of else None
        for enrolment, enrol in sides.items():
            label = f"{name}_{enrolment}" if enrolment else name
            systems = score_list(label, trials, backend, enrol, test, folder)
            speakers = {**test.speakers, **enrol.speakers}
            result = report_list(
                *(label, trials, systems, folder, n_resamples, speakers, genres)
            )
            results.append({**result, "enrolment": enrolment})
    about = {**protocol.files, **files, **backend.describe()}
    if model:
        about["weights_sha256"] = sha256(weights_file(model))
    print(write_report(folder, results, about))
    for result in results:
        print(f"DET curve {result['pictures']['det']}")
    print(f"report {folder / 'results.md'}")
