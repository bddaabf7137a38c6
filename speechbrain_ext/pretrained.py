"""The classifier in a model's folder: kept, handed on, and its rows chosen by name.

    classifier.safetensors    one row per training class
    training.json             speakers in row order, speeds, which are perturbed

Which class a speaker at some speed is: :mod:`speechbrain_ext.data.labels`.

The end state of a training stage as a folder, and the way back.

    hyperparams.yaml               the modules, for SpeechBrain's inference classes
    encoder_config.json            configuration from which the encoder is rebuilt
    speaker_encoder.safetensors    encoder and head, LoRA merged
    classifier.safetensors         one row per training class
    training.json                  speakers in row order, stage, epoch, validation EER

The next stage, verification and inference all read this folder. Everything in it is
needed: loading is strict and downloads nothing. Inference also takes calibration.json,
cohort.npz and thresholds.json where they are there
(:mod:`speechbrain_ext.inference.folder`), and weights as ``speaker_encoder.ckpt`` in
place of safetensors.
"""

import json
from pathlib import Path

import torch

from speechbrain_ext.data.labels import Classes
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.utils.config import load_yaml
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_folder_atomically, write_json
from speechbrain_ext.utils.weights import (
    NoRandomValues,
    load_strictly,
    read_weights,
    save_weights,
)

CLASSIFIER_FILE = "classifier.safetensors"
TRAINING = "training.json"


def load_classifier(folder, classifier, speakers, n_speeds, n_perturbed=None):
    """Load a former stage's classifier into that of the next one.

    Rows go by the speakers' names: stage 3 keeps the rows of its speakers at their
    true speed, whatever else stage 2 had.

    Arguments
    ---------
    folder : str or Path
        Written by :func:`~speechbrain_ext.pretrained.save_pretrained`.
    classifier : ArcFace
        With as many classes as these speakers have.
    speakers : list of str
        Names of the training speakers, in label order.
    n_speeds : int
        Blocks of classes: 3 with speed copies, 1 without.
    n_perturbed : int, optional
        So many of the speakers, the first, have speed copies; None: all.

    Raises
    ------
    InputError
        Where anything does not fit: the embedding's width, a speaker the former stage
        did not know, more speeds than it had.
    """
    folder = Path(folder)
    former = read_training(folder)
    rows = class_rows(
        former["speakers"],
        former["n_speeds"],
        speakers,
        n_speeds,
        folder,
        former.get("n_perturbed"),
        n_perturbed,
    )
    path = folder / CLASSIFIER_FILE
    weights = read_weights(path)
    expected = _classes(former).count
    if len(weights.get("weight", ())) != expected:
        raise InputError(
            f"{path}: {len(weights.get('weight', ()))} classes, expected {expected} as "
            f"in {TRAINING}"
        )
    load_strictly(classifier, {"weight": weights["weight"][rows]}, str(path))


def keep_classifier(folder):
    """A former stage's classifier, for one that trains none and hands it on.

    Returns
    -------
    classifier : ArcFace
        Or None.
    training : dict
        ``speakers``, ``n_speeds`` and, where not all are speed-perturbed,
        ``n_perturbed``, which its rows stand for; else empty.
    """
    if not (path := Path(folder) / CLASSIFIER_FILE).is_file():
        return None, {}
    former = read_training(folder)
    names = ("speakers", "n_speeds", "n_perturbed")
    kept = {name: former[name] for name in names if former.get(name) is not None}
    weights = read_weights(path)
    size = max((weight.shape[-1] for weight in weights.values()), default=0)
    classifier = ArcFace(size, _classes(kept).count)
    load_strictly(classifier, weights, str(path))
    return classifier, kept


def read_training(folder):
    """``training.json`` of a pretrained folder."""
    path = Path(folder) / TRAINING
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        speakers, n_speeds = values["speakers"], values["n_speeds"]
        perturbed = values.get("n_perturbed", 0)
        if not (isinstance(speakers, list) and isinstance(n_speeds, int)):
            raise TypeError
        if not (perturbed is None or 0 <= perturbed <= len(speakers)):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected JSON with a list 'speakers' and a number 'n_speeds', as "
            "train.py writes"
        ) from error
    return values


def _classes(training):
    return Classes(
        len(training["speakers"]), training["n_speeds"], training.get("n_perturbed")
    )


def class_rows(
    former,
    former_speeds,
    speakers,
    n_speeds,
    source,
    former_perturbed=None,
    n_perturbed=None,
):
    """Rows of a former classifier that are the classes of the new one.

    Returns
    -------
    list of int
        One row number for each class.
    """
    row = {name: number for number, name in enumerate(former)}
    unknown = [name for name in speakers if name not in row]
    if unknown:
        raise InputError(
            f"{source}: classifier of {len(former)} speakers has no classes for "
            f"{len(unknown)} of the {len(speakers)} training speakers, first "
            f"{unknown[0]!r}"
        )
    if n_speeds > former_speeds:
        raise InputError(
            f"{source}: classifier of {former_speeds} speed(s) has no classes for "
            f"{n_speeds}, expected as many at most: see speeds"
        )
    known = Classes(len(former), former_speeds, former_perturbed)
    wanted = Classes(len(speakers), n_speeds, n_perturbed)
    plain = [
        speakers[number]
        for number, speed in wanted.speakers_and_speeds()
        if speed and row[speakers[number]] >= known.perturbed
    ]
    if plain:
        raise InputError(
            f"{source}: classifier knows {plain[0]!r} at true speed only, expected "
            f"a speaker that was perturbed, as {n_speeds} speeds are asked for"
        )
    return [
        known.class_of(row[speakers[number]], speed)
        for number, speed in wanted.speakers_and_speeds()
    ]


__all__ = [
    "CLASSIFIER_FILE",
    "ENCODER_CONFIG",
    "HYPERPARAMS",
    "INFERENCE",
    "MODEL_CKPT",
    "MODEL_FILE",
    "TRAINING",
    "class_rows",
    "keep_classifier",
    "load_classifier",
    "load_hyperparams",
    "load_pretrained",
    "load_trainable",
    "read_training",
    "save_pretrained",
    "weights_file",
    "write_model",
]

MODEL_FILE = "speaker_encoder.safetensors"
MODEL_CKPT = "speaker_encoder.ckpt"  # a torch file, where there is no other
ENCODER_CONFIG = "encoder_config.json"
HYPERPARAMS = "hyperparams.yaml"

# What inference takes from hyperparams.yaml; a folder without these keys has these.
INFERENCE = {
    "min_seconds": 0.25,
    "window_seconds": 60.0,
    "hop_seconds": 60.0,
    "as_norm_top_n": 300,
}

TEMPLATE = """\
# A speaker encoder for SpeechBrain, written by speechbrain_ext.
# Needs: pip install speechbrain_ext. Everything else is in this folder.
#     from speechbrain_ext.inference import SpeakerVerifier
#     verifier = SpeakerVerifier.from_hparams(source="this folder")

pretrained_path: .
sample_rate: 16000 # Hz; recordings of other rates are converted

# Recordings, in seconds
min_seconds: {min_seconds} # shorter ones are refused
window_seconds: {window_seconds} # longer ones are embedded in windows, and averaged
hop_seconds: {hop_seconds} # from one window to the next

as_norm_top_n: {as_norm_top_n} # cohort members that count, where there is a cohort.npz

encoder: !new:{encoder}
    source: !ref <pretrained_path>/{config}
head: !new:{head}
{arguments}
speaker_encoder: !new:speechbrain_ext.lobes.speaker_encoder.SpeakerEncoder
    encoder: !ref <encoder>
    head: !ref <head>

modules:
    speaker_encoder: !ref <speaker_encoder>
"""


def save_pretrained(
    folder, speaker_encoder, classifier=None, training=None, inference=None
):
    """Write a trained model as a folder, whole or not at all.

    Arguments
    ---------
    folder : str or Path
        Replaced where it is such a folder already, or empty; anything else there is an
        error.
    speaker_encoder : SpeakerEncoder
        Without LoRA layers (:func:`speechbrain_ext.adaptation.merge_lora`).
    classifier : ArcFace, optional
    training : dict, optional
        What the next stage must know: ``speakers`` (row order), ``n_speeds``, and
        whatever a reader wants to know.
    inference : dict, optional
        Some of :data:`INFERENCE`, where its values do not suit this model.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        Where LoRA is not merged, ``folder`` holds something else, or ``inference`` an
        unknown key.
    """
    folder, inference = Path(folder), inference or {}
    if unknown := sorted(set(inference) - set(INFERENCE)):
        raise InputError(
            f"{folder}: inference: {unknown[0]}, expected some of "
            f"{', '.join(INFERENCE)}"
        )
    if _holds_something_else(folder):
        raise InputError(f"{folder}: exists and is not a pretrained folder")
    weights = speaker_encoder.state_dict()
    if any(".lora_" in name for name in weights):
        raise InputError(f"{folder}: LoRA layers are not merged; call merge_lora first")
    with write_folder_atomically(folder) as beside:
        write_model(beside, speaker_encoder, weights, inference)
        if classifier is not None:
            save_weights(classifier.state_dict(), beside / CLASSIFIER_FILE)
        write_json(beside / TRAINING, training or {})
    return folder


def write_model(folder, speaker_encoder, weights, inference):
    """What rebuilds a model, into a folder that is there: all but its training.

    Arguments
    ---------
    folder : Path
    speaker_encoder : SpeakerEncoder
    weights : dict of str to torch.Tensor
        Its state, of any floating-point type: what loads it computes in float32.
    inference : dict
        Some of :data:`INFERENCE`, where its values do not suit this model.
    """
    save_weights(weights, folder / MODEL_FILE)
    write_json(folder / ENCODER_CONFIG, speaker_encoder.encoder.config.to_dict())
    text = _hyperparams(speaker_encoder, INFERENCE | inference)
    (folder / HYPERPARAMS).write_text(text)


def load_pretrained(folder):
    """Rebuild a speaker encoder from its folder, strictly and without any network.

    ``hyperparams.yaml`` is code: load folders of people you trust.

    Arguments
    ---------
    folder : str or Path

    Returns
    -------
    SpeakerEncoder
        In eval mode, on the CPU.

    Raises
    ------
    InputError
        Naming the file that is missing or does not fit.
    """
    return load_hyperparams(folder)["speaker_encoder"]


def load_hyperparams(folder, overrides=None):
    """The whole ``hyperparams.yaml`` of a pretrained folder, its model loaded.

    Arguments
    ---------
    folder : str or Path
    overrides : dict, optional
        Values for keys of the file.

    Returns
    -------
    dict
        ``speaker_encoder``, in eval mode on the CPU, and all other keys.

    Raises
    ------
    InputError
        As :func:`load_pretrained`; an override of a key that the file has not.
    """
    folder = Path(folder)
    path = folder / HYPERPARAMS
    if not path.is_file():
        raise InputError(
            f"{folder}: no {HYPERPARAMS}, expected a folder written by train.py"
        )
    if "<" in str(folder):  # HyperPyYAML looks for a key between < and >
        raise InputError(f"{folder}: '<' in the path of a model, expected none")
    try:
        with NoRandomValues():
            hparams = load_yaml(
                path, {**(overrides or {}), "pretrained_path": str(folder)}
            )
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(
            f"{path}: {error}; expected a folder written by train.py"
        ) from error
    model = hparams.get("speaker_encoder")
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"{path}: no module 'speaker_encoder'")
    path = weights_file(folder)
    weights = read_weights(path)
    if any(".lora_" in name for name in weights):
        raise InputError(
            f"{path}: LoRA layers are not merged, expected a folder of save_pretrained "
            "after merge_lora"
        )
    load_strictly(model, weights, str(path))
    model.eval()
    return hparams


def weights_file(folder):
    """The file of a pretrained folder's weights: safetensors, else a torch file."""
    weights, other = Path(folder) / MODEL_FILE, Path(folder) / MODEL_CKPT
    return other if other.is_file() and not weights.is_file() else weights


def load_trainable(folder, gradient_checkpointing=False, frozen_encoder=False):
    """A former stage's model, to be trained on: every parameter requires a gradient.

    Arguments
    ---------
    folder : str or Path
        Written by :func:`save_pretrained`.
    gradient_checkpointing : bool
        As in the encoder.
    frozen_encoder : bool
        Only the head trains; the encoder stays as it is, in eval mode.

    Returns
    -------
    SpeakerEncoder
    """
    model = load_pretrained(folder).requires_grad_(True)
    model.encoder.frozen = frozen_encoder
    model.encoder.requires_grad_(not frozen_encoder)
    model.encoder.gradient_checkpointing = gradient_checkpointing
    return model.train()


def _holds_something_else(folder):
    if not folder.is_dir():
        return folder.exists()
    return not (folder / HYPERPARAMS).is_file() and any(folder.iterdir())


def _hyperparams(speaker_encoder, inference):
    encoder, head = speaker_encoder.encoder, speaker_encoder.head
    return TEMPLATE.format(
        encoder=_dotted(encoder),
        config=ENCODER_CONFIG,
        head=_dotted(head),
        arguments="".join(
            f"    {name}: {json.dumps(value)}\n"
            for name, value in head.arguments.items()
        ),
        **{name: json.dumps(value) for name, value in inference.items()},
    )


def _dotted(instance):
    return f"{type(instance).__module__}.{type(instance).__qualname__}"
