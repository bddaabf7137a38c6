"""Blocks of ResNets over padded batches of features, and SimAM.

    basic       ReLU(h + A(BN(conv₃ₓ₃(ReLU(BN(conv₃ₓ₃(h)))))))
    bottleneck  ReLU(h + BN(conv₁ₓ₁(ReLU(BN(conv₃ₓ₃(ReLU(BN(conv₁ₓ₁(h)))))))))
    A(y) = y σ((y − μ)² / 4(v + 10⁻⁴) + ½)          SimAM, else A(y) = y

He et al. 2016 (arXiv 1512.03385). μ and v, unbiased, are those of a channel over all
frequencies and valid frames: SimAM (Yang et al. 2021, ICML; Qin et al. 2022, arXiv
2204.10523). Maps are [B, C, F, T].
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.lobes.convolution import scale_and_shift
from speechbrain_ext.lobes.cpu_inference import (
    fused_convolution,
    inference_on_cpu,
    plain_on_cpu,
    relu,
)
from speechbrain_ext.lobes.encoder import PrunableGroup
from speechbrain_ext.utils.precision import full_precision

SIMAM_FLOOR = 1e-4
CACHED = 65536  # numbers of a tensor that stay in the cache


class Convolution(nn.Conv2d):
    """A convolution without bias, BatchNorm, a sum and ReLU, in one step on CPUs.

    Padding keeps the size.
    """

    def __init__(self, width, output, kernel, stride=1):
        super().__init__(width, output, kernel, stride, kernel // 2, bias=False)

    def forward(self, x, norm, added=None, rectified=True):
        """x [B, C, F, T] → [B, C', F', T']; ``added`` may be overwritten."""
        if self._in_one_step(x, norm):
            scale, bias = scale_and_shift(norm)
            # in the layout that oneDNN takes; made anew, it cannot be out of date
            weight = torch.empty_like(self.weight, memory_format=torch.channels_last)
            torch.mul(self.weight, scale.view(-1, 1, 1, 1), out=weight)
            x = x.contiguous(memory_format=torch.channels_last)
            return fused_convolution(
                x, weight, bias, self.stride, self.padding, added, rectified
            )
        x = x.contiguous() if inference_on_cpu(x) else x
        x = norm(super().forward(x))
        x = x if added is None else x + added
        return relu(x) if rectified else x

    def _in_one_step(self, x, norm):
        """Where weights that BatchNorm is folded into are fewer than what they make."""
        if norm.training or not plain_on_cpu(x, self.weight):
            return False
        places = x[:, 0].numel() // self.stride[0] ** 2
        return self.weight[0].numel() <= places


class _Block(nn.Module):
    """What both kinds of blocks have: [B, C, F, T] → [B, C', F', T']."""

    expansion = 1

    def __init__(self, width, planes, inner, stride, simam):
        super().__init__()
        self.stride, self.simam, self.widths, self.planes = stride, simam, inner, planes
        output = planes * self.expansion
        self.shortcut = nn.Sequential()
        if stride != 1 or width != output:
            convolution = Convolution(width, output, 1, stride)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(output))

    def _around(self, x):
        """What is added to the convolutions' output."""
        if not len(self.shortcut):
            return x
        return self.shortcut[0](x, self.shortcut[1], rectified=False)

    def prunable_groups(self):
        """Channels between its convolutions → list of PrunableGroup."""
        return [
            PrunableGroup(
                name=f"conv{number}",
                kind="conv",
                units=units,
                full=self.planes,
                input_weights=(
                    f"conv{number}.weight",
                    *(f"bn{number}.{name}" for name in ("weight", "bias")),
                    *(f"bn{number}.running_{name}" for name in ("mean", "var")),
                ),
                output_weight=f"conv{number + 1}.weight",
                unit_dim=1,
            )
            for number, units in enumerate(self.widths, 1)
        ]


class BasicBlock(_Block):
    """Two 3×3 convolutions."""

    def __init__(self, width, planes, inner, stride, simam):
        super().__init__(width, planes, inner, stride, simam)
        self.conv1 = Convolution(width, inner[0], 3, stride)
        self.bn1 = nn.BatchNorm2d(inner[0])
        self.conv2 = Convolution(inner[0], planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x, ends=None):
        """[B, C, F, T] → [B, C', F', T']; ``ends`` are those of x."""
        x = ends.cleared(x, 1, 3) if ends else x  # 3×3 filters look one further
        ends = ends and ends.strided(self.stride)
        y = self.conv1(x, self.bn1)
        y = ends.cleared(y, 1, 3) if ends else y
        if not self.simam:
            return self.conv2(y, self.bn2, self._around(x))
        return simam(self.conv2(y, self.bn2, rectified=False), self._around(x), ends)


class Bottleneck(_Block):
    """1×1, 3×3 and 1×1 convolutions, the last one four times as wide."""

    expansion = 4

    def __init__(self, width, planes, inner, stride, simam):
        super().__init__(width, planes, inner, stride, simam)
        first, second = inner
        self.conv1 = Convolution(width, first, 1)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = Convolution(first, second, 3, stride)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = Convolution(second, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)

    def forward(self, x, ends=None):
        """[B, C, F, T] → [B, C', F', T']; ``ends`` are those of x."""
        y = self.conv1(x, self.bn1)
        y = ends.cleared(y, 1, 3) if ends else y  # only 3×3 filters look sideways
        y = self.conv2(y, self.bn2)
        return self.conv3(y, self.bn3, self._around(x))


def simam(x, added, ends=None):
    """ReLU(x σ((x − μ)² / 4(v + 10⁻⁴) + ½) + added): [B, C, F, T] → the same.

    μ and v [C] of each utterance over frequencies and valid frames; ``added`` may be
    overwritten.
    """
    if inference_on_cpu(x) and x.dtype == torch.float32:
        frames = [x.shape[3]] * len(x) if ends is None else ends.valid.tolist()
        for row, other, count in zip(x.split(1), added.split(1), frames):
            _simam_row(row, other, count)
        return added
    with full_precision(x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.shape[2] * (wide.shape[3] if ends is None else ends.valid)
        mask = None if ends is None else ends.mask[:, None, None]

        def total(values):
            values = values if mask is None else values.masked_fill(mask, 0.0)
            return values.sum((2, 3), keepdim=True)

        if ends is not None:
            count = count.view(-1, 1, 1, 1)
        squares = (wide - total(wide) / count).square()
        least = 1 if ends is None else torch.ones_like(count)
        below = max(count - 1, 1) if ends is None else torch.maximum(count - 1, least)
        variance = total(squares) / below
        gate = torch.sigmoid(squares / (4 * (variance + SIMAM_FLOOR)) + 0.5)
        return F.relu(wide * gate + added).to(x.dtype)


def _simam_row(x, added, frames):
    """The same of one utterance, into ``added``, a few frequencies at a time."""
    rows = max(1, CACHED // (x.shape[1] * x.shape[3]))
    valid = x[..., :frames]
    mean, variance = valid.mean((2, 3), keepdim=True), 0.0
    for some in valid.split(rows, 2):  # torch.var_mean takes 20 times as long
        some = some - mean
        variance = variance + some.mul_(some).sum((2, 3), keepdim=True)
    variance = variance / max(valid[0, 0].numel() - 1, 1)
    scale = (4 * (variance + SIMAM_FLOOR)).rsqrt()
    shift, half = -mean * scale, x.new_full((), 0.5)
    for y, other in zip(x.split(rows, 2), added.split(rows, 2)):
        gate = torch.addcmul(shift, y, scale)
        gate = torch.addcmul(half, gate, gate).sigmoid_()
        other.addcmul_(y, gate).relu_()


def halved(size, times=1):
    """Frames or frequencies behind convolutions of stride 2, a number or a tensor."""
    for _ in range(times):
        size = (size + 1) // 2
    return size
