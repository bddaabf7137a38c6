"""Checkpoints as the published training code saves them, of tiny random models.

Their names are written down here once more, apart from the converter's.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_encoder import noise, randomise

from speechbrain_ext.inference import convert_released
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder, read_config
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

CHANNELS = [16, 16, 16, 16, 48]
HEADS = {
    "adapter_mfa": lambda c, n: AdapterMFA(c, n, adapter_size=6, embedding_size=10),
    "mfa": lambda c, n: MFA(c, n, embedding_size=9, pooling_size=c // 2),
    "weighted_ecapa": lambda c, n: WeightedSumECAPA(c, n, 7, CHANNELS),
}


def published_config(hidden=24, heads=4, ffn=40, layers=2, **groups):
    """What the published code adds to transformers' configuration, as a dictionary.

    ``groups`` replaces its lists per layer: ``num_attention_heads_group``,
    ``intermediate_size_group``, ``conv_channels``; 0 switches a part off.
    """
    attention = groups.get("num_attention_heads_group", [heads] * layers)
    feed_forward = groups.get("intermediate_size_group", [[ffn, ffn]] * layers)
    conv = groups.get("conv_channels", [hidden] * layers)
    return {
        "model_type": "wav2vec2-bert",
        "hidden_size": hidden,
        "output_hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "limit_l": -0.1,
        "limit_r": 1.1,
        "temperature": 2 / 3,
        "intermediate_size_group": feed_forward,
        "use_feed_forward": [[bool(n) for n in pair] for pair in feed_forward],
        "conv_group": [[hidden, channels] for channels in conv],
        "num_attention_heads_group": attention,
        "use_attention": [bool(n) for n in attention],
        "prune": False,
    }


def write_config(folder, **options):
    """The JSON file of :func:`published_config`."""
    path = folder / "encoder_config.json"
    path.write_text(json.dumps(published_config(**options)))
    return path


def random_model(config_file, head="adapter_mfa", seed=0):
    """A model of our classes with random weights and running statistics."""
    encoder = W2VBertEncoder(read_config(config_file))
    model = SpeakerEncoder(encoder, HEADS[head](encoder.hidden_size, encoder.n_states))
    randomise(model, seed)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    for number, module in enumerate(norms):
        module.running_mean.copy_(0.1 * noise(module.num_features, seed=number))
        module.running_var.copy_(1 + noise(module.num_features, seed=number).abs())
        module.num_batches_tracked.fill_(5)
    return model.eval()


def published_names(model):
    """The ``spk_model`` of a published checkpoint: name → tensor."""
    names = {
        f"front.encoder.{name}": tensor.detach().clone()
        for name, tensor in model.encoder.state_dict().items()
    }
    for name, tensor in model.head.state_dict().items():
        names[name] = tensor.detach().clone()
    return names


def with_lora(names, rank, layers=("linear_q", "linear_v")):
    """The same, as peft saves it: random LoRA beside what it was put on."""
    wrapped = {}
    for name, tensor in names.items():
        parts = name.split(".")
        if parts[:2] == ["front", "encoder"]:
            parts[2:2] = ["base_model", "model"]
        if len(parts) > 2 and parts[-2] in layers:
            before = ".".join(parts[:-1])
            wrapped[f"{before}.base_layer.{parts[-1]}"] = tensor
            if parts[-1] == "weight":
                rows, columns = tensor.shape
                seed = len(wrapped)
                wrapped[f"{before}.lora_A.default.weight"] = noise(
                    rank, columns, seed=seed
                )
                wrapped[f"{before}.lora_B.default.weight"] = (
                    noise(rows, rank, seed=seed + 1) / rows
                )
        else:
            wrapped[".".join(parts)] = tensor
    return wrapped


def merge_by_hand(model, wrapped, scale):
    """Add scale · B·A to the weights of ``model``, in place."""
    with torch.no_grad():
        for name, first in wrapped.items():
            if name.endswith(".lora_A.default.weight"):
                layer = name.removesuffix(".lora_A.default.weight")
                second = wrapped[f"{layer}.lora_B.default.weight"]
                own = layer.removeprefix("front.encoder.base_model.model.")
                model.encoder.get_submodule(own).weight += scale * (second @ first)


def checkpoint(names, n_classes=12):
    """What the published code saves around the tensors."""
    size = names["bottleneck.weight"].shape[0] if "bottleneck.weight" in names else 7
    classifier = {"weight": noise(n_classes, size)}
    return {"modules": {"spk_model": names, "classifier": classifier}, "epoch_idx": 7}


def save(content, path):
    """torch.save, as the published code does → path."""
    torch.save(content, path)
    return path


def embed(model, wavs):
    """One by one → [N, E]."""
    with torch.no_grad():
        return torch.cat([model(wav[None])[:, 0] for wav in wavs])


def embed_batch(model, wavs):
    """In one padded batch → [N, E]."""
    lengths = torch.tensor([len(wav) for wav in wavs])
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    with torch.no_grad():
        return model(batch, lengths / lengths.max())[:, 0]


def utterances():
    """Noise of 0.5, 0.3 and 0.7 s."""
    return [0.1 * noise(n, seed=n) for n in (8000, 4800, 11200)]


def convert(tmp_path, names, **options):
    """A checkpoint of these tensors → converted model."""
    path = save(checkpoint(names), tmp_path / "model.pth")
    return load_pretrained(convert_released(path, tmp_path / "out", **options))


def assert_same(model, original, tolerance=1e-6):
    """Equal embeddings, one by one and in a padded batch."""
    wavs = utterances()
    expected = embed(original, wavs)
    assert expected.std(0).mean() > 1e-3  # not all the same, whatever is put in
    torch.testing.assert_close(embed(model, wavs), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(embed_batch(model, wavs), expected, atol=1e-5, rtol=0)


class Hostile:
    """Makes a folder when it is unpickled as code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        """What pickle would call."""
        return os.mkdir, (self.path,)


def refused(tmp_path, content, match, **options):
    """Convert, and see one line that names the file, and no folder."""
    path = content if isinstance(content, Path) else tmp_path / "model.pth"
    if path is not content:
        save(content, path)
    with pytest.raises(InputError, match=match) as caught:
        convert_released(path, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
