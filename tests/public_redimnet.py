"""ReDimNet and ReDimNet2 under the names of the public programs, and plain code.

Names and formulas are written down here once more, apart from the package: maps are
[1, C, F, T], nothing is folded, time is really repeated.
"""

import math

import torch
import torch.nn.functional as F
from tiny_encoder import noise

TIME_KERNELS = {"conv+att": [[7], [19], [31], [59]], "conv": [[7, 15, 31]] * 4}
COMMON = {"F": 12, "C": 4, "embed_dim": 10, "hop_length": 160, "pooling_func": "ASTP"}


def first_config(**changes):
    """A ``model_config`` of ReDimNet."""
    stages = [(1, 2, 2, [(3, 3)], 6), (2, 1, 1, [(3, 3)], None), (3, 1, 1, [(3, 3)], 4)]
    return {
        **COMMON,
        "block_1d_type": "conv+att",
        "block_2d_type": "basic_resnet",
        "stages_setup": stages,
        "group_divisor": 2,
        "out_channels": None,
        "feat_type": "pt",
        "global_context_att": True,
        "emb_bn": False,
        "spec_params": {"do_spec_aug": False, "freq_mask_width": (0, 6)},
        "tf_optimized_arch": False,
        **changes,
    }


def second_config(**changes):
    """A ``model_config`` of ReDimNet2."""
    stages = [
        [[1, 1], 1, 2, [[3, 3]], 6],
        [[2, 2], 2, 0.75, [[3, 5]], 4],
        [[1, 2], 1, 1, [[3, 3]], None],
        [[3, 1], 1, 0.5, [[3, 3]], 6],
    ]
    return {
        **COMMON,
        "causal": "none",
        "spec_in_channels": 1,
        "block_1d_type": "conv+att",
        "block_2d_type": "basic_resnet",
        "compress_tconvs": True,
        "return_2d_output": True,
        "fm_weigthing_type": "NC",
        "stages_setup": stages,
        "group_divisor": 1,
        "out_channels": 5,
        "feat_type": "tf",
        "global_context_att": True,
        "emb_bn": False,
        "spec_params": {"do_preemph": True, "norm_signal": True},
        "agg_gnorm": False,
        "dual_agg": False,
        **changes,
    }


class _Maker:
    """Random tensors, by the names of modules."""

    def __init__(self):
        self.tensors = {}

    def weight(self, name, *shape, bias=True):
        scale = math.prod(shape[1:]) ** -0.5
        seed = len(self.tensors)
        self.tensors[f"{name}.weight"] = scale * noise(*shape, seed=seed)
        if bias:
            self.tensors[f"{name}.bias"] = 0.1 * noise(shape[0], seed=seed + 1)

    def layer_norm(self, name, size):
        seed = len(self.tensors)
        self.tensors[f"{name}.weight"] = 1 + 0.1 * noise(size, seed=seed)
        self.tensors[f"{name}.bias"] = 0.1 * noise(size, seed=seed + 1)

    def batch_norm(self, name, size):
        seed = len(self.tensors)
        # some scales are below zero
        self.tensors[f"{name}.weight"] = 0.5 + noise(size, seed=seed)
        self.tensors[f"{name}.bias"] = 0.1 * noise(size, seed=seed + 1)
        self.tensors[f"{name}.running_mean"] = 0.1 * noise(size, seed=seed + 2)
        self.tensors[f"{name}.running_var"] = 1 + noise(size, seed=seed + 3).abs()
        self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(5)

    def sum(self, name, sources, width):
        seed = len(self.tensors)
        self.tensors[f"{name}.w"] = noise(1, sources, width, 1, seed=seed)

    def map_block(self, name, c, f, config, kernels):
        divisor = config["group_divisor"]
        groups = c // divisor if divisor else 1
        if config["block_2d_type"].startswith("convnext"):
            for n, kernel in enumerate(kernels):
                self.weight(f"{name}.dwconvs.{n}", c, c // groups, *kernel)
            self.batch_norm(f"{name}.norm", c * len(kernels))
            self.weight(f"{name}.pwconv1", c, c * len(kernels), 1, 1)
            return
        for n in (1, 2):
            self.weight(f"{name}.conv{n}", c, c // groups, 3, 3, bias=False)
            if divisor:
                self.weight(f"{name}.conv{n}pw", c, c, 1, 1)
            self.batch_norm(f"{name}.bn{n}", c)
        if config["block_2d_type"].endswith("fwse"):
            self.weight(f"{name}.se.squeeze", 32, f)
            self.weight(f"{name}.se.exitation", f, 32)

    def context(self, name, width, size, kind):
        self.weight(f"{name}.red_dim_conv.0", size, width, 1)
        self.layer_norm(f"{name}.red_dim_conv.1", size)
        self.weight(f"{name}.exp_dim_conv", width, size, 1)
        tcm = f"{name}.tcm"
        if kind == "fc":
            self.weight(f"{tcm}.0", 2 * size, size, 1)
            self.layer_norm(f"{tcm}.1", 2 * size)
            self.weight(f"{tcm}.3", size, 2 * size, 1)
            return
        kernels = TIME_KERNELS.get(kind, [])
        for n, lengths in enumerate(kernels):
            for k, length in enumerate(lengths):
                self.weight(f"{tcm}.{n}.dwconvs.{k}", size, 1, length)
            self.batch_norm(f"{tcm}.{n}.norm", size * len(lengths))
            self.weight(f"{tcm}.{n}.pwconv1", size, size * len(lengths), 1)
        if not kind.endswith("att"):
            return
        last, hidden = f"{tcm}.{len(kernels)}", size
        if kind == "att":
            self.weight(f"{tcm}.0.conv", size, 1, 59)
            self.layer_norm(f"{tcm}.0.norm", size)
            last, hidden = f"{tcm}.1", 2 * size
        for part in "kvq":
            self.weight(f"{last}.attention.{part}_proj", size, size)
        self.weight(f"{last}.attention.out_proj", size, size)
        self.layer_norm(f"{last}.layer_norm", size)
        self.weight(f"{last}.feed_forward.intermediate_dense", hidden, size)
        self.weight(f"{last}.feed_forward.output_dense", size, hidden)
        self.layer_norm(f"{last}.final_layer_norm", size)


def redimnet_tensors(config, classes=0):
    """Random weights of a ``model_config``, without the constants of its features."""
    second, make = "causal" in config, _Maker()
    f, c = config["F"], config["C"]
    width, sources, time = f * c, 1, 1
    gnorm = second and config["agg_gnorm"]
    make.weight("backbone.stem.0", c, 1, 3, 3)
    make.layer_norm("backbone.stem.1", c)
    if gnorm:
        make.layer_norm("backbone.stem_gnorm", width)
    for number, setup in enumerate(config["stages_setup"]):
        stride, blocks, expansion, kernels, reduction = setup
        step, pooled = stride if second else (stride, 1)
        time *= pooled
        dual = second and config["dual_agg"] and reduction is not None
        place = f"backbone.stage{number}"
        before = f"{place}_pre" if dual else place
        make.sum(f"{before}.0", sources, width if second or sources > 1 else 1)
        inner = int(step * c * expansion)
        groups = math.gcd(c, inner) if second and config["compress_tconvs"] else 1
        make.weight(f"{before}.2", inner, c // groups, step, time)
        c, f, at = step * c, f // step, 3
        for _ in range(blocks):
            kernels = kernels if second else [(3, 3)]
            make.map_block(f"{before}.{at}.conv_block", inner, f, config, kernels)
            at += 1
        if expansion != 1 and second:
            make.weight(f"{before}.{at}.0", c, inner, 1, 1)
        elif expansion != 1:
            divisor = config["group_divisor"]
            groups = c // divisor if divisor else 1
            make.weight(f"{before}.{at}.0", c, inner // groups, 3, 3)
            make.weight(f"{before}.{at}.3", c, c, 1, 1)
        if expansion != 1:
            make.batch_norm(f"{before}.{at}.1", c)
            at += 1
        at += 1
        if reduction is not None:
            context = f"{place}_1d" if dual else f"{place}.{at}"
            size = width // reduction
            make.context(context, width, size, config["block_1d_type"])
            at += 1
        if gnorm and dual:
            make.layer_norm(f"{place}_up_2d.1", width)
            make.layer_norm(f"{place}_up_1d.1", width)
        elif gnorm:
            make.layer_norm(f"{place}.{at + 1}", width)
        sources += 1 + dual
    make.sum("backbone.fin_wght1d", sources, width)
    out = config["out_channels"]
    if out and not second:
        make.weight("backbone.mfa.0", out, width, 1)
        make.batch_norm("backbone.mfa.1", out)
    elif out and config["return_2d_output"]:
        make.weight("backbone.head", out, c, 1, 1)
        out *= f
    elif out:
        make.weight("backbone.head", out, width, 1)
    out = out or width
    context = 3 if config["global_context_att"] else 1
    make.weight("pool.linear1", 128, context * out, 1)
    make.weight("pool.linear2", out, 128, 1)
    make.batch_norm("bn", 2 * out)
    make.weight("linear", config["embed_dim"], 2 * out)
    if config["emb_bn"]:
        make.batch_norm("bn2", config["embed_dim"])
    if classes:
        make.weight("cls_head.2", classes, config["embed_dim"])
    return make.tensors


# -- plain code ------------------------------------------------------------------------


def _conv(x, tensors, name, **options):
    """A convolution with zeros around it, unless it is strided."""
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    convolve = F.conv1d if weight.dim() == 3 else F.conv2d
    if "stride" not in options:
        options["padding"] = [size // 2 for size in weight.shape[2:]]
    return convolve(x, weight, bias, **options)


def _batch_norm(x, tensors, name, eps=1e-5):
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(tensors[f"{name}.{n}"] for n in names), eps=eps)


def _channel_norm(x, tensors, name):
    """LayerNorm of the channels [B, C, …]."""
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return F.layer_norm(x.transpose(1, -1), weight.shape, weight, bias, 1e-6).transpose(
        1, -1
    )


def _linear(x, tensors, name):
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _map_block(x, tensors, name, config):
    divisor = config["group_divisor"]
    groups = x.shape[1] // divisor if divisor else 1
    if config["block_2d_type"].startswith("convnext"):
        return _convnext(x, tensors, name, groups, config["block_2d_type"])
    y = _conv(x, tensors, f"{name}.conv1", groups=groups)
    if divisor:
        y = _conv(y, tensors, f"{name}.conv1pw")
    y = _batch_norm(y.relu(), tensors, f"{name}.bn1")
    y = _conv(y, tensors, f"{name}.conv2", groups=groups)
    if divisor:
        y = _conv(y, tensors, f"{name}.conv2pw")
    y = _batch_norm(y, tensors, f"{name}.bn2")
    if f"{name}.se.squeeze.weight" in tensors:
        gate = _linear(y.mean((1, 3)), tensors, f"{name}.se.squeeze").relu()
        gate = _linear(gate, tensors, f"{name}.se.exitation").sigmoid()
        y = y * gate[:, None, :, None]
    return (y + x).relu()


def _convnext(x, tensors, name, groups, kind="gelu"):
    convs = [n for n in tensors if n.startswith(f"{name}.dwconvs.") and "weight" in n]
    ys = [_conv(x, tensors, n.removesuffix(".weight"), groups=groups) for n in convs]
    y = _batch_norm(torch.cat(ys, 1), tensors, f"{name}.norm")
    y = y.relu() if kind.endswith("relu") else F.gelu(y)
    return x + _conv(y, tensors, f"{name}.pwconv1")


def _context(x, tensors, name, kind):
    y = _conv(x, tensors, f"{name}.red_dim_conv.0")
    y, tcm = _channel_norm(y, tensors, f"{name}.red_dim_conv.1"), f"{name}.tcm"
    if kind == "fc":
        y = _channel_norm(_conv(y, tensors, f"{tcm}.0"), tensors, f"{tcm}.1")
        y = _conv(F.gelu(y), tensors, f"{tcm}.3")
    kernels = TIME_KERNELS.get(kind, [])
    for n in range(len(kernels)):
        y = _convnext(y, tensors, f"{tcm}.{n}", y.shape[1])
    last = f"{tcm}.{len(kernels)}"
    if kind == "att":
        z, last = _conv(y, tensors, f"{tcm}.0.conv", groups=y.shape[1]), f"{tcm}.1"
        y = y + _channel_norm(z, tensors, f"{tcm}.0.norm")
    if kind.endswith("att"):
        y = _transformer(y.transpose(1, 2), tensors, last).transpose(1, 2)
    return x + _conv(y, tensors, f"{name}.exp_dim_conv")


def _transformer(x, tensors, name):
    size = x.shape[2]
    q, k, v = (
        _linear(x, tensors, f"{name}.attention.{part}_proj")
        .view(1, -1, 4, size // 4)
        .transpose(1, 2)
        for part in "qkv"
    )
    weights = (q @ k.transpose(2, 3) / (size // 4) ** 0.5).softmax(-1)
    y = (weights @ v).transpose(1, 2).reshape(1, -1, size)
    x = x + _linear(y, tensors, f"{name}.attention.out_proj")
    x = _channel_norm(x.transpose(1, 2), tensors, f"{name}.layer_norm").transpose(1, 2)
    y = _linear(x, tensors, f"{name}.feed_forward.intermediate_dense")
    y = 0.5 * y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh())
    y = x + _linear(y, tensors, f"{name}.feed_forward.output_dense")
    return _channel_norm(y.transpose(1, 2), tensors, f"{name}.final_layer_norm").mT


def _flat(x):
    """[1, C, F, T] → [1, F · C, T]."""
    return x.transpose(1, 2).flatten(1, 2)


def _group_norm(x, tensors, name, groups):
    return F.group_norm(x, groups, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def plain_redimnet(features, tensors, config):
    """Features [F, T] of one utterance → embedding [1, E]."""
    second = "causal" in config
    f, c = config["F"], config["C"]
    gnorm = second and config["agg_gnorm"]
    groups = c if gnorm is True else gnorm
    total = math.prod(s[0][1] for s in config["stages_setup"]) if second else 1
    x = features[:, : features.shape[1] // total * total]
    x = _conv(x[None, None], tensors, "backbone.stem.0")
    x, time = _flat(_channel_norm(x, tensors, "backbone.stem.1")), 1
    if gnorm:
        x = _group_norm(x, tensors, "backbone.stem_gnorm", groups)
    sources = [x]

    def weighted(name):
        return (tensors[f"{name}.w"].softmax(1) * torch.stack(sources, 1)).sum(1)

    for number, setup in enumerate(config["stages_setup"]):
        stride, blocks, expansion, _, reduction = setup
        step, pooled = stride if second else (stride, 1)
        time *= pooled
        dual = second and config["dual_agg"] and reduction is not None
        place = f"backbone.stage{number}"
        before = f"{place}_pre" if dual else place
        x = weighted(f"{before}.0").unflatten(1, (f, c)).transpose(1, 2)
        own = tensors[f"{before}.2.weight"].shape[1]
        x = _conv(x, tensors, f"{before}.2", stride=(step, time), groups=c // own)
        c, f, at = step * c, f // step, 3
        for _ in range(blocks):
            x = _map_block(x, tensors, f"{before}.{at}.conv_block", config)
            at += 1
        if expansion != 1:
            divisor = config["group_divisor"] if not second else None
            x = _conv(
                x, tensors, f"{before}.{at}.0", groups=c // divisor if divisor else 1
            )
            x = _batch_norm(x, tensors, f"{before}.{at}.1", 1e-6)
            if not second:
                x = _conv(F.gelu(x), tensors, f"{before}.{at}.3")
            at += 1
        x, at = _flat(x), at + 1
        found = [x]
        if reduction is not None:
            context = f"{place}_1d" if dual else f"{place}.{at}"
            y = _context(x, tensors, context, config["block_1d_type"])
            found, at = [x, y] if dual else [y], at + 1
        names = [f"{place}_up_2d.1", f"{place}_up_1d.1"] if dual else []
        for y, name in zip(found, names or [f"{place}.{at + 1}"]):
            y = y.repeat_interleave(time, 2)
            sources.append(_group_norm(y, tensors, name, groups) if gnorm else y)
    x = weighted("backbone.fin_wght1d")
    if not second and config["out_channels"]:
        x = _batch_norm(_conv(x, tensors, "backbone.mfa.0"), tensors, "backbone.mfa.1")
    if second and config["return_2d_output"]:
        x = x.unflatten(1, (f, c)).transpose(1, 2)
    if second and config["out_channels"]:
        x = _conv(x, tensors, "backbone.head")
    return _pooled(x.flatten(1, -2), tensors, config)


def _pooled(x, tensors, config):
    """[1, D, T] → embedding [1, E]."""
    y = x
    if config["global_context_att"]:
        mean = x.mean(2, keepdim=True).expand_as(x)
        std = (x.var(2, keepdim=True) + 1e-7).sqrt().expand_as(x)
        y = torch.cat([x, mean, std], 1)
    y = _conv(_conv(y, tensors, "pool.linear1").tanh(), tensors, "pool.linear2")
    weights = y.softmax(2)
    mean = (weights * x).sum(2)
    std = ((weights * x**2).sum(2) - mean**2).clamp(min=1e-7).sqrt()
    x = _batch_norm(torch.cat([mean, std], 1), tensors, "bn")
    x = _linear(x, tensors, "linear")
    return _batch_norm(x, tensors, "bn2") if config["emb_bn"] else x


# -- features --------------------------------------------------------------------------


def plain_features(wav, kind, bins, norm_signal=False, preemph=True, spec_norm="mn"):
    """A waveform [N] → features [M, T], as the published code computes them."""
    import numpy as np
    import torchaudio

    eps = 1e-8 if kind == "tf" else 1e-6
    if norm_signal:
        wav = (wav - wav.mean()) / (wav.std(unbiased=False) + eps)
    if preemph:
        wav = torch.cat([wav[1:2], wav])
        wav = wav[1:] - 0.97 * wav[:-1]
    if kind == "pt":
        mel = torchaudio.transforms.MelSpectrogram(
            *(16000, 512, 400, 160, 20, 7600),
            n_mels=bins,
            window_fn=torch.hamming_window,
        )
        x = (mel(wav) + 1e-6).log()
    else:
        frames = F.pad(wav, (80, 80)).unfold(0, 400, 160).double().numpy()
        frames = frames * np.hamming(400)
        power = np.abs(np.fft.rfft(frames, 512))[:, :256] ** 2
        hertz = np.linspace(0, 8000, 256)
        mels, ends = (
            2595 * np.log10(1 + hz / 700) for hz in (hertz, np.array([20, 7600]))
        )
        edges = np.linspace(*ends, bins + 2)
        filters = np.zeros((256, bins))
        for k, m in np.ndindex(255, bins):
            low, centre, high = edges[m : m + 3]
            up = (mels[k + 1] - low) / (centre - low)
            down = (high - mels[k + 1]) / (high - centre)
            filters[k + 1, m] = max(0, min(up, down))
        power = power.clip(eps, 1 / eps) @ filters
        x = torch.tensor(np.log(power.clip(eps, 1 / eps) + eps).T).float()
    x = x - x.mean(1, keepdim=True)
    return x / (x.std(1, keepdim=True) + 1e-8) if spec_norm == "mvn" else x
