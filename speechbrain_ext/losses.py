"""Training losses: ArcFace with its classifier, and the distance of hidden states.

ArcFace, the additive angular margin softmax, scales cosines by s and adds a margin m to
the angle θ_y of the target class::

    logits_j = s · cos θ_j                     j ≠ y
    logits_y = s · cos(θ_y + m) = s (cos θ_y cos m − sin θ_y sin m)
    loss     = −log softmax(logits)_y

(Deng et al. 2019, arXiv 1801.07698, equation 3). Where θ_y + m would pass π the target
logit continues as s (cos θ_y − m sin m), which keeps it decreasing in θ_y.

Distillation compares state l of student and teacher, s_l and t_l [B, T, C]::

    loss = 1/S Σ_l ( mean |s_l − t_l| − mean cos(s_l, t_l) )        l = 0 … L, S = L + 1

|·| is averaged over valid frames and channels, cos over valid frames (arXiv 2510.04213,
equal weights of L1 and cosine and of the states). The published code stacks all states
of both to [S, B, T, C] first. Here states are compared one by one and the backward pass
computes again what it needs, so only one state at a time takes memory of its own.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import nn
from torch.autograd.function import once_differentiable

from speechbrain_ext.lobes.encoder import padding_mask
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import full_precision

# Keeps the gradient of the square root finite where a cosine rounds to ±1.
SIN_SQUARED_FLOOR = 1e-6


class ArcFace(nn.Module):
    """Cosine classifier with an additive angular margin.

    Always float32, also under autocast: in bf16 a cosine has 3 digits, which is 4 %
    of the gradient. The margin touches one logit per row, so no one-hot matrix of
    batch × classes is built.

    Arguments
    ---------
    embedding_size : int
        Width E.
    n_classes : int
        Number of speakers N.
    margin : float
        m in radians. May be set at any time: ``arcface.margin = 0.5``.
    scale : float
        s.

    Example
    -------
    >>> arcface = ArcFace(8, 10)
    >>> loss = arcface(torch.randn(4, 1, 8), torch.tensor([0, 3, 3, 9]))
    >>> loss.shape
    torch.Size([])
    """

    def __init__(
        self,
        embedding_size,
        n_classes,
        margin: float = 0.2,
        scale: PositiveFloat = 32.0,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, embedding_size))
        nn.init.xavier_normal_(self.weight)
        self.margin = margin
        self.scale = scale

    def forward(self, embeddings, labels):
        """Mean cross-entropy of a batch.

        Arguments
        ---------
        embeddings : torch.Tensor
            [B, E] or [B, 1, E], of any length but zero.
        labels : torch.Tensor
            [B], int64, 0 … N−1.

        Returns
        -------
        torch.Tensor
            Scalar, float32.
        """
        return F.cross_entropy(self.logits(embeddings, labels), labels.view(-1))

    def cosines(self, embeddings):
        """[B, E] or [B, 1, E] → cosine with every class, float32 [B, N]."""
        with full_precision(embeddings):
            rows = F.normalize(embeddings.float().flatten(0, -2), dim=-1)
            return F.linear(rows, F.normalize(self.weight.float(), dim=-1))

    def logits(self, embeddings, labels):
        """The scaled cosines with the margin on the target: float32 [B, N]."""
        cosine = self.cosines(embeddings)
        index = labels.view(-1, 1)
        with full_precision(embeddings):
            target = add_margin(cosine.gather(1, index), self.margin)
            return cosine.scatter(1, index, target) * self.scale

    def extra_repr(self):
        """Shown by ``print``."""
        classes, size = self.weight.shape
        return f"{size} → {classes}, margin={self.margin}, scale={self.scale}"


def add_margin(cosine, margin):
    """cos θ → cos(θ + m), with finite gradients at cos θ = ±1.

    Arguments
    ---------
    cosine : torch.Tensor
        Any shape, float32.
    margin : float
        m in radians.

    Returns
    -------
    torch.Tensor
        The same shape.
    """
    sine = (1.0 - cosine.square()).clamp(min=SIN_SQUARED_FLOOR).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine - margin * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), shifted, beyond)


# As in torch's cosine_similarity: a state of zeros has a cosine of 0.
NORM_FLOOR = 1e-8


class Distillation(NamedTuple):
    """The loss, a scalar, and the parts it is made of: L1 [S] and cosine [S]."""

    loss: torch.Tensor
    l1: torch.Tensor
    cosine: torch.Tensor


def distillation_loss(student, teacher, lens=None):
    """Compare all hidden states of a student with its teacher's.

    Always float32, also under autocast. Let go of ``teacher`` before backward, and
    each of its states is freed as soon as its gradient is known.

    Arguments
    ---------
    student, teacher : list of torch.Tensor
        S tensors [B, T, C] each; the teacher's without gradients.
    lens : torch.Tensor
        [B], valid part of each row relative to T; None: all of it.

    Returns
    -------
    Distillation
        Float32.

    Raises
    ------
    InputError
        Another number of states, or states of another shape.

    Example
    -------
    >>> states = [torch.randn(2, 5, 8) for _ in range(3)]
    >>> loss, l1, cosine = distillation_loss(states, states)
    >>> float(loss), float(l1.sum())
    (-1.0, 0.0)
    """
    _check_shapes(student, teacher)
    padding = padding_mask(student[0].shape[1], lens)
    valid = None if padding is None else ~padding
    distances = [
        _StateDistance.apply(one, other, valid) for one, other in zip(student, teacher)
    ]
    l1, cosine = (torch.stack(part) for part in zip(*distances))
    return Distillation(l1.mean() - cosine.mean(), l1, cosine)


class _StateDistance(torch.autograd.Function):
    """mean |s − t| and mean cos(s, t) of one state, [B, T, C] each.

        ∂ mean |s − t| / ∂s = sign(s − t) / (N C)                     N frames count
        ∂ mean cos / ∂s     = (t / (|s| |t|) − cos(s, t) s / |s|²) / N

    Autograd would keep several tensors of the size of s for this; what is kept here
    beside s and t are three numbers per frame.
    """

    @staticmethod
    def forward(ctx, student, teacher, valid):
        s, t = _counted(student, valid), _counted(teacher, valid)
        s_norm, t_norm = (_norm(x) for x in (s, t))
        cosine = (s * t).sum(-1, keepdim=True) / (s_norm * t_norm)
        ctx.save_for_backward(student, teacher, valid, s_norm, t_norm, cosine)
        return (s - t).abs_().mean(), cosine.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, by_l1, by_cosine):
        student, teacher, valid, s_norm, t_norm, cosine = ctx.saved_tensors
        s, t = _counted(student, valid), _counted(teacher, valid)
        by_frame = by_cosine / cosine.numel()
        gradient = (s - t).sign_().mul_(by_l1 / s.numel())
        gradient.addcmul_(t, by_frame / (s_norm * t_norm))
        gradient.addcmul_(s, -by_frame * cosine / s_norm.square())
        gradient = gradient.to(student.dtype)
        if valid is not None:
            gradient = torch.zeros_like(student).masked_scatter_(
                valid.unsqueeze(-1), gradient
            )
        return gradient, None, None


def _counted(state, valid):
    """The frames that count, float32: [B, T, C], or [N, C] where some do not."""
    # not a product with zero: what lies in the padding may be NaN
    return (state if valid is None else state[valid]).float()


def _norm(x):
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=NORM_FLOOR)


def _check_shapes(student, teacher):
    if len(student) != len(teacher) or not student:
        raise InputError(
            f"distillation: {len(student)} states of the student, expected the "
            f"teacher's {len(teacher)}"
        )
    for number, (one, other) in enumerate(zip(student, teacher)):
        if one.shape != other.shape:
            raise InputError(
                f"distillation: state {number} of the student is {tuple(one.shape)}, "
                f"expected the teacher's {tuple(other.shape)}"
            )
