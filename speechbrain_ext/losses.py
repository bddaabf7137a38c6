"""Additive angular margin softmax (ArcFace), classifier included.

    logits_j = s · cos θ_j                     j ≠ y
    logits_y = s · cos(θ_y + m) = s (cos θ_y cos m − sin θ_y sin m)
    loss     = −log softmax(logits)_y

Deng et al. 2019 (arXiv 1801.07698, equation 3). Where θ_y + m would pass π the target
logit goes on as s (cos θ_y − m sin m), which keeps it decreasing in θ_y.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.errors import InputError
from speechbrain_ext.precision import full_precision

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

    def __init__(self, embedding_size, n_classes, margin=0.2, scale=32.0):
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

    def keep_classes(self, n_classes):
        """Keep the first ``n_classes`` rows: the speakers without their speed copies.

        Raises
        ------
        InputError
            Where there are fewer, or none is to be kept.
        """
        if not 0 < n_classes <= len(self.weight):
            raise InputError(
                f"classifier: {len(self.weight)} classes, cannot keep {n_classes}"
            )
        self.weight = nn.Parameter(self.weight.detach()[:n_classes].clone())

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
