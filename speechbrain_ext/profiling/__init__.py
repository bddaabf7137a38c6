"""Sizes and multiply-adds of models, counted on the modules themselves.

Multiply-adds are half of what torch's ``FlopCounterMode`` sees while the model runs on
meta tensors, so 580 M parameters need no memory: matrix products, convolutions and
attention, with the relative-position products. Features (FFT and mel), normalisation,
activations, softmax and the additions of biases are not counted.
"""

import contextlib
import statistics
import time
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.adaptation import inject_lora
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder, read_config
from speechbrain_ext.pretrained import load_pretrained

HEADS = {
    "adapter_mfa": AdapterMFA,
    "mfa": MFA,
    "weighted_ecapa": WeightedSumECAPA,
}


class ParameterCount(NamedTuple):
    """Trained parameters and all of them."""

    trained: int
    total: int


def count_parameters(module):
    """Parameters of a module → ParameterCount."""
    parameters = list(module.parameters())
    return ParameterCount(
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        total=sum(p.numel() for p in parameters),
    )


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
        Where that is too short for two frames.
    """
    encoder = speaker_encoder.encoder
    frames, width = (
        encoder.n_frames(seconds),
        encoder.config.feature_projection_input_dim,
    )
    weight = next(speaker_encoder.parameters())
    features = torch.zeros(1, frames, width, device=weight.device)
    modes = {module: module.training for module in speaker_encoder.modules()}
    speaker_encoder.eval()
    with counted_operations() as counter, torch.no_grad():
        speaker_encoder.head(encoder.encode_features(features), None)
    for module, training in modes.items():
        module.training = training
    return counter.get_total_flops() // 2


@contextlib.contextmanager
def counted_operations():
    """Count floating-point operations, two per multiply-add: a ``FlopCounterMode``."""
    # the fused attention of a CPU is unknown to the counter, plain products are not
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def seconds_per_second(model, seconds=10.0, repeats=5, sample_rate=16000):
    """Seconds of computing for one second of audio: the real-time factor.

    One utterance at a time, features included, on the model's device with as many
    threads as torch has.

    Arguments
    ---------
    model : torch.nn.Module
        wavs [B, T] → anything; in eval mode.
    seconds : float
        Length of the utterance.
    repeats : int
        Timed calls, after one that is not; their median counts.
    sample_rate : int
        Hz.

    Returns
    -------
    float
    """
    device = next(model.parameters()).device
    wavs = 0.1 * torch.randn(1, int(sample_rate * seconds), device=device)
    elapsed = []
    with torch.inference_mode():
        for _ in range(1 + repeats):
            start = time.perf_counter()
            model(wavs).sum().item()  # waits for a GPU
            elapsed.append(time.perf_counter() - start)
    return statistics.median(elapsed[1:]) / seconds


def profile_folder(folder, seconds=10.0):
    """Sizes, multiply-adds and speed of a saved model, dense or pruned.

    Arguments
    ---------
    folder : str or Path
        Written by train.py or distill_prune.py.
    seconds : float
        Length of the utterance for the speed.

    Returns
    -------
    dict
        ``encoder``, ``head`` (parameters), ``macs`` of 1 s, ``seconds_per_second``.
    """
    model = load_pretrained(folder)
    model.encoder.n_frames(seconds)  # too short for any: an error
    return {
        "encoder": count_parameters(model.encoder).total,
        "head": count_parameters(model.head).total,
        "macs": count_macs(model),
        "seconds_per_second": seconds_per_second(model, seconds),
    }


def profile_model(config=None, head="adapter_mfa", lora_rank=0, seconds=1.0):
    """Sizes and multiply-adds of a model, built without memory for its weights.

    Arguments
    ---------
    config : str, Path or Wav2Vec2BertConfig, optional
        Encoder configuration or its JSON file; None: w2v-BERT 2.0.
    head : str
        ``adapter_mfa``, ``mfa`` or ``weighted_ecapa``.
    lora_rank : int
        Rank of LoRA on the query and value projections; 0: none.
    seconds : float
        Length of the utterance for the multiply-adds.

    Returns
    -------
    dict
        ``encoder``, ``head``, ``lora`` (parameters) and ``macs``.
    """
    with torch.device("meta"):
        model = random_model(config, head)
    encoder = model.encoder
    sizes = {
        "encoder": count_parameters(encoder).total,
        "head": count_parameters(model.head).total,
        "macs": count_macs(model, seconds),
        "lora": 0,
    }
    if lora_rank:
        inject_lora(encoder, r=lora_rank, alpha=2 * lora_rank)
        sizes["lora"] = count_parameters(encoder).total - sizes["encoder"]
    return sizes


def random_model(config=None, head="adapter_mfa"):
    """A SpeakerEncoder with random weights; ``config`` and ``head`` as above."""
    if config is None:
        config = Wav2Vec2BertConfig()
    elif not isinstance(config, Wav2Vec2BertConfig):
        config = read_config(config)
    encoder = W2VBertEncoder(config)
    return SpeakerEncoder(encoder, HEADS[head](encoder.hidden_size, encoder.n_states))
