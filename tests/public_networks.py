"""CAM++ and ERes2NetV2 under the names of the public code: random tensors, plain code.

Names and formulas are written down here once more, apart from the package: one
utterance at a time, step by step, with torchaudio's Kaldi features.
"""

import torch
import torch.nn.functional as F
import torchaudio
from tiny_encoder import noise

FRONT_ENDS = {"3dspeaker": (1.0, "povey"), "wespeaker": (32768.0, "hamming")}


def kaldi(wav, style, n_mels):
    """Features [T, M] of a waveform [N], their mean removed."""
    scale, window = FRONT_ENDS[style]
    options = {"num_mel_bins": n_mels, "sample_frequency": 16000, "dither": 0.0}
    x = torchaudio.compliance.kaldi.fbank(
        scale * wav[None], window_type=window, **options
    )
    return x - x.mean(0)


class Tensors(dict):
    """Random tensors by name."""

    def weight(self, name, *shape, bias=False):
        """Of a convolution or a linear map."""
        size = torch.tensor(shape[1:]).prod().item()
        self[f"{name}.weight"] = noise(*shape, seed=len(self)) * (2 / size) ** 0.5
        if bias:
            self[f"{name}.bias"] = 0.1 * noise(shape[0], seed=len(self))

    def norm(self, name, width, affine=True):
        """Of a BatchNorm; its last weight is negative, the last but one zero."""
        seed = len(self)
        if affine:
            self[f"{name}.weight"] = 1 + 0.3 * noise(width, seed=seed)
            self[f"{name}.weight"][-2:] = torch.tensor([0.0, -0.8])
            self[f"{name}.bias"] = 0.3 * noise(width, seed=seed + 1)
        self[f"{name}.running_mean"] = 0.1 * noise(width, seed=seed + 2)
        self[f"{name}.running_var"] = 0.3 + 0.2 * noise(width, seed=seed + 3).abs()
        self[f"{name}.num_batches_tracked"] = torch.tensor(5)

    def linear(self, x, name):
        """W x + b."""
        return F.linear(x, self[f"{name}.weight"], self.get(f"{name}.bias"))

    def conv1d(self, x, name, **options):
        """W ∗ x + b over [1, C, T]."""
        weight, bias = self[f"{name}.weight"], self.get(f"{name}.bias")
        return F.conv1d(x, weight, bias, **options)

    def conv2d(self, x, name, **options):
        """W ∗ x + b over [1, C, F, T]."""
        weight, bias = self[f"{name}.weight"], self.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, **options)

    def normed(self, x, name):
        """BatchNorm in inference."""
        mean, variance = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        return F.batch_norm(x, mean, variance, weight, bias)


def campplus_tensors(layers=(2, 3, 1), channels=6, growth=4, n_mels=16, embedding=5):
    """CAM++ with stem of 4 channels and bottleneck of 8."""
    stem, bottleneck, w = 4, 8, Tensors()
    w.weight("head.conv1", stem, 1, 3, 3)
    w.norm("head.bn1", stem)
    for layer in ("layer1", "layer2"):
        for block in (f"head.{layer}.0", f"head.{layer}.1"):
            for number in (1, 2):
                w.weight(f"{block}.conv{number}", stem, stem, 3, 3)
                w.norm(f"{block}.bn{number}", stem)
        w.weight(f"head.{layer}.0.shortcut.0", stem, stem, 1, 1)
        w.norm(f"head.{layer}.0.shortcut.1", stem)
    w.weight("head.conv2", stem, stem, 3, 3)
    w.norm("head.bn2", stem)
    w.weight("xvector.tdnn.linear", channels, stem * n_mels // 8, 5)
    w.norm("xvector.tdnn.nonlinear.batchnorm", channels)
    for number, count in enumerate(layers, 1):
        for place in range(1, count + 1):
            name = f"xvector.block{number}.tdnnd{place}"
            w.norm(f"{name}.nonlinear1.batchnorm", channels)
            w.weight(f"{name}.linear1", bottleneck, channels, 1)
            w.norm(f"{name}.nonlinear2.batchnorm", bottleneck)
            w.weight(f"{name}.cam_layer.linear_local", growth, bottleneck, 3)
            w.weight(
                f"{name}.cam_layer.linear1", bottleneck // 2, bottleneck, 1, bias=1
            )
            w.weight(f"{name}.cam_layer.linear2", growth, bottleneck // 2, 1, bias=True)
            channels += growth
        name = f"xvector.transit{number}"
        w.norm(f"{name}.nonlinear.batchnorm", channels)
        w.weight(f"{name}.linear", channels // 2, channels, 1)
        channels //= 2
    w.norm("xvector.out_nonlinear.batchnorm", channels)
    w.weight("xvector.dense.linear", embedding, 2 * channels, 1)
    w.norm("xvector.dense.nonlinear.batchnorm", embedding, affine=False)
    return w


def plain_campplus(wav, w, style="3dspeaker"):
    """Embedding [E] of a waveform [N]."""
    n_mels = w["xvector.tdnn.linear.weight"].shape[1] // 4 * 8
    x = kaldi(wav, style, n_mels).t()[None, None]  # [1, 1, M, T]
    x = w.normed(w.conv2d(x, "head.conv1", padding=1), "head.bn1").relu()
    for name in ("layer1.0", "layer1.1", "layer2.0", "layer2.1"):
        name, around, stride = f"head.{name}", x, (1, 1)
        if name.endswith("0"):
            stride = (2, 1)
            around = w.conv2d(x, f"{name}.shortcut.0", stride=stride)
            around = w.normed(around, f"{name}.shortcut.1")
        y = w.conv2d(x, f"{name}.conv1", stride=stride, padding=1)
        y = w.normed(y, f"{name}.bn1").relu()
        y = w.normed(w.conv2d(y, f"{name}.conv2", padding=1), f"{name}.bn2")
        x = (y + around).relu()
    x = w.conv2d(x, "head.conv2", stride=(2, 1), padding=1)
    x = w.normed(x, "head.bn2").relu().flatten(1, 2)
    x = w.conv1d(x, "xvector.tdnn.linear", stride=2, padding=2)
    x = w.normed(x, "xvector.tdnn.nonlinear.batchnorm").relu()
    for number, dilation in ((1, 1), (2, 2), (3, 2)):
        place = 1
        while f"xvector.block{number}.tdnnd{place}.linear1.weight" in w:
            name = f"xvector.block{number}.tdnnd{place}"
            h = w.normed(x, f"{name}.nonlinear1.batchnorm").relu()
            h = w.conv1d(h, f"{name}.linear1")
            h = w.normed(h, f"{name}.nonlinear2.batchnorm").relu()
            name = f"{name}.cam_layer"
            segments = [
                part.mean(-1, keepdim=True).expand_as(part) for part in h.split(100, -1)
            ]
            mask = h.mean(-1, keepdim=True) + torch.cat(segments, -1)
            mask = w.conv1d(mask, f"{name}.linear1").relu()
            mask = w.conv1d(mask, f"{name}.linear2").sigmoid()
            y = w.conv1d(h, f"{name}.linear_local", padding=dilation, dilation=dilation)
            x, place = torch.cat([x, y * mask], dim=1), place + 1
        name = f"xvector.transit{number}"
        x = w.normed(x, f"{name}.nonlinear.batchnorm").relu()
        x = w.conv1d(x, f"{name}.linear")
    x = w.normed(x, "xvector.out_nonlinear.batchnorm").relu()
    eps = {"3dspeaker": 0.0, "wespeaker": 1e-7}[style]
    pooled = torch.cat([x.mean(-1), (x.var(-1) + eps).sqrt()], dim=1)
    x = w.conv1d(pooled[..., None], "xvector.dense.linear")[..., 0]
    return w.normed(x, "xvector.dense.nonlinear.batchnorm")[0]


def eres2netv2_tensors(
    blocks=(1, 2, 1, 1), channels=8, base=26, scale=2, expansion=2, second=False
):
    """ERes2NetV2 of 16 mel bins and embeddings of 5."""
    w = Tensors()

    def fusion(name, width):
        w.weight(f"{name}.local_att.0", width // 4, 2 * width, 1, 1, bias=True)
        w.norm(f"{name}.local_att.1", width // 4)
        w.weight(f"{name}.local_att.3", width, width // 4, 1, 1, bias=True)
        w.norm(f"{name}.local_att.4", width)

    w.weight("conv1", channels, 1, 3, 3)
    w.norm("bn1", channels)
    inputs = channels
    for stage, count in enumerate(blocks):
        planes = channels * 2**stage
        width, outputs = int(planes * (base / 64.0)), planes * expansion
        for place in range(count):
            name = f"layer{stage + 1}.{place}"
            w.weight(f"{name}.conv1", width * scale, inputs, 1, 1)
            w.norm(f"{name}.bn1", width * scale)
            for n in range(scale):
                w.weight(f"{name}.convs.{n}", width, width, 3, 3)
                w.norm(f"{name}.bns.{n}", width)
            for n in range(scale - 1 if stage > 1 else 0):
                fusion(f"{name}.fuse_models.{n}", width)
            w.weight(f"{name}.conv3", outputs, width * scale, 1, 1)
            w.norm(f"{name}.bn3", outputs)
            if place == 0:
                w.weight(f"{name}.shortcut.0", outputs, inputs, 1, 1)
                w.norm(f"{name}.shortcut.1", outputs)
            inputs = outputs
    w.weight("layer3_ds", inputs, inputs // 2, 3, 3)
    fusion("fuse34", inputs)
    w.weight("seg_1", 5, 2 * 2 * inputs, bias=True)
    w["seg_1.weight"] *= 0.03  # embeddings of about 1
    if second:
        w.norm("seg_bn_1", 5, affine=False)
        w.weight("seg_2", 5, 5, bias=True)
    return w


def plain_eres2netv2(wav, w):
    """Embedding [E] of a waveform [N]."""

    def fused(x, y, name):
        a = w.conv2d(torch.cat([x, y], dim=1), f"{name}.local_att.0")
        a = F.silu(w.normed(a, f"{name}.local_att.1"))
        a = w.normed(w.conv2d(a, f"{name}.local_att.3"), f"{name}.local_att.4")
        a = 1 + a.tanh()
        return a * x + (2 - a) * y

    x = kaldi(wav, "3dspeaker", 16).t()[None, None]
    x = w.normed(w.conv2d(x, "conv1", padding=1), "bn1").relu()
    stages = []
    for stage in (1, 2, 3, 4):
        place = 0
        while f"layer{stage}.{place}.conv1.weight" in w:
            name, stride = f"layer{stage}.{place}", 2 if stage > 1 and not place else 1
            width, outputs = len(w[f"{name}.convs.0.weight"]), []
            y = w.normed(w.conv2d(x, f"{name}.conv1", stride=stride), f"{name}.bn1")
            for n, chunk in enumerate(y.clamp(0, 20).split(width, 1)):
                if n and stage > 2:
                    chunk = fused(outputs[-1], chunk, f"{name}.fuse_models.{n - 1}")
                elif n:
                    chunk = outputs[-1] + chunk
                chunk = w.conv2d(chunk, f"{name}.convs.{n}", padding=1)
                outputs.append(w.normed(chunk, f"{name}.bns.{n}").clamp(0, 20))
            y = w.conv2d(torch.cat(outputs, dim=1), f"{name}.conv3")
            y = w.normed(y, f"{name}.bn3")
            if place == 0:
                x = w.conv2d(x, f"{name}.shortcut.0", stride=stride)
                x = w.normed(x, f"{name}.shortcut.1")
            x, place = (x + y).clamp(0, 20), place + 1
        stages.append(x)
    *_, third, last = stages
    x = fused(last, w.conv2d(third, "layer3_ds", stride=2, padding=1), "fuse34")
    x = torch.cat([x.mean(-1).flatten(1), (x.var(-1) + 1e-8).sqrt().flatten(1)], dim=1)
    x = w.linear(x, "seg_1")
    if "seg_2.weight" in w:
        x = w.linear(w.normed(x.relu(), "seg_bn_1"), "seg_2")
    return x[0]
