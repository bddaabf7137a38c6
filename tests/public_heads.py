"""Random heads under the names of the public programs, and plain code that runs them.

Names and formulas are written down here once more, apart from the package.
"""

import torch
import torch.nn.functional as F
from tiny_encoder import noise

# place of a block's parts: UniSpeech, wespeaker
_BLOCKS = {
    "unispeech": ("Conv1dReluBn1", "Res2Conv1dReluBn", "Conv1dReluBn2", "SE_Connect"),
    "wespeaker": tuple(f"se_res2block.{n}" for n in range(4)),
}
_POOLING = {"unispeech": "pooling", "wespeaker": "pool"}
SCALE, BOTTLENECK = 8, 128


def ecapa_tensors(style, inputs, channels=16, last=24, embedding=10, context=False):
    """ECAPA-TDNN's tensors in the style of ``unispeech`` or ``wespeaker``."""
    tensors = {}

    def add(name, *shape):
        scale = (shape[1:] and torch.tensor(shape[1:]).prod().item() ** -0.5) or 0.1
        tensors[name] = noise(*shape, seed=len(tensors)) * scale

    def weighted(name, *shape):
        add(f"{name}.weight", *shape)
        add(f"{name}.bias", shape[0])

    def norm(name, width):
        seed = len(tensors)
        tensors[f"{name}.weight"] = 1 + 0.1 * noise(width, seed=seed)
        tensors[f"{name}.bias"] = 0.1 * noise(width, seed=seed + 1)
        tensors[f"{name}.running_mean"] = 0.1 * noise(width, seed=seed + 2)
        tensors[f"{name}.running_var"] = 1 + 0.5 * noise(width, seed=seed + 3).abs()
        tensors[f"{name}.num_batches_tracked"] = torch.tensor(5)

    first, res2, second, excitation = _BLOCKS[style]
    weighted("layer1.conv", channels, inputs, 5)
    norm("layer1.bn", channels)
    for layer in (f"layer{n}." for n in (2, 3, 4)):
        for part in (first, second):
            weighted(f"{layer}{part}.conv", channels, channels, 1)
            norm(f"{layer}{part}.bn", channels)
        width = channels // SCALE
        for n in range(SCALE - 1):
            weighted(f"{layer}{res2}.convs.{n}", width, width, 3)
            norm(f"{layer}{res2}.bns.{n}", width)
        weighted(f"{layer}{excitation}.linear1", BOTTLENECK, channels)
        weighted(f"{layer}{excitation}.linear2", channels, BOTTLENECK)
    weighted("conv", last, 3 * channels, 1)
    pooling = _POOLING[style]
    weighted(f"{pooling}.linear1", BOTTLENECK, last * (3 if context else 1), 1)
    weighted(f"{pooling}.linear2", last, BOTTLENECK, 1)
    norm("bn", 2 * last)
    weighted("linear", embedding, 2 * last)
    return tensors


def plain_ecapa(x, tensors, style, context=False):
    """One utterance [1, C, T] through those tensors → [1, E]."""

    def conv(x, name, dilation=1):
        weight = tensors[f"{name}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        bias = tensors[f"{name}.bias"]
        return F.conv1d(x, weight, bias, padding=padding, dilation=dilation)

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(tensors[f"{name}.{key}"] for key in keys))

    def linear(x, name):
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    first, res2, second, excitation = _BLOCKS[style]
    x = norm(conv(x, "layer1.conv").relu(), "layer1.bn")
    outputs = []
    for number in (2, 3, 4):
        layer, residual = f"layer{number}.", x
        x = norm(conv(x, f"{layer}{first}.conv").relu(), f"{layer}{first}.bn")
        parts, done, part = x.chunk(SCALE, 1), [], 0
        for n in range(SCALE - 1):
            part = conv(part + parts[n], f"{layer}{res2}.convs.{n}", number)
            part = norm(part.relu(), f"{layer}{res2}.bns.{n}")
            done.append(part)
        x = torch.cat([*done, parts[-1]], 1)
        x = norm(conv(x, f"{layer}{second}.conv").relu(), f"{layer}{second}.bn")
        gate = linear(x.mean(2), f"{layer}{excitation}.linear1").relu()
        gate = linear(gate, f"{layer}{excitation}.linear2").sigmoid()
        x = x * gate.unsqueeze(2) + residual
        outputs.append(x)
    x = conv(torch.cat(outputs, 1), "conv").relu()
    pooling, seen = _POOLING[style], x
    if context:
        deviation = (x.var(2, keepdim=True) + 1e-7).sqrt()
        mean = x.mean(2, keepdim=True)
        seen = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], 1)
    weights = conv(conv(seen, f"{pooling}.linear1").tanh(), f"{pooling}.linear2")
    weights = weights.softmax(2)
    mean = (weights * x).sum(2)
    floor = 1e-9 if style == "unispeech" else 1e-7
    variance = (weights * x.square()).sum(2) - mean.square()
    pooled = torch.cat([mean, variance.clamp(min=floor).sqrt()], 1)
    embedding = linear(norm(pooled, "bn"), "linear")
    return norm(embedding, "bn2") if "bn2.weight" in tensors else embedding


def mhfa_tensors(inputs, states, taps=None, heads=4, width=6, embedding=10):
    """MHFA's tensors; with ``taps`` those of its context-aware form."""
    shapes = {
        "weights_k": (states,),
        "weights_v": (states,),
        "cmp_linear_k.weight": (width, inputs),
        "cmp_linear_k.bias": (width,),
        "cmp_linear_v.weight": (width, inputs),
        "cmp_linear_v.bias": (width,),
        "att_head.weight": (heads, 1, taps, width) if taps else (heads, width),
        "pooling_fc.weight": (embedding, heads * width),
        "pooling_fc.bias": (embedding,),
    }
    if not taps:
        shapes["att_head.bias"] = (heads,)
    return {
        name: noise(*shape, seed=seed) / (shape[1] ** 0.5 if len(shape) == 2 else 2)
        for seed, (name, shape) in enumerate(shapes.items())
    }


def plain_mhfa(states, tensors):
    """States [1, T, C] of one utterance → [1, E]."""
    stacked = torch.stack(states, -1)

    def compressed(which):
        summed = (stacked * tensors[f"weights_{which}"].softmax(0)).sum(-1)[0]
        name = f"cmp_linear_{which}"
        return F.linear(summed, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    keys, values = compressed("k"), compressed("v")  # [T, W]
    weight = tensors["att_head.weight"]
    if weight.dim() == 2:
        scores = F.linear(keys, weight, tensors["att_head.bias"]).T
    else:
        padding = (weight.shape[2] // 2, 0)
        scores = F.conv2d(keys[None, None], weight, padding=padding)[0, ..., 0]
    pooled = scores.softmax(-1) @ values  # [H, W]
    return F.linear(
        pooled.flatten()[None], tensors["pooling_fc.weight"], tensors["pooling_fc.bias"]
    )
