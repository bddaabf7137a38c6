"""Random ResNets by wespeaker's and VoxBlink2's names, and plain code that runs them.

Names and formulas are written down here once more, apart from the package: one
utterance at a time, nothing folded, features by torchaudio.
"""

import torch
import torch.nn.functional as F
import torchaudio
from tiny_encoder import noise

RATE = 16000


def resnet_tensors(
    blocks=(1, 2, 1, 1),
    bottleneck=True,
    width=4,
    frequencies=10,
    embedding=8,
    front=False,
    pooling="tstp",
    two_layers=False,
    inner=None,
):
    """Tensors by public names.

    ``pooling``: tstp, gsp, asp, astp or astp_context. ``inner``: channels inside the
    blocks of the first stage, in place of the width.
    """
    tensors = {}
    trunk, shortcut = ("front.", "downsample") if front else ("", "shortcut")
    shortcut = "shortcut" if bottleneck else shortcut
    expansion = 4 if bottleneck else 1

    def add(name, *shape, scale=None):
        fan = torch.tensor(shape[1:]).prod().item() if len(shape) > 1 else 100
        values = noise(*shape, seed=len(tensors))
        tensors[name] = values * (scale or 1.4 * fan**-0.5)

    def norm(name, size, affine=True):
        seed = len(tensors)
        if affine:
            tensors[f"{name}.weight"] = 1 + 0.2 * noise(size, seed=seed)
            tensors[f"{name}.bias"] = 0.2 * noise(size, seed=seed + 1)
        tensors[f"{name}.running_mean"] = 0.2 * noise(size, seed=seed + 2)
        tensors[f"{name}.running_var"] = 0.5 + noise(size, seed=seed + 3).abs()
        tensors[f"{name}.num_batches_tracked"] = torch.tensor(5)

    def linear(name, output, size, *kernel):
        add(f"{name}.weight", output, size, *kernel)
        add(f"{name}.bias", output)

    add(f"{trunk}conv1.weight", width, 1, 3, 3)
    norm(f"{trunk}bn1", width)
    channels = width
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        for number in range(count):
            block = f"{trunk}layer{stage + 1}.{number}"
            own = inner if inner and not stage else planes
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            sizes = [channels, *[own] * (len(kernels) - 1), planes * expansion]
            for part, kernel in enumerate(kernels):
                conv = f"{block}.conv{part + 1}.weight"
                add(conv, sizes[part + 1], sizes[part], kernel, kernel)
                norm(f"{block}.bn{part + 1}", sizes[part + 1])
            if sizes[-1] != channels or (stage and not number):
                add(f"{block}.{shortcut}.0.weight", sizes[-1], channels, 1, 1)
                norm(f"{block}.{shortcut}.1", sizes[-1])
            channels = sizes[-1]
    size = channels * (1 if pooling == "gsp" else frequencies)
    if pooling == "asp":
        linear("pooling.attention.0", 16, size, 1)
        norm("pooling.attention.2", 16)
        linear("pooling.attention.3", size, 16, 1)
    elif pooling.startswith("astp"):
        linear("pool.linear1", 16, size * (3 if "context" in pooling else 1), 1)
        linear("pool.linear2", size, 16, 1)
    linear("bottleneck" if front else "seg_1", embedding, 2 * size)
    if two_layers:
        norm("seg_bn_1", embedding, affine=False)
        linear("seg_2", embedding, embedding)
    return tensors


def normed(tensors, name, x):
    """BatchNorm in eval mode, channel after channel."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, variance = (
        tensors[f"{name}.running_{n}"].view(shape) for n in ("mean", "var")
    )
    x = (x - mean) / (variance + 1e-5).sqrt()
    if f"{name}.weight" in tensors:
        weight, bias = (tensors[f"{name}.{n}"].view(shape) for n in ("weight", "bias"))
        x = weight * x + bias
    return x


def plain_embedding(tensors, features, pooling="tstp", simam=False):
    """One utterance's features [T, F] → embedding [E]."""
    front = any(name.startswith("front.") for name in tensors)
    trunk = "front." if front else ""

    def convolved(name, x, stride=1):
        weight = tensors[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2)

    x = convolved(f"{trunk}conv1", features.t()[None, None])
    x = F.relu(normed(tensors, f"{trunk}bn1", x))
    for stage in range(1, 5):
        number = 0
        while f"{trunk}layer{stage}.{number}.conv1.weight" in tensors:
            block = f"{trunk}layer{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            parts = 3 if f"{block}.conv3.weight" in tensors else 2
            y = x
            for part in range(1, parts + 1):
                own = stride if part == parts - 1 else 1
                y = convolved(f"{block}.conv{part}", y, own)
                y = normed(tensors, f"{block}.bn{part}", y)
                y = F.relu(y) if part < parts else y
            if simam:
                squares = (y - y.mean((2, 3), keepdim=True)) ** 2
                count = y.shape[2] * y.shape[3] - 1
                energy = squares.sum((2, 3), keepdim=True) / count
                y = y * torch.sigmoid(squares / (4 * (energy + 1e-4)) + 0.5)
            for name in ("shortcut", "downsample"):
                if f"{block}.{name}.0.weight" in tensors:
                    x = convolved(f"{block}.{name}.0", x, stride)
                    x = normed(tensors, f"{block}.{name}.1", x)
            x = F.relu(x + y)
            number += 1
    last = "bottleneck" if front else "seg_1"
    e = tensors[f"{last}.weight"] @ pooled(tensors, x, pooling)
    e = e + tensors[f"{last}.bias"]
    if "seg_2.weight" in tensors:
        e = normed(tensors, "seg_bn_1", F.relu(e)[None])[0]
        e = tensors["seg_2.weight"] @ e + tensors["seg_2.bias"]
    return e


def pooled(tensors, x, pooling):
    """Map [1, C, F, T] → statistics."""
    if pooling == "gsp":
        x = x.flatten(2)
        return torch.cat([x.mean(2), x.std(2)], 1)[0]
    x = x.flatten(1, 2)
    if pooling == "tstp":
        return torch.cat([x.mean(2), (x.var(2) + 1e-7).sqrt()], 1)[0]

    def mapped(name, y):
        return F.conv1d(y, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    if pooling == "asp":
        y = F.relu(mapped("pooling.attention.0", x))
        y = mapped("pooling.attention.3", normed(tensors, "pooling.attention.2", y))
    else:
        seen = x
        if pooling == "astp_context":
            mean = x.mean(2, keepdim=True).expand_as(x)
            deviation = (x.var(2, keepdim=True) + 1e-7).sqrt().expand_as(x)
            seen = torch.cat([x, mean, deviation], 1)
        y = mapped("pool.linear2", mapped("pool.linear1", seen).tanh())
    weights = y.softmax(2)
    mean = (weights * x).sum(2)
    variance = (weights * x**2).sum(2) - mean**2
    floor = 1e-5 if pooling == "asp" else 1e-7
    return torch.cat([mean, variance.clamp(min=floor).sqrt()], 1)[0]


def wespeaker_features(wav, mels=80):
    """[T] → [T', M]."""
    features = torchaudio.compliance.kaldi.fbank(
        32768 * wav[None], num_mel_bins=mels, window_type="hamming"
    )
    return features - features.mean(0)


def voxblink2_features(wav, normalise="peak", mels=80):
    """[T] → [T', M], of whole numbers of 16 bits."""
    wav = 32768 * wav.double()
    if normalise == "peak":
        wav = wav / (wav.abs().max() + 1e-4)
    else:
        wav = (wav - wav.mean()) / wav.std(correction=0)
    wav = torch.cat([wav[:1], wav[1:] - 0.97 * wav[:-1]]).float()
    spectrum = voxblink2_spectrum(mels)
    features = (spectrum(wav) + 1e-6).log()
    return (features - features.mean(1, keepdim=True)).t()


def voxblink2_spectrum(mels=80):
    """The module whose buffers VoxBlink2's files hold."""
    return torchaudio.transforms.MelSpectrogram(
        sample_rate=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=mels
    )
