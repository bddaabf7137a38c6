"""Sizes, multiply-adds and speed of models, counted on the modules themselves.

Multiply-adds are half of what torch's ``FlopCounterMode`` sees while the model runs on
meta tensors, so 580 M parameters need no memory: matrix products, convolutions and
attention, with the relative-position products. Features (FFT and mel), normalisation,
activations, softmax and the additions of biases are not counted.
"""

import re
import statistics
import time
from pathlib import Path

import torch
import yaml
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.adaptation import inject_lora
from speechbrain_ext.lobes import heads
from speechbrain_ext.lobes.encoder import (
    Encoder,
    Head,
    ParameterCount,
    count_parameters,
)
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder, read_config
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.pruning.costs import counted_operations, on_meta
from speechbrain_ext.utils.config import load_yaml
from speechbrain_ext.utils.errors import InputError, describe_os_error

__all__ = [
    "PUBLISHED_HEADS",
    "ParameterCount",
    "count_macs",
    "count_parameters",
    "counted_operations",
    "profile_folders",
    "profile_model",
    "profile_recipe",
    "random_model",
    "recipe_model",
    "seconds_per_second",
]

# arXiv 2510.04213, table 2
PUBLISHED_HEADS = {
    "adapter_mfa": heads.AdapterMFA,
    "mfa": heads.MFA,
    "weighted_ecapa": heads.WeightedSumECAPA,
}
MODEL_KEYS = ("encoder", "head")


def count_macs(speaker_encoder, seconds=1.0):
    """Multiply-adds of one utterance.

    Arguments
    ---------
    speaker_encoder : SpeakerEncoder
        On any device, meta included.
    seconds : float
        Length of the utterance.

    Returns
    -------
    int

    Raises
    ------
    InputError
        Where that is too short for the encoder.
    """
    model = on_meta(speaker_encoder).eval()
    x, _ = model.encoder.example(seconds)
    with counted_operations() as counter, torch.no_grad():
        model.head(model.encoder.encode(x), None)
    return counter.get_total_flops() // 2


def seconds_per_second(models, seconds=10.0, repeats=5):
    """Seconds of computing for one second of audio: the real-time factor of each model.

    One utterance at a time, features included, on the model's device with as many
    threads as torch has. The models take turns, so that whatever else the machine does
    falls on all of them.

    Arguments
    ---------
    models : sequence of SpeakerEncoder
        In eval mode.
    seconds : float
        Length of the utterance.
    repeats : int
        Timed calls of each, after one that is not; their median counts.

    Returns
    -------
    list of float
    """
    elapsed = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(1 + repeats):
            for model, times in zip(models, elapsed):
                device = next(model.parameters()).device
                samples = int(model.encoder.sample_rate * seconds)
                wavs = 0.1 * torch.randn(1, samples, device=device)
                start = time.perf_counter()
                model(wavs).sum().item()  # waits for a GPU
                times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) / seconds for times in elapsed]


def profile_folders(folders, seconds=10.0):
    """Sizes, multiply-adds and speed of saved models, dense or pruned.

    → {folder: dict of ``encoder``, ``head`` (parameters), ``macs`` of 1 s,
    ``seconds_per_second`` of an utterance of ``seconds``}.
    """
    models = [load_pretrained(folder) for folder in folders]
    for model in models:
        model.encoder.example(seconds)  # too short for it: an error
    return {
        folder: {**_sizes(model, 1.0), "seconds_per_second": speed}
        for folder, model, speed in zip(
            folders, models, seconds_per_second(models, seconds)
        )
    }


def profile_model(config=None, head="adapter_mfa", lora_rank=0, seconds=1.0):
    """Sizes and multiply-adds of a w2v-BERT model, built without memory for weights.

    ``config`` and ``head`` are those of :func:`random_model`; LoRA of rank
    ``lora_rank`` is on the encoder's ``lora_targets``, 0: none. → dict of ``encoder``,
    ``head``, ``lora`` (parameters) and ``macs`` of an utterance of ``seconds``.
    """
    with torch.device("meta"):
        model = random_model(config, head)
    return _profile(model, _lora(model.encoder, lora_rank), seconds)


def profile_recipe(hparams_file, config=None, lora_rank=None, seconds=1.0):
    """As :func:`profile_model`, of a recipe's YAML file, see :func:`recipe_model`.

    ``lora_rank`` None takes the LoRA of the file, if it has any.
    """
    with torch.device("meta"):
        model, lora = _from_recipe(hparams_file, config)
    if lora_rank is not None:
        lora = _lora(model.encoder, lora_rank)
    return _profile(model, lora, seconds)


def random_model(config=None, head="adapter_mfa"):
    """A SpeakerEncoder of w2v-BERT with random weights.

    ``config`` is one of its encoder, or its JSON file; None: w2v-BERT 2.0. ``head`` is
    ``adapter_mfa``, ``mfa``, ``weighted_ecapa`` or a class in
    ``speechbrain_ext.lobes.heads``.
    """
    kind = PUBLISHED_HEADS.get(head) or getattr(heads, head, None)
    if not (isinstance(kind, type) and issubclass(kind, Head)):
        raise InputError(
            f"head: {head}, expected {', '.join(PUBLISHED_HEADS)} or a class in "
            f"{heads.__name__}"
        )
    if config is None:
        config = Wav2Vec2BertConfig()
    elif not isinstance(config, Wav2Vec2BertConfig):
        config = read_config(config)
    encoder = W2VBertEncoder(config)
    return SpeakerEncoder(encoder, kind(encoder.hidden_size, encoder.n_states))


def recipe_model(hparams_file, config=None):
    """The SpeakerEncoder of a recipe's YAML file, of its keys encoder and head.

    Of the file's other keys only those are loaded that these two refer to. ``config``
    takes the place of the encoder's ``source``: random weights in place of those that
    the file names. InputError: the file has no such keys, or they are no encoder and
    head.
    """
    return _from_recipe(hparams_file, config)[0]


def _from_recipe(path, config):
    """A recipe's SpeakerEncoder and the arguments of its LoRA, or None."""
    sections = _sections(path)
    missing = [key for key in MODEL_KEYS if key not in sections]
    if missing:
        raise InputError(
            f"{path}: no key {missing[0]}, expected encoder and head; of a saved model "
            "give its folder (--pretrained_folder)"
        )
    wanted, new = set(), {*MODEL_KEYS, "lora"} & set(sections)
    while new:
        wanted |= new
        text = " ".join(sections[key] for key in new)
        new = (set(re.findall(r"<(\w+)", text)) & set(sections)) - wanted
    overrides = {key: None for key in sections if key not in wanted}
    if config is not None:
        overrides["encoder"] = {"source": str(config)}
    hparams = load_yaml(path, overrides)
    if not isinstance(hparams["encoder"], Encoder):
        kind = type(hparams["encoder"]).__name__
        raise InputError(f"{path}: encoder: a {kind}, expected an Encoder")
    return SpeakerEncoder(hparams["encoder"], hparams["head"]), hparams.get("lora")


def _sections(path):
    """Top-level key → its text in a YAML file, nothing of which is built."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"{path}: {describe_os_error(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not valid YAML: {reason}") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path}: not a list of `key: value`")
    return {
        key.value: text[value.start_mark.index : value.end_mark.index]
        for key, value in root.value
    }


def _lora(encoder, rank):
    """Arguments of LoRA of this rank; None where there is none, or no layer for it."""
    return {"r": rank, "alpha": 2 * rank} if rank and encoder.lora_targets else None


def _sizes(model, seconds):
    return {
        "encoder": count_parameters(model.encoder).total,
        "head": count_parameters(model.head).total,
        "macs": count_macs(model, seconds),
    }


def _profile(model, lora, seconds):
    sizes = {**_sizes(model, seconds), "lora": 0}
    if lora:
        inject_lora(model.encoder, **lora)
        sizes["lora"] = count_parameters(model.encoder).total - sizes["encoder"]
    return sizes
