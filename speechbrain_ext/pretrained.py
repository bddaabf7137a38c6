"""A trained model as a folder, and the way back.

    hyperparams.yaml               the modules, for SpeechBrain's inference classes
    custom_interface.py            their class, for SpeechBrain's foreign_class
    encoder_config.json            the encoder's configuration, for transformers; it
                                   says what hyperparams.yaml says
    speaker_encoder.safetensors    encoder and head, LoRA merged
    classifier.safetensors         one row per training class
    training.json                  speakers in row order, stage, epoch, validation EER

The next stage, verification and inference all read this folder. Encoder and head are
written as their class and the arguments of their constructors
(:mod:`speechbrain_ext.lobes.encoder`). Everything in the folder is needed: loading is
strict and downloads nothing. Inference also takes calibration.json, cohort.npz and
thresholds.json where they exist (:mod:`speechbrain_ext.inference.folder`), and weights
as ``speaker_encoder.ckpt`` in place of safetensors.
"""

import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml

from speechbrain_ext.utils.config import load_yaml, read_tree
from speechbrain_ext.utils.errors import InputError, check_folder, repository
from speechbrain_ext.utils.files import read_json, write_folder_atomically, write_json
from speechbrain_ext.utils.weights import (
    NoRandomValues,
    load_strictly,
    read_weights,
    save_weights,
)

MODEL_FILE = "speaker_encoder.safetensors"
MODEL_CKPT = "speaker_encoder.ckpt"  # a torch file, where there is no other
ENCODER_CONFIG = "encoder_config.json"
HYPERPARAMS = "hyperparams.yaml"
INTERFACE_FILE = "custom_interface.py"
CLASSIFIER_FILE = "classifier.safetensors"
TRAINING = "training.json"

# What inference takes from hyperparams.yaml; a folder without these keys has these.
INFERENCE = {
    "min_seconds": 0.25,
    "window_seconds": 60.0,
    "hop_seconds": 60.0,
    "speech_detection": True,
    "speech_threshold": 0.5,
    "min_speech_seconds": 0.25,
    "max_pause_seconds": 0.5,
    "speech_margin_seconds": 0.25,
    "as_norm_top_n": 300,
}

TEMPLATE = """\
# A model for SpeechBrain, written by speechbrain_ext.
# Needs the package speechbrain_ext of {repository}. Everything else is in this folder.
#     from speechbrain_ext.inference import {used_by}
#     model = {used_by}.from_hparams(source="this folder")

pretrained_path: .
sample_rate: {sample_rate} # Hz; recordings of other rates are converted

# Recordings, in seconds
min_seconds: {min_seconds} # shorter ones are refused
window_seconds: {window_seconds} # longer ones are embedded in windows, and averaged
hop_seconds: {hop_seconds} # from one window to the next

# Before a decision, only speech is embedded
speech_detection: {speech_detection}
speech_threshold: {speech_threshold} # probability from which a moment is speech
min_speech_seconds: {min_speech_seconds} # shorter sounds are none
max_pause_seconds: {max_pause_seconds} # longer pauses are cut
speech_margin_seconds: {speech_margin_seconds} # kept before and after speech

as_norm_top_n: {as_norm_top_n} # cohort members that count, where there is a cohort.npz

random_state: !apply:torch.get_rng_state # put back once the modules are made
encoder: {encoder}
head: {head}
speaker_encoder: !new:speechbrain_ext.lobes.speaker_encoder.SpeakerEncoder
    encoder: !ref <encoder>
    head: !ref <head>

modules:
    speaker_encoder: !ref <speaker_encoder>
    # SpeechBrain's own classes look for these
    compute_features: !ref <pass_through>
    mean_var_norm: !ref <pass_through>
    embedding_model: !ref <speaker_encoder>
    mean_var_norm_emb: !ref <unit_length>
    classifier: !ref <pass_through> # there is none: classify_batch means nothing

mean_var_norm_emb: !ref <unit_length> # for encode_batch(normalize=True)
unit_length: !new:speechbrain_ext.inference.interfaces.UnitLength
pass_through: !new:speechbrain_ext.inference.interfaces.PassThrough
pretrainer: !new:speechbrain_ext.inference.interfaces.FolderPretrainer
    speaker_encoder: !ref <speaker_encoder>
    random_state: !ref <random_state>
"""

INTERFACE = """\
\"\"\"For SpeechBrain's ``foreign_class``: the class that this model is made for.\"\"\"

from speechbrain_ext.inference.interfaces import {used_by}

__all__ = ["{used_by}"]
"""


# -- model -----------------------------------------------------------------------------


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
        Where LoRA is not merged, ``folder`` holds something else, ``inference`` has an
        unknown key, or an encoder or head cannot be rebuilt from its arguments.
    """
    folder, inference = Path(folder), inference or {}
    if unknown := sorted(set(inference) - set(INFERENCE)):
        raise InputError(
            f"{folder}: inference: {unknown[0]}, expected some of "
            f"{', '.join(INFERENCE)}"
        )
    if folder.is_dir():
        foreign = not (folder / HYPERPARAMS).is_file() and any(folder.iterdir())
    else:
        foreign = folder.exists()
    if foreign:
        raise InputError(f"{folder}: exists and is not a pretrained folder")
    weights = speaker_encoder.state_dict()
    if any(".lora_" in name for name in weights):
        raise InputError(f"{folder}: LoRA layers are not merged; call merge_lora first")
    with write_folder_atomically(folder) as new:
        write_model(new, speaker_encoder, weights, inference)
        if classifier is not None:
            save_weights(classifier.state_dict(), new / CLASSIFIER_FILE)
        write_json(new / TRAINING, training or {})
    return folder


def write_model(folder, speaker_encoder, weights, inference):
    """Write what rebuilds a model, all but its training, into an existing folder.

    Arguments
    ---------
    folder : Path
    speaker_encoder : SpeakerEncoder
    weights : dict of str to torch.Tensor
        Its state, of any floating-point type: what loads it computes in float32.
    inference : dict
        Some of :data:`INFERENCE`, where its values do not suit this model.
    """
    encoder, head = speaker_encoder.encoder, speaker_encoder.head
    arguments, of_head = _arguments(encoder), _arguments(head)
    save_weights(weights, folder / MODEL_FILE)
    if isinstance(arguments.get("source"), dict):
        write_json(folder / ENCODER_CONFIG, arguments["source"])
    interface = INTERFACE.format(used_by=head.used_by)
    (folder / INTERFACE_FILE).write_text(interface, encoding="utf-8")
    treated = {**INFERENCE, **inference}
    longest = (encoder.max_samples or float("inf")) / encoder.sample_rate
    for key in ("window_seconds", "hop_seconds"):
        treated[key] = min(treated[key], longest)
    text = TEMPLATE.format(
        repository=repository(),
        used_by=head.used_by,
        sample_rate=encoder.sample_rate,
        encoder=_constructor(encoder, arguments),
        head=_constructor(head, of_head),
        **{key: json.dumps(value) for key, value in treated.items()},
    )
    (folder / HYPERPARAMS).write_text(text, encoding="utf-8")


def _arguments(module):
    """A copy of a module's ``arguments``, lists and dicts as JSON holds them."""
    name = type(module).__name__
    if not isinstance(getattr(module, "arguments", None), dict):
        raise InputError(
            f"{name}: no record of its arguments, expected a subclass of Encoder or "
            "Head in speechbrain_ext.lobes.encoder"
        )
    arguments = {}
    for argument, value in module.arguments.items():
        if isinstance(value, torch.nn.Module):  # a head inside of another
            arguments[argument] = value
            continue
        try:
            arguments[argument] = json.loads(json.dumps(value))
        except TypeError as error:
            raise InputError(
                f"{name}: argument {argument} is a {type(value).__name__}, expected a "
                "value that JSON holds"
            ) from error
    return arguments


def _constructor(module, arguments):
    """A module as YAML: its class, then its arguments, one a line or a few."""
    options = {"sort_keys": False, "default_flow_style": True, "width": 80}
    lines = [f"!new:{_dotted(type(module))}"]
    for name, value in arguments.items():
        if isinstance(value, torch.nn.Module):
            text = f"{name}: {_constructor(value, _arguments(value)).strip()}"
        else:
            text = yaml.safe_dump({name: value}, allow_unicode=True, **options)
            text = text.strip()[1:-1]  # "{name: value}"
        lines.append(textwrap.indent(text, "    "))
    return "\n".join(lines) + "\n"


def _dotted(kind):
    """Name of a class, of the outermost package that has it under its own name."""
    if "<locals>" in kind.__qualname__ or kind.__module__ == "__main__":
        raise InputError(f"{kind.__qualname__}: expected a class that can be imported")
    parts = kind.__module__.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        if getattr(sys.modules.get(package), kind.__qualname__, None) is kind:
            return f"{package}.{kind.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


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
        As :func:`load_pretrained`; an override of a key that the file has not, or of
        ``pretrained_path``, which is always the folder itself.
    """
    overrides = _checked_overrides(overrides)
    folder = check_folder(folder)
    path = folder / HYPERPARAMS
    if not path.is_file():
        raise InputError(
            f"{folder}: no {HYPERPARAMS}, expected a folder written by train.py"
        )
    if "<" in str(folder):  # HyperPyYAML looks for a key between < and >
        raise InputError(f"{folder}: '<' in the path of a model, expected none")
    overrides["pretrained_path"] = str(folder)
    check_config(folder)
    try:
        with NoRandomValues():
            hparams = load_yaml(path, overrides)
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(
            f"{path}: {error}; expected a folder written by train.py"
        ) from error
    model = hparams.get("speaker_encoder")
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"{path}: no module 'speaker_encoder'")
    load_model_weights(model, folder)
    return hparams


def load_model_weights(model, folder):
    """Load a folder's weights into its model, strictly → the model in eval mode."""
    path = weights_file(folder)
    weights = read_weights(path)
    if any(".lora_" in name for name in weights):
        raise InputError(
            f"{path}: LoRA layers are not merged, expected a folder of save_pretrained "
            "after merge_lora"
        )
    load_strictly(model, weights, str(path))
    return model.eval()


def configuration_of(folder):
    """What hyperparams.yaml says of an encoder with a configuration, else None."""
    encoder = read_tree(Path(folder) / HYPERPARAMS).get("encoder")
    source = encoder.get("source") if isinstance(encoder, Mapping) else None
    return source if isinstance(source, Mapping) else None


def check_config(folder):
    """InputError where encoder_config.json says something else than hyperparams.yaml.

    Folders written before have the configuration in the first alone.
    """
    source, path = configuration_of(folder), Path(folder) / HYPERPARAMS
    if source is None:
        return
    own = Path(folder) / ENCODER_CONFIG
    config = read_json(own, {}, what="the configuration of the encoder")
    for name in {**source, **config}:
        seen, expected = config.get(name), source.get(name)
        if name not in config or name not in source or seen != expected:
            raise InputError(
                f"{own}: {name} is {seen!r}, expected {expected!r} as in {path}"
            )


def _checked_overrides(overrides):
    """A copy of a dict or None → dict."""
    if not isinstance(overrides, Mapping | None):
        raise InputError(
            f"overrides: {overrides!r}, expected a dict of values for {HYPERPARAMS}"
        )
    if "pretrained_path" in (overrides or {}):
        raise InputError(
            "overrides: pretrained_path, expected other keys: it is the folder itself"
        )
    return dict(overrides or {})


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

    Raises
    ------
    InputError
        As :func:`load_pretrained`; gradient checkpointing of an encoder without it.
    """
    model = load_pretrained(folder).requires_grad_(True)
    model.encoder.set_training_options(frozen_encoder, gradient_checkpointing)
    return model.train()
