"""Training losses: ArcFace and SphereFace2 with their classifiers, and distillation.

ArcFace, the additive angular margin softmax, scales cosines by s and adds a margin m to
the angle θ_y of the target class::

    logits_j = s · cos θ_j                     j ≠ y
    logits_y = s · cos(θ_y + m) = s (cos θ_y cos m − sin θ_y sin m)
    loss     = −log softmax(logits)_y

(Deng et al. 2019, arXiv 1801.07698, equation 3). Where θ_y + m would pass π the target
logit continues as s (cos θ_y − m sin m), which keeps it decreasing in θ_y.

With K centres a class (sub-centre ArcFace, Deng et al. 2020) cos θ_j is the largest of
its K cosines. The inter-top-k penalty (Zhao et al. 2021, arXiv 2110.05042) moves the k
other classes that come nearest closer by an angle m'::

    logits_j = s · cos(θ_j − m')                the k largest with j ≠ y

m' grows with the margin, as in wespeaker: its value is meant for m = 0.2, and it is 0
where m is 0.

SphereFace2 (Wen et al. 2022, arXiv 2108.01513; for speakers Han et al. 2023, arXiv
2307.08205) asks of every class by itself whether it is the speaker. With
g(c) = 2 ((c + 1) / 2)^t − 1, the additive margin of its kind C and a learned bias b::

    loss = λ log(1 + exp(−s (g(cos θ_y) − m) − b))
           + (1 − λ) Σ_{j ≠ y} log(1 + exp(s (g(cos θ_j) + m) + b))

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
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn
from torch.autograd.function import once_differentiable

from speechbrain_ext.lobes.encoder import padding_mask
from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import full_precision

# Keeps the gradient of the square root finite where a cosine rounds to ±1.
SIN_SQUARED_FLOOR = 1e-6

# The margin for which an inter-top-k margin is given, and below which there is none.
USUAL_MARGIN, LEAST_MARGIN = 0.2, 1e-3


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
    n_centers : int
        K of each class. With more than one ``weight`` is [N, K, E], else [N, E].
    inter_topk : int
        k, of the other classes; 0: none, as in large-margin fine-tuning.
    inter_topk_margin : float
        m' in radians at a margin of 0.2; in proportion at others.

    Raises
    ------
    InputError
        More other classes in ``inter_topk`` than there are.

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
        n_centers: PositiveInt = 1,
        inter_topk: NonNegativeInt = 0,
        inter_topk_margin: NonNegativeFloat = 0.06,
    ):
        super().__init__()
        check_at_least("n_centers", n_centers, 1)
        check_at_least("inter_topk", inter_topk, 0)
        check_at_least("inter_topk_margin", inter_topk_margin, 0, whole=False)
        if inter_topk and inter_topk >= n_classes:
            raise InputError(
                f"inter_topk={inter_topk}, expected less than the {n_classes} classes"
            )
        weight = torch.empty(n_classes * n_centers, embedding_size)
        nn.init.xavier_normal_(weight)
        if n_centers > 1:
            weight = weight.view(n_classes, n_centers, embedding_size)
        self.weight = nn.Parameter(weight)
        self.margin = margin
        self.scale = scale
        self.inter_topk = inter_topk
        self.inter_topk_margin = inter_topk_margin

    @property
    def n_centers(self):
        """K of each class."""
        return self.weight.shape[1] if self.weight.dim() == 3 else 1

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
            weight = F.normalize(self.weight.float(), dim=-1)
            if weight.dim() == 2:
                return F.linear(rows, weight)
            cosine = F.linear(rows, weight.flatten(0, 1))
            return cosine.unflatten(1, weight.shape[:2]).max(-1).values

    def logits(self, embeddings, labels):
        """The scaled cosines with the margins: float32 [B, N]."""
        cosine = self.cosines(embeddings)
        index = labels.view(-1, 1)
        with full_precision(embeddings):
            target = add_margin(cosine.gather(1, index), self.margin)
            if self.inter_topk and self.margin > LEAST_MARGIN:
                others = cosine.detach().scatter(1, index, -2.0)  # below any cosine
                near = others.topk(self.inter_topk, dim=1).indices
                margin = self.inter_topk_margin * self.margin / USUAL_MARGIN
                cosine = cosine.scatter(
                    1, near, _shifted(cosine.gather(1, near), -margin)
                )
            return cosine.scatter(1, index, target) * self.scale

    def extra_repr(self):
        """Shown by ``print``."""
        classes, size = self.weight.shape[0], self.weight.shape[-1]
        text = f"{size} → {classes}, margin={self.margin}, scale={self.scale}"
        if self.n_centers > 1:
            text += f", n_centers={self.n_centers}"
        if self.inter_topk:
            text += f", inter_topk={self.inter_topk}"
            text += f", inter_topk_margin={self.inter_topk_margin}"
        return text


class SphereFace2(ArcFace):
    """Cosine classifier of one-against-all decisions with a margin on both sides.

    Float32 as :class:`ArcFace`. Settings are those of the public recipes for speakers.

    Arguments
    ---------
    embedding_size : int
        Width E.
    n_classes : int
        Number of speakers N.
    margin : float
        m, of the similarity g(cos θ). May be set at any time.
    scale : float
        s.
    target_weight : float
        λ, between 0 and 1, of the target's decision; 1 − λ of each other one.
    exponent : float
        t.

    Raises
    ------
    InputError
        A weight beyond 0 to 1.

    Example
    -------
    >>> sphereface2 = SphereFace2(8, 10)
    >>> loss = sphereface2(torch.randn(4, 1, 8), torch.tensor([0, 3, 3, 9]))
    >>> loss.shape
    torch.Size([])
    """

    def __init__(
        self,
        embedding_size,
        n_classes,
        margin: float = 0.2,
        scale: PositiveFloat = 32.0,
        target_weight: NonNegativeFloat = 0.7,
        exponent: PositiveFloat = 3.0,
    ):
        super().__init__(embedding_size, n_classes, margin, scale)
        if target_weight > 1:
            raise InputError(f"target_weight={target_weight}, expected 0 to 1")
        self.target_weight = target_weight
        self.exponent = exponent
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, embeddings, labels):
        """Mean loss of a batch, a scalar in float32; shapes as of :class:`ArcFace`."""
        logits = self.logits(embeddings, labels)
        index = labels.view(-1, 1)
        signed = logits.scatter(1, index, -logits.gather(1, index))
        losses = F.softplus(signed)
        target = losses.gather(1, index).squeeze(1)
        others = losses.sum(1) - target
        weight = self.target_weight
        return (weight * target + (1 - weight) * others).mean()

    def logits(self, embeddings, labels):
        """s (g(cos θ) ∓ m) + b: float32 [B, N]."""
        cosine = self.cosines(embeddings)
        with full_precision(embeddings):
            half = ((cosine + 1) / 2).clamp(min=0)  # a cosine may round below −1
            similarity = 2 * half.pow(self.exponent) - 1
            margin = torch.full_like(similarity, self.margin)
            margin = margin.scatter(1, labels.view(-1, 1), -self.margin)
            return self.scale * (similarity + margin) + self.bias.float()

    def extra_repr(self):
        """Shown by ``print``."""
        text = f", target_weight={self.target_weight}, exponent={self.exponent}"
        return super().extra_repr() + text


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
    beyond = cosine - margin * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), _shifted(cosine, margin), beyond)


def _shifted(cosine, margin):
    """cos θ → cos θ cos m − sin θ sin m, whatever θ + m is."""
    sine = (1.0 - cosine.square()).clamp(min=SIN_SQUARED_FLOOR).sqrt()
    return cosine * math.cos(margin) - sine * math.sin(margin)


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


class SquaredDistance(NamedTuple):
    """The loss, a scalar, and the mean squares that it is the mean of: mse [S]."""

    loss: torch.Tensor
    mse: torch.Tensor


def squared_loss(student, teacher, lens=None):
    """Mean squared difference of hidden states, over valid frames and channels.

    Arguments and errors are those of :func:`distillation_loss`. Of the last state alone
    it is what SV-Mixer is distilled with (arXiv 2509.14136). → SquaredDistance.
    """
    pairs = _counted_pairs(student, teacher, lens)
    mse = torch.stack([F.mse_loss(s, t) for s, t in pairs])
    return SquaredDistance(mse.mean(), mse)


def prediction_loss(student, teacher, lens=None, cosine_weight: float = 1.0):
    """What predicted states of a teacher are compared by, mean over the states:

        mean |s − t| − λ mean ln σ(cos(s, t))

    DistilHuBERT (Chang et al. 2022, arXiv 2110.01900, equation 1). Arguments and errors
    are those of :func:`distillation_loss`; ``cosine_weight`` is λ. → Distillation.
    """
    l1, cosine, loss = [], [], []
    for s, t in _counted_pairs(student, teacher, lens):
        cosines = F.cosine_similarity(s, t, dim=-1)
        l1.append(F.l1_loss(s, t))
        cosine.append(cosines.mean())
        loss.append(l1[-1] - cosine_weight * F.logsigmoid(cosines).mean())
    return Distillation(
        torch.stack(loss).mean(),
        torch.stack(l1).detach(),
        torch.stack(cosine).detach(),
    )


def aligned(state, frames):
    """A teacher's state [B, T, C] at the frame rate of a student's, [B, ``frames``, C].

    Both begin with the recording. The rates are one where T is ``frames`` but for a
    frame or two at the end, of networks with other borders: these are cut off, or the
    last frame is repeated. So with k times as many, whose every k are averaged (2 of
    100 a second). Any other number is stretched linearly over the recording.
    """
    total = state.shape[1]
    times = max(1, round(total / frames))
    if abs(total - times * frames) > 2 * times:
        moved = state.transpose(1, 2)
        return F.interpolate(moved, size=frames, mode="linear").transpose(1, 2)
    missing = times * frames - total
    if missing > 0:
        last = state[:, -1:].expand(-1, missing, -1)
        state = torch.cat([state, last], dim=1)
    state = state[:, : times * frames]
    return state if times == 1 else state.unflatten(1, (frames, times)).mean(2)


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


def _counted_pairs(student, teacher, lens):
    """Pairs of states, float32, of the frames that count alone."""
    _check_shapes(student, teacher)
    padding = padding_mask(student[0].shape[1], lens)
    valid = None if padding is None else ~padding
    return [
        (_counted(one, valid), _counted(other, valid))
        for one, other in zip(student, teacher)
    ]


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
