"""Tiny speaker encoders and their ONNX files, exported once for all tests."""

import contextlib
import io
import json

import torch
from random_gates import close, set_gates
from tiny_encoder import noise, randomise, tiny_config, tiny_encoder

from speechbrain_ext.__main__ import main
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.pretrained import load_pretrained, save_pretrained
from speechbrain_ext.pruning import add_gates, prune


def pruned():
    """Adapter-MFA on three layers of uneven widths.

    One layer is without attention, one without its first feed-forward module, one
    without its convolution.
    """
    head = AdapterMFA(48, 4, adapter_size=6, embedding_size=7)
    gated = add_gates(SpeakerEncoder(tiny_encoder(), randomise(head)).eval())
    set_gates(gated, "soft")
    layer = "encoder.encoder.layers"
    close(gated, f"{layer}.0.self_attn", f"{layer}.1.ffn1", f"{layer}.2.conv_module")
    return prune(gated)


def mfa():
    """MFA with BatchNorm on one dense layer, features without variance."""
    encoder = tiny_encoder(tiny_config(num_hidden_layers=1, normalise_variance=False))
    return _with_statistics(SpeakerEncoder(encoder, MFA(48, 2, 7, normalise=True)))


def ecapa():
    """ECAPA-TDNN on one dense layer."""
    encoder = tiny_encoder(tiny_config(num_hidden_layers=1))
    head = WeightedSumECAPA(48, 2, embedding_size=7, channels=[16, 16, 16, 16, 24])
    return _with_statistics(SpeakerEncoder(encoder, head))


MODELS = {"pruned": pruned, "mfa": mfa, "ecapa": ecapa}


def export(name, folder):
    """Save a model as a folder and export that by the command; for :func:`load`."""
    save_pretrained(folder / "model", MODELS[name]())
    file = folder / "model.onnx"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["onnx", "--source", str(folder / "model"), "--output", str(file)])
    report_of(folder).write_text(printed.getvalue())  # last: all is there


def load(folder):
    """What :func:`export` left → (model, file, report)."""
    report = json.loads(report_of(folder).read_text())
    return load_pretrained(folder / "model"), folder / "model.onnx", report


def report_of(folder):
    """Beside it, as a test looks at what the command left."""
    return folder.with_name(f"{folder.name}.json")


def _with_statistics(model):
    """Running means and variances that are not those of an untrained model."""
    randomise(model.head).train()
    with torch.no_grad():
        for seed in range(3):
            model(0.1 * noise(4, 16000, seed=seed))
    return model.eval()
