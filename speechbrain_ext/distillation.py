"""Distillation of all hidden states: how far a student's are from its teacher's.

    loss = 1/S Σ_l ( mean |s_l − t_l| − mean cos(s_l, t_l) )        l = 0 … L, S = L + 1

s_l and t_l are state l of student and teacher, [B, T, C]; |·| is averaged over valid
frames and channels, cos over valid frames (arXiv 2510.04213, equal weights of L1 and
cosine and of the states). The published way stacks all states of both to [S, B, T, C]
first; here each state is compared by itself, and what its gradient needs is computed
again in backward, so that beside the states themselves only one at a time takes
memory.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from speechbrain_ext.errors import InputError
from speechbrain_ext.lobes.w2v_bert import padding_mask

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
