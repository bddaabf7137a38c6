"""The end state of a training stage as a folder, and the way back.

    hyperparams.yaml               the modules, for SpeechBrain's inference classes
    encoder_config.json            configuration from which the encoder is rebuilt
    speaker_encoder.safetensors    encoder and head, LoRA merged
    classifier.safetensors         one row per training class
    training.json                  speakers in row order, stage, epoch, validation EER

The next stage, verification and inference all read this folder. Everything in it is
needed: loading is strict and downloads nothing. Inference also takes calibration.json,
cohort.npz and thresholds.json where they are there
(:mod:`speechbrain_ext.inference.loading`), and weights as ``speaker_encoder.ckpt`` in
place of safetensors.
"""

import json
from pathlib import Path

import torch

from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_folder_atomically, write_json
from speechbrain_ext.hyper import load_yaml
from speechbrain_ext.pretrained_classifier import (
    CLASSIFIER_FILE,
    TRAINING,
    class_rows,
    keep_classifier,
    load_classifier,
    read_training,
)
from speechbrain_ext.weights import (
    NoRandomValues,
    load_strictly,
    read_weights,
    save_weights,
)

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
