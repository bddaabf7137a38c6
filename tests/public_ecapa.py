"""ECAPA-TDNN as public programs save it, and plain code that runs it.

Names and formulas are written down here once more, apart from the package. wespeaker's
tensors are those of ``public_heads``.
"""

import torch
import torch.nn.functional as F
import yaml
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier
from tiny_encoder import noise, randomise
from torch import nn

CHANNELS = [16, 16, 16, 16, 24]
HYPERPARAMS = """\
n_mels: 20
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: CHANNELS
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: DILATIONS
    attention_channels: 6
    se_channels: 5
    lin_neurons: 10
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 10
    out_neurons: 7
mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    std_norm: False
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        mean_var_norm_emb: !ref <mean_var_norm_emb>
        classifier: !ref <classifier>
"""


def speechbrain_model(dilations=(1, 2, 3, 4, 1), mels=20):
    """SpeechBrain's module with random weights and statistics, in eval mode."""
    model = ECAPA_TDNN(
        mels,
        channels=CHANNELS,
        dilations=list(dilations),
        attention_channels=6,
        se_channels=5,
        lin_neurons=10,
    )
    randomise(model)
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(0.1 * noise(module.num_features, seed=number))
            variance = 1 + 0.5 * noise(module.num_features, seed=number + 1).abs()
            module.running_var.copy_(variance)
    return model.eval()


def speechbrain_folder(folder, dilations=(1, 2, 3, 4, 1), hyperparams=HYPERPARAMS):
    """A folder as SpeechBrain publishes its models → its module."""
    folder.mkdir()
    model = speechbrain_model(dilations)
    flow = {"default_flow_style": True}
    text = hyperparams.replace("CHANNELS", yaml.safe_dump(CHANNELS, **flow).strip())
    text = text.replace("DILATIONS", yaml.safe_dump(list(dilations), **flow).strip())
    (folder / "hyperparams.yaml").write_text(text)
    torch.save(model.state_dict(), folder / "embedding_model.ckpt")
    classifier = Classifier(10, out_neurons=7)
    torch.save(classifier.state_dict(), folder / "classifier.ckpt")
    mean = {"count": 3, "glob_mean": noise(10), "glob_std": torch.ones(10)}
    torch.save(mean, folder / "mean_var_norm_emb.ckpt")
    return model


def clovaai_tensors(mels=20, channels=16, last=24, attention=6, embedding=10, se=5):
    """VoxBlink2's ECAPA-TDNN, after clovaai's."""
    tensors = {}

    def weighted(name, *shape):
        scale = torch.tensor(shape[1:]).prod().item() ** -0.5
        tensors[f"{name}.weight"] = scale * noise(*shape, seed=len(tensors))
        tensors[f"{name}.bias"] = 0.1 * noise(shape[0], seed=len(tensors))

    def norm(name, width):
        seed = len(tensors)
        tensors[f"{name}.weight"] = 1 + 0.1 * noise(width, seed=seed)
        tensors[f"{name}.bias"] = 0.1 * noise(width, seed=seed + 1)
        tensors[f"{name}.running_mean"] = 0.1 * noise(width, seed=seed + 2)
        tensors[f"{name}.running_var"] = 1 + 0.5 * noise(width, seed=seed + 3).abs()
        tensors[f"{name}.num_batches_tracked"] = torch.tensor(5)

    weighted("conv1", channels, mels, 5)
    norm("bn1", channels)
    for layer in ("layer1", "layer2", "layer3"):
        for number in (1, 3):
            weighted(f"{layer}.conv{number}", channels, channels, 1)
            norm(f"{layer}.bn{number}", channels)
        for number in range(7):
            weighted(f"{layer}.convs.{number}", channels // 8, channels // 8, 3)
            norm(f"{layer}.bns.{number}", channels // 8)
        weighted(f"{layer}.se.se.1", se, channels, 1)
        weighted(f"{layer}.se.se.3", channels, se, 1)
    weighted("layer4", last, 3 * channels, 1)
    weighted("attention.0", attention, 3 * last, 1)
    norm("attention.2", attention)
    weighted("attention.4", last, attention, 1)
    norm("bn5", 2 * last)
    weighted("fc6", embedding, 2 * last)
    norm("bn6", embedding)
    return tensors


def plain_clovaai(x, tensors):
    """Features of one utterance [1, M, T] through those tensors → [1, E]."""

    def conv(x, name, dilation=1):
        weight = tensors[f"{name}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        bias = tensors[f"{name}.bias"]
        return F.conv1d(x, weight, bias, padding=padding, dilation=dilation)

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(tensors[f"{name}.{key}"] for key in keys))

    def block(x, layer, dilation):
        y = norm(conv(x, f"{layer}.conv1").relu(), f"{layer}.bn1")
        *parts, passed = y.chunk(8, 1)
        part, done = 0, []
        for number, own in enumerate(parts):
            part = conv(part + own, f"{layer}.convs.{number}", dilation).relu()
            part = norm(part, f"{layer}.bns.{number}")
            done.append(part)
        y = conv(torch.cat([*done, passed], 1), f"{layer}.conv3").relu()
        y = norm(y, f"{layer}.bn3")
        gate = conv(y.mean(2, keepdim=True), f"{layer}.se.se.1").relu()
        return y * conv(gate, f"{layer}.se.se.3").sigmoid() + x

    x = norm(conv(x, "conv1").relu(), "bn1")
    first = block(x, "layer1", 2)
    second = block(x + first, "layer2", 3)
    third = block(x + first + second, "layer3", 4)
    x = conv(torch.cat([first, second, third], 1), "layer4").relu()
    mean = x.mean(2, keepdim=True).expand_as(x)
    deviation = x.var(2, keepdim=True).clamp(min=1e-4).sqrt().expand_as(x)
    attention = conv(torch.cat([x, mean, deviation], 1), "attention.0").relu()
    weights = conv(norm(attention, "attention.2").tanh(), "attention.4").softmax(2)
    mean = (weights * x).sum(2)
    variance = (weights * x.square()).sum(2) - mean.square()
    pooled = torch.cat([mean, variance.clamp(min=1e-4).sqrt()], 1)
    pooled = norm(pooled, "bn5")
    embedding = F.linear(pooled, tensors["fc6.weight"], tensors["fc6.bias"])
    return norm(embedding, "bn6")
